//! Concerts and schedules, as far as requests through the log ask.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use common::catalogue::{Schedule, read_schedules};
use common::ids::{ConcertId, ScheduleId};
use sqlx::PgPool;

/// Schedules with the rules of their concerts; those that do not exist are missing.
///
/// # Errors
/// What the database says.
pub(crate) async fn schedules(
    pool: &PgPool,
    ids: &[ScheduleId],
) -> Result<HashMap<ScheduleId, Arc<Schedule>>, sqlx::Error> {
    let ids: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let mut connection = pool.acquire().await?;
    let schedules = read_schedules(&mut connection, &ids).await?;
    Ok(schedules.into_iter().map(|schedule| (schedule.schedule_id, Arc::new(schedule))).collect())
}

/// The time zone of a concert, as its name.
///
/// # Errors
/// What the database says.
pub(crate) async fn time_zone(pool: &PgPool, concert: ConcertId) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!("SELECT time_zone FROM concerts WHERE concert_id = $1", concert.0).fetch_optional(pool).await
}

/// The schedules of a concert by time, with when they begin.
///
/// # Errors
/// What the database says.
pub(crate) async fn starts(pool: &PgPool, concert: ConcertId) -> Result<Vec<(ScheduleId, DateTime<Utc>)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT schedule_id AS "schedule_id: ScheduleId", starts_at FROM schedules
           WHERE concert_id = $1 ORDER BY starts_at, schedule_id"#,
        concert.0
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.schedule_id, row.starts_at)).collect())
}
