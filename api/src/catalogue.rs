//! Facts of concerts and schedules that never change, read once: a request through the log asks the database for none of them once
//! they are warm. While the database is down, what is known counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, Utc};
use chrono_tz::Tz;
use common::catalogue::Schedule;
use common::ids::{ConcertId, ScheduleId};
use common::problems::{Problem, Slug};
use moka::sync::Cache;

use crate::error::ApiError;
use crate::state::App;
use crate::store;

/// How long the list of a concert's schedules is taken as it is: new ones may come.
const STARTS_FRESH: Duration = Duration::from_secs(1);

/// When the schedules of a concert begin, by time.
type Starts = Arc<[(ScheduleId, DateTime<Utc>)]>;

/// What is known.
pub(crate) struct Catalogue {
    schedules: Cache<ScheduleId, Arc<Schedule>>,
    zones: Cache<ConcertId, Tz>,
    starts: Cache<ConcertId, (Instant, Starts)>,
}

impl Catalogue {
    /// At most `entries` of each kind.
    pub(crate) fn new(entries: u64) -> Self {
        Self { schedules: Cache::new(entries), zones: Cache::new(entries), starts: Cache::new(entries) }
    }

    /// A schedule with the rules of its concert.
    ///
    /// # Errors
    /// 404 `schedule-not-found`; 503
    pub(crate) async fn schedule(&self, app: &App, id: ScheduleId) -> Result<Arc<Schedule>, ApiError> {
        if let Some(schedule) = self.schedules.get(&id) {
            return Ok(schedule);
        }
        let Some(schedule) = app.schedule_row(id).await? else {
            let detail = format!("There is no schedule {id}; GET /v1/concerts/{{id}}/schedules lists them.");
            return Err(ApiError::new(Slug::ScheduleNotFound, detail));
        };
        self.schedules.insert(id, schedule.clone());
        Ok(schedule)
    }

    /// The time zone of a concert.
    ///
    /// # Errors
    /// 404 `concert-not-found`; 503
    pub(crate) async fn zone(&self, app: &App, concert: ConcertId) -> Result<Tz, ApiError> {
        if let Some(zone) = self.zones.get(&concert) {
            return Ok(zone);
        }
        let Some(name) = Box::pin(store::catalogue::time_zone(app.database()?, concert)).await? else {
            return Err(ApiError::concert_not_found(concert));
        };
        let zone = name.parse().unwrap_or_else(|_| {
            tracing::error!(%concert, name, "the concert's time zone is not known; UTC is taken");
            Tz::UTC
        });
        self.zones.insert(concert, zone);
        Ok(zone)
    }

    /// The schedule of a concert on a date in its zone.
    ///
    /// # Errors
    /// 404 `concert-not-found`, `schedule-not-found`; 422 `ambiguous-date`; 503
    pub(crate) async fn on_date(&self, app: &App, concert: ConcertId, date: NaiveDate) -> Result<ScheduleId, ApiError> {
        let zone = self.zone(app, concert).await?;
        let now = Utc::now();
        let starts = self.starts(app, concert).await?;
        match on_date(&starts, zone, date, now).as_slice() {
            [] => {
                let detail = format!("Concert {concert} has no schedule on {date}.");
                Err(ApiError::new(Slug::ScheduleNotFound, detail))
            }
            [schedule] => Ok(*schedule),
            several => {
                let ids: Vec<i64> = several.iter().map(|schedule| schedule.0).collect();
                let detail =
                    format!("Concert {concert} has several schedules on {date}; send a schedule_id with seat_ids.");
                Err(Problem::new(Slug::AmbiguousDate, detail).with("schedule_ids", ids).into())
            }
        }
    }

    async fn starts(&self, app: &App, concert: ConcertId) -> Result<Starts, ApiError> {
        let known = self.starts.get(&concert);
        if let Some((read_at, starts)) = &known
            && read_at.elapsed() < STARTS_FRESH
        {
            return Ok(starts.clone());
        }
        let read: Result<Starts, ApiError> = match app.database() {
            Ok(pool) => Box::pin(store::catalogue::starts(pool, concert)).await.map(Into::into).map_err(Into::into),
            Err(error) => Err(error),
        };
        match read {
            Ok(starts) => {
                self.starts.insert(concert, (Instant::now(), starts.clone()));
                Ok(starts)
            }
            Err(error) => known.map(|(_, starts)| starts).ok_or(error),
        }
    }

    /// An operator added a schedule to this concert.
    pub(crate) fn schedules_changed(&self, concert: ConcertId) {
        self.starts.invalidate(&concert);
    }

    /// Schedules and concerts that are known.
    pub(crate) fn len(&self) -> u64 {
        self.schedules.entry_count() + self.zones.entry_count()
    }
}

/// The schedules to come on a date; if there are none, the last one of that date, which has begun.
fn on_date(starts: &[(ScheduleId, DateTime<Utc>)], zone: Tz, date: NaiveDate, now: DateTime<Utc>) -> Vec<ScheduleId> {
    let that_day: Vec<_> = starts.iter().filter(|(_, at)| at.with_timezone(&zone).date_naive() == date).collect();
    let to_come: Vec<ScheduleId> = that_day.iter().filter(|(_, at)| *at > now).map(|(id, _)| *id).collect();
    if to_come.is_empty() { that_day.last().map(|(id, _)| *id).into_iter().collect() } else { to_come }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_one_in_the_concerts_zone_and_schedules_to_come_count_first() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let date = |text: &str| text.parse::<NaiveDate>().unwrap();
        let starts = [
            (ScheduleId(1), at("2026-05-01T14:30:00Z")), // 23:30 in Seoul
            (ScheduleId(2), at("2026-05-01T15:30:00Z")), // the next day there
            (ScheduleId(3), at("2026-05-02T10:00:00Z")),
        ];
        let on = |day: &str, now: &str| on_date(&starts, chrono_tz::Asia::Seoul, date(day), at(now));
        assert_eq!(on("2026-05-01", "2026-04-01T00:00:00Z"), [ScheduleId(1)]);
        assert_eq!(on("2026-05-02", "2026-04-01T00:00:00Z"), [ScheduleId(2), ScheduleId(3)]);
        assert_eq!(on("2026-05-02", "2026-05-01T16:00:00Z"), [ScheduleId(3)]);
        assert_eq!(on("2026-05-02", "2026-06-01T00:00:00Z"), [ScheduleId(3)]);
        assert!(on("2026-05-03", "2026-04-01T00:00:00Z").is_empty());
    }
}
