//! The bodies that buyers and operators are answered with, wherever they are built: a worker that decides an outcome and
//! the api that reads a table write the same shapes.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalogue::Schedule;
use crate::ids::{ConcertId, EntryId, PaymentId, ReservationId, ScheduleId, SeatId, TokenId, UserId};
use crate::messages::tokens::QueueState;

/// What has become of a queue token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "token_status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TokenStatus {
    /// In line.
    Waiting,
    /// Admitted.
    Active,
    /// Ended by a payment.
    Completed,
    /// Ended by time.
    Expired,
    /// Given back.
    Left,
}

/// A live queue token, as its buyer sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenBody {
    /// The string for the `Queue-Token` header.
    pub queue_token: String,
    /// Its id.
    pub token_id: TokenId,
    /// The concert.
    pub concert_id: ConcertId,
    /// WAITING or ACTIVE.
    pub status: TokenStatus,
    /// Whether the buyer may enter.
    pub admitted: bool,
    /// 0 once admitted, 1 for the next in line.
    pub position: i64,
    /// 0 once admitted; null when nobody can know.
    pub estimated_wait_seconds: Option<i64>,
    /// When the buyer joined.
    pub issued_at: DateTime<Utc>,
    /// Until when it may be used; null while waiting.
    pub expires_at: Option<DateTime<Utc>>,
    /// When to ask again, in seconds; null once admitted.
    pub poll_after_seconds: Option<i64>,
    /// The queue's state.
    pub queue_state: QueueState,
}

/// What a token body says that does not change while the token lives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenIdentity {
    /// The string for the `Queue-Token` header.
    pub queue_token: String,
    /// Its id.
    pub token_id: TokenId,
    /// The concert.
    pub concert_id: ConcertId,
    /// When the buyer joined.
    pub issued_at: DateTime<Utc>,
}

impl TokenBody {
    /// The body of an admitted token.
    pub fn active(token: TokenIdentity, expires_at: DateTime<Utc>, queue_state: QueueState) -> Self {
        Self {
            queue_token: token.queue_token,
            token_id: token.token_id,
            concert_id: token.concert_id,
            status: TokenStatus::Active,
            admitted: true,
            position: 0,
            estimated_wait_seconds: Some(0),
            issued_at: token.issued_at,
            expires_at: Some(expires_at),
            poll_after_seconds: None,
            queue_state,
        }
    }

    /// The body of a waiting token: `position` from 1, the queue admitting `rate_per_minute`.
    pub fn waiting(
        token: TokenIdentity,
        position: i64,
        queue_state: QueueState,
        rate_per_minute: i64,
        max_active: i64,
    ) -> Self {
        let wait = estimated_wait_seconds(position, queue_state, rate_per_minute, max_active);
        let poll_after = poll_after_seconds(wait, token.token_id);
        Self {
            queue_token: token.queue_token,
            token_id: token.token_id,
            concert_id: token.concert_id,
            status: TokenStatus::Waiting,
            admitted: false,
            position,
            estimated_wait_seconds: wait,
            issued_at: token.issued_at,
            expires_at: None,
            poll_after_seconds: Some(poll_after),
            queue_state,
        }
    }
}

/// Seconds until the buyer at `position` is admitted at the queue's rate; None when nobody can know.
fn estimated_wait_seconds(position: i64, state: QueueState, rate_per_minute: i64, max_active: i64) -> Option<i64> {
    let admits = matches!(state, QueueState::Open | QueueState::Draining) && max_active > 0 && rate_per_minute > 0;
    admits.then(|| position.saturating_mul(60).saturating_add(rate_per_minute - 1) / rate_per_minute)
}

/// The 5-second rhythm, 1 or 2 seconds when the turn is near; spread, so that those who joined together do not ask together.
fn poll_after_seconds(wait: Option<i64>, token: TokenId) -> i64 {
    let spread = i64::from(token.0.as_bytes()[15]) + Utc::now().timestamp();
    match wait {
        Some(seconds) if seconds <= 5 => 1 + spread % 2,
        _ => 4 + spread % 3,
    }
}

/// The answer to leaving a queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeftBody {
    /// The token that was given back.
    pub token_id: TokenId,
    /// Always LEFT.
    pub status: TokenStatus,
}

/// What has become of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "reservation_status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReservationStatus {
    /// Its seats are kept until it is paid or ends.
    Held,
    /// Its seats are sold to the buyer.
    Paid,
    /// The hold ran out.
    Expired,
    /// The buyer gave it back, or its payment failed.
    Cancelled,
    /// It was paid, and the money given back.
    Refunded,
}

/// A seat of a reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReservedSeat {
    /// Its id.
    pub seat_id: SeatId,
    /// `section-row-number`.
    pub label: String,
    /// In minor units.
    pub price: i64,
}

