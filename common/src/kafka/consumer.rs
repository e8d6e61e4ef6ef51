//! Settings of the consumers: a worker's, which belongs to a group, and a reader's, which reads all by itself.

use rdkafka::ClientConfig;

use crate::config::KafkaConfig;

/// How long a worker that died without leaving its group keeps its partitions.
const SESSION_TIMEOUT_MS: &str = "10000";

/// For a worker in the consumer group `group`.
pub fn group_config(config: &KafkaConfig, group: &str, client_id: &str) -> ClientConfig {
    let mut client = common_config(config, client_id);
    client
        .set("group.id", group)
        // KIP-848 stalls silently with this librdkafka, and its session has a floor of 45 s.
        .set("group.protocol", "classic")
        // A worker that comes or goes interrupts only the partitions that move.
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", SESSION_TIMEOUT_MS)
        .set("heartbeat.interval.ms", "1000")
        // Offsets are committed after the database transaction, by us.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A new group reads the whole log: nothing is skipped.
        .set("auto.offset.reset", "earliest");
    client
}

/// For a process that reads all partitions of a topic, from where it says itself.
pub fn reader_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = common_config(config, client_id);
    client
        // The client library asks for a name; no group is ever joined and no offset committed.
        .set("group.id", client_id)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "latest");
    client
}

/// For a process that reads parts of topics, up to their present ends, from where it says itself.
pub fn range_reader_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = reader_config(config, client_id);
    // What ends a partition may be no record but the end of a transaction, and that is never handed over.
    client.set("enable.partition.eof", "true");
    client
}

fn common_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = super::base_config(config, client_id);
    client
        // A lone record is handed over at once.
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", "500")
        // After an error, ask again soon.
        .set("fetch.error.backoff.ms", "50")
        // What is fetched ahead is bounded; when it is used up, more is fetched soon.
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "10000")
        .set("fetch.queue.backoff.ms", "5")
        .set("enable.partition.eof", "false");
    client
}
