//! The queue: a storm of joins, and polls of those who wait.

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use common::ids::{ConcertId, TokenId};
use common::keys::QueueClaims;
use serde_json::json;
use uuid::Uuid;

use super::{Bench, CALLERS, Peer, ROUNDS, Size, with_warm_up};
use crate::http::Request;
use crate::load::at_once;
use crate::report::Row;
use crate::world::Buyer;

const POLLING: usize = 128;
/// Transactions a second of all who look around meanwhile, and those that Postgres counts late: a poll asks the database for nothing.
const TRANSACTIONS_A_SECOND_MAX: u64 = 100;
const TRANSACTIONS_LATE_MAX: u64 = 100;
/// Tokens that are polled, of all that wait.
const POLLED_TOKENS: usize = 20_000;
const SHORT_LINE: usize = 1_000;
const POLL_TURNS_A_ROUND: usize = 4;
/// The short line's turns beside a long one's.
const WITH_SHORT_LINE: Peer = Peer::OursWith("1k");

/// Everybody joins one concert; each has a position.
pub(super) async fn joins(bench: &Bench) -> Result<Row> {
    let count = bench.scaled(160_000);
    let mut houses = Vec::new();
    for _ in 0..2 * ROUNDS {
        houses.push(bench.world.house(0, 50, json!({"rate_per_minute": 60, "burst": 1, "max_active": 10})).await?);
    }
    let buyers = bench.world.buyers(with_warm_up(count)).await?;
    bench.world.analyze().await?;
    bench
        .in_turn("joins", &[Peer::Ours, Peer::Sync], count, async |turn, progress| {
            let path = format!("/v1/concerts/{}/queue-tokens", houses[turn.number].concert_id);
            let measured = at_once(turn.address, CALLERS, turn.pieces(), progress, async |connection, i| {
                let headers = [("authorization", buyers[i].authorization.as_str()), ("prefer", "wait=30")];
                let request = Request { method: "POST", path: &path, headers: &headers, body: "" };
                Ok(connection.call(&request).await?.status)
            });
            measured.await?.expect(&[201])
        })
        .await
}

/// Polls of the tokens of a short line.
pub(super) async fn polls_1k(bench: &Bench) -> Result<Row> {
    polls(bench, "polls-1k", SHORT_LINE, &[Peer::Ours, Peer::Bare, Peer::Sync]).await
}

/// Polls of the tokens of a long line, in turn with a short one's, beside which `sync` has been seen.
pub(super) async fn polls_1m(bench: &Bench) -> Result<Row> {
    let waiting = if bench.size == Size::Smoke { POLLED_TOKENS } else { 1_000_000 };
    polls(bench, "polls-1m", waiting, &[Peer::Ours, WITH_SHORT_LINE, Peer::Bare]).await
}

/// Polls of waiting tokens, while `waiting` wait.
pub(super) async fn polls(bench: &Bench, name: &'static str, waiting: usize, peers: &[Peer]) -> Result<Row> {
    // What is compared differs less than the machine does from one turn to another, so there are more of them, unless there is little to
    // measure.
    let turns_a_round = if bench.size == Size::Full { POLL_TURNS_A_ROUND } else { 1 };
    let count = bench.scaled(800_000) / turns_a_round;
    let long = line(bench, waiting).await?;
    let has_short = peers.contains(&WITH_SHORT_LINE) && !bench.alone;
    let short = if has_short { line(bench, SHORT_LINE).await? } else { Vec::new() };
    bench.world.checkpoint().await?;
    bench
        .in_turn(name, &peers.repeat(turns_a_round), count, async |turn, progress| {
            let tokens = if turn.peer == WITH_SHORT_LINE { &short } else { &long };
            let measured = at_once(turn.address, POLLING, turn.pieces(), progress, async |connection, i| {
                let headers = [("queue-token", tokens[i % tokens.len()].queue_token.as_str())];
                let request = Request { method: "GET", path: "/v1/queue-token", headers: &headers, body: "" };
                Ok(connection.call(&request).await?.status)
            });
            // What Postgres counts late, of what was before, would be many beside a few polls.
            if turn.warms_up || !turn.peer.is_ours() {
                return measured.await?.expect(&[200]);
            }
            let before = transactions(bench).await?;
            let measured = measured.await?.expect(&[200])?;
            let asked = transactions(bench).await? - before;
            let others = measured.elapsed.as_secs() * TRANSACTIONS_A_SECOND_MAX + TRANSACTIONS_LATE_MAX;
            let is_nobodys = u64::try_from(asked).is_ok_and(|asked| asked <= others);
            ensure!(is_nobodys, "{asked} transactions within {:?} of polls", measured.elapsed);
            Ok(measured)
        })
        .await
}

/// The tokens of a concert that nobody is admitted to.
async fn line(bench: &Bench, waiting: usize) -> Result<Vec<Buyer>> {
    let closed = json!({"rate_per_minute": 1, "burst": 1, "max_active": 0, "state": "PAUSED"});
    let house = bench.world.house(0, 50, json!({"max_active": 0})).await?;
    bench.world.configure(house.concert_id, &closed).await?;
    waiting_tokens(bench, house.concert_id, waiting).await
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
