//! Starts the api's parts in order, and ends them in order when the process is told to stop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::lifecycle::{self, Missing, Readiness};
use common::{listener, memory, telemetry};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::auth::access::Identity;
use crate::config::Settings;
use crate::server::{self, ServerBounds};
use crate::state::App;
use crate::{gauges, limits, outcomes, results, router, store};

/// How long the database may take to answer `/readyz`.
const READY_DATABASE_MAX: Duration = Duration::from_secs(1);
/// Records that are still on their way at the end may take this long.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Runs the api until SIGTERM or SIGINT.
///
/// # Errors
/// A setting makes no sense, a key is missing, or the address is taken.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let metrics = telemetry::start(&settings.telemetry)?;
    memory::use_small_pages();
    tell_panics();
    let stop = lifecycle::shutdown_signal()?;
    let cors = router::cors(&settings.cors_origins)?;
    let app = Arc::new(App::new(&settings, stop.clone())?);
    let reader = results::start(app.clone(), &settings.kafka)?;
    start_background(&app);
    let calls = router::router(app.clone());
    // Health is asked for while load is shed, and is not counted among the calls.
    let mut router = calls.merge(lifecycle::health_routes(readiness(app.clone()), metrics));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    let listener = listener::listen(settings.listen)?;
    tracing::info!(address = %listener.local_addr()?, "the api listens");
    let bounds = ServerBounds {
        connections_max: app.bounds.connections_max,
        header_time_max: Duration::from_secs(app.bounds.header_seconds_max),
    };
    server::serve(listener, router, bounds, stop).await;
    let flushed = tokio::task::spawn_blocking(move || {
        let flushed = app.producer.flush(FLUSH_MAX);
        // The reader looks up from its poll within 100 ms.
        let _ = reader.join();
        flushed
    });
    if let Err(error) = flushed.await? {
        tracing::warn!(%error, "some records were not acknowledged; their callers were told");
    }
    tracing::info!("the api has stopped");
    Ok(())
}

/// A panic is a defect: it is told in the log, once, and its caller gets 503.
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let what = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(place, what, "a part of the api has panicked");
    }));
}

fn start_background(app: &Arc<App>) {
    let marks = app.clone();
    tokio::spawn(async move {
        let database_up = |up| marks.set_database_up(up);
        marks.queues.keep_fresh(&marks.pool, marks.stop.clone(), database_up).await;
    });
    let waiting = app.clone();
    tokio::spawn(async move {
        waiting.stop.cancelled().await;
        waiting.outcomes.end_waiting();
    });
    let limits = app.clone();
    tokio::spawn(every(limits::SWEEP, app.stop.clone(), move || limits.limits.sweep()));
    let outcomes = app.clone();
    let forget = move || {
        // What it has forgotten, it could not read again.
        if outcomes.database_up() {
            outcomes.outcomes.sweep();
        }
    };
    tokio::spawn(every(outcomes::SWEEP, app.stop.clone(), forget));
    tokio::spawn(gauges::keep(app.clone()));
    if matches!(app.identity, Identity::Jwks(..)) {
        let keys = app.clone();
        tokio::spawn(async move {
            if let Identity::Jwks(jwks, _) = &keys.identity {
                jwks.keep_fresh(keys.stop.clone()).await;
            }
        });
    }
}

async fn every(period: Duration, stop: CancellationToken, work: impl Fn()) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        work();
    }
}

fn readiness(app: Arc<App>) -> Readiness {
    Arc::new(move || -> Pin<Box<dyn Future<Output = Missing> + Send>> { Box::pin(missing(app.clone())) })
}

async fn missing(app: Arc<App>) -> Missing {
    let mut missing = Missing::new();
    if !app.kafka.is_up() {
        missing.push("Kafka does not answer".to_owned());
    }
    if !app.kafka.is_reading() {
        missing.push("the results topic is not read yet".to_owned());
    }
    match tokio::time::timeout(READY_DATABASE_MAX, store::ping(&app.pool)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => missing.push("the database does not answer".to_owned()),
    }
    missing
}
