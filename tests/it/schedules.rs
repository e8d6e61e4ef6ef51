//! Dates and seats.

use boxoffice_tests::show::slow_queue;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Show, Way, eventually, met, shapes};
use chrono::{Duration, NaiveDate, TimeDelta, Utc};
use serde_json::json;

#[tokio::test]
async fn s0_06_dates_only_with_a_valid_token() {
    let api = Api::new();
    let show = Show::with(&api, slow_queue()).await;
    let (inside, outside) = (show.buyer(0).await, api.sign_up().await);
    let path = format!("/v1/concerts/{}/schedules", show.concert_id);
    let body = inside.inside(&show, "GET", &path).send().await.is(200);
    shapes::has(&body, "concert_id schedules");
    assert_eq!(body["concert_id"], show.concert_id);
    let [schedule] = shapes::list(&body["schedules"]).as_slice() else { panic!("one schedule: {body}") };
    shapes::has(schedule, "schedule_id starts_at date available_seats total_seats");
    assert_eq!(schedule["schedule_id"], show.schedule_id);
    assert_eq!((&schedule["total_seats"], &schedule["available_seats"]), (&20.into(), &20.into()));
    let seoul = shapes::time(&schedule["starts_at"]) + Duration::hours(9);
    assert_eq!(schedule["date"], seoul.date_naive().to_string(), "the concert's zone is Seoul's");
    outside.call("GET", &path).send().await.problem(401, "queue-token-missing");
    outside.join(show.concert_id, Way::Wait).await.ok(201);
    let answer = outside.inside(&show, "GET", &path).send().await;
    assert_eq!(answer.problem(403, "queue-token-waiting")["position"], 1);
    let stranger = api.get(&path).queue(&inside.queue_token(show.concert_id));
    stranger.send().await.problem(401, "access-token-missing");
}

#[tokio::test]
async fn s0_07_seats_only_with_a_valid_token() {
    let api = Api::new();
    let sections = json!([{"name": "A", "rows": 1, "seats_per_row": 3, "price": 5_000},
                          {"name": "B", "rows": 2, "seats_per_row": 2, "price": 7_000}]);
    let show = Show::of(&api, slow_queue(), json!({"sections": sections})).await;
    let (inside, outside) = (show.buyer(0).await, api.sign_up().await);
    let seats = show.seats_seen_by(&inside, "").await;
    let labels: Vec<&str> = seats.iter().map(|seat| shapes::text(&seat["label"])).collect();
    assert_eq!(labels, ["A-1-1", "A-1-2", "A-1-3", "B-1-1", "B-1-2", "B-2-1", "B-2-2"]);
    for seat in &seats {
        let section = shapes::text(&seat["section"]);
        assert_eq!(seat["label"], format!("{section}-{}-{}", seat["row"], seat["number"]));
        assert_eq!(seat["price"], if section == "A" { 5_000 } else { 7_000 });
        assert_eq!(seat["status"], "AVAILABLE");
    }
    assert_eq!(show.seats_seen_by(&inside, "?section=B").await, seats[3..], "only the section that is asked for");
    let path = format!("/v1/schedules/{}/seats", show.schedule_id);
    let answer = inside.inside(&show, "GET", &path).send().await;
    let as_of = shapes::time(&answer.is(200)["as_of"]);
    assert!((Utc::now() - as_of).abs() < TimeDelta::seconds(2), "at most a second old: {as_of}");
    let etag = answer.header("etag").expect("a weak ETag").to_owned();
    assert!(etag.starts_with("W/\""), "{etag}");
    let again = inside.inside(&show, "GET", &path).header("if-none-match", &etag).send().await;
    assert_eq!((again.status, again.body.len()), (304, 0), "{again}");
    outside.call("GET", &path).send().await.problem(401, "queue-token-missing");
    outside.join(show.concert_id, Way::Wait).await.ok(201);
    outside.inside(&show, "GET", &path).send().await.problem(403, "queue-token-waiting");
}

