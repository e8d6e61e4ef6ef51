//! What buyers have: reservations, payments, balances, ledger entries.

use chrono::{DateTime, Utc};
use common::bodies::{EntryKind, PaymentStatus, Reservation, ReservationStatus};
use common::ids::{ConcertId, EntryId, PaymentId, ReservationId, ScheduleId, SeatId, UserId};
use sqlx::PgPool;

use crate::cursor::ReservationCursor;

/// A page of a buyer's reservations, newest first, after the one at `before`.
///
/// # Errors
/// What the database says.
pub(crate) async fn reservations(
    pool: &PgPool,
    user: UserId,
    before: Option<ReservationCursor>,
    limit: i64,
) -> Result<Vec<Reservation>, sqlx::Error> {
    sqlx::query_as!(
        Reservation,
        r#"SELECT reservation_id AS "reservation_id: ReservationId", user_id AS "user_id: UserId",
                  concert_id AS "concert_id: ConcertId", schedule_id AS "schedule_id: ScheduleId",
                  seat_ids AS "seat_ids: Vec<SeatId>", total, status AS "status: ReservationStatus", held_at,
                  hold_expires_at, payment_id AS "payment_id: PaymentId"
           FROM reservations
           WHERE user_id = $1
             AND ($2::timestamptz IS NULL OR held_at <= $2 AND (held_at, reservation_id) < ($2, $3))
           ORDER BY held_at DESC, reservation_id DESC
           LIMIT $4"#,
        user.0,
        before.map(|cursor| cursor.held_at),
        before.map(|cursor| cursor.reservation_id),
        limit
    )
    .fetch_all(pool)
    .await
}

/// One reservation of this buyer.
///
/// # Errors
/// What the database says.
pub(crate) async fn reservation(
    pool: &PgPool,
    user: UserId,
    id: ReservationId,
) -> Result<Option<Reservation>, sqlx::Error> {
    sqlx::query_as!(
        Reservation,
        r#"SELECT reservation_id AS "reservation_id: ReservationId", user_id AS "user_id: UserId",
                  concert_id AS "concert_id: ConcertId", schedule_id AS "schedule_id: ScheduleId",
                  seat_ids AS "seat_ids: Vec<SeatId>", total, status AS "status: ReservationStatus", held_at,
                  hold_expires_at, payment_id AS "payment_id: PaymentId"
           FROM reservations
           WHERE reservation_id = $1 AND user_id = $2"#,
        id.0,
        user.0
    )
    .fetch_optional(pool)
    .await
}

/// A row of `payments`, and what was paid as it was at the same moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Payment {
    /// In minor units.
    pub(crate) amount: i64,
    /// The buyer's balance right after it, or after its refund.
    pub(crate) balance: i64,
    /// What has become of it.
    pub(crate) status: PaymentStatus,
    /// What was paid.
    pub(crate) reservation: Reservation,
}

/// One payment of this buyer.
///
/// # Errors
/// What the database says.
pub(crate) async fn payment(pool: &PgPool, user: UserId, id: PaymentId) -> Result<Option<Payment>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT p.amount, p.balance, p.status AS "payment_status: PaymentStatus",
                  r.reservation_id AS "reservation_id: ReservationId", r.user_id AS "user_id: UserId",
                  r.concert_id AS "concert_id: ConcertId", r.schedule_id AS "schedule_id: ScheduleId",
                  r.seat_ids AS "seat_ids: Vec<SeatId>", r.total, r.status AS "status: ReservationStatus", r.held_at,
                  r.hold_expires_at, r.payment_id AS "payment_id: PaymentId"
           FROM payments p JOIN reservations r USING (reservation_id)
           WHERE p.payment_id = $1 AND p.user_id = $2"#,
        id.0,
        user.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| Payment {
        amount: row.amount,
        balance: row.balance,
        status: row.payment_status,
        reservation: Reservation {
            reservation_id: row.reservation_id,
            user_id: row.user_id,
            concert_id: row.concert_id,
            schedule_id: row.schedule_id,
            seat_ids: row.seat_ids,
            total: row.total,
            status: row.status,
            held_at: row.held_at,
            hold_expires_at: row.hold_expires_at,
            payment_id: row.payment_id,
        },
    }))
}

/// A buyer's balance in minor units; None before the first charge.
///
/// # Errors
/// What the database says.
pub(crate) async fn balance(pool: &PgPool, user: UserId) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar!("SELECT balance FROM accounts WHERE user_id = $1", user.0).fetch_optional(pool).await
}

/// A row of `ledger_entries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryRow {
    /// Its number in the account, from 1.
    pub(crate) entry_no: i64,
    /// Its id.
    pub(crate) entry_id: EntryId,
    /// Why the balance changed.
    pub(crate) kind: EntryKind,
    /// By how much, in minor units; a debit is negative.
    pub(crate) amount: i64,
    /// The balance after it.
    pub(crate) balance_after: i64,
    /// What was paid or refunded.
    pub(crate) reservation_id: Option<ReservationId>,
    /// When.
    pub(crate) at: DateTime<Utc>,
}

/// A page of a buyer's ledger, newest first, after the entry with the number `before`.
///
/// # Errors
/// What the database says.
pub(crate) async fn entries(
    pool: &PgPool,
    user: UserId,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<EntryRow>, sqlx::Error> {
    sqlx::query_as!(
        EntryRow,
        r#"SELECT entry_no, entry_id AS "entry_id: EntryId", kind AS "kind: EntryKind", amount, balance_after,
                  reservation_id AS "reservation_id: ReservationId", at
           FROM ledger_entries
           WHERE user_id = $1 AND entry_no < $2
           ORDER BY entry_no DESC
           LIMIT $3"#,
        user.0,
        before.unwrap_or(i64::MAX),
        limit
    )
    .fetch_all(pool)
    .await
}
