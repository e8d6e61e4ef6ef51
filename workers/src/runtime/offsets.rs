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

/// Where to start in each partition, which is nowhere before the log's beginning. Blocks.
pub(crate) fn starts(
    consumer: &BaseConsumer<Reports>,
    topic: &str,
    partitions: &[i32],
    applied: &Positions,
    beginnings: &Positions,
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
        let beginning = beginnings.get(partition).copied().unwrap_or_default();
        let start = starting_offset(committed, applied.get(partition).copied()).unwrap_or(beginning);
        starts.insert(*partition, start.max(beginning));
    }
    Ok(starts)
}

/// Where the database stands in partitions whose log begins behind that: what lies between was never applied, and is gone.
pub(crate) fn gone(partitions: &[i32], applied: &Positions, beginnings: &Positions) -> Positions {
    let stands = partitions.iter().map(|partition| (*partition, applied.get(partition).copied().unwrap_or_default()));
    stands.filter(|(partition, stands)| beginnings.get(partition).is_some_and(|beginning| stands < beginning)).collect()
}

/// Takes partitions over at `starts`; those that this worker has already are returned, to be sought by the polling thread. Blocks.
pub(crate) fn take_over(consumer: &BaseConsumer<Reports>, topic: &str, starts: &Positions) -> KafkaResult<Positions> {
    let assignment = consumer.assignment()?;
    let (old, new): (Positions, Positions) =
        starts.iter().partition(|(partition, _)| assignment.find_partition(topic, **partition).is_some());
    // The group asks for an answer, even when it assigns nothing.
    if !new.is_empty() || old.is_empty() {
        consumer.incremental_assign(&list(topic, &new)?)?;
    }
    Ok(old)
}

/// Commits the starting offsets, so that tools see the lag. Blocks.
pub(crate) fn commit_starts(consumer: &BaseConsumer<Reports>, topic: &str, starts: &Positions) -> KafkaResult<()> {
    if starts.is_empty() {
        return Ok(());
    }
    if let Err(error) = consumer.commit(&list(topic, starts)?, CommitMode::Sync) {
        // The next commit of each partition says the same and more.
        tracing::debug!(%error, "the starting offsets are not committed yet");
    }
    Ok(())
}

/// Reads on from these offsets. Blocks.
pub(crate) fn seek(consumer: &BaseConsumer<Reports>, topic: &str, positions: &Positions) -> KafkaResult<()> {
    let sought = consumer.seek_partitions(list(topic, positions)?, BROKER_WAIT_MAX)?;
    sought.elements().iter().try_for_each(TopicPartitionListElem::error)
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
    use super::{Positions, gone, starting_offset};

    #[test]
    fn what_the_log_has_lost_before_it_was_applied_is_gone() {
        let applied = Positions::from([(1, 5), (2, 5), (3, 5)]);
        let beginnings = Positions::from([(1, 9), (2, 5), (3, 0), (4, 7), (5, 0)]);
        assert_eq!(gone(&[1, 2, 3, 4, 5], &applied, &beginnings), Positions::from([(1, 5), (4, 0)]));
    }

    #[test]
    fn the_smaller_offset_wins_so_that_neither_a_replay_nor_a_restored_database_skips_anything() {
        assert_eq!(starting_offset(Some(5), Some(9)), Some(5));
        assert_eq!(starting_offset(Some(9), Some(5)), Some(5));
        assert_eq!(starting_offset(None, Some(5)), Some(5));
        assert_eq!(starting_offset(Some(9), None), None, "a backup from before the partition's first record");
        assert_eq!(starting_offset(None, None), None);
    }
}
