//! Offsets at which there is no record: foreign transactions have ended there, or the log has let go of what was there.

use boxoffice_tests::log::{self, GROUPS, PAYMENTS, Place, RESERVATIONS, RESULTS, TOKENS, Writer, dead_letters};
use boxoffice_tests::processes::Processes;
use boxoffice_tests::{Api, Buyer, Way, database, shapes};
use serde_json::{Value, json};

use super::{WORKERS, the_log_moves, workers_are_ready};

const RETENTION_MS: i64 = 168 * 3_600_000;

fn charge_of(buyer: &Buyer, amount: i64) -> Value {
    let id = uuid::Uuid::new_v4().to_string();
    json!({"type": "balance.charge", "version": 1, "request_id": id, "user_id": buyer.user_id, "amount": amount})
}

/// Charges in the usual way; where that stands in the log.
async fn charge(buyer: &Buyer, amount: i64) -> Place {
    let charged = buyer.charge(amount, Way::Wait).await.ok(201);
    let id: uuid::Uuid = shapes::uuid(&charged["entry_id"]).parse().expect("a UUID");
    let sql = r#"SELECT partition, "offset" FROM requests WHERE request_id = $1"#;
    let (partition, offset) = sqlx::query_as(sql).bind(id).fetch_one(&database::pool().await).await.expect("a row");
    Place { partition, offset }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ends_of_foreign_transactions_stop_nobody() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let buyer = api.sign_up().await;
    let place = charge(&buyer, 1).await;
    let foreign = async |topic: &str, partition, amount, commit| {
        let (value, place) = (charge_of(&buyer, amount), Place { partition, ..place });
        Writer::append_in_transaction(topic, place, &buyer.user_id, &value, commit).await;
    };
    let own = place.partition;
    foreign(PAYMENTS, own, 10, true).await;
    foreign(PAYMENTS, own, 100, false).await;
    charge(&buyer, 1_000).await;
    assert_eq!(buyer.balance().await, 1_011, "what was aborted never was");

    // At the very ends, too, while somebody takes the partitions over.
    foreign(PAYMENTS, own, 100, false).await;
    foreign(RESULTS, 0, 100, false).await;
    for (name, _) in WORKERS {
        processes.end(name, "TERM").await;
    }
    processes.up(1).await;
    workers_are_ready(&api).await;
    charge(&buyer, 10_000).await;
    assert_eq!(buyer.balance().await, 11_011);
    the_log_moves(&api).await;
}

#[tokio::test]
async fn what_the_log_has_lost_stops_nobody() {
    let processes = Processes::begin().await;
    let api = Api::new();
    let buyer = api.sign_up().await;
    let place = charge(&buyer, 1).await;
    processes.end("payment-worker", "TERM").await;
    let lost = Writer::new().append(PAYMENTS, &buyer.user_id, &charge_of(&buyer, 10)).await;
    assert_eq!((lost.partition, lost.offset), (place.partition, place.offset + 1));
    log::lose(PAYMENTS, Place { offset: lost.offset + 1, ..lost }).await;
    processes.up(1).await;
    workers_are_ready(&api).await;
    charge(&buyer, 100).await;
    assert_eq!(buyer.balance().await, 101, "all but what is gone");
}

#[tokio::test]
async fn no_record_outlasts_its_outcome_by_the_length_of_a_segment() {
    let processes = Processes::begin().await;
    let dead = GROUPS.map(|(topic, _)| dead_letters(topic));
    let topics: Vec<&str> =
        [TOKENS, RESERVATIONS, PAYMENTS, RESULTS].into_iter().chain(dead.each_ref().map(String::as_str)).collect();
    let wanted = vec![(RETENTION_MS / 8).to_string(); topics.len()];
    assert_eq!(log::topic_setting(&topics, "segment.ms").await, wanted);
    // A topic that was made before this was so, and has a setting of its operator's.
    let alter = ["--alter", "--entity-type", "topics", "--entity-name", RESULTS];
    let change = |how: &'static str, what: &'static str| [&alter[..], &[how, what]].concat();
    processes.kafka("kafka-configs", &change("--delete-config", "segment.ms")).await;
    processes.kafka("kafka-configs", &change("--add-config", "index.interval.bytes=5000")).await;
    assert_ne!(log::topic_setting(&[RESULTS], "segment.ms").await, wanted[..1]);
    processes.up(1).await;
    assert_eq!(log::topic_setting(&topics, "segment.ms").await, wanted);
    assert_eq!(log::topic_setting(&[RESULTS], "index.interval.bytes").await, ["5000"]);
    assert_eq!(log::topic_setting(&[RESULTS], "message.timestamp.type").await, ["LogAppendTime"]);
}
