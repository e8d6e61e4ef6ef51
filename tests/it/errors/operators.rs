//! Mistakes of operators, and of those who sign up or log in.

use boxoffice_tests::{Api, shapes};
use chrono::NaiveDate;
use serde_json::{Value, json};

use super::{Case, Inside, NO_ID, check, unless_limited};

#[tokio::test]
async fn sign_ups_and_log_ins_that_make_no_sense() {
    let api = Api::new();
    let sign_up = |body: Value| api.post("/v1/users", body);
    check(vec![
        (sign_up(json!({"name": ""})), 422, "invalid-request"),
        (sign_up(json!({"name": "x".repeat(101)})), 422, "invalid-request"),
        (sign_up(json!({})), 400, "invalid-parameter"),
        (sign_up(json!({"name": 5})), 400, "invalid-parameter"),
        (sign_up(json!({"name": "A", "admin": true})), 400, "invalid-parameter"),
        (sign_up(json!("A")), 400, "invalid-parameter"),
    ])
    .await;
    let hundred = "한".repeat(100);
    let body = sign_up(json!({"name": hundred})).send().await.is(201);
    assert_eq!(body["name"], hundred, "a hundred characters, not bytes");
    let id = uuid::Uuid::new_v4();
    for (body, status, slug) in [
        (json!({"user_id": "x", "user_secret": "y"}), 400, "invalid-parameter"),
        (json!({"user_id": id}), 400, "invalid-parameter"),
        (json!({"user_id": id, "user_secret": "y", "z": 1}), 400, "invalid-parameter"),
        (json!({"user_id": body["user_id"], "user_secret": ""}), 401, "access-token-invalid"),
    ] {
        unless_limited(&api.post("/v1/access-tokens", body)).await.problem(status, slug);
    }
}

