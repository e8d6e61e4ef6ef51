//! Paying, and what a payment ends.

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, at, shapes};
use chrono::{SecondsFormat, TimeDelta, Utc};
use futures::future::join_all;
use serde_json::json;

#[tokio::test]
async fn s0_09_payment_makes_the_hold_final() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(50_000).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], way).await.ok(201);
        let payment = buyer.pay(&show, &held, way).await.ok(201);
        shapes::payment(&payment, "SUCCEEDED");
        assert_eq!((&payment["amount"], &payment["balance"]), (&PRICE.into(), &40_000.into()));
        assert_eq!(payment["reservation"]["reservation_id"], held["reservation_id"]);
        show.becomes(&[seat], "SOLD").await;
        let paid = buyer.reservation(&held).await;
        assert_eq!((&paid["status"], &paid["payment_id"]), (&"PAID".into(), &payment["payment_id"]));
        buyer.cancel(&held, way).await.fails(409, "already-paid");
        let other = show.buyer(PRICE).await;
        other.hold(&show, &[seat], way).await.fails(409, "seat-unavailable");
    }
}

#[tokio::test]
async fn s0_10_failed_payment_releases_the_hold_of_a_reserve_and_pay() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(PRICE - 1).await;
        let [seat] = show.pick().await;
        let problem = buyer.buy(&show, &[seat], way).await.fails(402, "insufficient-balance");
        assert_eq!((&problem["balance"], &problem["required"]), (&(PRICE - 1).into(), &PRICE.into()));
        assert_eq!(problem["seats_released"], true);
        assert_eq!(buyer.reservation(&problem).await["status"], "CANCELLED");
        assert_eq!(buyer.balance().await, PRICE - 1);
        let other = show.buyer(0).await;
        other.hold(&show, &[seat], Way::Wait).await.ok(201);
    }
}

#[tokio::test]
async fn s0_10_failed_payment_releases_the_hold_where_the_concert_says_so() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::with(&api, json!({"on_payment_failure": "release_hold"})).await;
        let buyer = show.buyer(0).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        let problem = buyer.pay(&show, &held, way).await.fails(402, "insufficient-balance");
        assert_eq!((&problem["balance"], &problem["required"]), (&0.into(), &PRICE.into()));
        assert_eq!(problem["reservation_id"], held["reservation_id"]);
        assert_eq!(problem["seats_released"], true);
        assert_eq!(buyer.reservation(&held).await["status"], "CANCELLED");
        show.becomes(&[seat], "AVAILABLE").await;
    }
}

#[tokio::test]
async fn s1_04_short_balance_is_402_and_nothing_is_debited() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(PRICE - 1).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        let problem = buyer.pay(&show, &held, way).await.fails(402, "insufficient-balance");
        assert_eq!((&problem["balance"], &problem["required"]), (&(PRICE - 1).into(), &PRICE.into()));
        assert!(problem.get("seats_released").is_none_or(|released| released == false), "{problem}");
        assert_eq!(buyer.balance().await, PRICE - 1);
        assert_eq!(buyer.entries().await.len(), 1, "the charge alone");
        assert_eq!(buyer.reservation(&held).await["status"], "HELD", "keep_hold is the default");
        buyer.charge(1, Way::Wait).await.ok(201);
        let payment = buyer.pay(&show, &held, way).await.ok(201);
        assert_eq!((&payment["amount"], &payment["balance"]), (&PRICE.into(), &0.into()));
    }
}

#[tokio::test]
async fn s1_05_payment_debits_records_sells_and_gives_an_id() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(30_000).await;
        let seats: [i64; 2] = show.pick().await;
        let held = buyer.hold(&show, &seats, Way::Wait).await.ok(201);
        let payment = buyer.pay(&show, &held, way).await.ok(201);
        assert_eq!(buyer.balance().await, 10_000);
        let entry = &buyer.entries().await[0];
        assert_eq!((&entry["kind"], &entry["amount"]), (&"PAYMENT".into(), &(-20_000).into()));
        assert_eq!((&entry["balance_after"], &entry["reservation_id"]), (&10_000.into(), &held["reservation_id"]));
        show.becomes(&seats, "SOLD").await;
        buyer.poll(show.concert_id).await.token_has_ended(show.concert_id);
        let path = format!("/v1/payments/{}", shapes::uuid(&payment["payment_id"]));
        assert_eq!(buyer.call("GET", &path).send().await.is(200), payment);
        show.buyer(0).await.call("GET", &path).send().await.problem(404, "payment-not-found");
    }
}

