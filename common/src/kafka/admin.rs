//! Creates the topics.

use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::KafkaConfig;
use crate::topics;

/// A record that a topic takes, in bytes.
const RECORD_BYTES_MAX: &str = "1048588";
/// A dead letter is its record and some headers more: whatever came in must go out.
const DEAD_LETTER_BYTES_MAX: &str = "2097152";
const ADMIN_WAIT_MAX: Duration = Duration::from_secs(30);

/// How topics are made.
#[derive(Debug, Clone, clap::Args)]
pub struct TopicConfig {
    /// Partitions of each topic: the most workers of a kind that can share the work.
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = topics::PARTITIONS_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub topic_partitions: i32,
    /// Copies of each partition.
    #[arg(long, env = "TOPIC_REPLICATION_FACTOR", default_value_t = 1)]
    pub topic_replication_factor: i32,
    /// Copies that must have a record before it counts as written.
    #[arg(long, env = "TOPIC_MIN_INSYNC_REPLICAS", default_value_t = 1)]
    pub topic_min_insync_replicas: i32,
    /// How long records are kept, in hours.
    #[arg(long, env = "TOPIC_RETENTION_HOURS", default_value_t = 168)]
    pub topic_retention_hours: i64,
}

/// Creates the topics that are missing; those that exist stay as they are. Returns the names of the new ones.
///
/// # Errors
/// The broker cannot be reached in 30 s, or refuses.
pub async fn create_topics(kafka: &KafkaConfig, config: &TopicConfig) -> anyhow::Result<Vec<String>> {
    let admin: AdminClient<DefaultClientContext> =
        super::base_config(kafka, "boxoffice-setup").create().context("the Kafka settings are refused")?;
    let retention_ms = (config.topic_retention_hours * 3_600_000).to_string();
    let min_insync = config.topic_min_insync_replicas.to_string();
    let commands = topics::COMMANDS.iter().chain([&topics::RESULTS]).map(|&name| (name.to_owned(), RECORD_BYTES_MAX));
    let dead = topics::COMMANDS.iter().map(|topic| (topics::dead_letters(topic), DEAD_LETTER_BYTES_MAX));
    let wanted: Vec<(String, &str)> = commands.chain(dead).collect();
    let new: Vec<NewTopic<'_>> = wanted
        .iter()
        .map(|(name, bytes_max)| {
            NewTopic::new(name, config.topic_partitions, TopicReplication::Fixed(config.topic_replication_factor))
                // The broker's own clock says when a record was asked for; a producer cannot forge it.
                .set("message.timestamp.type", "LogAppendTime")
                // A command that was compacted away would be a command that never was.
                .set("cleanup.policy", "delete")
                .set("retention.ms", &retention_ms)
                .set("min.insync.replicas", &min_insync)
                .set("max.message.bytes", bytes_max)
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(ADMIN_WAIT_MAX)).request_timeout(Some(ADMIN_WAIT_MAX));
    let results = admin.create_topics(&new, &options).await.context("Kafka does not answer; is it up?")?;
    let mut created = Vec::new();
    for result in results {
        match result {
            Ok(name) => created.push(name),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("Kafka does not create the topic {name}: {code}"),
        }
    }
    Ok(created)
}
