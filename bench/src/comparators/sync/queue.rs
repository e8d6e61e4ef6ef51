//! The queue: `POST /v1/concerts/{id}/queue-tokens` and `GET /v1/queue-token`. Who finds room and nobody waiting is admitted at once;
//! all others by [`super::clockwork`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, TimeDelta, Utc};
use common::bodies::{TokenBody, TokenIdentity, TokenStatus};
use common::ids::{ConcertId, TokenId, UserId};
use common::keys::QueueClaims;
use common::messages::tokens::QueueState;
use common::problems::{Problem, Slug};
use sqlx::PgConnection;

use super::App;
use super::call::{Answer, Call, Failure, Tries};
use super::guard::QueueToken;
use super::outcomes::Asked;

/// What one admission costs, in the unit of `queues.credit`.
const ADMISSION: i64 = 60_000_000;
/// Queues whose bound is remembered before it starts afresh.
const INSIDE_MAX: usize = 10_000;

/// Locks the queue, and reads the live token that the buyer has. What the statement reads besides the lock may be older than the lock:
/// a second token of the same buyer is refused by the index, and the join tried again.
pub(super) const LOCK: &str = "
    SELECT now() AS now, q.state, q.rate_per_minute, q.burst, q.max_active, q.active_seconds, q.credit, q.refilled_at, q.next_seq,
           q.admitted_seq, q.admitted_total,
           EXISTS (SELECT FROM users WHERE user_id = $2) AS is_user,
           t.token_id, t.seq, t.kid, t.status, t.issued_at, t.expires_at,
           (SELECT count(*) FROM queue_tokens l
            WHERE l.concert_id = q.concert_id AND l.status = 'LEFT' AND l.seq > q.admitted_seq
              AND l.seq < coalesce(t.seq, q.next_seq)) AS gone
    FROM queues q
    LEFT JOIN queue_tokens t ON t.user_id = $2 AND t.concert_id + 0 = q.concert_id AND t.ended_at IS NULL
    WHERE q.concert_id = $1
    FOR UPDATE OF q";

/// All that a join writes: `$1` concert, `$2` place, `$3` token, `$4` buyer, `$5` key, `$6` when it joined, `$7` when it was admitted,
/// `$8` until when, `$9` credit, `$10` as of, `$11` the body.
pub(super) const JOIN: &str = r#"
    WITH token AS (
        INSERT INTO queue_tokens (concert_id, seq, token_id, user_id, kid, status, issued_at, admitted_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, CASE WHEN $7::timestamptz IS NULL THEN 'WAITING' ELSE 'ACTIVE' END::token_status, $6, $7, $8)),
    queue AS (
        UPDATE queues SET next_seq = $2 + 1, credit = $9, refilled_at = $10,
                          admitted_seq = CASE WHEN $7 IS NULL THEN admitted_seq ELSE $2 END,
                          admitted_total = admitted_total + CASE WHEN $7 IS NULL THEN 0 ELSE 1 END
        WHERE concert_id = $1)
    INSERT INTO requests (request_id, user_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
    VALUES ($3, $4, 'token.issue', 'SUCCEEDED', 201, $11::text::json, now(), now(), 'sync', 0, 0)"#;

/// A queue's row.
#[derive(sqlx::FromRow)]
pub(super) struct Line {
    pub(super) now: DateTime<Utc>,
    state: QueueState,
    rate_per_minute: i32,
    burst: i32,
    pub(super) max_active: i32,
    active_seconds: i32,
    pub(super) credit: i64,
    pub(super) refilled_at: DateTime<Utc>,
    next_seq: i64,
    pub(super) admitted_seq: i64,
    pub(super) admitted_total: i64,
}

#[derive(sqlx::FromRow)]
struct Locked {
    #[sqlx(flatten)]
    line: Line,
    is_user: bool,
    token_id: Option<TokenId>,
    seq: Option<i64>,
    kid: Option<String>,
    status: Option<TokenStatus>,
    issued_at: Option<DateTime<Utc>>,
    expires_at: Option<DateTime<Utc>>,
    gone: i64,
}

/// How many are inside each queue at most: those of the last count, and all that were admitted since, by whomever.
#[derive(Default)]
pub(super) struct Inside(Mutex<HashMap<ConcertId, (i64, i64)>>);

impl Inside {
    /// Notes a count, and the queue's `admitted_total` of the same moment.
    pub(super) fn note(&self, concert: ConcertId, active: i64, admitted_total: i64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= INSIDE_MAX {
            known.clear();
        }
        known.insert(concert, (active, admitted_total));
    }

    /// The bound, for a queue that has admitted so many.
    pub(super) fn at_most(&self, concert: ConcertId, admitted_total: i64) -> Option<i64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (active, before) = known.get(&concert)?;
        Some(active + (admitted_total - before).max(0))
    }
}

