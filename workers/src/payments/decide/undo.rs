//! A hold with `pay: true` whose request got its outcome from another record with its id, before its payment came: nobody is told of the
//! hold, and it does not stay behind.

use common::messages::Message as _;
use common::messages::payments::PaymentCommand;
use common::messages::reservations::Hold;
use common::messages::results::{RequestResult, RequestStatus};
use common::topics;

use super::{cancel_if_held, own};
use crate::payments::state::State;
use crate::runtime::word::Outcome;

/// Whether a repeat is the payment of a hold that `outcome` does not tell of. What the payment itself has decided does; so does a hold that
/// succeeded without one.
pub(crate) fn has_to_undo(command: &PaymentCommand, outcome: Option<&RequestResult>) -> bool {
    match command {
        PaymentCommand::Pay(pay) => {
            let is_of_its_own_hold = pay.origin.is_some() && pay.reservation_id.0 == pay.request_id.0;
            let tells_of_it = |outcome: &RequestResult| {
                let was_told = outcome.status == RequestStatus::Succeeded || outcome.source.topic == topics::PAYMENTS;
                outcome.kind == Hold::TYPE && outcome.user_id == Some(pay.user_id) && was_told
            };
            is_of_its_own_hold && !outcome.is_some_and(tells_of_it)
        }
        _ => false,
    }
}

/// Releases the hold, if nothing has ended it.
pub(crate) fn undo(state: &mut State, command: &PaymentCommand) -> Outcome {
    if let PaymentCommand::Pay(pay) = command
        && own(state, pay.reservation_id, pay.user_id).is_ok()
    {
        cancel_if_held(state, pay.reservation_id);
    }
    Outcome::Continued
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use common::bodies::ReservationStatus::{self, Cancelled, Expired, Held, Paid, Refunded};
    use common::catalogue::PaymentFailurePolicy::KeepHold;
    use common::ids::{RequestId, ReservationId};
    use common::messages::results::Source;

    use super::super::fixtures::{cancel, pay, request, reservation_id, status_of, user, world};
    use super::*;

    fn outcome(kind: &str, status: RequestStatus, topic: &str) -> RequestResult {
        RequestResult {
            request_id: request(1),
            user_id: Some(user(1)),
            kind: kind.to_owned(),
            status,
            http_status: 200,
            result: None,
            problem: None,
            source: Source { topic: topic.to_owned(), partition: 3, offset: 7 },
            began: None,
            request_hash: None,
            submitted_at: Utc::now(),
            finished_at: Utc::now(),
            concert_id: None,
        }
    }

    #[test]
    fn a_hold_that_its_requests_outcome_does_not_tell_of_is_undone_by_its_payment() {
        let second_half = pay(request(1), user(1), ReservationId::from(request(1)), true);
        let (hold, done, failed) = ("reservation.hold", RequestStatus::Succeeded, RequestStatus::Failed);
        let rows = [
            (outcome(hold, failed, topics::RESERVATIONS), true, "another hold, which was refused"),
            (outcome("balance.charge", done, topics::PAYMENTS), true, "a charge"),
            (outcome("payment.pay", failed, topics::PAYMENTS), true, "a payment of its own"),
            (outcome("token.issue", done, topics::TOKENS), true, "a join"),
            (outcome(hold, done, topics::RESERVATIONS), false, "this hold, and it was told"),
            (outcome(hold, done, topics::PAYMENTS), false, "this payment"),
            (outcome(hold, failed, topics::PAYMENTS), false, "this payment, which has released the hold"),
        ];
        for (outcome, undone, why) in rows {
            assert_eq!(has_to_undo(&second_half, Some(&outcome)), undone, "{why}");
        }
        let others = RequestResult { user_id: Some(user(2)), ..outcome(hold, failed, topics::PAYMENTS) };
        assert!(has_to_undo(&second_half, Some(&others)), "another buyer's payment");
        assert!(has_to_undo(&second_half, None), "whatever comes before it in the batch");
        for other in [
            pay(request(1), user(1), ReservationId::from(request(1)), false),
            pay(request(1), user(1), reservation_id(1), true),
            cancel(request(1), user(1), ReservationId::from(request(1))),
        ] {
            assert!(!has_to_undo(&other, None), "{other:?}");
        }
    }

    #[test]
    fn undoing_ends_what_still_runs_and_is_the_buyers() {
        let again = RequestId(reservation_id(1).0);
        for (owner, status, after) in [
            (1, Held, Cancelled),
            (2, Held, Held),
            (1, Paid, Paid),
            (1, Expired, Expired),
            (1, Cancelled, Cancelled),
            (1, Refunded, Refunded),
        ] {
            let mut state = world(status, 0, KeepHold);
            let ended = undo(&mut state, &pay(again, user(owner), reservation_id(1), true));
            assert!(matches!(ended, Outcome::Continued), "{ended:?}");
            let now: ReservationStatus = status_of(&state, reservation_id(1));
            assert_eq!(now, after, "of user {owner}: {status:?}");
        }
    }
}
