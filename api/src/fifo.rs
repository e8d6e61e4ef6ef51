//! Maps that are bounded, and forget first what came first. What the results topic tells last is asked for next, so neither how often nor
//! how lately an entry was asked for counts.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

/// What is sharded has so many.
pub(crate) const SHARDS: usize = 16;

/// A map that knows which entry is the oldest. Removed entries leave a trace in the order until it is swept.
pub(crate) struct Fifo<K, V> {
    entries: HashMap<K, (V, u64), RandomState>,
    order: VecDeque<(K, u64)>,
    next: u64,
}

impl<K, V> Default for Fifo<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::default(), order: VecDeque::new(), next: 0 }
    }
}

impl<K: Hash + Eq + Copy, V> Fifo<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Puts an entry in; it is the newest one now.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.next += 1;
        self.entries.insert(key, (value, self.next));
        self.order.push_back((key, self.next));
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order.retain(|(key, number)| entries.get(key).is_some_and(|(_, own)| own == number));
        }
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<V> {
        while let Some((key, number)) = self.order.pop_front() {
            if self.entries.get(&key).is_some_and(|(_, own)| *own == number) {
                return self.entries.remove(&key).map(|(value, _)| value);
            }
        }
        None
    }

    /// Entries, and traces of removed ones that are not swept yet.
    #[cfg(test)]
    pub(crate) fn traces(&self) -> usize {
        self.order.len()
    }
}

/// Several of the same, each with a lock of its own: threads seldom meet at the one that a key belongs to.
pub(crate) struct Sharded<T> {
    shards: Box<[Mutex<T>]>,
    hasher: RandomState,
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::default() }
    }
}

impl<T> Sharded<T> {
    /// The one that this key belongs to.
    pub(crate) fn of(&self, key: &impl Hash) -> MutexGuard<'_, T> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        lock(&self.shards[index])
    }

    /// One after the other.
    pub(crate) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, T>> {
        self.shards.iter().map(lock)
    }
}

/// The newest entries, for many threads.
pub(crate) struct Newest<K, V> {
    shards: Sharded<Fifo<K, V>>,
    entries_each: usize,
}

impl<K: Hash + Eq + Copy, V: Clone> Newest<K, V> {
    /// At most `entries` of them, roughly.
    pub(crate) fn new(entries: usize) -> Self {
        Self { shards: Sharded::default(), entries_each: entries.div_ceil(SHARDS) }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.shards.of(key).get(key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        let mut shard = self.shards.of(&key);
        shard.insert(key, value);
        while shard.len() > self.entries_each {
            shard.pop_oldest();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.all().map(|shard| shard.len()).sum()
    }
}

fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_however_often_the_old_ones_were_asked_for() {
        let (newest, entries) = (Newest::new(64 * SHARDS), 64 * SHARDS);
        for n in 0..2 * entries {
            newest.insert(n, n);
            for _ in 0..5 {
                newest.get(&(n % entries));
            }
        }
        // Keys do not spread over the shards to the entry.
        assert!((entries + entries / 2..2 * entries).all(|n| newest.get(&n) == Some(n)));
        assert!(newest.len() <= entries);
    }

    #[test]
    fn what_is_put_in_again_is_new_again() {
        let mut fifo = Fifo::default();
        for key in [1, 2, 1] {
            fifo.insert(key, key);
        }
        fifo.remove(&3);
        assert_eq!((fifo.pop_oldest(), fifo.pop_oldest(), fifo.pop_oldest()), (Some(2), Some(1), None));
    }
}
