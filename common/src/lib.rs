//! What both sides of a topic agree on: ids, messages, topics, configuration, the Kafka clients, the database pool and its
//! error classes, telemetry, memory and lifecycle. It knows neither the api nor the workers.

pub mod bodies;
pub mod catalogue;
pub mod config;
pub mod database;
pub mod forms;
pub mod ids;
pub mod kafka;
pub mod keys;
pub mod lifecycle;
pub mod listener;
pub mod memory;
pub mod messages;
pub mod problems;
pub mod request_id;
pub mod seating;
pub mod telemetry;
pub mod topics;