#[tokio::test]
async fn s1_06_seats_answer_carries_its_schedule() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let sections = json!([{"name": "Z", "rows": 1, "seats_per_row": 4, "price": 1}]);
    let other = Show::schedule(&api, show.concert_id, json!({"sections": sections})).await;
    let buyer = show.buyer(0).await;
    let mut ids = Vec::new();
    for (schedule, count) in [(show.schedule_id, 20), (other, 4)] {
        let path = format!("/v1/schedules/{schedule}/seats");
        let body = buyer.inside(&show, "GET", &path).send().await.is(200);
        assert_eq!((&body["schedule_id"], &body["concert_id"]), (&schedule.into(), &show.concert_id.into()));
        assert!(shapes::time(&body["starts_at"]) > Utc::now());
        let seats = shapes::list(&body["seats"]);
        assert_eq!(seats.len(), count);
        ids.extend(seats.iter().map(|seat| shapes::int(&seat["seat_id"])));
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 24, "seats of different schedules have different ids");
}

#[tokio::test]
async fn s3_02_dates_between_from_and_to() {
    let api = Api::new();
    let concert = shapes::int(&api.make_concert(json!({"time_zone": "America/New_York"})).await["concert_id"]);
    let first: NaiveDate = (Utc::now() + TimeDelta::days(50)).date_naive();
    let mut schedules = Vec::new();
    for day in first.iter_days().take(4) {
        // Two in the morning in London is still the day before in New York.
        let starts_at = format!("{}T02:00:00Z", day.succ_opt().unwrap());
        schedules.push((day.to_string(), Show::schedule(&api, concert, json!({"starts_at": starts_at})).await));
    }
    let over = Utc::now() - TimeDelta::days(1);
    Show::schedule(&api, concert, json!({"starts_at": over.to_rfc3339()})).await;
    let buyer = api.sign_up().await;
    buyer.enter(concert).await;
    let dates = async |query: &str| {
        let path = format!("/v1/concerts/{concert}/schedules{query}");
        let body = buyer.call("GET", &path).queue(&buyer.queue_token(concert)).send().await.is(200);
        let schedules = shapes::list(&body["schedules"]).iter();
        schedules.map(|it| (shapes::text(&it["date"]).to_owned(), shapes::int(&it["schedule_id"]))).collect::<Vec<_>>()
    };
    let day = |i: usize| &schedules[i].0;
    assert_eq!(dates("").await, schedules, "all to come, by time");
    assert_eq!(dates(&format!("?from={}&to={}", day(1), day(2))).await, schedules[1..3], "both included");
    assert_eq!(dates(&format!("?from={}", day(3))).await, schedules[3..]);
    assert_eq!(dates(&format!("?to={}", day(0))).await, schedules[..1]);
    assert_eq!(dates(&format!("?to={}", first - TimeDelta::days(1))).await, []);
    let concert = api.get(&format!("/v1/concerts/{concert}")).send().await.is(200);
    shapes::has(&concert, shapes::CONCERT);
    assert_eq!((&concert["schedules_from"], &concert["schedules_to"]), (&json!(day(0)), &json!(day(3))));
}

/// The concert's counts follow what is sold.
#[tokio::test]
async fn counts_of_a_concert_follow() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(0).await;
    let [one, two] = show.pick().await;
    buyer.hold(&show, &[one, two], Way::Wait).await.ok(201);
    eventually("18 seats are left", s(3), async || {
        let concert = api.get(&format!("/v1/concerts/{}", show.concert_id)).send().await.is(200);
        met(concert["available_seats"] == 18, concert)
    })
    .await;
    let path = format!("/v1/concerts/{}/schedules", show.concert_id);
    eventually("the date says so too", s(3), async || {
        let dates = buyer.inside(&show, "GET", &path).send().await.is(200);
        met(dates["schedules"][0]["available_seats"] == 18, dates)
    })
    .await;
}
