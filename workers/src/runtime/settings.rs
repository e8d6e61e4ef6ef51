//! The settings that all workers share.

use std::net::SocketAddr;
use std::time::Duration;

use common::config::{DatabaseConfig, KafkaConfig, TelemetryConfig};

/// Settings of a worker.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerSettings {
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseConfig,
    /// Kafka.
    #[command(flatten)]
    pub kafka: KafkaConfig,
    /// Logs.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    #[arg(long, env = "WORKER_LISTEN", default_value = "127.0.0.1:0")]
    pub worker_listen: SocketAddr,
    /// Records in one transaction, at most.
    #[arg(long, env = "BATCH_RECORDS_MAX", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5_000))]
    pub batch_records_max: u16,
    /// How often offsets are committed, in milliseconds. What was applied since is read again after a crash, without effect.
    #[arg(long, env = "OFFSET_COMMIT_INTERVAL_MS", default_value_t = 100)]
    pub offset_commit_interval_ms: u64,
    /// How long outcomes are kept, in hours: a day longer than the topics keep records, so that no record outlives its outcome.
    #[arg(long, env = "REQUESTS_KEPT_HOURS", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_kept_hours: u32,
    /// How long records are gathered after a batch of many from several partitions, in milliseconds, at most: 200 that wait are enough.
    /// After any other batch the next one is taken at once.
    #[arg(long, env = "BATCH_DWELL_MS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(..=1_000))]
    pub batch_dwell_ms: u64,
}

impl WorkerSettings {
    /// How often offsets are committed.
    pub fn offset_commit_interval(&self) -> Duration {
        Duration::from_millis(self.offset_commit_interval_ms)
    }
}
