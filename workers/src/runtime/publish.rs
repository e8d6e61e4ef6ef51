//! What is written to Kafka after a transaction, and the commit of offsets after that: outcomes, token events, commands for
//! other words, dead letters. Offsets move only when all of it is acknowledged, so what was decided is told at least once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use common::config::KafkaConfig;
use common::kafka::delivery::Delivery;
use common::kafka::headers;
use common::kafka::producer::{Gathering, OutRecord, Patience, ProduceError, Producer};
use common::messages::results::ResultRecord;
use common::topics;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaResult;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::consume::Reports;
use super::offsets::{self, Positions};
use super::word::OutMessage;

/// Batches that may wait to be told while the next ones are applied.
const BATCHES_WAITING_MAX: usize = 16;
/// So many records are no crowd, and none of them waits in the Kafka library for another.
const PROMPT_RECORDS_MAX: usize = 4;
/// Batches that have waited are told together as long as they are no more records than this: what goes out in more than five requests at
/// once makes the Kafka library ask without pause, too.
const TOLD_TOGETHER_MAX: usize = 1_000;
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

impl Told {
    fn records(&self) -> usize {
        self.results.len() + self.messages.len()
    }

    /// Takes in the batches that wait behind this one, while they are few records. The job that was taken and is no batch.
    fn gather(&mut self, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        while self.records() < TOLD_TOGETHER_MAX {
            match jobs.try_recv() {
                Ok(Job::Tell(Self { results, messages, dead_letters, positions })) => {
                    self.results.extend(results);
                    self.messages.extend(messages);
                    self.dead_letters.extend(dead_letters);
                    self.positions.extend(positions);
                }
                Ok(other) => return Some(other),
                Err(_) => return None,
            }
        }
        None
    }
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
        let producer = |gathering| Producer::new(kafka, worker, Patience::Endless, gathering);
        let (prompt, gathering) = (producer(Gathering::NONE)?, producer(Gathering::of(GATHERED_FOR))?);
        Ok(Self { prompt, gathering, source: format!("/boxoffice/{worker}") })
    }

    /// Hands over a dead letter of a batch, whose acknowledgement is waited for with the rest of it.
    pub(crate) async fn send<'a>(&self, make: impl Fn() -> OutRecord<'a> + Send) -> anyhow::Result<Delivery> {
        hand_over(&self.prompt, make).await
    }

    /// Writes what a batch leaves; returns when all of it is acknowledged.
    async fn send_all(&self, told: &Told) -> anyhow::Result<()> {
        let records = told.records();
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
        let teller = Teller { sender, consumer, topic, interval: commit_interval, commits: Commits::new() };
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

/// What is acknowledged and not committed yet.
struct Commits {
    pending: Positions,
    /// When to commit again, after the group has refused it.
    not_before: Instant,
}

impl Commits {
    fn new() -> Self {
        Self { pending: Positions::new(), not_before: Instant::now() }
    }

    fn are_due(&self, now: Instant) -> bool {
        !self.pending.is_empty() && now >= self.not_before
    }

    /// These partitions are another's now.
    fn forget(&mut self, partitions: &[i32]) {
        self.pending.retain(|partition, _| !partitions.contains(partition));
    }

    /// What became of an attempt to commit all that is pending. After a failure it stays so. One that the group refuses has to wait: each
    /// refusal makes the client join anew, so asking again and again would keep it from ever joining.
    fn tried(&mut self, outcome: KafkaResult<()>, now: Instant) {
        match outcome {
            Ok(()) => self.pending.clear(),
            Err(error) if offsets::refused_by_group(&error) => {
                tracing::warn!(%error, "the group has gone on without this worker; it commits once it has joined again");
                self.not_before = now + JOIN_WAIT;
            }
            Err(error) => tracing::warn!(%error, "offsets are not committed yet"),
        }
    }
}

/// Tells batches in order, and commits what their acknowledgements allow.
struct Teller {
    sender: Sender,
    consumer: Arc<BaseConsumer<Reports>>,
    topic: &'static str,
    interval: Duration,
    commits: Commits,
}

impl Teller {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) -> anyhow::Result<()> {
        let mut due = tokio::time::interval(self.interval.max(Duration::from_millis(1)));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick of an interval is at once, and there is nothing to commit.
        due.tick().await;
        loop {
            tokio::select! {
                job = jobs.recv() => {
                    if job.is_none() {
                        return Ok(());
                    }
                    let mut next = job;
                    while let Some(job) = next {
                        next = self.work_off(job, &mut jobs).await?;
                    }
                }
                _ = due.tick() => if self.commits.are_due(Instant::now()) {
                    self.commit().await;
                },
            }
        }
    }

    /// The job that was found to be next, if any.
    async fn work_off(&mut self, job: Job, jobs: &mut mpsc::Receiver<Job>) -> anyhow::Result<Option<Job>> {
        match job {
            Job::Tell(mut told) => {
                let next = told.gather(jobs);
                self.sender.send_all(&told).await?;
                self.commits.pending.extend(told.positions);
                return Ok(next);
            }
            Job::Settle(done) => {
                self.commit().await;
                // Nobody waits any more when the worker is stopping for another reason.
                let _ = done.send(());
            }
            Job::Forget(partitions) => self.commits.forget(&partitions),
        }
        Ok(None)
    }

    async fn commit(&mut self) {
        if self.commits.pending.is_empty() {
            return;
        }
        let outcome = offsets::commit(self.consumer.clone(), self.topic, self.commits.pending.clone()).await;
        self.commits.tried(outcome, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use common::ids::{ConcertId, TokenId, UserId};
    use common::messages::results::TokenEvent;
    use rdkafka::error::KafkaError;
    use rdkafka::types::RDKafkaErrorCode;
    use uuid::Uuid;

    use super::*;

    /// A batch of one record, which is told apart by its offset.
    fn told(partition: i32, offset: i64) -> Told {
        let id = Uuid::from_u128(offset.unsigned_abs().into());
        let event = TokenEvent {
            token_id: TokenId(id),
            user_id: UserId(id),
            concert_id: ConcertId(1),
            at: DateTime::UNIX_EPOCH,
            expires_at: None,
            seq: None,
        };
        let results = vec![(partition, ResultRecord::TokenExpired(event), None)];
        Told { results, positions: Positions::from([(partition, offset + 1)]), ..Told::default() }
    }

    fn ids(told: &Told) -> Vec<u128> {
        told.results.iter().map(|(_, record, _)| record.id().as_u128()).collect()
    }

    async fn waiting(waiting: impl IntoIterator<Item = Job>) -> mpsc::Receiver<Job> {
        let (sender, jobs) = mpsc::channel(TOLD_TOGETHER_MAX + 1);
        for job in waiting {
            assert!(sender.send(job).await.is_ok(), "there is room");
        }
        jobs
    }

    #[tokio::test]
    async fn batches_that_wait_are_told_together_in_order_up_to_another_job() {
        let jobs = [Job::Tell(told(1, 6)), Job::Tell(told(2, 3)), Job::Forget(vec![1]), Job::Tell(told(1, 9))];
        let mut jobs = waiting(jobs).await;
        let mut first = told(1, 5);
        let next = first.gather(&mut jobs);
        assert!(matches!(next, Some(Job::Forget(partitions)) if partitions == [1]));
        assert_eq!(ids(&first), [5, 6, 3]);
        assert_eq!(first.positions, Positions::from([(1, 7), (2, 4)]), "of each partition the last one");
        let mut last = told(1, 8);
        assert!(last.gather(&mut jobs).is_none());
        assert_eq!(ids(&last), [8, 9]);
    }

    #[tokio::test]
    async fn no_more_are_told_together_than_the_bound() {
        let mut jobs = waiting((1..=1_000).map(|offset| Job::Tell(told(1, offset)))).await;
        let mut first = told(1, 0);
        assert!(first.gather(&mut jobs).is_none());
        assert_eq!((first.records(), jobs.len()), (TOLD_TOGETHER_MAX, 1));
    }

    #[test]
    fn a_refused_commit_stays_and_waits_until_the_worker_may_have_joined() {
        let failed = |code| Err(KafkaError::ConsumerCommit(code));
        let (mut commits, now) = (Commits::new(), Instant::now());
        assert!(!commits.are_due(now), "there is nothing to commit");
        commits.pending.extend([(1, 5)]);
        commits.tried(failed(RDKafkaErrorCode::OperationTimedOut), now);
        assert!(commits.are_due(now), "what merely failed is tried again at once");
        commits.tried(failed(RDKafkaErrorCode::UnknownMemberId), now);
        commits.pending.extend([(2, 7)]);
        assert!(!commits.are_due(now + JOIN_WAIT - Duration::from_millis(1)));
        assert!(commits.are_due(now + JOIN_WAIT));
        assert_eq!(commits.pending, Positions::from([(1, 5), (2, 7)]));
        commits.tried(Ok(()), now + JOIN_WAIT);
        assert!(commits.pending.is_empty());
    }

    #[test]
    fn nothing_is_committed_of_partitions_that_are_anothers() {
        let mut commits = Commits::new();
        commits.pending.extend([(1, 5), (2, 7)]);
        commits.forget(&[1, 9]);
        assert_eq!(commits.pending, Positions::from([(2, 7)]));
    }
}
