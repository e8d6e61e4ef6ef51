//! The worker's loop: what arrived becomes a batch, partitions come and go, ticks are kept, and shutdown is in good order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::Utc;
use common::config::KafkaConfig;
use common::kafka::producer::{Patience, Producer};
use common::{database, lifecycle, telemetry, topics};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use sqlx::PgPool;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::batch::{Applier, event_records};
use super::consume::{Fed, Feed, Record, Reports};
use super::dead_letters::{Limit, Office};
use super::offsets::Positions;
use super::publish::{Publisher, Sender, Told};
use super::recall::{self, Memory, TooMuch};
use super::settings::WorkerSettings;
use super::word::Word;
use super::{offsets, store};

/// One connection applies, one ticks, one answers `/readyz`.
const CONNECTIONS: u32 = 3;
/// How long a worker that was told to stop may take to finish its batch.
const STOP_WAIT_MAX: Duration = Duration::from_secs(8);
/// How often outcomes that are old enough are deleted, and how many at once.
const PURGE_EVERY: Duration = Duration::from_mins(1);
const PURGE_ROWS_MAX: i64 = 10_000;
/// How long publishing may take to end after the worker.
const PUBLISHING_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long to wait before asking again, while the database or the broker is away at an assignment.
const ASSIGN_RETRY: Duration = Duration::from_millis(200);
/// How long to wait before looking again whether the cause of a record is applied, when there is nothing else to do.
const CAUSE_WAIT: Duration = Duration::from_millis(50);

/// Runs a worker until it is told to stop.
///
/// # Errors
/// What it cannot go on from; its offsets are then uncommitted, so nothing is lost.
pub async fn run<W: Word>(settings: WorkerSettings, word: W) -> anyhow::Result<()> {
    let metrics = telemetry::start(&settings.telemetry)?;
    let stop = lifecycle::shutdown_signal()?;
    let pool = database::worker_pool(&settings.database, W::WORKER, CONNECTIONS)?;
    let assigned = Arc::new(AtomicBool::new(false));
    let health = readiness(pool.clone(), assigned.clone());
    lifecycle::serve_health(settings.worker_listen, health, metrics, stop.clone()).await?;
    let producer = Producer::new(&settings.kafka, W::WORKER, Patience::Endless, settings.results_linger())?;
    let feed = Feed::start(&settings.kafka, W::TOPIC, W::GROUP, W::WORKER)?;
    let sender = Sender::new(producer, W::WORKER);
    let (publisher, publishing) =
        Publisher::start(sender.clone(), feed.consumer.clone(), W::TOPIC, settings.offset_commit_interval());
    let worker = Worker {
        applier: Applier { word, pool, stop: stop.clone(), memory: Memory::default() },
        consumer: feed.consumer.clone(),
        publisher,
        sender,
        office: Office::new(W::TOPIC, W::GROUP),
        limit: Limit::default(),
        owned: BTreeSet::new(),
        went_back: Positions::new(),
        kafka: settings.kafka,
        partitions: None,
        assigned,
        batch_max: usize::from(settings.batch_records_max),
        requests_kept_hours: settings.requests_kept_hours,
    };
    tracing::info!(worker = W::WORKER, topic = W::TOPIC, "started");
    supervise(worker, feed, publishing, stop).await
}

/// Runs the loop, and ends it in order: finish, commit, leave the group.
async fn supervise<W: Word>(
    worker: Worker<W>,
    mut feed: Feed,
    mut publishing: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let ended = tokio::select! {
        ended = worker.work(&mut feed, stop.clone()) => ended,
        published = &mut publishing => match published {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => Ok(()),
            Err(panic) => Err(anyhow::anyhow!("publishing ended: {panic}")),
        },
        () = too_late(stop) => Err(anyhow::anyhow!("the last batch did not go through in time; it will be read again")),
    };
    // The worker is gone, so publishing ends by itself, unless Kafka does not answer.
    if !publishing.is_finished() && tokio::time::timeout(PUBLISHING_WAIT_MAX, &mut publishing).await.is_err() {
        publishing.abort();
    }
    tokio::task::spawn_blocking(move || feed.leave()).await?;
    if ended.is_ok() {
        tracing::info!("stopped in good order");
    }
    ended
}

async fn too_late(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_WAIT_MAX).await;
}

