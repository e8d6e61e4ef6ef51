//! The payment worker: consumes `boxoffice.payments.v1`, moves money and ends holds.

use clap::Parser;
use workers::payments::Payments;
use workers::runtime::settings::WorkerSettings;

/// Moves money and ends holds: consumes boxoffice.payments.v1, writes Postgres, publishes boxoffice.results.v1.
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
    workers::runtime::run(settings.worker, Payments::new(settings.currency)).await
}
