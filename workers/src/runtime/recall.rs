//! What was told, read back from the results topic, when that has gone further than the database: it was restored from a backup.
//!
//! Whether that is so is not remembered anywhere, but seen whenever partitions are taken over: there are results of records that the
//! database has not applied. In an ordinary backlog nobody was told anything yet, and nothing is found.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use common::config::KafkaConfig;
use common::ids::{RequestId, TokenId};
use common::kafka::consumer::range_reader_config;
use common::kafka::context::QuietContext;
use common::messages::results::{RequestResult, ResultRecord, TokenEvent};
use common::topics;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::metadata::{MetadataPartition, MetadataTopic};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::offsets::Positions;
use super::word::{Cause, Fate, Told, Word};

/// What was told is kept in memory until it is applied: so much of it at most.
const RECALLED_BYTES_MAX: usize = 2 << 30;
const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Brokers' clocks may differ by this much.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(5);
const POLL: Duration = Duration::from_millis(100);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// How far the database is, in a word's own topic and in the one where its causes are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    pub(crate) own: Positions,
    pub(crate) causes: Positions,
    /// When the last record was appended that it knows of any topic.
    pub(crate) log_time: Option<DateTime<Utc>>,
}

impl Applied {
    /// What is before the logs' beginnings is gone: nobody may wait for it.
    fn is_at_least(&mut self, beginnings: &Beginnings) {
        for (known, beginnings) in [(&mut self.own, &beginnings.own), (&mut self.causes, &beginnings.causes)] {
            for (partition, beginning) in beginnings {
                let next = known.entry(*partition).or_default();
                *next = (*beginning).max(*next);
            }
        }
    }

    fn knows_own(&self, partition: i32, offset: i64) -> bool {
        self.own.get(&partition).is_some_and(|next| offset < *next)
    }

    fn knows_cause(&self, partition: i32, offset: i64) -> bool {
        self.causes.get(&partition).is_some_and(|next| offset < *next)
    }
}

/// The first offset of each partition of a word's own topic, and of the one where its causes are.
#[derive(Debug, Clone, Default)]
struct Beginnings {
    own: Positions,
    causes: Positions,
}

/// What was told of records that the database does not know.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    told: HashMap<RequestId, RequestResult>,
    fates: HashMap<TokenId, Fate>,
    /// Where the records are that the causes' word was asked with and has told of, by request.
    places: HashMap<RequestId, (i32, i64)>,
    /// Behind the last record of each partition that was told of: of this word, whoever owns it, and of the causes' word.
    until: Positions,
    causes_until: Positions,
    applied: Applied,
    beginnings: Beginnings,
}

impl Memory {
    /// Something was told that the database does not know yet.
    pub(crate) fn is_active(&self) -> bool {
        !self.until.is_empty() || !self.causes_until.is_empty()
    }

    /// Nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty() && self.fates.is_empty() && !self.is_active()
    }

    /// Takes notice of how far the database has come.
    pub(crate) fn note(&mut self, mut applied: Applied) {
        applied.is_at_least(&self.beginnings);
        self.until.retain(|partition, until| !applied.knows_own(*partition, *until - 1));
        self.causes_until.retain(|partition, until| !applied.knows_cause(*partition, *until - 1));
        self.applied = applied;
    }

    /// Takes notice, once all is read, of how far the database was after that; what it knows by then is not remembered.
    pub(crate) fn check(&mut self, applied: Applied) {
        self.note(applied);
        if self.is_active() {
            tracing::warn!(
                outcomes = self.told.len(),
                "the database is behind what was told; it is caught up by the log, and what was told stays"
            );
        } else {
            self.told.clear();
            self.places.clear();
        }
    }

    /// The database knows all that was told.
    pub(crate) fn forget(&mut self) {
        if !self.told.is_empty() {
            tracing::info!(outcomes = self.told.len(), "the database has caught up with what was told");
        }
        *self = Self::default();
    }

    /// What was told of a request.
    pub(crate) fn told(&self, id: RequestId) -> Option<Box<Told>> {
        let result = self.told.get(&id)?.clone();
        Some(Box::new(Told { result, fate: self.fates.get(&TokenId::from(id)).copied() }))
    }

    /// What became of queue tokens.
    pub(crate) fn fates(&self) -> &HashMap<TokenId, Fate> {
        &self.fates
    }

    /// Whether a cause was told of, or is named by the record itself, and is not applied yet.
    pub(crate) fn is_pending(&self, cause: &Cause<'_>) -> bool {
        match cause {
            Cause::None => false,
            Cause::Any => !self.causes_until.is_empty(),
            Cause::Request(id, source) => {
                let named = source.map(|source| (source.partition, source.offset));
                let place = named.or_else(|| self.places.get(id).copied());
                place.is_some_and(|(partition, offset)| !self.applied.knows_cause(partition, offset))
            }
        }
    }

    fn take<W: Word>(&mut self, result: RequestResult, applied: &Applied) {
        let source = &result.source;
        let (partition, offset) = (source.partition, source.offset);
        if Some(source.topic.as_str()) == W::CAUSES && !applied.knows_cause(partition, offset) {
            self.places.insert(result.request_id, (partition, offset));
            let until = self.causes_until.entry(partition).or_default();
            *until = (offset + 1).max(*until);
        }
        let here = [Some(source), result.began.as_ref()].into_iter().flatten().find(|record| record.topic == W::TOPIC);
        if let Some(here) = here.filter(|here| !applied.knows_own(here.partition, here.offset)) {
            let until = self.until.entry(here.partition).or_default();
            *until = (here.offset + 1).max(*until);
            // What was told first is what was told; a repeat says the same.
            self.told.entry(result.request_id).or_insert(result);
        }
    }

    fn note_token(&mut self, event: &TokenEvent, note: impl FnOnce(&mut Fate)) {
        let Some(seq) = event.seq else { return };
        let (concert_id, user_id) = (event.concert_id, event.user_id);
        let new = Fate { concert_id, user_id, seq, admitted: None, ended_at: None };
        note(self.fates.entry(event.token_id).or_insert(new));
    }
}

