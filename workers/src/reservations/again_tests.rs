use chrono::Utc;
use common::ids::ScheduleId;
use common::messages::results::{RequestResult, RequestStatus, Source};
use common::topics;

use super::super::decide::tests::{best_hold, clock, named_hold, state, user};
use super::*;

/// The hold went on to its payment, which failed and released the seats.
fn released(hold: &Hold) -> Told {
    let result = RequestResult {
        request_id: hold.request_id,
        user_id: Some(hold.user_id),
        kind: "reservation.hold".to_owned(),
        status: RequestStatus::Failed,
        http_status: 402,
        result: None,
        problem: None,
        source: Source { topic: topics::PAYMENTS.to_owned(), partition: 3, offset: 7 },
        began: None,
        request_hash: None,
        submitted_at: Utc::now(),
        finished_at: Utc::now(),
        concert_id: None,
    };
    Told { result, fate: None }
}

#[test]
fn a_released_hold_waits_only_for_what_others_can_lift() {
    let elsewhere = Hold { schedule_id: ScheduleId(43), ..named_hold(9, 2, &[1]) };
    // The payment that released it is pending, and waits for it: whoever waits for a buyer that never comes waits for ever.
    let rows = [
        (named_hold(9, 99, &[1]), false, "the backup does not know the buyer"),
        (elsewhere, false, "nor the schedule"),
        (named_hold(9, 2, &[10]), false, "there is no such seat"),
        (named_hold(9, 2, &[0, 1]), true, "whoever has the seat may give it back"),
        (named_hold(9, 1, &[3, 4]), true, "the buyer may have given seats back"),
        (best_hold(9, 9, 4), true, "there may be seats again"),
    ];
    for (hold, waits, why) in rows {
        let mut state = state(4);
        for (request, places) in [(1, &[0, 5, 6][..]), (2, &[2, 7, 8, 9]), (3, &[1])] {
            decide(&mut state, &named_hold(request, request, places), clock()).unwrap();
        }
        for cause_pending in [true, false] {
            let ended = decide_again(&mut state, &hold, &released(&hold), cause_pending, clock()).unwrap_err();
            let waited = matches!(ended, Outcome::Waits);
            assert!(waited || matches!(ended, Outcome::Continued), "{why}: {ended:?}");
            assert_eq!(waited, waits && cause_pending, "{why}");
        }
    }
}

#[test]
fn a_released_hold_is_made_again_if_it_can_be() {
    let hold = named_hold(9, 2, &[1]);
    let made = decide_again(&mut state(4), &hold, &released(&hold), true, clock()).unwrap();
    assert_eq!((made.user_id, made.seat_ids.len()), (user(2), 1));
}
