//! Who has which seats: counted, or all of them at once.

use chrono::{DateTime, Utc};
use common::ids::ScheduleId;
use sqlx::PgPool;

/// How many seats of each schedule are available. A schedule's seats are one range of the primary key.
///
/// # Errors
/// What the database says.
pub(crate) async fn available_seats(pool: &PgPool, schedules: &[i64]) -> Result<Vec<(ScheduleId, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT asked.schedule_id AS "schedule_id!: ScheduleId",
                  (SELECT count(*) FROM seats s
                   WHERE s.seat_id BETWEEN asked.schedule_id << 18 AND (asked.schedule_id << 18) + 262143
                     AND s.status = 'AVAILABLE') AS "available!"
           FROM unnest($1::bigint[]) AS asked (schedule_id)"#,
        schedules
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.schedule_id, row.available)).collect())
}

/// The state of all seats of a schedule at one moment, `A`vailable, `H`eld or `S`old, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeatStates {
    /// That moment, by the database's clock.
    pub(crate) as_of: DateTime<Utc>,
    /// One letter a seat.
    pub(crate) letters: String,
}

/// Reads the state of all seats of a schedule as one value: a map of 50,000 seats is one row.
///
/// # Errors
/// What the database says.
pub(crate) async fn seat_states(pool: &PgPool, schedule: ScheduleId) -> Result<SeatStates, sqlx::Error> {
    sqlx::query_as!(
        SeatStates,
        r#"SELECT statement_timestamp() AS "as_of!", coalesce(string_agg(letter, ''), '') AS "letters!"
           FROM (SELECT CASE status WHEN 'AVAILABLE' THEN 'A' WHEN 'HELD' THEN 'H' ELSE 'S' END AS letter
                 FROM seats
                 WHERE seat_id BETWEEN $1::bigint << 18 AND ($1::bigint << 18) + 262143
                 ORDER BY seat_id) AS in_order"#,
        schedule.0
    )
    .fetch_one(pool)
    .await
}
