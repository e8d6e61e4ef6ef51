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

    /// A reservation is made, or changes. One that is known to have ended is held no more, whatever is told again. The end of one that is not
    /// known takes nobody's place: else each such payment makes forget the oldest one that is held, which is paid for next.
    pub(crate) fn told(&self, id: ReservationId, told: KnownReservation) {
        let known = self.get(id);
        let is_news = match told.held_until {
            Some(_) => known.is_none_or(|known| known.held_until.is_some()),
            None => known.is_some(),
        };
        if is_news {
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::fifo::SHARDS;

    fn id(n: usize) -> ReservationId {
        ReservationId(Uuid::from_u128(n as u128))
    }

    fn reservation(held_until: Option<DateTime<Utc>>) -> KnownReservation {
        let (user_id, concert_id, schedule_id) = (UserId(Uuid::from_u128(1)), ConcertId(1), ScheduleId(1));
        KnownReservation { user_id, concert_id, schedule_id, held_until }
    }

    #[test]
    fn one_that_has_ended_is_not_held_again() {
        let (reservations, held) = (Reservations::new(1), reservation(Some(Utc::now())));
        reservations.told(id(1), held);
        assert_eq!(reservations.get(id(1)), Some(held));
        assert_eq!(reservations.ended(id(1)), Some(held.schedule_id));
        reservations.told(id(1), held);
        assert_eq!(reservations.get(id(1)), Some(reservation(None)));
    }

    #[test]
    fn payments_of_what_is_forgotten_make_nothing_forgotten() {
        let (entries, held) = (64 * SHARDS, reservation(Some(Utc::now())));
        let reservations = Reservations::new(entries);
        for n in 0..2 * entries {
            reservations.told(id(n), held);
        }
        let known = |n: &usize| reservations.get(id(*n)).is_some();
        let before: Vec<usize> = (0..2 * entries).filter(known).collect();
        for n in 0..2 * entries {
            reservations.told(id(n), reservation(None));
        }
        assert_eq!((0..2 * entries).filter(known).collect::<Vec<_>>(), before);
    }
}
