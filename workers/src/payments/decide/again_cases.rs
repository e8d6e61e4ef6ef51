//! What was told before the database forgot it, applied to a database that lacks something of it.

use common::bodies::ReservationStatus::{self, Held};
use common::catalogue::PaymentFailurePolicy::{self, KeepHold, ReleaseHold};
use common::ids::RequestId;
use common::messages::results::{RequestResult, RequestStatus, Source};
use common::topics;

use super::fixtures::*;
use super::{decide, decide_again};
use crate::runtime::word::{Clock, Outcome, Told};

fn succeeded(request_id: RequestId) -> Told {
    let result = RequestResult {
        request_id,
        user_id: Some(user(1)),
        kind: "payment.pay".to_owned(),
        status: RequestStatus::Succeeded,
        http_status: 201,
        result: None,
        problem: None,
        source: Source { topic: topics::PAYMENTS.to_owned(), partition: 3, offset: 7 },
        began: None,
        request_hash: None,
        submitted_at: at(-300),
        finished_at: at(0),
        concert_id: None,
    };
    Told { result, fate: None }
}

#[test]
fn a_payment_that_was_told_and_lacks_its_money_leaves_the_hold_as_it_is() {
    let rows: [(PaymentFailurePolicy, bool, i64); 4] =
        [(KeepHold, false, 0), (KeepHold, true, 0), (ReleaseHold, false, 0), (KeepHold, true, 9_000)];
    for (policy, goes_on, asked) in rows {
        let mut state = world(Held, PRICE, policy);
        let pay = pay(request(1), user(1), reservation_id(1), goes_on);
        let clock = Clock { asked_at: at(asked), now: at(100_000) };
        let ended = decide_again(&mut state, &pay, &succeeded(request(1)), clock);
        assert!(matches!(ended, Outcome::Lacks(_)), "{ended:?}");
        assert_eq!(status_of(&state, reservation_id(1)), Held, "{policy:?} {goes_on} {asked}");
        assert!(state.changes().reservations.is_empty() && state.changes().accounts.is_empty(), "nothing is written");
        // Once the money is there, so is the payment.
        decide(&mut state, &charge(request(2), user(1), 2 * PRICE), clock);
        if asked == 0 {
            let ended = decide_again(&mut state, &pay, &succeeded(request(1)), clock);
            assert!(matches!(ended, Outcome::AsTold), "{ended:?}");
            assert_eq!(status_of(&state, reservation_id(1)), ReservationStatus::Paid);
        }
    }
}