/// More was told than can be kept in memory.
#[derive(Debug, thiserror::Error)]
#[error("more than {} MiB were told since the backup; restore a younger one", RECALLED_BYTES_MAX >> 20)]
pub(crate) struct TooMuch;

/// Reads what was told of records that are not `applied`. Blocks.
pub(crate) fn recall<W: Word>(reader: &Reader<'_>, mut applied: Applied) -> anyhow::Result<Memory> {
    let (own, causes) = (reader.watermarks(W::TOPIC)?, W::CAUSES.map(|topic| reader.watermarks(topic)).transpose()?);
    let causes = causes.unwrap_or_default();
    let first = |all: &Watermarks| all.iter().map(|(partition, (first, _))| (*partition, *first)).collect();
    let beginnings = Beginnings { own: first(&own), causes: first(&causes) };
    applied.is_at_least(&beginnings);
    // All outcomes that the database does not know were told after the first record was appended that it does not know.
    let mut since = reader.first_append_time(W::TOPIC, &applied.own, &own)?;
    if let Some(topic) = W::CAUSES {
        since = since.into_iter().chain(reader.first_append_time(topic, &applied.causes, &causes)?).min();
    }
    if W::READS_TOKEN_EVENTS {
        // Tokens are admitted and end without a record of their topic.
        since = since.into_iter().chain(applied.log_time).min();
    }
    let Some(since) = since else { return Ok(Memory::default()) };
    let mut memory = reader.told_since::<W>(since, &applied)?;
    (memory.applied, memory.beginnings) = (applied, beginnings);
    Ok(memory)
}

/// The first offset of each partition, and the one behind the last.
pub(crate) type Watermarks = BTreeMap<i32, (i64, i64)>;

/// Reads any topic, on a connection of its own: on the group's, each question would wait behind the fetch that waits for records.
pub(crate) struct Reader<'a> {
    consumer: BaseConsumer<QuietContext>,
    stop: &'a CancellationToken,
}

impl<'a> Reader<'a> {
    pub(crate) fn open<W: Word>(kafka: &KafkaConfig, stop: &'a CancellationToken) -> anyhow::Result<Self> {
        let consumer = range_reader_config(kafka, &format!("{}-recall", W::WORKER))
            .create_with_context(QuietContext::default())
            .context("the Kafka settings")?;
        Ok(Self { consumer, stop })
    }

    /// The first offset of each partition, and the one behind the last.
    pub(crate) fn watermarks(&self, topic: &str) -> anyhow::Result<Watermarks> {
        let found = self.partitions(topic)?.into_iter();
        let read = found.map(|id| Ok((id, self.consumer.fetch_watermarks(topic, id, BROKER_WAIT_MAX)?)));
        Ok(read.collect::<Result<_, KafkaError>>()?)
    }

    /// The partitions of a topic.
    pub(crate) fn partitions(&self, topic: &str) -> anyhow::Result<Vec<i32>> {
        let metadata = self.consumer.fetch_metadata(Some(topic), BROKER_WAIT_MAX)?;
        let found: Vec<i32> =
            metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect();
        anyhow::ensure!(!found.is_empty(), "the topic {topic} does not exist yet; run `setup`");
        Ok(found)
    }

