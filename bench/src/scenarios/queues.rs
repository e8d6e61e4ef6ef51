//! The queue: a storm of joins, and polls of those who wait.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use common::ids::{ConcertId, TokenId};
use common::keys::QueueClaims;
use serde_json::json;
use uuid::Uuid;

use super::{Bench, CALLERS, Peer, ROUNDS};
use crate::comparators::sync::SESSIONS;
use crate::http::Request;
use crate::load::at_once;
use crate::report::Row;
use crate::world::Buyer;

const POLLING: usize = 128;
/// A poll asks the database for nothing; workers look around meanwhile.
const POLLS_A_TRANSACTION_MIN: u64 = 10;
/// A server notices between two statements that its client has gone.
const SESSIONS_END_WITHIN: Duration = Duration::from_secs(10);
const SESSIONS_LOOK: Duration = Duration::from_millis(20);
/// Tokens that are polled, of all that wait.
const POLLED_TOKENS: usize = 20_000;

/// Everybody joins one concert; each has a position.
pub(super) async fn joins(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(160_000);
    let mut houses = Vec::new();
    for _ in 0..2 * ROUNDS {
        houses.push(bench.world.house(0, 50, json!({"rate_per_minute": 60, "burst": 1, "max_active": 10})).await?);
    }
    let buyers = bench.world.buyers(count).await?;
    bench.world.analyze().await?;
    bench
        .in_turn("joins", &[Peer::Ours, Peer::Sync], async |turn, progress| {
            let path = format!("/v1/concerts/{}/queue-tokens", houses[turn.number].concert_id);
            let count = turn.peer.part_of(count);
            let measured = at_once(turn.address, CALLERS, count, progress, async |connection, i| {
                let headers = [("authorization", buyers[i].authorization.as_str()), ("prefer", "wait=30")];
                let request = Request { method: "POST", path: &path, headers: &headers, body: "" };
                Ok(connection.call(&request).await?.status)
            });
            measured.await?.expect(&[201])
        })
        .await
}

/// Polls of waiting tokens, while `waiting` wait.
pub(super) async fn polls(bench: &Bench, name: &'static str, waiting: usize) -> Result<Row> {
    let count = bench.scaled(800_000);
    let closed = json!({"rate_per_minute": 1, "burst": 1, "max_active": 0, "state": "PAUSED"});
    let house = bench.world.house(0, 50, json!({"max_active": 0})).await?;
    bench.world.configure(house.concert_id, &closed).await?;
    let tokens = waiting_tokens(bench, house.concert_id, waiting).await?;
    bench
        .in_turn(name, &[Peer::Ours, Peer::Bare, Peer::Sync], async |turn, progress| {
            let count = turn.peer.part_of(count);
            let measured = at_once(turn.address, POLLING, count, progress, async |connection, i| {
                let headers = [("queue-token", tokens[i % tokens.len()].queue_token.as_str())];
                let request = Request { method: "GET", path: "/v1/queue-token", headers: &headers, body: "" };
                Ok(connection.call(&request).await?.status)
            });
            if turn.peer != Peer::Ours {
                return measured.await?.expect(&[200]);
            }
            no_session_of_sync(bench).await?;
            let before = transactions(bench).await?;
            let measured = measured.await?.expect(&[200])?;
            let asked = transactions(bench).await? - before;
            let is_rare = u64::try_from(asked).is_ok_and(|asked| asked * POLLS_A_TRANSACTION_MIN < measured.count);
            ensure!(is_rare, "{asked} transactions during {} polls", measured.count);
            Ok(measured)
        })
        .await
}

/// Waits until the sessions of a `sync` that was ended have ended, too: only then is each of their transactions counted.
async fn no_session_of_sync(bench: &Bench) -> Result<()> {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
    let begun = Instant::now();
    while sqlx::query_scalar::<_, i64>(sessions).bind(SESSIONS).fetch_one(&bench.world.pool).await? > 0 {
        ensure!(begun.elapsed() < SESSIONS_END_WITHIN, "sessions of sync stay; what holds them? See pg_stat_activity");
        tokio::time::sleep(SESSIONS_LOOK).await;
    }
    Ok(())
}

/// Transactions of all who use the database, so far.
async fn transactions(bench: &Bench) -> Result<i64> {
    let all = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    Ok(sqlx::query_scalar(all).fetch_one(&bench.world.pool).await?)
}

/// Writes waiting tokens straight into the tables: a million joins would take longer than what is measured. The first
/// [`POLLED_TOKENS`] of them, signed.
async fn waiting_tokens(bench: &Bench, concert: i64, waiting: usize) -> Result<Vec<Buyer>> {
    let world = &bench.world;
    let rows: Vec<(i64, Uuid, Uuid, DateTime<Utc>)> = sqlx::query_as(
        "WITH made AS (
             INSERT INTO queue_tokens (concert_id, seq, token_id, user_id, kid, status, issued_at)
             SELECT $1, n, gen_random_uuid(), gen_random_uuid(), $3, 'WAITING', date_trunc('milliseconds', now())
             FROM generate_series(1, $2) AS n RETURNING seq, token_id, user_id, issued_at)
         SELECT seq, token_id, user_id, issued_at FROM made WHERE seq <= $4",
    )
    .bind(concert)
    .bind(i64::try_from(waiting)?)
    .bind(world.queue_tokens.signing_kid())
    .bind(i64::try_from(POLLED_TOKENS)?)
    .fetch_all(&world.pool)
    .await?;
    sqlx::query("UPDATE queues SET next_seq = $2 WHERE concert_id = $1")
        .bind(concert)
        .bind(i64::try_from(waiting)? + 1)
        .execute(&world.pool)
        .await?;
    world.analyze().await?;
    let token = |(seq, token_id, user_id, issued_at): (i64, Uuid, Uuid, DateTime<Utc>)| {
        let user_id = common::ids::UserId(user_id);
        let claims = QueueClaims::new(TokenId(token_id), user_id, ConcertId(concert), seq, issued_at);
        let queue_token = world.queue_tokens.sign(&claims, world.queue_tokens.signing_kid());
        Buyer { user_id, authorization: String::new(), queue_token }
    };
    Ok(rows.into_iter().map(token).collect())
}
