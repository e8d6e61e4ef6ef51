//! One batch: read, applied in one transaction, and what it leaves to be told.
//!
//! Transient errors repeat the batch until it goes through; nothing is skipped. An error in the data splits the batch until the
//! bad record is alone: that one is a dead letter. A fatal error stops the worker with its offsets uncommitted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, Utc};
use common::database::{ErrorClass, classify};
use common::ids::RequestId;
use common::messages::results::{RequestResult, RequestStatus, ResultRecord, Source};
use common::messages::{self, Command, Unreadable};
use serde_json::value::to_raw_value;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::consume::Record;
use super::dead_letters::DeadLetter;
use super::offsets::Positions;
use super::recall::Memory;
use super::store::{self, Span};
use super::word::{Emissions, Logged, Outcome, Told, Word};

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
    /// The offset after the last record of each partition that was applied.
    pub(crate) positions: Positions,
    /// Records that wait for their causes, and those behind them, in order: to be tried again.
    pub(crate) waiting: Vec<Record>,
}

/// How the application of a batch ended.
pub(crate) enum Applied {
    /// As it should.
    Done(Done),
    /// The worker is told to stop, and the batch has not gone through.
    Stopped,
    /// The database knows less than it did: it was restored from a backup. What was applied of a batch that was split is read again.
    WentBack,
}

impl Done {
    fn extend(&mut self, other: Self) {
        self.results.extend(other.results);
        self.emissions.events.extend(other.emissions.events);
        self.emissions.messages.extend(other.emissions.messages);
        self.dead_letters.extend(other.dead_letters);
    }

    /// Sets aside what waits, from those offsets on, readable or not.
    fn set_aside<C>(&mut self, parts: &mut [Vec<Read<C>>], waiting: &Positions) {
        let waits = |record: &Record| waiting.get(&record.partition).is_some_and(|at| record.offset >= *at);
        for part in parts {
            self.waiting.extend(part.extract_if(.., |read| waits(&read.record)).map(|read| read.record));
        }
        self.waiting.extend(self.dead_letters.extract_if(.., |letter| waits(&letter.record)).map(|dead| dead.record));
        self.waiting.sort_by_key(|record| (record.partition, record.offset));
    }
}

