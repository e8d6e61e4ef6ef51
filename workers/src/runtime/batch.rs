//! One batch: read, applied in one transaction, and what it leaves to be told.
//!
//! Transient errors repeat the batch until it goes through; nothing is skipped. An error in the data splits the batch until the
//! bad record is alone: that one is a dead letter. A fatal error stops the worker with its offsets uncommitted.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, Utc};
use common::database::{ErrorClass, classify};
use common::ids::RequestId;
use common::messages::results::{RequestResult, RequestStatus, ResultRecord, Source};
use common::messages::{self, Command, Unreadable};
use serde_json::value::to_raw_value;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::consume::Record;
use super::dead_letters::DeadLetter;
use super::offsets::Positions;
use super::store;
use super::word::{Applied, Emissions, Logged, Outcome, Word};

const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// A record, read.
pub(crate) struct Read<C> {
    record: Record,
    logged: Logged<C>,
}

/// What became of a batch.
#[derive(Default)]
pub(crate) struct Done {
    /// Outcomes, those of repeats too, with the partition of their source and their trace.
    pub(crate) results: Vec<(i32, RequestResult, Option<String>)>,
    pub(crate) emissions: Emissions,
    pub(crate) dead_letters: Vec<DeadLetter>,
}

impl Done {
    fn extend(&mut self, other: Self) {
        self.results.extend(other.results);
        self.emissions.events.extend(other.emissions.events);
        self.emissions.messages.extend(other.emissions.messages);
        self.dead_letters.extend(other.dead_letters);
    }
}

/// Tells readable records from dead letters.
pub(crate) fn read<C: Command>(records: Vec<Record>) -> (Vec<Read<C>>, Vec<DeadLetter>) {
    let (mut readable, mut dead) = (Vec::with_capacity(records.len()), Vec::new());
    for record in records {
        match messages::read::<C>(record.key.as_deref(), record.value.as_deref()) {
            Ok(command) => {
                let logged = Logged {
                    command,
                    asked_at: record.asked_at(),
                    partition: record.partition,
                    offset: record.offset,
                    traceparent: record.traceparent.clone(),
                };
                readable.push(Read { record, logged });
            }
            Err(reason) => dead.push(DeadLetter { record, reason }),
        }
    }
    (readable, dead)
}

/// Where records leave the log: the offset after the last of each partition, and the last one's time.
pub(crate) fn positions(records: &[Record]) -> (Positions, DateTime<Utc>) {
    let mut positions = Positions::new();
    let mut log_time = DateTime::UNIX_EPOCH;
    for record in records {
        let next = positions.entry(record.partition).or_default();
        *next = (record.offset + 1).max(*next);
        log_time = log_time.max(record.appended_at);
    }
    (positions, log_time)
}

/// Applies batches of one word.
pub(crate) struct Applier<W> {
    pub(crate) word: W,
    pub(crate) pool: PgPool,
    pub(crate) stop: CancellationToken,
}

impl<W: Word> Applier<W> {
    /// Applies a batch. None: the worker is told to stop and the batch has not gone through.
    ///
    /// # Errors
    /// Fatal ones.
    pub(crate) async fn apply(&mut self, records: Vec<Record>) -> anyhow::Result<Option<Done>> {
        let (positions, log_time) = positions(&records);
        let (readable, dead_letters) = read::<W::Command>(records);
        let mut done = Done { dead_letters, ..Done::default() };
        let mut parts = vec![readable.as_slice()];
        // The whole batch first, halves only when the data asks for it; the last part moves the applied offsets.
        while let Some(part) = parts.pop() {
            let advance = parts.is_empty().then_some((&positions, log_time));
            match self.apply_part(part, advance).await? {
                Part::Applied(applied) => done.extend(applied),
                Part::Split => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Part::Refused(reason) => {
                    let dead = DeadLetter { record: part[0].record.clone(), reason: Unreadable::Refused(reason) };
                    done.dead_letters.push(dead);
                    if parts.is_empty() {
                        parts.push(&[]);
                    }
                }
                Part::Stopped => return Ok(None),
            }
        }
        Ok(Some(done))
    }

    async fn apply_part(
        &mut self,
        part: &[Read<W::Command>],
        advance: Option<(&Positions, DateTime<Utc>)>,
    ) -> anyhow::Result<Part> {
        let (mut wait, mut alone_before) = (RETRY_FIRST, false);
        loop {
            let began = Instant::now();
            let error = match self.transact(part, advance).await {
                Ok(done) => {
                    metrics::histogram!("boxoffice_apply_seconds").record(began.elapsed().as_secs_f64());
                    return Ok(Part::Applied(done));
                }
                Err(error) => error,
            };
            self.word.forget();
            match classify(&error) {
                ErrorClass::Transient => {
                    metrics::counter!("boxoffice_apply_retries_total").increment(1);
                    tracing::warn!(%error, records = part.len(), wait_ms = wait.as_millis(), "the batch is tried again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_LAST),
                        () = self.stop.cancelled() => return Ok(Part::Stopped),
                    }
                }
                ErrorClass::Data if part.len() > 1 => return Ok(Part::Split),
                // Perhaps another worker was first with the same request: then the second try finds its outcome.
                ErrorClass::Data if part.len() == 1 && !alone_before => alone_before = true,
                ErrorClass::Data if part.len() == 1 => return Ok(Part::Refused(error.to_string())),
                _ => return Err(error).context("the database refuses the batch, and will go on to"),
            }
        }
    }