/// A reservation, as its buyer sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReservationBody {
    /// Its id.
    pub reservation_id: ReservationId,
    /// What has become of it.
    pub status: ReservationStatus,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The concert.
    pub concert_id: ConcertId,
    /// Its seats.
    pub seats: Vec<ReservedSeat>,
    /// The sum of the prices, in minor units.
    pub total: i64,
    /// The deployment's currency.
    pub currency: String,
    /// Until when it can be paid.
    pub hold_expires_at: DateTime<Utc>,
    /// While HELD.
    pub payment_required: bool,
    /// Null before it is paid.
    pub payment_id: Option<PaymentId>,
}

/// A row of `reservations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Its id.
    pub reservation_id: ReservationId,
    /// The buyer.
    pub user_id: UserId,
    /// The concert.
    pub concert_id: ConcertId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// Its seats.
    pub seat_ids: Vec<SeatId>,
    /// The sum of the prices, in minor units.
    pub total: i64,
    /// What has become of it.
    pub status: ReservationStatus,
    /// When it was made.
    pub held_at: DateTime<Utc>,
    /// Until when it can be paid.
    pub hold_expires_at: DateTime<Utc>,
    /// The payment, once there is one.
    pub payment_id: Option<PaymentId>,
}

impl Reservation {
    /// The body; `schedule` is the reservation's own.
    pub fn body(&self, schedule: &Schedule, currency: &str) -> ReservationBody {
        let seats = self.seat_ids.iter().filter_map(|id| schedule.layout.seat(*id));
        ReservationBody {
            reservation_id: self.reservation_id,
            status: self.status,
            schedule_id: self.schedule_id,
            concert_id: self.concert_id,
            seats: seats
                .map(|seat| ReservedSeat { seat_id: seat.seat_id, label: seat.label(), price: seat.section.price })
                .collect(),
            total: self.total,
            currency: currency.to_owned(),
            hold_expires_at: self.hold_expires_at,
            payment_required: self.status == ReservationStatus::Held,
            payment_id: self.payment_id,
        }
    }
}

/// What has become of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "payment_status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PaymentStatus {
    /// The money was taken.
    Succeeded,
    /// The money was given back.
    Refunded,
}

/// A payment, as its buyer sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PaymentBody {
    /// Its id.
    pub payment_id: PaymentId,
    /// What has become of it.
    pub status: PaymentStatus,
    /// In minor units.
    pub amount: i64,
    /// The buyer's balance right after it (or its refund), in minor units.
    pub balance: i64,
    /// The deployment's currency.
    pub currency: String,
    /// What was paid.
    pub reservation: ReservationBody,
}

/// The answer to a charge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChargeBody {
    /// The ledger entry.
    pub entry_id: EntryId,
    /// In minor units.
    pub amount: i64,
    /// The buyer's balance right after it, in minor units.
    pub balance: i64,
    /// The deployment's currency.
    pub currency: String,
}

/// Why the balance changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "entry_kind", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryKind {
    /// Money was added.
    Charge,
    /// A reservation was paid: the amount is negative.
    Payment,
    /// A payment was given back.
    Refund,
}

/// A queue, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QueueBody {
    /// The concert.
    pub concert_id: ConcertId,
    /// Whether it takes joins and admits.
    pub state: QueueState,
    /// Admissions a minute.
    pub rate_per_minute: i64,
    /// Admissions that may come at once after a quiet time.
    pub burst: i64,
    /// Buyers inside at the same time, at most.
    pub max_active: i64,
    /// How long an admitted buyer may stay.
    pub active_seconds: i64,
    /// Buyers in line.
    pub waiting: i64,
    /// Buyers inside.
    pub active: i64,
    /// All that were ever admitted.
    pub admitted_total: i64,
    /// All that ever joined.
    pub joined_total: i64,
    /// How long the first in line has waited; null when nobody waits.
    pub oldest_wait_seconds: Option<i64>,
    /// Admissions in the last 60 seconds.
    pub admitted_per_minute: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_place_over_the_rate_and_unknown_when_nobody_is_admitted() {
        assert_eq!(estimated_wait_seconds(1, QueueState::Open, 1, 10), Some(60));
        assert_eq!(estimated_wait_seconds(7, QueueState::Draining, 60, 10), Some(7));
        assert_eq!(estimated_wait_seconds(1, QueueState::Open, 600, 10), Some(1));
        assert_eq!(estimated_wait_seconds(1, QueueState::Paused, 600, 10), None);
        assert_eq!(estimated_wait_seconds(1, QueueState::Closed, 600, 10), None);
        assert_eq!(estimated_wait_seconds(1, QueueState::Open, 600, 0), None);
    }

    #[test]
    fn pollers_keep_the_five_second_rhythm_and_hurry_when_their_turn_is_near() {
        for byte in 0..=u8::MAX {
            let token = TokenId(uuid::Uuid::from_bytes([byte; 16]));
            assert!((4..=6).contains(&poll_after_seconds(Some(6), token)));
            assert!((4..=6).contains(&poll_after_seconds(None, token)));
            assert!((1..=2).contains(&poll_after_seconds(Some(5), token)));
        }
    }
}
