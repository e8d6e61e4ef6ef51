//! Concerts' and schedules' fixed facts. They never change after they are made, so whoever has read one keeps it, until the database
//! is restored from a backup that may lack it.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::forms::from_its_name_alone;
use crate::ids::{ConcertId, ScheduleId};
use crate::seating::{Layout, Section};

/// Schedules that a [`Schedules`] remembers before it starts afresh.
const REMEMBERED_MAX: usize = 10_000;

/// What happens to a hold when its payment fails for want of balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[sqlx(type_name = "payment_failure_policy", rename_all = "snake_case")]
pub enum PaymentFailurePolicy {
    /// The buyer may charge and try again until the hold ends.
    KeepHold,
    /// The seats are released at once.
    ReleaseHold,
}

from_its_name_alone!(PaymentFailurePolicy);

/// A schedule with the rules of its concert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its id.
    pub schedule_id: ScheduleId,
    /// Its concert.
    pub concert_id: ConcertId,
    /// When it begins: sales end, refunds end.
    pub starts_at: DateTime<Utc>,
    /// Its seats.
    pub layout: Layout,
    /// How long a hold lasts, in seconds.
    pub hold_seconds: i32,
    /// Live seats (HELD or PAID) that one buyer may have in it.
    pub max_seats_per_buyer: i32,
    /// The concert's policy.
    pub on_payment_failure: PaymentFailurePolicy,
}

/// The schedules that a process has met, read from the database once.
#[derive(Debug, Default)]
pub struct Schedules {
    known: HashMap<ScheduleId, Arc<Schedule>>,
}

impl Schedule {
    /// How long a hold lasts.
    pub fn hold_time(&self) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.hold_seconds))
    }
}

impl Schedules {
    /// Reads those of `ids` that are not known yet. An id that does not exist is asked for again each time.
    ///
    /// # Errors
    /// What the database says.
    pub async fn load(&mut self, connection: &mut PgConnection, ids: &[ScheduleId]) -> Result<(), sqlx::Error> {
        let unknown: Vec<i64> = ids.iter().filter(|id| !self.known.contains_key(id)).map(|id| id.0).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
            return Box::pin(self.load(connection, ids)).await;
        }
        for schedule in read_schedules(connection, &unknown).await? {
            self.known.insert(schedule.schedule_id, Arc::new(schedule));
        }
        Ok(())
    }

    /// Reads all anew: the database may be another one.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// A schedule that [`Self::load`] found.
    pub fn get(&self, id: ScheduleId) -> Option<&Arc<Schedule>> {
        self.known.get(&id)
    }
}

/// Reads schedules by id.
///
/// # Errors
/// What the database says.
pub async fn read_schedules(connection: &mut PgConnection, ids: &[i64]) -> Result<Vec<Schedule>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT s.schedule_id AS "schedule_id: ScheduleId", s.concert_id AS "concert_id: ConcertId", s.starts_at,
                  s.sections AS "sections: Json<Vec<Section>>", c.hold_seconds, c.max_seats_per_buyer,
                  c.on_payment_failure AS "on_payment_failure: PaymentFailurePolicy"
           FROM schedules s JOIN concerts c USING (concert_id)
           WHERE s.schedule_id = ANY($1)"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Schedule {
            schedule_id: row.schedule_id,
            concert_id: row.concert_id,
            starts_at: row.starts_at,
            layout: Layout::new(row.schedule_id, row.sections.0),
            hold_seconds: row.hold_seconds,
            max_seats_per_buyer: row.max_seats_per_buyer,
            on_payment_failure: row.on_payment_failure,
        })
        .collect())
}
