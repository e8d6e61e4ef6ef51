//! The reservation worker: consumes `boxoffice.reservations.v1` and holds seats.

use clap::Parser;
use workers::reservations::Reservations;
use workers::runtime::settings::WorkerSettings;

/// Holds seats: consumes boxoffice.reservations.v1, writes Postgres, publishes boxoffice.results.v1.
#[derive(Parser)]
#[command(version)]
struct Settings {
    #[command(flatten)]
    worker: WorkerSettings,
    /// The deployment's currency, an ISO 4217 code.
    #[arg(long, env = "CURRENCY", default_value = "KRW")]
    currency: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    workers::runtime::run(settings.worker, Reservations::new(settings.currency)).await
}
