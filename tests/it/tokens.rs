//! The queue: joining, waiting, being admitted, ending.

use boxoffice_tests::show::slow_queue;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, database, eventually, met, shapes};
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

const NO_ONE: &str = "00000000-0000-4000-8000-000000000000";

#[tokio::test]
async fn s0_01_token_tells_position_and_remaining_time() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::with(&api, slow_queue()).await;
        let buyers = api.sign_up_many(3).await;
        let first = buyers[0].join(show.concert_id, way).await.ok(201);
        shapes::token(&first, "ACTIVE");
        let expires_in = (shapes::time(&first["expires_at"]) - Utc::now()).num_seconds();
        assert!((590..=601).contains(&expires_in), "active for 600 s: {first}");
        for (place, buyer) in (1..).zip(&buyers[1..]) {
            let body = buyer.join(show.concert_id, way).await.ok(201);
            shapes::token(&body, "WAITING");
            assert_eq!(body["position"], place, "{body}");
            let wait = shapes::int(&body["estimated_wait_seconds"]);
            assert!(wait > 0 && wait <= 60 * place, "one a minute: {body}");
        }
    }
}

#[tokio::test]
async fn s0_02_unknown_member_gets_no_token() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let log_in = api.post("/v1/access-tokens", json!({"user_id": uuid::Uuid::new_v4(), "user_secret": "a secret"}));
    let refused = eventually("log-ins are not limited for the moment", s(20), async || {
        let answer = log_in.send().await;
        met(answer.status != 429, answer)
    });
    refused.await.problem(404, "user-not-found");
    let join = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
    api.call("POST", &join).send().await.problem(401, "access-token-missing");
    api.call("POST", &join).access("not-a-token").send().await.problem(401, "access-token-invalid");
    assert_eq!(api.queue(show.concert_id).await["joined_total"], 0);
}

#[tokio::test]
async fn s0_03_second_request_finds_the_valid_token() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::with(&api, slow_queue()).await;
        let buyers = api.sign_up_many(2).await;
        let active = buyers[0].join(show.concert_id, way).await.ok(201);
        let waiting = buyers[1].join(show.concert_id, way).await.ok(201);
        for (buyer, first, status) in [(&buyers[0], active, "ACTIVE"), (&buyers[1], waiting, "WAITING")] {
            let again = buyer.join(show.concert_id, way).await.ok(200);
            shapes::token(&again, status);
            let path = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
            let looked_up = buyer.call("GET", &path).send().await.is(200);
            shapes::token(&looked_up, status);
            for member in ["token_id", "queue_token", "position", "issued_at", "expires_at"] {
                assert_eq!(again[member], first[member], "{member} of {again} and {first}");
                assert_eq!(looked_up[member], first[member], "{member} of {looked_up} and {first}");
            }
        }
        assert_eq!(api.queue(show.concert_id).await["joined_total"], 2);
    }
}

/// Who has not joined, as far as the worker has seen, is not searched for. If that were wrong, nobody would have two live tokens all the same.
#[tokio::test]
async fn a_token_that_the_worker_does_not_know_of_is_found() {
    let (api, pool) = (Api::new(), database::pool().await);
    let show = Show::with(&api, slow_queue()).await;
    let buyers = api.sign_up_many(2).await;
    let token = buyers[0].join(show.concert_id, Way::Wait).await.ok(201);
    sqlx::query("UPDATE queue_tokens SET user_id = $2::uuid WHERE concert_id = $1")
        .bind(show.concert_id)
        .bind(&buyers[1].user_id)
        .execute(&pool)
        .await
        .expect("Postgres answers");
    let found = buyers[1].join(show.concert_id, Way::Wait).await.ok(200);
    assert_eq!(found["token_id"], token["token_id"], "{found}");
    assert_eq!(api.queue(show.concert_id).await["joined_total"], 1);
}

