//! Checkers of the shapes that the contract names. Each panics at its caller's line.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

/// Members of a token body.
pub const TOKEN: &str = "queue_token token_id concert_id status admitted position estimated_wait_seconds issued_at expires_at \
                         poll_after_seconds queue_state";
/// Members of a reservation.
pub const RESERVATION: &str =
    "reservation_id status schedule_id concert_id seats total currency hold_expires_at payment_required payment_id";
/// Members of a payment.
pub const PAYMENT: &str = "payment_id status amount balance currency reservation";
/// Members of a concert.
pub const CONCERT: &str = "concert_id title currency time_zone hold_seconds max_seats_per_buyer queue_state schedules_from \
                           schedules_to available_seats";
/// Members of a seat in a seat map.
pub const SEAT: &str = "seat_id section row number label price status";
/// Members of a ledger entry.
pub const ENTRY: &str = "entry_id kind amount balance_after reservation_id at";
/// Members of a queue.
pub const QUEUE: &str = "concert_id state rate_per_minute burst max_active active_seconds waiting active admitted_total joined_total \
                         oldest_wait_seconds admitted_per_minute";
/// Members of a request.
pub const REQUEST: &str = "request_id kind status submitted_at finished_at result problem";

/// Members of a request, as operators see it.
pub const ADMIN_REQUEST: &str =
    "request_id kind status submitted_at finished_at result problem user_id topic partition offset";

/// The object has these members, and no others.
#[track_caller]
pub fn has(body: &Value, members: &str) {
    let object = body.as_object().unwrap_or_else(|| panic!("an object, not {body}"));
    let mut wanted: Vec<&str> = members.split_whitespace().collect();
    let mut found: Vec<&str> = object.keys().map(String::as_str).collect();
    wanted.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, wanted, "members of {body}");
}

/// A UUID as text.
#[track_caller]
pub fn uuid(value: &Value) -> String {
    let text = value.as_str().unwrap_or_else(|| panic!("a UUID is a string, not {value}"));
    uuid::Uuid::parse_str(text).unwrap_or_else(|_| panic!("a UUID, not {text}"));
    text.to_owned()
}

/// An integer.
#[track_caller]
pub fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("an integer, not {value}"))
}

/// A string.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a string, not {value}"))
}

/// A list.
#[track_caller]
pub fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("a list, not {value}"))
}

/// A time, RFC 3339 in UTC.
#[track_caller]
pub fn time(value: &Value) -> DateTime<Utc> {
    let text = text(value);
    let time = DateTime::parse_from_rfc3339(text).unwrap_or_else(|_| panic!("an RFC 3339 time, not {text}"));
    assert_eq!(time.offset().local_minus_utc(), 0, "in UTC: {text}");
    time.to_utc()
}

/// A token body of this status.
#[track_caller]
pub fn token(body: &Value, status: &str) {
    has(body, TOKEN);
    uuid(&body["token_id"]);
    int(&body["concert_id"]);
    time(&body["issued_at"]);
    assert!(!text(&body["queue_token"]).is_empty());
    assert_eq!(body["status"], status, "{body}");
    assert!(matches!(text(&body["queue_state"]), "OPEN" | "PAUSED" | "DRAINING" | "CLOSED"), "{body}");
    if status == "ACTIVE" {
        assert_eq!((&body["admitted"], &body["position"]), (&true.into(), &0.into()), "{body}");
        assert_eq!(body["estimated_wait_seconds"], 0, "{body}");
        assert_eq!(body["poll_after_seconds"], Value::Null, "{body}");
        assert!(time(&body["expires_at"]) > Utc::now() - TimeDelta::seconds(2), "{body}");
    } else {
        assert_eq!((&body["admitted"], &body["expires_at"]), (&false.into(), &Value::Null), "{body}");
        assert!(int(&body["position"]) >= 1, "{body}");
        let wait = body["estimated_wait_seconds"].as_i64();
        assert_eq!(wait.is_none(), body["estimated_wait_seconds"].is_null(), "{body}");
        assert!(wait.is_none_or(|seconds| seconds >= 0), "{body}");
        let polls = if wait.is_some_and(|seconds| seconds <= 5) { 1..=2 } else { 4..=6 };
        assert!(polls.contains(&int(&body["poll_after_seconds"])), "{body}");
    }
}

/// A reservation of this status.
#[track_caller]
pub fn reservation(body: &Value, status: &str) {
    has(body, RESERVATION);
    uuid(&body["reservation_id"]);
    assert_eq!(body["status"], status, "{body}");
    int(&body["schedule_id"]);
    int(&body["concert_id"]);
    assert!(!list(&body["seats"]).is_empty(), "{body}");
    let prices = list(&body["seats"]).iter().map(|seat| {
        has(seat, "seat_id label price");
        int(&seat["seat_id"]);
        text(&seat["label"]);
        int(&seat["price"])
    });
    assert_eq!(int(&body["total"]), prices.sum::<i64>(), "{body}");
    assert_eq!(body["currency"], "KRW", "{body}");
    time(&body["hold_expires_at"]);
    assert_eq!(body["payment_required"], status == "HELD", "{body}");
    if matches!(status, "PAID" | "REFUNDED") {
        uuid(&body["payment_id"]);
    } else {
        assert_eq!(body["payment_id"], Value::Null, "{body}");
    }
}

/// A payment that SUCCEEDED or was REFUNDED.
#[track_caller]
pub fn payment(body: &Value, status: &str) {
    has(body, PAYMENT);
    uuid(&body["payment_id"]);
    assert_eq!(body["status"], status, "{body}");
    assert!(int(&body["amount"]) >= 0 && int(&body["balance"]) >= 0, "{body}");
    assert_eq!(body["currency"], "KRW", "{body}");
    reservation(&body["reservation"], if status == "REFUNDED" { "REFUNDED" } else { "PAID" });
    assert_eq!(body["amount"], body["reservation"]["total"], "{body}");
    assert_eq!(body["payment_id"], body["reservation"]["payment_id"], "{body}");
}

/// The seat ids of a reservation, sorted.
#[track_caller]
pub fn seat_ids(reservation: &Value) -> Vec<i64> {
    let mut ids: Vec<i64> = list(&reservation["seats"]).iter().map(|seat| int(&seat["seat_id"])).collect();
    ids.sort_unstable();
    ids
}

/// The last segment of a problem's `type`.
pub fn slug(problem: &Value) -> &str {
    problem["type"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default()
}

/// A problem document with this status and slug.
#[track_caller]
pub fn problem(body: &Value, status: u16, wanted: &str) {
    assert_eq!((int(&body["status"]), slug(body)), (i64::from(status), wanted), "{body}");
    assert_eq!(body["type"], format!("/problems/{wanted}"), "{body}");
    for member in ["title", "detail", "instance"] {
        assert!(!text(&body[member]).is_empty(), "{member} of {body}");
    }
    assert!(text(&body["instance"]).starts_with('/'), "{body}");
}