#[tokio::test]
async fn operators_mistakes() {
    let inside = Inside::new().await;
    let api = &inside.api;
    let concert = |body: Value| api.admin("POST", "/concerts").json(&body);
    let mut cases: Vec<Case> = Vec::new();
    for body in [
        json!({}),
        json!({"title": 5}),
        json!({"title": "x", "colour": 1}),
        json!({"title": "x", "time_zone": "Mars/Olympus"}),
        json!({"title": "x", "on_payment_failure": "shrug"}),
        json!({"title": "x", "hold_seconds": "300"}),
        json!({"title": "x", "queue": {"state": "SHUT"}}),
        json!({"title": "x", "queue": {"speed": 1}}),
        json!({"title": "x", "queue": 5}),
    ] {
        cases.push((concert(body), 400, "invalid-parameter"));
    }
    for body in [
        json!({"title": ""}),
        json!({"title": "x".repeat(101)}),
        json!({"title": "x", "hold_seconds": 4}),
        json!({"title": "x", "hold_seconds": 3601}),
        json!({"title": "x", "max_seats_per_buyer": 0}),
        json!({"title": "x", "max_seats_per_buyer": 21}),
        json!({"title": "x", "queue": {"rate_per_minute": 0}}),
        json!({"title": "x", "queue": {"burst": 100_001}}),
        json!({"title": "x", "queue": {"max_active": -1}}),
        json!({"title": "x", "queue": {"active_seconds": 4}}),
    ] {
        cases.push((concert(body), 422, "invalid-request"));
    }
    let id = inside.show.concert_id;
    let queue = |body: Value| api.admin("PATCH", &format!("/concerts/{id}/queue")).json(&body);
    for body in [json!({"state": "SHUT"}), json!({"rate": 5}), json!({"burst": "5"}), json!([])] {
        cases.push((queue(body), 400, "invalid-parameter"));
    }
    for body in [
        json!({}),
        json!({"rate_per_minute": 0}),
        json!({"rate_per_minute": 1_000_001}),
        json!({"burst": 0}),
        json!({"max_active": 1_000_001}),
        json!({"active_seconds": 86_401}),
    ] {
        cases.push((queue(body), 422, "invalid-request"));
    }
    cases.push((
        api.admin("PATCH", &format!("/concerts/{NO_ID}/queue")).json(&json!({"burst": 5})),
        404,
        "concert-not-found",
    ));
    cases.push((api.admin("GET", &format!("/concerts/{NO_ID}/queue")), 404, "concert-not-found"));
    check(cases).await;
    // A name is a string, not a map with one member of that name.
    for (call, pointer) in [
        (concert(json!({"title": "x", "on_payment_failure": {"keep_hold": null}})), "/on_payment_failure"),
        (concert(json!({"title": "x", "on_payment_failure": 0})), "/on_payment_failure"),
        (concert(json!({"title": "x", "queue": {"state": {"OPEN": null}}})), "/queue/state"),
        (concert(json!({"title": "x", "queue": {"state": null}})), "/queue/state"),
        (queue(json!({"state": {"PAUSED": null}})), "/state"),
        (queue(json!({"state": ["PAUSED"]})), "/state"),
    ] {
        let problem = call.send().await.problem(400, "invalid-parameter");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    inside.nothing_is_published().await;
}

#[tokio::test]
async fn schedules_that_make_no_sense() {
    let api = Api::new();
    let id = shapes::int(&api.make_concert(json!({})).await["concert_id"]);
    let schedule = |body: Value| api.admin("POST", &format!("/concerts/{id}/schedules")).json(&body);
    let starts_at = "2030-01-01T00:00:00Z";
    let with = |sections: Value| schedule(json!({"starts_at": starts_at, "sections": sections}));
    let section = |name: &str, rows: i64, seats: i64, price: i64| json!({"name": name, "rows": rows, "seats_per_row": seats, "price": price});
    let mut cases: Vec<Case> = Vec::new();
    for sections in [
        json!([]),
        json!([section("", 1, 1, 1)]),
        json!([section(&"A".repeat(41), 1, 1, 1)]),
        json!([section("A/B", 1, 1, 1)]),
        json!([section("A", 1, 1, 1), section("A", 2, 2, 2)]),
        json!([section("A", 0, 1, 1)]),
        json!([section("A", 1, -1, 1)]),
        json!([section("A", 1, 1, -1)]),
        json!([section("A", 1, 1, 1_000_000_001)]),
        json!([section("A", 200_001, 1, 1)]),
        json!([section("A", 100_000, 2, 1), section("B", 1, 1, 1)]),
        json!([section("A", 2_000_000_000, 2_000_000_000, 1)]),
    ] {
        cases.push((with(sections), 422, "invalid-request"));
    }
    for body in [
        json!({"starts_at": starts_at}),
        json!({"sections": [section("A", 1, 1, 1)]}),
        json!({"starts_at": "tomorrow", "sections": [section("A", 1, 1, 1)]}),
        json!({"starts_at": "2030-01-01", "sections": [section("A", 1, 1, 1)]}),
        json!({"starts_at": starts_at, "sections": [{"name": "A", "rows": 1, "price": 1}]}),
        json!({"starts_at": starts_at, "sections": [{"name": "A", "rows": 1, "seats_per_row": 1, "price": 1, "x": 1}]}),
        json!({"starts_at": starts_at, "sections": {"name": "A"}}),
    ] {
        cases.push((schedule(body), 400, "invalid-parameter"));
    }
    let at = |starts_at: &str| schedule(json!({"starts_at": starts_at, "sections": [section("A", 1, 1, 1)]}));
    for starts_at in ["2030-01-01T00:00:60Z", "2016-12-31T23:59:60Z", "2016-12-31T23:59:60.5Z", "2030-01-01T00:00:61Z"]
    {
        cases.push((at(starts_at), 400, "invalid-parameter"));
    }
    for starts_at in [
        "9999-12-31T23:59:59-23:59",
        "9999-01-01T00:00:00Z",
        "9998-12-31T23:59:59-00:01",
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+00:01",
        "0000-01-01T00:00:00Z",
        "0000-01-01T00:00:00+23:59",
    ] {
        cases.push((at(starts_at), 422, "invalid-request"));
    }
    let elsewhere = api.admin("POST", &format!("/concerts/{NO_ID}/schedules"));
    cases.push((
        elsewhere.json(&json!({"starts_at": starts_at, "sections": [section("A", 1, 1, 1)]})),
        404,
        "concert-not-found",
    ));
    check(cases).await;
    let concert = api.get(&format!("/v1/concerts/{id}")).send().await.is(200);
    assert_eq!((&concert["available_seats"], &concert["schedules_from"]), (&0.into(), &Value::Null), "none was made");
    let odd = json!([section("가나 1_.x", 1, 1, 0), section("B", 2, 3, 1_000_000_000)]);
    let made = with(odd).send().await.is(201);
    assert_eq!(made["total_seats"], 7);
    for (starts_at, member) in [("1970-01-01T00:00:00Z", "schedules_from"), ("9998-12-31T23:59:59.5Z", "schedules_to")]
    {
        at(starts_at).send().await.is(201);
        let concert = api.get(&format!("/v1/concerts/{id}")).send().await.is(200);
        assert!(NaiveDate::parse_from_str(shapes::text(&concert[member]), "%Y-%m-%d").is_ok(), "{concert}");
    }
    let problem = at("2030-01-01T00:00:60Z").send().await.problem(400, "invalid-parameter");
    assert_eq!(problem["errors"][0]["pointer"], "/starts_at", "{problem}");
}
