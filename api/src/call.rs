//! One call, as every handler gets it: who calls is asked, and the parts are parsed, in the contract's order of errors.
//!
//! Extracting a [`Call`] reads the body (413, 415). Then a handler asks, in this order: [`Call::buyer`] (401), a rate limit (429),
//! [`Call::body`] (a body that does not parse), [`crate::publish::begin`] (a known `Idempotency-Key`), the queue token (401, 403), the
//! parts (400), their sense (422), what they are about (404), and the state of the queue token.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use common::ids::{ConcertId, ScheduleId, UserId};
use common::problems::Slug;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::auth::access;
use crate::body::{self, Parsed};
use crate::error::{ApiError, Checked, Fault};
use crate::params::Query;
use crate::state::App;

/// A request whose body has arrived.
pub(crate) struct Call {
    /// The api's state.
    pub(crate) app: Arc<App>,
    parts: Parts,
    path_id: Checked<Option<String>>,
    body: Bytes,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let bytes = read_body(&parts, body, app).await?;
        let path_id = read_path_id(&mut parts, app).await;
        Ok(Self { app: app.clone(), parts, path_id, body: bytes })
    }
}

async fn read_path_id(parts: &mut Parts, app: &Arc<App>) -> Checked<Option<String>> {
    match RawPathParams::from_request_parts(parts, app).await {
        Ok(params) => Ok(params.iter().next().map(|(_, value)| value.to_owned())),
        Err(_) => Err(vec![Fault::parameter("id", "it is no UTF-8 text")]),
    }
}

async fn read_body(parts: &Parts, body: Body, app: &App) -> Result<Bytes, ApiError> {
    let bounds = &app.bounds;
    if matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(Bytes::new());
    }
    // Only who has the operators' key may send as much as an operator.
    let is_operator = parts.uri.path().starts_with("/v1/admin/") && access::operator(app, &parts.headers).is_ok();
    let bytes_max = if is_operator { bounds.admin_body_bytes_max } else { bounds.body_bytes_max };
    let too_large = || ApiError::new(Slug::BodyTooLarge, format!("The body may have {bytes_max} bytes."));
    // Known before a byte of it is read, which a client with `Expect: 100-continue` waits for.
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let collected = Limited::new(body, bytes_max).collect();
    let bytes = match tokio::time::timeout(Duration::from_secs(bounds.body_seconds_max), collected).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(too_large());
        }
        Ok(Err(_)) => return Err(ApiError::new(Slug::MalformedBody, "The body did not arrive as a whole.")),
        Err(_) => {
            let seconds = bounds.body_seconds_max;
            return Err(ApiError::new(Slug::MalformedBody, format!("The body did not arrive within {seconds} s.")));
        }
    };
    if !bytes.is_empty() && !is_json(&parts.headers) {
        return Err(ApiError::new(Slug::UnsupportedMediaType, "Send the body with Content-Type: application/json."));
    }
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let mut parts = value.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    media.eq_ignore_ascii_case("application/json")
        && parts.all(|parameter| match parameter.split_once('=') {
            Some((name, charset)) if name.trim().eq_ignore_ascii_case("charset") => {
                charset.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            }
            _ => true,
        })
}

impl Call {
    /// The headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The method.
    pub(crate) fn method(&self) -> &Method {
        &self.parts.method
    }

    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// Something that the server or a layer left in the request, such as the caller's address.
    pub(crate) fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.parts.extensions.get::<T>().cloned()
    }

    /// The buyer who calls.
    ///
    /// # Errors
    /// 401 `access-token-missing`, `access-token-invalid`; 503 if a buyer who is new here cannot be written down.
    pub(crate) async fn buyer(&self) -> Result<UserId, ApiError> {
        access::buyer(&self.app, self.headers()).await
    }

    /// Asks that the caller is an operator.
    ///
    /// # Errors
    /// 404 if there is no admin API, 401 for a missing or wrong key.
    pub(crate) fn operator(&self) -> Result<(), ApiError> {
        access::operator(&self.app, self.headers())
    }

    /// The body, which must be a JSON object.
    ///
    /// # Errors
    /// 400 `malformed-body`: it is not JSON. What is JSON of the wrong form is told later, by [`Parsed::checked`].
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<Parsed<T>, ApiError> {
        body::parse(&self.body)
    }

    /// The body of a call that needs none: nothing, or a JSON object.
    ///
    /// # Errors
    /// 400 `malformed-body`
    pub(crate) fn optional_body<T: DeserializeOwned>(&self) -> Result<Parsed<T>, ApiError> {
        if self.body.is_empty() { body::parse(b"{}") } else { self.body() }
    }

    /// The query's parameters, of which `allowed` are known here.
    pub(crate) fn query(&self, allowed: &[&'static str]) -> Checked<Query> {
        Query::read(self.parts.uri.query(), allowed)
    }

    /// The query as it was sent.
    pub(crate) fn query_text(&self) -> Option<&str> {
        self.parts.uri.query()
    }

    /// For a call without query parameters.
    pub(crate) fn no_query(&self) -> Checked<()> {
        if self.parts.uri.query().is_none() { Ok(()) } else { self.query(&[]).map(|_| ()) }
    }

    /// The concert in the path.
    pub(crate) fn concert_id(&self) -> Checked<ConcertId> {
        self.path_number().map(ConcertId)
    }

    /// The schedule in the path.
    pub(crate) fn schedule_id(&self) -> Checked<ScheduleId> {
        self.path_number().map(ScheduleId)
    }

    /// The UUID in the path.
    pub(crate) fn path_uuid(&self) -> Checked<Uuid> {
        let text = self.path_id.clone()?.unwrap_or_default();
        Uuid::try_parse(&text).map_err(|_| vec![Fault::parameter("id", "it is no UUID")])
    }

    fn path_number(&self) -> Checked<i64> {
        let text = self.path_id.clone()?.unwrap_or_default();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<i64>() {
            Ok(id) if digits && id > 0 => Ok(id),
            _ => Err(vec![Fault::parameter("id", "it is no positive 63-bit integer")]),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn json_is_told_by_its_media_type() {
        let is = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            is_json(&headers)
        };
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert!(is(good), "{good}");
        }
        for bad in [
            "text/plain",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin1",
            "",
        ] {
            assert!(!is(bad), "{bad}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