/// Tells readable records from dead letters. With each goes what was told of it before the database forgot it.
fn read<W: Word>(
    records: Vec<Record>,
    memory: &Memory,
    applied_before: &Positions,
) -> (Vec<Read<W::Command>>, Vec<DeadLetter>) {
    let (mut readable, mut dead) = (Vec::with_capacity(records.len()), Vec::new());
    for record in records {
        match messages::read::<W::Command>(record.key.as_deref(), record.value.as_deref()) {
            Ok(command) => {
                let told = if memory.is_active() { memory.told(command.request_id()) } else { None };
                let logged = Logged {
                    cause_pending: memory.is_active() && memory.is_pending(&W::cause(&command, told.as_deref())),
                    told,
                    applied_before: applied_before.get(&record.partition).is_some_and(|next| record.offset < *next),
                    is_repeat: false,
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

impl Span {
    fn of(records: &[Record]) -> Self {
        let mut span = Self::default();
        for record in records {
            span.first.entry(record.partition).or_insert(record.since);
            let next = span.next.entry(record.partition).or_default();
            *next = (record.offset + 1).max(*next);
            span.log_time = span.log_time.max(record.appended_at);
        }
        span
    }
}

/// Applies batches of one word.
pub(crate) struct Applier<W> {
    pub(crate) word: W,
    pub(crate) pool: PgPool,
    pub(crate) stop: CancellationToken,
    /// What was told of records that come now.
    pub(crate) memory: Memory,
    /// Partitions of which the database has a row in `applied_offsets`, as far as this worker has seen.
    pub(crate) known: BTreeSet<i32>,
    /// How far the partitions were applied when this worker took them over.
    pub(crate) applied_before: Positions,
}

impl<W: Word> Applier<W> {
    /// Applies a batch.
    ///
    /// # Errors
    /// Fatal ones.
    pub(crate) async fn apply(&mut self, records: Vec<Record>) -> anyhow::Result<Applied> {
        let mut span = Span::of(&records);
        let (readable, dead_letters) = read::<W>(records, &self.memory, &self.applied_before);
        let mut done = Done { dead_letters, ..Done::default() };
        let mut parts = vec![readable];
        // The whole batch first, halves only when the data asks for it; the last part moves the applied offsets.
        while let Some(mut part) = parts.pop() {
            let advance = parts.is_empty().then_some(&span);
            match self.apply_part(&mut part, advance).await? {
                Part::Applied(applied) => done.extend(applied),
                Part::Split => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
                Part::Refused(reason) => {
                    let record = part.remove(0).record;
                    done.dead_letters.push(DeadLetter { record, reason: Unreadable::Refused(reason) });
                    if parts.is_empty() {
                        parts.push(part);
                    }
                }
                Part::Waits(waiting) => {
                    parts.push(part);
                    done.set_aside(&mut parts, &waiting);
                    span.next.extend(waiting);
                }
                Part::Stopped => return Ok(Applied::Stopped),
                Part::WentBack => return Ok(Applied::WentBack),
            }
        }
        self.known.extend(span.next.keys());
        done.positions = span.next;
        Ok(Applied::Done(done))
    }

    async fn apply_part(&mut self, part: &mut [Read<W::Command>], advance: Option<&Span>) -> anyhow::Result<Part> {
        let (mut wait, mut alone_before) = (RETRY_FIRST, false);
        loop {
            let began = Instant::now();
            let tried = self.transact(part, advance).await;
            let error = match tried {
                Ok(Part::Applied(done)) => {
                    metrics::histogram!("boxoffice_apply_seconds").record(began.elapsed().as_secs_f64());
                    return Ok(Part::Applied(done));
                }
                // Rolled back, as after an error: what the word remembers of it never was.
                Ok(other) => {
                    self.word.forget();
                    return Ok(other);
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

    async fn transact(&mut self, part: &mut [Read<W::Command>], advance: Option<&Span>) -> Result<Part, sqlx::Error> {
        let ids: Vec<Uuid> = part.iter().map(|read| read.logged.command.request_id().0).collect();
        let mut locks: Vec<i64> = part.iter().filter_map(|read| W::one_writer_of(&read.logged.command)).collect();
        locks.sort_unstable();
        locks.dedup();
        let mut transaction = self.pool.begin().await?;
        let (now, known) = store::lock_and_look(&mut transaction, &locks, &ids).await?;
        if let Some(last) = part.last() {
            // The time on the way, plus what the database's clock is ahead of the broker's: below zero, it is behind.
            let ahead_ms = (now - last.record.appended_at).num_milliseconds();
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!("boxoffice_database_after_broker_seconds").set(ahead_ms as f64 / 1_000.0);
        }
        let mut outcomes: HashMap<RequestId, RequestResult> = known.into_iter().map(|r| (r.request_id, r)).collect();
        let mut seen: HashSet<RequestId> = HashSet::with_capacity(part.len());
        for Read { logged, .. } in &mut *part {
            let id = logged.command.request_id();
            logged.is_repeat = outcomes.contains_key(&id) || !seen.insert(id);
        }
        let repeats = part.iter().filter(|read| read.logged.is_repeat).count();
        let open = part.iter().filter(|read| !read.logged.is_repeat || has_to_undo::<W>(&read.logged, &outcomes));
        let mut done = Done::default();
        let new = match self.decide(&mut transaction, now, open.collect(), &mut done).await? {
            Ok(new) => new,
            // The transaction is rolled back: what waits has had no effect, but what came after it may have.
            Err(waiting) => return Ok(Part::Waits(waiting)),
        };
        if !self.conclude(&mut transaction, &new, advance).await? {
            return Ok(Part::WentBack);
        }
        transaction.commit().await?;
        outcomes.extend(new.into_iter().map(|result| (result.request_id, result)));
        count(&outcomes, repeats);
        done.results = tell(part, outcomes, W::TOPIC);
        Ok(Part::Applied(done))
    }

    /// Writes the outcomes and moves the applied offsets. False: they are not where the batch begins, so something is missing before it.
    async fn conclude(
        &self,
        transaction: &mut PgConnection,
        new: &[RequestResult],
        advance: Option<&Span>,
    ) -> Result<bool, sqlx::Error> {
        let nowhere = Span::default();
        let span = advance.unwrap_or(&nowhere);
        let moved = store::conclude(transaction, new, W::TOPIC, span).await?;
        let is_new = |(partition, new): &(i32, bool)| *new && self.known.contains(partition);
        Ok(moved.len() == span.next.len() && !moved.iter().any(is_new))
    }

    /// Lets the word decide what is new, and undo what repeats have to. The outcomes to be stored; or where those records are that wait.
    async fn decide(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        open: Vec<&Read<W::Command>>,
        done: &mut Done,
    ) -> Result<Result<Vec<RequestResult>, Positions>, sqlx::Error> {
        let without_effect = |told: &Told| !W::had_effect(&told.result);
        let (settled, open): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|read| !read.logged.is_repeat && read.logged.told.as_deref().is_some_and(without_effect));
        let mut new: Vec<RequestResult> =
            settled.iter().filter_map(|read| read.logged.told.as_ref().map(|told| told.result.clone())).collect();
        let (lost, open): (Vec<_>, Vec<_>) = open.into_iter().partition(|read| is_lost::<W>(&read.logged));
        done.dead_letters.extend(lost.into_iter().map(|read| DeadLetter {
            record: read.record.clone(),
            reason: Unreadable::Unrepeatable("it was applied before, and left no outcome".to_owned()),
        }));
        if open.is_empty() {
            return Ok(Ok(new));
        }
        let commands: Vec<&Logged<W::Command>> = open.iter().map(|read| &read.logged).collect();
        let applied = self.word.apply(transaction, now, &commands).await?;
        // A word that forgot an outcome would lose a request: better to stop, with the offsets uncommitted.
        assert_eq!(open.len(), applied.outcomes.len(), "each command has one outcome");
        done.emissions = applied.emissions;
        let mut waiting = Positions::new();
        for (read, outcome) in open.iter().zip(applied.outcomes) {
            match (outcome, &read.logged.told) {
                (Outcome::Continued, _) => {}
                (Outcome::Waits, _) => {
                    waiting.entry(read.record.partition).or_insert(read.record.offset);
                }
                (Outcome::Lacks(what), _) => {
                    let (record, reason) = (read.record.clone(), Unreadable::Unrepeatable(what));
                    done.dead_letters.push(DeadLetter { record, reason });
                }
                (_, Some(told)) => new.push(told.result.clone()),
                (outcome, None) => new.push(result(&read.logged, outcome, W::TOPIC, now)),
            }
        }
        Ok(if waiting.is_empty() { Ok(new) } else { Err(waiting) })
    }
}

/// Whether a command was applied without leaving an outcome: it was a dead letter, whose success stands as told, and is one again. To
/// decide it now would tell a failure.
fn is_lost<W: Word>(logged: &Logged<W::Command>) -> bool {
    logged.applied_before && logged.told.is_none() && !W::may_go_on(&logged.command)
}

/// Whether a repeat has to undo something; what was applied before has done so.
fn has_to_undo<W: Word>(logged: &Logged<W::Command>, outcomes: &HashMap<RequestId, RequestResult>) -> bool {
    let told = || logged.told.as_ref().map(|told| &told.result);
    let outcome = outcomes.get(&logged.command.request_id()).or_else(told);
    !logged.applied_before && W::has_to_undo(&logged.command, outcome)
}

enum Part {
    Applied(Done),
    Split,
    Refused(String),
    Waits(Positions),
    Stopped,
    WentBack,
}

/// The result of a command that ended here.
fn result<C: Command>(logged: &Logged<C>, outcome: Outcome, topic: &str, now: DateTime<Utc>) -> RequestResult {
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
        Outcome::Continued | Outcome::AsTold | Outcome::Waits | Outcome::Lacks(_) => {
            unreachable!("what is not decided here has no result")
        }
    };
    RequestResult {
        request_id,
        user_id,
        kind: origin.map_or(command.kind(), |origin| &origin.kind).to_owned(),
        status,
        http_status,
        result,
        problem,
        source: Source { topic: topic.to_owned(), partition: logged.partition, offset: logged.offset },
        began: origin.and_then(|origin| origin.source.clone()),
        request_hash: command.request_hash().map(str::to_owned),
        submitted_at: origin.map_or(logged.asked_at, |origin| origin.submitted_at),
        finished_at: now,
        concert_id,
    }
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
    topic: &str,
) -> Vec<(i32, RequestResult, Option<String>)> {
    part.iter()
        .filter_map(|Read { logged, .. }| {
            let mut result = outcomes.remove(&logged.command.request_id())?;
            // A repeat's comes from the database, which does not keep this; but after a restore it is asked for.
            result.began = result.began.or_else(|| began(logged, &result.source, topic));
            if result.status == RequestStatus::Succeeded {
                // Nor this, and the event that the token has ended is not told again.
                result.concert_id = result.concert_id.or_else(|| logged.command.queue_left());
            }
            Some((logged.partition, result, logged.traceparent.clone()))
        })
        .collect()
}

/// Where a request began that `source` decided: there, if None; else at the record that its second half names, or this is it.
fn began<C: Command>(logged: &Logged<C>, source: &Source, topic: &str) -> Option<Source> {
    let named = logged.command.origin().and_then(|origin| origin.source.clone());
    let here = || Source { topic: topic.to_owned(), partition: logged.partition, offset: logged.offset };
    named.or_else(|| (source.topic != topic).then(here))
}

impl Done {
    /// The records for the results topic: events first, so that a cache knows of an admitted token before its buyer does.
    pub(crate) fn into_records(self, partitions: Partitions) -> (Vec<(i32, ResultRecord, Option<String>)>, Emissions) {
        let mut emissions = self.emissions;
        let events = std::mem::take(&mut emissions.events);
        let mut records = event_records(events, partitions);
        let results = self.results.into_iter();
        records.extend(results.map(|(source, result, trace)| {
            let told_in = partitions.of_results_from(source);
            (told_in, ResultRecord::Request(result), trace)
        }));
        (records, emissions)
    }
}

/// How many partitions there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partitions {
    /// Of the word's own topic.
    pub(crate) own: i32,
    /// Of the results topic.
    pub(crate) results: i32,
}

impl Partitions {
    /// Where it is told what came of a record of this partition: what comes of one partition keeps its order.
    fn of_results_from(self, source: i32) -> i32 {
        source % self.results
    }
}

/// Token events as records, among the results of their concert.
pub(crate) fn event_records(
    events: Vec<super::word::Event>,
    partitions: Partitions,
) -> Vec<(i32, ResultRecord, Option<String>)> {
    let told_in = |event: &super::word::Event| partitions.of_results_from(event.partition(partitions.own));
    events.into_iter().map(|event| (told_in(&event), event.into(), None)).collect()
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
