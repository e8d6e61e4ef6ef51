//! Where a worker starts, and what it commits.
//!
//! Kafka's committed offsets stay authoritative: the stock tools reset them to replay. But Postgres knows itself how far the
//! log is applied, so a database that was restored from a backup is caught up: a worker starts at the smaller of the two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::consume::Reports;

const BROKER_WAIT_MAX: Duration = Duration::from_secs(5);

/// The next offset of each partition.
pub(crate) type Positions = BTreeMap<i32, i64>;

/// Where to start: at the smaller offset. None, the log's beginning: the database has applied nothing of it, whatever Kafka thinks.
pub(crate) fn starting_offset(committed: Option<i64>, applied: Option<i64>) -> Option<i64> {
    applied.map(|applied| committed.map_or(applied, |committed| committed.min(applied)))
}

/// Takes over `partitions` at their starting offsets and commits these, so that tools see the lag. Blocks.
pub(crate) fn take_over(
    consumer: &BaseConsumer<Reports>,
    topic: &str,
    partitions: &[i32],
    applied: &Positions,
) -> KafkaResult<Positions> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(topic, *partition);
    }
    let committed = consumer.committed_offsets(asked, BROKER_WAIT_MAX)?;
    let mut starts = Positions::new();
    for partition in partitions {
        let committed = committed.find_partition(topic, *partition).and_then(|found| match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        });
        let start = match starting_offset(committed, applied.get(partition).copied()) {
            Some(offset) => offset,
            None => consumer.fetch_watermarks(topic, *partition, BROKER_WAIT_MAX)?.0,
        };
        starts.insert(*partition, start);
    }
    let list = list(topic, &starts)?;
    consumer.incremental_assign(&list)?;
    if !starts.is_empty() {
        consumer.commit(&list, CommitMode::Sync)?;
    }
    Ok(starts)
}

/// Goes back to these offsets. Blocks.
pub(crate) fn go_back(consumer: &BaseConsumer<Reports>, topic: &str, positions: &Positions) -> KafkaResult<()> {
    let sought = consumer.seek_partitions(list(topic, positions)?, BROKER_WAIT_MAX)?;
    sought.elements().iter().try_for_each(TopicPartitionListElem::error)
}

/// How many partitions the topic has. Blocks.
pub(crate) fn partitions_of(consumer: &BaseConsumer<Reports>, topic: &str) -> anyhow::Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), BROKER_WAIT_MAX)?;
    let partitions = metadata.topics().first().map_or(0, |found| found.partitions().len());
    anyhow::ensure!(partitions > 0, "the topic {topic} does not exist yet; run `setup`");
    Ok(i32::try_from(partitions)?)
}

/// Hands partitions back to the group.
pub(crate) fn hand_back(consumer: &BaseConsumer<Reports>, topic: &str, partitions: &[i32]) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, *partition);
    }
    consumer.incremental_unassign(&list)
}

/// Commits and waits for the broker's word: a commit that failed is no commit.
pub(crate) async fn commit(
    consumer: Arc<BaseConsumer<Reports>>,
    topic: &'static str,
    positions: Positions,
) -> KafkaResult<()> {
    tokio::task::spawn_blocking(move || consumer.commit(&list(topic, &positions)?, CommitMode::Sync))
        .await
        .unwrap_or(Err(KafkaError::Canceled))
}

/// Whether the group does not know this worker (any more) as the owner.
pub(crate) fn refused_by_group(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::StaleMemberEpoch
        )
    )
}

fn list(topic: &str, positions: &Positions) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in positions {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::starting_offset;

    #[test]
    fn the_smaller_offset_wins_so_that_neither_a_replay_nor_a_restored_database_skips_anything() {
        assert_eq!(starting_offset(Some(5), Some(9)), Some(5));
        assert_eq!(starting_offset(Some(9), Some(5)), Some(5));
        assert_eq!(starting_offset(None, Some(5)), Some(5));
        assert_eq!(starting_offset(Some(9), None), None, "a backup from before the partition's first record");
        assert_eq!(starting_offset(None, None), None);
    }
}
