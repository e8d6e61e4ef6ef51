use common::messages::payments::PaymentCommand;
use common::messages::reservations::ReservationCommand;
use common::topics;
use serde_json::{Value, json};

use super::super::consume::tests::record;
use super::*;
use crate::payments::Payments;
use crate::reservations::Reservations;

fn read_one<W: Word>(key: &str, value: &Value) -> Vec<Read<W::Command>> {
    let (key, value) = (Some(key.as_bytes().to_vec()), Some(value.to_string().into_bytes()));
    let (readable, dead) = read::<W>(vec![Record { key, value, ..record(3, 9) }], &Memory::default());
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
