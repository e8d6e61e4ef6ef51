use common::messages::payments::PaymentCommand;
use common::messages::reservations::ReservationCommand;
use common::topics;
use serde_json::{Value, json};

use super::super::consume::tests::record;
use super::*;
use crate::payments::Payments;
use crate::reservations::Reservations;

fn read_one<W: Word>(key: &str, value: &Value) -> Vec<Read<W::Command>> {
    read_before::<W>(0, key, value)
}

/// A record, when the partition was applied up to `applied` before.
fn read_before<W: Word>(applied: i64, key: &str, value: &Value) -> Vec<Read<W::Command>> {
    let (key, value) = (Some(key.as_bytes().to_vec()), Some(value.to_string().into_bytes()));
    let (readable, dead) =
        read::<W>(vec![Record { key, value, ..record(3, 9) }], &Memory::default(), &Positions::from([(3, applied)]));
    assert!(dead.is_empty(), "{:?}", dead.first().map(|letter| letter.reason.to_string()));
    readable
}

/// What the database knows of a request that was decided in the payments topic.
fn stored(id: Uuid) -> HashMap<RequestId, RequestResult> {
    let result = RequestResult {
        request_id: RequestId(id),
        user_id: None,
        kind: "reservation.hold".to_owned(),
        status: RequestStatus::Failed,
        http_status: 402,
        result: None,
        problem: None,
        source: Source { topic: topics::PAYMENTS.to_owned(), partition: 3, offset: 9 },
        began: None,
        request_hash: None,
        submitted_at: DateTime::default(),
        finished_at: DateTime::default(),
        concert_id: None,
    };
    HashMap::from([(result.request_id, result)])
}

/// Without it, a hold that went on to its payment is not found by the worker of holds when the database was restored.
#[test]
fn a_repeat_is_told_with_the_record_where_it_began() {
    let (id, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let all = json!({"version": 1, "request_id": id, "user_id": user});
    let with = |members: Value| {
        let mut value = all.clone();
        value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        value
    };
    let hold = with(json!({"type": "reservation.hold", "schedule_id": 7, "seats": ["A-1-1"], "pay": true}));
    let hold: Vec<Read<ReservationCommand>> = read_one::<Reservations>("7", &hold);
    let told = tell(&hold, stored(id), topics::RESERVATIONS);
    let here = Source { topic: topics::RESERVATIONS.to_owned(), partition: 3, offset: 9 };
    assert_eq!(told[0].1.began.as_ref(), Some(&here));

    let there = json!({"topic": topics::RESERVATIONS, "partition": 1, "offset": 4});
    let origin = json!({"kind": "reservation.hold", "submitted_at": "2026-01-01T00:00:00Z", "source": there});
    for (origin, began) in [(origin, there), (Value::Null, Value::Null)] {
        let pay = with(json!({"type": "payment.pay", "reservation_id": id, "origin": origin}));
        let pay: Vec<Read<PaymentCommand>> = read_one::<Payments>(&user.to_string(), &pay);
        let told = tell(&pay, stored(id), topics::PAYMENTS);
        assert_eq!(serde_json::to_value(&told[0].1.began).unwrap(), began);
    }
}

#[test]
fn what_was_applied_and_left_no_outcome_is_a_dead_letter_again_unless_it_went_on() {
    let user = Uuid::from_u128(2);
    let all = json!({"version": 1, "request_id": Uuid::from_u128(1), "user_id": user});
    let with = |members: Value| {
        let mut value = all.clone();
        value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        value
    };
    let charge = with(json!({"type": "balance.charge", "amount": 5}));
    let charge_at = |applied| read_before::<Payments>(applied, &user.to_string(), &charge).remove(0).logged;
    assert!(!is_lost::<Payments>(&charge_at(9)), "it is new");
    assert!(is_lost::<Payments>(&charge_at(10)));
    let told = stored(Uuid::from_u128(1)).into_values().next().map(|result| Box::new(Told { result, fate: None }));
    assert!(!is_lost::<Payments>(&Logged { told, ..charge_at(10) }));
    for (pay, lost) in [(false, true), (true, false)] {
        let hold = with(json!({"type": "reservation.hold", "schedule_id": 7, "seats": ["A-1-1"], "pay": pay}));
        let hold = read_before::<Reservations>(10, "7", &hold).remove(0).logged;
        assert_eq!((hold.applied_before, is_lost::<Reservations>(&hold)), (true, lost), "pay: {pay}");
    }
}
