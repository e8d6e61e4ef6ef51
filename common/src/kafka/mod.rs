//! The Kafka clients. All librdkafka settings stand in [`producer`] and [`consumer`], each with its reason.

pub mod admin;
pub mod consumer;
pub mod context;
pub mod crowd;
pub mod delivery;
pub mod headers;
pub mod producer;

use rdkafka::ClientConfig;

use crate::config::KafkaConfig;

/// What every client starts from.
fn base_config(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.kafka_bootstrap_servers)
        .set("client.id", client_id)
        // After a broker's restart nobody waits long for the next attempt.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        // Nagle's algorithm would hold back small requests, which is all that a lone buyer makes.
        .set("socket.nagle.disable", "true");
    for (name, value) in &config.kafka_properties.0 {
        client.set(name, value);
    }
    client
}
