//! Reservations of which the results topic told: whose, of which concert, held until when. A payment's queue token is checked
//! against them without asking the database.

use chrono::{DateTime, Utc};
use common::ids::{ConcertId, ReservationId, ScheduleId, UserId};

use crate::fifo::Newest;

/// What was told of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownReservation {
    /// The buyer.
    pub(crate) user_id: UserId,
    /// The concert.
    pub(crate) concert_id: ConcertId,
    /// The schedule.
    pub(crate) schedule_id: ScheduleId,
    /// The end of the hold; None: it is held no more.
    pub(crate) held_until: Option<DateTime<Utc>>,
}

/// The last ones.
pub(crate) struct Reservations(Newest<ReservationId, KnownReservation>);

impl Reservations {
    /// At most `entries` of them.
    pub(crate) fn new(entries: usize) -> Self {
        Self(Newest::new(entries))
    }

    /// What was told of a reservation.
    pub(crate) fn get(&self, reservation: ReservationId) -> Option<KnownReservation> {
        self.0.get(&reservation)
    }

    /// A reservation is made, or changes. One that has ended is held no more, whatever is told again.
    pub(crate) fn told(&self, id: ReservationId, told: KnownReservation) {
        let ended = told.held_until.is_some() && self.get(id).is_some_and(|known| known.held_until.is_none());
        if !ended {
            self.0.insert(id, told);
        }
    }

    /// A reservation has ended; its schedule, if it is known.
    pub(crate) fn ended(&self, id: ReservationId) -> Option<ScheduleId> {
        let known = self.get(id)?;
        self.0.insert(id, KnownReservation { held_until: None, ..known });
        Some(known.schedule_id)
    }

    /// Reservations that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
