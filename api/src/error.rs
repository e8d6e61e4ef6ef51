//! The one error of the api, and how it becomes a problem document (RFC 9457).
//!
//! A handler's error does not know the path that it is about. So an error becomes a response that carries a [`Refusal`], and
//! [`crate::edge`], which knows the path, writes the document.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::database::{self, ErrorClass};
use common::ids::{ConcertId, RequestId, UserId};
use common::problems::{Problem, Slug};
use serde_json::{Value, json};

use crate::fresh::ReadError;

/// When to come again after 503 and 429, unless it is known better, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a handler does not answer as hoped.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The caller is told a problem.
    Refused(Box<Refusal>),
    /// The database did not do what it was asked.
    Database(sqlx::Error),
    /// No failure: this is the answer already, as for a repeat of a known `Idempotency-Key`.
    Answered(Box<Response>),
}

/// A problem with what belongs in the headers of its response.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The problem.
    pub(crate) problem: Problem,
    /// The request that it is about, if there is one.
    pub(crate) request_id: Option<RequestId>,
    /// `Retry-After`, in seconds.
    pub(crate) retry_after_seconds: Option<u64>,
    /// `Location` of a 302.
    pub(crate) location: Option<String>,
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Database(error) => Self::Database(error),
            // The one that failed has told it in the log.
            ReadError::JustFailed => Self::unavailable("The database does not answer. Try again in a moment."),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self::Refused(Box::new(Refusal { problem, request_id: None, retry_after_seconds: None, location: None }))
    }
}

impl From<Response> for ApiError {
    fn from(response: Response) -> Self {
        Self::Answered(Box::new(response))
    }
}

impl ApiError {
    /// A problem without further members. `detail` says what to do next.
    pub(crate) fn new(slug: Slug, detail: impl Into<String>) -> Self {
        Problem::new(slug, detail).into()
    }

    /// 503: what is needed does not answer.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Slug::Unavailable, detail)
    }

    /// 404 for a concert.
    pub(crate) fn concert_not_found(concert: ConcertId) -> Self {
        Self::new(Slug::ConcertNotFound, format!("There is no concert {concert}; GET /v1/concerts lists them."))
    }

    /// 302 to where a new queue token is made.
    pub(crate) fn queue_token_ended(concert: ConcertId) -> Self {
        let join = format!("/v1/concerts/{concert}/queue-tokens");
        let detail =
            format!("This queue token expired, was completed by a payment, or was left. POST {join} for another.");
        Self::new(Slug::QueueTokenExpired, detail).at(join)
    }

    /// 403 for who is still in line.
    pub(crate) fn queue_token_waiting(position: i64, poll_after_seconds: i64) -> Self {
        let detail = "The buyer is still in line. Poll GET /v1/queue-token until it says ACTIVE.";
        Self::from(Problem::new(Slug::QueueTokenWaiting, detail).with("position", position))
            .retry_after(u64::try_from(poll_after_seconds).unwrap_or(RETRY_AFTER_SECONDS))
    }

    /// 409: nobody comes in any more.
    pub(crate) fn queue_closed() -> Self {
        Self::new(Slug::QueueClosed, "The queue of this concert is closed. What is held can still be paid.")
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.retry_after_seconds = Some(seconds);
        }
        self
    }

    /// Names the request that it is about.
    #[must_use]
    pub(crate) fn about(mut self, request: RequestId) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.request_id = Some(request);
        }
        self
    }

    fn at(mut self, location: String) -> Self {
        if let Self::Refused(refusal) = &mut self {
            refusal.location = Some(location);
        }
        self
    }
}

