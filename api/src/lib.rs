//! The axum ingress. It checks a request, publishes it to Kafka and answers; it reads Postgres, and writes there only what the operator's
//! catalogue and sign-up need.
//!
//! The way of a request: [`server`] → [`edge`] → [`router`] → a file of [`routes`] → [`publish`] → Kafka; and back:
//! Kafka → [`results`] → [`outcomes`] → [`wait`].

mod auth;
mod availability;
mod body;
mod bus;
mod call;
mod catalogue;
mod concerts;
mod config;
mod cursor;
mod docs;
mod edge;
mod error;
mod fifo;
mod fresh;
mod gauges;
mod kafka_health;
mod leftover;
mod limits;
mod lookup;
mod openapi;
mod outcomes;
mod params;
mod problem_pages;
mod publish;
mod queues;
mod reads;
mod reservations;
mod results;
mod router;
mod routes;
mod run;
mod seat_map;
mod server;
mod state;
mod store;
mod wait;

pub use config::Settings;
pub use run::run;
