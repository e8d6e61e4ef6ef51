//! What time does: those in line are admitted, tokens and holds run out. Rows that somebody else has locked are left for the next time.

use std::sync::Arc;
use std::time::Duration;

use common::ids::ConcertId;
use sqlx::PgPool;
use tokio::time::MissedTickBehavior;

use super::App;
use super::queue::Line;

const EVERY: Duration = Duration::from_millis(100);
/// Rows that one statement changes at most.
const ROWS_MAX: i64 = 1_000;

const EXPIRE_TOKENS: &str = "
    WITH over AS MATERIALIZED (
        SELECT o.concert_id, o.seq FROM queues q CROSS JOIN LATERAL (
            SELECT t.concert_id, t.seq FROM queue_tokens t
            WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE' AND t.expires_at <= now()
            ORDER BY t.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED) o)
    UPDATE queue_tokens t SET status = 'EXPIRED', ended_at = now()
    FROM over WHERE t.concert_id = over.concert_id AND t.seq = over.seq";

const EXPIRE_HOLDS: &str = "
    WITH over AS MATERIALIZED (
        SELECT reservation_id, schedule_id, seat_ids FROM reservations
        WHERE status = 'HELD' AND hold_expires_at < now()
        ORDER BY hold_expires_at LIMIT $1 FOR UPDATE SKIP LOCKED),
    ended AS (
        UPDATE reservations r SET status = 'EXPIRED' FROM over WHERE r.reservation_id = over.reservation_id),
    freed AS (
        UPDATE seats s SET status = 'AVAILABLE', reservation_id = NULL
        FROM (SELECT unnest(seat_ids) AS seat_id, reservation_id FROM over) o
        WHERE s.seat_id = o.seat_id AND s.reservation_id = o.reservation_id)
    INSERT INTO seat_releases AS r (schedule_id, releases)
    SELECT schedule_id, 1 FROM (SELECT DISTINCT schedule_id FROM over ORDER BY schedule_id) AS touched
    ON CONFLICT (schedule_id) DO UPDATE SET releases = r.releases + 1";

/// Queues in which somebody may wait, how many are inside, and the total of the same moment. It locks nothing.
const LINES: &str = "
    SELECT q.concert_id, q.admitted_total, (
        SELECT count(*) FROM queue_tokens t WHERE t.concert_id = q.concert_id AND t.status = 'ACTIVE') AS active
    FROM queues q
    WHERE q.state IN ('OPEN', 'DRAINING') AND q.next_seq > q.admitted_seq + 1 AND q.max_active > 0
    ORDER BY q.concert_id";

const LOCK: &str = "
    SELECT now() AS now, state, rate_per_minute, burst, max_active, active_seconds, credit, refilled_at, next_seq, admitted_seq,
           admitted_total
    FROM queues WHERE concert_id = $1 FOR UPDATE";

/// Admits the first `$3` in line of concert `$1` after place `$2`, at `$4`, until `$5`; `$6` is the credit that is left if all come.
const ADMIT: &str = "
    WITH front AS MATERIALIZED (
        SELECT seq FROM queue_tokens
        WHERE concert_id = $1 AND seq > $2 AND status = 'WAITING' ORDER BY seq LIMIT $3 FOR UPDATE),
    admitted AS (
        UPDATE queue_tokens t SET status = 'ACTIVE', admitted_at = $4, expires_at = $5
        FROM front WHERE t.concert_id = $1 AND t.seq = front.seq RETURNING t.seq),
    counted AS (SELECT count(*) AS admissions, max(seq) AS last FROM admitted)
    UPDATE queues q SET credit = $6 + ($3 - c.admissions) * 60000000, refilled_at = $4, admitted_seq = c.last,
                        admitted_total = q.admitted_total + c.admissions
    FROM counted c WHERE q.concert_id = $1 AND c.admissions > 0";

/// Goes on for ever.
pub(super) async fn run(app: Arc<App>) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Err(error) = tick(&app).await {
            tracing::warn!(%error, "what time does waits for the next time");
        }
    }
}

async fn tick(app: &App) -> Result<(), sqlx::Error> {
    let pool: &PgPool = &app.pool;
    sqlx::query(EXPIRE_HOLDS).bind(ROWS_MAX).execute(pool).await?;
    sqlx::query(EXPIRE_TOKENS).bind(ROWS_MAX).execute(pool).await?;
    let lines: Vec<(ConcertId, i64, i64)> = sqlx::query_as(LINES).fetch_all(pool).await?;
    for (concert, admitted_total, active) in lines {
        app.inside.note(concert, active, admitted_total);
        admit(app, concert).await?;
    }
    Ok(())
}

async fn admit(app: &App, concert: ConcertId) -> Result<(), sqlx::Error> {
    let mut transaction = app.begin().await?;
    let mut line: Line = sqlx::query_as(LOCK).bind(concert).fetch_one(&mut *transaction).await?;
    line.refill();
    let room =
        app.inside.at_most(concert, line.admitted_total).map_or(0, |at_most| i64::from(line.max_active) - at_most);
    let admissions = line.admissions().min(room).min(ROWS_MAX);
    if !line.admits() || admissions < 1 {
        return transaction.rollback().await;
    }
    let until = line.admit(admissions);
    sqlx::query(ADMIT)
        .bind(concert)
        .bind(line.admitted_seq)
        .bind(admissions)
        .bind(line.refilled_at)
        .bind(until)
        .bind(line.credit)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}
