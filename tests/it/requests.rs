//! Asking for what goes through the log: 202 and poll, `Prefer: wait`, `Idempotency-Key`.

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, eventually, met, shapes};
use chrono::{TimeDelta, Utc};
use futures::future::join_all;
use serde_json::{Value, json};

fn some_key() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[tokio::test]
async fn b_01_accepted_polled_and_answered_like_a_waiting_caller() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    let before = Utc::now() - TimeDelta::seconds(1);
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 5}));
    let accepted = charge.send().await;
    let id = accepted.accepted();
    assert_eq!(accepted.header("preference-applied"), None);
    let done = charge.finish(&format!("/v1/requests/{id}")).await;
    assert_eq!((&done["request_id"], &done["kind"]), (&id.as_str().into(), &"balance.charge".into()));
    assert!(
        shapes::time(&done["submitted_at"]) > before
            && shapes::time(&done["finished_at"]) < Utc::now() + TimeDelta::seconds(1)
    );
    let waited = charge.clone().wait(20).send().await;
    let members = |body: &Value| body.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&done["result"]), members(&waited.is(201)));
    // A failure: the problem document is the waiting caller's.
    let unknown = json!({"reservation_id": uuid::Uuid::new_v4()});
    let show = Show::new(&api).await;
    buyer.enter(show.concert_id).await;
    let pay = buyer.inside(&show, "POST", "/v1/payments").json(&unknown);
    let (polled, waited) = (pay.ask(Way::Poll).await, pay.ask(Way::Wait).await);
    for outcome in [&polled, &waited] {
        outcome.fails(404, "reservation-not-found");
        assert!(outcome.body["request_id"].is_string(), "{}", outcome.body);
    }
    assert_eq!(members(&polled.body), members(&waited.body));
}

#[tokio::test]
async fn b_01_a_request_is_its_buyers_own() {
    let api = Api::new();
    let (buyer, other) = (api.sign_up().await, api.sign_up().await);
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 5})).send().await;
    let path = format!("/v1/requests/{}", charge.accepted());
    // At once, before anybody can have written a row.
    let own = buyer.call("GET", &path).send().await.is(200);
    shapes::has(&own, shapes::REQUEST);
    other.call("GET", &path).send().await.problem(404, "request-not-found");
    api.get(&path).send().await.problem(401, "access-token-missing");
    let made_up = format!("/v1/requests/{}", uuid::Uuid::new_v4());
    buyer.call("GET", &made_up).send().await.problem(404, "request-not-found");
    let done = buyer.call("GET", &path).wait(20).send().await;
    assert_eq!(
        (done.is(200)["status"].clone(), done.header("preference-applied")),
        ("SUCCEEDED".into(), Some("wait=20"))
    );
    other.call("GET", &path).send().await.problem(404, "request-not-found");
    let admin =
        api.admin("GET", &format!("/requests/{}", shapes::uuid(&done.json()["request_id"]))).send().await.is(200);
    shapes::has(&admin, shapes::ADMIN_REQUEST);
    assert_eq!((&admin["user_id"], &admin["topic"]), (&buyer.user_id.as_str().into(), &"boxoffice.payments.v1".into()));
    api.admin("GET", &format!("/requests/{}", uuid::Uuid::new_v4())).send().await.problem(404, "request-not-found");
}

#[tokio::test]
async fn b_01_prefer_wait_is_honoured_up_to_30_and_anything_else_is_ignored() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 5}));
    for (prefer, applied) in [
        ("wait=20", Some("wait=20")),
        ("wait=99", Some("wait=30")),
        ("respond-async, wait=20", Some("wait=20")),
        ("wait=20; foo=\"bar\"", Some("wait=20")),
        ("wait=\"20\"", Some("wait=20")),
        ("Wait = 20", Some("wait=20")),
        ("wait", None),
        ("wait=0", None),
        ("wait=-1", None),
        ("wait=soon", None),
        ("wait=1.5", None),
        ("return=minimal", None),
        ("", None),
    ] {
        let answer = charge.clone().header("prefer", prefer).send().await;
        let status = if applied.is_some() { 201 } else { 202 };
        assert_eq!(
            (answer.status, answer.header("preference-applied")),
            (status, applied),
            "Prefer: {prefer}: {answer}"
        );
    }
}

