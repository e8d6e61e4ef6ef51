//! Records that cannot be read go to `<topic>.dlt`: the original bytes, key and headers, and headers that say where they came
//! from and what was wrong, as Spring Kafka writes them (numbers big-endian, text as UTF-8).

use std::collections::VecDeque;

use common::kafka::producer::OutRecord;
use common::messages::Unreadable;
use common::topics;
use rdkafka::message::{Header, OwnedHeaders};

use super::consume::Record;

/// How many records the limit looks back on.
const WINDOW_RECORDS: usize = 1_000;
/// So many dead letters, at least, stop a worker.
const STOP_AT_LEAST: usize = 100;

/// A record that cannot be read, and why.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) record: Record,
    pub(crate) reason: Unreadable,
}

impl DeadLetter {
    /// Whether it says something about those who write the records; what a backup has lost does not.
    pub(crate) fn is_its_writers_fault(&self) -> bool {
        !matches!(self.reason, Unreadable::Unrepeatable(_))
    }
}

/// The name of a topic's dead-letter topic, and the group that gave up.
pub(crate) struct Office {
    topic: &'static str,
    group: &'static str,
    dead_topic: String,
}

impl Office {
    pub(crate) fn new(topic: &'static str, group: &'static str) -> Self {
        Self { topic, group, dead_topic: topics::dead_letters(topic) }
    }

    /// The dead letter as it is written.
    pub(crate) fn address<'a>(&'a self, letter: &'a DeadLetter) -> OutRecord<'a> {
        let record = &letter.record;
        let message = letter.reason.to_string();
        let headers = record.headers.to_owned_headers();
        let headers = bytes(headers, "kafka_dlt-original-topic", self.topic.as_bytes());
        let headers = bytes(headers, "kafka_dlt-original-partition", &record.partition.to_be_bytes());
        let headers = bytes(headers, "kafka_dlt-original-offset", &record.offset.to_be_bytes());
        let timestamp = record.appended_at.timestamp_millis();
        let headers = bytes(headers, "kafka_dlt-original-timestamp", &timestamp.to_be_bytes());
        let headers = bytes(headers, "kafka_dlt-original-timestamp-type", record.timestamp_type.as_bytes());
        let headers = bytes(headers, "kafka_dlt-original-consumer-group", self.group.as_bytes());
        let headers = bytes(headers, "kafka_dlt-exception-fqcn", letter.reason.name().as_bytes());
        let headers = bytes(headers, "kafka_dlt-exception-message", message.as_bytes());
        OutRecord {
            topic: &self.dead_topic,
            partition: Some(record.partition),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers,
        }
    }
}

fn bytes(headers: OwnedHeaders, key: &str, value: &[u8]) -> OwnedHeaders {
    headers.insert(Header { key, value: Some(value) })
}

/// Stops a worker that would drain its topic into dead letters: over half of the last 1,000 records, and at least 100.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    recent: VecDeque<bool>,
    dead: usize,
}

impl Limit {
    /// Notes a batch of `total` records, `dead` of them dead letters; true: stop.
    pub(crate) fn note(&mut self, total: usize, dead: usize) -> bool {
        let mut stop = false;
        for is_dead in (0..total).map(|n| n < dead) {
            if self.recent.len() == WINDOW_RECORDS && self.recent.pop_front() == Some(true) {
                self.dead -= 1;
            }
            self.recent.push_back(is_dead);
            self.dead += usize::from(is_dead);
            stop |= self.dead >= STOP_AT_LEAST && 2 * self.dead > self.recent.len();
        }
        stop
    }
}

#[cfg(test)]
mod tests {
    use super::super::consume::tests::record;
    use super::*;

    #[test]
    fn what_a_backup_has_lost_is_nobodys_fault() {
        let rows = [(Unreadable::Unrepeatable("no user".to_owned()), false), (Unreadable::NullValue, true)];
        for (reason, fault) in rows {
            assert_eq!(DeadLetter { record: record(1, 1), reason }.is_its_writers_fault(), fault);
        }
    }

    fn stops_at(dead: impl Fn(usize) -> bool) -> Option<usize> {
        let mut limit = Limit::default();
        (0..10_000).find(|n| limit.note(1, usize::from(dead(*n))))
    }

    #[test]
    fn a_topic_of_dead_letters_stops_the_worker_at_the_hundredth() {
        assert_eq!(stops_at(|_| true), Some(99));
    }

    #[test]
    fn half_of_them_do_not_and_a_little_more_do() {
        assert_eq!(stops_at(|n| n % 2 == 1), None);
        assert!(stops_at(|n| n % 20 < 11).is_some());
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        assert_eq!(stops_at(|n| n < 99), None);
        assert_eq!(stops_at(|n| (2_000..2_501).contains(&n)), Some(2_500));
    }
}
