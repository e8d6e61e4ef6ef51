//! Who may not, who may not yet, and what is told first.

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Show, Way, eventually, met};
use futures::future::join_all;
use serde_json::json;

use super::{BUYER_BODY_MAX, Inside, NO_ID, check};

#[tokio::test]
async fn access_tokens_that_are_none() {
    let inside = Inside::new().await;
    let queue_token = inside.buyer.queue_token(inside.show.concert_id);
    let balance = inside.api.get("/v1/balance");
    let mut cases = vec![(balance.clone(), 401, "access-token-missing")];
    let (head, rest) = inside.buyer.access.split_at(inside.buyer.access.rfind('.').unwrap() + 1);
    let flipped = format!("{head}{}{}", if rest.starts_with('A') { "B" } else { "A" }, &rest[1..]);
    for value in [
        "Bearer x",
        "Bearer a.b.c",
        &format!("Bearer {flipped}"),
        &format!("Bearer {queue_token}"),
        &format!("Bearer {}", inside.api.admin_key()),
    ] {
        cases.push((balance.clone().header("authorization", value), 401, "access-token-invalid"));
    }
    check(cases).await;
    for none in ["Bearer", "Bearer ", "Basic dTpw"] {
        let answer = balance.clone().header("authorization", none).send().await;
        assert!(answer.status == 401 && answer.header("www-authenticate").is_some(), "{answer}");
    }
    let lower = balance.header("authorization", &format!("bearer {}", inside.buyer.access)).send().await;
    assert_eq!(lower.status, 200, "the scheme's case does not matter: {lower}");
    let queue = format!("/v1/admin/concerts/{}/queue", inside.show.concert_id);
    check(vec![
        (inside.api.get(&queue), 401, "access-token-missing"),
        (inside.api.get(&queue).access("wrong"), 401, "access-token-invalid"),
        (inside.buyer.call("GET", &queue), 401, "access-token-invalid"),
        (inside.api.call("PATCH", &queue).json(&json!({"burst": 1})).access("wrong"), 401, "access-token-invalid"),
        (inside.api.post("/v1/admin/concerts", json!({"title": "x"})), 401, "access-token-missing"),
    ])
    .await;
    inside.nothing_is_published().await;
}

