//! The log itself: records written by hand, topics read from a known place, what the groups have committed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
use rdkafka::message::{Headers, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use crate::setting;
use crate::wait::{eventually, met, s};

/// Joins, leaves, settings of queues.
pub const TOKENS: &str = "boxoffice.tokens.v1";
/// Holds.
pub const RESERVATIONS: &str = "boxoffice.reservations.v1";
/// Money, and the ends of holds.
pub const PAYMENTS: &str = "boxoffice.payments.v1";
/// Outcomes and token events.
pub const RESULTS: &str = "boxoffice.results.v1";
/// Each command topic with the group that consumes it.
pub const GROUPS: [(&str, &str); 3] =
    [(TOKENS, "boxoffice-tokens"), (RESERVATIONS, "boxoffice-reservations"), (PAYMENTS, "boxoffice-payments")];

const KAFKA_ANSWERS_WITHIN: Duration = s(20);

/// The topic of a topic's dead letters.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}.dlt")
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", setting("KAFKA_BOOTSTRAP_SERVERS")).set("client.id", "boxoffice-tests");
    config
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// Writes records as a person with kcat would: a key, a value, no headers.
pub struct Writer {
    producer: FutureProducer,
}

impl Writer {
    /// A writer that gives keys the partitions that Java tools give them.
    pub fn new() -> Self {
        let producer = config().set("partitioner", "murmur2_random").set("acks", "all").create();
        Self { producer: producer.expect("plain settings") }
    }

    /// Appends a record of any bytes.
    pub async fn append_bytes(&self, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) -> Place {
        self.append_record(topic, key, value, OwnedHeaders::new()).await
    }

    /// Appends a record with headers.
    pub async fn append_record(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> Place {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).headers(headers);
        (record.key, record.payload) = (key, value);
        self.send(record).await
    }

    async fn send(&self, record: FutureRecord<'_, [u8], [u8]>) -> Place {
        let topic = record.topic;
        let sent = self.producer.send(record, KAFKA_ANSWERS_WITHIN).await;
        let delivery = sent.unwrap_or_else(|(error, _)| panic!("{topic} takes no record: {error}"));
        Place { partition: delivery.partition, offset: delivery.offset }
    }

    /// Appends a JSON record to a partition that its key does not choose.
    pub async fn append_to(&self, topic: &str, partition: i32, key: &str, value: &Value) -> Place {
        let text = value.to_string();
        self.send(FutureRecord::to(topic).partition(partition).key(key.as_bytes()).payload(text.as_bytes())).await
    }

    /// Appends a JSON record in a transaction of its own, which ends with a mark at the next offset.
    pub async fn append_in_transaction(topic: &str, place: Place, key: &str, value: &Value, commit: bool) {
        let id = uuid::Uuid::new_v4().to_string();
        let producer: FutureProducer = config().set("transactional.id", &id).create().expect("plain settings");
        let text = value.to_string();
        let record = FutureRecord::to(topic).partition(place.partition).key(key).payload(&text);
        tokio::task::block_in_place(|| producer.init_transactions(KAFKA_ANSWERS_WITHIN)).expect("Kafka answers");
        producer.begin_transaction().expect("none is open");
        producer.send(record, KAFKA_ANSWERS_WITHIN).await.expect("the topic takes it");
        let ended = tokio::task::block_in_place(|| {
            if commit {
                producer.commit_transaction(KAFKA_ANSWERS_WITHIN)
            } else {
                producer.abort_transaction(KAFKA_ANSWERS_WITHIN)
            }
        });
        ended.expect("Kafka answers");
    }

    /// Appends a JSON record.
    pub async fn append(&self, topic: &str, key: &str, value: &Value) -> Place {
        self.append_bytes(topic, Some(key.as_bytes()), Some(value.to_string().as_bytes())).await
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// A record that was read.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its topic.
    pub topic: String,
    /// Where in it.
    pub place: Place,
    /// Its append time in milliseconds, and whether the broker gave it.
    pub appended_ms: i64,
    /// Whether the time is the broker's.
    pub is_log_append_time: bool,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The value as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.value.as_deref().unwrap_or_default()).unwrap_or_default()
    }

    /// The key as text.
    pub fn key_text(&self) -> String {
        String::from_utf8_lossy(self.key.as_deref().unwrap_or_default()).into_owned()
    }

    /// A header's bytes.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    /// A header's text.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }
}

/// Reads whole topics, from a known place on.
pub struct Reader {
    consumer: StreamConsumer,
    topics: Vec<String>,
    /// The next offset of each partition.
    positions: Offsets,
}

/// An offset of each partition.
pub type Offsets = BTreeMap<(String, i32), i64>;

impl Reader {
    /// At the present ends of these topics.
    pub fn at_the_end_of(topics: &[&str]) -> Self {
        Self::from(topics, |(_, end)| end)
    }

    /// At the beginnings of these topics.
    pub fn at_the_beginning_of(topics: &[&str]) -> Self {
        Self::from(topics, |(beginning, _)| beginning)
    }

