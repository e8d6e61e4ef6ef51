//! The workers: each consumes one topic, decides in memory, writes to Postgres in sets, and publishes what it decided.
//!
//! [`runtime`] is shared and knows no word; each word ties it to its own `decide` (the rules, pure) and `store` (the SQL).

pub mod payments;
pub mod reservations;
pub mod runtime;
pub mod tokens;
mod users;
