//! The life of a process: told to stop, it stops in good order; meanwhile it says how it is on `/livez`, `/readyz`, `/metrics`.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::listener;
use crate::problems::{Problem, Slug};

const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// What is missing before the process can work; empty when it is ready.
pub type Missing = Vec<String>;

/// Asks whether the process can work.
pub type Readiness = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Missing> + Send>> + Send + Sync>;

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// The signals cannot be listened to.
pub fn shutdown_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop");
        told.cancel();
    });
    Ok(token)
}

/// `/livez`, `/readyz` and `/metrics`.
pub fn health_routes<S: Clone + Send + Sync + 'static>(readiness: Readiness, metrics: PrometheusHandle) -> Router<S> {
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(move || readyz(readiness.clone())))
        .route("/metrics", get(move || async move { metrics.render() }))
        .method_not_allowed_fallback(method_not_allowed)
}

async fn method_not_allowed(uri: Uri) -> Response {
    document(&Problem::new(Slug::MethodNotAllowed, "The header Allow names the methods of this path."), &uri)
}

async fn not_found(uri: Uri) -> Response {
    document(&Problem::new(Slug::NotFound, "A worker has /livez, /readyz and /metrics, and nothing else."), &uri)
}

fn document(problem: &Problem, uri: &Uri) -> Response {
    let status = StatusCode::from_u16(problem.slug.status()).expect("slugs have real statuses");
    let media = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, media, problem.document(uri.path(), None).to_string()).into_response()
}

async fn readyz(readiness: Readiness) -> (StatusCode, String) {
    let missing = readiness().await;
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join("; ")))
    }
}

/// Serves a worker's health until it is told to stop.
///
/// # Errors
/// The address is taken, or not ours.
pub fn serve_health(
    listen: SocketAddr,
    readiness: Readiness,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = listener::listen(listen)?;
    tracing::info!(address = %listener.local_addr()?, "health and metrics are served");
    let routes = health_routes(readiness, metrics).fallback(not_found);
    tokio::spawn(async move {
        let served = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "health and metrics are not served any more");
        }
    });
    Ok(())
}
