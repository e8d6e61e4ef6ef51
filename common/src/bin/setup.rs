//! Creates the topics and migrates the database, then exits. Safe to run again at any time.

use anyhow::Context;
use clap::Parser;
use common::config::{DatabaseConfig, KafkaConfig, TelemetryConfig};
use common::kafka::admin::{TopicConfig, create_topics};
use common::{database, telemetry};

/// Creates Boxoffice's topics and migrates its database; run it before the api and the workers start.
#[derive(Parser)]
#[command(version)]
struct Settings {
    #[command(flatten)]
    database: DatabaseConfig,
    #[command(flatten)]
    kafka: KafkaConfig,
    #[command(flatten)]
    topics: TopicConfig,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    telemetry::start(&settings.telemetry)?;
    let pool = database::pool(&settings.database, "boxoffice-setup", 1)?;
    let mut migrations = sqlx::migrate!("../migrations");
    // A version that is rolled back finds migrations that it does not know; they only expand, so it goes on.
    migrations.set_ignore_missing(true);
    migrations.run(&pool).await.context("the database cannot be migrated")?;
    tracing::info!("the database is up to date");
    let created = create_topics(&settings.kafka, &settings.topics).await?;
    tracing::info!(?created, "the topics exist");
    Ok(())
}