impl Line {
    /// Whether it lets anybody in.
    pub(super) fn admits(&self) -> bool {
        matches!(self.state, QueueState::Open | QueueState::Draining)
    }

    /// Adds to the bucket what the time up to now is worth, and keeps `burst` at most; time never goes back.
    pub(super) fn refill(&mut self) {
        let elapsed_us = (self.now - self.refilled_at).num_microseconds().unwrap_or(i64::MAX);
        if elapsed_us > 0 {
            self.credit = self.credit.saturating_add(elapsed_us.saturating_mul(self.rate_per_minute.into()));
            self.refilled_at = self.now;
        }
        self.credit = self.credit.min(i64::from(self.burst).saturating_mul(ADMISSION));
    }

    /// Admissions that the bucket is good for.
    pub(super) fn admissions(&self) -> i64 {
        (self.credit / ADMISSION).max(0)
    }

    /// Pays for admissions; answers until when they last.
    pub(super) fn admit(&mut self, admissions: i64) -> DateTime<Utc> {
        self.credit -= admissions * ADMISSION;
        self.refilled_at + TimeDelta::seconds(self.active_seconds.into())
    }
}

/// Joins the queue of a concert, or answers with the live token that the buyer has.
pub(super) async fn join(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_join(&app, &call).await)
}

async fn try_join(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let concert = ConcertId(call.path_id()?);
    let asked = call.asked(app, buyer, "token.issue");
    let mut tries = Tries::default();
    loop {
        let result = join_once(app, asked, concert).await;
        if !tries.again(&result) {
            return asked.or_first(&app.pool, result).await;
        }
    }
}

async fn join_once(app: &App, asked: Asked, concert: ConcertId) -> Result<Answer, Failure> {
    let mut transaction = app.begin().await?;
    let locked: Option<Locked> =
        sqlx::query_as(LOCK).bind(concert).bind(asked.user_id).fetch_optional(&mut *transaction).await?;
    let Some(mut locked) = locked else {
        let detail = format!("There is no concert {concert}; GET /v1/concerts lists them.");
        return Err(Problem::new(Slug::ConcertNotFound, detail).into());
    };
    if locked.is_over() {
        end(&mut transaction, concert, &locked).await?;
        locked.status = None;
    }
    let answer = if !locked.is_user {
        let detail = format!("There is no user {}; sign up first.", asked.user_id);
        asked.failed(&mut transaction, &Problem::new(Slug::UserNotFound, detail)).await?
    } else if let Some(body) = locked.live_body(app, asked.user_id, concert) {
        asked.found(&mut transaction, 200, body).await?
    } else if !matches!(locked.line.state, QueueState::Open | QueueState::Paused) {
        let detail = format!("The queue of concert {concert} takes no more buyers.");
        asked.failed(&mut transaction, &Problem::new(Slug::QueueClosed, detail)).await?
    } else {
        write(app, &mut transaction, asked, concert, locked).await?
    };
    transaction.commit().await?;
    Ok(answer)
}

impl Locked {
    fn is_over(&self) -> bool {
        self.status == Some(TokenStatus::Active) && self.expires_at.is_some_and(|until| until <= self.line.now)
    }

