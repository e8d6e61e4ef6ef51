//! Bad input: each gets the problem document of the contract, the first in the contract's order if several apply, and nothing is
//! published.

mod operators;
mod order;

use boxoffice_tests::log::{PAYMENTS, RESERVATIONS, Reader, TOKENS};
use boxoffice_tests::wait::s;
use boxoffice_tests::{Answer, Api, Buyer, Call, PRICE, Show, Way, eventually, met, shapes};
use serde_json::{Value, json};

const BUYER_BODY_MAX: usize = 64 * 1024;
const OPERATOR_BODY_MAX: usize = 8 * 1024 * 1024;
const NO_ID: i64 = 2_000_000_000;

/// A call, and the status and slug that it gets.
type Case = (Call, u16, &'static str);

/// Sends each call. All that are wrong are shown at once.
async fn check(cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (call, status, slug) in cases {
        let answer = unless_limited(&call).await;
        if (answer.status, slug_of(&answer).as_str()) == (status, slug) {
            answer.problem(status, slug);
        } else {
            wrong.push(format!("{status} {slug} wanted: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The answer to a call, sent again if it comes too fast for the limits.
async fn unless_limited(call: &Call) -> Answer {
    eventually("the limits let the call through", s(20), async || {
        let answer = call.send().await;
        met(answer.status != 429, answer)
    })
    .await
}

fn slug_of(answer: &Answer) -> String {
    serde_json::from_slice::<Value>(&answer.body).map(|body| shapes::slug(&body).to_owned()).unwrap_or_default()
}

/// A buyer inside a concert, and a reader that sees whether anything of theirs is published.
struct Inside {
    api: Api,
    show: Show,
    buyer: Buyer,
    seats: [i64; 20],
    topics: Reader,
}

impl Inside {
    async fn new() -> Self {
        let api = Api::new();
        let show = Show::new(&api).await;
        let (buyer, seats) = (show.buyer(0).await, show.pick().await);
        Self { api, show, buyer, seats, topics: Reader::at_the_end_of(&[TOKENS, RESERVATIONS, PAYMENTS]) }
    }

    /// With the access token.
    fn with(&self, method: &str, path: &str, body: Value) -> Call {
        self.buyer.call(method, path).json(&body)
    }

    /// With both tokens.
    fn inside(&self, method: &str, path: &str, body: Value) -> Call {
        self.buyer.inside(&self.show, method, path).json(&body)
    }

    fn reserve(&self, body: Value) -> Call {
        self.inside("POST", "/v1/reservations", body)
    }

    /// Nothing of this buyer and nothing about this concert was published.
    async fn nothing_is_published(mut self) {
        let (user, concert) = (self.buyer.user_id.as_str(), self.show.concert_id);
        let records = self.topics.rest().await;
        let own = records.iter().filter(|it| it.json()["user_id"] == user || it.json()["concert_id"] == concert);
        assert_eq!(own.map(|it| it.json().to_string()).collect::<Vec<_>>(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there() {
    let api = Api::new();
    let get = |path: &str| api.get(path);
    check(vec![
        (get("/"), 404, "not-found"),
        (get("/v1"), 404, "not-found"),
        (get("/v2/concerts"), 404, "not-found"),
        (get("/v1/nothing"), 404, "not-found"),
        (get("/v1/concerts/"), 404, "not-found"),
        (get("/v1/balance/"), 404, "not-found"),
        (get("/v1/concerts/1/"), 404, "not-found"),
        (get("/v1//concerts"), 404, "not-found"),
        (api.post("/v1/reservations/", json!({})), 404, "not-found"),
        (api.admin("GET", "/nothing"), 404, "not-found"),
        (get("/v1/balance/charges"), 405, "method-not-allowed"),
        (api.call("PUT", "/v1/concerts"), 405, "method-not-allowed"),
        (api.call("DELETE", "/v1/payments"), 405, "method-not-allowed"),
        (api.call("PATCH", "/v1/queue-token"), 405, "method-not-allowed"),
        (api.call("OPTIONS", "/v1/concerts"), 405, "method-not-allowed"),
        (api.call("OPTIONS", "/v1/reservations"), 405, "method-not-allowed"),
        (api.admin("POST", "/concerts/1/queue").json(&json!({})), 405, "method-not-allowed"),
        (api.call("BREW", "/v1/concerts"), 405, "method-not-allowed"),
    ])
    .await;
    for (path, allowed) in [
        ("/v1/concerts", vec!["GET", "HEAD"]),
        ("/v1/payments", vec!["POST"]),
        ("/v1/reservations", vec!["GET", "HEAD", "POST"]),
        ("/v1/queue-token", vec!["DELETE", "GET", "HEAD"]),
    ] {
        let answer = api.call("PUT", path).send().await;
        let mut allow: Vec<&str> = answer.header("allow").unwrap_or_default().split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow, allowed, "{answer}");
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let inside = Inside::new().await;
    let seats = format!("/v1/schedules/{}/seats", inside.show.schedule_id);
    let calls = [
        (inside.api.call("HEAD", "/v1/concerts"), 200),
        (inside.api.call("HEAD", "/v1/concerts/2000000000"), 404),
        (inside.api.call("HEAD", "/v1/balance"), 401),
        (inside.buyer.call("HEAD", "/v1/balance"), 200),
        (inside.buyer.inside(&inside.show, "HEAD", &seats), 200),
        (inside.api.call("HEAD", "/v1/payments"), 405),
    ];
    for (call, status) in calls {
        let answer = call.send().await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{answer}");
    }
    inside.nothing_is_published().await;
}

#[tokio::test]
async fn bodies_that_are_no_json_of_the_right_form() {
    let inside = Inside::new().await;
    let charge = |body: &str| inside.buyer.call("POST", "/v1/balance/charges").body("application/json", body);
    let raw = |bytes: &[u8]| inside.buyer.call("POST", "/v1/balance/charges").body("application/json", bytes);
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let mut cases = vec![
        (charge(""), 400, "malformed-body"),
        (charge("{"), 400, "malformed-body"),
        (charge("amount=5"), 400, "malformed-body"),
        (charge("{\"amount\": 5} {}"), 400, "malformed-body"),
        (charge("{'amount': 5}"), 400, "malformed-body"),
        (charge("{\"amount\": NaN}"), 400, "malformed-body"),
        (raw(b"{\"amount\": 5, \"note\": \"\xff\xfe\"}"), 400, "malformed-body"),
        (raw(b"\x00\x01\x02"), 400, "malformed-body"),
        (charge(&deep), 400, "malformed-body"),
    ];
    for body in [
        "{}",
        "[]",
        "null",
        "5",
        "\"5\"",
        "{\"amount\": \"5\"}",
        "{\"amount\": 5.5}",
        "{\"amount\": null}",
        "{\"amount\": true}",
        "{\"amount\": [5]}",
        "{\"amount\": {}}",
        "{\"Amount\": 5}",
        "{\"amount\": 5, \"currency\": \"KRW\"}",
    ] {
        cases.push((charge(body), 400, "invalid-parameter"));
    }
    cases.push((charge("{\"amount\": 0}"), 422, "invalid-request"));
    cases.push((charge("{\"amount\": 10000001}"), 422, "invalid-request"));
    check(cases).await;
    for body in ["{\"amount\": 99999999999999999999}", "{\"amount\": 1e400}", "{\"amount\": 1e3}"] {
        let answer = charge(body).send().await;
        assert!([400, 422].contains(&answer.status), "{body}: {answer}");
    }
    // What is wrong is said, and where.
    let problem = charge("{\"amount\": \"5\"}").send().await.problem(400, "invalid-parameter");
    assert_eq!(problem["errors"][0]["pointer"], "/amount", "{problem}");
    assert!(!shapes::text(&problem["errors"][0]["detail"]).is_empty(), "{problem}");
    assert_eq!(problem["instance"], "/v1/balance/charges", "{problem}");
    let problem = charge("{\"amount\": 5, \"colour\": 1}").send().await.problem(400, "invalid-parameter");
    assert!(problem["errors"][0].to_string().contains("colour"), "{problem}");
    inside.nothing_is_published().await;
}

#[tokio::test]
async fn bodies_that_are_too_large_or_of_another_type() {
    let inside = Inside::new().await;
    let charge = inside.buyer.call("POST", "/v1/balance/charges");
    let padded = |size: usize| format!("{{\"amount\": 0{}}}", " ".repeat(size - 13));
    let concert = inside.api.admin("POST", "/concerts");
    check(vec![
        (charge.clone().body("application/json", padded(BUYER_BODY_MAX)), 422, "invalid-request"),
        (charge.clone().body("application/json", padded(BUYER_BODY_MAX + 1)), 413, "body-too-large"),
        (charge.clone().body("application/json", padded(10_000_000)), 413, "body-too-large"),
        (inside.api.post("/v1/users", json!({"name": "x".repeat(BUYER_BODY_MAX)})), 413, "body-too-large"),
        (concert.clone().json(&json!({"title": "x".repeat(BUYER_BODY_MAX)})), 422, "invalid-request"),
        (concert.json(&json!({"title": "x".repeat(OPERATOR_BODY_MAX)})), 413, "body-too-large"),
        (charge.clone().body("text/plain", "{\"amount\": 5}"), 415, "unsupported-media-type"),
        (charge.clone().body("application/x-www-form-urlencoded", "amount=5"), 415, "unsupported-media-type"),
        (charge.clone().body("application/jsonp", "{\"amount\": 5}"), 415, "unsupported-media-type"),
        (
            charge.clone().body("application/json", "{\"amount\": 5}").without("content-type"),
            415,
            "unsupported-media-type",
        ),
    ])
    .await;
    inside.nothing_is_published().await;
    // Parameters of the type are no obstacle.
    let api = Api::new();
    let buyer = api.sign_up().await;
    let call = buyer.call("POST", "/v1/balance/charges").body("Application/JSON; charset=utf-8", "{\"amount\": 5}");
    call.ask(Way::Wait).await.ok(201);
}

#[tokio::test]
async fn path_ids_and_query_parameters_that_do_not_parse() {
    let inside = Inside::new().await;
    let (concert, schedule) = (inside.show.concert_id, inside.show.schedule_id);
    let guarded = |path: String| inside.buyer.inside(&inside.show, "GET", &path);
    let plain = |path: &str| inside.buyer.call("GET", path);
    let mut cases = Vec::new();
    for id in ["abc", "0", "-1", "1.5", "9223372036854775808", "99999999999999999999999", "%20", "1%00", "%ff"] {
        cases.push((plain(&format!("/v1/concerts/{id}")), 400, "invalid-parameter"));
        cases.push((guarded(format!("/v1/concerts/{id}/schedules")), 400, "invalid-parameter"));
        cases.push((guarded(format!("/v1/schedules/{id}/seats")), 400, "invalid-parameter"));
        cases.push((inside.buyer.call("POST", &format!("/v1/concerts/{id}/queue-tokens")), 400, "invalid-parameter"));
        cases.push((inside.api.admin("GET", &format!("/concerts/{id}/queue")), 400, "invalid-parameter"));
    }
    for id in ["abc", "1", "00000000-0000-0000-0000-00000000000g"] {
        for path in ["/v1/reservations", "/v1/payments", "/v1/requests"] {
            cases.push((plain(&format!("{path}/{id}")), 400, "invalid-parameter"));
        }
        cases.push((inside.buyer.call("DELETE", &format!("/v1/reservations/{id}")), 400, "invalid-parameter"));
        cases.push((inside.buyer.call("POST", &format!("/v1/payments/{id}/refunds")), 400, "invalid-parameter"));
        cases.push((inside.api.admin("GET", &format!("/users/{id}")), 400, "invalid-parameter"));
    }
    for query in
        ["from=yesterday", "from=2026-13-01", "to=2026-02-30", "from=", "from=2026-01-01T00:00:00Z", "when=2026-01-01"]
    {
        cases.push((guarded(format!("/v1/concerts/{concert}/schedules?{query}")), 400, "invalid-parameter"));
    }
    let backwards = format!("/v1/concerts/{concert}/schedules?from=2027-02-02&to=2027-02-01");
    cases.push((guarded(backwards), 422, "invalid-request"));
    for query in ["status=foo", "status=sold", "colour=blue", "status=all&colour=blue"] {
        cases.push((guarded(format!("/v1/schedules/{schedule}/seats?{query}")), 400, "invalid-parameter"));
    }
    for path in ["/v1/concerts", "/v1/reservations", "/v1/balance/entries"] {
        for query in ["limit=abc", "limit=", "limit=1.5", "cursor=nonsense", "cursor=%ff", "page=2", "Limit=3"] {
            cases.push((plain(&format!("{path}?{query}")), 400, "invalid-parameter"));
        }
        for limit in [0, -1, 201] {
            cases.push((plain(&format!("{path}?limit={limit}")), 422, "invalid-request"));
        }
    }
    for call in [plain("/v1/balance?x=1"), inside.with("POST", "/v1/balance/charges?x=1", json!({"amount": 5}))] {
        cases.push((call, 400, "invalid-parameter"));
    }
    check(cases).await;
    let problem = plain("/v1/concerts?colour=blue").send().await.problem(400, "invalid-parameter");
    assert_eq!(problem["errors"][0]["parameter"], "colour", "{problem}");
    inside.nothing_is_published().await;
}

#[tokio::test]
async fn reservations_that_make_no_sense() {
    let inside = Inside::new().await;
    let (schedule, concert, seats) = (inside.show.schedule_id, inside.show.concert_id, inside.seats);
    let day = "2030-01-01";
    let many: Vec<i64> = (0..21).map(|i| seats[0] + i).collect();
    let labels: Vec<String> = (0..21).map(|i| format!("A-1-{i}")).collect();
    let senseless = [
        json!({}),
        json!({"schedule_id": schedule}),
        json!({"schedule_id": schedule, "seat_ids": []}),
        json!({"schedule_id": schedule, "seat_ids": [seats[0], seats[0]]}),
        json!({"schedule_id": schedule, "seat_ids": many}),
        json!({"schedule_id": schedule, "seat_ids": [seats[0]], "best_available": {"count": 1}}),
        json!({"schedule_id": schedule, "seat_ids": [seats[0]], "concert_id": concert, "date": day, "seats": ["A-1-1"]}),
        json!({"concert_id": concert, "date": day, "seats": []}),
        json!({"concert_id": concert, "date": day, "seats": ["A-1-1", "A-1-1"]}),
        json!({"concert_id": concert, "date": day, "seats": labels}),
        json!({"schedule_id": schedule, "best_available": {"count": 0}}),
        json!({"schedule_id": schedule, "best_available": {"count": -1}}),
        json!({"schedule_id": schedule, "best_available": {"count": 21}}),
    ];
    let wrong_form = [
        json!([]),
        json!({"schedule_id": "1", "seat_ids": [1]}),
        json!({"schedule_id": schedule, "seat_ids": "1"}),
        json!({"schedule_id": schedule, "seat_ids": ["1"]}),
        json!({"schedule_id": schedule, "seat_ids": [1.5]}),
        json!({"schedule_id": schedule, "seat_ids": [seats[0]], "pay": "yes"}),
        json!({"schedule_id": schedule, "seat_ids": [seats[0]], "colour": 1}),
        json!({"schedule_id": schedule, "best_available": 2}),
        json!({"schedule_id": schedule, "best_available": {"count": 1, "row": 1}}),
        json!({"schedule_id": schedule, "best_available": {}}),
        json!({"schedule_id": schedule, "best_available": null}),
        json!({"schedule_id": schedule, "best_available": {"count": 1, "section": null}}),
        json!({"schedule_id": schedule, "best_available": {"count": 1, "section": 1}}),
        json!({"schedule_id": schedule, "best_available": [1, "A"]}),
        json!({"concert_id": concert, "date": "tomorrow", "seats": ["A-1-1"]}),
        json!({"concert_id": concert, "date": "2030-02-30", "seats": ["A-1-1"]}),
        json!({"concert_id": concert, "date": day, "seats": [1]}),
    ];
    let mut cases: Vec<Case> = senseless.map(|body| (inside.reserve(body), 422, "invalid-request")).into();
    cases.extend(wrong_form.map(|body| (inside.reserve(body), 400, "invalid-parameter")));
    cases.push((inside.inside("POST", "/v1/payments", json!({})), 400, "invalid-parameter"));
    cases.push((inside.inside("POST", "/v1/payments", json!({"reservation_id": "1"})), 400, "invalid-parameter"));
    cases.push((inside.inside("POST", "/v1/payments", json!({"reservation_id": 1})), 400, "invalid-parameter"));
    let join = format!("/v1/concerts/{concert}/queue-tokens");
    cases.push((inside.with("POST", &join, json!({"vip": true})), 400, "invalid-parameter"));
    cases.push((inside.with("POST", &join, json!([])), 400, "invalid-parameter"));
    check(cases).await;
    inside.nothing_is_published().await;
}

#[tokio::test]
async fn idempotency_keys_that_are_none() {
    let inside = Inside::new().await;
    let charge = inside.with("POST", "/v1/balance/charges", json!({"amount": 5}));
    for key in ["", "two words", "\t", "schlüssel", &"k".repeat(256)] {
        let problem = charge.clone().key(key).send().await.problem(400, "invalid-parameter");
        let header = shapes::text(&problem["errors"][0]["header"]).to_ascii_lowercase();
        assert_eq!(header, "idempotency-key", "{problem}");
    }
    inside.nothing_is_published().await;
    let buyer = Api::new().sign_up().await;
    let charge = buyer.call("POST", "/v1/balance/charges").json(&json!({"amount": 5}));
    for key in ["!".to_owned(), "k".repeat(255), format!("~{}", uuid::Uuid::new_v4())] {
        charge.clone().key(&key).ask(Way::Wait).await.ok(201);
    }
    assert_eq!(buyer.balance().await, 15);
}

/// A foreign concert's seats are not found in a schedule, a schedule's price cannot be had in another.
#[tokio::test]
async fn seats_of_another_schedule_are_not_found() {
    let inside = Inside::new().await;
    let elsewhere = Show::new(&inside.api).await;
    let [foreign] = elsewhere.pick().await;
    for way in boxoffice_tests::WAYS {
        inside.buyer.hold(&inside.show, &[foreign], way).await.fails(404, "seat-not-found");
        inside.buyer.hold(&inside.show, &[inside.seats[0], foreign], way).await.fails(404, "seat-not-found");
    }
    elsewhere.becomes(&[foreign], "AVAILABLE").await;
    inside.buyer.charge(PRICE, Way::Wait).await.ok(201);
    inside.buyer.buy(&inside.show, &[inside.seats[0]], Way::Wait).await.ok(201);
}
