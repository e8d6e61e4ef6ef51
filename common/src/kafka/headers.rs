//! Headers: CloudEvents in binary mode and the W3C trace context on what we write, the first append time on what is redriven.

use chrono::{SecondsFormat, Utc};
use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};
use uuid::Uuid;

/// On a redriven record: when it was appended first, in milliseconds as text. It counts if it is earlier than the
/// record's own append time.
pub const FIRST_APPEND_MS: &str = "boxoffice-first-append-ms";
/// The W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// CloudEvents headers of a record of type `kind` about `id`, written by `source` (`/boxoffice/api`, …).
pub fn cloud_event(kind: &str, id: Uuid, source: &str, traceparent: Option<&str>) -> OwnedHeaders {
    let id = id.to_string();
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let headers = OwnedHeaders::new_with_capacity(7)
        .insert(text("ce_specversion", "1.0"))
        .insert(text("ce_id", &id))
        .insert(text("ce_source", source))
        .insert(text("ce_type", kind))
        .insert(text("ce_time", &time))
        .insert(text("content-type", "application/json"));
    match traceparent {
        Some(value) => headers.insert(text(TRACEPARENT, value)),
        None => headers,
    }
}

/// A header with a text value.
pub fn text<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

/// The value of the first header named `key`, as text.
pub fn find<'a>(headers: &'a BorrowedHeaders, key: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.key == key)?.value.and_then(|value| std::str::from_utf8(value).ok())
}
