//! Queue tokens: whose they are, for which concert, and whether they may be used now. In the contract's order: [`of_buyer`] (401, 403
//! another buyer's), [`for_concert`] (403 another concert's), [`usable`] (302, 403 waiting, 409 closed).

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use common::bodies::{TokenBody, TokenIdentity};
use common::ids::{ConcertId, UserId};
use common::keys::QueueClaims;
use common::messages::tokens::QueueState;
use common::problems::Slug;

use crate::error::ApiError;
use crate::queues::{Place, QueueMark, TokenState};
use crate::state::App;
use crate::store::queues::{TokenKey, TokenRow};

/// The header that carries a queue token.
pub(crate) const QUEUE_TOKEN: &str = "queue-token";

/// A genuine queue token: its string and what it says.
#[derive(Debug, Clone)]
pub(crate) struct QueueToken {
    /// The string.
    pub(crate) string: String,
    /// What it says.
    pub(crate) claims: QueueClaims,
}

/// How a token stands now.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// In line.
    Waiting {
        /// 1 for the next one.
        position: i64,
        /// Its queue.
        queue: std::sync::Arc<QueueMark>,
    },
    /// Admitted.
    Active {
        /// Until when.
        expires_at: DateTime<Utc>,
        /// Its queue's state.
        queue_state: QueueState,
    },
    /// Expired, completed or left.
    Ended,
}

/// The queue token in the header; None if none was sent.
///
/// # Errors
/// 401 `queue-token-invalid`
pub(crate) fn sent(app: &App, headers: &HeaderMap) -> Result<Option<QueueToken>, ApiError> {
    let Some(value) = headers.get(QUEUE_TOKEN) else { return Ok(None) };
    verified(app, value.to_str().map_err(|_| invalid())?).map(Some)
}

/// The queue token in the header.
///
/// # Errors
/// 401 `queue-token-missing`, `queue-token-invalid`
pub(crate) fn required(app: &App, headers: &HeaderMap) -> Result<QueueToken, ApiError> {
    sent(app, headers)?.ok_or_else(missing)
}

/// Checks that a string is a queue token of ours.
///
/// # Errors
/// 401 `queue-token-invalid`
pub(crate) fn verified(app: &App, string: &str) -> Result<QueueToken, ApiError> {
    let claims = app.queue_tokens.verify(string).map_err(|_| invalid())?;
    Ok(QueueToken { string: string.to_owned(), claims })
}

/// The buyer's own queue token in the header.
///
/// # Errors
/// 401 `queue-token-missing`, `queue-token-invalid`; 403 `queue-token-mismatch`: it is another buyer's.
pub(crate) fn of_buyer(app: &App, headers: &HeaderMap, buyer: UserId) -> Result<QueueToken, ApiError> {
    let token = required(app, headers)?;
    own(&token, buyer)?;
    Ok(token)
}

/// As [`of_buyer`], where a queue token need not be sent.
///
/// # Errors
/// As [`of_buyer`], but for a missing one.
pub(crate) fn of_buyer_if_sent(app: &App, headers: &HeaderMap, buyer: UserId) -> Result<Option<QueueToken>, ApiError> {
    let token = sent(app, headers)?;
    token.as_ref().map_or(Ok(()), |token| own(token, buyer))?;
    Ok(token)
}

fn own(token: &QueueToken, buyer: UserId) -> Result<(), ApiError> {
    if token.claims.sub == buyer {
        return Ok(());
    }
    Err(ApiError::new(Slug::QueueTokenMismatch, "This queue token was given to another buyer."))
}

/// Asks that the token is for this concert.
///
/// # Errors
/// 403 `queue-token-mismatch`
pub(crate) fn for_concert(token: &QueueToken, concert: ConcertId) -> Result<(), ApiError> {
    let own = token.claims.concert_id;
    if own == concert {
        return Ok(());
    }
    let detail = format!("This queue token is for concert {own}; this call needs one for concert {concert}.");
    Err(ApiError::new(Slug::QueueTokenMismatch, detail))
}