#[tokio::test]
async fn b_01_same_key_same_request_is_one_effect_and_one_answer() {
    let api = Api::new();
    for way in WAYS {
        let buyer = api.sign_up().await;
        let key = some_key();
        let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 700})).key(&key);
        let first = charge.ask(way).await.ok(201);
        // The body as parsed: spaces and the order of members do not matter.
        let same = charge.clone().body("application/json", " { \"amount\" : 700 } ");
        for again in [&charge, &same] {
            assert_eq!(again.ask(Way::Wait).await.ok(201), first);
            let answer = again.send().await;
            assert_eq!(answer.is(201), first, "after the end, the final answer, waiting or not");
        }
        for (other, what) in [
            (charge.clone().json(&json!({"amount": 701})), "another body"),
            (buyer.joining(1).key(&key), "another call"),
        ] {
            let answer = other.wait(20).send().await;
            assert_eq!(answer.status, 422, "{what}: {answer}");
            answer.problem(422, "idempotency-key-reused");
        }
        assert_eq!((buyer.balance().await, buyer.entries().await.len()), (700, 1));
        // Another buyer's key is another key.
        let other = api.sign_up().await;
        let charge = other.call("POST", "/v1/balance/charges").json(&json!({"amount": 1})).key(&key);
        assert_eq!(charge.ask(way).await.ok(201)["balance"], 1);
    }
}

#[tokio::test]
async fn b_01_same_key_at_once_is_one_effect() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 700})).key(&some_key());
    let (waiting, polling) =
        tokio::join!(join_all((0..8).map(|_| charge.ask(Way::Wait))), join_all((0..8).map(|_| charge.ask(Way::Poll))),);
    let answers: Vec<Value> = waiting.iter().chain(&polling).map(|outcome| outcome.ok(201)).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!((buyer.balance().await, buyer.entries().await.len()), (700, 1));
    let reused = buyer.call("POST", "/v1/balance/charges").key(&some_key());
    let outcomes =
        join_all((1..=8).map(|amount| reused.clone().json(&json!({"amount": amount})).wait(20).send_owned())).await;
    // Different bodies under one key: one has its effect, each other is refused or told of that one by its answer.
    assert_eq!(outcomes.iter().filter(|answer| answer.status == 201).count(), 1, "one effect");
    for refused in outcomes.iter().filter(|answer| answer.status != 201) {
        refused.problem(422, "idempotency-key-reused");
    }
    assert_eq!(buyer.entries().await.len(), 2);
}

#[tokio::test]
async fn b_01_a_failure_is_remembered_too() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(0).await;
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        let pay = buyer.paying(&show, &held).key(&some_key());
        let first = pay.ask(way).await.fails(402, "insufficient-balance");
        buyer.charge(PRICE, Way::Wait).await.ok(201);
        assert_eq!(pay.ask(way).await.fails(402, "insufficient-balance"), first, "the first one's answer");
        assert_eq!(buyer.balance().await, PRICE);
        let payment = buyer.paying(&show, &held).key(&some_key());
        let paid = payment.ask(way).await.ok(201);
        // A known key is answered before the queue token is looked at, which the payment has ended.
        assert_eq!(payment.ask(way).await.ok(201), paid);
        assert_eq!(payment.without("queue-token").send().await.is(201), paid);
    }
}

#[tokio::test]
async fn b_01_what_was_refused_before_the_log_is_not_remembered() {
    let api = Api::new();
    let buyer = api.sign_up().await;
    let key = some_key();
    let charge = buyer.call("POST", "/v1/balance/charges").key(&key);
    charge.clone().json(&json!({"amount": 0})).send().await.problem(422, "invalid-request");
    charge.clone().body("application/json", "{").send().await.problem(400, "malformed-body");
    assert_eq!(charge.json(&json!({"amount": 3})).ask(Way::Wait).await.ok(201)["balance"], 3);
}

