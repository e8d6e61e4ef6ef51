//! Seat maps: who looks at seats looks at a copy in memory that is at most a second old, however many look.
//!
//! The database is read at most five times a second for a schedule. Who comes while the map is read waits for that
//! reading. A change that was seen on the results topic makes the map dirty: it is read again before it is shown, so a
//! buyer who was told of a hold sees it; only when dozens wait for that already, others are shown what is young enough. The body is written and compressed once for each reading and view, and served
//! as bytes.

mod gzip;
mod render;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use common::catalogue::Schedule;
use common::ids::ScheduleId;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::OnceCell;

pub(crate) use render::View;

use crate::fresh::{Fresh, ReadError};
use crate::store::seats::{SeatStates, seat_states};

/// Oldest map that is shown: a second, less the time that it takes to show it.
const AGE_MAX: Duration = Duration::from_millis(900);
/// Shortest time between two readings of one schedule.
const READ_EVERY: Duration = Duration::from_millis(200);
/// A map that nobody looked at for so long is dropped.
const IDLE_MAX: Duration = Duration::from_mins(1);
/// Bytes of a map, or of a view, besides what it holds.
const ENTRY_BYTES: usize = 512;

/// The maps of all schedules that are looked at.
#[derive(Debug)]
pub(crate) struct SeatMaps {
    maps: Cache<ScheduleId, Arc<SeatMap>>,
}

impl SeatMaps {
    /// Maps that take `bytes_max` of memory at most, all together.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let maps = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, map: &Arc<SeatMap>| u32::try_from(map.bytes.load(Ordering::Relaxed)).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(IDLE_MAX)
            .build();
        Self { maps }
    }

    /// Maps that are remembered.
    pub(crate) fn len(&self) -> u64 {
        self.maps.entry_count()
    }

    /// What they take of memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.maps.weighted_size()
    }

    /// Seats of this schedule have changed hands.
    pub(crate) fn changed(&self, schedule: ScheduleId) {
        if let Some(map) = self.maps.get(&schedule) {
            map.readings.changed();
        }
    }

    /// Seats have changed hands, and nobody said in which schedule.
    pub(crate) fn all_changed(&self) {
        for (_, map) in &self.maps {
            map.readings.changed();
        }
    }

    /// A view of a schedule's map as it is now, or was less than a second ago.
    ///
    /// # Errors
    /// The database does not answer.
    pub(crate) async fn view(&self, pool: &PgPool, schedule: &Arc<Schedule>, view: View) -> Result<Shown, ReadError> {
        let id = schedule.schedule_id;
        let map = self.maps.get_with(id, || Arc::new(SeatMap::new(schedule.clone())));
        let reading = map.readings.get(|| async { seat_states(pool, id).await.map(Reading::new) }).await?;
        let body = reading.body(&map.schedule, view);
        let shown = Shown { map, reading, view, body };
        self.weigh(&shown);
        Ok(shown)
    }

    /// The body of a view, compressed by gzip or plain.
    pub(crate) async fn body(&self, shown: &Shown, compressed: bool) -> Bytes {
        let bytes = if compressed {
            shown.body.compressed.get_or_init(|| off_thread(shown, Shown::compress)).await
        } else {
            shown.body.plain.get_or_init(|| off_thread(shown, Shown::write_plain)).await
        };
        self.weigh(shown);
        bytes.clone()
    }

    /// Tells the cache what a map weighs, if that has changed and the map is still the one in the cache.
    fn weigh(&self, shown: &Shown) {
        let map = &shown.map;
        let bytes = map.size(&shown.reading);
        if map.bytes.swap(bytes, Ordering::Relaxed) != bytes {
            let id = map.schedule.schedule_id;
            if self.maps.get(&id).is_some_and(|current| Arc::ptr_eq(&current, map)) {
                self.maps.insert(id, map.clone());
            }
        }
    }
}

/// Writing and compressing 50,000 seats takes a while, and others want to be served meanwhile.
async fn off_thread(shown: &Shown, work: fn(&Shown) -> Bytes) -> Bytes {
    let shown = shown.clone();
    tokio::task::spawn_blocking(move || work(&shown)).await.expect("writing a map does not panic")
}

/// One schedule's map.
#[derive(Debug)]
struct SeatMap {
    schedule: Arc<Schedule>,
    readings: Fresh<Reading>,
    /// What each view was compressed to the last time.
    runs: Mutex<HashMap<View, render::Runs>>,
    /// What it weighed when the cache was told.
    bytes: AtomicUsize,
}

impl SeatMap {
    fn new(schedule: Arc<Schedule>) -> Self {
        let readings = Fresh::new(AGE_MAX, READ_EVERY);
        Self { schedule, readings, runs: Mutex::default(), bytes: AtomicUsize::new(ENTRY_BYTES) }
    }

    fn size(&self, reading: &Reading) -> usize {
        let runs = lock(&self.runs);
        let compressed: usize = runs.values().flatten().map(|run| run.size()).sum();
        let bodies: usize = lock(&reading.bodies).values().map(|body| body.size()).sum();
        ENTRY_BYTES + reading.states.letters.len() + runs.len() * ENTRY_BYTES + compressed + bodies
    }
}

/// What was read at one time, and what was made of it.
#[derive(Debug)]
struct Reading {
    states: SeatStates,
    bodies: Mutex<HashMap<View, Arc<Body>>>,
}

impl Reading {
    fn new(states: SeatStates) -> Self {
        Self { states, bodies: Mutex::default() }
    }

    fn body(&self, schedule: &Schedule, view: View) -> Arc<Body> {
        let make = || Arc::new(Body::new(view.letters(schedule, self.states.letters.as_bytes())));
        lock(&self.bodies).entry(view).or_insert_with(make).clone()
    }
}

/// One view of a reading.
#[derive(Debug)]
struct Body {
    letters: Vec<u8>,
    etag: String,
    compressed: OnceCell<Bytes>,
    plain: OnceCell<Bytes>,
}

impl Body {
    fn new(letters: Vec<u8>) -> Self {
        let etag = etag(&letters);
        Self { letters, etag, compressed: OnceCell::new(), plain: OnceCell::new() }
    }

    fn size(&self) -> usize {
        let rendered = |cell: &OnceCell<Bytes>| cell.get().map_or(0, Bytes::len);
        ENTRY_BYTES + self.letters.len() + rendered(&self.compressed) + rendered(&self.plain)
    }
}

/// The same for all readings that show the same, whenever and by whichever process they were made.
fn etag(letters: &[u8]) -> String {
    let hash = Sha256::digest(letters);
    let mut etag = String::from("W/\"");
    for byte in &hash[..12] {
        write!(etag, "{byte:02x}").expect("writing to a string never fails");
    }
    etag + "\""
}

/// A view of a map that is fresh enough to be shown.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    map: Arc<SeatMap>,
    reading: Arc<Reading>,
    view: View,
    body: Arc<Body>,
}

impl Shown {
    /// Weak: two bodies with the same tag show the same seats in the same states, and differ in `as_of` alone.
    pub(crate) fn etag(&self) -> &str {
        &self.body.etag
    }

    fn compress(&self) -> Bytes {
        let schedule = &self.map.schedule;
        let before = lock(&self.map.runs).get(&self.view).cloned().unwrap_or_default();
        let runs = render::runs(schedule, self.view, &self.body.letters, &before);
        let bytes = render::compressed(schedule, self.reading.states.as_of, &runs);
        lock(&self.map.runs).insert(self.view, runs);
        bytes
    }

    fn write_plain(&self) -> Bytes {
        render::plain(&self.map.schedule, self.reading.states.as_of, self.view, &self.body.letters)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
