//! A stream of what happens to a queue token: its position, its admission, its end. Positions come from the marks that
//! are refreshed for all queues at once, the rest from the results topic: a stream asks the database hardly ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use common::bodies::{TokenBody, TokenStatus};
use common::messages::tokens::QueueState;
use common::problems::Slug;
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use crate::auth::queue::{self, QueueToken, Standing};
use crate::bus::TokenWatch;
use crate::call::Call;
use crate::error::ApiError;
use crate::queues::{Place, TokenState};
use crate::state::App;
use crate::store;

/// How often a stream shows that it is alive when nothing happens. The second one after its reader has gone finds that out.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// When a client whose connection broke may come again.
const RECONNECT: Duration = Duration::from_secs(3);
/// The marks may say that a token is admitted before the results topic tells until when: so long it is waited for.
const ADMISSION_WAIT: Duration = Duration::from_secs(1);
/// Before the database is asked again when it did not answer.
const RETRY: Duration = Duration::from_secs(1);
/// An end that the results topic did not tell is looked for so long after the token's time is over.
const EXPIRY_SLACK: Duration = Duration::from_millis(50);

/// For browsers, whose `EventSource` sends no headers.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes a parameter for the OpenAPI document; the handler reads it itself")]
pub(crate) struct EventParams {
    /// The queue token, where the header cannot be sent.
    queue_token: Option<String>,
}

/// What happens to the queue token, as it happens: events `position`, `admitted` and `expired`, each with the token's
/// body as its data.
#[utoipa::path(
    get, path = "/v1/queue-token/events", operation_id = "queue_token_events",
    tag = "queue", security(("queue_token" = []), ()), params(EventParams),
    responses((status = 200, description = "Events `position`, `admitted`, `expired`: the first at once, a comment every \
        15 s, the end after `expired`", content_type = "text/event-stream", body = TokenBody))
)]
pub(crate) async fn events(call: Call) -> Result<Response, ApiError> {
    let token = sent(&call)?;
    call.app.limits.polls.check(&token.claims.jti)?;
    call.query(&["queue_token"])?;
    let app = call.app.clone();
    // Watched before it is looked at, so that nothing happens in between.
    let watch = app.bus.watch_token(token.claims.jti);
    let refreshes = app.queues.refreshes();
    let standing = queue::standing(&app, &token.claims).await?;
    if matches!(standing, Standing::Ended) {
        return Err(ApiError::queue_token_ended(token.claims.concert_id));
    }
    let Ok(permit) = app.reads.streams.clone().try_acquire_owned() else {
        return Err(ApiError::new(Slug::Overloaded, "Too many streams are open. Poll GET /v1/queue-token instead."));
    };
    let follower =
        Follower { app, token, watch, refreshes, told: None, phase: Phase::Found(standing), _permit: permit };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response();
    // A proxy that gathers answers would keep the events for itself.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn sent(call: &Call) -> Result<QueueToken, ApiError> {
    if let Some(token) = queue::sent(&call.app, call.headers())? {
        return Ok(token);
    }
    let pairs = form_urlencoded::parse(call.query_text().unwrap_or_default().as_bytes());
    match pairs.into_iter().find(|(name, _)| name == "queue_token") {
        Some((_, string)) => queue::verified(&call.app, &string),
        None => queue::required(&call.app, call.headers()),
    }
}

/// One stream.
struct Follower {
    app: Arc<App>,
    token: QueueToken,
    watch: TokenWatch,
    refreshes: watch::Receiver<u64>,
    told: Option<TokenBody>,
    phase: Phase,
    _permit: OwnedSemaphorePermit,
}

/// What the stream does next.
enum Phase {
    /// Tells how the token stands.
    Found(Standing),
    /// Waits until something happens.
    Idle,
    /// Nothing comes any more.
    Over,
}

