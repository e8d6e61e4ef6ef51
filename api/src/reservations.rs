//! Reservations of which the results topic told: whose, of which concert, held until when. A payment's queue token is checked
//! against them without asking the database.

use chrono::{DateTime, Utc};
use common::ids::{ConcertId, ReservationId, ScheduleId, UserId};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

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
pub(crate) struct Reservations(Cache<ReservationId, KnownReservation>);

impl Reservations {
    /// At most `entries` of them.
    pub(crate) fn new(entries: u64) -> Self {
        // The newest are asked for next. The default policy would turn them away for those that were asked for before.
        Self(Cache::builder().max_capacity(entries).eviction_policy(EvictionPolicy::lru()).build())
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
    pub(crate) fn len(&self) -> u64 {
        self.0.entry_count()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_newest_are_remembered_however_often_the_old_ones_were_asked_for() {
        let (reservations, half) = (Reservations::new(100), 100);
        let id = |n: u128| ReservationId(Uuid::from_u128(n));
        let known = KnownReservation {
            user_id: UserId(Uuid::nil()),
            concert_id: ConcertId(1),
            schedule_id: ScheduleId(1),
            held_until: None,
        };
        for n in 0..2 * half {
            reservations.told(id(n), known);
            for _ in 0..5 {
                reservations.get(id(n % half));
            }
            reservations.0.run_pending_tasks();
        }
        assert!((half..2 * half).all(|n| reservations.get(id(n)).is_some()));
    }
}
