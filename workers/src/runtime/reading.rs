//! How far this worker has read: what lies between two records of a partition holds nothing (a transaction's end, what was aborted or
//! is gone), and the later one stands for it.

use std::collections::BTreeMap;

use super::consume::Record;
use super::offsets::Positions;

/// Where reading stands in each partition.
#[derive(Default)]
pub(crate) struct Reading {
    stands: Positions,
    /// How often the consumer was told to read elsewhere and has not reported it yet: what comes until then was read before.
    sought: BTreeMap<i32, usize>,
}

impl Reading {
    /// Goes on from these offsets.
    pub(crate) fn begin(&mut self, from: &Positions) {
        self.stands.extend(from);
    }

    /// The consumer reads these partitions from elsewhere on, and will report from when.
    pub(crate) fn sought(&mut self, partitions: impl IntoIterator<Item = i32>) {
        for partition in partitions {
            *self.sought.entry(partition).or_default() += 1;
        }
    }

    /// What comes now of these partitions comes from there.
    pub(crate) fn arrived(&mut self, partitions: &[i32]) {
        for partition in partitions {
            let left = self.sought.remove(partition).unwrap_or_default().saturating_sub(1);
            if left > 0 {
                self.sought.insert(*partition, left);
            }
        }
    }

    /// Whether a record is in turn. It then stands for all from where reading stood.
    pub(crate) fn take(&mut self, record: &mut Record) -> bool {
        if self.sought.contains_key(&record.partition) {
            return false;
        }
        if let Some(stood) = self.stands.insert(record.partition, record.offset + 1) {
            record.since = stood.min(record.offset);
        }
        true
    }

    /// These partitions are another's now.
    pub(crate) fn leave(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.stands.remove(partition);
            self.sought.remove(partition);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::consume::tests::record;
    use super::*;

    fn take(reading: &mut Reading, offset: i64) -> Option<i64> {
        let mut record = record(1, offset);
        reading.take(&mut record).then_some(record.since)
    }

    #[test]
    fn a_record_stands_for_the_gap_before_it() {
        let mut reading = Reading::default();
        reading.begin(&Positions::from([(1, 5)]));
        assert_eq!([7, 8, 12].map(|offset| take(&mut reading, offset)), [Some(5), Some(8), Some(9)]);
        reading.leave(&[1]);
        reading.begin(&Positions::from([(1, 20)]));
        assert_eq!(take(&mut reading, 20), Some(20));
    }

    #[test]
    fn what_was_fetched_before_the_last_seek_is_dropped_though_it_is_farther_on() {
        let mut reading = Reading::default();
        reading.begin(&Positions::from([(1, 5)]));
        assert_eq!(take(&mut reading, 5), Some(5));
        for from in [3, 2] {
            reading.begin(&Positions::from([(1, from)]));
            reading.sought([1]);
        }
        assert_eq!(take(&mut reading, 6), None);
        reading.arrived(&[1]);
        assert_eq!(take(&mut reading, 3), None, "it was told to read elsewhere once more");
        reading.arrived(&[1, 9]);
        // A transaction's end is at 2.
        assert_eq!([3, 4].map(|offset| take(&mut reading, offset)), [Some(2), Some(4)]);
    }
}
