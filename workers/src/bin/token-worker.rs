//! The token worker: consumes `boxoffice.tokens.v1`, keeps the queues and admits buyers.

use clap::Parser;
use common::keys::{KeyRing, QueueTokens};
use workers::runtime::settings::WorkerSettings;
use workers::tokens::Tokens;

/// Keeps the queues and admits buyers: consumes boxoffice.tokens.v1, writes Postgres, publishes boxoffice.results.v1.
#[derive(Parser)]
#[command(version)]
struct Settings {
    #[command(flatten)]
    worker: WorkerSettings,
    /// Keys of queue tokens, the same as the api's: `kid:secret[,kid:secret…]`, the first one signs.
    #[arg(long, env = "QUEUE_TOKEN_KEYS", hide_env_values = true)]
    queue_token_keys: KeyRing,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    workers::runtime::run(settings.worker, Tokens::new(QueueTokens::new(settings.queue_token_keys))).await
}