#[tokio::test]
async fn s0_04_expired_token_is_an_error() {
    let api = Api::new();
    let show = Show::with(&api, json!({"queue": {"active_seconds": 5}})).await;
    let buyer = show.buyer(0).await;
    let path = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
    let expires_at = shapes::time(&buyer.call("GET", &path).send().await.is(200)["expires_at"]);
    assert!(expires_at <= Utc::now() + TimeDelta::seconds(6));
    let dates = format!("/v1/concerts/{}/schedules", show.concert_id);
    buyer.inside(&show, "GET", &dates).send().await.is(200);
    buyer.token_ends(show.concert_id, s(8)).await.token_has_ended(show.concert_id);
    assert!(Utc::now() > expires_at - TimeDelta::milliseconds(500), "ended before its time");
    buyer.inside(&show, "GET", &dates).send().await.token_has_ended(show.concert_id);
    buyer.call("GET", &path).send().await.problem(404, "queue-token-not-found");
}

#[tokio::test]
async fn s0_05_polling_the_position_with_the_token() {
    let api = Api::new();
    let show = Show::with(&api, json!({})).await;
    api.configure(show.concert_id, json!({"state": "PAUSED"})).await;
    let buyers = api.sign_up_many(3).await;
    for (place, buyer) in (1..).zip(&buyers) {
        let joined = buyer.join(show.concert_id, Way::Wait).await.ok(201);
        let polled = buyer.poll(show.concert_id).await;
        let body = polled.is(200);
        shapes::token(&body, "WAITING");
        assert_eq!((&body["position"], &body["queue_state"]), (&place.into(), &"PAUSED".into()));
        assert_eq!(body["estimated_wait_seconds"], Value::Null, "nobody can know while paused");
        assert_eq!(polled.retry_after(), shapes::int(&body["poll_after_seconds"]));
        assert_eq!(body["queue_token"], joined["queue_token"], "the same string every time");
    }
    let left = buyers[0].leave(&show, Way::Wait).await.ok(200);
    shapes::has(&left, "token_id status");
    assert_eq!(left["status"], "LEFT");
    for (place, buyer) in (1..).zip(&buyers[1..]) {
        eventually("those behind move up", s(3), async || {
            let body = buyer.poll(show.concert_id).await.is(200);
            met(body["position"] == place, body)
        })
        .await;
    }
    api.configure(show.concert_id, json!({"state": "OPEN"})).await;
    for buyer in &buyers[1..] {
        shapes::token(&buyer.admitted(show.concert_id).await, "ACTIVE");
    }
}

#[tokio::test]
async fn s0_14_payment_expires_the_queue_token() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::new(&api).await;
        let buyer = show.buyer(PRICE).await;
        let old = buyer.queue_token(show.concert_id);
        let [seat] = show.pick().await;
        let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
        buyer.pay(&show, &held, way).await.ok(201);
        // Who was told of the payment finds the token ended at once.
        for (name, call) in buyer.five_calls(&show, Some(&old), NO_ONE) {
            let answer = call.send().await;
            assert_eq!(answer.status, 302, "{name}: {answer}");
            answer.token_has_ended(show.concert_id);
        }
        let path = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
        buyer.call("GET", &path).send().await.problem(404, "queue-token-not-found");
        let new = buyer.join(show.concert_id, Way::Wait).await.ok(201);
        assert_ne!(new["queue_token"], old);
    }
}

#[tokio::test]
async fn s1_01_wrong_token_is_401_on_all_five() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let good = buyer.queue_token(show.concert_id);
    let (head, signature) = good.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let flipped = format!("{head}.{first}{}", &signature[1..]);
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap());
    for wrong in ["nonsense", &good[..good.len() - 12], &flipped, &unsigned, &buyer.access] {
        for (name, call) in buyer.five_calls(&show, Some(wrong), NO_ONE) {
            let answer = call.send().await;
            assert_eq!(answer.status, 401, "{name} with {wrong}: {answer}");
            answer.problem(401, "queue-token-invalid");
        }
    }
    for (_, call) in buyer.five_calls(&show, None, NO_ONE) {
        call.send().await.problem(401, "queue-token-missing");
    }
}

