//! The rules of holding seats. Pure: what is known goes in, a reservation or a problem comes out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use common::bodies::{Reservation, ReservationStatus};
use common::catalogue::Schedule;
use common::ids::{ReservationId, ScheduleId, SeatId, UserId};
use common::messages::reservations::{BestAvailable, Hold, SEATS_PER_HOLD_MAX};
use common::problems::{Problem, Slug};
use serde_json::json;

use super::seat_map::SeatMap;
use crate::runtime::word::Clock;

/// What the batch touches, as the database has it; [`decide`] moves it on, command by command.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    /// Those of the batch's buyers that exist.
    pub(crate) users: HashSet<UserId>,
    /// Those of the batch's schedules that exist.
    pub(crate) schedules: HashMap<ScheduleId, Arc<Schedule>>,
    /// Whether a seat that a hold names is free; nobody else takes it meanwhile. Those that a map has as free may be missing.
    pub(crate) free: HashMap<SeatId, bool>,
    /// Free seats of some schedules; all of those in which somebody wants the best.
    pub(crate) maps: HashMap<ScheduleId, SeatMap>,
    /// Live seats (HELD or PAID) of a buyer in a schedule.
    pub(crate) live: HashMap<(ScheduleId, UserId), i64>,
}

impl State {
    pub(crate) fn is_free(&self, seat: SeatId, schedule: &Schedule) -> bool {
        debug_assert!(schedule.layout.place_of(seat).is_some());
        let map = self.maps.get(&schedule.schedule_id);
        self.free.get(&seat).copied().unwrap_or_else(|| map.is_some_and(|map| map.is_free(&schedule.layout, seat)))
    }

    fn take(&mut self, seats: &[SeatId], schedule: &Schedule, buyer: UserId) {
        for seat in seats {
            self.free.insert(*seat, false);
            if let Some(map) = self.maps.get_mut(&schedule.schedule_id) {
                map.set(&schedule.layout, *seat, false);
            }
        }
        *self.live.entry((schedule.schedule_id, buyer)).or_default() += count(seats);
    }

    /// Takes the seats for this hold, from `held_at` on.
    pub(crate) fn hold(
        &mut self,
        hold: &Hold,
        schedule: &Schedule,
        seat_ids: Vec<SeatId>,
        held_at: DateTime<Utc>,
    ) -> Reservation {
        self.take(&seat_ids, schedule, hold.user_id);
        Reservation {
            reservation_id: ReservationId::from(hold.request_id),
            user_id: hold.user_id,
            concert_id: schedule.concert_id,
            schedule_id: schedule.schedule_id,
            total: schedule.layout.total_price(&seat_ids),
            seat_ids,
            status: ReservationStatus::Held,
            held_at,
            hold_expires_at: held_at + schedule.hold_time(),
            payment_id: None,
        }
    }
}