/// Ready: partitions were assigned, and the database answers.
fn readiness(pool: PgPool, assigned: Arc<AtomicBool>) -> lifecycle::Readiness {
    Arc::new(move || {
        let (pool, assigned) = (pool.clone(), assigned.load(Ordering::Relaxed));
        Box::pin(async move {
            let mut missing = Vec::new();
            if !assigned {
                missing.push("no partitions assigned yet".to_owned());
            }
            if let Err(error) = sqlx::query("SELECT 1").execute(&pool).await {
                missing.push(format!("the database does not answer: {error}"));
            }
            missing
        })
    })
}

struct Worker<W> {
    applier: Applier<W>,
    consumer: Arc<BaseConsumer<Reports>>,
    publisher: Publisher,
    sender: Sender,
    office: Office,
    limit: Limit,
    owned: BTreeSet<i32>,
    /// Partitions whose next record is this one: what still comes from behind it was read too early.
    went_back: Positions,
    kafka: KafkaConfig,
    /// Partitions of the topic, once they are known.
    partitions: Option<i32>,
    assigned: Arc<AtomicBool>,
    batch_max: usize,
    requests_kept_hours: u32,
}

impl<W: Word> Worker<W> {
    async fn work(mut self, feed: &mut Feed, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = W::TICK.map(tokio::time::interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut purges = tokio::time::interval(PURGE_EVERY);
        purges.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = next_tick(&mut ticks) => self.tick().await?,
                _ = purges.tick() => self.purge().await,
                next = feed.fed.recv() => match next {
                    Some(first) => self.work_off(first, feed).await?,
                    None => bail!("the consumer has ended"),
                },
            }
        }
        self.publisher.settle().await
    }

    /// Works off what has arrived: records up to a batch, or what interrupts them.
    async fn work_off(&mut self, first: Fed, feed: &mut Feed) -> anyhow::Result<()> {
        let mut records = Vec::new();
        let mut next = Some(first);
        let interruption = loop {
            match next {
                Some(Fed::Record(record)) => records.push(*record),
                other => break other,
            }
            if records.len() == self.batch_max {
                break None;
            }
            next = feed.fed.try_recv().ok();
        };
        if !records.is_empty() {
            self.apply(records).await?;
        }
        match interruption {
            Some(Fed::Assigned(partitions)) => self.take_over(partitions).await,
            Some(Fed::Revoked(partitions)) => self.hand_back(partitions).await,
            _ => Ok(()),
        }
    }

    async fn apply(&mut self, mut records: Vec<Record>) -> anyhow::Result<()> {
        // A partition that was lost meanwhile is another's now.
        records.retain(|record| self.owned.contains(&record.partition) && in_turn(&mut self.went_back, record));
        let Some(first) = records.first() else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
        let (size, age_ms) = (records.len() as f64, (Utc::now() - first.appended_at).num_milliseconds() as f64);
        metrics::histogram!("boxoffice_batch_records").record(size);
        metrics::gauge!("boxoffice_oldest_record_age_seconds").set(age_ms / 1_000.0);
        let total = records.len();
        let Some(mut done) = self.applier.apply(records).await? else { return Ok(()) };
        metrics::gauge!("boxoffice_oldest_record_age_seconds").set(0.0);
        let dead = std::mem::take(&mut done.dead_letters);
        let positions = std::mem::take(&mut done.positions);
        let mut told = Told { positions, ..Told::default() };
        for letter in &dead {
            tracing::warn!(partition = letter.record.partition, offset = letter.record.offset, reason = %letter.reason, "dead letter");
            told.dead_letters.push(self.sender.send(|| self.office.address(letter)).await?);
        }
        metrics::counter!("boxoffice_dead_letters_total").increment(dead.len() as u64);
        let too_many = self.limit.note(total, dead.len());
        let waiting = std::mem::take(&mut done.waiting);
        let idle = done.results.is_empty() && dead.is_empty();
        let (results, emissions) = done.into_records(self.topic_partitions()?);
        told.results = results;
        told.messages = emissions.messages;
        self.publisher.tell(told).await?;
        if too_many {
            self.publisher.settle().await?;
            bail!(
                "over half of the last records of {} were dead letters; look at {}.dlt, mend what writes them, start again",
                W::TOPIC,
                W::TOPIC
            );
        }
        if waiting.is_empty() { Ok(()) } else { self.go_back(waiting, idle).await }
    }

    /// Reads again from those records on whose causes are not applied yet. Other partitions go on meanwhile: a cause may be there.
    async fn go_back(&mut self, waiting: Positions, idle: bool) -> anyhow::Result<()> {
        tracing::debug!(?waiting, "records wait for their causes in other topics");
        let (consumer, to) = (self.consumer.clone(), waiting.clone());
        tokio::task::spawn_blocking(move || offsets::go_back(&consumer, W::TOPIC, &to)).await??;
        self.went_back.extend(waiting);
        if idle {
            tokio::select! {
                () = tokio::time::sleep(CAUSE_WAIT) => {}
                () = self.applier.stop.cancelled() => {}
            }
        }
        Ok(())
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        let Some(partitions) = self.partitions else { return Ok(()) };
        let owned = &self.owned;
        let owns = |key: &str| owned.contains(&topics::partition_of(key.as_bytes(), partitions));
        let emissions = match self.applier.word.tick(&self.applier.pool, &owns).await {
            Ok(emissions) => emissions,
            Err(error) => {
                self.applier.word.forget();
                if database::classify(&error) == database::ErrorClass::Fatal {
                    return Err(error).context("the database refuses a tick, and will go on to");
                }
                tracing::warn!(%error, "a tick is tried again");
                return Ok(());
            }
        };
        if emissions.events.is_empty() && emissions.messages.is_empty() {
            return Ok(());
        }
        let results = event_records(emissions.events, partitions);
        self.publisher.tell(Told { results, messages: emissions.messages, ..Told::default() }).await
    }

    async fn purge(&self) {
        let purged = store::purge(&self.applier.pool, W::TOPIC, self.requests_kept_hours, PURGE_ROWS_MAX).await;
        if let Err(error) = purged {
            tracing::warn!(%error, "old outcomes are deleted another time");
        }
    }

    async fn take_over(&mut self, partitions: Vec<i32>) -> anyhow::Result<()> {
        loop {
            let taken = self.try_take_over(&partitions).await;
            let Err(error) = taken else { break };
            if error.is::<TooMuch>() {
                return Err(error);
            }
            tracing::warn!(%error, "the new partitions are not taken over yet");
            tokio::select! {
                () = tokio::time::sleep(ASSIGN_RETRY) => {}
                () = self.applier.stop.cancelled() => return Ok(()),
            }
        }
        self.applier.word.forget();
        self.owned.extend(&partitions);
        self.assigned.store(true, Ordering::Relaxed);
        tracing::info!(?partitions, "partitions taken over");
        Ok(())
    }

    async fn try_take_over(&mut self, partitions: &[i32]) -> anyhow::Result<()> {
        let applied = store::applied(&self.applier.pool, W::TOPIC).await?;
        let (consumer, asked) = (self.consumer.clone(), partitions.to_vec());
        let (kafka, stop) = (self.kafka.clone(), self.applier.stop.clone());
        let (starts, all, memory) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let all = offsets::partitions_of(&consumer, W::TOPIC)?;
            let unapplied = asked.iter().map(|id| (*id, applied.get(id).copied().unwrap_or_default())).collect();
            let memory = recall::recall::<W>(&kafka, &unapplied, &stop)?;
            Ok((offsets::take_over(&consumer, W::TOPIC, &asked, &applied)?, all, memory))
        })
        .await??;
        tracing::debug!(?starts, "starting offsets");
        self.applier.memory.extend(memory);
        self.partitions = Some(all);
        Ok(())
    }

    /// All records of these partitions that came were applied: commit, then hand back.
    async fn hand_back(&mut self, partitions: Vec<i32>) -> anyhow::Result<()> {
        if self.consumer.assignment_lost() {
            tracing::warn!(?partitions, "partitions lost; what was not committed is read again by their new owner");
            self.publisher.forget().await?;
        } else {
            self.publisher.settle().await?;
        }
        for partition in &partitions {
            self.owned.remove(partition);
            self.went_back.remove(partition);
        }
        self.applier.memory.leave(&partitions);
        offsets::hand_back(&self.consumer, W::TOPIC, &partitions)?;
        self.applier.word.forget();
        tracing::info!(?partitions, "partitions handed back");
        Ok(())
    }

    fn topic_partitions(&self) -> anyhow::Result<i32> {
        self.partitions.context("records came before partitions")
    }
}

/// Whether a record is the next one of its partition, after the worker went back in it.
fn in_turn(went_back: &mut Positions, record: &Record) -> bool {
    match went_back.get(&record.partition) {
        Some(next) if *next == record.offset => went_back.remove(&record.partition).is_some(),
        Some(_) => false,
        None => true,
    }
}

async fn next_tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}
