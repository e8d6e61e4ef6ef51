//! The consumer: one OS thread that does nothing but poll, and hands what it polled to the worker through a bounded channel.
//!
//! When the channel stays full the partitions are paused and polling goes on, so the group never takes a worker that waits
//! for its database for dead. Rebalances are only reported here: the worker finishes what is revoked and hands it back itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, Utc};
use common::config::KafkaConfig;
use common::kafka::consumer;
use common::kafka::headers::{self, KeptHeaders};
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _, Timestamp};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::{mpsc, oneshot};

use super::offsets::{self, Positions};

/// Records that may wait for the worker.
const FED_RECORDS_MAX: usize = 2_000;
/// How long a poll waits for a record. A record that comes meanwhile ends it.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// How long the worker may take to make room before its partitions are paused. A pause throws away what was fetched ahead, so
/// a worker that is merely busy is waited for.
const PAUSE_AFTER: Duration = Duration::from_secs(1);
const FULL_WAIT: Duration = Duration::from_millis(1);
/// How long a poll waits while the worker is behind.
const PAUSED_POLL_WAIT: Duration = Duration::from_millis(2);
const STATISTICS_MS: &str = "5000";

/// A record as it stands in the log.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Where reading stood before it: nothing lies between.
    pub(crate) since: i64,
    /// When the broker appended it, and the kind of that time as Kafka names it.
    pub(crate) appended_at: DateTime<Utc>,
    pub(crate) timestamp_type: &'static str,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: KeptHeaders,
    /// When it was appended first, if it was redriven.
    pub(crate) first_appended_at: Option<DateTime<Utc>>,
    pub(crate) traceparent: Option<String>,
}

impl Record {
    /// When it was asked.
    pub(crate) fn asked_at(&self) -> DateTime<Utc> {
        self.first_appended_at.map_or(self.appended_at, |first| first.min(self.appended_at))
    }

    fn copy(message: &BorrowedMessage<'_>) -> Self {
        let (millis, timestamp_type) = match message.timestamp() {
            Timestamp::LogAppendTime(millis) => (millis, "LogAppendTime"),
            Timestamp::CreateTime(millis) => (millis, "CreateTime"),
            Timestamp::NotAvailable => (0, "NoTimestampType"),
        };
        let kept = message.headers().map(KeptHeaders::of).unwrap_or_default();
        let first_append_ms = kept.text(headers::FIRST_APPEND_MS);
        let traceparent = kept.text(headers::TRACEPARENT).map(str::to_owned);
        Self {
            partition: message.partition(),
            offset: message.offset(),
            since: message.offset(),
            appended_at: DateTime::from_timestamp_millis(millis).unwrap_or_default(),
            timestamp_type,
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            first_appended_at: first_append_ms.and_then(|ms| DateTime::from_timestamp_millis(ms.parse().ok()?)),
            traceparent,
            headers: kept,
        }
    }
}

/// What the consumer reports, in order.
#[derive(Debug)]
pub(crate) enum Fed {
    Record(Box<Record>),
    Assigned(Vec<i32>),
    /// Every record of these partitions that will come has come.
    Revoked(Vec<i32>),
    /// What comes of these partitions from now on comes from where [`Seeker::seek`] was asked to read on.
    Sought(Vec<i32>),
}

/// The polling thread has ended, and with it the worker's reading.
#[derive(Debug, thiserror::Error)]
#[error("the consumer has ended")]
pub(crate) struct Ended;

struct Seek {
    positions: Positions,
    done: oneshot::Sender<KafkaResult<()>>,
}

/// Lets the polling thread read on elsewhere. It does so itself, between two polls: it alone knows what came before and what after.
#[derive(Clone)]
pub(crate) struct Seeker {
    asked: mpsc::Sender<Seek>,
}

impl Seeker {
    /// Reads on from these offsets; [`Fed::Sought`] comes before the first record from there.
    pub(crate) async fn seek(&self, positions: Positions) -> anyhow::Result<()> {
        let (done, sought) = oneshot::channel();
        self.asked.send(Seek { positions, done }).await.map_err(|_| Ended)?;
        Ok(sought.await.map_err(|_| Ended)??)
    }
}

