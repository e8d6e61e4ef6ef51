//! Kafka or Postgres stops and comes back under running purchases.

use boxoffice_tests::log;
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Buyer, Show, Way, audit, database, eventually, met, shapes};
use futures::{StreamExt, stream};
use serde_json::json;

use super::{Trouble, crowd, each_has_one_seat, purchase};

const BUYERS: usize = 150;
/// Purchases that are done when the fault comes.
const FAULT_AFTER: usize = 40;
/// Purchases at a time: few enough that most of them meet the fault.
const AT_A_TIME: usize = 8;

/// Runs purchases, and the fault in the middle of them. All of them go through.
async fn purchases_with<T>(show: &Show, buyers: &[Buyer], trouble: &Trouble, fault: impl AsyncFnOnce() -> T) -> T {
    let done = std::cell::Cell::new(0);
    let purchases = stream::iter(buyers.iter().enumerate())
        .map(async |(i, buyer)| {
            purchase(buyer, show, i % 2 == 0, trouble).await;
            done.set(done.get() + 1);
        })
        .buffer_unordered(AT_A_TIME)
        .for_each(async |()| {});
    let fault = async {
        eventually("the purchases run", s(30), async || met(done.get() >= FAULT_AFTER, done.get())).await;
        let result = fault().await;
        (result, done.get())
    };
    let ((), (result, at_return)) = tokio::join!(purchases, fault);
    assert!(at_return < buyers.len(), "the fault fell into the purchases");
    result
}

/// Nothing is lost, nothing is doubled.
async fn all_is_well(show: &Show, buyers: &[Buyer]) {
    log::caught_up(s(60)).await;
    let pool = database::pool().await;
    each_has_one_seat(&pool, show, buyers).await;
    audit::audit_at_rest(&pool).await;
}

#[tokio::test]
async fn kafka_killed_and_restarted_under_purchases_loses_nothing() {
    let processes = Processes::begin().await;
    let api = Api::new().tolerant();
    let (show, buyers) = crowd(&api, BUYERS).await;
    let outsider = api.sign_up().await;
    let trouble = Trouble::default();
    purchases_with(&show, &buyers, &trouble, async || {
        processes.end("kafka", "KILL").await;
        // Nothing is accepted that is not in the log, and nobody is kept waiting for long.
        let begun = std::time::Instant::now();
        let charge = outsider.call("POST", "/v1/balance/charges").json(&json!({"amount": 1}));
        let answer = charge.send().await;
        assert!(answer.status >= 500 && begun.elapsed() < s(20), "{answer} after {:?}", begun.elapsed());
        trouble.note(answer);
        processes.up(1).await;
    })
    .await;
    assert!(trouble.count() > 0, "the api said that something is broken");
    all_is_well(&show, &buyers).await;
    let balance = outsider.balance().await;
    assert!(balance <= 1, "delivery unknown is once at most: {balance}");
}

#[tokio::test]
async fn postgres_stopped_and_restarted_under_purchases_loses_nothing() {
    let processes = Processes::begin().await;
    let api = Api::new().tolerant();
    let (show, buyers) = crowd(&api, BUYERS).await;
    let outsider = api.sign_up().await;
    let elsewhere = Show::with(&api, json!({"queue": {"max_active": 0}})).await;
    let waiting = api.sign_up().await;
    waiting.join(elsewhere.concert_id, Way::Wait).await.ok(201);
    let trouble = Trouble::default();
    let accepted = purchases_with(&show, &buyers, &trouble, async || {
        // As if the machine had lost its power: no checkpoint, connections torn.
        processes.end("postgres", "QUIT").await;
        // A poll of a waiting token reads no database; what cannot be read is said at once.
        shapes::token(&waiting.poll(elsewhere.concert_id).await.is(200), "WAITING");
        let begun = std::time::Instant::now();
        let balance = outsider.call("GET", "/v1/balance").send().await;
        balance.problem(503, "unavailable");
        assert!(begun.elapsed() < s(8), "{:?}", begun.elapsed());
        // The log takes requests all the same.
        let charge = outsider.call("POST", "/v1/balance/charges").json(&json!({"amount": 7})).send().await;
        let request_id = charge.accepted();
        processes.up(1).await;
        request_id
    })
    .await;
    let done = outsider.call("GET", "/").finish_within(&format!("/v1/requests/{accepted}"), s(60)).await;
    assert_eq!(done["status"], "SUCCEEDED", "{done}");
    assert_eq!(outsider.balance().await, 7);
    all_is_well(&show, &buyers).await;
}
