//! The statements that write: each for all queues of a batch.

use chrono::{DateTime, Utc};
use common::bodies::TokenStatus;
use common::ids::ConcertId;
use common::messages::tokens::QueueState;
use sqlx::PgConnection;

use super::Lines;
use crate::tokens::line::{Change, Queue, Token};

/// Writes what has changed: tokens that were there (ends make room for new live ones of the same buyers), new tokens, queues.
/// `kid` names the key of the new ones.
///
/// # Errors
/// What the database says.
pub(crate) async fn write(connection: &mut PgConnection, lines: &Lines, kid: &str) -> Result<(), sqlx::Error> {
    update_tokens(connection, lines).await?;
    insert_tokens(connection, lines, kid).await?;
    update_queues(connection, lines).await
}

fn tokens_of(lines: &Lines, change: Change) -> impl Iterator<Item = (ConcertId, &Token)> {
    let all = lines.iter().flat_map(|(concert, line)| line.tokens.iter().map(|token| (*concert, token)));
    all.filter(move |(_, token)| token.change == change)
}

async fn update_tokens(connection: &mut PgConnection, lines: &Lines) -> Result<(), sqlx::Error> {
    let (mut concerts, mut seqs, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
    let (mut admitted, mut expires, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for (concert, token) in tokens_of(lines, Change::Changed) {
        concerts.push(concert.0);
        seqs.push(token.seq);
        statuses.push(token.status);
        admitted.push(token.admitted_at);
        expires.push(token.expires_at);
        ended.push(token.ended_at);
    }
    if concerts.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "UPDATE queue_tokens t
         SET status = u.status, admitted_at = u.admitted_at, expires_at = u.expires_at, ended_at = u.ended_at
         FROM (SELECT UNNEST($1::bigint[]) AS concert_id, UNNEST($2::bigint[]) AS seq, UNNEST($3::token_status[]) AS status,
                      UNNEST($4::timestamptz[]) AS admitted_at, UNNEST($5::timestamptz[]) AS expires_at,
                      UNNEST($6::timestamptz[]) AS ended_at) u
         WHERE t.concert_id = u.concert_id AND t.seq = u.seq",
        &concerts,
        &seqs,
        &statuses as &[TokenStatus],
        &admitted as &[Option<DateTime<Utc>>],
        &expires as &[Option<DateTime<Utc>>],
        &ended as &[Option<DateTime<Utc>>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_tokens(connection: &mut PgConnection, lines: &Lines, kid: &str) -> Result<(), sqlx::Error> {
    let (mut concerts, mut seqs, mut ids, mut users) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut statuses, mut issued) = (Vec::new(), Vec::new());
    let (mut admitted, mut expires, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    let mut kids = Vec::new();
    for (concert, token) in tokens_of(lines, Change::New) {
        kids.push(token.kid.as_deref().unwrap_or(kid));
        concerts.push(concert.0);
        seqs.push(token.seq);
        ids.push(token.token_id.0);
        users.push(token.user_id.0);
        statuses.push(token.status);
        issued.push(token.issued_at);
        admitted.push(token.admitted_at);
        expires.push(token.expires_at);
        ended.push(token.ended_at);
    }
    if concerts.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO queue_tokens
             (concert_id, seq, token_id, user_id, kid, status, issued_at, admitted_at, expires_at, ended_at)
         SELECT UNNEST($1::bigint[]), UNNEST($2::bigint[]), UNNEST($3::uuid[]), UNNEST($4::uuid[]), UNNEST($5::text[]),
                UNNEST($6::token_status[]), UNNEST($7::timestamptz[]), UNNEST($8::timestamptz[]), UNNEST($9::timestamptz[]),
                UNNEST($10::timestamptz[])",
        &concerts,
        &seqs,
        &ids,
        &users,
        &kids as &[&str],
        &statuses as &[TokenStatus],
        &issued,
        &admitted as &[Option<DateTime<Utc>>],
        &expires as &[Option<DateTime<Utc>>],
        &ended as &[Option<DateTime<Utc>>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_queues(connection: &mut PgConnection, lines: &Lines) -> Result<(), sqlx::Error> {
    let changed: Vec<&Queue> = lines.values().filter(|line| line.changed).map(|line| &line.queue).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let column = |value: fn(&Queue) -> i64| changed.iter().map(|queue| value(queue)).collect::<Vec<i64>>();
    let states: Vec<_> = changed.iter().map(|queue| queue.state).collect();
    let refilled: Vec<_> = changed.iter().map(|queue| queue.bucket.refilled_at).collect();
    sqlx::query!(
        "UPDATE queues q
         SET state = u.state, rate_per_minute = u.rate_per_minute, burst = u.burst, max_active = u.max_active,
             active_seconds = u.active_seconds, credit = u.credit, refilled_at = u.refilled_at, next_seq = u.next_seq,
             admitted_seq = u.admitted_seq, admitted_total = u.admitted_total
         FROM unnest($1::bigint[], $2::queue_state[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::timestamptz[], $9::bigint[], $10::bigint[], $11::bigint[])
              AS u (concert_id, state, rate_per_minute, burst, max_active, active_seconds, credit, refilled_at, next_seq,
                    admitted_seq, admitted_total)
         WHERE q.concert_id = u.concert_id",
        &column(|queue| queue.concert_id.0),
        &states as &[QueueState],
        &column(|queue| queue.rate_per_minute),
        &column(|queue| queue.burst),
        &column(|queue| queue.max_active),
        &column(|queue| queue.active_seconds),
        &column(|queue| queue.bucket.credit),
        &refilled,
        &column(|queue| queue.next_seq),
        &column(|queue| queue.admitted_seq),
        &column(|queue| queue.admitted_total)
    )
    .execute(connection)
    .await?;
    Ok(())
}
