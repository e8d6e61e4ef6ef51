//! What is written to Kafka after a transaction, and the commit of offsets after that: outcomes, token events, commands for
//! other words, dead letters. Offsets move only when all of it is acknowledged, so what was decided is told at least once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use common::config::KafkaConfig;
use common::kafka::delivery::Delivery;
use common::kafka::headers;
use common::kafka::producer::{OutRecord, Patience, ProduceError, Producer};
use common::messages::results::ResultRecord;
use common::topics;
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::consume::Reports;
use super::offsets::{self, Positions};
use super::word::OutMessage;

/// Batches that may wait to be told while the next ones are applied.
const BATCHES_WAITING_MAX: usize = 16;
/// So many records are no crowd, and none of them waits in the Kafka library for another.
const PROMPT_RECORDS_MAX: usize = 4;
/// How long those of a crowd are gathered: until all of a batch are handed over.
const GATHERED_FOR: Duration = Duration::from_millis(1);
/// How long to let a full producer queue drain before the next try.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(5);

/// How long a worker that its group does not know any more may take to join again, before it commits.
const JOIN_WAIT: Duration = Duration::from_secs(5);

/// What a batch leaves to be told.
#[derive(Default)]
pub(crate) struct Told {
    /// Records of the results topic, with the partition of their source and their trace.
    pub(crate) results: Vec<(i32, ResultRecord, Option<String>)>,
    pub(crate) messages: Vec<OutMessage>,
    /// Dead letters, already sent.
    pub(crate) dead_letters: Vec<Delivery>,
    /// Up to where the batch has come.
    pub(crate) positions: Positions,
}

/// Sends records for one worker.
#[derive(Clone)]
pub(crate) struct Sender {
    /// For the few records of a lone request, which go out at once.
    prompt: Producer,
    /// For those of a crowd. While records are under way and more wait that are due, the Kafka library asks without pause whether it may
    /// send them; gathered, they are one request, and none waits.
    gathering: Producer,
    source: String,
}

impl Sender {
    pub(crate) fn new(kafka: &KafkaConfig, worker: &str) -> anyhow::Result<Self> {
        let producer = |linger| Producer::new(kafka, worker, Patience::Endless, linger);
        let (prompt, gathering) = (producer(Duration::ZERO)?, producer(GATHERED_FOR)?);
        Ok(Self { prompt, gathering, source: format!("/boxoffice/{worker}") })
    }

    /// Hands over a dead letter of a batch, whose acknowledgement is waited for with the rest of it.
    pub(crate) async fn send<'a>(&self, make: impl Fn() -> OutRecord<'a> + Send) -> anyhow::Result<Delivery> {
        hand_over(&self.prompt, make).await
    }

    /// Writes what a batch leaves; returns when all of it is acknowledged.
    async fn send_all(&self, told: &Told) -> anyhow::Result<()> {
        let records = told.messages.len() + told.results.len();
        let producer = if records > PROMPT_RECORDS_MAX { &self.gathering } else { &self.prompt };
        let mut deliveries = Vec::with_capacity(records);
        for message in &told.messages {
            deliveries.push(hand_over(producer, || command(message)).await?);
        }
        // Written first, so that the producer gets them at once: what is handed over together goes out in few requests.
        let values: Vec<Vec<u8>> = told.results.iter().map(|(_, record, _)| record.write()).collect();
        for ((partition, record, trace), value) in told.results.iter().zip(&values) {
            let key = record.id().to_string();
            let make = || OutRecord {
                topic: topics::RESULTS,
                partition: Some(*partition),
                key: Some(key.as_bytes()),
                value: Some(value),
                headers: headers::cloud_event(record.kind(), record.id(), &self.source, trace.as_deref()),
            };
            deliveries.push(hand_over(producer, make).await?);
        }
        for delivery in told.dead_letters.iter().chain(&deliveries) {
            delivery.acknowledged().await.context("a record was not written to Kafka")?;
        }
        Ok(())
    }
}

fn command(message: &OutMessage) -> OutRecord<'_> {
    OutRecord {
        topic: message.topic,
        partition: None,
        key: Some(message.key.as_bytes()),
        value: Some(&message.value),
        headers: message.headers.clone(),
    }
}

