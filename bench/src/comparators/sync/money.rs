//! Money: `POST /v1/payments` and `POST /v1/balance/charges`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use common::bodies::{PaymentBody, PaymentStatus, Reservation, ReservationStatus};
use common::catalogue::{PaymentFailurePolicy, Schedule};
use common::ids::{ConcertId, PaymentId, ReservationId, ScheduleId, SeatId, UserId};
use common::messages::payments::CHARGE_MAX;
use common::problems::{Problem, Slug};
use serde::Deserialize;
use sqlx::PgConnection;

use super::App;
use super::call::{Answer, Call, Failure, Tries};
use super::guard::{QueueToken, Use};
use super::outcomes::Asked;

/// Locks the account and the reservation, and reads all that the rules ask for.
pub(super) const LOCK: &str = "
    WITH account AS MATERIALIZED (SELECT balance, entries FROM accounts WHERE user_id = $1 FOR UPDATE),
         booking AS MATERIALIZED (SELECT * FROM reservations WHERE reservation_id = $2 FOR UPDATE)
    SELECT now() AS now, t.status, t.expires_at, q.state, q.admitted_seq,
           coalesce(a.balance, 0) AS balance, coalesce(a.entries, 0) AS entries,
           b.user_id AS owner, b.concert_id, b.schedule_id, b.seat_ids, b.total, b.status AS reservation_status, b.held_at,
           b.hold_expires_at
    FROM queues q
    LEFT JOIN account a ON true
    LEFT JOIN booking b ON true
    LEFT JOIN queue_tokens t ON t.concert_id = q.concert_id AND t.seq = $4 AND t.token_id = $5
    WHERE q.concert_id = $3";

/// All that a payment writes: `$1` buyer, `$2` reservation, `$3` payment, `$4` amount, `$5` balance after it, `$6` number of its
/// entry, `$7` seats, `$8` concert, `$9` the body, `$10` place of the token that was shown, if it is live; else the buyer's live one is
/// searched for. A free seat is paid with no entry. Only this reservation's owner, which is locked, touches its seats.
pub(super) const PAY: &str = r#"
    WITH account AS (
        UPDATE accounts SET balance = $5, entries = $6 WHERE user_id = $1 AND $4::bigint > 0),
    entry AS (
        INSERT INTO ledger_entries (user_id, entry_no, entry_id, kind, amount, balance_after, reservation_id, at)
        SELECT $1::uuid, $6::bigint, $3::uuid, 'PAYMENT', -$4::bigint, $5::bigint, $2::uuid, now() WHERE $4 > 0),
    booking AS (
        UPDATE reservations SET status = 'PAID', payment_id = $3 WHERE reservation_id = $2),
    payment AS (
        INSERT INTO payments (payment_id, reservation_id, user_id, amount, balance, paid_at)
        VALUES ($3, $2, $1, $4, $5, now())),
    sold AS (
        UPDATE seats SET status = 'SOLD' WHERE seat_id = ANY($7::bigint[]) AND reservation_id = $2),
    token AS (
        UPDATE queue_tokens
        SET status = CASE status WHEN 'ACTIVE' THEN 'COMPLETED'::token_status ELSE 'LEFT' END, ended_at = now()
        WHERE concert_id = $8 AND ended_at IS NULL AND issued_at <= now() AND seq = coalesce($10, (
            SELECT t.seq FROM queue_tokens t WHERE t.user_id = $1 AND t.concert_id + 0 = $8 AND t.ended_at IS NULL)))
    INSERT INTO requests (request_id, user_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
    VALUES ($3, $1, 'payment.pay', 'SUCCEEDED', 201, $9::text::json, now(), now(), 'sync', 0, 0)"#;

/// Ends a hold without a payment: `$1` reservation, `$2` its status, `$3` its seats, `$4` its schedule.
const RELEASE: &str = "
    WITH booking AS (
        UPDATE reservations SET status = $2::text::reservation_status WHERE reservation_id = $1),
    freed AS (
        UPDATE seats SET status = 'AVAILABLE', reservation_id = NULL
        WHERE seat_id = ANY($3::bigint[]) AND reservation_id = $1)
    INSERT INTO seat_releases AS r (schedule_id, releases) VALUES ($4, 1)
    ON CONFLICT (schedule_id) DO UPDATE SET releases = r.releases + 1";

/// The whole charge, which is its own transaction: the account's row is locked by its update. `$1` buyer, `$2` the request, `$3`
/// amount, `$4` currency. Nothing happens if there is no such buyer.
pub(super) const CHARGE: &str = r#"
    WITH account AS (
        INSERT INTO accounts AS a (user_id, balance, entries)
        SELECT user_id, $3::bigint, 1 FROM users WHERE user_id = $1
        ON CONFLICT (user_id) DO UPDATE SET balance = a.balance + excluded.balance, entries = a.entries + 1
        RETURNING a.user_id, a.balance, a.entries),
    entry AS (
        INSERT INTO ledger_entries (user_id, entry_no, entry_id, kind, amount, balance_after, at)
        SELECT user_id, entries, $2::uuid, 'CHARGE', $3, balance, now() FROM account)
    INSERT INTO requests (request_id, user_id, kind, status, http_status, body, submitted_at, finished_at, topic, partition, "offset")
    SELECT $2, user_id, 'balance.charge', 'SUCCEEDED', 201,
           format('{"entry_id":"%s","amount":%s,"balance":%s,"currency":"%s"}', $2, $3, balance, $4::text)::json,
           now(), now(), 'sync', 0, 0
    FROM account
    RETURNING body::text"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChargeRequest {
    amount: i64,
}

