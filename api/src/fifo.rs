//! Maps that are bounded, and forget first what came first. What the results topic tells last is asked for next, so neither how often nor
//! how lately an entry was asked for counts.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use foldhash::quality;
use hashbrown::HashTable;

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

    /// The number of the newest entry; each has a higher one than those before it.
    pub(crate) fn newest(&self) -> u64 {
        self.next
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<V> {
        self.pop_up_to(self.next)
    }

    /// Takes out the oldest entry, if its number is not above this one.
    pub(crate) fn pop_up_to(&mut self, newest: u64) -> Option<V> {
        while let Some((key, number)) = self.order.pop_front_if(|(_, number)| *number <= newest) {
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
    /// By the fast one, keys that resemble each other meet in few shards now and then.
    hasher: quality::RandomState,
}

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: quality::RandomState::default() }
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

/// The newest entries, for many threads. What is put in again has its new value, and is as old as it was.
pub(crate) struct Newest<K, V> {
    shards: Sharded<Ring<K, V>>,
    /// Another one than that of the shards: keys of one shard resemble each other by that.
    hasher: RandomState,
    entries_each: usize,
}

/// Entries in the order in which they came. Once it is full, each takes the place of the oldest.
struct Ring<K, V> {
    entries: Vec<(K, V)>,
    oldest: usize,
    /// Where the entry of each key is.
    places: HashTable<u32>,
}

impl<K, V> Default for Ring<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new(), oldest: 0, places: HashTable::new() }
    }
}

impl<K: Hash + Eq, V> Ring<K, V> {
    fn get(&self, hasher: &RandomState, key: &K) -> Option<&V> {
        let place = self.places.find(hasher.hash_one(key), |place| self.entries[*place as usize].0 == *key)?;
        Some(&self.entries[*place as usize].1)
    }

    fn insert(&mut self, hasher: &RandomState, key: K, value: V, entries_max: u32) {
        let hash = hasher.hash_one(&key);
        if let Some(place) = self.places.find(hash, |place| self.entries[*place as usize].0 == key) {
            self.entries[*place as usize].1 = value;
            return;
        }
        let place = self.make_room(hasher, entries_max);
        match self.entries.get_mut(place as usize) {
            Some(taken) => *taken = (key, value),
            None => self.entries.push((key, value)),
        }
        let entries = &self.entries;
        self.places.insert_unique(hash, place, |known| hasher.hash_one(&entries[*known as usize].0));
    }

    /// The next place, which nobody finds any more.
    fn make_room(&mut self, hasher: &RandomState, entries_max: u32) -> u32 {
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        if count < entries_max {
            return count;
        }
        let place = self.oldest;
        self.oldest = (place + 1) % self.entries.len();
        let hash = hasher.hash_one(&self.entries[place].0);
        if let Ok(found) = self.places.find_entry(hash, |known| *known as usize == place) {
            found.remove();
        }
        u32::try_from(place).unwrap_or_default()
    }
}

impl<K: Hash + Eq, V: Clone> Newest<K, V> {
    /// At most `entries` of them, roughly.
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            shards: Sharded::default(),
            hasher: RandomState::default(),
            entries_each: entries.div_ceil(SHARDS).max(1),
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.shards.of(key).get(&self.hasher, key).cloned()
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        self.change(key, |_| Some(value));
    }

    /// Puts in what comes of the entry that there is, if anything; nobody else changes it meanwhile.
    pub(crate) fn change(&self, key: K, new: impl FnOnce(Option<&V>) -> Option<V>) {
        let mut shard = self.shards.of(&key);
        if let Some(value) = new(shard.get(&self.hasher, &key)) {
            shard.insert(&self.hasher, key, value, u32::try_from(self.entries_each).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.all().map(|shard| shard.places.len()).sum()
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
    fn what_is_put_in_again_has_its_new_value_and_its_old_age() {
        let newest = Newest::new(0);
        let hasher = newest.hasher.clone();
        let mut ring = Ring::default();
        for (key, value) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            ring.insert(&hasher, key, value, 3);
        }
        let found = |ring: &Ring<_, i32>| ["a", "b", "c", "d", "e"].map(|key| ring.get(&hasher, &key).copied());
        assert_eq!(found(&ring), [Some(3), Some(2), Some(4), None, None]);
        ring.insert(&hasher, "d", 5, 3);
        assert_eq!(found(&ring), [None, Some(2), Some(4), Some(5), None]);
        ring.insert(&hasher, "b", 6, 3);
        ring.insert(&hasher, "e", 7, 3);
        assert_eq!(found(&ring), [None, None, Some(4), Some(5), Some(7)]);
        assert_eq!((ring.places.len(), ring.entries.len()), (3, 3));
        newest.insert("a", 1);
        assert_eq!(newest.get(&"a"), Some(1), "there is room for one, whatever the bound");
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
