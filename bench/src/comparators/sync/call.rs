//! One call: its parts, who makes it, and how its answer is written.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use common::ids::UserId;
use common::problems::{Problem, Slug};
use serde::de::DeserializeOwned;

use super::App;
use super::outcomes::Asked;

/// The largest body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How a body is compressed, for who takes that.
pub(super) const GZIP: &str = "gzip";
/// How often a transaction that was rolled back is tried again.
const TRIES_MAX: u32 = 10;

/// A request whose body has arrived.
pub(super) struct Call {
    parts: Parts,
    body: Bytes,
}

impl<S: Sync> FromRequest<S> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        if let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await {
            return Ok(Self { parts, body });
        }
        let problem = Problem::new(Slug::BodyTooLarge, "The body is too large, or did not arrive as a whole.");
        Err(Refusal::from(problem).into_response(parts.uri.path()))
    }
}

impl Call {
    /// The headers.
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The buyer, by their access token.
    pub(super) fn buyer(&self, app: &App) -> Result<UserId, Failure> {
        let Some(value) = self.headers().get(header::AUTHORIZATION) else {
            return Err(Problem::new(Slug::AccessTokenMissing, "Send Authorization: Bearer <access token>.").into());
        };
        let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        token.and_then(|token| app.access_tokens.verify(token).ok()).map(|claims| claims.sub).ok_or_else(|| {
            Problem::new(Slug::AccessTokenInvalid, "The access token is not ours, or its time is over.").into()
        })
    }

    /// The request, its id derived from its `Idempotency-Key`, if it has one.
    pub(super) fn asked(&self, app: &App, user_id: UserId, kind: &'static str) -> Asked {
        let key = self.headers().get("idempotency-key").and_then(|value| value.to_str().ok());
        let request_id = match key {
            Some(key) => app.request_ids.derived(Some(user_id), key),
            None => app.request_ids.fresh(Some(user_id)),
        };
        Asked { request_id, user_id, kind, may_be_repeat: key.is_some() }
    }

    /// The body.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let slug = if error.is_data() { Slug::InvalidParameter } else { Slug::MalformedBody };
            Problem::new(slug, format!("The body cannot be read: {error}.")).into()
        })
    }

    /// The number in `/v1/<words>/{id}/…`.
    pub(super) fn path_id(&self) -> Result<i64, Failure> {
        let id = self.parts.uri.path().split('/').nth(3).and_then(|text| text.parse().ok());
        id.filter(|id| *id > 0)
            .ok_or_else(|| Problem::new(Slug::InvalidParameter, "The id in the path is no positive number.").into())
    }

    /// A query parameter; the values that a benchmark sends need no decoding.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let pairs = self.parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The response.
    pub(super) fn answer(&self, result: Result<Answer, Failure>) -> Response {
        match result {
            Ok(answer) => answer.into_response(),
            Err(Failure::Refused(refusal)) => refusal.into_response(self.parts.uri.path()),
            Err(Failure::Database(error)) => {
                tracing::error!(%error, path = self.parts.uri.path(), "a request failed in the database");
                let problem = Problem::new(Slug::Unavailable, "The database does not answer. Try again in a moment.");
                Refusal::from(problem).into_response(self.parts.uri.path())
            }
        }
    }
}

/// What a call ends with.
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// JSON: what was asked for, or (from 400 on) a problem document.
    pub(super) body: Bytes,
    /// When to ask again, in seconds.
    pub(super) retry_after: Option<i64>,
    /// Whether the body is compressed.
    pub(super) gzip: bool,
}

impl Answer {
    /// An answer without further headers.
    pub(super) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), retry_after: None, gzip: false }
    }

    fn into_response(self) -> Response {
        let problem = self.status >= 300;
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        let headers = response.headers_mut();
        let media = if problem { "application/problem+json" } else { "application/json" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.gzip {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(GZIP));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Why a call does not end as hoped; nothing has changed.
pub(super) enum Failure {
    /// The caller is told a problem.
    Refused(Box<Refusal>),
    /// The database did not do what it was asked.
    Database(sqlx::Error),
}

/// A problem with what belongs in the headers of its response.
pub(super) struct Refusal {
    /// The problem.
    pub(super) problem: Problem,
    /// `Location` of a 302.
    pub(super) location: Option<String>,
    /// When to come again, in seconds.
    pub(super) retry_after: Option<i64>,
}

impl Refusal {
    fn into_response(self, instance: &str) -> Response {
        let body = self.problem.document(instance, None).to_string();
        let retry_after = self.retry_after.or((self.problem.slug.status() == 503).then_some(1));
        let mut response = Answer { retry_after, ..Answer::new(self.problem.slug.status(), body) }.into_response();
        if let Some(location) = self.location.and_then(|path| HeaderValue::from_str(&path).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, location: None, retry_after: None }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Refusal::from(problem).into()
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Counts how often one transaction was rolled back.
#[derive(Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Whether to try again: a deadlock or a lost race was the failure, and it was not the tenth. (Other transient errors, such as a
    /// lost connection at COMMIT, may have had their effect.)
    pub(super) fn again<T>(&mut self, result: &Result<T, Failure>) -> bool {
        self.0 += 1;
        let Err(Failure::Database(sqlx::Error::Database(error))) = result else { return false };
        let code = error.code().unwrap_or_default();
        let rolled_back =
            code.starts_with("40") || (code == "23505" && error.constraint() == Some("queue_tokens_live"));
        rolled_back && self.0 < TRIES_MAX
    }
}