#[tokio::test]
async fn s1_02_expired_token_redirects_on_all_five() {
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5, "queue": {"active_seconds": 5}})).await;
    let buyer = show.buyer(0).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], Way::Wait).await.ok(201);
    buyer.becomes(&held, "EXPIRED", s(9)).await;
    buyer.token_ends(show.concert_id, s(5)).await;
    let token = buyer.queue_token(show.concert_id);
    let reservation_id = shapes::uuid(&held["reservation_id"]);
    for (name, call) in buyer.five_calls(&show, Some(&token), &reservation_id) {
        let answer = call.send().await;
        assert_eq!(answer.status, 302, "{name}: {answer}");
        answer.token_has_ended(show.concert_id);
    }
}

#[tokio::test]
async fn s2_01_valid_token_returned_expired_replaced_none_created() {
    let api = Api::new();
    let case = async |way| {
        let show = Show::with(&api, json!({"queue": {"active_seconds": 5}})).await;
        let buyer = api.sign_up().await;
        let path = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
        buyer.call("GET", &path).send().await.problem(404, "queue-token-not-found");
        let created = buyer.join(show.concert_id, way).await.ok(201);
        assert_eq!(buyer.join(show.concert_id, way).await.ok(200)["token_id"], created["token_id"]);
        buyer.token_ends(show.concert_id, s(8)).await;
        let replaced = buyer.join(show.concert_id, way).await.ok(201);
        assert_ne!(replaced["token_id"], created["token_id"]);
        let dates = format!("/v1/concerts/{}/schedules", show.concert_id);
        buyer.inside(&show, "GET", &dates).send().await.is(200);
        let old = api.get("/v1/queue-token").queue(shapes::text(&created["queue_token"]));
        old.send().await.token_has_ended(show.concert_id);
    };
    tokio::join!(case(Way::Wait), case(Way::Poll));
}

#[tokio::test]
async fn s2_02_poll_says_enter_wait_with_position_or_expired() {
    let api = Api::new();
    let settings = json!({"queue": {"rate_per_minute": 1, "burst": 1, "active_seconds": 5}});
    let show = Show::with(&api, settings).await;
    let buyers = api.sign_up_many(6).await;
    for buyer in &buyers {
        buyer.join(show.concert_id, Way::Wait).await.ok(201);
    }
    shapes::token(&buyers[0].poll(show.concert_id).await.is(200), "ACTIVE");
    let polled = buyers[5].poll(show.concert_id).await;
    let body = polled.is(200);
    shapes::token(&body, "WAITING");
    assert_eq!(body["position"], 5, "{body}");
    assert!((4..=6).contains(&polled.retry_after()), "the 5-second rhythm: {body}");
    buyers[0].token_ends(show.concert_id, s(8)).await.token_has_ended(show.concert_id);
}

#[tokio::test]
async fn s3_01_asking_again_re_examines_admission() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::with(&api, json!({"queue": {"max_active": 0}})).await;
        let buyer = api.sign_up().await;
        let first = buyer.join(show.concert_id, way).await.ok(201);
        shapes::token(&first, "WAITING");
        shapes::token(&buyer.join(show.concert_id, way).await.ok(200), "WAITING");
        api.configure(show.concert_id, json!({"max_active": 1})).await;
        // The same log as the change: whoever asks after it is examined after it.
        let again = buyer.join(show.concert_id, way).await.ok(200);
        shapes::token(&again, "ACTIVE");
        assert_eq!(again["token_id"], first["token_id"]);
        let dates = format!("/v1/concerts/{}/schedules", show.concert_id);
        buyer.inside(&show, "GET", &dates).send().await.is(200);
    }
}

