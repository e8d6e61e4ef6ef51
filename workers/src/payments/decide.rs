//! The rules of payments, pure: no I/O, no clock of their own. Each hold ends exactly once, money moves with its ledger entry
//! only, and whoever asked in time is in time, however late the log is read.

mod again;
#[cfg(test)]
mod again_cases;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod properties;
mod undo;

use chrono::{DateTime, SecondsFormat, Utc};
use common::bodies::{ChargeBody, EntryKind, PaymentBody, PaymentStatus, ReservationStatus};
use common::catalogue::PaymentFailurePolicy;
use common::ids::{EntryId, PaymentId, ReservationId, UserId};
use common::messages::payments::{CHARGE_MAX, Cancel, Charge, Expire, Pay, PaymentCommand, Refund};
use common::problems::{Problem, Slug};

pub(super) use self::again::{decide_again, had_effect, lacks_reservation};
pub(super) use self::undo::{has_to_undo, undo};
use super::state::{Booking, Paid, Refunded, State};
use crate::runtime::word::{Clock, Outcome};

/// Decides one command. The state must have been loaded for it: the account of whoever pays, is refunded or charged, and the
/// reservation named by its id or by its payment's.
pub(super) fn decide(state: &mut State, command: &PaymentCommand, clock: Clock) -> Outcome {
    let decided = match command {
        PaymentCommand::Charge(command) => charge(state, command),
        PaymentCommand::Pay(command) => pay(state, command, clock),
        PaymentCommand::Refund(command) => refund(state, command, clock),
        PaymentCommand::Cancel(command) => cancel(state, command, clock),
        PaymentCommand::Expire(command) => expire(state, command, clock),
    };
    decided.unwrap_or_else(Outcome::Failed)
}

/// Whether one charge may add `amount`, in minor units.
pub(super) fn can_be_charged(amount: i64) -> bool {
    (1..=CHARGE_MAX).contains(&amount)
}

/// Whoever exists has an account by now: the first charge that can be made opens it before it is decided.
fn charge(state: &mut State, command: &Charge) -> Result<Outcome, Problem> {
    if !can_be_charged(command.amount) {
        let detail = format!("the amount is {}; charge 1 to {CHARGE_MAX} at a time", command.amount);
        return Err(Problem::invalid_request("/amount", detail));
    }
    if state.account(command.user_id).is_none() {
        let detail = format!("there is no user {}; sign up first", command.user_id);
        return Err(Problem::new(Slug::UserNotFound, detail));
    }
    let entry_id = EntryId::from(command.request_id);
    let balance = state
        .move_money(command.user_id, EntryKind::Charge, command.amount, entry_id, None)
        .ok_or_else(|| balance_is_full("/amount"))?;
    let currency = state.currency().to_owned();
    Ok(Outcome::succeeded(201, &ChargeBody { entry_id, amount: command.amount, balance, currency }))
}

/// A payment that fails releases the hold if it is the second half of a hold with `pay: true`, or, for want of balance, if the
/// concert says so.
fn pay(state: &mut State, command: &Pay, clock: Clock) -> Result<Outcome, Problem> {
    let booking = own(state, command.reservation_id, command.user_id)?;
    let policy = booking.schedule.on_payment_failure;
    take_payment(state, command, clock).map_err(|problem| {
        let by_policy = policy == PaymentFailurePolicy::ReleaseHold && problem.slug == Slug::InsufficientBalance;
        if command.origin.is_some() || by_policy { release(state, command.reservation_id, problem) } else { problem }
    })
}

fn take_payment(state: &mut State, command: &Pay, clock: Clock) -> Result<Outcome, Problem> {
    let Pay { reservation_id, user_id, request_id, .. } = *command;
    let booking = live_hold(state, reservation_id, user_id, clock)?;
    let amount = booking.row.total;
    let payment_id = PaymentId::from(request_id);
    let balance = state
        .move_money(user_id, EntryKind::Payment, -amount, EntryId::from(request_id), Some(reservation_id))
        .ok_or_else(|| insufficient(state.balance(user_id), amount))?;
    state.note_paid(Paid { payment_id, reservation_id, user_id, amount, balance });
    Ok(payment_outcome(state, payment_id, PaymentStatus::Succeeded, balance))
}

/// Ends the hold if it still runs, and tells of it in the payment's problem.
fn release(state: &mut State, id: ReservationId, mut problem: Problem) -> Problem {
    cancel_if_held(state, id);
    // What ended before has released its seats as well; only what is paid keeps them.
    let released = state.reservation(id).is_some_and(|booking| booking.row.status != ReservationStatus::Paid);
    if released {
        problem.detail.push_str("; the seats are released");
    }
    problem.with("reservation_id", id.to_string()).with("seats_released", released)
}

fn cancel_if_held(state: &mut State, id: ReservationId) {
    if state.reservation(id).is_some_and(|booking| booking.row.status == ReservationStatus::Held) {
        state.settle(id, ReservationStatus::Cancelled);
    }
}

