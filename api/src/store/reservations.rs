//! Reservations, as far as the guard of a payment asks.

use std::collections::HashMap;

use common::bodies::ReservationStatus;
use common::ids::{ConcertId, ReservationId, UserId};
use sqlx::PgPool;
use uuid::Uuid;

/// Whose a reservation is, of which concert, and whether it is still held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HoldState {
    /// The buyer.
    pub(crate) user_id: UserId,
    /// The concert.
    pub(crate) concert_id: ConcertId,
    /// HELD.
    pub(crate) is_held: bool,
}

/// What the guard of a payment asks of reservations; those that do not exist are missing.
///
/// # Errors
/// What the database says.
pub(crate) async fn hold_states(
    pool: &PgPool,
    reservations: &[ReservationId],
) -> Result<HashMap<ReservationId, HoldState>, sqlx::Error> {
    let ids: Vec<Uuid> = reservations.iter().map(|reservation| reservation.0).collect();
    let rows = sqlx::query!(
        r#"SELECT reservation_id AS "reservation_id: ReservationId", user_id AS "user_id: UserId",
                  concert_id AS "concert_id: ConcertId", status AS "status: ReservationStatus"
           FROM reservations WHERE reservation_id = ANY($1)"#,
        &ids
    )
    .fetch_all(pool)
    .await?;
    let state =
        |user_id, concert_id, status| HoldState { user_id, concert_id, is_held: status == ReservationStatus::Held };
    Ok(rows.into_iter().map(|row| (row.reservation_id, state(row.user_id, row.concert_id, row.status))).collect())
}
