//! What operators look at: a queue with its counts, a user with all that is theirs.

use chrono::{DateTime, Utc};
use common::bodies::{QueueBody, TokenStatus};
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::QueueState;
use sqlx::PgPool;

/// A queue and its counts as of now; None: there is no such concert.
///
/// Admissions go up in the order of joins, so those of the last minute are the places behind the last older one.
///
/// # Errors
/// What the database says.
pub(crate) async fn queue(pool: &PgPool, concert: ConcertId) -> Result<Option<QueueBody>, sqlx::Error> {
    sqlx::query_as!(
        QueueBody,
        r#"SELECT q.concert_id AS "concert_id: ConcertId", q.state AS "state: QueueState",
                  q.rate_per_minute::bigint AS "rate_per_minute!", q.burst::bigint AS "burst!",
                  q.max_active::bigint AS "max_active!", q.active_seconds::bigint AS "active_seconds!",
                  q.next_seq - 1 - q.admitted_seq
                    - (SELECT count(*) FROM queue_tokens t
                       WHERE t.concert_id = q.concert_id AND t.seq > q.admitted_seq AND t.status = 'LEFT') AS "waiting!",
                  (SELECT count(*) FROM queue_tokens t
                   WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE' AND t.expires_at > now()) AS "active!",
                  q.admitted_total, q.next_seq - 1 AS "joined_total!",
                  (SELECT greatest(0, extract(epoch FROM now() - t.issued_at)::bigint) FROM queue_tokens t
                   WHERE t.concert_id = q.concert_id AND t.seq > q.admitted_seq AND t.status = 'WAITING'
                   ORDER BY t.seq LIMIT 1) AS oldest_wait_seconds,
                  (SELECT count(t.admitted_at) FROM queue_tokens t
                   WHERE t.concert_id = q.concert_id AND t.seq <= q.admitted_seq AND t.seq > coalesce((
                       SELECT o.seq FROM queue_tokens o
                       WHERE o.concert_id = q.concert_id AND o.seq <= q.admitted_seq
                         AND o.admitted_at <= now() - interval '60 seconds'
                       ORDER BY o.seq DESC LIMIT 1), 0)) AS "admitted_per_minute!"
           FROM queues q
           WHERE q.concert_id = $1"#,
        concert.0
    )
    .fetch_optional(pool)
    .await
}

/// A user as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserRow {
    /// As signed up.
    pub(crate) name: String,
    /// In minor units; None before the first charge.
    pub(crate) balance: Option<i64>,
}

/// One user.
///
/// # Errors
/// What the database says.
pub(crate) async fn user(pool: &PgPool, user: UserId) -> Result<Option<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"SELECT u.name, a.balance AS "balance?" FROM users u LEFT JOIN accounts a USING (user_id) WHERE u.user_id = $1"#,
        user.0
    )
    .fetch_optional(pool)
    .await
}

/// A queue token as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRow {
    /// Its id.
    pub(crate) token_id: TokenId,
    /// The concert.
    pub(crate) concert_id: ConcertId,
    /// Its place in the concert's order of joins.
    pub(crate) seq: i64,
    /// What has become of it.
    pub(crate) status: TokenStatus,
    /// When the buyer joined.
    pub(crate) issued_at: DateTime<Utc>,
    /// When the buyer was let in.
    pub(crate) admitted_at: Option<DateTime<Utc>>,
    /// Until when it may be used.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub(crate) ended_at: Option<DateTime<Utc>>,
}

/// A user's queue tokens, live and ended, newest first, at most `limit`. There is no index by user: this is for a
/// person who looks into one case.
///
/// # Errors
/// What the database says.
pub(crate) async fn tokens(pool: &PgPool, user: UserId, limit: i64) -> Result<Vec<TokenRow>, sqlx::Error> {
    sqlx::query_as!(
        TokenRow,
        r#"SELECT token_id AS "token_id: TokenId", concert_id AS "concert_id: ConcertId", seq,
                  status AS "status: TokenStatus", issued_at, admitted_at, expires_at, ended_at
           FROM queue_tokens
           WHERE user_id = $1
           ORDER BY issued_at DESC, seq DESC
           LIMIT $2"#,
        user.0,
        limit
    )
    .fetch_all(pool)
    .await
}
