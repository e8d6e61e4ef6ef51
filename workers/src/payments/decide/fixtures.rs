//! A small world for the tests of the rules: one schedule, buyers with and without money, one hold or more.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use common::bodies::{Reservation, ReservationStatus};
use common::catalogue::{PaymentFailurePolicy, Schedule};
use common::ids::{ConcertId, PaymentId, RequestId, ReservationId, ScheduleId, UserId};
use common::messages::Origin;
use common::messages::payments::{Cancel, Charge, Expire, Pay, PaymentCommand, Refund};
use common::problems::Problem;
use common::seating::{Layout, Section};
use serde_json::Value;
use uuid::Uuid;

use super::super::state::{Account, State};
use super::decide;
use crate::runtime::word::{Clock, Outcome};

/// When the holds of the tests end; commands are asked at so many seconds from here.
pub(super) const HOLD_ENDS_AT: DateTime<Utc> = DateTime::<Utc>::from_timestamp(1_800_000_000, 0).expect("in range");
/// When the schedule begins, in seconds from the holds' end.
pub(super) const STARTS_S: i64 = 3_600;
pub(super) const PRICE: i64 = 500;

pub(super) fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(n))
}

pub(super) fn reservation_id(n: u128) -> ReservationId {
    ReservationId(Uuid::from_u128(1_000 + n))
}

pub(super) fn request(n: u128) -> RequestId {
    RequestId(Uuid::from_u128(1_000_000 + n))
}

pub(super) fn at(seconds: i64) -> DateTime<Utc> {
    HOLD_ENDS_AT + TimeDelta::seconds(seconds)
}

pub(super) fn schedule(price: i64, on_payment_failure: PaymentFailurePolicy) -> Arc<Schedule> {
    let sections = vec![Section { name: "A".to_owned(), rows: 10, seats_per_row: 10, price }];
    Arc::new(Schedule {
        schedule_id: ScheduleId(7),
        concert_id: ConcertId(3),
        starts_at: at(STARTS_S),
        layout: Layout::new(ScheduleId(7), sections),
        hold_seconds: 300,
        max_seats_per_buyer: 4,
        on_payment_failure,
    })
}

/// A hold of `seats` seats; what was paid has the payment of `request(0)`.
pub(super) fn reservation(
    n: u128,
    owner: UserId,
    schedule: &Schedule,
    seats: i64,
    status: ReservationStatus,
) -> Reservation {
    let seat_ids: Vec<_> = (0..seats).map(|seat| schedule.layout.seat_at(seat)).collect();
    let was_paid = matches!(status, ReservationStatus::Paid | ReservationStatus::Refunded);
    Reservation {
        reservation_id: reservation_id(n),
        user_id: owner,
        concert_id: schedule.concert_id,
        schedule_id: schedule.schedule_id,
        total: schedule.layout.total_price(&seat_ids),
        seat_ids,
        status,
        held_at: at(-300),
        hold_expires_at: HOLD_ENDS_AT,
        payment_id: was_paid.then(|| PaymentId::from(request(0))),
    }
}

/// User 1 with `balance` and reservation 1 of two seats; reservation 2 is user 2's, who has an account too.
pub(super) fn world(status: ReservationStatus, balance: i64, policy: PaymentFailurePolicy) -> State {
    let schedule = schedule(PRICE, policy);
    let mut state = State::new("KRW");
    state.add_account(user(1), Account { balance, entries: 5 });
    state.add_account(user(2), Account { balance: 0, entries: 0 });
    state.add_reservation(reservation(1, user(1), &schedule, 2, status), schedule.clone());
    state.add_reservation(reservation(2, user(2), &schedule, 1, ReservationStatus::Held), schedule);
    state
}

pub(super) fn charge(request_id: RequestId, user_id: UserId, amount: i64) -> PaymentCommand {
    PaymentCommand::Charge(Charge { request_id, request_hash: None, user_id, amount })
}

pub(super) fn pay(
    request_id: RequestId,
    user_id: UserId,
    reservation_id: ReservationId,
    goes_on: bool,
) -> PaymentCommand {
    let origin = goes_on.then(|| Origin { kind: "reservation.hold".to_owned(), submitted_at: at(-300), source: None });
    PaymentCommand::Pay(Pay { request_id, request_hash: None, user_id, reservation_id, token_seq: None, origin })
}

pub(super) fn refund(request_id: RequestId, user_id: UserId, payment_id: PaymentId) -> PaymentCommand {
    PaymentCommand::Refund(Refund { request_id, request_hash: None, user_id, payment_id })
}

pub(super) fn cancel(request_id: RequestId, user_id: UserId, reservation_id: ReservationId) -> PaymentCommand {
    PaymentCommand::Cancel(Cancel { request_id, request_hash: None, user_id, reservation_id })
}

pub(super) fn expire(request_id: RequestId, user_id: UserId, reservation_id: ReservationId) -> PaymentCommand {
    PaymentCommand::Expire(Expire { request_id, request_hash: None, user_id, reservation_id })
}

/// Decides a command that was asked `seconds` after the holds' end, and is read much later.
pub(super) fn decide_at(state: &mut State, command: &PaymentCommand, seconds: i64) -> Result<(u16, Value), Problem> {
    match decide(state, command, Clock { asked_at: at(seconds), now: at(100_000) }) {
        Outcome::Succeeded { http_status, body, .. } => {
            Ok((http_status, serde_json::from_str(body.get()).expect("a body is JSON")))
        }
        Outcome::Failed(problem) => Err(problem),
        other => panic!("payments are decided here: {other:?}"),
    }
}

pub(super) fn status_of(state: &State, id: ReservationId) -> ReservationStatus {
    state.reservation(id).expect("it is in the state").row.status
}