    /// When the first record of a topic was appended that is not applied.
    fn first_append_time(
        &self,
        topic: &str,
        applied: &Positions,
        watermarks: &Watermarks,
    ) -> anyhow::Result<Option<DateTime<Utc>>> {
        let (mut until, mut first) = (Positions::new(), None);
        until.extend(watermarks.iter().map(|(partition, (_, end))| (*partition, *end)));
        self.read(topic, applied, &until, |message| {
            first = first.into_iter().chain(message.timestamp().to_millis()).min();
            Ok(Next::Partition)
        })?;
        Ok(first.and_then(DateTime::from_timestamp_millis))
    }

    fn told_since<W: Word>(&self, since: DateTime<Utc>, applied: &Applied) -> anyhow::Result<Memory> {
        let ends: Positions = self.watermarks(topics::RESULTS)?.into_iter().map(|(id, (_, high))| (id, high)).collect();
        let from_ms = (since - SKEW_MAX).timestamp_millis();
        let mut asked = TopicPartitionList::new();
        for partition in ends.keys() {
            asked.add_partition_offset(topics::RESULTS, *partition, Offset::Offset(from_ms))?;
        }
        let found = self.consumer.offsets_for_times(asked, BROKER_WAIT_MAX)?;
        let mut from = Positions::new();
        for found in found.elements() {
            if let Offset::Offset(offset) = found.offset() {
                from.insert(found.partition(), offset);
            }
        }
        let (mut memory, mut bytes) = (Memory::default(), 0);
        self.read(topics::RESULTS, &from, &ends, |message| {
            let Some(value) = message.payload() else { return Ok(Next::Record) };
            let kept = memory.told.len() + memory.places.len();
            match ResultRecord::read(value) {
                Ok(ResultRecord::Request(result)) => memory.take::<W>(result, applied),
                Ok(ResultRecord::TokenAdmitted(event)) if W::READS_TOKEN_EVENTS => {
                    let admitted = event.expires_at.map(|end| (event.at, end));
                    memory.note_token(&event, |fate| fate.admitted = admitted);
                }
                Ok(ResultRecord::TokenExpired(event)) if W::READS_TOKEN_EVENTS => {
                    memory.note_token(&event, |fate| fate.ended_at = Some(event.at));
                }
                _ => {}
            }
            if memory.told.len() + memory.places.len() > kept {
                bytes += value.len();
            }
            if bytes > RECALLED_BYTES_MAX { Err(TooMuch.into()) } else { Ok(Next::Record) }
        })?;
        Ok(memory)
    }

    /// Hands each record of `topic` in `from..until` to `each`, until that has enough of its partition.
    fn read(
        &self,
        topic: &str,
        from: &Positions,
        until: &Positions,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<Next>,
    ) -> anyhow::Result<()> {
        let mut rest: Positions = from.clone();
        rest.retain(|partition, offset| until.get(partition).is_some_and(|end| *offset < *end));
        let mut list = TopicPartitionList::new();
        for (partition, offset) in &rest {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.assign(&list)?;
        let (mut progress, mut heard, mut records) = (Instant::now(), Instant::now(), 0_u64);
        while !rest.is_empty() {
            anyhow::ensure!(!self.stop.is_cancelled(), "told to stop while reading {topic}");
            anyhow::ensure!(heard.elapsed() < 2 * BROKER_WAIT_MAX, "{topic} cannot be read; is the broker there?");
            let Some(polled) = self.consumer.poll(POLL) else { continue };
            heard = Instant::now();
            let message = match polled {
                Err(KafkaError::PartitionEOF(partition)) => {
                    rest.remove(&partition);
                    continue;
                }
                polled => polled?,
            };
            let (partition, offset) = (message.partition(), message.offset());
            let end = until.get(&partition).copied().filter(|_| rest.contains_key(&partition)).unwrap_or_default();
            let next = if offset < end { each(&message)? } else { Next::Partition };
            records += u64::from(offset < end);
            if offset + 1 >= end || matches!(next, Next::Partition) {
                rest.remove(&partition);
            }
            if progress.elapsed() > PROGRESS_EVERY {
                progress = Instant::now();
                tracing::info!(records, partitions_left = rest.len(), topic, "reading what was told");
            }
        }
        Ok(self.consumer.unassign()?)
    }
}

/// What is read next.
enum Next {
    Record,
    /// Nothing more of this one.
    Partition,
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
