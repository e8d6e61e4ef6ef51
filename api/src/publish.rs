//! Requests through the log: their ids, the `Idempotency-Key`, the record, and the answer once the broker has it.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use chrono::Utc;
use common::ids::{RequestId, UserId};
use common::kafka::delivery::Delivery;
use common::kafka::headers;
use common::kafka::producer::{OutRecord, ProduceError};
use common::messages::results::RequestResult;
use common::messages::{self, Message};
use common::problems::Slug;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::body::Parsed;
use crate::call::Call;
use crate::error::{ApiError, Checked, Fault, both};
use crate::outcomes::{Known, Pending, Watch};
use crate::state::App;
use crate::wait::{self, Wait};

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// Bytes of the SHA-256 that tell a repeat from the reuse of a key.
const HASH_BYTES: usize = 16;
/// How long the database may take to tell whether a key is known; after that the worker tells.
const LOOK_MAX: Duration = Duration::from_secs(1);
const SOURCE: &str = "/boxoffice/api";

/// A request that may be published.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// Its id: fresh, or derived from the `Idempotency-Key`.
    pub(crate) request_id: RequestId,
    /// Hash of call and request, when there is an `Idempotency-Key`.
    pub(crate) request_hash: Option<String>,
    caller: Option<UserId>,
    wait: Option<Wait>,
    key_fault: Option<Fault>,
}

impl Ticket {
    /// The parts of the request, or all that is wrong with its form: theirs, the `Idempotency-Key`'s, the query's (these calls
    /// take no parameters).
    ///
    /// # Errors
    /// 400 `invalid-parameter`
    pub(crate) fn form<T>(&self, call: &Call, parts: Checked<T>) -> Result<T, ApiError> {
        let key = self.key_fault.clone().map_or(Ok(()), |fault| Err(vec![fault]));
        let (parts, _) = both(parts, both(call.no_query(), key))?;
        Ok(parts)
    }
}

/// Gives the request its id, or the answer that its `Idempotency-Key` has already ([`ApiError::Answered`]).
///
/// # Errors
/// 422 `idempotency-key-reused`
pub(crate) async fn begin<T: Serialize>(
    call: &Call,
    caller: Option<UserId>,
    body: &Parsed<T>,
) -> Result<Ticket, ApiError> {
    begin_about(call, caller, call.path(), body).await
}

