//! Queues and queue tokens, read.

use chrono::{DateTime, Utc};
use common::bodies::TokenStatus;
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::QueueState;
use sqlx::PgPool;

use crate::queues::QueueMark;

/// The marks of all queues, or of one.
///
/// # Errors
/// What the database says.
pub(crate) async fn marks(
    pool: &PgPool,
    concert: Option<ConcertId>,
) -> Result<Vec<(ConcertId, QueueMark)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT q.concert_id AS "concert_id: ConcertId", q.state AS "state: QueueState", q.rate_per_minute, q.max_active,
                  q.admitted_seq,
                  ARRAY(SELECT t.seq FROM queue_tokens t
                        WHERE t.concert_id = q.concert_id AND t.status = 'LEFT' AND t.seq > q.admitted_seq
                        ORDER BY t.seq) AS "left!"
           FROM queues q WHERE $1::bigint IS NULL OR q.concert_id = $1"#,
        concert.map(|concert| concert.0)
    )
    .fetch_all(pool)
    .await?;
    let marks = rows.into_iter().map(|row| {
        let mark = QueueMark {
            state: row.state,
            rate_per_minute: row.rate_per_minute.into(),
            max_active: row.max_active.into(),
            admitted_seq: row.admitted_seq,
            left: row.left,
        };
        (row.concert_id, mark)
    });
    Ok(marks.collect())
}

/// A queue token's row, as far as its use goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenRow {
    /// In line.
    Waiting,
    /// Admitted until then.
    Active(DateTime<Utc>),
    /// Expired, completed or left.
    Ended,
}

/// The row of one token, found by its place.
///
/// # Errors
/// What the database says.
pub(crate) async fn token(
    pool: &PgPool,
    concert: ConcertId,
    seq: i64,
    token: TokenId,
) -> Result<Option<TokenRow>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT status AS "status: TokenStatus", expires_at FROM queue_tokens
           WHERE concert_id = $1 AND seq = $2 AND token_id = $3"#,
        concert.0,
        seq,
        token.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| match (row.status, row.expires_at) {
        (TokenStatus::Waiting, _) => TokenRow::Waiting,
        (TokenStatus::Active, Some(expires_at)) => TokenRow::Active(expires_at),
        _ => TokenRow::Ended,
    }))
}

/// What is needed to show a buyer's live token: what it was signed from, and by which key.
#[derive(Debug, Clone)]
pub(crate) struct LiveToken {
    /// Its id.
    pub(crate) token_id: TokenId,
    /// Its place.
    pub(crate) seq: i64,
    /// The key that signed it.
    pub(crate) kid: String,
    /// When the buyer joined.
    pub(crate) issued_at: DateTime<Utc>,
}

/// The buyer's live token of a concert.
///
/// # Errors
/// What the database says.
pub(crate) async fn live_token(
    pool: &PgPool,
    concert: ConcertId,
    buyer: UserId,
) -> Result<Option<LiveToken>, sqlx::Error> {
    sqlx::query_as!(
        LiveToken,
        r#"SELECT token_id AS "token_id: TokenId", seq, kid, issued_at FROM queue_tokens
           WHERE user_id = $2 AND concert_id + 0 = $1 AND ended_at IS NULL"#,
        concert.0,
        buyer.0
    )
    .fetch_optional(pool)
    .await
}