/// Asks that the token may be used now.
///
/// # Errors
/// 302 `queue-token-expired`, 403 `queue-token-waiting`, 409 `queue-closed`; 503 if nothing is known and the database is down.
pub(crate) async fn usable(app: &App, token: &QueueToken) -> Result<(), ApiError> {
    match standing(app, &token.claims).await? {
        Standing::Active { queue_state: QueueState::Closed, .. } => Err(ApiError::queue_closed()),
        Standing::Active { .. } => Ok(()),
        Standing::Ended => Err(ApiError::queue_token_ended(token.claims.concert_id)),
        waiting @ Standing::Waiting { .. } => Err(still_waiting(token, waiting)),
    }
}

fn still_waiting(token: &QueueToken, standing: Standing) -> ApiError {
    match token_body(token, standing) {
        Some(body) => ApiError::queue_token_waiting(body.position, body.poll_after_seconds.unwrap_or(1)),
        None => ApiError::queue_token_ended(token.claims.concert_id),
    }
}

/// How a token stands: for a waiting one from the marks alone, for an admitted one from what the results topic told, and from the
/// database only when neither knows. While the database is down, what was known last counts until the token's end.
///
/// # Errors
/// 503 if nothing is known and the database is down; 401 for a token of a concert that is not there.
pub(crate) async fn standing(app: &App, claims: &QueueClaims) -> Result<Standing, ApiError> {
    let (concert, buyer) = (claims.concert_id, claims.sub);
    let Some(queue) = app.queue(concert).await? else { return Err(invalid()) };
    let known = app.tokens.get(concert, buyer, claims.jti);
    if let Some((state, true)) = known {
        return Ok(stands(state, &queue));
    }
    if known.is_none() {
        match queue.place_of(claims.seq) {
            Place::Waiting(position) => return Ok(Standing::Waiting { position, queue }),
            Place::Left => return Ok(Standing::Ended),
            Place::Passed => {}
        }
    }
    let before = app.tokens.read_mark(concert, buyer);
    let key = TokenKey { concert_id: concert, seq: claims.seq, token_id: claims.jti };
    let row = match app.token_row(key).await {
        Ok(row) => row,
        Err(error) => return known.map(|(state, _)| stands(state, &queue)).ok_or(error),
    };
    let state = match row {
        Some(TokenRow::Active(expires_at)) => TokenState::Active(expires_at),
        // The marks are a moment ahead of this row, or the token's row was lost with a restored database.
        Some(TokenRow::Waiting) => return Ok(Standing::Waiting { position: 1, queue }),
        Some(TokenRow::Ended) | None => TokenState::Ended,
    };
    app.tokens.remember(concert, buyer, claims.jti, state, before);
    Ok(stands(state, &queue))
}

fn stands(state: TokenState, queue: &QueueMark) -> Standing {
    match state {
        TokenState::Active(expires_at) if expires_at > Utc::now() => {
            Standing::Active { expires_at, queue_state: queue.state }
        }
        TokenState::Active(_) | TokenState::Ended => Standing::Ended,
    }
}

/// What the token's buyer is shown; None: it has ended.
pub(crate) fn token_body(token: &QueueToken, standing: Standing) -> Option<TokenBody> {
    let identity = TokenIdentity {
        queue_token: token.string.clone(),
        token_id: token.claims.jti,
        concert_id: token.claims.concert_id,
        issued_at: token.claims.issued_at(),
    };
    match standing {
        Standing::Waiting { position, queue } => {
            Some(TokenBody::waiting(identity, position, queue.state, queue.rate_per_minute, queue.max_active))
        }
        Standing::Active { expires_at, queue_state } => Some(TokenBody::active(identity, expires_at, queue_state)),
        Standing::Ended => None,
    }
}

fn missing() -> ApiError {
    ApiError::new(Slug::QueueTokenMissing, "Send Queue-Token: <queue token>, from POST /v1/concerts/{id}/queue-tokens.")
}

fn invalid() -> ApiError {
    ApiError::new(
        Slug::QueueTokenInvalid,
        "This is no queue token of ours; POST /v1/concerts/{id}/queue-tokens for one.",
    )
}
