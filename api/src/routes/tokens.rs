//! Queue tokens: joining a queue, asking for one's place, leaving.

use axum::http::{HeaderValue, header};
use axum::response::Response;
use common::bodies::{LeftBody, TokenBody};
use common::keys::QueueClaims;
use common::messages::tokens::{Issue, Leave};
use common::problems::Slug;

use crate::auth::queue::{self, QueueToken, Standing};
use crate::body::Nothing;
use crate::call::Call;
use crate::error::{ApiError, both};
use crate::publish;
use crate::routes::{Accepted, LogHeaders};
use crate::store;

/// A token's body with its string, roughly, so that it is written without growing.
const BODY_BYTES: usize = 512;

/// Joins the queue of a concert, or asks again: the live token that the buyer has, or a new one.
#[utoipa::path(
    post, path = "/v1/concerts/{id}/queue-tokens", operation_id = "join_queue",
    tag = "queue", security(("access_token" = [])),
    params(("id" = i64, Path, description = "The concert"), LogHeaders),
    responses(
        (status = 201, description = "A new token", body = TokenBody),
        (status = 200, description = "The live token that this buyer has", body = TokenBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn join(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    call.app.limits.log.check(&buyer)?;
    let body = call.optional_body::<Nothing>()?;
    let ticket = publish::begin(&call, Some(buyer), &body).await?;
    let (concert_id, _) = ticket.form(&call, both(call.concert_id(), body.checked()))?;
    if call.app.queue(concert_id).await?.is_none() {
        return Err(ApiError::concert_not_found(concert_id));
    }
    let message =
        Issue { request_id: ticket.request_id, request_hash: ticket.request_hash.clone(), user_id: buyer, concert_id };
    publish::submit(call, ticket, message).await
}

/// The buyer's live token of a concert.
#[utoipa::path(
    get, path = "/v1/concerts/{id}/queue-tokens", operation_id = "my_queue_token",
    tag = "queue", security(("access_token" = [])),
    params(("id" = i64, Path, description = "The concert")),
    responses((status = 200, description = "The live token", body = TokenBody))
)]
pub(crate) async fn mine(call: Call) -> Result<Response, ApiError> {
    let buyer = call.buyer().await?;
    let (concert, ()) = both(call.concert_id(), call.no_query())?;
    let app = &call.app;
    if app.queue(concert).await?.is_none() {
        return Err(ApiError::concert_not_found(concert));
    }
    let none = || {
        let detail = format!("You have no live queue token here; POST /v1/concerts/{concert}/queue-tokens to join.");
        ApiError::new(Slug::QueueTokenNotFound, detail)
    };
    let live = store::queues::live_token(app.database()?, concert, buyer).await?.ok_or_else(none)?;
    let claims = QueueClaims::new(live.token_id, buyer, concert, live.seq, live.issued_at);
    let token = QueueToken { string: app.queue_tokens.sign(&claims, &live.kid), claims };
    let standing = queue::standing(app, &token.claims).await?;
    queue::token_body(&token, standing).map(|body| answer(&body)).ok_or_else(none)
}

/// How the queue token stands: in line, with its position, or admitted.
#[utoipa::path(
    get, path = "/v1/queue-token", operation_id = "queue_token", tag = "queue", security(("queue_token" = [])),
    responses((status = 200, description = "WAITING (with `Retry-After`) or ACTIVE", body = TokenBody))
)]
pub(crate) async fn poll(call: Call) -> Result<Response, ApiError> {
    let token = queue::required(&call.app, call.headers())?;
    call.app.limits.polls.check(&token.claims.jti)?;
    call.no_query()?;
    let standing = queue::standing(&call.app, &token.claims).await?;
    let ended = || ApiError::queue_token_ended(token.claims.concert_id);
    queue::token_body(&token, standing).map(|body| answer(&body)).ok_or_else(ended)
}

fn answer(body: &TokenBody) -> Response {
    let mut text = Vec::with_capacity(BODY_BYTES);
    serde_json::to_writer(&mut text, body).expect("a token's body is plain JSON");
    let mut response = Response::new(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = body.poll_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Leaves the queue. Holds stay.
#[utoipa::path(
    delete, path = "/v1/queue-token", operation_id = "leave_queue",
    tag = "queue", security(("queue_token" = [])), params(LogHeaders),
    responses(
        (status = 200, description = "The token is given back", body = LeftBody),
        (status = 202, description = "Accepted", body = Accepted),
    )
)]
pub(crate) async fn leave(call: Call) -> Result<Response, ApiError> {
    // The queue token alone says who calls.
    let token = queue::required(&call.app, call.headers())?;
    let buyer = token.claims.sub;
    call.app.limits.log.check(&buyer)?;
    let body = call.optional_body::<Nothing>()?;
    // Which token is given back is said by the header alone.
    let subject = format!("{}/{}", call.path(), token.claims.jti);
    let ticket = publish::begin_about(&call, Some(buyer), &subject, &body).await?;
    ticket.form(&call, body.checked())?;
    if matches!(queue::standing(&call.app, &token.claims).await?, Standing::Ended) {
        return Err(ApiError::queue_token_ended(token.claims.concert_id));
    }
    let message = Leave {
        request_id: ticket.request_id,
        request_hash: ticket.request_hash.clone(),
        user_id: buyer,
        concert_id: token.claims.concert_id,
        token_id: token.claims.jti,
    };
    publish::submit(call, ticket, message).await
}