#[tokio::test]
async fn s3_03_guarded_calls_refuse_a_missing_foreign_waiting_or_ended_token() {
    let api = Api::new();
    let (show, elsewhere) = (Show::new(&api).await, Show::new(&api).await);
    let (buyer, other, waiting) = (show.buyer(0).await, show.buyer(0).await, api.sign_up().await);
    buyer.enter(elsewhere.concert_id).await;
    api.configure(show.concert_id, json!({"max_active": 0})).await;
    waiting.join(show.concert_id, Way::Wait).await.ok(201);
    let guarded = |token: Option<String>| buyer.five_calls(&show, token.as_deref(), NO_ONE).into_iter().skip(1);
    for (_, call) in guarded(None) {
        call.send().await.problem(401, "queue-token-missing");
    }
    for (_, call) in guarded(Some(other.queue_token(show.concert_id))) {
        call.send().await.problem(403, "queue-token-mismatch");
    }
    for (name, call) in guarded(Some(buyer.queue_token(elsewhere.concert_id))) {
        if name != "pay" {
            // The concert of a reservation that nobody knows is not known.
            call.send().await.problem(403, "queue-token-mismatch");
        }
    }
    for (_, call) in waiting.five_calls(&show, Some(&waiting.queue_token(show.concert_id)), NO_ONE).into_iter().skip(1)
    {
        let answer = call.send().await;
        assert_eq!(answer.problem(403, "queue-token-waiting")["position"], 1, "{answer}");
        assert!((1..=6).contains(&answer.retry_after()), "{answer}");
    }
    buyer.leave(&show, Way::Wait).await.ok(200);
    for (_, call) in guarded(Some(buyer.queue_token(show.concert_id))) {
        call.send().await.token_has_ended(show.concert_id);
    }
}

#[tokio::test]
async fn s3_03_balance_calls_refuse_an_unusable_token_if_one_is_sent() {
    let api = Api::new();
    let show = Show::with(&api, slow_queue()).await;
    let (usable, waiting) = (show.buyer(0).await, api.sign_up().await);
    waiting.join(show.concert_id, Way::Wait).await.ok(201);
    let charge = usable.call("POST", "/v1/balance/charges").json(&json!({"amount": 5})).wait(20);
    let calls = [usable.call("GET", "/v1/balance"), usable.call("GET", "/v1/balance/entries"), charge];
    let (own, foreign) = (usable.queue_token(show.concert_id), waiting.queue_token(show.concert_id));
    for call in &calls {
        assert!(call.send().await.status < 300, "none sent, none needed: {}", call.name());
        assert!(call.clone().queue(&own).send().await.status < 300, "{}", call.name());
        call.clone().queue("nonsense").send().await.problem(401, "queue-token-invalid");
        call.clone().queue(&foreign).send().await.problem(403, "queue-token-mismatch");
        let of_waiting = call.clone().access(&waiting.access).queue(&foreign);
        of_waiting.send().await.problem(403, "queue-token-waiting");
    }
    usable.leave(&show, Way::Wait).await.ok(200);
    for call in &calls {
        call.clone().queue(&own).send().await.token_has_ended(show.concert_id);
    }
    assert_eq!((usable.balance().await, waiting.balance().await), (10, 0));
}

#[tokio::test]
async fn s4_01_user_token_first_then_queue_token() {
    let api = Api::new();
    for way in WAYS {
        let show = Show::with(&api, slow_queue()).await;
        let (first, mut buyer) = (api.sign_up().await, api.sign_up().await);
        first.enter(show.concert_id).await;
        let log_in =
            |secret: &str| api.post("/v1/access-tokens", json!({"user_id": buyer.user_id, "user_secret": secret}));
        let answer = async |call: boxoffice_tests::Call| {
            eventually("log-ins are not limited for the moment", s(20), async || {
                let answer = call.send().await;
                met(answer.status != 429, answer)
            })
            .await
        };
        let body = answer(log_in(&buyer.secret)).await.is(201);
        shapes::has(&body, "access_token token_type expires_in");
        assert_eq!(body["token_type"], "Bearer");
        assert!(shapes::int(&body["expires_in"]) >= 60, "{body}");
        answer(log_in(&format!("{}x", buyer.secret))).await.problem(401, "access-token-invalid");
        shapes::text(&body["access_token"]).clone_into(&mut buyer.access);
        let waiting = buyer.join(show.concert_id, way).await.ok(201);
        shapes::token(&waiting, "WAITING");
        assert_eq!(waiting["position"], 1);
        // Without the user token there is neither a place in the queue nor a balance.
        let join = format!("/v1/concerts/{}/queue-tokens", show.concert_id);
        for call in
            [api.call("POST", &join), api.post("/v1/balance/charges", json!({"amount": 1})), api.get("/v1/balance")]
        {
            call.send().await.problem(401, "access-token-missing");
        }
    }
}
