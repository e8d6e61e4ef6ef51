//! A broker like one that has been serving for hours. Its JVM compiles what it runs often, by the number of requests, not of records: some
//! thousands of holds are a few hundred requests, and a broker that young costs three times as much for each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

/// Nothing else is written there.
const TOPIC: &str = "bench.warm-up";
const PARTITIONS: i32 = 24;
/// Records that are under way: so few that nearly each is a request of its own.
const IN_FLIGHT_MAX: i32 = 16;
/// A worker commits about so often.
const COMMIT_EVERY: usize = 4;
const POLL_MAX: Duration = Duration::from_millis(200);
/// After this time it is warm enough, or never will be.
const WARM_AFTER: Duration = Duration::from_mins(1);

/// Writes, reads and commits `requests` small requests.
pub(super) async fn warm_up(requests: usize, progress: &ProgressBar) -> Result<()> {
    let servers = std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS")?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers);
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await?;
    ensure!(made.iter().all(Result::is_ok), "{TOPIC} cannot be made: {made:?}");
    progress.set_length(requests as u64);
    let progress = progress.clone();
    tokio::task::spawn_blocking(move || write_and_read(&client, requests, &progress)).await?
}

fn write_and_read(client: &ClientConfig, requests: usize, progress: &ProgressBar) -> Result<()> {
    let mut writing = client.clone();
    writing.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "0");
    let producer: ThreadedProducer<_> = writing.create()?;
    let mut reading = client.clone();
    reading.set("group.id", TOPIC).set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = reading.create()?;
    consumer.subscribe(&[TOPIC])?;
    let begun = Instant::now();
    let value = [b'x'; 400];
    let (mut written, mut read) = (0, 0);
    while read < requests && begun.elapsed() < WARM_AFTER {
        while written < requests && producer.in_flight_count() < IN_FLIGHT_MAX {
            let record = BaseRecord::<(), _>::to(TOPIC).partition(i32::try_from(written)? % PARTITIONS).payload(&value);
            producer.send(record).map_err(|(error, _)| error)?;
            written += 1;
        }
        let Some(record) = consumer.poll(Duration::from_micros(100)) else { continue };
        record?;
        read += 1;
        progress.inc(1);
        if read % COMMIT_EVERY == 0 {
            consumer.commit_consumer_state(CommitMode::Async)?;
        }
    }
    Ok(producer.flush(POLL_MAX)?)
}