    async fn transact(
        &mut self,
        part: &[Read<W::Command>],
        advance: Option<(&Positions, DateTime<Utc>)>,
    ) -> Result<Done, sqlx::Error> {
        let ids: Vec<Uuid> = part.iter().map(|read| read.logged.command.request_id().0).collect();
        let mut transaction = self.pool.begin().await?;
        let (now, known) = store::known_outcomes(&mut transaction, &ids).await?;
        if let Some(last) = part.last() {
            // The time on the way, plus what the database's clock is ahead of the broker's: below zero, it is behind.
            let ahead_ms = (now - last.record.appended_at).num_milliseconds();
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!("boxoffice_database_after_broker_seconds").set(ahead_ms as f64 / 1_000.0);
        }
        let mut outcomes: HashMap<RequestId, RequestResult> = known.into_iter().map(|r| (r.request_id, r)).collect();
        let mut seen: HashSet<RequestId> = HashSet::with_capacity(part.len());
        let fresh: Vec<&Logged<W::Command>> = part
            .iter()
            .map(|read| &read.logged)
            .filter(|logged| {
                let id = logged.command.request_id();
                !outcomes.contains_key(&id) && seen.insert(id)
            })
            .collect();
        let repeats = part.len() - fresh.len();
        let mut done = Done::default();
        if !fresh.is_empty() {
            let applied = self.word.apply(&mut transaction, now, &fresh).await?;
            let new = results::<W>(&fresh, applied, now, &mut done.emissions);
            store::insert_outcomes(&mut transaction, &new).await?;
            outcomes.extend(new.into_iter().map(|result| (result.request_id, result)));
        }
        if let Some((positions, log_time)) = advance {
            store::advance(&mut transaction, W::TOPIC, positions, log_time).await?;
        }
        transaction.commit().await?;
        count(&outcomes, repeats);
        done.results = tell(part, outcomes);
        Ok(done)
    }
}

enum Part {
    Applied(Done),
    Split,
    Refused(String),
    Stopped,
}

/// The results of the commands that ended, and what is to be told besides.
fn results<W: Word>(
    fresh: &[&Logged<W::Command>],
    applied: Applied,
    now: DateTime<Utc>,
    emissions: &mut Emissions,
) -> Vec<RequestResult> {
    // A word that forgot an outcome would lose a request: better to stop, with the offsets uncommitted.
    assert_eq!(fresh.len(), applied.outcomes.len(), "each command has one outcome");
    *emissions = applied.emissions;
    let ended =
        fresh.iter().zip(applied.outcomes).filter_map(|(logged, outcome)| result(logged, outcome, W::TOPIC, now));
    ended.collect()
}

fn result<C: Command>(logged: &Logged<C>, outcome: Outcome, topic: &str, now: DateTime<Utc>) -> Option<RequestResult> {
    let command = &logged.command;
    let (request_id, user_id, origin) = (command.request_id(), command.user_id(), command.origin());
    let (status, http_status, result, problem, concert_id) = match outcome {
        Outcome::Succeeded { http_status, body, concert_id } => {
            (RequestStatus::Succeeded, http_status, Some(body), None, concert_id)
        }
        Outcome::Failed(problem) => {
            let whose = if user_id.is_some() { "" } else { "/admin" };
            let document = problem.document(&format!("/v1{whose}/requests/{request_id}"), Some(request_id));
            let document = to_raw_value(&document).expect("a problem document is plain JSON");
            (RequestStatus::Failed, problem.slug.status(), None, Some(document), None)
        }
        Outcome::Continued => return None,
    };
    Some(RequestResult {
        request_id,
        user_id,
        kind: origin.map_or(command.kind(), |origin| &origin.kind).to_owned(),
        status,
        http_status,
        result,
        problem,
        source: Source { topic: topic.to_owned(), partition: logged.partition, offset: logged.offset },
        request_hash: command.request_hash().map(str::to_owned),
        submitted_at: origin.map_or(logged.asked_at, |origin| origin.submitted_at),
        finished_at: now,
        concert_id,
    })
}

fn count(outcomes: &HashMap<RequestId, RequestResult>, repeats: usize) {
    let succeeded = outcomes.values().filter(|result| result.status == RequestStatus::Succeeded).count();
    metrics::counter!("boxoffice_outcomes_total", "status" => "succeeded").increment(succeeded as u64);
    metrics::counter!("boxoffice_outcomes_total", "status" => "failed").increment((outcomes.len() - succeeded) as u64);
    metrics::counter!("boxoffice_repeats_total").increment(repeats as u64);
}

/// The outcomes in log order, each once, a repeat's again.
fn tell<C: Command>(
    part: &[Read<C>],
    mut outcomes: HashMap<RequestId, RequestResult>,
) -> Vec<(i32, RequestResult, Option<String>)> {
    part.iter()
        .filter_map(|read| {
            let result = outcomes.remove(&read.logged.command.request_id())?;
            Some((read.logged.partition, result, read.logged.traceparent.clone()))
        })
        .collect()
}

impl Done {
    /// The records for the results topic: events first, so that a cache knows of an admitted token before its buyer does.
    pub(crate) fn into_records(self, partitions: i32) -> (Vec<(i32, ResultRecord, Option<String>)>, Emissions) {
        let mut emissions = self.emissions;
        let events = std::mem::take(&mut emissions.events);
        let mut records = event_records(events, partitions);
        let own = |partition: i32| partition % partitions;
        records.extend(
            self.results
                .into_iter()
                .map(|(partition, result, trace)| (own(partition), ResultRecord::Request(result), trace)),
        );
        (records, emissions)
    }
}

/// Token events as records, in the partition of their concert.
pub(crate) fn event_records(
    events: Vec<super::word::Event>,
    partitions: i32,
) -> Vec<(i32, ResultRecord, Option<String>)> {
    events.into_iter().map(|event| (event.partition(partitions), event.into(), None)).collect()
}
