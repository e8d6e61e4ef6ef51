//! Reservations, as far as the guard of a payment asks.

use common::bodies::ReservationStatus;
use common::ids::{ConcertId, ReservationId, UserId};
use sqlx::PgPool;

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

/// What the guard of a payment asks of a reservation.
///
/// # Errors
/// What the database says.
pub(crate) async fn hold_state(pool: &PgPool, reservation: ReservationId) -> Result<Option<HoldState>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT user_id AS "user_id: UserId", concert_id AS "concert_id: ConcertId",
                  status AS "status: ReservationStatus"
           FROM reservations WHERE reservation_id = $1"#,
        reservation.0
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| HoldState {
        user_id: row.user_id,
        concert_id: row.concert_id,
        is_held: row.status == ReservationStatus::Held,
    }))
}