/// Where several apply, the first in the contract's order.
#[tokio::test]
async fn the_first_problem_in_order_is_told() {
    let inside = Inside::new().await;
    let (show, buyer) = (&inside.show, &inside.buyer);
    let large = "x".repeat(BUYER_BODY_MAX + 1);
    let charge = inside.api.call("POST", "/v1/balance/charges");
    let reserve = buyer.call("POST", "/v1/reservations");
    let (other, elsewhere) = (show.buyer(0).await, Show::new(&inside.api).await);
    let foreign = other.queue_token(show.concert_id);
    buyer.enter(elsewhere.concert_id).await;
    let of_elsewhere = buyer.queue_token(elsewhere.concert_id);
    let own = buyer.queue_token(show.concert_id);
    let good = json!({"schedule_id": show.schedule_id, "seat_ids": [inside.seats[0]]});
    let bad_form = json!({"schedule_id": "x", "seat_ids": []});
    let senseless = json!({"schedule_id": NO_ID, "seat_ids": []});
    let unknown = json!({"schedule_id": NO_ID, "seat_ids": [1]});
    check(vec![
        // The path, before anything else.
        (inside.api.call("POST", "/v1/nothing").body("text/plain", large.clone()), 404, "not-found"),
        (inside.api.call("PUT", "/v1/balance/charges").body("text/plain", large.clone()), 405, "method-not-allowed"),
        // The body's size and type, before the access token.
        (charge.clone().body("text/plain", large), 413, "body-too-large"),
        (charge.clone().body("text/plain", "{"), 415, "unsupported-media-type"),
        // The access token, before a body that does not parse.
        (charge.clone().body("application/json", "{"), 401, "access-token-missing"),
        (charge.access("x").body("application/json", "{"), 401, "access-token-invalid"),
        // That, before the queue token.
        (reserve.clone().body("application/json", "{"), 400, "malformed-body"),
        (reserve.clone().body("application/json", "{").queue("x"), 400, "malformed-body"),
        // The queue token, another buyer's included, before the form.
        (reserve.clone().json(&bad_form), 401, "queue-token-missing"),
        (reserve.clone().json(&bad_form).queue("x"), 401, "queue-token-invalid"),
        (reserve.clone().json(&bad_form).queue(&foreign), 403, "queue-token-mismatch"),
        // The form, the sense, what is not there, and only then the token of another concert.
        (reserve.clone().json(&bad_form).queue(&of_elsewhere), 400, "invalid-parameter"),
        (reserve.clone().json(&senseless).queue(&of_elsewhere), 422, "invalid-request"),
        (reserve.clone().json(&unknown).queue(&of_elsewhere), 404, "schedule-not-found"),
        (reserve.clone().json(&good).queue(&of_elsewhere), 403, "queue-token-mismatch"),
    ])
    .await;
    // Both have left: that is said after all of these.
    buyer.leave(&elsewhere, Way::Wait).await.ok(200);
    buyer.leave(show, Way::Wait).await.ok(200);
    other.leave(show, Way::Wait).await.ok(200);
    check(vec![
        (reserve.clone().json(&good).queue(&foreign), 403, "queue-token-mismatch"),
        (reserve.clone().json(&good).queue(&of_elsewhere), 403, "queue-token-mismatch"),
        (reserve.clone().json(&unknown).queue(&own), 404, "schedule-not-found"),
        (reserve.clone().json(&senseless).queue(&own), 422, "invalid-request"),
        (reserve.clone().json(&good).queue(&own), 302, "queue-token-expired"),
    ])
    .await;
    // Ended, then waiting, before closed.
    inside.api.configure(show.concert_id, json!({"max_active": 0})).await;
    let waiting = inside.api.sign_up().await;
    waiting.join(show.concert_id, Way::Wait).await.ok(201);
    inside.api.configure(show.concert_id, json!({"state": "CLOSED"})).await;
    let by_waiting = waiting.inside(show, "POST", "/v1/reservations").json(&good);
    check(vec![
        (reserve.json(&good).queue(&own), 302, "queue-token-expired"),
        (by_waiting, 403, "queue-token-waiting"),
    ])
    .await;
}

/// Each limit answers 429 with the time to wait, and lets the same caller on after it.
#[tokio::test]
async fn limits_of_requests_polls_and_log_ins() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let (buyer, calm) = (show.buyer(0).await, show.buyer(0).await);
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 1}));
    let poll = api.get("/v1/queue-token").queue(&buyer.queue_token(show.concert_id));
    let read = buyer.call("GET", &format!("/v1/requests/{}", uuid::Uuid::new_v4()));
    let log_in = api.post("/v1/access-tokens", json!({"user_id": buyer.user_id, "user_secret": "wrong"}));
    for (call, burst, usual) in [(&charge, 40, 202), (&poll, 20, 200), (&read, 100, 404), (&log_in, 10, 401)] {
        // Three times the burst at once is more than it and what comes back meanwhile.
        let answers = join_all((0..3 * burst).map(|_| call.send())).await;
        let limited = answers.iter().filter(|answer| answer.status == 429).count();
        assert!(limited > 0, "{} of {} limited: {}", limited, answers.len(), call.name());
        assert!(
            answers.len() - limited + 2 >= burst || usual == 401,
            "{} let through: {}",
            answers.len() - limited,
            call.name()
        );
        for answer in &answers {
            assert!([429, usual].contains(&answer.status), "{answer}");
            if answer.status == 429 {
                answer.problem(429, "rate-limited");
                assert!(answer.retry_after() <= 10, "{answer}");
            }
        }
        eventually("the limit lets the caller on", s(10), async || {
            let answer = call.send().await;
            met(answer.status == usual, answer)
        })
        .await;
    }
    calm.charge(1, Way::Wait).await.ok(201);
    // What was limited was not published.
    let accepted = eventually("all that was accepted is applied", s(10), async || {
        let (balance, entries) = (buyer.balance().await, buyer.entries().await.len());
        met(balance >= 41, (balance, entries))
    });
    accepted.await;
}
