//! Records whose causes are not applied yet, and those behind them: each partition waits by itself, in its order.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::consume::Record;
use super::offsets::Positions;

/// Records that are kept; what comes beyond is read again when there is room.
const KEPT_RECORDS_MAX: usize = 10_000;
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What is kept until its causes are applied.
#[derive(Default)]
pub(crate) struct Aside {
    kept: BTreeMap<i32, VecDeque<Record>>,
    count: usize,
    /// Where reading stood before the first record of a partition that was let go for want of room.
    let_go: Positions,
    warned_at: Option<Instant>,
}

impl Aside {
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps a record if others of its partition wait before it; else gives it back.
    pub(crate) fn keep(&mut self, record: Record) -> Option<Record> {
        if self.let_go.contains_key(&record.partition) {
            return None;
        }
        let Some(kept) = self.kept.get_mut(&record.partition) else { return Some(record) };
        if self.count < KEPT_RECORDS_MAX {
            self.count += 1;
            kept.push_back(record);
        } else {
            self.let_go.insert(record.partition, record.since);
        }
        None
    }

    /// Takes the first ones out, to be tried again, at most `limit`.
    pub(crate) fn take(&mut self, limit: usize) -> Vec<Record> {
        let share = limit / self.kept.len().max(1) + 1;
        let taken: Vec<Record> = self.kept.values_mut().flat_map(|kept| kept.drain(..share.min(kept.len()))).collect();
        self.count -= taken.len();
        taken
    }

    /// Puts back, in front of those behind them, records that still wait, in their order.
    pub(crate) fn put_back(&mut self, waiting: Vec<Record>) {
        self.count += waiting.len();
        for record in waiting.into_iter().rev() {
            self.kept.entry(record.partition).or_default().push_front(record);
        }
        self.kept.retain(|_, kept| !kept.is_empty());
        self.warn();
    }

    /// Partitions of which nothing waits any more, and where to read on in them.
    pub(crate) fn take_let_go(&mut self) -> Positions {
        let kept = &self.kept;
        let free: Positions =
            self.let_go.iter().filter(|(id, _)| !kept.contains_key(id)).map(|(id, at)| (*id, *at)).collect();
        self.let_go.retain(|id, _| !free.contains_key(id));
        free
    }

    /// These partitions are another's now, or are read anew.
    pub(crate) fn leave(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.let_go.remove(partition);
            self.count -= self.kept.remove(partition).map_or(0, |kept| kept.len());
        }
    }

    /// When the oldest one was appended.
    pub(crate) fn oldest(&self) -> Option<DateTime<Utc>> {
        self.kept.values().filter_map(|kept| kept.front()).map(|record| record.appended_at).min()
    }

    fn warn(&mut self) {
        if self.kept.is_empty() {
            self.warned_at = None;
        } else if self.warned_at.is_none_or(|at| at.elapsed() > WARN_EVERY) {
            self.warned_at = Some(Instant::now());
            let first: Positions =
                self.kept.iter().filter_map(|(id, kept)| Some((*id, kept.front()?.offset))).collect();
            tracing::warn!(
                ?first,
                records = self.count,
                "partitions wait for causes in another topic; is its worker up?"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::consume::tests::record;
    use super::*;

    fn offsets(records: &[Record]) -> Vec<(i32, i64)> {
        records.iter().map(|record| (record.partition, record.offset)).collect()
    }

    #[test]
    fn what_waits_keeps_its_order_and_other_partitions_go_on() {
        let mut aside = Aside::default();
        aside.put_back(vec![record(1, 5), record(1, 6)]);
        assert!(aside.keep(record(2, 9)).is_some());
        assert!(aside.keep(record(1, 7)).is_none());
        let taken = aside.take(2);
        assert_eq!(offsets(&taken), [(1, 5), (1, 6), (1, 7)]);
        aside.put_back(taken[1..].to_vec());
        assert_eq!(aside.oldest().unwrap().timestamp_millis(), 6);
        assert!(aside.keep(record(1, 8)).is_none());
        assert_eq!(offsets(&aside.take(10)), [(1, 6), (1, 7), (1, 8)]);
        aside.put_back(Vec::new());
        assert!(aside.is_empty() && aside.keep(record(1, 9)).is_some());
    }

    #[test]
    fn what_has_no_room_is_read_again_when_nothing_waits_before_it() {
        let mut aside = Aside::default();
        aside.put_back((0..10_000).map(|offset| record(1, offset)).collect());
        assert!(aside.keep(record(1, 10_000)).is_none() && aside.keep(record(1, 10_001)).is_none());
        assert!(aside.take_let_go().is_empty());
        let all = aside.take(10_000);
        assert_eq!(all.len(), 10_000);
        aside.put_back(Vec::new());
        assert_eq!(aside.take_let_go(), Positions::from([(1, 10_000)]));
        assert!(aside.keep(record(1, 10_000)).is_some(), "nothing waits any more");
    }
}