#[tokio::test]
async fn s3_05_paying_a_cancelled_a_paid_and_anothers_are_three_refusals() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (buyer, other) = (show.buyer(3 * PRICE).await, show.buyer(PRICE).await);
        let [one, two, three] = show.pick().await;
        let foreign = other.hold(&show, &[three], Way::Wait).await.ok(201);
        let cancelled = buyer.hold(&show, &[one], Way::Wait).await.ok(201);
        buyer.cancel(&cancelled, way).await.ok(200);
        buyer.pay(&show, &cancelled, way).await.fails(409, "reservation-cancelled");
        buyer.pay(&show, &foreign, way).await.fails(403, "reservation-of-another-buyer");
        let paid = buyer.hold(&show, &[two], Way::Wait).await.ok(201);
        buyer.pay(&show, &paid, way).await.ok(201);
        // The token is COMPLETED with the payment; a new one is needed to be refused by the worker.
        buyer.paying(&show, &paid).send().await.token_has_ended(show.concert_id);
        buyer.enter(show.concert_id).await;
        buyer.pay(&show, &paid, way).await.fails(409, "already-paid");
        let unknown = json!({"reservation_id": uuid::Uuid::new_v4()});
        buyer.pay(&show, &unknown, way).await.fails(404, "reservation-not-found");
        assert_eq!((buyer.balance().await, other.balance().await), (2 * PRICE, PRICE));
        assert_eq!(other.reservation(&foreign).await["status"], "HELD");
    }
}

#[tokio::test]
async fn s3_06_payment_answers_the_reservation_with_its_seats() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(2 * PRICE).await;
        let seats: [i64; 2] = show.pick().await;
        let held = buyer.hold(&show, &seats, Way::Wait).await.ok(201);
        let payment = buyer.pay(&show, &held, way).await.ok(201);
        shapes::payment(&payment, "SUCCEEDED");
        let paid = &payment["reservation"];
        for member in ["reservation_id", "seats", "total", "schedule_id", "concert_id", "hold_expires_at"] {
            assert_eq!(paid[member], held[member], "{member} of {paid}");
        }
    }
}

#[tokio::test]
async fn s4_02_reserve_and_pay_as_one_request() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(50_000).await;
        let seats: [i64; 2] = show.pick().await;
        let outcome = buyer.buy(&show, &seats, way).await;
        let payment = outcome.ok(201);
        shapes::payment(&payment, "SUCCEEDED");
        assert_eq!((&payment["amount"], &payment["balance"]), (&20_000.into(), &30_000.into()));
        assert_eq!(shapes::seat_ids(&payment["reservation"]), seats);
        assert_eq!((buyer.balance().await, buyer.entries().await.len()), (30_000, 2));
        show.becomes(&seats, "SOLD").await;
        buyer.poll(show.concert_id).await.token_has_ended(show.concert_id);
        if let Some(request_id) = outcome.request_id {
            let request = buyer.call("GET", &format!("/v1/requests/{request_id}")).send().await.is(200);
            assert_eq!(request["kind"], "reservation.hold", "the type of the first record");
        }
    }
}

#[tokio::test]
async fn s4_05_payment_says_success_or_error_and_the_reservation_with_it() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(0).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        buyer.pay(&show, &held, way).await.fails(402, "insufficient-balance");
        let still = buyer.reservation(&held).await;
        assert_eq!((&still["status"], &still["payment_id"]), (&"HELD".into(), &json!(null)));
        buyer.charge(PRICE, Way::Wait).await.ok(201);
        let payment = buyer.pay(&show, &held, way).await.ok(201);
        shapes::payment(&payment, "SUCCEEDED");
        let paid = buyer.reservation(&held).await;
        assert_eq!((&paid["status"], &paid["payment_id"]), (&"PAID".into(), &payment["payment_id"]));
        assert_eq!(paid, payment["reservation"]);
    }
}

#[tokio::test]
async fn b_07_a_refund_gives_money_and_seats_back_at_once() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let (buyer, other) = (show.buyer(25_000).await, show.buyer(0).await);
        let seats: [i64; 2] = show.pick().await;
        let payment = buyer.buy(&show, &seats, Way::Wait).await.ok(201);
        other.refund(&payment, way).await.fails(404, "payment-not-found");
        let refunded = buyer.refund(&payment, way).await.ok(201);
        shapes::payment(&refunded, "REFUNDED");
        assert_eq!((&refunded["payment_id"], &refunded["balance"]), (&payment["payment_id"], &25_000.into()));
        other.hold(&show, &seats, way).await.ok(201);
        buyer.refund(&payment, way).await.fails(409, "not-refundable");
        assert_eq!(buyer.balance().await, 25_000);
        let reservation = buyer.reservation(&payment["reservation"]).await;
        assert_eq!((&reservation["status"], &reservation["payment_id"]), (&"REFUNDED".into(), &payment["payment_id"]));
        buyer.cancel(&reservation, way).await.fails(409, "reservation-cancelled");
        buyer.enter(show.concert_id).await;
        buyer.pay(&show, &reservation, way).await.fails(409, "reservation-cancelled");
        let path = format!("/v1/payments/{}", shapes::uuid(&payment["payment_id"]));
        assert_eq!(buyer.call("GET", &path).send().await.is(200), refunded);
    }
}

