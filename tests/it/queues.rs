//! The operator's side of a queue: states, rate, room.

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, WAYS, Way, at, database, eventually, met, shapes};
use chrono::{TimeDelta, Utc};
use futures::{StreamExt, stream};
use serde_json::json;

/// Pause, drain and close say who may join, who is admitted and who may still act.
#[tokio::test]
async fn b_02_states_of_a_queue() {
    let api = Api::new();
    let show = Show::with(&api, json!({})).await;
    let concert = show.concert_id;
    let (inside, payer) = (show.buyer(0).await, show.buyer(PRICE).await);
    let [seat] = show.pick().await;
    let held = payer.hold(&show, &[seat], Way::Wait).await.ok(201);
    let waiting = api.sign_up().await;
    api.configure(concert, json!({"state": "PAUSED"})).await;
    shapes::token(&waiting.join(concert, Way::Wait).await.ok(201), "WAITING");
    api.configure(concert, json!({"state": "DRAINING"})).await;
    let late = api.sign_up().await;
    for way in WAYS {
        late.join(concert, way).await.fails(409, "queue-closed");
    }
    shapes::token(&waiting.admitted(concert).await, "ACTIVE");
    shapes::token(&inside.join(concert, Way::Wait).await.ok(200), "ACTIVE");
    api.configure(concert, json!({"state": "CLOSED"})).await;
    late.join(concert, Way::Wait).await.fails(409, "queue-closed");
    let dates = format!("/v1/concerts/{concert}/schedules");
    inside.inside(&show, "GET", &dates).send().await.problem(409, "queue-closed");
    inside.hold(&show, &[seat], Way::Wait).await.fails(409, "queue-closed");
    payer.pay(&show, &held, Way::Wait).await.ok(201);
    api.configure(concert, json!({"state": "OPEN"})).await;
    inside.inside(&show, "GET", &dates).send().await.is(200);
}

/// Over any window: admitted ≤ rate × time + burst; and never more inside than allowed.
#[tokio::test]
async fn b_02_admission_is_exact() {
    const RATE: i64 = 1_200;
    const BURST: i64 = 5;
    const ROOM: i64 = 40;
    let api = Api::new();
    let settings = json!({"queue": {"rate_per_minute": RATE, "burst": BURST, "max_active": ROOM}});
    let show = Show::with(&api, settings).await;
    let buyers = api.sign_up_many(60).await;
    let joins = stream::iter(&buyers).map(|buyer| buyer.join(show.concert_id, Way::Wait));
    joins.buffer_unordered(16).for_each(async |outcome| drop(outcome.ok(201))).await;
    eventually("the room fills", s(15), async || {
        let queue = api.queue(show.concert_id).await;
        met(queue["active"] == ROOM && queue["waiting"] == 20, queue)
    })
    .await;
    let active: Vec<_> = stream::iter(&buyers)
        .filter(|buyer| async { buyer.poll(show.concert_id).await.is(200)["admitted"] == true })
        .collect()
        .await;
    assert_eq!(active.len(), 40);
    for buyer in &active[..10] {
        buyer.leave(&show, Way::Wait).await.ok(200);
    }
    eventually("free places are filled", s(5), async || {
        let queue = api.queue(show.concert_id).await;
        met(queue["active"] == ROOM && queue["waiting"] == 10 && queue["admitted_total"] == 50, queue)
    })
    .await;
    let pool = database::pool().await;
    let too_many = database::number(
        &pool,
        "SELECT count(*) FROM queue_tokens a JOIN queue_tokens b USING (concert_id)
         WHERE concert_id = $1 AND a.admitted_at <= b.admitted_at
           AND (SELECT count(*) FROM queue_tokens c WHERE c.concert_id = a.concert_id AND c.admitted_at BETWEEN a.admitted_at AND b.admitted_at)
               > extract(epoch FROM b.admitted_at - a.admitted_at) * 1200 / 60 + 5",
        show.concert_id,
    );
    assert_eq!(too_many.await, 0, "windows in which more were admitted than rate × time + burst");
    let out_of_order = database::number(
        &pool,
        "SELECT count(*) FROM queue_tokens a JOIN queue_tokens b USING (concert_id)
         WHERE concert_id = $1 AND a.seq < b.seq AND a.admitted_at > b.admitted_at",
        show.concert_id,
    );
    assert_eq!(out_of_order.await, 0, "first come, first admitted");
}

/// The new time is for those who are admitted after it was set.
#[tokio::test]
async fn b_02_new_settings_are_for_the_newly_admitted() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let early = show.buyer(0).await;
    let before = early.poll(show.concert_id).await.is(200);
    let queue = api.configure(show.concert_id, json!({"active_seconds": 5, "rate_per_minute": 1_000_000})).await;
    assert_eq!((&queue["active_seconds"], &queue["rate_per_minute"]), (&5.into(), &1_000_000.into()));
    assert_eq!((&queue["burst"], &queue["max_active"]), (&100.into(), &1_000.into()), "the rest stays: {queue}");
    let late = show.buyer(0).await;
    let expires_at = shapes::time(&late.poll(show.concert_id).await.is(200)["expires_at"]);
    assert!(expires_at < Utc::now() + TimeDelta::seconds(6));
    at(expires_at).await;
    late.token_ends(show.concert_id, s(3)).await;
    let after = early.poll(show.concert_id).await.is(200);
    assert_eq!(after["expires_at"], before["expires_at"]);
}
