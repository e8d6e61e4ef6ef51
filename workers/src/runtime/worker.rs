//! The worker's loop: what arrived becomes a batch, partitions come and go, ticks are kept, and shutdown is in good order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use common::config::KafkaConfig;
use common::{database, lifecycle, memory, telemetry, topics};
use rdkafka::consumer::BaseConsumer;
use sqlx::PgPool;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::batch::{Applied, Applier, Partitions, event_records};
use super::consume::{Fed, Feed, Record, Reports, Seeker};
use super::dead_letters::{Limit, Office};
use super::offsets::Positions;
use super::publish::{Publisher, Sender, Told};
use super::reading::Reading;
use super::recall::Memory;
use super::settings::WorkerSettings;
use super::store;
use super::word::Word;

/// One connection does all the work, which is one thing after the other: of several each would have its turn, and plan every statement for
/// itself. Another one answers `/readyz` meanwhile.
const CONNECTIONS: u32 = 1;
/// How long a worker that was told to stop may take to finish its batch.
const STOP_WAIT_MAX: Duration = Duration::from_secs(8);
/// Outcomes that are old enough are found by a sweep of their table, so many pages at once: a batch may wait for that. The pause after each is
/// so many times the time that it took; a short one where there is an old outcome for each page, so that as many go as come. At the table's
/// end the sweep rests.
const PURGE_PAGES: i64 = 64;
const PURGE_PAUSE: u32 = 99;
const PURGE_PAUSE_AMONG_OLD: u32 = 9;
const PURGE_REST: Duration = Duration::from_hours(1);
/// How long publishing may take to end after the worker.
const PUBLISHING_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long to wait before looking again whether the cause of a record is applied.
const CAUSE_WAIT: Duration = Duration::from_millis(20);
/// A batch of so many is one of a crowd. If it comes from so many partitions, the next one gathers: each partition of a batch is a request of
/// its own to the broker, on the way there and back. From one partition, large batches come by themselves.
const DWELL_RECORDS: usize = 16;
const DWELL_PARTITIONS: usize = 4;
/// When so many wait, a batch's own cost is small beside theirs, and it gathers no longer.
const ENOUGH_RECORDS: usize = 200;
/// How often that is looked at: to be woken by each record would cost more.
const DWELL_STEP: Duration = Duration::from_millis(1);
/// How often to look whether the database still knows what it was told, when no record asks.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(5);

