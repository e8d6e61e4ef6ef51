//! Records of `boxoffice.reservations.v1`, keyed by schedule.

use serde::{Deserialize, Serialize};

use super::{Message, Relations, command};
use crate::forms::object;
use crate::ids::{RequestId, ScheduleId, SeatId, UserId};
use crate::topics;

/// `reservation.hold`: a buyer wants seats, all or none. Exactly one of `seat_ids`, `seats` and `best_available`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// These seats, by id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat_ids: Option<Vec<SeatId>>,
    /// These seats, by label (`section-row-number`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seats: Option<Vec<String>>,
    /// The best that there are.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "object")]
    pub best_available: Option<BestAvailable>,
    /// Go on to pay at once; if that fails, the hold is released.
    #[serde(default, skip_serializing_if = "is_false")]
    pub pay: bool,
}

/// How many seats, and in which section (None: in any).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BestAvailable {
    /// How many seats.
    pub count: i64,
    /// The section's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
}

/// The most seats that one hold may name.
pub const SEATS_PER_HOLD_MAX: usize = 20;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Message for Hold {
    const TYPE: &'static str = "reservation.hold";
    const TOPIC: &'static str = topics::RESERVATIONS;

    fn key(&self) -> String {
        self.schedule_id.to_string()
    }
}

impl Relations for Hold {}

command! {
    /// All that the reservation worker reads.
    ReservationCommand { Hold }
}