/// Tells the log what the database did not do.
pub(crate) fn log_database_error(error: &sqlx::Error) {
    match database::classify(error) {
        ErrorClass::Transient => tracing::warn!(%error, "the database does not answer a request"),
        ErrorClass::Data | ErrorClass::Fatal => tracing::error!(%error, "the database refuses a statement"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refusal = match self {
            Self::Answered(response) => return *response,
            Self::Refused(refusal) => *refusal,
            Self::Database(error) => {
                log_database_error(&error);
                match Self::unavailable("The database does not answer. Try again in a moment.") {
                    Self::Refused(refusal) => *refusal,
                    Self::Answered(_) | Self::Database(_) => unreachable!("`unavailable` is a refusal"),
                }
            }
        };
        refusal.into_response()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = StatusCode::from_u16(self.problem.slug.status()).expect("slugs have real statuses");
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

impl Refusal {
    /// Writes the document about `instance` (a path without its query) and the headers that belong to it into `response`.
    pub(crate) fn write(&self, response: &mut Response, instance: &str) {
        let document = self.problem.document(instance, self.request_id);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(challenge) = challenge(self.problem.slug) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.problem.slug == Slug::BodyTooLarge {
            // The rest of the body may still be on its way, so nothing else can come on this connection.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let comes_back = matches!(self.problem.slug.status(), 429 | 503);
        if let Some(seconds) = self.retry_after_seconds.or(comes_back.then_some(RETRY_AFTER_SECONDS)) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(location) = self.location.as_ref().and_then(|path| HeaderValue::from_str(path).ok()) {
            headers.insert(header::LOCATION, location);
        }
        *response.body_mut() = document.to_string().into();
    }
}

fn challenge(slug: Slug) -> Option<&'static str> {
    match slug {
        Slug::AccessTokenMissing => Some(r#"Bearer realm="boxoffice""#),
        Slug::AccessTokenInvalid => Some(r#"Bearer realm="boxoffice", error="invalid_token""#),
        Slug::QueueTokenMissing => Some(r#"Queue-Token realm="boxoffice""#),
        Slug::QueueTokenInvalid => Some(r#"Queue-Token realm="boxoffice", error="invalid_token""#),
        _ => None,
    }
}

/// What is of the wrong form, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    at: Place,
    detail: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Pointer(String),
    Parameter(String),
    Header(&'static str),
}

/// A part of a request, or what is wrong with it.
pub(crate) type Checked<T> = Result<T, Vec<Fault>>;

impl Fault {
    /// In the body, at a JSON pointer.
    pub(crate) fn pointer(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { at: Place::Pointer(pointer.into()), detail: detail.into() }
    }

    /// In a query parameter or a part of the path.
    pub(crate) fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { at: Place::Parameter(name.into()), detail: detail.into() }
    }

    /// In a header.
    pub(crate) fn header(name: &'static str, detail: impl Into<String>) -> Self {
        Self { at: Place::Header(name), detail: detail.into() }
    }

    fn entry(&self) -> Value {
        match &self.at {
            Place::Pointer(pointer) => json!({ "pointer": pointer, "detail": self.detail }),
            Place::Parameter(name) => json!({ "parameter": name, "detail": self.detail }),
            Place::Header(name) => json!({ "header": name, "detail": self.detail }),
        }
    }

    fn place(&self) -> String {
        match &self.at {
            Place::Pointer(pointer) if pointer.is_empty() => "the body".to_owned(),
            Place::Pointer(pointer) => format!("the body at {pointer}"),
            Place::Parameter(name) => format!("the parameter {name}"),
            Place::Header(name) => format!("the header {name}"),
        }
    }
}

/// 400 `invalid-parameter` for what is of the wrong form.
impl From<Vec<Fault>> for ApiError {
    fn from(faults: Vec<Fault>) -> Self {
        problem_of(Slug::InvalidParameter, &faults).into()
    }
}

/// 422 `invalid-request` for what is of the right form and makes no sense.
pub(crate) fn invalid_request(faults: &[Fault]) -> ApiError {
    problem_of(Slug::InvalidRequest, faults).into()
}

/// Asks that nothing makes no sense.
///
/// # Errors
/// 422 `invalid-request`
pub(crate) fn sensible(faults: &[Fault]) -> Result<(), ApiError> {
    if faults.is_empty() { Ok(()) } else { Err(invalid_request(faults)) }
}

fn problem_of(slug: Slug, faults: &[Fault]) -> Problem {
    let sentences: Vec<String> =
        faults.iter().map(|fault| format!("In {}: {}.", fault.place(), fault.detail)).collect();
    let errors: Vec<Value> = faults.iter().map(Fault::entry).collect();
    Problem::new(slug, sentences.join(" ")).with("errors", errors)
}

/// Both parts, or what is wrong with either.
pub(crate) fn both<A, B>(a: Checked<A>, b: Checked<B>) -> Checked<(A, B)> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(mut faults), Err(more)) => {
            faults.extend(more);
            Err(faults)
        }
        (Err(faults), Ok(_)) | (Ok(_), Err(faults)) => Err(faults),
    }
}

/// The problem of a path that belongs to somebody who is not there.
pub(crate) fn user_not_found(user: UserId) -> ApiError {
    ApiError::new(Slug::UserNotFound, format!("There is no user {user}."))
}