impl Follower {
    /// The next event; None: the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Idle) {
                Phase::Over => return None,
                Phase::Found(Standing::Ended) => {
                    self.phase = Phase::Over;
                    return Some(event("expired", &self.ended().await));
                }
                Phase::Found(standing) => {
                    if let Some(event) = self.news(standing) {
                        return Some(event);
                    }
                }
                Phase::Idle => {
                    let app = self.app.clone();
                    self.phase = tokio::select! {
                        standing = self.change() => Phase::Found(standing),
                        () = app.stop.cancelled() => Phase::Over,
                    };
                }
            }
        }
    }

    /// The event about a standing, unless it says what was told last.
    fn news(&mut self, standing: Standing) -> Option<Event> {
        let body = queue::token_body(&self.token, standing)?;
        let same = |told: &TokenBody| {
            (told.position, told.queue_state, told.estimated_wait_seconds, told.expires_at)
                == (body.position, body.queue_state, body.estimated_wait_seconds, body.expires_at)
        };
        if self.told.as_ref().is_some_and(same) {
            return None;
        }
        let event = event(if body.admitted { "admitted" } else { "position" }, &body);
        self.told = Some(body);
        Some(event)
    }

    /// Waits until something may have happened, and tells how the token stands then.
    async fn change(&mut self) -> Standing {
        match self.told.as_ref().and_then(|told| told.expires_at) {
            // Admitted: until it ends, there is nothing to tell.
            Some(expires_at) => {
                let left = (expires_at - Utc::now()).to_std().unwrap_or_default() + EXPIRY_SLACK;
                // What could not be read a moment ago may have ended.
                let is_stale = self.remembered().is_some_and(|(_, is_fresh)| !is_fresh);
                let left = if is_stale { left.min(RETRY) } else { left };
                let _ = tokio::time::timeout(left, self.watch.changes.changed()).await;
                self.looked_up().await
            }
            None => loop {
                tokio::select! {
                    _ = self.watch.changes.changed() => {}
                    _ = self.refreshes.changed() => {}
                }
                if let Some(standing) = self.in_line().await {
                    return standing;
                }
            },
        }
    }

    /// How a token that was in line stands now, from memory if possible.
    async fn in_line(&mut self) -> Option<Standing> {
        let claims = &self.token.claims;
        // Without marks, nothing is known for the moment.
        let queue = self.app.queues.known(claims.concert_id)?;
        match queue.place_of(claims.seq) {
            Place::Waiting(position) => return Some(Standing::Waiting { position, queue }),
            Place::Left => return Some(Standing::Ended),
            Place::Passed => {}
        }
        if self.remembered().is_none() {
            let _ = tokio::time::timeout(ADMISSION_WAIT, self.watch.changes.changed()).await;
        }
        Some(self.looked_up().await)
    }

    /// The token's state as it is remembered, and whether that is still fresh.
    fn remembered(&self) -> Option<(TokenState, bool)> {
        let claims = &self.token.claims;
        self.app.tokens.get(claims.concert_id, claims.sub, claims.jti)
    }

    /// How the token stands, from the database if nothing else knows; asked until it answers.
    async fn looked_up(&self) -> Standing {
        loop {
            match queue::standing(&self.app, &self.token.claims).await {
                Ok(standing) => return standing,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// The body of the token after its end.
    async fn ended(&self) -> TokenBody {
        let claims = &self.token.claims;
        let row = store::tokens::end(&self.app.pool, claims.concert_id, claims.seq, claims.jti).await.ok().flatten();
        // The row may still say what it was a moment ago, and the database may be down: then it was time that ended it.
        let status = row.filter(|status| !matches!(status, TokenStatus::Waiting | TokenStatus::Active));
        let queue_state = self.app.queues.known(claims.concert_id).map_or(QueueState::Open, |queue| queue.state);
        TokenBody {
            queue_token: self.token.string.clone(),
            token_id: claims.jti,
            concert_id: claims.concert_id,
            status: status.unwrap_or(TokenStatus::Expired),
            admitted: false,
            position: 0,
            estimated_wait_seconds: None,
            issued_at: claims.issued_at(),
            expires_at: self.told.as_ref().and_then(|told| told.expires_at),
            poll_after_seconds: None,
            queue_state,
        }
    }
}

fn event(name: &str, body: &TokenBody) -> Event {
    let data = serde_json::to_string(body).expect("bodies have text keys and no maps of other kinds");
    Event::default().event(name).retry(RECONNECT).data(data)
}
