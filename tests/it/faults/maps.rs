//! What the reservation worker remembers of the seats that a crowd wants.

use boxoffice_tests::processes::Processes;
use boxoffice_tests::{Api, Buyer, Show, Way, database, shapes};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{crowd, metric};

/// More holds than make a crowd.
const BUYERS: usize = 80;

type Wish<'a> = (&'a Buyer, &'a Show, Value);

/// What becomes of holds that the worker finds together, in one batch or nearly.
async fn at_once(processes: &Processes, wishes: Vec<Wish<'_>>) -> Vec<Value> {
    let frozen = processes.freeze("reservation-worker");
    let ask = |(buyer, show, body): &Wish<'_>| {
        let call = buyer.inside(show, "POST", "/v1/reservations").json(body);
        async move { call.send().await.accepted() }
    };
    let requests: Vec<String> = stream::iter(&wishes).map(ask).buffered(16).collect().await;
    drop(frozen);
    let finish = |((buyer, _, _), request): (&Wish<'_>, String)| {
        let call = buyer.call("GET", "/");
        async move { call.finish(&format!("/v1/requests/{request}")).await }
    };
    stream::iter(wishes.iter().zip(requests)).map(finish).buffered(16).collect().await
}

#[tokio::test]
async fn a_crowd_finds_seats_that_came_free_and_none_that_is_anothers() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let (show, buyers) = crowd(&api, 3 * BUYERS).await;
    let mut seats: [i64; 3 * BUYERS] = show.pick().await;
    let hold = async |crowd: usize, seats: &[i64]| {
        let crowd = buyers[crowd * BUYERS..].iter().zip(seats.iter().skip(crowd * BUYERS)).take(BUYERS);
        let body = |seat: &i64| json!({"schedule_id": show.schedule_id, "seat_ids": [seat]});
        at_once(&processes, crowd.map(|(buyer, seat)| (buyer, &show, body(seat))).collect()).await
    };
    let succeeded = |outcomes: &[Value]| outcomes.iter().all(|outcome| outcome["status"] == "SUCCEEDED");
    assert!(succeeded(&hold(0, &seats).await));
    // The worker knows now which seats are free. One more becomes so.
    let listed = buyers[0].call("GET", "/v1/reservations").send().await.is(200);
    buyers[0].cancel(&listed["reservations"][0], Way::Wait).await.ok(200);
    seats[BUYERS] = seats[0];
    assert!(succeeded(&hold(1, &seats).await));
    // And one is given away behind its back.
    database::give_away(&pool, &buyers[1], seats[2 * BUYERS]).await;
    let retries = async || metric(&api, "RESERVATION_WORKER_URL", "boxoffice_apply_retries_total").await;
    let before = retries().await;
    let outcomes = hold(2, &seats).await;
    shapes::problem(&outcomes[0]["problem"], 409, "seat-unavailable");
    assert!(succeeded(&outcomes[1..]));
    assert!(retries().await > before, "the worker took it for free, so it has a map");
}
