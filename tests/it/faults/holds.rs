//! Holds end in time and are paid in time, whatever stands still.

use boxoffice_tests::log::{PAYMENTS, RESULTS, Reader, Writer};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::wait::s;
use boxoffice_tests::{Api, PRICE, Show, Way, at, shapes};
use chrono::{TimeDelta, Utc};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::json;

use super::workers_are_ready;

#[tokio::test]
async fn s2_04_a_hold_ends_in_time_without_the_worker_and_is_freed_by_its_return() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let (paying, silent, next) = (show.buyer(PRICE).await, show.buyer(0).await, show.buyer(0).await);
    let [one, two] = show.pick().await;
    let to_pay = paying.hold(&show, &[one], Way::Wait).await.ok(201);
    let to_expire = silent.hold(&show, &[two], Way::Wait).await.ok(201);
    processes.end("reservation-worker", "KILL").await;
    at(shapes::time(&to_expire["hold_expires_at"]) + TimeDelta::milliseconds(200)).await;
    // Nobody has freed anything yet, and still nobody can pay too late.
    assert_eq!(silent.reservation(&to_expire).await["status"], "HELD", "the worker that ends holds is dead");
    paying.pay(&show, &to_pay, Way::Wait).await.fails(409, "reservation-expired");
    paying.pay(&show, &to_pay, Way::Poll).await.fails(409, "reservation-expired");
    assert_eq!(paying.balance().await, PRICE);
    processes.up(1).await;
    let restarted = Utc::now();
    silent.becomes(&to_expire, "EXPIRED", s(3)).await;
    let took = Utc::now() - restarted;
    assert!(took < TimeDelta::seconds(2), "free within a second of the restart, not {took}");
    next.hold(&show, &[one, two], Way::Wait).await.ok(201);
}

#[tokio::test]
async fn b_09_paid_in_time_is_paid_though_the_worker_lags() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let (in_time, too_late) = (show.buyer(PRICE).await, show.buyer(PRICE).await);
    let [one, two] = show.pick().await;
    let held_in_time = in_time.hold(&show, &[one], Way::Wait).await.ok(201);
    let held_too_late = too_late.hold(&show, &[two], Way::Wait).await.ok(201);
    let frozen = processes.freeze("payment-worker");
    let first = in_time.paying(&show, &held_in_time).send().await.accepted();
    at(shapes::time(&held_too_late["hold_expires_at"]) + TimeDelta::milliseconds(300)).await;
    let second = too_late.paying(&show, &held_too_late).send().await.accepted();
    for buyer in [&in_time, &too_late] {
        let held = buyer.call("GET", "/v1/reservations").send().await.is(200);
        assert_eq!(held["reservations"][0]["status"], "HELD", "the worker stands still");
    }
    drop(frozen);
    let first = in_time.call("GET", "/").finish(&format!("/v1/requests/{first}")).await;
    assert_eq!(first["status"], "SUCCEEDED", "asked in time, applied late: {first}");
    let second = too_late.call("GET", "/").finish(&format!("/v1/requests/{second}")).await;
    shapes::problem(&second["problem"], 409, "reservation-expired");
    assert_eq!(in_time.reservation(&held_in_time).await["status"], "PAID");
    too_late.becomes(&held_too_late, "EXPIRED", s(3)).await;
    assert_eq!((in_time.balance().await, too_late.balance().await), (0, PRICE));
}

#[tokio::test]
async fn b_09_a_redriven_payment_counts_from_when_it_was_asked_first() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let show = Show::with(&api, json!({"hold_seconds": 5})).await;
    let (redriven, late) = (show.buyer(PRICE).await, show.buyer(PRICE).await);
    let [one, two] = show.pick().await;
    let holds = [
        (&redriven, redriven.hold(&show, &[one], Way::Wait).await.ok(201), "SUCCEEDED"),
        (&late, late.hold(&show, &[two], Way::Wait).await.ok(201), "FAILED"),
    ];
    // The worker that would end the holds stands still, so that both are there when the payments come.
    let frozen = processes.freeze("reservation-worker");
    let end = shapes::time(&holds[1].1["hold_expires_at"]);
    at(end + TimeDelta::milliseconds(100)).await;
    let in_time = (shapes::time(&holds[0].1["hold_expires_at"]) - TimeDelta::seconds(1)).timestamp_millis().to_string();
    let (writer, mut results) = (Writer::new(), Reader::at_the_end_of(&[RESULTS]));
    for (buyer, held, status) in &holds {
        let request_id = uuid::Uuid::new_v4().to_string();
        let value = json!({"type": "payment.pay", "version": 1, "request_id": request_id, "user_id": buyer.user_id,
            "reservation_id": held["reservation_id"]});
        let mut headers = OwnedHeaders::new();
        if *status == "SUCCEEDED" {
            headers = headers.insert(Header { key: "boxoffice-first-append-ms", value: Some(&in_time) });
        }
        let (key, value) = (buyer.user_id.as_bytes(), value.to_string().into_bytes());
        writer.append_record(PAYMENTS, Some(key), Some(&value), headers).await;
        let told = results.outcome(&request_id).await.json();
        assert_eq!(told["status"], *status, "{told}");
    }
    drop(frozen);
    workers_are_ready(&api).await;
    assert_eq!((redriven.balance().await, late.balance().await), (0, PRICE));
}
