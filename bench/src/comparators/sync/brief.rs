//! Bodies that may be shown for a moment after they were read, however many ask.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;

/// Bodies that are remembered before it starts afresh.
const ENTRIES_MAX: usize = 5_000;

type Entry = tokio::sync::Mutex<Option<(Instant, Bytes)>>;

/// The bodies, each by its key.
pub(super) struct Brief<K> {
    age_max: Duration,
    entries: Mutex<HashMap<K, Arc<Entry>>>,
}

impl<K: Eq + Hash> Brief<K> {
    /// None yet; each may be shown for `age_max`.
    pub(super) fn new(age_max: Duration) -> Self {
        Self { age_max, entries: Mutex::default() }
    }

    /// The body of `key`: the one that is there, or what `read` reads. Who comes meanwhile waits for that.
    pub(super) async fn get<E>(&self, key: K, read: impl AsyncFnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if self.age_max.is_zero() {
            return read().await;
        }
        let entry = self.entry(key);
        let mut body = entry.lock().await;
        if let Some((read_at, body)) = body.as_ref()
            && read_at.elapsed() < self.age_max
        {
            return Ok(body.clone());
        }
        // Its age counts from before the reading.
        let began = Instant::now();
        let fresh = read().await?;
        *body = Some((began, fresh.clone()));
        Ok(fresh)
    }

    fn entry(&self, key: K) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX {
            entries.clear();
        }
        entries.entry(key).or_default().clone()
    }
}
