//! Commands whose outcome was told before the database forgot it. A buyer's log is applied in its order, so what succeeded succeeds
//! again as soon as its hold is there; a failure is made no success by what has changed since.

use common::bodies::ReservationStatus;
use common::ids::ReservationId;
use common::messages::payments::PaymentCommand;
use common::messages::results::{RequestResult, RequestStatus};
use common::problems::Slug;
use serde::Deserialize;

use super::decide;
use crate::payments::state::State;
use crate::runtime::word::{Clock, Outcome, Told};

#[derive(Deserialize)]
struct ToldProblem {
    r#type: String,
    #[serde(default)]
    seats_released: bool,
}

impl ToldProblem {
    fn of(result: &RequestResult) -> Option<Self> {
        serde_json::from_str(result.problem.as_deref()?.get()).ok()
    }

    /// What its hold became; None: it stayed as it was.
    fn ended_as(&self) -> Option<ReservationStatus> {
        if self.r#type == format!("/problems/{}", Slug::ReservationExpired.as_str()) {
            return Some(ReservationStatus::Expired);
        }
        self.seats_released.then_some(ReservationStatus::Cancelled)
    }
}

/// Whether an outcome has effects: a failure has, if it ended a hold.
pub(crate) fn had_effect(told: &RequestResult) -> bool {
    told.status == RequestStatus::Succeeded || ToldProblem::of(told).is_some_and(|problem| problem.ended_as().is_some())
}

/// Applies one command so that it comes out as told.
pub(crate) fn decide_again(state: &mut State, command: &PaymentCommand, told: &Told, clock: Clock) -> Outcome {
    let reservation = reservation_of(state, command);
    if !told.succeeded() {
        return end_again(state, reservation, told);
    }
    let before = reservation.and_then(|id| state.reservation(id)).cloned();
    match decide(state, command, clock) {
        Outcome::Failed(problem) => {
            // A payment that fails ends its hold; but this one was paid, and may be once what it lacks is brought back.
            state.put_back(before);
            Outcome::Lacks(problem.detail)
        }
        _ => Outcome::AsTold,
    }
}

fn end_again(state: &mut State, reservation: Option<ReservationId>, told: &Told) -> Outcome {
    let status = reservation.and_then(|id| state.reservation(id)).map(|booking| booking.row.status);
    let ended_as = ToldProblem::of(&told.result).and_then(|problem| problem.ended_as());
    if let (Some(ReservationStatus::Held), Some(id), Some(ended_as)) = (status, reservation, ended_as) {
        state.settle(id, ended_as);
    }
    Outcome::AsTold
}

/// Whether the reservation that the command is about is not in the database.
pub(crate) fn lacks_reservation(state: &State, command: &PaymentCommand) -> bool {
    let is_there = |id| state.reservation(id).is_some();
    !matches!(command, PaymentCommand::Charge(_)) && !reservation_of(state, command).is_some_and(is_there)
}

fn reservation_of(state: &State, command: &PaymentCommand) -> Option<ReservationId> {
    match command {
        PaymentCommand::Charge(_) => None,
        PaymentCommand::Pay(pay) => Some(pay.reservation_id),
        PaymentCommand::Cancel(cancel) => Some(cancel.reservation_id),
        PaymentCommand::Expire(expire) => Some(expire.reservation_id),
        PaymentCommand::Refund(refund) => state.paid_by(refund.payment_id).map(|booking| booking.row.reservation_id),
    }
}
