//! What is not a call of a buyer or an operator: health, metrics, documentation, the public catalogue.

use std::collections::BTreeSet;

use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, Show, eventually, met, setting, shapes};
use serde_json::{Value, json};

/// Every slug of the contract.
const SLUGS: &str = "malformed-body invalid-parameter invalid-request ambiguous-date idempotency-key-reused access-token-missing \
    access-token-invalid queue-token-missing queue-token-invalid queue-token-expired queue-token-waiting queue-token-mismatch \
    insufficient-balance concert-not-found schedule-not-found queue-token-not-found request-not-found user-not-found seat-not-found \
    reservation-not-found payment-not-found not-found method-not-allowed seat-unavailable sold-out sales-ended queue-closed \
    reservation-limit-exceeded reservation-expired reservation-cancelled already-paid not-refundable reservation-of-another-buyer \
    body-too-large unsupported-media-type rate-limited overloaded unavailable delivery-unknown";

/// Every call of the contract.
const CALLS: &str = "POST /v1/users; POST /v1/access-tokens; POST /v1/concerts/{id}/queue-tokens; GET /v1/concerts/{id}/queue-tokens; \
    GET /v1/queue-token; GET /v1/queue-token/events; DELETE /v1/queue-token; GET /v1/concerts; GET /v1/concerts/{id}; \
    GET /v1/concerts/{id}/schedules; GET /v1/schedules/{id}/seats; POST /v1/reservations; GET /v1/reservations; \
    GET /v1/reservations/{id}; DELETE /v1/reservations/{id}; POST /v1/payments; GET /v1/payments/{id}; \
    POST /v1/payments/{id}/refunds; GET /v1/balance; POST /v1/balance/charges; GET /v1/balance/entries; GET /v1/requests/{id}; \
    POST /v1/admin/concerts; POST /v1/admin/concerts/{id}/schedules; PATCH /v1/admin/concerts/{id}/queue; \
    GET /v1/admin/concerts/{id}/queue; GET /v1/admin/users/{id}; GET /v1/admin/requests/{id}";

#[tokio::test]
async fn every_process_says_how_it_is() {
    let api = Api::new();
    for name in ["BOXOFFICE_URL", "TOKEN_WORKER_URL", "RESERVATION_WORKER_URL", "PAYMENT_WORKER_URL"] {
        let process = api.clone().of(&setting(name));
        for path in ["/livez", "/readyz"] {
            let answer = process.get(path).send().await;
            assert_eq!(answer.status, 200, "{name}: {answer}");
        }
        let metrics = process.get("/metrics").send().await;
        let text = String::from_utf8(metrics.body.clone()).unwrap();
        assert!(metrics.status == 200 && text.contains("# TYPE "), "{name}: {metrics}");
    }
}

#[tokio::test]
async fn what_a_process_does_not_have_is_told_in_a_problem_document() {
    let api = Api::new();
    for name in ["BOXOFFICE_URL", "TOKEN_WORKER_URL", "RESERVATION_WORKER_URL", "PAYMENT_WORKER_URL"] {
        let process = api.clone().of(&setting(name));
        for path in ["/livez", "/readyz", "/metrics"] {
            for method in ["POST", "DELETE", "OPTIONS"] {
                let answer = process.call(method, path).send().await;
                assert_eq!(answer.problem(405, "method-not-allowed")["instance"], path, "{name}: {answer}");
                assert!(answer.header("allow").is_some_and(|it| it.contains("GET")), "{name}: {answer}");
            }
            assert_eq!(process.call("HEAD", path).send().await.status, 200, "{name}: {path}");
        }
        for path in ["/", "/nothing", "/livez/"] {
            let problem = process.get(path).send().await.problem(404, "not-found");
            assert_eq!(problem["instance"], path, "{name}: {problem}");
        }
    }
}

#[tokio::test]
async fn every_problem_has_a_page() {
    let api = Api::new();
    for slug in SLUGS.split_whitespace() {
        let answer = api.get(&format!("/problems/{slug}")).send().await;
        assert_eq!(answer.status, 200, "{answer}");
        assert!(answer.header("content-type").is_some_and(|media| media.starts_with("text/html")), "{answer}");
        assert!(String::from_utf8_lossy(&answer.body).contains(slug), "{answer}");
    }
    api.get("/problems/no-such-problem").send().await.problem(404, "not-found");
}

