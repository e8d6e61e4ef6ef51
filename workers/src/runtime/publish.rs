//! What is written to Kafka after a transaction, and the commit of offsets after that: outcomes, token events, commands for
//! other words, dead letters. Offsets move only when all of it is acknowledged, so what was decided is told at least once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use common::kafka::delivery::Delivery;
use common::kafka::headers;
use common::kafka::producer::{OutRecord, ProduceError, Producer};
use common::messages::results::ResultRecord;
use common::topics;
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::consume::Reports;
use super::offsets::{self, Positions};
use super::word::OutMessage;

/// Batches that may wait for their acknowledgements while the next ones are applied.
const BATCHES_IN_FLIGHT_MAX: usize = 16;
/// How long to let a full producer queue drain before the next try.
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(5);

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
    producer: Producer,
    source: String,
}

impl Sender {
    pub(crate) fn new(producer: Producer, worker: &str) -> Self {
        Self { producer, source: format!("/boxoffice/{worker}") }
    }

    /// Hands a record to the producer; waits while its queue is full.
    pub(crate) async fn send<'a>(&self, make: impl Fn() -> OutRecord<'a> + Send) -> anyhow::Result<Delivery> {
        loop {
            match self.producer.send(make()) {
                Ok(delivery) => return Ok(delivery),
                Err(ProduceError::QueueFull) => tokio::time::sleep(QUEUE_FULL_WAIT).await,
                Err(error) => return Err(error).context("a record cannot be written to Kafka"),
            }
        }
    }

    async fn send_result(
        &self,
        (partition, record, trace): &(i32, ResultRecord, Option<String>),
        value: &[u8],
    ) -> anyhow::Result<Delivery> {
        let key = record.id().to_string();
        self.send(|| OutRecord {
            topic: topics::RESULTS,
            partition: Some(*partition),
            key: Some(key.as_bytes()),
            value: Some(value),
            headers: headers::cloud_event(record.kind(), record.id(), &self.source, trace.as_deref()),
        })
        .await
    }

    async fn send_message(&self, message: &OutMessage) -> anyhow::Result<Delivery> {
        self.send(|| OutRecord {
            topic: message.topic,
            partition: None,
            key: Some(message.key.as_bytes()),
            value: Some(&message.value),
            headers: message.headers.clone(),
        })
        .await
    }

    async fn send_all(&self, told: Told) -> anyhow::Result<(Vec<Delivery>, Positions)> {
        let mut deliveries = told.dead_letters;
        for message in &told.messages {
            deliveries.push(self.send_message(message).await?);
        }
        // Written first, so that the producer gets them at once: what is handed over together goes out in few requests.
        let values: Vec<Vec<u8>> = told.results.iter().map(|(_, record, _)| record.write()).collect();
        for (result, value) in told.results.iter().zip(&values) {
            deliveries.push(self.send_result(result, value).await?);
        }
        Ok((deliveries, told.positions))
    }
}

enum Job {
    Tell(Told),
    /// Commit all that was told before, then say so.
    Settle(oneshot::Sender<()>),
    /// Commit nothing of what was told before.
    Forget,
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
        let (jobs, received) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
        let (sent, acknowledge) = mpsc::channel(BATCHES_IN_FLIGHT_MAX);
        let committer = Committer { consumer, topic, interval: commit_interval, pending: Positions::new() };
        let sending = tokio::spawn(send_jobs(sender, received, sent));
        let task = tokio::spawn(async move {
            let finished = committer.run(acknowledge).await;
            match sending.await {
                Ok(sent) => sent.and(finished),
                Err(panic) => bail!("the sending task ended: {panic}"),
            }
        });
        (Self { jobs }, task)
    }

    /// Tells the batch; waits while too many are in flight.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn tell(&self, told: Told) -> anyhow::Result<()> {
        self.jobs.send(Job::Tell(told)).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))
    }

    /// Drops the commits that are still to come for what was told: the partitions are another's now.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn forget(&self) -> anyhow::Result<()> {
        self.jobs.send(Job::Forget).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))
    }

    /// Waits until all that was told is acknowledged and committed.
    ///
    /// # Errors
    /// Publishing has stopped; its task says why.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let (done, settled) = oneshot::channel();
        self.jobs.send(Job::Settle(done)).await.map_err(|_| anyhow::anyhow!("publishing has stopped"))?;
        settled.await.context("publishing has stopped")
    }
}

enum Sent {
    Batch(Vec<Delivery>, Positions),
    Settle(oneshot::Sender<()>),
    Forget,
}

/// Sends without waiting for acknowledgements, so that batches overlap on the wire.
async fn send_jobs(sender: Sender, mut jobs: mpsc::Receiver<Job>, sent: mpsc::Sender<Sent>) -> anyhow::Result<()> {
    while let Some(job) = jobs.recv().await {
        let next = match job {
            Job::Tell(told) => {
                let (deliveries, positions) = sender.send_all(told).await?;
                Sent::Batch(deliveries, positions)
            }
            Job::Settle(done) => Sent::Settle(done),
            Job::Forget => Sent::Forget,
        };
        if sent.send(next).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Waits for acknowledgements in order and commits what they allow.
struct Committer {
    consumer: Arc<BaseConsumer<Reports>>,
    topic: &'static str,
    interval: Duration,
    /// Acknowledged, and not committed yet.
    pending: Positions,
}

impl Committer {
    async fn run(mut self, mut sent: mpsc::Receiver<Sent>) -> anyhow::Result<()> {
        let mut due = tokio::time::interval(self.interval.max(Duration::from_millis(1)));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is at once, and there is nothing to commit.
        due.tick().await;
        loop {
            tokio::select! {
                next = sent.recv() => match next {
                    Some(Sent::Batch(deliveries, positions)) => {
                        for delivery in deliveries {
                            delivery.acknowledged().await.context("a record was not written to Kafka")?;
                        }
                        self.pending.extend(positions);
                    }
                    Some(Sent::Settle(done)) => {
                        self.commit().await;
                        // Nobody waits any more when the worker is stopping for another reason.
                        let _ = done.send(());
                    }
                    Some(Sent::Forget) => self.pending.clear(),
                    None => return Ok(()),
                },
                _ = due.tick() => self.commit().await,
            }
        }
    }

    /// A commit that fails stays pending; but not one that the group refuses. Each refusal makes the client join anew, so asking
    /// again and again would keep it from ever joining; what it would have marked is read again, without effect.
    async fn commit(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match offsets::commit(self.consumer.clone(), self.topic, self.pending.clone()).await {
            Ok(()) => self.pending.clear(),
            Err(error) if offsets::refused_by_group(&error) => {
                tracing::warn!(%error, "the group has gone on without this worker; what was not committed is read again");
                self.pending.clear();
            }
            Err(error) => tracing::warn!(%error, "offsets are not committed yet"),
        }
    }
}
