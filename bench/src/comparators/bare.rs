//! The ceiling of the HTTP stack: the same route, answered with fixed bytes of the same size and the same headers. No token is
//! checked, nothing is parsed, nothing is kept.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::get;
use axum::serve::ListenerExt as _;
use chrono::DateTime;
use common::bodies::{TokenBody, TokenIdentity};
use common::ids::{ConcertId, TokenId, UserId};
use common::keys::{KeyRing, QueueClaims, QueueTokens};
use common::messages::tokens::QueueState;
use common::{lifecycle, listener};
use uuid::Uuid;

/// What is answered.
#[derive(Debug, Clone)]
pub struct Bodies {
    /// To `GET /v1/queue-token`: a *token body*.
    pub queue_token: Bytes,
}

impl Bodies {
    /// Bodies as a buyer in line gets them.
    ///
    /// # Errors
    /// None that depends on anything outside.
    pub fn typical() -> anyhow::Result<Self> {
        let keys: KeyRing = "bare:a key of the length that keys have to have".parse().map_err(anyhow::Error::msg)?;
        let at = DateTime::from_timestamp_micros(1_800_000_000_123_456).context("a time in range")?;
        let (uuid, concert_id) = (Uuid::from_u128(0x0123_4567_89ab_8def_8123_4567_89ab_cdef), ConcertId(1_234));
        let claims = QueueClaims::new(TokenId(uuid), UserId(uuid), concert_id, 123_456, at);
        let queue_token = QueueTokens::new(keys).sign(&claims, "bare");
        let identity =
            TokenIdentity { queue_token, token_id: TokenId(uuid), concert_id, issued_at: claims.issued_at() };
        let token = TokenBody::waiting(identity, 100_000, QueueState::Open, 600, 1_000);
        Ok(Self { queue_token: serde_json::to_vec(&token)?.into() })
    }
}

/// Serves until the process is told to stop.
///
/// # Errors
/// The address is taken.
pub async fn serve(listen: SocketAddr, bodies: Bodies) -> anyhow::Result<()> {
    let stop = lifecycle::shutdown_signal()?;
    let listener = listener::listen(listen)?;
    tracing::info!(address = %listener.local_addr()?, "the bare server listens");
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended early");
        }
    });
    axum::serve(listener, router(bodies)).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

fn router(bodies: Bodies) -> Router {
    let Bodies { queue_token } = bodies;
    let poll = move || async move {
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
            (header::RETRY_AFTER, "5"),
        ];
        (headers, queue_token)
    };
    Router::new().route("/v1/queue-token", get(poll))
}
