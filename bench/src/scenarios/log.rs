//! The log alone: records written as the api writes them, but uncompressed, because they all say the same, and read as a worker reads them,
//! without anybody who works on them.
//!
//! The same lets a broker get warm. Its JVM compiles what it runs often, by the number of requests and not of records: some thousands of holds
//! are a few hundred requests, and a broker that young costs three times as much for each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};

use super::{Bench, CALLERS, Peer, Size, progress};
use crate::processes::used;
use crate::report::{Figures, Row};

/// Of one record.
const RECORD_BYTES: usize = 600;
const POLL_MAX: Duration = Duration::from_millis(1);
const JOIN_MAX: Duration = Duration::from_secs(10);
const FLUSH_MAX: Duration = Duration::from_secs(10);
/// Nothing takes so long.
const CARRIED_WITHIN: Duration = Duration::from_mins(2);

/// What is written and read.
struct Load {
    /// Nothing else is written there.
    topic: &'static str,
    partitions: i32,
    records: usize,
    linger_ms: &'static str,
    /// Records that are under way.
    in_flight_max: usize,
    /// The reader commits after so many.
    commit_every: usize,
}

/// What a record costs the broker and its two clients, one partition, as many under way as there are callers.
pub(super) async fn log(bench: &Bench) -> Result<Row> {
    let records = bench.scaled(1_000_000);
    let load = Load {
        topic: "bench.log",
        partitions: 1,
        records,
        linger_ms: "3",
        in_flight_max: CALLERS,
        commit_every: CALLERS,
    };
    let before = bench.processes.cpu();
    let took = carried(load, progress("log", Peer::Ours)).await?;
    let mut figures = Figures::default();
    figures.add_work(records as u64, took, &used(&before, &bench.processes.cpu()));
    Ok(Row::new("log", BTreeMap::from([("ours", figures)]), bench.processes.memory_mb()))
}

/// Lets the broker get warm with requests of nearly one record each, as many as it takes until their cost stays the same.
pub(super) async fn warm_up(bench: &Bench) -> Result<()> {
    let records = if bench.size == Size::Smoke { 500 } else { 80_000 };
    let load =
        Load { topic: "bench.warm-up", partitions: 24, records, linger_ms: "0", in_flight_max: 16, commit_every: 4 };
    carried(load, progress("warming the broker up", Peer::Ours)).await.map(drop)
}

/// From the first record that is written to the last that is read.
async fn carried(load: Load, progress: ProgressBar) -> Result<Duration> {
    let servers = std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS")?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers);
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let topic = NewTopic::new(load.topic, load.partitions, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await?;
    ensure!(made.iter().all(Result::is_ok), "{} cannot be made: {made:?}", load.topic);
    progress.set_length(load.records as u64);
    let name = load.topic;
    let took = tokio::task::spawn_blocking({
        let progress = progress.clone();
        move || write_and_read(&client, &load, &progress)
    });
    let took = took.await?;
    progress.finish_and_clear();
    // The next run makes it anew, and the disk is wanted for other things.
    admin.delete_topics(&[name], &AdminOptions::new()).await?;
    took
}

fn write_and_read(client: &ClientConfig, load: &Load, progress: &ProgressBar) -> Result<Duration> {
    let mut writing = client.clone();
    writing.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", load.linger_ms);
    let producer: ThreadedProducer<_> = writing.create()?;
    let mut reading = client.clone();
    reading.set("group.id", load.topic).set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = reading.create()?;
    consumer.subscribe(&[load.topic])?;
    let begun = Instant::now();
    while consumer.assignment()?.count() == 0 {
        ensure!(begun.elapsed() < JOIN_MAX, "nobody may read {}", load.topic);
        // A topic that was made a moment ago may not be known yet.
        let _ = consumer.poll(POLL_MAX);
    }
    let value = [b'x'; RECORD_BYTES];
    let (mut written, mut read) = (0, 0);
    let begun = Instant::now();
    while read < load.records {
        ensure!(begun.elapsed() < CARRIED_WITHIN, "{read} of {} records came through {}", load.records, load.topic);
        while written < load.records && written - read < load.in_flight_max {
            let partition = i32::try_from(written)? % load.partitions;
            let record = BaseRecord::<(), _>::to(load.topic).partition(partition).payload(&value);
            producer.send(record).map_err(|(error, _)| error)?;
            written += 1;
        }
        let Some(record) = consumer.poll(POLL_MAX) else { continue };
        record?;
        read += 1;
        progress.inc(1);
        if read % load.commit_every == 0 {
            consumer.commit_consumer_state(CommitMode::Async)?;
        }
    }
    let took = begun.elapsed();
    producer.flush(FLUSH_MAX)?;
    Ok(took)
}
