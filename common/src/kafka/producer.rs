//! The producer: idempotent, acknowledged by all in-sync replicas, and never a hidden wait.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use thiserror::Error;

use super::delivery::{Delivery, Receipts};
use crate::config::KafkaConfig;

/// Records that may wait in the producer; beyond, sending is refused.
const QUEUED_RECORDS_MAX: &str = "50000";
/// Memory that they may take, in KiB.
const QUEUED_KIB_MAX: &str = "65536";
/// How long one wait for acknowledgements lasts. The library asks without pause for the last fraction of a millisecond of each: with its own
/// `ThreadedProducer`, which waits for 100 ms, an idle producer takes a hundredth of a core.
const POLL: Duration = Duration::from_secs(1);

/// A record to be written.
#[derive(Debug)]
pub struct OutRecord<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Which partition; None: the key decides.
    pub partition: Option<i32>,
    /// The key, as text or as the original bytes.
    pub key: Option<&'a [u8]>,
    /// The value; None only in a dead letter that had none.
    pub value: Option<&'a [u8]>,
    /// Headers.
    pub headers: OwnedHeaders,
}

/// Where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// Why a record was not written.
#[derive(Debug, Error)]
pub enum ProduceError {
    /// The producer's queue is full: the broker is slow or gone. Nothing was written.
    #[error("the producer's queue is full")]
    QueueFull,
    /// The broker has not acknowledged in time: it may or may not be written.
    #[error("no acknowledgement in time: {0}")]
    Unknown(KafkaError),
    /// It was refused, and is not written.
    #[error("refused: {0}")]
    Refused(KafkaError),
}

/// A producer; clones share one.
#[derive(Clone)]
pub struct Producer(Arc<BaseProducer<Receipts>>);

/// What a producer waits for before it sends a partition's records.
#[derive(Debug, Clone, Copy)]
pub struct Gathering {
    /// For so long it gathers them,
    pub linger: Duration,
    /// or until so many are together; None: as the library has it, 10,000.
    pub records_max: Option<usize>,
}

impl Gathering {
    /// Each record is sent at once.
    pub const NONE: Self = Self::of(Duration::ZERO);

    /// As many as come within `linger`.
    pub const fn of(linger: Duration) -> Self {
        Self { linger, records_max: None }
    }
}

/// How long a producer tries.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Somebody waits for the answer: give up after this time.
    Caller(Duration),
    /// Nothing may be lost: try until it is written.
    Endless,
}

impl Producer {
    /// A producer that keeps the order of its records.
    ///
    /// # Errors
    /// The configuration is refused by librdkafka.
    pub fn new(
        config: &KafkaConfig,
        client_id: &str,
        patience: Patience,
        gathering: Gathering,
    ) -> anyhow::Result<Self> {
        let settings = settings(config, client_id, patience, gathering);
        let producer: Arc<BaseProducer<Receipts>> = Arc::new(settings.create_with_context(Receipts::default())?);
        let polled = producer.clone();
        std::thread::Builder::new().name("producer-poll".to_owned()).spawn(move || {
            // Until nobody else has it.
            while Arc::strong_count(&polled) > 1 {
                polled.poll(POLL);
            }
        })?;
        Ok(Self(producer))
    }

    /// Hands a record over, in order, without waiting; the delivery tells what becomes of it.
    ///
    /// # Errors
    /// [`ProduceError::QueueFull`], [`ProduceError::Refused`]
    pub fn send(&self, record: OutRecord<'_>) -> Result<Delivery, ProduceError> {
        let (delivery, receipt) = Delivery::new();
        let mut out: BaseRecord<'_, [u8], [u8], _> =
            BaseRecord::with_opaque_to(record.topic, receipt).headers(record.headers);
        out.partition = record.partition;
        out.key = record.key;
        out.payload = record.value;
        match self.0.send(out) {
            Ok(()) => Ok(delivery),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(ProduceError::QueueFull),
            Err((error, _)) => Err(ProduceError::Refused(error)),
        }
    }

    /// Records handed over and not acknowledged yet.
    pub fn in_flight(&self) -> i32 {
        self.0.in_flight_count()
    }

    /// Waits until all is acknowledged, at most `wait_max`.
    ///
    /// # Errors
    /// What is left was not acknowledged.
    pub fn flush(&self, wait_max: Duration) -> Result<(), KafkaError> {
        self.0.flush(wait_max)
    }
}

fn settings(config: &KafkaConfig, client_id: &str, patience: Patience, gathering: Gathering) -> ClientConfig {
    let message_timeout = match patience {
        Patience::Caller(limit) => limit.as_millis(),
        Patience::Endless => 0,
    };
    let mut settings = super::base_config(config, client_id);
    settings
        // A retry inside the producer neither doubles nor reorders.
        .set("enable.idempotence", "true")
        // 202 means: on all in-sync replicas.
        .set("acks", "all")
        // Java tools give a key the same partition.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", format!("{:.3}", gathering.linger.as_secs_f64() * 1_000.0))
        .set("message.timeout.ms", message_timeout.to_string())
        // The topics say how large a record may be; a dead letter is larger than its record.
        .set("message.max.bytes", "2097152")
        .set("queue.buffering.max.messages", QUEUED_RECORDS_MAX)
        .set("queue.buffering.max.kbytes", QUEUED_KIB_MAX);
    if let Some(records) = gathering.records_max.filter(|_| !config.kafka_properties.says("batch.num.messages")) {
        settings.set("batch.num.messages", records.to_string());
    }
    // Records of a crowd resemble each other, and shrink to a fifth. A lone one has nothing to resemble. An operator may choose otherwise.
    if !gathering.linger.is_zero() && !config.kafka_properties.says("compression.") {
        settings.set("compression.codec", "lz4");
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_crowd_are_compressed_unless_the_operator_chooses() {
        let compression = |properties: &str, linger: u64| {
            let kafka_properties = properties.parse().expect("properties");
            let config = KafkaConfig { kafka_bootstrap_servers: "localhost:1".to_owned(), kafka_properties };
            let settings = settings(&config, "test", Patience::Endless, Gathering::of(Duration::from_millis(linger)));
            settings.get("compression.codec").map(str::to_owned)
        };
        assert_eq!(compression("", 3).as_deref(), Some("lz4"));
        assert_eq!(compression("", 0), None);
        assert_eq!(compression("compression.codec=gzip", 3).as_deref(), Some("gzip"));
        assert_eq!(compression("compression.type=gzip", 3), None, "it has two names");
    }
}
