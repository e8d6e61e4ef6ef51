//! The accept loop: bounded connections, bounded time for headers, and an end within the time that a shutdown has.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long requests that have begun may go on after the process was told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(8);
/// After `accept` failed (too many open files, most likely), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerBounds {
    /// Connections at the same time; further ones wait in the listener's backlog.
    pub(crate) connections_max: u32,
    /// How long a connection may take to send a request's headers, idle time included.
    pub(crate) header_time_max: Duration,
}

/// Serves until `stop`, then lets what has begun come to its end.
pub(crate) async fn serve(listener: TcpListener, router: Router, bounds: ServerBounds, stop: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(bounds.connections_max as usize));
    let mut http = http1::Builder::new();
    // No `pipeline_flush`: it keeps answers back while anything behind their request has arrived, be it a stray line end.
    http.timer(TokioTimer::new()).header_read_timeout(bounds.header_time_max);
    // Else hyper reads on while a request is under way, only to see whether its caller hangs up: a buffer and some work for each. Who hangs
    // up keeps his place until his answer is written, or the second heartbeat of his stream.
    http.half_close(true);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let watcher = graceful.watcher();
                let (http, router) = (http.clone(), router.clone());
                tokio::spawn(async move {
                    serve_connection(&http, stream, peer, router, watcher).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not end in time; their connections are cut");
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, peer) = listener.accept().await?;
    // An answer is one small packet: it must not wait for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok((stream, peer, slot))
}

async fn serve_connection(
    http: &http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
) {
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(axum::body::Body::new)
    });
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    // What goes wrong here is the caller's: it hung up, or did not speak HTTP.
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "a connection ended early");
    }
}
