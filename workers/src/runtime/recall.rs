//! What was told, read back from the results topic, when the log has gone further than the database: it was restored from a backup, or
//! never came to commit what it was about to.
//!
//! Whether that is so is not remembered anywhere, but seen at each assignment: results of records that the database has not applied.
//! In an ordinary backlog nobody was told anything yet, and nothing is found.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use common::config::KafkaConfig;
use common::ids::{RequestId, TokenId};
use common::kafka::consumer::reader_config;
use common::messages::results::{RequestResult, ResultRecord};
use common::topics;
use rdkafka::consumer::{BaseConsumer, Consumer as _, DefaultConsumerContext};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::metadata::MetadataTopic;
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::offsets::Positions;
use super::word::{Fate, Told, Word};

/// What was told is kept in memory until it is applied: so much of it at most.
const RECALLED_BYTES_MAX: usize = 2 << 30;
const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Brokers' clocks may differ by this much.
const SKEW_MAX: TimeDelta = TimeDelta::seconds(5);
const POLL: Duration = Duration::from_millis(100);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What was told of records that the database does not know.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    told: HashMap<RequestId, RequestResult>,
    fates: HashMap<TokenId, Fate>,
    /// Where the log of each partition ended when this was read: behind that, nothing was told.
    until: Positions,
    /// Where the logs of the words ended in which a cause may be.
    causes: Vec<(&'static str, Positions)>,
}

impl Memory {
    /// What was told of a request. `causes_applied`: no cause of it can still come.
    pub(crate) fn told(&self, id: RequestId, causes_applied: bool) -> Option<Box<Told>> {
        let result = self.told.get(&id)?.clone();
        let fate = self.fates.get(&TokenId::from(id)).copied().unwrap_or_default();
        Some(Box::new(Told { result, fate, causes_applied }))
    }

    /// Where the logs ended in which a cause may be.
    pub(crate) fn causes(&self) -> &[(&'static str, Positions)] {
        &self.causes
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.told.extend(other.told);
        self.fates.extend(other.fates);
        self.until.extend(other.until);
        self.causes.extend(other.causes);
    }

    /// The log is applied up to `positions`.
    pub(crate) fn pass(&mut self, positions: &Positions) {
        self.until.retain(|partition, until| positions.get(partition).is_none_or(|next| next < until));
        self.rest();
    }

    /// These partitions are another's now.
    pub(crate) fn leave(&mut self, partitions: &[i32]) {
        self.until.retain(|partition, _| !partitions.contains(partition));
        self.rest();
    }

    fn rest(&mut self) {
        if self.until.is_empty() && !self.told.is_empty() {
            tracing::info!(outcomes = self.told.len(), "the database has caught up with what was told");
            *self = Self::default();
        }
    }

    fn note(&mut self, fate_of: TokenId, note: impl FnOnce(&mut Fate)) {
        note(self.fates.entry(fate_of).or_default());
    }
}

/// More was told than can be kept in memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "more than {} MiB were told since the backup; restore a younger one",
    RECALLED_BYTES_MAX >> 20
)]
pub(crate) struct TooMuch;

/// Reads what was told of the records from `unapplied` (the first offset of each partition) on. Blocks.
pub(crate) fn recall<W: Word>(
    kafka: &KafkaConfig,
    unapplied: &Positions,
    stop: &CancellationToken,
) -> anyhow::Result<Memory> {
    let reader = Reader {
        consumer: reader_config(kafka, &format!("{}-recall", W::WORKER)).create().context("the Kafka settings")?,
        stop,
    };
    let (mut behind, mut until) = (Positions::new(), Positions::new());
    for (partition, next) in unapplied {
        let (low, high) = reader.consumer.fetch_watermarks(W::TOPIC, *partition, BROKER_WAIT_MAX)?;
        if (*next).max(low) < high {
            behind.insert(*partition, (*next).max(low));
            until.insert(*partition, high);
        }
    }
    if behind.is_empty() {
        return Ok(Memory::default());
    }
    let Some(since) = reader.first_append_time(W::TOPIC, &behind)? else { return Ok(Memory::default()) };
    let mut memory = reader.told_since::<W>(since, &behind)?;
    if memory.told.is_empty() {
        return Ok(Memory::default());
    }
    for topic in W::CAUSES {
        memory.causes.push((topic, reader.ends(topic)?));
    }
    memory.until = until;
    tracing::warn!(
        outcomes = memory.told.len(),
        %since,
        "the database is behind what was told; it is caught up by the log, and what was told stays"
    );
    Ok(memory)
}

struct Reader<'a> {
    consumer: BaseConsumer<DefaultConsumerContext>,
    stop: &'a CancellationToken,
}

impl Reader<'_> {
    fn ends(&self, topic: &str) -> anyhow::Result<Positions> {
        let metadata = self.consumer.fetch_metadata(Some(topic), BROKER_WAIT_MAX)?;
        let partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        partitions
            .map(|found| Ok((found.id(), self.consumer.fetch_watermarks(topic, found.id(), BROKER_WAIT_MAX)?.1)))
            .collect()
    }

    /// When the first of these records was appended; outcomes of all of them were told after that.
    fn first_append_time(&self, topic: &str, from: &Positions) -> anyhow::Result<Option<DateTime<Utc>>> {
        let mut first: Option<i64> = None;
        let until = from.iter().map(|(partition, offset)| (*partition, offset + 1)).collect();
        self.read(topic, from, &until, |message| {
            let at = message.timestamp().to_millis();
            first = first.min(at).or(first).or(at);
            Ok(())
        })?;
        Ok(first.and_then(DateTime::from_timestamp_millis))
    }

    fn told_since<W: Word>(&self, since: DateTime<Utc>, behind: &Positions) -> anyhow::Result<Memory> {
        let (ends, from_ms) = (self.ends(topics::RESULTS)?, (since - SKEW_MAX).timestamp_millis());
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
            let Some(value) = message.payload() else { return Ok(()) };
            match ResultRecord::read(value) {
                Ok(ResultRecord::Request(result)) if concerns::<W>(&result, behind) => {
                    bytes += value.len();
                    if bytes > RECALLED_BYTES_MAX {
                        return Err(TooMuch.into());
                    }
                    // What was told first is what was told; a repeat says the same.
                    memory.told.entry(result.request_id).or_insert(result);
                }
                Ok(ResultRecord::TokenAdmitted(event)) if W::TOPIC == topics::TOKENS => {
                    memory.note(event.token_id, |fate| fate.admitted = event.expires_at.map(|end| (event.at, end)));
                }
                Ok(ResultRecord::TokenExpired(event)) if W::TOPIC == topics::TOKENS => {
                    memory.note(event.token_id, |fate| fate.ended_at = Some(event.at));
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(memory)
    }

    /// Hands each record of `topic` in `from..until` to `each`.
    fn read(
        &self,
        topic: &str,
        from: &Positions,
        until: &Positions,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
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
            let Some(message) = self.consumer.poll(POLL).transpose()? else { continue };
            heard = Instant::now();
            let (partition, offset) = (message.partition(), message.offset());
            if until.get(&partition).is_some_and(|end| offset < *end) {
                each(&message)?;
                records += 1;
            }
            if until.get(&partition).is_none_or(|end| offset + 1 >= *end) {
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

/// Whether the outcome is one of a record that this word has yet to apply.
fn concerns<W: Word>(result: &RequestResult, behind: &Positions) -> bool {
    let source = &result.source;
    if source.topic == W::TOPIC {
        return behind.get(&source.partition).is_some_and(|from| source.offset >= *from);
    }
    W::begins(&result.kind)
}
