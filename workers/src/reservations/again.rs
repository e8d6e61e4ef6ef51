//! Holds that were told before the database forgot them: the same seats until the same time, whatever speaks against it now. Pure,
//! like `decide`.

use common::bodies::{PaymentBody, Reservation, ReservationBody};
use common::ids::SeatId;
use common::messages::reservations::Hold;
use common::problems::{Problem, Slug};

use super::decide::{State, decide};
use crate::runtime::word::{Clock, Outcome, Told};

/// What was told of a hold that succeeded, or of the payment that it went on to.
pub(crate) fn told(told: &Told) -> Option<ReservationBody> {
    let paid = || told.body::<PaymentBody>().map(|payment| payment.reservation);
    if told.succeeded() { told.body().or_else(paid) } else { None }
}

/// Holds again what was told to be held.
///
/// # Errors
/// How the command ends without a hold.
pub(crate) fn decide_again(
    state: &mut State,
    hold: &Hold,
    told: &Told,
    cause_pending: bool,
    clock: Clock,
) -> Result<Reservation, Outcome> {
    let Some(body) = self::told(told) else { return hold_released(state, hold, cause_pending, clock) };
    if !state.users.contains(&hold.user_id) {
        return Err(Outcome::Lacks(format!("there is no user {}", hold.user_id)));
    }
    let Some(schedule) = state.schedules.get(&hold.schedule_id).cloned() else {
        return Err(Outcome::Lacks(format!("there is no schedule {}", hold.schedule_id)));
    };
    let seats: Vec<SeatId> = body.seats.iter().map(|seat| seat.seat_id).collect();
    if !seats.iter().all(|seat| schedule.layout.place_of(*seat).is_some() && state.is_free(*seat, &schedule)) {
        let lacks = || Outcome::Lacks("its seats are another's".to_owned());
        return Err(if cause_pending { Outcome::Waits } else { lacks() });
    }
    Ok(state.hold(hold, &schedule, seats, body.hold_expires_at - schedule.hold_time()))
}

/// With `pay: true`: it was made, and its failed payment released it. Which seats it had is told nowhere and does not matter.
fn hold_released(state: &mut State, hold: &Hold, cause_pending: bool, clock: Clock) -> Result<Reservation, Outcome> {
    decide(state, hold, clock).map_err(|problem| {
        // Its own payment is among the pending ones, and waits for it: to wait for what none of them lifts would be for ever.
        if cause_pending && may_be_lifted(&problem) { Outcome::Waits } else { Outcome::Continued }
    })
}

/// Whether a hold may be possible once others have ended.
fn may_be_lifted(problem: &Problem) -> bool {
    matches!(problem.slug, Slug::SeatUnavailable | Slug::SoldOut | Slug::ReservationLimitExceeded)
}

#[cfg(test)]
#[path = "again_tests.rs"]
mod tests;
