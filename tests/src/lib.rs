//! Helpers of the end-to-end tests: a client, a buyer, a concert of one's own, the log, the tables, the processes.
//!
//! They know the system by its contract only (addresses from the environment, JSON, topics, tables) and none of its code, so
//! that a mistake in a shared type cannot hide from them.

#![expect(clippy::needless_pass_by_value, reason = "a body is handed over where it is written: json!({…})")]

pub mod audit;
pub mod buyer;
pub mod database;
pub mod http;
pub mod log;
pub mod processes;
pub mod shapes;
pub mod show;
pub mod wait;

pub use buyer::Buyer;
pub use http::{Answer, Api, Call, Outcome, WAYS, Way};
pub use show::{PRICE, Show};
pub use wait::{at, eventually, met};

/// A variable that `cargo xtask test` exports.
///
/// # Panics
/// It is not there.
pub fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need a running system of their own; run `cargo xtask test`")
    })
}
