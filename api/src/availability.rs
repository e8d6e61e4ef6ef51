//! How many seats of each schedule are left: counted by one query for all that are asked for, and remembered until
//! something changes hands. A count is read again at most five times a second.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::ids::ScheduleId;
use moka::sync::Cache;
use sqlx::PgPool;
use tokio::time::Instant;

use crate::fresh::{ReadError, Waiting};
use crate::store;

/// A count is read again after this time although the results topic told of no change.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Shortest time between two readings of a count.
const READ_EVERY: Duration = Duration::from_millis(200);
/// The oldest count that is shown while many wait for the next one.
const CROWD_AGE_MAX: Duration = Duration::from_millis(900);
/// Schedules that are remembered.
const SCHEDULES_MAX: u64 = 100_000;

/// The counts of all schedules that are asked for.
pub(crate) struct Availability {
    counts: Cache<ScheduleId, Arc<Count>>,
    /// Held by who reads: one query at a time.
    failed_at: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Count {
    changes: AtomicU64,
    waiting: Waiting,
    last: Mutex<Option<Counted>>,
}

#[derive(Clone, Copy)]
struct Counted {
    available: i64,
    read_at: Instant,
    changes_seen: u64,
}

impl Count {
    fn last(&self) -> Option<Counted> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The count, if it is young and has all of the changes.
    fn good(&self, changes: u64) -> Option<i64> {
        let good = |counted: &Counted| counted.changes_seen >= changes && counted.read_at.elapsed() < AGE_MAX;
        self.last().filter(good).map(|counted| counted.available)
    }
}

/// A count that was asked for, and the changes that were known then.
struct Asked {
    schedule: ScheduleId,
    count: Arc<Count>,
    changes: u64,
}

impl Availability {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self { counts: Cache::new(SCHEDULES_MAX), failed_at: tokio::sync::Mutex::default() }
    }

    /// Seats of this schedule have changed hands.
    pub(crate) fn changed(&self, schedule: ScheduleId) {
        if let Some(count) = self.counts.get(&schedule) {
            count.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Seats have changed hands, and nobody said in which schedule.
    pub(crate) fn all_changed(&self) {
        for (_, count) in &self.counts {
            count.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The available seats of each schedule. Whatever was known to have changed before the call is counted, unless many wait for that.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn of(
        &self,
        pool: &PgPool,
        schedules: impl IntoIterator<Item = ScheduleId>,
    ) -> Result<HashMap<ScheduleId, i64>, ReadError> {
        let arrived = Instant::now();
        let asked: Vec<Asked> = schedules
            .into_iter()
            .map(|schedule| {
                let count = self.counts.get_with(schedule, Arc::default);
                let changes = count.changes.load(Ordering::SeqCst);
                Asked { schedule, count, changes }
            })
            .collect();
        let mut counts = HashMap::with_capacity(asked.len());
        let stale = known(&asked, &mut counts);
        let Some(read_at) = stale.iter().map(|asked| asked.count.last().map(|last| last.read_at)).max() else {
            return Ok(counts);
        };
        if stale.iter().all(|asked| asked.count.waiting.is_crowd()) && young(&stale, &mut counts) {
            return Ok(counts);
        }
        let _waits: Vec<_> = stale.iter().map(|asked| asked.count.waiting.begin()).collect();
        if let Some(read_at) = read_at {
            tokio::time::sleep_until(read_at + READ_EVERY).await;
        }
        let mut failed_at = self.failed_at.lock().await;
        let stale = known(&asked, &mut counts);
        if stale.is_empty() {
            return Ok(counts);
        }
        if failed_at.is_some_and(|at| at > arrived) {
            return Err(ReadError::JustFailed);
        }
        match read(pool, &stale).await {
            Ok(read) => counts.extend(read),
            Err(error) => {
                *failed_at = Some(Instant::now());
                return Err(error.into());
            }
        }
        Ok(counts)
    }
}

/// Puts the counts that are good into `counts`; the others are left.
fn known<'a>(asked: &'a [Asked], counts: &mut HashMap<ScheduleId, i64>) -> Vec<&'a Asked> {
    let mut stale = Vec::new();
    for asked in asked {
        match asked.count.good(asked.changes) {
            Some(available) => {
                counts.insert(asked.schedule, available);
            }
            None => stale.push(asked),
        }
    }
    stale
}

/// Whether none of these counts is too old for a crowd; they are put into `counts` then.
fn young(stale: &[&Asked], counts: &mut HashMap<ScheduleId, i64>) -> bool {
    let last = |asked: &&Asked| asked.count.last().filter(|counted| counted.read_at.elapsed() < CROWD_AGE_MAX);
    let Some(young) =
        stale.iter().map(|asked| Some((asked.schedule, last(asked)?.available))).collect::<Option<Vec<_>>>()
    else {
        return false;
    };
    counts.extend(young);
    true
}

async fn read(pool: &PgPool, stale: &[&Asked]) -> Result<Vec<(ScheduleId, i64)>, sqlx::Error> {
    let ids: Vec<i64> = stale.iter().map(|asked| asked.schedule.0).collect();
    let read_at = Instant::now();
    let before: Vec<u64> = stale.iter().map(|asked| asked.count.changes.load(Ordering::SeqCst)).collect();
    let counts = store::seats::available_seats(pool, &ids).await?;
    let by_id: HashMap<ScheduleId, i64> = counts.iter().copied().collect();
    for (asked, changes_seen) in stale.iter().zip(before) {
        let available = by_id.get(&asked.schedule).copied().unwrap_or_default();
        let counted = Counted { available, read_at, changes_seen };
        *asked.count.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(counted);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_count_is_good_while_it_is_young_and_nothing_has_changed() {
        let count = Count::default();
        assert_eq!(count.good(0), None);
        *count.last.lock().unwrap() = Some(Counted { available: 7, read_at: Instant::now(), changes_seen: 3 });
        assert_eq!((count.good(3), count.good(4)), (Some(7), None));
        tokio::time::advance(AGE_MAX).await;
        assert_eq!(count.good(3), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_shown_young_counts_and_nothing_else() {
        let asked = |id: i64| Asked { schedule: ScheduleId(id), count: Arc::default(), changes: 4 };
        let (one, two) = (asked(1), asked(2));
        let mut counts = HashMap::new();
        let counted = |available| Some(Counted { available, read_at: Instant::now(), changes_seen: 3 });
        *one.count.last.lock().unwrap() = counted(7);
        assert!(!young(&[&one, &two], &mut counts) && counts.is_empty());
        *two.count.last.lock().unwrap() = counted(8);
        assert!(young(&[&one, &two], &mut counts));
        assert_eq!(counts, HashMap::from([(ScheduleId(1), 7), (ScheduleId(2), 8)]));
        tokio::time::advance(CROWD_AGE_MAX).await;
        assert!(!young(&[&one], &mut counts));
    }
}