    fn from(topics: &[&str], place: impl Fn((i64, i64)) -> i64) -> Self {
        let mut config = config();
        config.set("group.id", "boxoffice-tests").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "50");
        let consumer: StreamConsumer = config.create().expect("plain settings");
        let positions = watermarks(&consumer, topics).into_iter().map(|(partition, both)| (partition, place(both)));
        let positions: Offsets = positions.collect();
        consumer.assign(&list_of(&positions)).expect("partitions that exist");
        Self { consumer, topics: topics.iter().map(|&topic| topic.to_owned()).collect(), positions }
    }

    /// The next record; None if there is none within `within`.
    async fn next(&mut self, within: Duration) -> Option<Record> {
        let received = tokio::time::timeout(within, self.consumer.recv()).await;
        // Errors pass: the client library reconnects by itself.
        let record = received.ok()?.ok().map(|message| read(&message))?;
        self.positions.insert((record.topic.clone(), record.place.partition), record.place.offset + 1);
        Some(record)
    }

    /// The next record that is wanted; the others are dropped.
    pub async fn find(&mut self, what: &str, within: Duration, mut wanted: impl FnMut(&Record) -> bool) -> Record {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not within {within:?} in {:?}: {what}", self.topics);
            if let Some(record) = self.next(left).await.filter(&mut wanted) {
                return record;
            }
        }
    }

    /// The outcome of a request.
    pub async fn outcome(&mut self, request_id: &str) -> Record {
        let wanted = |record: &Record| record.json()["request_id"] == request_id;
        self.find(&format!("the outcome of {request_id}"), s(20), wanted).await
    }

    /// All records up to the present ends of the topics.
    pub async fn rest(&mut self) -> Vec<Record> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let ends: Offsets = watermarks(&self.consumer, &topics).into_iter().map(|(it, (_, end))| (it, end)).collect();
        let deadline = Instant::now() + KAFKA_ANSWERS_WITHIN;
        let mut records = Vec::new();
        while ends.iter().any(|(partition, end)| self.positions[partition] < *end) {
            assert!(Instant::now() < deadline, "the ends of {:?} are not reached", self.topics);
            records.extend(self.next(s(1)).await);
        }
        records
    }
}

/// The first offset and the next one of each partition.
fn watermarks<C: Consumer<X>, X: rdkafka::consumer::ConsumerContext>(
    consumer: &C,
    topics: &[&str],
) -> BTreeMap<(String, i32), (i64, i64)> {
    let mut all = BTreeMap::new();
    for &topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), KAFKA_ANSWERS_WITHIN).expect("Kafka answers");
        let partitions = metadata.topics().first().expect("the topic that was asked for").partitions();
        assert!(!partitions.is_empty(), "there is no topic {topic}");
        for partition in partitions.iter().map(rdkafka::metadata::MetadataPartition::id) {
            let both = consumer.fetch_watermarks(topic, partition, KAFKA_ANSWERS_WITHIN).expect("Kafka answers");
            all.insert((topic.to_owned(), partition), both);
        }
    }
    all
}

fn list_of(offsets: &Offsets) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).expect("an offset of a partition");
    }
    list
}

/// The next offset of each partition of a topic.
pub fn ends_of(topic: &str) -> Offsets {
    let consumer: BaseConsumer = config().create().expect("plain settings");
    watermarks(&consumer, &[topic]).into_iter().map(|(partition, (_, end))| (partition, end)).collect()
}

/// The first offset of each partition of a topic.
pub fn beginnings_of(topic: &str) -> Offsets {
    let consumer: BaseConsumer = config().create().expect("plain settings");
    watermarks(&consumer, &[topic]).into_iter().map(|(partition, (beginning, _))| (partition, beginning)).collect()
}

/// Deletes what is before an offset, as retention does.
pub async fn lose(topic: &str, before: Place) {
    let admin: AdminClient<DefaultClientContext> = config().create().expect("plain settings");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, before.partition, Offset::Offset(before.offset))
        .expect("an offset of a partition");
    let deleted = admin.delete_records(&list, &AdminOptions::new()).await.expect("Kafka answers");
    deleted.elements().iter().for_each(|partition| partition.error().expect("they are deleted"));
}

/// A setting of each topic.
pub async fn topic_setting(topics: &[&str], name: &str) -> Vec<String> {
    let admin: AdminClient<DefaultClientContext> = config().create().expect("plain settings");
    let asked: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
    let described = admin.describe_configs(&asked, &AdminOptions::new()).await.expect("Kafka answers");
    let value = |topic: ConfigResource| topic.get(name).and_then(|entry| entry.value.clone()).expect("it has a value");
    described.into_iter().map(|topic| value(topic.expect("it exists"))).collect()
}

/// What a group has committed of a topic; partitions without a commit are left out.
pub fn committed(topic: &str, group: &str) -> Offsets {
    let consumer: BaseConsumer = config().set("group.id", group).create().expect("plain settings");
    let mut list = TopicPartitionList::new();
    for (topic, partition) in ends_of(topic).keys() {
        list.add_partition(topic, *partition);
    }
    let committed = consumer.committed_offsets(list, KAFKA_ANSWERS_WITHIN).expect("Kafka answers");
    let known = committed.to_topic_map().into_iter();
    known
        .filter_map(|(partition, offset)| offset.to_raw().filter(|raw| *raw >= 0).map(|raw| (partition, raw)))
        .collect()
}

/// Records of each group's topic that the group has not committed.
pub fn lag(topic: &str, group: &str) -> i64 {
    let committed = committed(topic, group);
    let behind = |(partition, end): (&(String, i32), &i64)| end - committed.get(partition).copied().unwrap_or(0);
    ends_of(topic).iter().map(behind).sum()
}

/// Waits until all groups have committed all that there is.
pub async fn caught_up(within: Duration) {
    eventually("all groups have committed all records", within, async || {
        let lags = GROUPS.map(|(topic, group)| lag(topic, group));
        met(lags == [0, 0, 0], lags)
    })
    .await;
}

fn read(message: &impl Message) -> Record {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect()
    });
    let timestamp = message.timestamp();
    Record {
        topic: message.topic().to_owned(),
        place: Place { partition: message.partition(), offset: message.offset() },
        appended_ms: timestamp.to_millis().unwrap_or_default(),
        is_log_append_time: matches!(timestamp, rdkafka::Timestamp::LogAppendTime(_)),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
