//! What all workers share and no word knows better: consuming, batches, transactions, offsets, dead letters, results, shutdown.
//!
//! The way of a record: the polling thread (`consume`) hands it over; all that has arrived becomes a batch (`batch`), applied in one
//! transaction; what was decided is told to Kafka and then the offset committed (`publish`). Whatever happens in
//! between, a record is read again rather than lost, and has its effect once. What was told before the database was restored from a
//! backup is read back (`recall`), and stays.

mod aside;
mod batch;
mod consume;
mod dead_letters;
mod offsets;
mod publish;
mod reading;
mod recall;
pub mod settings;
mod store;
mod takeover;
pub mod word;
mod worker;

pub use worker::run;
