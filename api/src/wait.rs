//! `Prefer: wait=N`, and the answers of requests through the log: the final one, or 202.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use common::ids::{RequestId, UserId};
use common::messages::results::{RequestResult, RequestStatus};
use serde_json::value::RawValue;

use crate::outcomes::Waiter;
use crate::state::App;

/// The longest that a caller may wait.
const WAIT_SECONDS_MAX: u8 = 30;
/// The last look into the database may take this long.
const LAST_LOOK_MAX: Duration = Duration::from_millis(500);
const RETRY_AFTER_SECONDS: u64 = 1;

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// What is said of each wait that is honoured, by its seconds.
static APPLIED: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let said = |seconds| HeaderValue::try_from(format!("wait={seconds}")).expect("digits are visible ASCII");
    (0..=WAIT_SECONDS_MAX).map(said).collect()
});

/// How long the caller wants to wait, in seconds, as it is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait(u8);

impl Wait {
    /// What `Prefer` asks for: the first `wait` with a whole number of seconds counts, all else is ignored.
    pub(crate) fn asked(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).find_map(preference)
    }

    fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

/// `wait=N`, whatever parameters follow it.
fn preference(text: &str) -> Option<Wait> {
    let (name, value) = text.split(';').next()?.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("wait") {
        return None;
    }
    let value = value.trim();
    let digits = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = digits.parse::<u64>().unwrap_or(u64::MAX).min(WAIT_SECONDS_MAX.into());
    u8::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Wait)
}

/// Waits for an outcome until the caller's time is over, or the process stops; then asks the database once.
pub(crate) async fn for_outcome(
    app: &App,
    mut waiter: Waiter,
    request: RequestId,
    wait: Wait,
) -> Option<Arc<RequestResult>> {
    if let Ok(Some(result)) = tokio::time::timeout(wait.duration(), waiter.outcome()).await {
        return Some(result);
    }
    match tokio::time::timeout(LAST_LOOK_MAX, Box::pin(app.written_outcome(request))).await {
        Ok(Ok(Some(result))) => Some(result),
        // It may have come meanwhile, and then nobody else remembers it.
        Ok(Ok(None) | Err(_)) | Err(_) => waiter.told(),
    }
}

/// The answer that a request ended with.
pub(crate) fn final_answer(result: Arc<RequestResult>, wait: Option<Wait>) -> Response {
    let status = StatusCode::from_u16(result.http_status).unwrap_or(StatusCode::OK);
    let media = match result.status {
        RequestStatus::Succeeded => "application/json",
        RequestStatus::Failed => "application/problem+json",
    };
    // Who waited alone mostly has it alone by now.
    let body = match Arc::try_unwrap(result) {
        Ok(own) => own.into_body(),
        Err(shared) => shared.body().map(RawValue::to_owned),
    };
    let body = body.map_or(String::new(), |body| Box::<str>::from(body).into());
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    applied(response.headers_mut(), wait);
    response
}

/// 202: the broker has the request, nobody has answered it yet.
pub(crate) fn accepted(request: RequestId, caller: Option<UserId>, wait: Option<Wait>) -> Response {
    let location = match caller {
        Some(_) => format!("/v1/requests/{request}"),
        None => format!("/v1/admin/requests/{request}"),
    };
    let mut response = Response::new(format!(r#"{{"request_id":"{request}","status":"PENDING"}}"#).into());
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::LOCATION, HeaderValue::from_str(&location).expect("a path with a UUID is visible ASCII"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    applied(headers, wait);
    response
}

/// Says that the wait was honoured.
pub(crate) fn applied(headers: &mut HeaderMap, wait: Option<Wait>) {
    if let Some(Wait(seconds)) = wait {
        headers.insert(PREFERENCE_APPLIED, APPLIED[usize::from(seconds)].clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&'static str]) -> Option<u8> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        Wait::asked(&headers).map(|Wait(seconds)| seconds)
    }

    #[test]
    fn a_wait_of_1_to_30_seconds_is_honoured_and_more_is_30() {
        assert_eq!(asked(&["wait=1"]), Some(1));
        assert_eq!(asked(&["wait=30"]), Some(30));
        assert_eq!(asked(&["wait=31"]), Some(30));
        assert_eq!(asked(&["wait=99999999999999999999999"]), Some(30));
    }

    #[test]
    fn it_is_found_among_other_preferences() {
        assert_eq!(asked(&["respond-async, wait=5"]), Some(5));
        assert_eq!(asked(&["return=minimal", "Wait = \"7\"; foo=bar"]), Some(7));
        assert_eq!(asked(&["wait=x, wait=3"]), Some(3));
        assert_eq!(asked(&["wait=4, wait=3"]), Some(4));
    }

    #[test]
    fn anything_else_is_ignored() {
        for value in
            ["wait", "wait=", "wait=0", "wait=-1", "wait=1.5", "wait=ten", "waits=5", "", "wait=+5", "respond-async"]
        {
            assert_eq!(asked(&[value]), None, "{value}");
        }
        assert_eq!(asked(&[]), None);
    }
}
