//! Bad input: each gets the problem document of the contract, the first in the contract's order if several apply, and nothing is
//! published.

use boxoffice_tests::log::{PAYMENTS, RESERVATIONS, Reader, TOKENS};
use boxoffice_tests::wait::s;
use boxoffice_tests::{Answer, Api, Buyer, Call, PRICE, Show, Way, eventually, met, shapes};
use futures::future::join_all;
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
        let answer = call.send().await;
        if (answer.status, slug_of(&answer).as_str()) == (status, slug) {
            answer.problem(status, slug);
        } else {
            wrong.push(format!("{status} {slug} wanted: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
        "Bearer",
        "Bearer ",
        &format!("Bearer {flipped}"),
        &format!("Bearer {queue_token}"),
        &format!("Bearer {}", inside.api.admin_key()),
    ] {
        cases.push((balance.clone().header("authorization", value), 401, "access-token-invalid"));
    }
    check(cases).await;
    let basic = balance.clone().header("authorization", "Basic dTpw").send().await;
    assert_eq!(basic.status, 401, "{basic}");
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
        let call = api.post("/v1/access-tokens", body);
        let answer = eventually("log-ins are not limited for the moment", s(20), async || {
            let answer = call.send().await;
            met(answer.status != 429, answer)
        });
        answer.await.problem(status, slug);
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
            answers.len() - limited >= burst || usual == 401,
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