/// Adds money to the balance.
pub(super) async fn charge(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_charge(&app, &call).await)
}

async fn try_charge(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let ChargeRequest { amount } = call.body()?;
    if let Some(token) = QueueToken::sent(app, call.headers())? {
        token.is_of(buyer)?;
        token.usable(&app.pool).await?;
    }
    if !(1..=CHARGE_MAX).contains(&amount) {
        let detail = format!("The amount is {amount}; charge 1 to {CHARGE_MAX} at a time.");
        return Err(Problem::invalid_request("/amount", detail).into());
    }
    let asked = call.asked(app, buyer, "balance.charge");
    let mut tries = Tries::default();
    loop {
        let result = charge_once(app, asked, amount).await;
        if !tries.again(&result) {
            return asked.or_first(&app.pool, result).await;
        }
    }
}

async fn charge_once(app: &App, asked: Asked, amount: i64) -> Result<Answer, Failure> {
    let charge = sqlx::query_scalar(CHARGE).bind(asked.user_id).bind(asked.request_id).bind(amount).bind(&app.currency);
    let body: Option<String> = charge.fetch_optional(&app.pool).await?;
    if let Some(body) = body {
        return Ok(Answer::new(201, body));
    }
    let detail = format!("There is no user {}; sign up first.", asked.user_id);
    let mut connection = app.pool.acquire().await?;
    Ok(asked.failed(&mut connection, &Problem::new(Slug::UserNotFound, detail)).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PayRequest {
    reservation_id: ReservationId,
}

#[derive(sqlx::FromRow)]
struct Locked {
    #[sqlx(flatten)]
    token: Use,
    balance: i64,
    entries: i64,
    owner: Option<UserId>,
    concert_id: Option<ConcertId>,
    schedule_id: Option<ScheduleId>,
    seat_ids: Option<Vec<SeatId>>,
    total: Option<i64>,
    reservation_status: Option<ReservationStatus>,
    held_at: Option<DateTime<Utc>>,
    hold_expires_at: Option<DateTime<Utc>>,
}

/// Pays a held reservation from the balance.
pub(super) async fn pay(State(app): State<Arc<App>>, call: Call) -> Response {
    call.answer(try_pay(&app, &call).await)
}

async fn try_pay(app: &App, call: &Call) -> Result<Answer, Failure> {
    let buyer = call.buyer(app)?;
    let PayRequest { reservation_id } = call.body()?;
    let token = QueueToken::of_buyer(app, call.headers(), buyer)?;
    let asked = call.asked(app, buyer, "payment.pay");
    let mut tries = Tries::default();
    loop {
        let result = pay_once(app, asked, &token, reservation_id).await;
        if !tries.again(&result) {
            return asked.or_first(&app.pool, result).await;
        }
    }
}

async fn pay_once(app: &App, asked: Asked, token: &QueueToken, id: ReservationId) -> Result<Answer, Failure> {
    let mut transaction = app.begin().await?;
    let locked = lock(&mut transaction, asked.user_id, token, id).await?;
    let booking = match locked.booking(id) {
        Some(booking) if booking.user_id == asked.user_id => booking,
        booking => {
            locked.token.usable(token)?;
            let answer = asked.failed(&mut transaction, &not_own(id, booking.is_some())).await?;
            transaction.commit().await?;
            return Ok(answer);
        }
    };
    token.is_for(booking.concert_id)?;
    // What is still held can be paid with any genuine token.
    if booking.status != ReservationStatus::Held {
        locked.token.usable(token)?;
    }
    let schedule = app.schedule_by(&mut transaction, booking.schedule_id).await?;
    let answer = match refused(&booking, &locked, &schedule) {
        None => write(app, &mut transaction, asked, booking, &locked, token, &schedule).await?,
        Some((problem, ended_as)) => {
            if let Some(status) = ended_as {
                release(&mut transaction, &booking, status).await?;
            }
            asked.failed(&mut transaction, &problem).await?
        }
    };
    transaction.commit().await?;
    Ok(answer)
}

async fn lock(
    connection: &mut PgConnection,
    buyer: UserId,
    token: &QueueToken,
    id: ReservationId,
) -> Result<Locked, Failure> {
    sqlx::query_as(LOCK)
        .bind(buyer)
        .bind(id)
        .bind(token.claims.concert_id)
        .bind(token.claims.seq)
        .bind(token.claims.jti)
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| Problem::new(Slug::QueueTokenInvalid, "The concert of this queue token is gone.").into())
}

impl Locked {
    fn booking(&self, reservation_id: ReservationId) -> Option<Reservation> {
        Some(Reservation {
            reservation_id,
            user_id: self.owner?,
            concert_id: self.concert_id?,
            schedule_id: self.schedule_id?,
            seat_ids: self.seat_ids.clone()?,
            total: self.total?,
            status: self.reservation_status?,
            held_at: self.held_at?,
            hold_expires_at: self.hold_expires_at?,
            payment_id: None,
        })
    }
}

fn not_own(id: ReservationId, exists: bool) -> Problem {
    let slug = if exists { Slug::ReservationOfAnotherBuyer } else { Slug::ReservationNotFound };
    Problem::new(slug, format!("Reservation {id} is not this buyer's; GET /v1/reservations lists those that are."))
}

/// Why it cannot be paid, and what becomes of the hold if it ends with that.
fn refused(booking: &Reservation, locked: &Locked, schedule: &Schedule) -> Option<(Problem, Option<&'static str>)> {
    let (slug, detail) = match booking.status {
        ReservationStatus::Held if locked.token.now() > booking.hold_expires_at => {
            let problem = Problem::new(Slug::ReservationExpired, "The hold has run out; hold seats again.");
            return Some((problem, Some("EXPIRED")));
        }
        ReservationStatus::Held => return insufficient(booking, locked.balance, schedule),
        ReservationStatus::Paid => (Slug::AlreadyPaid, "The reservation is paid; a refund gives its seats back."),
        ReservationStatus::Expired => (Slug::ReservationExpired, "The hold has run out; hold seats again."),
        ReservationStatus::Cancelled => (Slug::ReservationCancelled, "The hold was cancelled; hold seats again."),
        ReservationStatus::Refunded => (Slug::ReservationCancelled, "The reservation was refunded; hold seats again."),
    };
    Some((Problem::new(slug, detail), None))
}

fn insufficient(booking: &Reservation, balance: i64, schedule: &Schedule) -> Option<(Problem, Option<&'static str>)> {
    let required = booking.total;
    if balance >= required {
        return None;
    }
    let detail =
        format!("The balance is {balance} and the seats cost {required}: charge {} or more.", required - balance);
    let problem = Problem::new(Slug::InsufficientBalance, detail).with("balance", balance).with("required", required);
    match schedule.on_payment_failure {
        PaymentFailurePolicy::KeepHold => Some((problem, None)),
        PaymentFailurePolicy::ReleaseHold => {
            let problem = problem.with("reservation_id", booking.reservation_id.to_string());
            Some((problem.with("seats_released", true), Some("CANCELLED")))
        }
    }
}

async fn release(connection: &mut PgConnection, booking: &Reservation, status: &str) -> Result<(), sqlx::Error> {
    sqlx::query(RELEASE)
        .bind(booking.reservation_id)
        .bind(status)
        .bind(&booking.seat_ids)
        .bind(booking.schedule_id)
        .execute(connection)
        .await?;
    Ok(())
}

async fn write(
    app: &App,
    connection: &mut PgConnection,
    asked: Asked,
    booking: Reservation,
    locked: &Locked,
    token: &QueueToken,
    schedule: &Schedule,
) -> Result<Answer, Failure> {
    let payment_id = PaymentId::from(asked.request_id);
    let balance = locked.balance - booking.total;
    let paid = Reservation { status: ReservationStatus::Paid, payment_id: Some(payment_id), ..booking };
    let body = PaymentBody {
        payment_id,
        status: PaymentStatus::Succeeded,
        amount: paid.total,
        balance,
        currency: app.currency.clone(),
        reservation: paid.body(schedule, &app.currency),
    };
    let body = serde_json::to_string(&body).unwrap_or_default();
    sqlx::query(PAY)
        .bind(asked.user_id)
        .bind(paid.reservation_id)
        .bind(payment_id)
        .bind(paid.total)
        .bind(balance)
        .bind(locked.entries + 1)
        .bind(&paid.seat_ids)
        .bind(paid.concert_id)
        .bind(&body)
        .bind(locked.token.live().then_some(token.claims.seq))
        .execute(connection)
        .await?;
    Ok(Answer::new(201, body))
}
