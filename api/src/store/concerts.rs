//! Concerts and their schedules: listed for everybody, made by operators.

use chrono::{DateTime, Utc};
use common::catalogue::PaymentFailurePolicy;
use common::ids::{ConcertId, ScheduleId};
use common::messages::tokens::QueueState;
use common::seating::Section;
use sqlx::PgPool;
use sqlx::types::Json;

/// A concert with the state of its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConcertRow {
    /// Its id.
    pub(crate) concert_id: ConcertId,
    /// What it is called.
    pub(crate) title: String,
    /// IANA name of the zone in which its dates are told.
    pub(crate) time_zone: String,
    /// How long a hold lasts, in seconds.
    pub(crate) hold_seconds: i32,
    /// Live seats that one buyer may have in one schedule.
    pub(crate) max_seats_per_buyer: i32,
    /// Whether its queue takes joins and admits.
    pub(crate) queue_state: QueueState,
}

/// A page of concerts, newest first, after the one with the id `before`.
///
/// # Errors
/// What the database says.
pub(crate) async fn concerts(pool: &PgPool, before: Option<i64>, limit: i64) -> Result<Vec<ConcertRow>, sqlx::Error> {
    sqlx::query_as!(
        ConcertRow,
        r#"SELECT c.concert_id AS "concert_id: ConcertId", c.title, c.time_zone, c.hold_seconds, c.max_seats_per_buyer,
                  q.state AS "queue_state: QueueState"
           FROM concerts c JOIN queues q USING (concert_id)
           WHERE c.concert_id < $1
           ORDER BY c.concert_id DESC
           LIMIT $2"#,
        before.unwrap_or(i64::MAX),
        limit
    )
    .fetch_all(pool)
    .await
}

/// One concert.
///
/// # Errors
/// What the database says.
pub(crate) async fn concert(pool: &PgPool, id: ConcertId) -> Result<Option<ConcertRow>, sqlx::Error> {
    sqlx::query_as!(
        ConcertRow,
        r#"SELECT c.concert_id AS "concert_id: ConcertId", c.title, c.time_zone, c.hold_seconds, c.max_seats_per_buyer,
                  q.state AS "queue_state: QueueState"
           FROM concerts c JOIN queues q USING (concert_id)
           WHERE c.concert_id = $1"#,
        id.0
    )
    .fetch_optional(pool)
    .await
}

/// A schedule that has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScheduleRow {
    /// Its id.
    pub(crate) schedule_id: ScheduleId,
    /// Its concert.
    pub(crate) concert_id: ConcertId,
    /// When it begins.
    pub(crate) starts_at: DateTime<Utc>,
    /// Seats in it, sold or not.
    pub(crate) total_seats: i32,
}

/// The schedules of these concerts that have not begun, each concert's by time.
///
/// # Errors
/// What the database says.
pub(crate) async fn schedules_to_come(pool: &PgPool, concerts: &[i64]) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    sqlx::query_as!(
        ScheduleRow,
        r#"SELECT schedule_id AS "schedule_id: ScheduleId", concert_id AS "concert_id: ConcertId", starts_at, total_seats
           FROM schedules
           WHERE concert_id = ANY($1) AND starts_at > now()
           ORDER BY concert_id, starts_at, schedule_id"#,
        concerts
    )
    .fetch_all(pool)
    .await
}

/// A concert that is to be made, its queue included.
#[derive(Debug, Clone)]
pub(crate) struct NewConcert<'a> {
    /// What it is called.
    pub(crate) title: &'a str,
    /// IANA name of its time zone.
    pub(crate) time_zone: &'a str,
    /// How long a hold lasts, in seconds.
    pub(crate) hold_seconds: i32,
    /// Live seats that one buyer may have in one schedule.
    pub(crate) max_seats_per_buyer: i32,
    /// What happens to a hold when its payment fails.
    pub(crate) on_payment_failure: PaymentFailurePolicy,
    /// The queue's state.
    pub(crate) state: QueueState,
    /// Admissions a minute.
    pub(crate) rate_per_minute: i32,
    /// Admissions that may come at once.
    pub(crate) burst: i32,
    /// Buyers inside at the same time.
    pub(crate) max_active: i32,
    /// How long an admitted buyer may stay, in seconds.
    pub(crate) active_seconds: i32,
    /// What the token bucket begins with, in 60-millionths of an admission.
    pub(crate) credit: i64,
}

/// Adds a concert and its queue.
///
/// # Errors
/// What the database says.
pub(crate) async fn insert_concert(pool: &PgPool, new: &NewConcert<'_>) -> Result<ConcertId, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let concert_id = sqlx::query_scalar!(
        r#"INSERT INTO concerts (title, time_zone, hold_seconds, max_seats_per_buyer, on_payment_failure)
           VALUES ($1, $2, $3, $4, $5)
           RETURNING concert_id AS "concert_id: ConcertId""#,
        new.title,
        new.time_zone,
        new.hold_seconds,
        new.max_seats_per_buyer,
        new.on_payment_failure as PaymentFailurePolicy
    )
    .fetch_one(&mut *transaction)
    .await?;
    sqlx::query!(
        "INSERT INTO queues (concert_id, state, rate_per_minute, burst, max_active, active_seconds, credit)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        concert_id.0,
        new.state as QueueState,
        new.rate_per_minute,
        new.burst,
        new.max_active,
        new.active_seconds,
        new.credit
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(concert_id)
}

/// Adds a schedule and all its seats, in one transaction. None: there is no such concert.
///
/// # Errors
/// What the database says.
pub(crate) async fn insert_schedule(
    pool: &PgPool,
    concert: ConcertId,
    starts_at: DateTime<Utc>,
    sections: &[Section],
    total_seats: i32,
) -> Result<Option<ScheduleId>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let schedule_id = sqlx::query_scalar!(
        r#"INSERT INTO schedules (concert_id, starts_at, sections, total_seats)
           SELECT concert_id, $2, $3, $4 FROM concerts WHERE concert_id = $1
           RETURNING schedule_id AS "schedule_id: ScheduleId""#,
        concert.0,
        starts_at,
        Json(sections) as _,
        total_seats
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(schedule_id) = schedule_id else { return Ok(None) };
    sqlx::query!(
        "INSERT INTO seats (seat_id) SELECT ($1::bigint << 18) | place FROM generate_series(1, $2) AS place",
        schedule_id.0,
        total_seats
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Some(schedule_id))
}

/// Tells the planner about the seats. Right after many were added, plans are made for the table as it was before.
///
/// # Errors
/// What the database says.
pub(crate) async fn analyze_seats(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("ANALYZE seats").execute(pool).await?;
    Ok(())
}
