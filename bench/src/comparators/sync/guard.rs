//! Queue tokens: whose they are, and whether they may be used now, by their rows.

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use common::bodies::{TokenBody, TokenIdentity, TokenStatus};
use common::ids::{ConcertId, UserId};
use common::keys::QueueClaims;
use common::messages::tokens::QueueState;
use common::problems::{Problem, Slug};
use sqlx::PgPool;

use super::App;
use super::call::{Failure, Refusal};

/// A token's standing with its queue's marks: two probes, and a third while somebody waits.
pub(super) const STANDING: &str = "
    SELECT now() AS now, t.status, t.expires_at, q.state, q.admitted_seq, q.rate_per_minute, q.max_active,
           $2::bigint - q.admitted_seq - CASE WHEN t.status = 'WAITING' THEN (
               SELECT count(*) FROM queue_tokens l
               WHERE l.concert_id = q.concert_id AND l.status = 'LEFT' AND l.seq > q.admitted_seq AND l.seq < $2
           ) ELSE 0 END AS position
    FROM queues q
    LEFT JOIN queue_tokens t ON t.concert_id = q.concert_id AND t.seq = $2 AND t.token_id = $3
    WHERE q.concert_id = $1";

/// A genuine queue token: its string and what it says.
pub(super) struct QueueToken {
    pub(super) string: String,
    pub(super) claims: QueueClaims,
}

/// A token's row, as far as its use goes. Its columns stand in several statements.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(super) struct Use {
    now: DateTime<Utc>,
    status: Option<TokenStatus>,
    expires_at: Option<DateTime<Utc>>,
    state: QueueState,
    admitted_seq: i64,
}

/// A token's row with its place in line.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct Standing {
    #[sqlx(flatten)]
    row: Use,
    rate_per_minute: i32,
    max_active: i32,
    position: i64,
}

impl QueueToken {
    /// The token in the header, if one was sent.
    pub(super) fn sent(app: &App, headers: &HeaderMap) -> Result<Option<Self>, Failure> {
        let Some(value) = headers.get("queue-token") else { return Ok(None) };
        let invalid =
            || Problem::new(Slug::QueueTokenInvalid, "This is no queue token of ours; join the queue for one.");
        let string = value.to_str().map_err(|_| invalid())?;
        let claims = app.queue_tokens.verify(string).map_err(|_| invalid())?;
        Ok(Some(Self { string: string.to_owned(), claims }))
    }

    /// The token in the header.
    pub(super) fn required(app: &App, headers: &HeaderMap) -> Result<Self, Failure> {
        Self::sent(app, headers)?
            .ok_or_else(|| Problem::new(Slug::QueueTokenMissing, "Send Queue-Token: <queue token>.").into())
    }

    /// The buyer's own token in the header.
    pub(super) fn of_buyer(app: &App, headers: &HeaderMap, buyer: UserId) -> Result<Self, Failure> {
        let token = Self::required(app, headers)?;
        token.is_of(buyer)?;
        Ok(token)
    }

    /// Asks that it is this buyer's.
    pub(super) fn is_of(&self, buyer: UserId) -> Result<(), Failure> {
        if self.claims.sub == buyer {
            return Ok(());
        }
        Err(Problem::new(Slug::QueueTokenMismatch, "This queue token was given to another buyer.").into())
    }

    /// Asks that it is for this concert.
    pub(super) fn is_for(&self, concert: ConcertId) -> Result<(), Failure> {
        if self.claims.concert_id == concert {
            return Ok(());
        }
        Err(Problem::new(Slug::QueueTokenMismatch, "This queue token is for another concert.").into())
    }

    /// Reads how it stands.
    pub(super) async fn standing(&self, pool: &PgPool) -> Result<Standing, Failure> {
        let claims = &self.claims;
        let row = sqlx::query_as(STANDING).bind(claims.concert_id).bind(claims.seq).bind(claims.jti);
        row.fetch_optional(pool)
            .await?
            .ok_or_else(|| Problem::new(Slug::QueueTokenInvalid, "The concert of this queue token is gone.").into())
    }

    /// Reads its row and asks that it may be used now.
    pub(super) async fn usable(&self, pool: &PgPool) -> Result<(), Failure> {
        let standing = self.standing(pool).await?;
        standing.row.usable(self)
    }

    /// What its buyer is shown; None: it has ended.
    pub(super) fn body(&self, standing: &Standing) -> Option<TokenBody> {
        let Use { now, status, expires_at, state, .. } = standing.row;
        let identity = TokenIdentity {
            queue_token: self.string.clone(),
            token_id: self.claims.jti,
            concert_id: self.claims.concert_id,
            issued_at: self.claims.issued_at(),
        };
        match (status?, expires_at) {
            (TokenStatus::Waiting, _) => {
                let (rate, max_active) = (standing.rate_per_minute.into(), standing.max_active.into());
                Some(TokenBody::waiting(identity, standing.position.max(1), state, rate, max_active))
            }
            (TokenStatus::Active, Some(until)) if until > now => Some(TokenBody::active(identity, until, state)),
            _ => None,
        }
    }

    /// 302 to where a new one is made.
    pub(super) fn ended(&self) -> Failure {
        let join = format!("/v1/concerts/{}/queue-tokens", self.claims.concert_id);
        let detail = format!("This queue token expired, or was completed by a payment. POST {join} for another.");
        Refusal { location: Some(join), ..Problem::new(Slug::QueueTokenExpired, detail).into() }.into()
    }
}

impl Use {
    /// The database's clock, at the beginning of the transaction.
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// Whether it is its buyer's one token of the concert.
    pub(super) fn live(&self) -> bool {
        matches!(self.status, Some(TokenStatus::Waiting | TokenStatus::Active))
    }

    /// Asks that the token may be used now.
    pub(super) fn usable(&self, token: &QueueToken) -> Result<(), Failure> {
        match (self.status, self.expires_at) {
            (Some(TokenStatus::Waiting), _) => {
                let detail = "The buyer is still in line. Poll GET /v1/queue-token until it says ACTIVE.";
                let position = (token.claims.seq - self.admitted_seq).max(1);
                let problem = Problem::new(Slug::QueueTokenWaiting, detail).with("position", position);
                Err(Refusal { retry_after: Some(1), ..problem.into() }.into())
            }
            (Some(TokenStatus::Active), Some(until)) if until > self.now => {
                if self.state == QueueState::Closed {
                    return Err(Problem::new(Slug::QueueClosed, "The queue of this concert is closed.").into());
                }
                Ok(())
            }
            _ => Err(token.ended()),
        }
    }
}
