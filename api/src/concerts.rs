//! The public pages of concerts: the list, page by page, and each concert, with the schedules to come. Whoever asks, each is read once
//! a second at most, for all who ask.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use common::ids::ConcertId;
use common::messages::tokens::QueueState;
use moka::sync::Cache;
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;

use crate::availability::Availability;
use crate::cursor::{ConcertCursor, Cursor};
use crate::fresh::{Fresh, ReadError};
use crate::store::concerts::{self, ConcertRow, ScheduleRow};

/// Oldest body that is shown.
const AGE_MAX: Duration = Duration::from_millis(900);
/// Shortest time between two readings for one body.
const READ_EVERY: Duration = Duration::from_millis(200);
/// Bodies that are remembered, of each kind.
const BODIES_MAX: u64 = 2_000;

/// A concert, as everybody may see it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ConcertBody {
    /// Its id.
    pub(crate) concert_id: ConcertId,
    /// What it is called.
    pub(crate) title: String,
    /// The deployment's currency.
    pub(crate) currency: String,
    /// IANA name of the zone in which its dates are told.
    #[schema(example = "Asia/Seoul")]
    pub(crate) time_zone: String,
    /// How long a hold lasts.
    pub(crate) hold_seconds: i32,
    /// Live seats (HELD or PAID) that one buyer may have in one schedule.
    pub(crate) max_seats_per_buyer: i32,
    /// Whether its queue takes joins and admits.
    pub(crate) queue_state: QueueState,
    /// Date of the first schedule to come, in the concert's zone; null if there is none.
    pub(crate) schedules_from: Option<NaiveDate>,
    /// Date of the last schedule to come.
    pub(crate) schedules_to: Option<NaiveDate>,
    /// Available seats in all schedules to come.
    pub(crate) available_seats: i64,
}

/// A page of concerts, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ConcertsBody {
    /// The concerts.
    concerts: Vec<ConcertBody>,
    /// Where the next page begins; null at the end.
    next_cursor: Option<String>,
}

/// Where a page begins (None: at the newest concert), and how many concerts it has.
type Page = (Option<i64>, i64);

/// The bodies.
pub(crate) struct Concerts {
    currency: String,
    pages: Cache<Page, Arc<Fresh<Bytes>>>,
    single: Cache<ConcertId, Arc<Fresh<Option<Bytes>>>>,
    schedules: Cache<ConcertId, Arc<Fresh<Vec<ScheduleRow>>>>,
}

impl Concerts {
    /// With prices in `currency`.
    pub(crate) fn new(currency: String) -> Self {
        let (pages, single, schedules) = (Cache::new(BODIES_MAX), Cache::new(BODIES_MAX), Cache::new(BODIES_MAX));
        Self { currency, pages, single, schedules }
    }

    /// An operator changed something about this concert.
    pub(crate) fn changed(&self, concert: ConcertId) {
        if let Some(body) = self.single.get(&concert) {
            body.changed();
        }
        if let Some(schedules) = self.schedules.get(&concert) {
            schedules.changed();
        }
        for (_, page) in &self.pages {
            page.changed();
        }
    }

