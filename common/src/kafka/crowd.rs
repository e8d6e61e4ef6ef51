//! The producer for requests of very many callers: a lone record is sent at once, those of a crowd are gathered.
//!
//! The client library makes each partition of a gathering a request of its own, so records over many partitions have to wait longer to
//! be few requests. They may when very many callers wait already: then it is the queue that each of them waits for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;

use super::delivery::Delivery;
use super::producer::{Gathering, OutRecord, Patience, ProduceError, Producer};
use crate::config::KafkaConfig;

/// A crowd: so many records within one window make gathering cost a caller less than it saves him.
const CROWD_RECORDS: u32 = 24;
const CROWD_WINDOW_MS: u128 = 10;
/// It comes in waves, as answers do: it has gone when so many windows have passed since the last full one.
const CROWD_WINDOWS: u128 = 10;
/// When so many callers wait, their records are gathered longer, until so many of a partition are together.
const LARGE_CROWD_CALLERS: usize = 400;
const LARGE_CROWD_LINGERS: u32 = 4;
const LARGE_CROWD_RECORDS: usize = 128;

/// A producer of callers. Each of its three keeps the order of its records; between records that are under way at the same time there
/// is none.
pub struct CrowdProducer {
    quick: Producer,
    gathering: Option<Crowd>,
}

struct Crowd {
    pace: Pace,
    small: Producer,
    large: Producer,
}

impl CrowdProducer {
    /// A producer that gathers the records of a crowd for `linger`, and of a large one for a few times that; with zero none.
    ///
    /// # Errors
    /// The configuration is refused by librdkafka.
    pub fn new(config: &KafkaConfig, client_id: &str, patience: Patience, linger: Duration) -> anyhow::Result<Self> {
        let producer = |gathering| Producer::new(config, client_id, patience, gathering);
        let quick = producer(Gathering::NONE)?;
        if linger.is_zero() {
            return Ok(Self { quick, gathering: None });
        }
        let large = Gathering { linger: LARGE_CROWD_LINGERS * linger, records_max: LARGE_CROWD_RECORDS };
        let crowd = Crowd { pace: Pace::new(), small: producer(Gathering::of(linger))?, large: producer(large)? };
        Ok(Self { quick, gathering: Some(crowd) })
    }

    /// Hands a record over without waiting; `callers` are those who wait for an answer now.
    ///
    /// # Errors
    /// [`ProduceError::QueueFull`], [`ProduceError::Refused`]
    pub fn send(&self, record: OutRecord<'_>, callers: usize) -> Result<Delivery, ProduceError> {
        let crowd = self.gathering.as_ref().filter(|crowd| crowd.pace.is_crowd());
        crowd.map_or(&self.quick, |crowd| crowd.of(callers)).send(record)
    }

    /// Records handed over and not acknowledged yet.
    pub fn in_flight(&self) -> i32 {
        self.all().map(Producer::in_flight).sum()
    }

    /// Waits until all is acknowledged, at most `wait_max` each.
    ///
    /// # Errors
    /// What is left was not acknowledged.
    pub fn flush(&self, wait_max: Duration) -> Result<(), KafkaError> {
        self.all().try_for_each(|producer| producer.flush(wait_max))
    }

    fn all(&self) -> impl Iterator<Item = &Producer> {
        let crowd = self.gathering.iter().flat_map(|crowd| [&crowd.small, &crowd.large]);
        [&self.quick].into_iter().chain(crowd)
    }
}

impl Crowd {
    fn of(&self, callers: usize) -> &Producer {
        if callers < LARGE_CROWD_CALLERS { &self.small } else { &self.large }
    }
}

/// How fast records come.
struct Pace {
    begun: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    window: u128,
    records: u32,
    crowd_until: u128,
}

impl Pace {
    fn new() -> Self {
        Self { begun: Instant::now(), counts: Mutex::default() }
    }

    /// Counts a record; whether it is one of a crowd.
    fn is_crowd(&self) -> bool {
        let window = self.begun.elapsed().as_millis() / CROWD_WINDOW_MS;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.note(window)
    }
}

impl Counts {
    fn note(&mut self, window: u128) -> bool {
        if window != self.window {
            (self.window, self.records) = (window, 0);
        }
        self.records += 1;
        if self.records >= CROWD_RECORDS {
            self.crowd_until = window + CROWD_WINDOWS;
        }
        window < self.crowd_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_many_records_in_a_short_time() {
        let mut counts = Counts::default();
        assert!((1..CROWD_RECORDS).all(|_| !counts.note(7)));
        assert!(counts.note(7), "the last one makes it a crowd");
        assert!(counts.note(6 + CROWD_WINDOWS), "and it still is one between two waves");
        assert!(!counts.note(7 + CROWD_WINDOWS), "but not for ever");
        assert!((0..100).all(|window| !counts.note(window + 100)));
    }
}