/// Runs a worker until it is told to stop.
///
/// # Errors
/// What it cannot go on from; its offsets are then uncommitted, so nothing is lost.
pub async fn run<W: Word>(settings: WorkerSettings, word: W) -> anyhow::Result<()> {
    let metrics = telemetry::start(&settings.telemetry)?;
    memory::use_small_pages();
    let stop = lifecycle::shutdown_signal()?;
    let pool = database::worker_pool(&settings.database, W::WORKER, CONNECTIONS)?;
    let assigned = Arc::new(AtomicBool::new(false));
    let health = readiness(database::pool(&settings.database, W::WORKER, CONNECTIONS)?, assigned.clone());
    lifecycle::serve_health(settings.worker_listen, health, metrics, stop.clone())?;
    let feed = Feed::start(&settings.kafka, W::TOPIC, W::GROUP, W::WORKER)?;
    let sender = Sender::new(&settings.kafka, W::WORKER)?;
    let (publisher, publishing) =
        Publisher::start(sender.clone(), feed.consumer.clone(), W::TOPIC, settings.offset_commit_interval());
    let oldest = Arc::new(Oldest::default());
    let worker = Worker {
        applier: Applier {
            word,
            pool,
            stop: stop.clone(),
            memory: Memory::default(),
            known: BTreeSet::new(),
            applied_before: Positions::new(),
        },
        consumer: feed.consumer.clone(),
        seeker: feed.seeker.clone(),
        publisher,
        sender,
        office: Office::new(W::TOPIC, W::GROUP),
        limit: Limit::default(),
        owned: BTreeSet::new(),
        reading: Reading::default(),
        applied_here: Positions::new(),
        aside: Aside::default(),
        oldest: oldest.clone(),
        kafka: settings.kafka,
        partitions: None,
        assigned,
        batch_max: usize::from(settings.batch_records_max),
        dwell: Duration::from_millis(settings.batch_dwell_ms),
        gather_until: Instant::now(),
        requests_kept_hours: settings.requests_kept_hours,
        swept_pages: 0,
    };
    tokio::spawn(oldest.clone().tell());
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

pub(super) struct Worker<W> {
    pub(super) applier: Applier<W>,
    pub(super) consumer: Arc<BaseConsumer<Reports>>,
    pub(super) seeker: Seeker,
    pub(super) publisher: Publisher,
    sender: Sender,
    office: Office,
    limit: Limit,
    pub(super) owned: BTreeSet<i32>,
    pub(super) reading: Reading,
    /// How far this worker has applied its partitions.
    pub(super) applied_here: Positions,
    /// Records whose causes are not applied yet.
    pub(super) aside: Aside,
    oldest: Arc<Oldest>,
    pub(super) kafka: KafkaConfig,
    /// How many partitions there are, once that is known.
    pub(super) partitions: Option<Partitions>,
    pub(super) assigned: Arc<AtomicBool>,
    batch_max: usize,
    dwell: Duration,
    /// Until when the next batch gathers.
    gather_until: Instant,
    requests_kept_hours: u32,
    /// Where the sweep for old outcomes is.
    swept_pages: i64,
}

impl<W: Word> Worker<W> {
    async fn work(mut self, feed: &mut Feed, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = W::TICK.map(tokio::time::interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut purges = tokio::time::interval(PURGE_REST);
        let mut looks = tokio::time::interval(LOOK_BACK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retries = tokio::time::interval(CAUSE_WAIT);
        retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = next_tick(&mut ticks) => self.tick().await?,
                _ = purges.tick() => purges.reset_after(self.purge().await),
                _ = looks.tick() => self.look_back().await?,
                _ = retries.tick(), if !self.aside.is_empty() => {
                    self.try_again().await?;
                    // From now on: others have their turn meanwhile, however long this took.
                    retries.reset();
                }
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
        let enough = ENOUGH_RECORDS.min(self.batch_max);
        while self.gather_until > Instant::now() && feed.fed.len() + 1 < enough {
            tokio::time::sleep_until(self.gather_until.min(Instant::now() + DWELL_STEP)).await;
        }
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
        // A partition that was lost meanwhile is another's now.
        records.retain_mut(|record| self.owned.contains(&record.partition) && self.reading.take(record));
        let records = records.into_iter().filter_map(|record| self.aside.keep(record)).collect();
        self.apply(records).await?;
        match interruption {
            Some(Fed::Assigned(partitions)) => self.take_over(partitions).await,
            Some(Fed::Revoked(partitions)) => self.hand_back(partitions).await,
            Some(Fed::Sought(partitions)) => {
                self.reading.arrived(&partitions);
                Ok(())
            }
            Some(Fed::Record(_)) | None => Ok(()),
        }
    }

    async fn apply(&mut self, records: Vec<Record>) -> anyhow::Result<()> {
        let oldest = records.iter().map(|record| record.appended_at).chain(self.aside.oldest()).min();
        if records.is_empty() {
            return Ok(());
        }
        #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
        metrics::histogram!("boxoffice_batch_records").record(records.len() as f64);
        self.oldest.is(oldest);
        let total = records.len();
        self.catch_up().await;
        let mut done = match self.applier.apply(records).await? {
            Applied::Done(done) => done,
            Applied::Stopped => return Ok(()),
            Applied::WentBack => return self.take_over_again().await,
        };
        if is_scattered_crowd(total, done.positions.len()) {
            self.gather_until = Instant::now() + self.dwell;
        }
        self.aside.put_back(std::mem::take(&mut done.waiting));
        self.oldest.is(self.aside.oldest());
        let dead = std::mem::take(&mut done.dead_letters);
        let positions = std::mem::take(&mut done.positions);
        self.applied_here.extend(&positions);
        let mut told = Told { positions, ..Told::default() };
        for letter in &dead {
            tracing::warn!(partition = letter.record.partition, offset = letter.record.offset, reason = %letter.reason, "dead letter");
            told.dead_letters.push(self.sender.send(|| self.office.address(letter)).await?);
        }
        metrics::counter!("boxoffice_dead_letters_total").increment(dead.len() as u64);
        let too_many = self.limit.note(total, dead.iter().filter(|letter| letter.is_its_writers_fault()).count());
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
        self.read_again().await
    }

    /// Tries what waits once more.
    async fn try_again(&mut self) -> anyhow::Result<()> {
        let records = self.aside.take(self.batch_max);
        self.apply(records).await
    }

    /// Finds out whether the database has gone back, in case no record does.
    async fn look_back(&mut self) -> anyhow::Result<()> {
        let Ok(applied) = store::applied(&self.applier.pool, W::TOPIC).await else { return Ok(()) };
        let behind = |(partition, next): (&i32, &i64)| applied.get(partition).is_none_or(|known| known < next);
        if self.applied_here.iter().any(behind) {
            return self.take_over_again().await;
        }
        self.catch_up().await;
        Ok(())
    }

    async fn tick(&mut self) -> anyhow::Result<()> {
        let Some(partitions) = self.partitions.filter(|_| !self.applier.memory.is_active()) else { return Ok(()) };
        let owned = &self.owned;
        let owns = |key: &str| owned.contains(&topics::partition_of(key.as_bytes(), partitions.own));
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

    /// Deletes outcomes that are old enough in the next pages of their table. How long to wait before going on.
    async fn purge(&mut self) -> Duration {
        let began = Instant::now();
        let pages = self.swept_pages..self.swept_pages + PURGE_PAGES;
        match store::purge(&self.applier.pool, W::TOPIC, self.requests_kept_hours, pages.clone()).await {
            Ok((_, all)) if pages.end >= all => {
                self.swept_pages = 0;
                PURGE_REST
            }
            Ok((deleted, _)) => {
                self.swept_pages = pages.end;
                began.elapsed() * if deleted < PURGE_PAGES { PURGE_PAUSE } else { PURGE_PAUSE_AMONG_OLD }
            }
            Err(error) => {
                tracing::warn!(%error, "old outcomes are deleted another time");
                PURGE_REST
            }
        }
    }

    fn topic_partitions(&self) -> anyhow::Result<Partitions> {
        self.partitions.context("records came before partitions")
    }
}

/// Whether a batch is large, and its records are few in each partition.
fn is_scattered_crowd(records: usize, partitions: usize) -> bool {
    records >= DWELL_RECORDS && partitions >= DWELL_PARTITIONS
}

/// When the oldest record was appended that has come and is not applied; its age is a metric, told each second.
#[derive(Default)]
struct Oldest {
    appended_ms: AtomicI64,
}

impl Oldest {
    fn is(&self, appended_at: Option<DateTime<Utc>>) {
        self.appended_ms.store(appended_at.map_or(0, |at| at.timestamp_millis()), Ordering::Relaxed);
    }

    async fn tell(self: Arc<Self>) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            seconds.tick().await;
            let appended_ms = self.appended_ms.load(Ordering::Relaxed);
            let age_ms = if appended_ms == 0 { 0 } else { (Utc::now().timestamp_millis() - appended_ms).max(0) };
            #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
            metrics::gauge!("boxoffice_oldest_record_age_seconds").set(age_ms as f64 / 1_000.0);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crowd_of_several_partitions_makes_the_next_batch_gather() {
        assert!(is_scattered_crowd(DWELL_RECORDS, DWELL_PARTITIONS));
        assert!(!is_scattered_crowd(DWELL_RECORDS - 1, DWELL_PARTITIONS), "a few records");
        assert!(!is_scattered_crowd(500, 1), "one hot schedule");
    }
}
