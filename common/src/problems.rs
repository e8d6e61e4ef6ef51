//! The errors of the contract: one slug each, with its status and title, and the problem document (RFC 9457).

use serde_json::{Map, Value, json};

use crate::ids::RequestId;

macro_rules! slugs {
    ($($variant:ident $slug:literal $status:literal $title:literal;)*) => {
        /// Every kind of problem that a caller can meet.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Slug {
            $(#[doc = $title] $variant,)*
        }

        impl Slug {
            /// All of them, for the pages that explain them.
            pub const ALL: &[Slug] = &[$(Slug::$variant,)*];

            /// The last segment of the problem's `type`.
            pub fn as_str(self) -> &'static str {
                match self { $(Slug::$variant => $slug,)* }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Slug::$variant => $status,)* }
            }

            /// One line that is the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Slug::$variant => $title,)* }
            }
        }
    };
}

slugs! {
    MalformedBody "malformed-body" 400 "The body is not JSON";
    InvalidParameter "invalid-parameter" 400 "A part of the request has the wrong form";
    InvalidRequest "invalid-request" 422 "A part of the request is out of range or makes no sense";
    AmbiguousDate "ambiguous-date" 422 "The concert has several schedules on that date";
    IdempotencyKeyReused "idempotency-key-reused" 422 "The Idempotency-Key was used for another request";
    AccessTokenMissing "access-token-missing" 401 "An access token is needed";
    AccessTokenInvalid "access-token-invalid" 401 "The access token is not valid";
    QueueTokenMissing "queue-token-missing" 401 "A queue token is needed";
    QueueTokenInvalid "queue-token-invalid" 401 "The queue token is not valid";
    QueueTokenExpired "queue-token-expired" 302 "The queue token has ended";
    QueueTokenWaiting "queue-token-waiting" 403 "The queue token is not admitted yet";
    QueueTokenMismatch "queue-token-mismatch" 403 "The queue token is for another buyer or concert";
    InsufficientBalance "insufficient-balance" 402 "The balance is too low";
    ConcertNotFound "concert-not-found" 404 "There is no such concert";
    ScheduleNotFound "schedule-not-found" 404 "There is no such schedule";
    QueueTokenNotFound "queue-token-not-found" 404 "There is no live queue token";
    RequestNotFound "request-not-found" 404 "There is no such request";
    UserNotFound "user-not-found" 404 "There is no such user";
    SeatNotFound "seat-not-found" 404 "There is no such seat";
    ReservationNotFound "reservation-not-found" 404 "There is no such reservation";
    PaymentNotFound "payment-not-found" 404 "There is no such payment";
    NotFound "not-found" 404 "There is nothing at this path";
    MethodNotAllowed "method-not-allowed" 405 "The method is not allowed here";
    SeatUnavailable "seat-unavailable" 409 "A seat is held or sold";
    SoldOut "sold-out" 409 "There are not enough seats left";
    SalesEnded "sales-ended" 409 "The schedule has begun";
    QueueClosed "queue-closed" 409 "The queue is closed";
    ReservationLimitExceeded "reservation-limit-exceeded" 409 "One buyer may not have that many seats";
    ReservationExpired "reservation-expired" 409 "The hold has run out";
    ReservationCancelled "reservation-cancelled" 409 "The reservation was cancelled";
    AlreadyPaid "already-paid" 409 "The reservation is paid";
    NotRefundable "not-refundable" 409 "The payment cannot be refunded";
    ReservationOfAnotherBuyer "reservation-of-another-buyer" 403 "The reservation is another buyer's";
    BodyTooLarge "body-too-large" 413 "The body is too large";
    UnsupportedMediaType "unsupported-media-type" 415 "The body must be application/json";
    RateLimited "rate-limited" 429 "Too many requests";
    Overloaded "overloaded" 503 "The service is at its limit";
    Unavailable "unavailable" 503 "The service cannot answer right now";
    DeliveryUnknown "delivery-unknown" 504 "The request may or may not have been accepted";
}

/// A problem: what went wrong, what to do about it, and the members that the contract names for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Which one.
    pub slug: Slug,
    /// A sentence about this occurrence that says what to do next.
    pub detail: String,
    /// Further members, such as `balance` and `required`.
    pub members: Map<String, Value>,
}

impl Problem {
    /// A problem without further members.
    pub fn new(slug: Slug, detail: impl Into<String>) -> Self {
        Self { slug, detail: detail.into(), members: Map::new() }
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// An `invalid-request` about the member of the body at `pointer`.
    pub fn invalid_request(pointer: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let errors = json!([{ "pointer": pointer, "detail": detail }]);
        Self::new(Slug::InvalidRequest, detail).with("errors", errors)
    }

    /// The problem document. `instance` is the path that the problem is about.
    pub fn document(&self, instance: &str, request_id: Option<RequestId>) -> Value {
        let mut document = Map::new();
        document.insert("type".to_owned(), format!("/problems/{}", self.slug.as_str()).into());
        document.insert("title".to_owned(), self.slug.title().into());
        document.insert("status".to_owned(), self.slug.status().into());
        document.insert("detail".to_owned(), self.detail.as_str().into());
        document.insert("instance".to_owned(), instance.into());
        if let Some(id) = request_id {
            document.insert("request_id".to_owned(), id.to_string().into());
        }
        document.extend(self.members.clone());
        Value::Object(document)
    }
}
