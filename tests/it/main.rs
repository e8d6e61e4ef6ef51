//! End-to-end tests on real Kafka and Postgres, one file per word. `cargo xtask test` starts a system of their own and
//! runs them: all but `faults` side by side, then `faults` one by one.

#![expect(clippy::needless_pass_by_value, reason = "a body is handed over where it is written: json!({…})")]
#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod audit;
mod balance;
mod connections;
mod errors;
mod events;
mod faults;
mod late_results;
mod pages;
mod payments;
mod queues;
mod records;
mod requests;
mod reservations;
mod schedules;
mod tokens;