fn refund(state: &mut State, command: &Refund, clock: Clock) -> Result<Outcome, Problem> {
    let Refund { payment_id, user_id, request_id, .. } = *command;
    let Some(booking) = state.paid_by(payment_id).filter(|booking| booking.row.user_id == user_id) else {
        let detail = format!("this buyer has no payment {payment_id}; GET /v1/reservations lists what was paid");
        return Err(Problem::new(Slug::PaymentNotFound, detail));
    };
    if booking.row.status != ReservationStatus::Paid {
        return Err(Problem::new(Slug::NotRefundable, "the payment was refunded before; there is nothing left to do"));
    }
    if clock.asked_at >= booking.schedule.starts_at {
        let detail = format!("the schedule began at {}; refunds end there", time(booking.schedule.starts_at));
        return Err(Problem::new(Slug::NotRefundable, detail));
    }
    let (reservation, amount) = (booking.row.reservation_id, booking.row.total);
    let balance = state
        .move_money(user_id, EntryKind::Refund, amount, EntryId::from(request_id), Some(reservation))
        .ok_or_else(|| balance_is_full("/payment_id"))?;
    state.note_refunded(reservation, Refunded { payment_id, balance });
    Ok(payment_outcome(state, payment_id, PaymentStatus::Refunded, balance))
}

fn cancel(state: &mut State, command: &Cancel, clock: Clock) -> Result<Outcome, Problem> {
    live_hold(state, command.reservation_id, command.user_id, clock)?;
    state.settle(command.reservation_id, ReservationStatus::Cancelled);
    Ok(reservation_outcome(state, command.reservation_id))
}

/// An expiry counts from the moment it was asked for: one that comes before the hold's end by the broker's clock has no effect,
/// whenever it is read.
fn expire(state: &mut State, command: &Expire, clock: Clock) -> Result<Outcome, Problem> {
    let row = &own(state, command.reservation_id, command.user_id)?.row;
    if let Some(problem) = ended(row.status) {
        return Err(problem);
    }
    if clock.asked_at <= row.hold_expires_at {
        let detail = format!("the hold runs until {}; expire it after that", time(row.hold_expires_at));
        return Err(Problem::invalid_request("/reservation_id", detail));
    }
    state.settle(command.reservation_id, ReservationStatus::Expired);
    Ok(reservation_outcome(state, command.reservation_id))
}

/// The buyer's reservation, whatever has become of it.
fn own(state: &State, id: ReservationId, user: UserId) -> Result<&Booking, Problem> {
    let Some(booking) = state.reservation(id) else {
        let detail = format!("there is no reservation {id}; GET /v1/reservations lists this buyer's");
        return Err(Problem::new(Slug::ReservationNotFound, detail));
    };
    if booking.row.user_id != user {
        let detail = format!("reservation {id} is another buyer's; GET /v1/reservations lists this buyer's");
        return Err(Problem::new(Slug::ReservationOfAnotherBuyer, detail));
    }
    Ok(booking)
}

/// The buyer's hold, if it was live when it was asked for. One that had run out by then is ended here and now: its expiry may be
/// far behind in the log, and the seats are free the sooner.
fn live_hold(state: &mut State, id: ReservationId, user: UserId, clock: Clock) -> Result<&Booking, Problem> {
    let row = &own(state, id, user)?.row;
    if row.status == ReservationStatus::Held && clock.asked_at > row.hold_expires_at {
        state.settle(id, ReservationStatus::Expired);
    }
    let booking = own(state, id, user)?;
    ended(booking.row.status).map_or(Ok(booking), Err)
}

/// Why nothing can be done any more with a hold that has ended.
fn ended(status: ReservationStatus) -> Option<Problem> {
    let (slug, detail) = match status {
        ReservationStatus::Held => return None,
        ReservationStatus::Paid => (Slug::AlreadyPaid, "the reservation is paid; a refund gives its seats back"),
        ReservationStatus::Expired => (Slug::ReservationExpired, "the hold has run out; hold seats again"),
        ReservationStatus::Cancelled => (Slug::ReservationCancelled, "the hold was cancelled; hold seats again"),
        ReservationStatus::Refunded => (Slug::ReservationCancelled, "the reservation was refunded; hold seats again"),
    };
    Some(Problem::new(slug, detail))
}

fn insufficient(balance: i64, required: i64) -> Problem {
    let short = required - balance;
    let detail = format!("the balance is {balance} and the seats cost {required}: charge {short} or more");
    Problem::new(Slug::InsufficientBalance, detail).with("balance", balance).with("required", required)
}

fn balance_is_full(pointer: &str) -> Problem {
    Problem::invalid_request(pointer, "the balance would be too large to count; spend some of it first")
}

fn payment_outcome(state: &State, payment_id: PaymentId, status: PaymentStatus, balance: i64) -> Outcome {
    let booking = state.paid_by(payment_id).expect("the payment was made or found just now");
    let (amount, currency) = (booking.row.total, state.currency().to_owned());
    let reservation = state.body(booking);
    Outcome::succeeded(201, &PaymentBody { payment_id, status, amount, balance, currency, reservation })
}

fn reservation_outcome(state: &State, id: ReservationId) -> Outcome {
    let booking = state.reservation(id).expect("the reservation was found just now");
    Outcome::succeeded(200, &state.body(booking))
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}
