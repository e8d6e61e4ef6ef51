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
        let large = Gathering { linger: large_linger(linger, patience), records_max: Some(LARGE_CROWD_RECORDS) };
        let crowd = Crowd { pace: Pace::new(), small: producer(Gathering::of(linger))?, large: producer(large)? };
        Ok(Self { quick, gathering: Some(crowd) })
    }

    /// Hands a record over without waiting; `callers` are those who wait for an answer now.
    ///
    /// # Errors
    /// [`ProduceError::QueueFull`], [`ProduceError::Refused`]
    pub fn send(&self, record: OutRecord<'_>, callers: usize) -> Result<Delivery, ProduceError> {
        self.gathering.as_ref().and_then(|crowd| crowd.of(callers)).unwrap_or(&self.quick).send(record)
    }

    /// Records handed over and not acknowledged yet.
    pub fn in_flight(&self) -> i32 {
        self.all().map(Producer::in_flight).sum()
    }

    /// Waits until all is acknowledged, at most `wait_max`.
    ///
    /// # Errors
    /// What is left was not acknowledged.
    pub fn flush(&self, wait_max: Duration) -> Result<(), KafkaError> {
        let end = Instant::now() + wait_max;
        let left = || end.saturating_duration_since(Instant::now());
        // Each is asked to send what it has, even if the one before did not get rid of its own.
        self.all().map(|producer| producer.flush(left())).fold(Ok(()), Result::and)
    }

    fn all(&self) -> impl Iterator<Item = &Producer> {
        let crowd = self.gathering.iter().flat_map(|crowd| [&crowd.small, &crowd.large]);
        [&self.quick].into_iter().chain(crowd)
    }
}

impl Crowd {
    /// Counts a record; None: it is of no crowd.
    fn of(&self, callers: usize) -> Option<&Producer> {
        match self.pace.count(callers) {
            Size::None => None,
            Size::Small => Some(&self.small),
            Size::Large => Some(&self.large),
        }
    }
}

/// Shorter than the time that a record has to be delivered in, else the library refuses it.
fn large_linger(linger: Duration, patience: Patience) -> Duration {
    let longest = match patience {
        Patience::Caller(limit) => limit / 4,
        Patience::Endless => Duration::MAX,
    };
    (LARGE_CROWD_LINGERS * linger).min(longest).max(linger)
}

/// How fast records come, and for how many.
struct Pace {
    begun: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    window: u128,
    records: u32,
    crowd_until: u128,
    large_until: u128,
}

#[derive(Debug, PartialEq, Eq)]
enum Size {
    None,
    Small,
    Large,
}

impl Pace {
    fn new() -> Self {
        Self { begun: Instant::now(), counts: Mutex::default() }
    }

    fn count(&self, callers: usize) -> Size {
        let window = self.begun.elapsed().as_millis() / CROWD_WINDOW_MS;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.note(window, callers)
    }
}

impl Counts {
    fn note(&mut self, window: u128, callers: usize) -> Size {
        if window != self.window {
            (self.window, self.records) = (window, 0);
        }
        self.records += 1;
        if self.records >= CROWD_RECORDS {
            self.crowd_until = window + CROWD_WINDOWS;
        }
        if callers >= LARGE_CROWD_CALLERS {
            self.large_until = window + CROWD_WINDOWS;
        }
        if window >= self.crowd_until {
            Size::None
        } else if window >= self.large_until {
            Size::Small
        } else {
            Size::Large
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_many_records_in_a_short_time() {
        let mut counts = Counts::default();
        assert!((1..CROWD_RECORDS).all(|_| counts.note(7, 1) == Size::None));
        assert_eq!(counts.note(7, 1), Size::Small, "the last one makes it a crowd");
        assert_eq!(counts.note(6 + CROWD_WINDOWS, 1), Size::Small, "and it still is one between two waves");
        assert_eq!(counts.note(7 + CROWD_WINDOWS, 1), Size::None, "but not for ever");
        assert!((0..100).all(|window| counts.note(window + 100, LARGE_CROWD_CALLERS) == Size::None));
    }

    #[test]
    fn a_large_crowd_is_one_with_many_who_wait() {
        let mut counts = Counts::default();
        (0..CROWD_RECORDS).for_each(|_| _ = counts.note(7, LARGE_CROWD_CALLERS - 1));
        assert_eq!(counts.note(7, LARGE_CROWD_CALLERS - 1), Size::Small);
        assert_eq!(counts.note(7, LARGE_CROWD_CALLERS), Size::Large);
        assert_eq!(counts.note(8, 1), Size::Large, "its records do not change sides with each that is answered");
        (0..CROWD_RECORDS).for_each(|_| _ = counts.note(9, 1));
        assert_eq!(counts.note(7 + CROWD_WINDOWS, 1), Size::Small);
    }

    #[test]
    fn a_large_crowd_never_waits_longer_than_it_may_for_its_delivery() {
        let [short, long] = [3, 1_000].map(Duration::from_millis);
        let patience = Patience::Caller(Duration::from_secs(2));
        assert_eq!(large_linger(short, patience), 4 * short);
        assert_eq!(large_linger(long, patience), long, "what the operator chose");
        assert_eq!(large_linger(long, Patience::Endless), 4 * long);
    }
}
