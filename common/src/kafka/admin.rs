//! Creates the topics, and sees to it that they let go of old records in time.

use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigEntry, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::KafkaConfig;
use crate::topics;

/// A record that a topic takes, in bytes.
const RECORD_BYTES_MAX: &str = "1048588";
/// A dead letter is its record and some headers more: whatever came in must go out.
const DEAD_LETTER_BYTES_MAX: &str = "2097152";
/// Records are deleted by whole segments, when the last one is old enough: the first one is older by up to a segment's length, which is
/// this part of the retention. Outcomes are kept that much longer, or a full replay would find records without theirs, and charge twice.
const SEGMENTS_PER_RETENTION: i64 = 8;
const RETENTION: &str = "retention.ms";
const SEGMENT: &str = "segment.ms";
const ADMIN_WAIT_MAX: Duration = Duration::from_secs(30);

/// How topics are made.
#[derive(Debug, Clone, clap::Args)]
pub struct TopicConfig {
    /// Partitions of each topic of requests: the most workers of a kind that can share the work.
    #[arg(long, env = "TOPIC_PARTITIONS", default_value_t = topics::PARTITIONS_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub topic_partitions: i32,
    /// Partitions of the results topic; more of them spread it over more brokers, and cost more.
    #[arg(long, env = "TOPIC_RESULTS_PARTITIONS", default_value_t = topics::RESULTS_PARTITIONS_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub topic_results_partitions: i32,
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

/// Creates the topics that are missing; those that exist stay as they are, but that their segments are made short enough. Returns the
/// names of the new ones.
///
/// # Errors
/// The broker cannot be reached in 30 s, or refuses.
pub async fn create_topics(kafka: &KafkaConfig, config: &TopicConfig) -> anyhow::Result<Vec<String>> {
    let admin: AdminClient<DefaultClientContext> =
        super::base_config(kafka, "boxoffice-setup").create().context("the Kafka settings are refused")?;
    let retention_ms = config.topic_retention_hours * 3_600_000;
    let (retention_ms, segment_ms) = (retention_ms.to_string(), (retention_ms / SEGMENTS_PER_RETENTION).to_string());
    let min_insync = config.topic_min_insync_replicas.to_string();
    let results = (topics::RESULTS.to_owned(), config.topic_results_partitions, RECORD_BYTES_MAX);
    let commands = topics::COMMANDS.map(|name| (name.to_owned(), config.topic_partitions, RECORD_BYTES_MAX));
    let dead = topics::COMMANDS.map(|of| (topics::dead_letters(of), config.topic_partitions, DEAD_LETTER_BYTES_MAX));
    let wanted: Vec<(String, i32, &str)> = commands.into_iter().chain([results]).chain(dead).collect();
    let new: Vec<NewTopic<'_>> = wanted
        .iter()
        .map(|(name, partitions, bytes_max)| {
            NewTopic::new(name, *partitions, TopicReplication::Fixed(config.topic_replication_factor))
                // The broker's own clock says when a record was asked for; a producer cannot forge it.
                .set("message.timestamp.type", "LogAppendTime")
                // A command that was compacted away would be a command that never was.
                .set("cleanup.policy", "delete")
                .set(RETENTION, &retention_ms)
                .set(SEGMENT, &segment_ms)
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
    let existing: Vec<&str> =
        wanted.iter().map(|(name, ..)| name.as_str()).filter(|name| !created.iter().any(|new| new == name)).collect();
    shorten_segments(&admin, &existing, &options).await?;
    Ok(created)
}

/// Sets the segments' length where it is too long for the topic's own retention.
async fn shorten_segments(
    admin: &AdminClient<DefaultClientContext>,
    topics: &[&str],
    options: &AdminOptions,
) -> anyhow::Result<()> {
    if topics.is_empty() {
        return Ok(());
    }
    let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let described = admin.describe_configs(&asked, options).await.context("Kafka does not tell of its topics")?;
    let mut altered = Vec::new();
    for (name, described) in topics.iter().zip(described) {
        let entries =
            described.map_err(|code| anyhow::anyhow!("Kafka does not tell of the topic {name}: {code}"))?.entries;
        if let Some(segment_ms) = segment_to_set(&entries) {
            altered.push((*name, with_segment(&entries, &segment_ms)));
        }
    }
    if altered.is_empty() {
        return Ok(());
    }
    let changes: Vec<AlterConfig<'_>> = altered
        .iter()
        .map(|(name, all)| {
            let change = AlterConfig::new(ResourceSpecifier::Topic(name));
            all.iter().fold(change, |change, (name, value)| change.set(name, value))
        })
        .collect();
    for result in admin.alter_configs(&changes, options).await.context("Kafka does not alter its topics")? {
        if let Err((topic, code)) = result {
            bail!("Kafka does not alter the topic {topic:?}: {code}");
        }
    }
    tracing::info!(topics = ?altered.iter().map(|(name, _)| name).collect::<Vec<_>>(), "segments are shorter now");
    Ok(())
}

/// The length that segments should have, if they are longer; None, too, for a topic that keeps its records for ever.
fn segment_to_set(entries: &[ConfigEntry]) -> Option<String> {
    let number = |name| entries.iter().find(|entry| entry.name == name)?.value.as_deref()?.parse::<i64>().ok();
    let wanted = number(RETENTION).filter(|retention| *retention > 0)? / SEGMENTS_PER_RETENTION;
    (number(SEGMENT)? > wanted).then(|| wanted.to_string())
}

/// All that is set on the topic itself, and the segments' length: what an alteration leaves out would go back to its default, and the
/// client library has none that alters one thing only.
fn with_segment(entries: &[ConfigEntry], segment_ms: &str) -> Vec<(String, String)> {
    let own = entries.iter().filter(|entry| entry.source == ConfigSource::DynamicTopic && entry.name != SEGMENT);
    let own = own.filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?)));
    own.chain([(SEGMENT.to_owned(), segment_ms.to_owned())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: &str, source: ConfigSource) -> ConfigEntry {
        let is_default = source == ConfigSource::Default;
        let (name, value) = (name.to_owned(), Some(value.to_owned()));
        ConfigEntry { name, value, source, is_read_only: false, is_default, is_sensitive: false }
    }

    #[test]
    fn only_segments_that_outlast_their_share_of_the_retention_are_shortened() {
        let rows = [
            ("604800000", "604800000", Some("75600000")),
            ("604800000", "75600000", None),
            ("604800000", "3600000", None),
            ("80000", "604800000", Some("10000")),
            ("-1", "604800000", None),
        ];
        for (retention, segment, wanted) in rows {
            let entries = [
                entry(RETENTION, retention, ConfigSource::DynamicTopic),
                entry(SEGMENT, segment, ConfigSource::Default),
            ];
            assert_eq!(segment_to_set(&entries).as_deref(), wanted, "{retention} {segment}");
        }
    }

    #[test]
    fn what_is_set_on_a_topic_stays_set() {
        let entries = [
            entry(RETENTION, "80000", ConfigSource::DynamicTopic),
            entry(SEGMENT, "604800000", ConfigSource::DynamicTopic),
            entry("compression.type", "producer", ConfigSource::Default),
        ];
        let wanted =
            [(RETENTION, "80000"), (SEGMENT, "10000")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(with_segment(&entries, "10000"), wanted);
    }
}