#[tokio::test]
async fn b_07_no_refund_once_the_schedule_has_begun() {
    let api = Api::new();
    let begins_at = Utc::now() + TimeDelta::seconds(5);
    let starts_at = begins_at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let show = Show::of(&api, json!({}), json!({"starts_at": starts_at})).await;
    let buyer = show.buyer(PRICE).await;
    let [seat] = show.pick().await;
    let payment = buyer.buy(&show, &[seat], Way::Wait).await.ok(201);
    at(begins_at + TimeDelta::milliseconds(50)).await;
    for way in WAYS {
        buyer.refund(&payment, way).await.fails(409, "not-refundable");
    }
    assert_eq!(buyer.balance().await, 0);
    show.becomes(&[seat], "SOLD").await;
}

#[tokio::test]
async fn b_09_a_live_hold_can_be_paid_whatever_has_become_of_the_token() {
    let api = Api::new();
    let show = Show::with(&api, json!({"queue": {"active_seconds": 5}})).await;
    let (late, gone) = (show.buyer(PRICE).await, show.buyer(PRICE).await);
    let [one, two] = show.pick().await;
    let held_late = late.hold(&show, &[one], Way::Wait).await.ok(201);
    let held_gone = gone.hold(&show, &[two], Way::Wait).await.ok(201);
    gone.leave(&show, Way::Wait).await.ok(200);
    late.token_ends(show.concert_id, s(8)).await;
    api.configure(show.concert_id, json!({"state": "CLOSED"})).await;
    late.pay(&show, &held_late, Way::Wait).await.ok(201);
    gone.pay(&show, &held_gone, Way::Poll).await.ok(201);
    // Only paying is let through.
    late.hold(&show, &[one], Way::Wait).await.fails(302, "queue-token-expired");
}

#[tokio::test]
async fn b_09_paid_in_the_last_moment_is_paid() {
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let buyers = join_all((0..6).map(|_| show.buyer(PRICE))).await;
    let seats: [i64; 6] = show.pick().await;
    // Paid around the end of the hold: before it all succeed, after it none; and the answer is what stays.
    let pay_near_the_end = async |i: usize| {
        let held = buyers[i].hold(&show, &seats[i..=i], Way::Wait).await.ok(201);
        let end = shapes::time(&held["hold_expires_at"]);
        let moment = end + TimeDelta::milliseconds([-600, -300, -150, 100, 200, 400][i]);
        at(moment).await;
        let outcome = buyers[i].pay(&show, &held, Way::Wait).await;
        (buyers[i].reservation(&held).await, outcome)
    };
    let ends = join_all((0..6).map(pay_near_the_end)).await;
    for (i, (reservation, outcome)) in ends.into_iter().enumerate() {
        if i < 3 {
            outcome.ok(201);
            assert_eq!((&reservation["status"], buyers[i].balance().await), (&"PAID".into(), 0));
        } else {
            outcome.fails(409, "reservation-expired");
            assert_eq!((&reservation["status"], buyers[i].balance().await), (&"EXPIRED".into(), PRICE));
        }
    }
    show.becomes(&seats[..3], "SOLD").await;
    show.becomes(&seats[3..], "AVAILABLE").await;
}

/// A free seat is paid like any other, with no entry in the ledger.
#[tokio::test]
async fn a_free_seat_is_paid_without_an_entry() {
    let api = Api::new();
    let sections = json!([{"name": "Free", "rows": 1, "seats_per_row": 3, "price": 0}]);
    for way in WAYS {
        let show = Show::of(&api, json!({}), json!({"sections": sections})).await;
        let buyer = show.buyer(0).await;
        let [one, two] = show.pick().await;
        let payment = buyer.buy(&show, &[one, two], way).await.ok(201);
        shapes::payment(&payment, "SUCCEEDED");
        assert_eq!((&payment["amount"], &payment["balance"]), (&0.into(), &0.into()));
        assert_eq!(buyer.entries().await.len(), 0);
        let refunded = buyer.refund(&payment, way).await.ok(201);
        shapes::payment(&refunded, "REFUNDED");
        assert_eq!(buyer.entries().await.len(), 0);
    }
}

/// One hold, paid by many requests at once: one pays.
#[tokio::test]
async fn a_hold_is_paid_once_however_often_it_is_asked() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(10 * PRICE).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let outcomes = join_all((0..10).map(|_| buyer.pay(&show, &held, Way::Wait))).await;
    let (paid, refused): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.succeeded());
    assert_eq!(paid.len(), 1);
    for outcome in refused {
        // Whoever asks after the payment was told finds the queue token ended.
        let slug = shapes::slug(&outcome.body);
        assert!(["already-paid", "queue-token-expired"].contains(&slug), "{}", outcome.body);
    }
    assert_eq!(buyer.balance().await, 9 * PRICE);
}
