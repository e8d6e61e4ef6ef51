//! Queues and queue tokens, read.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use common::bodies::TokenStatus;
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::QueueState;
use sqlx::PgPool;
use uuid::Uuid;

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

/// A token and its place, where its row is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    /// Its concert.
    pub(crate) concert_id: ConcertId,
    /// Its place.
    pub(crate) seq: i64,
    /// Its id.
    pub(crate) token_id: TokenId,
}

/// The rows of tokens; those that do not exist are missing. Each is looked for by itself, in the primary key unless the table was
/// small when the statement was planned.
///
/// # Errors
/// What the database says.
pub(crate) async fn tokens(pool: &PgPool, keys: &[TokenKey]) -> Result<HashMap<TokenKey, TokenRow>, sqlx::Error> {
    let concerts: Vec<i64> = keys.iter().map(|key| key.concert_id.0).collect();
    let places: Vec<i64> = keys.iter().map(|key| key.seq).collect();
    let ids: Vec<Uuid> = keys.iter().map(|key| key.token_id.0).collect();
    let rows = sqlx::query!(
        r#"SELECT n.concert_id AS "concert_id!: ConcertId", n.seq AS "seq!", n.token_id AS "token_id!: TokenId",
                  own.status AS "status: TokenStatus", own.expires_at
           FROM UNNEST($1::bigint[], $2::bigint[], $3::uuid[]) AS n (concert_id, seq, token_id)
           CROSS JOIN LATERAL (
               SELECT t.status, t.expires_at FROM queue_tokens t
               WHERE t.concert_id = n.concert_id AND t.seq = n.seq AND t.token_id = n.token_id
               LIMIT 1) own"#,
        &concerts,
        &places,
        &ids
    )
    .fetch_all(pool)
    .await?;
    let rows = rows.into_iter().map(|row| {
        let token = match (row.status, row.expires_at) {
            (TokenStatus::Waiting, _) => TokenRow::Waiting,
            (TokenStatus::Active, Some(expires_at)) => TokenRow::Active(expires_at),
            _ => TokenRow::Ended,
        };
        (TokenKey { concert_id: row.concert_id, seq: row.seq, token_id: row.token_id }, token)
    });
    Ok(rows.collect())
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
