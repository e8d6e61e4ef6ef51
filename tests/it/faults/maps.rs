//! What the reservation worker remembers of free seats: with a crowd in one batch, and with more schedules than it keeps maps of.

use boxoffice_tests::processes::Processes;
use boxoffice_tests::show::in_days;
use boxoffice_tests::{Api, Buyer, Show, Way, database, shapes};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::crowd;

/// More holds than make a crowd.
const BUYERS: usize = 100;
/// More than the worker keeps maps of.
const SCHEDULES: usize = 510;

/// The outcomes of holds that the worker finds together, in one batch or nearly.
async fn at_once(processes: &Processes, holds: Vec<(&Buyer, &Show, Value)>) -> Vec<Value> {
    let frozen = processes.freeze("reservation-worker");
    let ask = |(buyer, show, body): (&Buyer, &Show, Value)| {
        let call = buyer.inside(show, "POST", "/v1/reservations").json(&body);
        async move { call.send().await.accepted() }
    };
    let requests: Vec<String> = stream::iter(holds.iter().cloned()).map(ask).buffered(16).collect().await;
    drop(frozen);
    let finish = |((buyer, _, _), request): (&(&Buyer, &Show, Value), String)| {
        let call = buyer.call("GET", "/");
        async move { call.finish(&format!("/v1/requests/{request}")).await }
    };
    stream::iter(holds.iter().zip(requests)).map(finish).buffered(16).collect().await
}

#[tokio::test]
async fn a_crowd_finds_seats_that_came_free_and_none_that_is_anothers() {
    let processes = Processes::begin().await;
    let (api, pool) = (Api::new(), database::pool().await);
    let (show, buyers) = crowd(&api, 2 * BUYERS).await;
    let seats: [i64; 2 * BUYERS] = show.pick().await;
    let (early, late) = buyers.split_at(BUYERS);
    let body = |seat: i64| json!({"schedule_id": show.schedule_id, "seat_ids": [seat]});
    let first = early.iter().zip(seats).map(|(buyer, seat)| (buyer, &show, body(seat))).collect();
    for outcome in at_once(&processes, first).await {
        assert_eq!(outcome["status"], "SUCCEEDED", "{outcome}");
    }
    // The worker knows now which seats are free. One more becomes so, and one is given away behind its back.
    let (back, given) = (seats[0], seats[BUYERS]);
    let held = early[0].call("GET", "/v1/reservations").send().await.is(200);
    early[0].cancel(&held["reservations"][0], Way::Wait).await.ok(200);
    sqlx::query(
        "WITH given AS (
             UPDATE reservations SET seat_ids = seat_ids || $2::bigint WHERE user_id = $1 RETURNING reservation_id)
         UPDATE seats SET status = 'HELD', reservation_id = given.reservation_id FROM given WHERE seat_id = $2",
    )
    .bind(early[1].user_id.parse::<uuid::Uuid>().unwrap())
    .bind(given)
    .execute(&pool)
    .await
    .expect("Postgres answers");
    let wanted = seats[BUYERS..2 * BUYERS - 1].iter().chain([&back]);
    let second = late.iter().zip(wanted).map(|(buyer, seat)| (buyer, &show, body(*seat))).collect();
    let outcomes = at_once(&processes, second).await;
    shapes::problem(&outcomes[0]["problem"], 409, "seat-unavailable");
    for outcome in &outcomes[1..] {
        assert_eq!(outcome["status"], "SUCCEEDED", "{outcome}");
    }
}

#[tokio::test]
async fn the_best_of_more_schedules_than_are_kept() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let (show, buyers) = crowd(&api, BUYERS).await;
    let sections = json!([{"name": "A", "rows": 1, "seats_per_row": 1, "price": 1}]);
    let members = json!({"starts_at": in_days(40), "sections": sections});
    let make = |_| api.make_schedule(show.concert_id, &members);
    let schedules: Vec<Value> = stream::iter(0..SCHEDULES).map(make).buffered(16).collect().await;
    let best = |(schedule, buyer): (&Value, _)| {
        (buyer, &show, json!({"schedule_id": schedule["schedule_id"], "best_available": {"count": 1}}))
    };
    for outcome in at_once(&processes, schedules.iter().zip(buyers.iter().cycle()).map(best).collect()).await {
        assert_eq!(outcome["status"], "SUCCEEDED", "{outcome}");
    }
}