/// Hands a record to a producer; waits while its queue is full.
async fn hand_over<'a>(producer: &Producer, make: impl Fn() -> OutRecord<'a> + Send) -> anyhow::Result<Delivery> {
    loop {
        match producer.send(make()) {
            Ok(delivery) => return Ok(delivery),
            Err(ProduceError::QueueFull) => tokio::time::sleep(QUEUE_FULL_WAIT).await,
            Err(error) => return Err(error).context("a record cannot be written to Kafka"),
        }
    }
}

enum Job {
    Tell(Told),
    /// Commit all that was told before, then say so.
    Settle(oneshot::Sender<()>),
    /// Commit nothing of these partitions that was told before.
    Forget(Vec<i32>),
}

/// The worker's end: batches go in, in order.
pub(crate) struct Publisher {
    jobs: mpsc::Sender<Job>,
}

impl Publisher {
    /// Starts publishing; the task ends when the publisher is dropped, or with the error that stops the worker.
    pub(crate) fn start(
        sender: Sender,
        consumer: Arc<BaseConsumer<Reports>>,
        topic: &'static str,
        commit_interval: Duration,
    ) -> (Self, tokio::task::JoinHandle<anyhow::Result<()>>) {
        let (jobs, received) = mpsc::channel(BATCHES_WAITING_MAX);
        let teller = Teller {
            sender,
            consumer,
            topic,
            interval: commit_interval,
            pending: Positions::new(),
            not_before: Instant::now(),
        };
        (Self { jobs }, tokio::spawn(teller.run(received)))
    }

    /// Tells the batch; waits while too many others are still to be told.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn tell(&self, told: Told) -> anyhow::Result<()> {
        self.jobs.send(Job::Tell(told)).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))
    }

    /// Drops the commits that are still to come for these partitions: they are another's now.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn forget(&self, partitions: Vec<i32>) -> anyhow::Result<()> {
        self.jobs.send(Job::Forget(partitions)).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))
    }

    /// Waits until all that was told is acknowledged, and committed if the group allows it.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let (done, settled) = oneshot::channel();
        self.jobs.send(Job::Settle(done)).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))?;
        settled.await.context("publishing has stopped")
    }
}

/// Tells batches in order, and commits what their acknowledgements allow.
struct Teller {
    sender: Sender,
    consumer: Arc<BaseConsumer<Reports>>,
    topic: &'static str,
    interval: Duration,
    /// Acknowledged, and not committed yet.
    pending: Positions,
    /// When to commit again, after the group has refused it.
    not_before: Instant,
}

impl Teller {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) -> anyhow::Result<()> {
        let mut due = tokio::time::interval(self.interval.max(Duration::from_millis(1)));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is at once, and there is nothing to commit.
        due.tick().await;
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(Job::Tell(told)) => {
                        self.sender.send_all(&told).await?;
                        self.pending.extend(told.positions);
                    }
                    Some(Job::Settle(done)) => {
                        self.commit().await;
                        // Nobody waits any more when the worker is stopping for another reason.
                        let _ = done.send(());
                    }
                    Some(Job::Forget(partitions)) => self.pending.retain(|partition, _| !partitions.contains(partition)),
                    None => return Ok(()),
                },
                _ = due.tick() => if Instant::now() >= self.not_before {
                    self.commit().await;
                },
            }
        }
    }

    /// A commit that fails stays pending, and is tried again when the next one is due. One that the group refuses has to wait: each refusal
    /// makes the client join anew, so asking again and again would keep it from ever joining.
    async fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match offsets::commit(self.consumer.clone(), self.topic, self.pending.clone()).await {
            Ok(()) => self.pending.clear(),
            Err(error) if offsets::refused_by_group(&error) => {
                tracing::warn!(%error, "the group has gone on without this worker; it commits once it has joined again");
                self.not_before = Instant::now() + JOIN_WAIT;
            }
            Err(error) => tracing::warn!(%error, "offsets are not committed yet"),
        }
    }
}