/// The consumer and its thread.
pub(crate) struct Feed {
    pub(crate) consumer: Arc<BaseConsumer<Reports>>,
    pub(crate) fed: mpsc::Receiver<Fed>,
    pub(crate) seeker: Seeker,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Feed {
    /// Subscribes to `topic` as a member of `group`.
    pub(crate) fn start(config: &KafkaConfig, topic: &'static str, group: &str, worker: &str) -> anyhow::Result<Self> {
        let mut settings = consumer::group_config(config, group, worker);
        settings.set("statistics.interval.ms", STATISTICS_MS);
        let consumer: BaseConsumer<Reports> =
            settings.create_with_context(Reports::default()).context("the Kafka settings are refused")?;
        consumer.subscribe(&[topic])?;
        let consumer = Arc::new(consumer);
        let (sender, fed) = mpsc::channel(FED_RECORDS_MAX);
        let (asked, seeks) = mpsc::channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let poller =
            Poller { consumer: consumer.clone(), topic, sender, seeks, stop: stop.clone(), waiting: VecDeque::new() };
        let thread = std::thread::Builder::new().name(format!("{worker}-poll")).spawn(move || poller.run())?;
        Ok(Self { consumer, fed, seeker: Seeker { asked }, stop, thread })
    }

    /// Ends the thread and leaves the group. What was fed and not worked off is simply read again by the next owner.
    pub(crate) fn leave(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.consumer.context().closing.store(true, Ordering::Relaxed);
        drop(self.fed);
        if self.thread.join().is_err() {
            tracing::error!("the polling thread had panicked");
        }
        // Closing leaves the group at once instead of by time-out. It needs the last reference.
        if Arc::into_inner(self.consumer).is_none() {
            tracing::warn!("the consumer is still in use; the group is left by time-out");
        }
    }
}

struct Poller {
    consumer: Arc<BaseConsumer<Reports>>,
    topic: &'static str,
    sender: mpsc::Sender<Fed>,
    seeks: mpsc::Receiver<Seek>,
    stop: Arc<AtomicBool>,
    /// What did not fit into the channel. Bounded by what librdkafka hands out after a pause.
    waiting: VecDeque<Fed>,
}

impl Poller {
    fn run(mut self) {
        let (mut paused, mut full_since) = (false, None);
        while !self.stop.load(Ordering::Relaxed) {
            self.seek();
            self.hand_over();
            if self.waiting.is_empty() {
                full_since = None;
            } else if full_since.get_or_insert_with(Instant::now).elapsed() < PAUSE_AFTER {
                std::thread::sleep(FULL_WAIT);
                continue;
            }
            if self.waiting.is_empty() == paused {
                paused = self.set_paused(!paused);
            }
            let wait = if paused { PAUSED_POLL_WAIT } else { POLL_WAIT };
            let polled = self.consumer.poll(wait).map(|polled| polled.map(|message| Record::copy(&message)));
            self.waiting.extend(self.consumer.context().take_reports());
            match polled {
                Some(Ok(record)) => self.waiting.push_back(Fed::Record(Box::new(record))),
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    tracing::error!(%code, "the consumer cannot go on");
                    return;
                }
                Some(Err(error)) => tracing::warn!(%error, "polling"),
                None => {}
            }
        }
    }

    fn seek(&mut self) {
        let Ok(Seek { positions, done }) = self.seeks.try_recv() else { return };
        let sought = offsets::seek(&self.consumer, self.topic, &positions);
        if sought.is_ok() {
            self.waiting.push_back(Fed::Sought(positions.into_keys().collect()));
        }
        // Nobody waits any more when the worker is stopping.
        let _ = done.send(sought);
    }

    fn hand_over(&mut self) {
        while let Some(fed) = self.waiting.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(fed)) = self.sender.try_send(fed) {
                self.waiting.push_front(fed);
                return;
            }
        }
    }

    /// Pauses or resumes all partitions; returns whether they are paused now.
    fn set_paused(&self, pause: bool) -> bool {
        let done = self.consumer.assignment().and_then(|assignment| {
            if pause { self.consumer.pause(&assignment) } else { self.consumer.resume(&assignment) }
        });
        if let Err(error) = done {
            tracing::warn!(%error, pause, "pausing or resuming");
            return !pause;
        }
        pause
    }
}

/// The client's callbacks: they note, and do nothing; only while the consumer closes is there nobody left to act.
#[derive(Default)]
pub(crate) struct Reports {
    noted: Mutex<Vec<Fed>>,
    closing: AtomicBool,
}

impl Reports {
    fn note(&self, report: Fed) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push(report);
    }

    fn take_reports(&self) -> Vec<Fed> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Reports {
    fn stats(&self, statistics: Statistics) {
        for (topic, about) in &statistics.topics {
            for (partition, about) in about.partitions.iter().filter(|(id, about)| **id >= 0 && about.consumer_lag >= 0)
            {
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                let lag = about.consumer_lag as f64;
                let labels = [("topic", topic.clone()), ("partition", partition.to_string())];
                metrics::gauge!("boxoffice_worker_lag", &labels).set(lag);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Reports {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if self.closing.load(Ordering::Relaxed) {
            // Nothing more is taken over, and what is revoked was finished before closing began.
            if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS
                && let Err(error) = consumer.incremental_unassign(partitions)
            {
                tracing::warn!(%error, "handing partitions back while closing");
            }
            return;
        }
        let partitions = partitions
            .elements()
            .iter()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::partition)
            .collect();
        self.note(match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Fed::Assigned(partitions),
            _ => Fed::Revoked(partitions),
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A record of nothing, appended so many milliseconds after the epoch as its offset says.
    pub(in crate::runtime) fn record(partition: i32, offset: i64) -> Record {
        Record {
            partition,
            offset,
            since: offset,
            appended_at: DateTime::from_timestamp_millis(offset).unwrap(),
            timestamp_type: "LogAppendTime",
            key: None,
            value: None,
            headers: KeptHeaders::default(),
            first_appended_at: None,
            traceparent: None,
        }
    }
}