#[tokio::test]
async fn b_01_every_call_through_the_log_takes_a_key() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = api.sign_up().await;
    buyer.charge(3 * PRICE, Way::Wait).await.ok(201);
    let twice = async |call: boxoffice_tests::Call| {
        let call = call.key(&some_key());
        let first = call.ask(Way::Wait).await;
        let again = call.ask(Way::Wait).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body), "{}", call.name());
        first.ok_any()
    };
    let token = twice(buyer.joining(show.concert_id)).await;
    buyer.join(show.concert_id, Way::Wait).await.ok(200);
    let [one, two] = show.pick().await;
    let reserve = |seat: i64| json!({"schedule_id": show.schedule_id, "seat_ids": [seat]});
    let held = twice(buyer.inside(&show, "POST", "/v1/reservations").json(&reserve(one))).await;
    twice(buyer.call("DELETE", &format!("/v1/reservations/{}", shapes::uuid(&held["reservation_id"])))).await;
    let held = twice(buyer.inside(&show, "POST", "/v1/reservations").json(&reserve(two))).await;
    let payment = twice(buyer.paying(&show, &held)).await;
    twice(buyer.call("POST", &format!("/v1/payments/{}/refunds", shapes::uuid(&payment["payment_id"])))).await;
    let queue = format!("/concerts/{}/queue", show.concert_id);
    twice(api.admin("PATCH", &queue).json(&json!({"burst": 7}))).await;
    buyer.enter(show.concert_id).await;
    let left = twice(buyer.inside(&show, "DELETE", "/v1/queue-token")).await;
    assert_ne!(left["token_id"], token["token_id"], "the payment has ended the first one");
    assert_eq!(buyer.entries().await.len(), 3, "a charge, a payment, a refund");
}

/// Which token is given back is part of the request, although neither path nor body name it.
#[tokio::test]
async fn b_01_a_key_that_left_one_queue_does_not_leave_another() {
    let api = Api::new();
    for way in WAYS {
        let (first, second) = (Show::new(&api).await, Show::new(&api).await);
        let buyer = api.sign_up().await;
        buyer.enter(first.concert_id).await;
        buyer.enter(second.concert_id).await;
        let key = some_key();
        let leave = |show: &Show| buyer.inside(show, "DELETE", "/v1/queue-token").key(&key);
        let left = leave(&first).ask(way).await.ok(200);
        leave(&second).send().await.problem(422, "idempotency-key-reused");
        leave(&second).wait(20).send().await.problem(422, "idempotency-key-reused");
        assert_eq!(leave(&first).ask(way).await.ok(200), left);
        buyer.poll(first.concert_id).await.token_has_ended(first.concert_id);
        shapes::token(&buyer.poll(second.concert_id).await.is(200), "ACTIVE");
    }
}

/// An operator's request is polled with the operator's key.
#[tokio::test]
async fn b_01_operators_requests_are_polled_like_buyers() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let queue = format!("/concerts/{}/queue", show.concert_id);
    let patch = api.admin("PATCH", &queue).json(&json!({"rate_per_minute": 77, "state": "PAUSED"}));
    let queue = patch.ask(Way::Poll).await.ok(200);
    shapes::has(&queue, shapes::QUEUE);
    assert_eq!((&queue["rate_per_minute"], &queue["state"]), (&77.into(), &"PAUSED".into()));
    assert_eq!(api.queue(show.concert_id).await["state"], "PAUSED");
    eventually("the concert shows it within a second", s(2), async || {
        let concert = api.get(&format!("/v1/concerts/{}", show.concert_id)).send().await.is(200);
        met(concert["queue_state"] == "PAUSED", concert)
    })
    .await;
    let accepted = patch.send().await.accepted();
    let buyer = api.sign_up().await;
    buyer.call("GET", &format!("/v1/requests/{accepted}")).send().await.problem(404, "request-not-found");
}