#[tokio::test]
async fn the_openapi_document_has_every_call() {
    let api = Api::new();
    let document = api.get("/openapi.json").send().await.is(200);
    assert!(shapes::text(&document["openapi"]).starts_with("3.1"), "{}", document["openapi"]);
    let plain = |path: &str| {
        path.split('/').map(|it| if it.starts_with('{') { "{id}" } else { it }).collect::<Vec<_>>().join("/")
    };
    let mut found = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            found.insert(format!("{} {}", method.to_uppercase(), plain(path)));
        }
    }
    let missing: Vec<&str> = CALLS.split(';').map(str::trim).filter(|call| !found.contains(*call)).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    let docs = api.get("/docs").send().await;
    assert!(docs.status == 200 || docs.status / 100 == 3, "{docs}");
    let page = String::from_utf8_lossy(&docs.body).into_owned();
    assert!(!page.contains("//cdn") && !page.contains("unpkg"), "assets are our own: {page}");
}

#[tokio::test]
async fn the_catalogue_is_public_and_comes_page_by_page() {
    let api = Api::new();
    let (one, two) = (Show::new(&api).await, Show::new(&api).await);
    let mut seen = Vec::new();
    let mut path = "/v1/concerts?limit=200".to_owned();
    loop {
        let page = api.get(&path).send().await.is(200);
        shapes::has(&page, "concerts next_cursor");
        for concert in shapes::list(&page["concerts"]) {
            shapes::has(concert, shapes::CONCERT);
            seen.push(shapes::int(&concert["concert_id"]));
        }
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/concerts?limit=200&cursor={cursor}");
    }
    assert!([one.concert_id, two.concert_id].iter().all(|id| seen.iter().filter(|it| *it == id).count() == 1));
    let body = api.get(&format!("/v1/concerts/{}", one.concert_id)).send().await.is(200);
    shapes::has(&body, shapes::CONCERT);
    assert_eq!(body["available_seats"], 20);
    assert_eq!((&body["time_zone"], &body["currency"]), (&"Asia/Seoul".into(), &"KRW".into()));
    assert_eq!((&body["hold_seconds"], &body["max_seats_per_buyer"]), (&300.into(), &4.into()), "the defaults");
    let empty = api.make_concert(json!({})).await;
    shapes::has(&empty, &format!("{} on_payment_failure queue", shapes::CONCERT));
    assert_eq!(empty["on_payment_failure"], "keep_hold");
    for member in ["schedules_from", "schedules_to"] {
        assert_eq!(empty[member], Value::Null, "{empty}");
    }
    let queue = &empty["queue"];
    let defaults =
        json!({"state": "OPEN", "rate_per_minute": 600, "burst": 100, "max_active": 1_000, "active_seconds": 600});
    for (member, value) in defaults.as_object().unwrap() {
        assert_eq!(queue[member], *value, "{member} of {queue}");
    }
    api.get("/v1/concerts/2000000000").send().await.problem(404, "concert-not-found");
}

#[tokio::test]
async fn operators_see_a_buyer_without_token_strings() {
    let api = Api::new();
    let show = Show::new(&api).await;
    let buyer = show.buyer(5).await;
    let [seat] = show.pick().await;
    let held = buyer.hold(&show, &[seat], boxoffice_tests::Way::Wait).await.ok(201);
    let answer = api.admin("GET", &format!("/users/{}", buyer.user_id)).send().await;
    let body = answer.is(200);
    shapes::has(&body, "user_id name balance currency tokens reservations");
    assert_eq!((&body["balance"], shapes::list(&body["tokens"]).len()), (&5.into(), 1));
    assert_eq!(body["reservations"][0]["reservation_id"], held["reservation_id"]);
    let text = answer.to_string();
    assert!(!text.contains(&buyer.queue_token(show.concert_id)) && !text.contains(&buyer.secret), "{text}");
    let nobody = format!("/users/{}", uuid::Uuid::new_v4());
    api.admin("GET", &nobody).send().await.problem(404, "user-not-found");
    eventually("the queue is counted", s(3), async || {
        let queue = api.queue(show.concert_id).await;
        met(queue["active"] == 2 && queue["waiting"] == 0 && queue["oldest_wait_seconds"].is_null(), queue)
    })
    .await;
}
