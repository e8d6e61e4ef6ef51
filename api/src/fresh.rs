//! A value of the database that many look at: read once for all who wait, not more often than it may be, and shown
//! only while it is young and nothing is known to have changed since. When many wait for the next reading already, who comes then is
//! shown the last one while it is young: else a change every few milliseconds would let everybody wait, always.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

/// So many wait for a reading at most, while there is a young one to be shown.
const WAITING_MAX: usize = 32;

/// Why there is no value.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    /// This reading failed.
    #[error("the database was not read: {0}")]
    Database(#[from] sqlx::Error),
    /// The reading that this one waited for has just failed.
    #[error("the database could not be read a moment ago")]
    JustFailed,
}

/// A shared value and how fresh it is.
#[derive(Debug)]
pub(crate) struct Fresh<T> {
    age_max: Duration,
    read_every: Duration,
    changes: AtomicU64,
    waiting: Waiting,
    last: Mutex<Option<Dated<T>>>,
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Debug)]
struct Dated<T> {
    value: Arc<T>,
    read_at: Instant,
    changes_seen: u64,
}

/// Whoever has the turn reads; what the last one met.
#[derive(Debug, Default)]
struct Turn {
    read_at: Option<Instant>,
    failed_at: Option<Instant>,
}

impl<T> Fresh<T> {
    /// Nothing is read yet. A value is shown until it is `age_max` old, and read again `read_every` at the soonest.
    pub(crate) fn new(age_max: Duration, read_every: Duration) -> Self {
        let (last, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { age_max, read_every, changes: AtomicU64::new(0), waiting: Waiting::default(), last, turn }
    }

    /// The value has changed: what was read before now is not shown any more.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// The value, read if it has to be. Whatever was known to have changed before the call is in it, unless many wait for that.
    ///
    /// # Errors
    /// The reading failed: this one, or the one that it waited for.
    pub(crate) async fn get<F, R, E>(&self, read: F) -> Result<Arc<T>, ReadError>
    where
        F: FnOnce() -> R,
        R: Future<Output = Result<T, E>>,
        E: Into<ReadError>,
    {
        let arrived = Instant::now();
        let changes = self.changes.load(Ordering::SeqCst);
        if let Some(value) = self.good(changes) {
            return Ok(value);
        }
        if self.waiting.is_crowd()
            && let Some(value) = self.good(0)
        {
            return Ok(value);
        }
        let _waits = self.waiting.begin();
        let mut turn = self.turn.lock().await;
        if let Some(value) = self.good(changes) {
            return Ok(value);
        }
        if turn.failed_at.is_some_and(|at| at > arrived) {
            return Err(ReadError::JustFailed);
        }
        if let Some(last) = turn.read_at {
            tokio::time::sleep_until(last + self.read_every).await;
        }
        let (changes_seen, read_at) = (self.changes.load(Ordering::SeqCst), Instant::now());
        turn.read_at = Some(read_at);
        match read().await {
            Ok(value) => {
                let value = Arc::new(value);
                let dated = Dated { value: value.clone(), read_at, changes_seen };
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(dated);
                Ok(value)
            }
            Err(error) => {
                turn.failed_at = Some(Instant::now());
                Err(error.into())
            }
        }
    }

    fn good(&self, changes: u64) -> Option<Arc<T>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .filter(|dated| dated.changes_seen >= changes && dated.read_at.elapsed() < self.age_max)
            .map(|dated| dated.value.clone())
    }
}

/// How many wait for a reading.
#[derive(Debug, Default)]
pub(crate) struct Waiting(AtomicUsize);

impl Waiting {
    /// So many that whoever comes now is better served with what there is.
    pub(crate) fn is_crowd(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= WAITING_MAX
    }

    /// One more waits, until what is returned is dropped.
    pub(crate) fn begin(&self) -> Waits<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waits(&self.0)
    }
}

/// One who waits.
pub(crate) struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const AGE: Duration = Duration::from_millis(900);
    const EVERY: Duration = Duration::from_millis(200);

    struct Reader {
        fresh: Fresh<usize>,
        reads: AtomicUsize,
    }

    impl Reader {
        fn new() -> Arc<Self> {
            Arc::new(Self { fresh: Fresh::new(AGE, EVERY), reads: AtomicUsize::new(0) })
        }

        async fn get(&self) -> usize {
            *self.fresh.get(|| self.read()).await.unwrap()
        }

        async fn read(&self) -> Result<usize, sqlx::Error> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(self.reads.fetch_add(1, Ordering::SeqCst) + 1)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_come_at_once_share_one_reading_and_it_is_shown_until_it_is_old() {
        let reader = Reader::new();
        let all = futures::future::join_all((0..100).map(|_| reader.get())).await;
        assert!(all.iter().all(|read| *read == 1));
        tokio::time::advance(Duration::from_millis(880)).await;
        assert_eq!(reader.get().await, 1);
        tokio::time::advance(Duration::from_millis(20)).await;
        assert_eq!(reader.get().await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_knows_of_a_change_sees_it_and_waits_for_the_next_reading_at_most() {
        let reader = Reader::new();
        reader.get().await;
        reader.fresh.changed();
        let asked = Instant::now();
        assert_eq!(reader.get().await, 2);
        assert!(asked.elapsed() <= EVERY + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn under_constant_change_it_is_read_five_times_a_second_and_nobody_starves() {
        let reader = Reader::new();
        let end = Instant::now() + Duration::from_secs(2);
        let looks = (0..WAITING_MAX).map(|_| async {
            while Instant::now() < end {
                reader.fresh.changed();
                let asked = Instant::now();
                reader.get().await;
                assert!(asked.elapsed() <= 2 * EVERY + Duration::from_millis(20));
            }
        });
        futures::future::join_all(looks).await;
        let reads = reader.reads.load(Ordering::SeqCst);
        assert!((5..=12).contains(&reads), "{reads} readings in two seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_many_wait_is_shown_what_is_young() {
        let reader = Reader::new();
        reader.get().await;
        reader.fresh.changed();
        let all = futures::future::join_all((0..WAITING_MAX + 9).map(|_| reader.get())).await;
        assert_eq!(all.iter().filter(|read| **read == 1).count(), 9);
        assert_eq!(reader.get().await, 2);
        tokio::time::advance(AGE).await;
        let all = futures::future::join_all((0..WAITING_MAX + 9).map(|_| reader.get())).await;
        assert!(all.iter().all(|read| *read == 3), "what is old is shown to nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_to_all_who_waited_for_it_and_the_next_one_tries_again() {
        let reader = Reader::new();
        let fails = AtomicUsize::new(0);
        let fail = || async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            fails.fetch_add(1, Ordering::SeqCst);
            Err(sqlx::Error::PoolTimedOut)
        };
        let asked = Instant::now();
        let all = futures::future::join_all((0..100).map(|_| reader.fresh.get(fail))).await;
        assert!(all.iter().all(Result::is_err) && asked.elapsed() < Duration::from_secs(4));
        assert_eq!(fails.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(reader.get().await, 1);
    }
}