/// The same for a request that is about something its path does not name: `subject` tells it from others, as a path would.
///
/// # Errors
/// 422 `idempotency-key-reused`
pub(crate) async fn begin_about<T: Serialize>(
    call: &Call,
    caller: Option<UserId>,
    subject: &str,
    body: &Parsed<T>,
) -> Result<Ticket, ApiError> {
    let wait = Wait::asked(call.headers());
    let app = &call.app;
    let (key, key_fault) = match idempotency_key(call.headers()) {
        Ok(key) => (key, None),
        Err(fault) => (None, Some(fault)),
    };
    let Some(key) = key else {
        let request_id = app.request_ids.fresh(caller);
        return Ok(Ticket { request_id, request_hash: None, caller, wait, key_fault });
    };
    let request_id = app.request_ids.derived(caller, key);
    let request_hash = Some(request_hash(call.method().as_str(), subject, &body.canonical()));
    let ticket = Ticket { request_id, request_hash, caller, wait, key_fault };
    match known_answer(app, &ticket).await? {
        Some(answer) => Err(answer.into()),
        None => Ok(ticket),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    if values.next().is_some() || key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX || !visible {
        return Err(Fault::header(IDEMPOTENCY_KEY, "it is one value of 1 to 255 visible ASCII characters"));
    }
    Ok(Some(key))
}

/// What tells a repeat from the reuse of a key for another call or request.
fn request_hash(method: &str, subject: &str, canonical_body: &str) -> String {
    let mut hash = Sha256::new();
    for part in [method, "\n", subject, "\n", canonical_body] {
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    digest[..HASH_BYTES].iter().fold(String::with_capacity(2 * HASH_BYTES), |mut text, byte| {
        for nibble in [byte >> 4, byte & 0xF] {
            text.push(char::from_digit(nibble.into(), 16).expect("a nibble is a hexadecimal digit"));
        }
        text
    })
}

/// The answer of an earlier request with this key: here, or in the database. While that is down the worker tells a repeat.
async fn known_answer(app: &App, ticket: &Ticket) -> Result<Option<Response>, ApiError> {
    match app.outcomes.known(ticket.request_id) {
        Some(Known::Finished(result)) => return outcome(result, ticket).map(Some),
        Some(Known::Pending(pending)) => {
            same_request(pending.request_hash.as_deref(), ticket)?;
            if !is_soon_told(app, &pending)
                && let Ok(Ok(Some(result))) = written(app, ticket).await
            {
                return outcome(result, ticket).map(Some);
            }
            return Box::pin(answer(app, ticket)).await.map(Some);
        }
        None => {}
    }
    match written(app, ticket).await {
        Ok(Ok(Some(result))) => outcome(result, ticket).map(Some),
        Ok(Ok(None) | Err(_)) | Err(_) => Ok(None),
    }
}

/// The outcome that the database has, if it says so in time.
async fn written(
    app: &App,
    ticket: &Ticket,
) -> Result<Result<Option<Arc<RequestResult>>, ApiError>, tokio::time::error::Elapsed> {
    tokio::time::timeout(LOOK_MAX, Box::pin(app.written_outcome(ticket.request_id))).await
}

/// The answer to a request that the broker has: its outcome, if the caller waits and it comes in time, else 202.
async fn answer(app: &App, ticket: &Ticket) -> Result<Response, ApiError> {
    if let Some(wait) = ticket.wait {
        let result = match app.outcomes.watch(ticket.request_id) {
            Watch::Finished(result) => Some(result),
            Watch::Waiting(waiter) => wait::for_outcome(app, waiter, ticket.request_id, wait).await,
        };
        if let Some(result) = result {
            return outcome(result, ticket);
        }
    }
    Ok(wait::accepted(ticket.request_id, ticket.caller, ticket.wait))
}

fn outcome(result: Arc<RequestResult>, ticket: &Ticket) -> Result<Response, ApiError> {
    same_request(result.request_hash.as_deref(), ticket)?;
    Ok(wait::final_answer(result, ticket.wait))
}

fn same_request(known_hash: Option<&str>, ticket: &Ticket) -> Result<(), ApiError> {
    match (known_hash, ticket.request_hash.as_deref()) {
        (Some(known), Some(own)) if known != own => {
            let detail =
                "This Idempotency-Key was used for another call or another body. Use a new key for a new request.";
            Err(ApiError::new(Slug::IdempotencyKeyReused, detail).about(ticket.request_id))
        }
        _ => Ok(()),
    }
}

/// Publishes the request, and answers once the broker has it, or once it has ended if the caller waits. The record is on its way when this
/// returns; only the waiting is in the future. Who waits keeps little meanwhile: what the call and the message have on the heap is dropped
/// while it is still in the processor's cache, and the next one takes its memory.
///
/// # Errors
/// 503 `overloaded`, `unavailable`: nothing was published. 504 `delivery-unknown`. 422 `idempotency-key-reused`, when the
/// outcome is another request's.
pub(crate) fn submit<M: Message>(
    call: Call,
    ticket: Ticket,
    message: M,
) -> impl Future<Output = Result<Response, ApiError>> {
    let sent = send(&call, &ticket, &message);
    drop(message);
    let app = call.app;
    async move {
        let Sent { watch, delivery } = sent?;
        let failed = |error| delivery_failed::<M>(&app, error, ticket.request_id);
        let accepted = async || {
            delivery.acknowledged().await.map_err(failed)?;
            app.outcomes.accepted(ticket.request_id, pending::<M>(&ticket));
            Ok::<(), ApiError>(())
        };
        let result = match watch {
            None => None,
            Some((_, Watch::Finished(result))) => Some(result),
            Some((wait, Watch::Waiting(waiter))) => {
                if ticket.request_hash.is_some() {
                    // A repeat finds the first one.
                    accepted().await?;
                }
                tokio::select! {
                    // An outcome says more than a failure to hear of the acknowledgement.
                    biased;
                    result = wait::for_outcome(&app, waiter, ticket.request_id, wait) => result,
                    error = delivery.failed() => return Err(failed(error)),
                }
            }
        };
        if let Some(result) = result {
            return outcome(result, &ticket);
        }
        accepted().await?;
        Ok(wait::accepted(ticket.request_id, ticket.caller, ticket.wait))
    }
}

/// A record on its way, and what its caller waits for.
struct Sent {
    watch: Option<(Wait, Watch)>,
    delivery: Delivery,
}

fn send<M: Message>(call: &Call, ticket: &Ticket, message: &M) -> Result<Sent, ApiError> {
    let app = &call.app;
    if !app.kafka.is_up() {
        return Err(ApiError::unavailable(
            "The message broker does not answer; nothing was accepted. Try again in a moment.",
        ));
    }
    // Before the record is out, so that the outcome cannot come before the waiter.
    let watch = ticket.wait.map(|wait| (wait, app.outcomes.watch(ticket.request_id)));
    let delivery = append(app, message, ticket.request_id, &traceparent(call.headers(), ticket.request_id))?;
    Ok(Sent { watch, delivery })
}

fn pending<M: Message>(ticket: &Ticket) -> Pending {
    Pending {
        user_id: ticket.caller,
        kind: M::TYPE,
        request_hash: ticket.request_hash.clone(),
        submitted_at: Utc::now(),
    }
}

/// Hands the record to the producer.
fn append<M: Message>(app: &App, message: &M, request: RequestId, trace: &str) -> Result<Delivery, ApiError> {
    let (key, value) = (message.key(), messages::write(message));
    let record = OutRecord {
        topic: M::TOPIC,
        partition: None,
        key: Some(key.as_bytes()),
        value: Some(&value),
        headers: headers::cloud_event(M::TYPE, request.0, SOURCE, Some(trace)),
    };
    app.producer.send(record, app.outcomes.waiting()).map_err(|error| delivery_failed::<M>(app, error, request))
}

fn delivery_failed<M: Message>(app: &App, error: ProduceError, request: RequestId) -> ApiError {
    match error {
        ProduceError::QueueFull => {
            metrics::counter!("api_shed_total").increment(1);
            ApiError::new(
                Slug::Overloaded,
                "The message broker is behind; nothing was accepted. Try again in a moment.",
            )
        }
        ProduceError::Refused(error) => {
            tracing::error!(%error, topic = M::TOPIC, "the broker refuses a record");
            ApiError::unavailable("The message broker refused the request; nothing was accepted.")
        }
        ProduceError::Unknown(error) => {
            app.kafka.suspect();
            tracing::warn!(%error, topic = M::TOPIC, "the broker has not acknowledged a record in time");
            let detail = "The request may or may not have been accepted. Repeat it with the same Idempotency-Key.";
            ApiError::new(Slug::DeliveryUnknown, detail).about(request)
        }
    }
}

/// The caller's trace context, or a new one that is named after the request.
fn traceparent(headers: &HeaderMap, request: RequestId) -> String {
    let sent = headers.get(headers::TRACEPARENT).and_then(|value| value.to_str().ok());
    if let Some(value) = sent.filter(|value| is_traceparent(value)) {
        return value.to_owned();
    }
    let mut buffer = Uuid::encode_buffer();
    let trace: &str = request.0.simple().encode_lower(&mut buffer);
    // The span's id must not be 0; the variant bits of the second half never are.
    ["00-", trace, "-", &trace[16..], "-01"].concat()
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, neither id all zeros.
fn is_traceparent(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return false };
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span)
}

/// The outcome of a request, for who asks by its id and waits for it if it `may_be_pending`.
///
/// # Errors
/// 503 if nothing is known of it here and the database does not answer.
pub(crate) async fn look_up(
    app: &App,
    request: RequestId,
    wait: Option<Wait>,
    may_be_pending: bool,
) -> Result<Option<Arc<RequestResult>>, ApiError> {
    let waiter = match app.outcomes.watch(request) {
        Watch::Finished(result) => return Ok(Some(result)),
        Watch::Waiting(waiter) => waiter,
    };
    let pending = match app.outcomes.known(request) {
        Some(Known::Pending(pending)) => Some(pending),
        Some(Known::Finished(_)) | None => None,
    };
    if !pending.as_ref().is_some_and(|pending| is_soon_told(app, pending)) {
        match app.written_outcome(request).await {
            Ok(Some(result)) => return Ok(Some(result)),
            Err(error) if pending.is_none() => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    match wait.filter(|_| may_be_pending) {
        Some(wait) => Ok(wait::for_outcome(app, waiter, request, wait).await),
        None => Ok(waiter.told()),
    }
}

/// Whether a missing outcome is no reason to ask the database: the results reader would have told that of a request that was accepted here a
/// moment ago.
fn is_soon_told(app: &App, pending: &Pending) -> bool {
    app.kafka.is_up() && Utc::now() - pending.submitted_at < chrono::TimeDelta::seconds(2)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn key(value: &[u8]) -> Result<Option<String>, Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        idempotency_key(&headers).map(|key| key.map(str::to_owned))
    }

    #[test]
    fn a_key_is_1_to_255_visible_ascii_characters() {
        assert_eq!(key(b"a").unwrap().unwrap(), "a");
        assert!(key(&[b'~'; 255]).is_ok());
        for bad in [&b""[..], &[b'a'; 256], b"a b", b"caf\xc3\xa9", b"a\tb"] {
            assert!(key(bad).is_err(), "{bad:?}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn the_hash_tells_calls_and_bodies_apart() {
        let hash = request_hash("POST", "/v1/payments", "{}");
        assert_eq!(hash.len(), 32);
        assert_eq!(hash, request_hash("POST", "/v1/payments", "{}"));
        assert_ne!(hash, request_hash("DELETE", "/v1/payments", "{}"));
        assert_ne!(hash, request_hash("POST", "/v1/payments/x", "{}"));
        assert_ne!(hash, request_hash("POST", "/v1/payments", r#"{"a":1}"#));
    }

    #[test]
    fn the_callers_trace_goes_on_and_a_broken_one_is_replaced() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_static(value));
            traceparent(&headers, RequestId(Uuid::from_u128(0x1234_5678_0000_8000_8000_0000_0000_0001)))
        };
        assert_eq!(trace(good), good);
        for bad in [
            "",
            "00-xyz",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            let made = trace(bad);
            assert_eq!(made, "00-12345678000080008000000000000001-8000000000000001-01");
            assert!(is_traceparent(&made));
        }
    }
}