    fn live_body(&self, app: &App, user: UserId, concert: ConcertId) -> Option<String> {
        let (status, seq, issued_at) = (self.status?, self.seq?, self.issued_at?);
        let token_id = self.token_id?;
        let claims = QueueClaims::new(token_id, user, concert, seq, issued_at);
        let queue_token = app.queue_tokens.sign(&claims, self.kid.as_deref()?);
        let identity = TokenIdentity { queue_token, token_id, concert_id: concert, issued_at };
        let body = match (status, self.expires_at) {
            (TokenStatus::Active, Some(until)) => TokenBody::active(identity, until, self.line.state),
            _ => self.waiting(identity, seq),
        };
        serde_json::to_string(&body).ok()
    }

    fn waiting(&self, identity: TokenIdentity, seq: i64) -> TokenBody {
        let line = &self.line;
        let position = (seq - line.admitted_seq - self.gone).max(1);
        TokenBody::waiting(identity, position, line.state, line.rate_per_minute.into(), line.max_active.into())
    }
}

/// Ends a token whose time is over, before the clockwork does.
async fn end(connection: &mut PgConnection, concert: ConcertId, locked: &Locked) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE queue_tokens SET status = 'EXPIRED', ended_at = now()
         WHERE concert_id = $1 AND seq = $2 AND ended_at IS NULL",
    )
    .bind(concert)
    .bind(locked.seq)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the newcomer is admitted at once: nobody waits, and both the bucket and the active limit allow it.
async fn has_room(app: &App, connection: &mut PgConnection, concert: ConcertId, line: &Line) -> Result<bool, Failure> {
    let nobody_waits = line.next_seq == line.admitted_seq + 1;
    if !(line.admits() && nobody_waits && line.admissions() > 0) {
        return Ok(false);
    }
    let at_most = if let Some(at_most) = app.inside.at_most(concert, line.admitted_total) {
        at_most
    } else {
        let active: i64 =
            sqlx::query_scalar("SELECT count(*) FROM queue_tokens WHERE concert_id = $1 AND status = 'ACTIVE'")
                .bind(concert)
                .fetch_one(connection)
                .await?;
        app.inside.note(concert, active, line.admitted_total);
        active
    };
    Ok(at_most < line.max_active.into())
}

async fn write(
    app: &App,
    connection: &mut PgConnection,
    asked: Asked,
    concert: ConcertId,
    mut locked: Locked,
) -> Result<Answer, Failure> {
    locked.line.refill();
    let admitted = has_room(app, connection, concert, &locked.line).await?;
    let until = admitted.then(|| locked.line.admit(1));
    let (line, token_id) = (&locked.line, TokenId::from(asked.request_id));
    // In milliseconds, which is what the signed token says, so that its string is the same each time.
    let issued_at = DateTime::from_timestamp_millis(line.now.timestamp_millis()).unwrap_or(line.now);
    let (seq, kid) = (line.next_seq, app.queue_tokens.signing_kid());
    let queue_token = app.queue_tokens.sign(&QueueClaims::new(token_id, asked.user_id, concert, seq, issued_at), kid);
    let identity = TokenIdentity { queue_token, token_id, concert_id: concert, issued_at };
    let body = match until {
        Some(until) => TokenBody::active(identity, until, line.state),
        None => locked.waiting(identity, seq),
    };
    let body = serde_json::to_string(&body).unwrap_or_default();
    sqlx::query(JOIN)
        .bind(concert)
        .bind(seq)
        .bind(token_id)
        .bind(asked.user_id)
        .bind(kid)
        .bind(issued_at)
        .bind(until.map(|_| line.refilled_at))
        .bind(until)
        .bind(line.credit)
        .bind(line.refilled_at)
        .bind(&body)
        .execute(connection)
        .await?;
    Ok(Answer::new(201, body))
}

/// How the queue token stands.
pub(super) async fn poll(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_poll(&app, &call).await)
}

async fn try_poll(app: &App, call: &Call) -> Result<Answer, Failure> {
    let token = QueueToken::required(app, call.headers())?;
    let standing = token.standing(&app.pool).await?;
    let body = token.body(&standing).ok_or_else(|| token.ended())?;
    let json = serde_json::to_string(&body).unwrap_or_default();
    Ok(Answer { retry_after: body.poll_after_seconds, ..Answer::new(200, json) })
}