/// The three ways of saying which seats.
enum Wish<'a> {
    Seats(&'a [SeatId]),
    Labels(&'a [String]),
    Best(&'a BestAvailable),
}

/// Holds the seats that `hold` asks for, all or none.
///
/// # Errors
/// The problem that its buyer is told; nothing has changed.
pub(crate) fn decide(state: &mut State, hold: &Hold, clock: Clock) -> Result<Reservation, Problem> {
    if !state.users.contains(&hold.user_id) {
        return Err(Problem::new(Slug::UserNotFound, format!("There is no user {}; sign up first.", hold.user_id)));
    }
    let schedule = state.schedules.get(&hold.schedule_id).cloned().ok_or_else(|| {
        let detail =
            format!("There is no schedule {}; GET the concert's schedules for those there are.", hold.schedule_id);
        Problem::new(Slug::ScheduleNotFound, detail)
    })?;
    let wish = wish(hold)?;
    if schedule.starts_at <= clock.asked_at {
        let detail = format!("The schedule began at {}; choose another date.", schedule.starts_at.to_rfc3339());
        return Err(Problem::new(Slug::SalesEnded, detail));
    }
    let seats = match wish {
        Wish::Seats(seats) => named(state, &schedule, hold, seats.to_vec())?,
        Wish::Labels(labels) => named(state, &schedule, hold, find(&schedule, labels)?)?,
        Wish::Best(best) => choose(state, &schedule, hold, best)?,
    };
    Ok(state.hold(hold, &schedule, seats, clock.now))
}

/// Checks that the hold says in one way, and sensibly, which seats it wants.
fn wish(hold: &Hold) -> Result<Wish<'_>, Problem> {
    match (&hold.seat_ids, &hold.seats, &hold.best_available) {
        (Some(seats), None, None) => each_once("/seat_ids", seats).map(|()| Wish::Seats(seats)),
        (None, Some(labels), None) => each_once("/seats", labels).map(|()| Wish::Labels(labels)),
        (None, None, Some(best)) if sensible(best.count) => Ok(Wish::Best(best)),
        (None, None, Some(_)) => {
            Err(Problem::invalid_request("/best_available/count", format!("Ask for 1 to {SEATS_PER_HOLD_MAX} seats.")))
        }
        _ => {
            Err(Problem::invalid_request("", "Say in exactly one way which seats: seat_ids, seats or best_available."))
        }
    }
}

fn sensible(count: i64) -> bool {
    usize::try_from(count).is_ok_and(|count| (1..=SEATS_PER_HOLD_MAX).contains(&count))
}

fn each_once<T: Eq + std::hash::Hash>(pointer: &str, seats: &[T]) -> Result<(), Problem> {
    if seats.is_empty() || seats.len() > SEATS_PER_HOLD_MAX {
        return Err(Problem::invalid_request(pointer, format!("Name 1 to {SEATS_PER_HOLD_MAX} seats.")));
    }
    let distinct: HashSet<&T> = seats.iter().collect();
    if distinct.len() < seats.len() {
        return Err(Problem::invalid_request(pointer, "Name each seat once."));
    }
    Ok(())
}

fn find(schedule: &Schedule, labels: &[String]) -> Result<Vec<SeatId>, Problem> {
    let seats: Vec<SeatId> = labels.iter().filter_map(|label| schedule.layout.find(label)).collect();
    if seats.len() == labels.len() {
        return Ok(seats);
    }
    let unknown: Vec<&String> = labels.iter().filter(|label| schedule.layout.find(label).is_none()).collect();
    Err(Problem::new(
        Slug::SeatNotFound,
        "Some of the seats do not exist; GET the schedule's seats for those there are.",
    )
    .with("seats", json!(unknown)))
}

/// The named seats, if they exist and are free and the buyer may have them.
fn named(state: &State, schedule: &Schedule, hold: &Hold, seats: Vec<SeatId>) -> Result<Vec<SeatId>, Problem> {
    let unknown: Vec<&SeatId> = seats.iter().filter(|seat| schedule.layout.place_of(**seat).is_none()).collect();
    if !unknown.is_empty() {
        let detail = "Some of the seats are not in this schedule; GET its seats for those there are.";
        return Err(Problem::new(Slug::SeatNotFound, detail).with("seat_ids", json!(unknown)));
    }
    within_limit(state, schedule, hold, count(&seats))?;
    let gone: Vec<&SeatId> = seats.iter().filter(|seat| !state.is_free(**seat, schedule)).collect();
    if !gone.is_empty() {
        let detail = "Somebody was first; choose others, nothing is held.";
        return Err(Problem::new(Slug::SeatUnavailable, detail).with("seat_ids", json!(gone)));
    }
    Ok(seats)
}

fn choose(state: &State, schedule: &Schedule, hold: &Hold, best: &BestAvailable) -> Result<Vec<SeatId>, Problem> {
    let section = best.section.as_deref();
    if let Some(name) = section.filter(|name| schedule.layout.sections().iter().all(|known| known.name != *name)) {
        let detail = format!("The schedule has no section `{name}`; GET its seats for the sections there are.");
        return Err(Problem::new(Slug::SeatNotFound, detail));
    }
    within_limit(state, schedule, hold, best.count)?;
    let map = state.maps.get(&schedule.schedule_id);
    let wanted = usize::try_from(best.count).unwrap_or_default();
    map.and_then(|map| map.best(&schedule.layout, wanted, section)).ok_or_else(|| {
        let available = map.map_or(0, |map| map.free(section));
        let detail =
            format!("{available} seats are left and {wanted} were asked for; ask for fewer or look elsewhere.");
        Problem::new(Slug::SoldOut, detail).with("available", available)
    })
}

fn within_limit(state: &State, schedule: &Schedule, hold: &Hold, wanted: i64) -> Result<(), Problem> {
    let live = state.live.get(&(schedule.schedule_id, hold.user_id)).copied().unwrap_or_default();
    let limit = i64::from(schedule.max_seats_per_buyer);
    if live + wanted <= limit {
        return Ok(());
    }
    let detail = format!("One buyer may have {limit} seats of this schedule, and you have {live}.");
    Err(Problem::new(Slug::ReservationLimitExceeded, detail).with("limit", limit).with("live", live))
}

fn count(seats: &[SeatId]) -> i64 {
    i64::try_from(seats.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
pub(super) mod tests;