    /// A page of the list, as JSON.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn page(
        &self,
        pool: &PgPool,
        availability: &Availability,
        after: Option<ConcertCursor>,
        limit: i64,
    ) -> Result<Bytes, ReadError> {
        let before = after.map(|cursor| cursor.0);
        let page = self.pages.get_with((before, limit), || Arc::new(Fresh::new(AGE_MAX, READ_EVERY)));
        let read = async || -> Result<Bytes, ReadError> {
            let mut rows = concerts::concerts(pool, before, limit + 1).await?;
            let more = rows.len() > usize::try_from(limit).unwrap_or_default();
            rows.truncate(usize::try_from(limit).unwrap_or_default());
            let next_cursor = rows.last().filter(|_| more).map(|row| ConcertCursor(row.concert_id.0).encode());
            let concerts = self.bodies(pool, availability, rows).await?;
            Ok(json(&ConcertsBody { concerts, next_cursor }))
        };
        Ok((*page.get(read).await?).clone())
    }

    /// One concert, as JSON; None: there is no such concert.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn one(
        &self,
        pool: &PgPool,
        availability: &Availability,
        concert: ConcertId,
    ) -> Result<Option<Bytes>, ReadError> {
        let body = self.single.get_with(concert, || Arc::new(Fresh::new(AGE_MAX, READ_EVERY)));
        let read = async || -> Result<Option<Bytes>, ReadError> {
            let Some(row) = concerts::concert(pool, concert).await? else { return Ok(None) };
            let bodies = self.bodies(pool, availability, vec![row]).await?;
            Ok(bodies.first().map(json))
        };
        let found = (*body.get(read).await?).clone();
        if found.is_none() {
            // It may be made in the next moment, by another process.
            body.changed();
        }
        Ok(found)
    }

    /// The schedules of a concert that have not begun, by time. One that another process has made just now may be missing for a second.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn schedules(&self, pool: &PgPool, concert: ConcertId) -> Result<Vec<ScheduleRow>, ReadError> {
        let schedules = self.schedules.get_with(concert, || Arc::new(Fresh::new(AGE_MAX, READ_EVERY)));
        let read = async || concerts::schedules_to_come(pool, &[concert.0]).await;
        let (now, rows) = (Utc::now(), schedules.get(read).await?);
        Ok(rows.iter().filter(|row| row.starts_at > now).copied().collect())
    }

    async fn bodies(
        &self,
        pool: &PgPool,
        availability: &Availability,
        rows: Vec<ConcertRow>,
    ) -> Result<Vec<ConcertBody>, ReadError> {
        let ids: Vec<i64> = rows.iter().map(|row| row.concert_id.0).collect();
        let schedules = concerts::schedules_to_come(pool, &ids).await?;
        let available = availability.of(pool, schedules.iter().map(|schedule| schedule.schedule_id)).await?;
        let mut by_concert: HashMap<ConcertId, Vec<ScheduleRow>> = HashMap::new();
        for schedule in schedules {
            by_concert.entry(schedule.concert_id).or_default().push(schedule);
        }
        let bodies = rows.into_iter().map(|row| {
            let schedules = by_concert.remove(&row.concert_id).unwrap_or_default();
            let left = schedules.iter().filter_map(|schedule| available.get(&schedule.schedule_id)).sum();
            self.body(row, &schedules, left)
        });
        Ok(bodies.collect())
    }

    /// The body of a concert with these schedules to come, by time.
    pub(crate) fn body(&self, row: ConcertRow, schedules: &[ScheduleRow], available_seats: i64) -> ConcertBody {
        let zone = zone_of(&row.time_zone);
        let date = |schedule: &ScheduleRow| date_in(zone, schedule.starts_at);
        ConcertBody {
            concert_id: row.concert_id,
            title: row.title,
            currency: self.currency.clone(),
            time_zone: row.time_zone,
            hold_seconds: row.hold_seconds,
            max_seats_per_buyer: row.max_seats_per_buyer,
            queue_state: row.queue_state,
            schedules_from: schedules.first().map(date),
            schedules_to: schedules.last().map(date),
            available_seats,
        }
    }
}

/// The zone of that name. All names were checked when their concerts were made.
fn zone_of(name: &str) -> Tz {
    name.parse().unwrap_or(Tz::UTC)
}

/// The date of a moment in a zone.
pub(crate) fn date_in(zone: Tz, at: DateTime<Utc>) -> NaiveDate {
    at.with_timezone(&zone).date_naive()
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("bodies have text keys and no maps of other kinds").into()
}

#[cfg(test)]
mod tests {
    use common::ids::ScheduleId;

    use super::*;

    fn schedule(starts_at: &str) -> ScheduleRow {
        let starts_at = starts_at.parse().unwrap();
        ScheduleRow { schedule_id: ScheduleId(1), concert_id: ConcertId(1), starts_at, total_seats: 5 }
    }

    #[test]
    fn dates_are_those_of_the_concerts_zone_or_null() {
        let row = ConcertRow {
            concert_id: ConcertId(1),
            title: "t".to_owned(),
            time_zone: "Asia/Seoul".to_owned(),
            hold_seconds: 300,
            max_seats_per_buyer: 4,
            queue_state: QueueState::Open,
        };
        let concerts = Concerts::new("KRW".to_owned());
        let to_come = [schedule("2026-12-30T14:59:59Z"), schedule("2026-12-31T15:00:00Z")];
        let body = concerts.body(row.clone(), &to_come, 7);
        let date = |text: &str| Some(text.parse::<NaiveDate>().unwrap());
        assert_eq!((body.schedules_from, body.schedules_to), (date("2026-12-30"), date("2027-01-01")));
        assert_eq!(body.available_seats, 7);
        let body = concerts.body(row, &[], 0);
        assert_eq!((body.schedules_from, body.schedules_to), (None, None));
    }
}
