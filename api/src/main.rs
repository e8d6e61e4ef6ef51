//! The api's process.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    api::run(api::Settings::parse()).await
}
