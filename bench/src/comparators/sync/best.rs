//! The best available seats, chosen from a list of free ones in memory, so that requests at the same time do not all want the same
//! seats, and nobody reads past all that are taken. The list only proposes: a seat is taken if its row says that it is free. One
//! inexactness is left: when the last seats are proposed to a transaction that then fails, somebody else was told `sold-out`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::catalogue::Schedule;
use common::ids::{ScheduleId, SeatId};
use common::seating::Layout;
use sqlx::PgConnection;

/// Schedules whose free seats are remembered before it starts afresh.
const LISTS_MAX: usize = 500;

const FREE: &str =
    "SELECT seat_id FROM seats WHERE seat_id BETWEEN $1 AND $2 AND status = 'AVAILABLE' ORDER BY seat_id";

/// The free seats of the schedules in which somebody wanted the best.
#[derive(Default)]
pub(super) struct BestSeats {
    lists: Mutex<HashMap<ScheduleId, Arc<List>>>,
}

/// One schedule's.
#[derive(Default)]
struct List {
    seats: Mutex<Seats>,
    /// One reads at a time; who comes meanwhile waits for it.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Seats {
    /// None: they have to be read.
    free: Option<FreeSeats>,
    /// The number of releases that `free` knows of.
    releases: i64,
    /// Proposed, and not committed yet: a reading finds them free.
    proposed: HashSet<SeatId>,
}

/// What may be taken; dropping it ends the proposal.
pub(super) enum Choice {
    /// These seats.
    Seats(Proposal),
    /// There are only so many.
    TooFew(usize),
}

/// Seats that nobody else is offered meanwhile.
pub(super) struct Proposal {
    list: Arc<List>,
    /// In the order of their ids.
    pub(super) seats: Vec<SeatId>,
    taken: bool,
}

impl BestSeats {
    /// Chooses `count` seats. `releases` tells how often seats of the schedule were freed.
    pub(super) async fn choose(
        &self,
        connection: &mut PgConnection,
        schedule: &Schedule,
        count: usize,
        section: Option<usize>,
        releases: i64,
    ) -> Result<Choice, sqlx::Error> {
        let list = self.list(schedule.schedule_id);
        loop {
            if let Some(choice) = list.choose(count, section, releases) {
                return Ok(choice);
            }
            let _reading = list.reading.lock().await;
            if !list.is_current(releases) {
                let range = schedule.layout.seat_range();
                let free = sqlx::query_scalar(FREE).bind(range.0).bind(range.1).fetch_all(&mut *connection).await?;
                list.set(&schedule.layout, &free, releases);
            }
        }
    }

    /// Seats that were held by their names.
    pub(super) fn taken(&self, schedule: ScheduleId, seats: &[SeatId]) {
        let list = lock(&self.lists).get(&schedule).cloned();
        if let Some(list) = list
            && let Some(free) = &mut lock(&list.seats).free
        {
            for seat in seats {
                free.set(*seat, false);
            }
        }
    }

    fn list(&self, schedule: ScheduleId) -> Arc<List> {
        let mut lists = lock(&self.lists);
        if lists.len() >= LISTS_MAX && !lists.contains_key(&schedule) {
            lists.clear();
        }
        lists.entry(schedule).or_default().clone()
    }
}

impl List {
    fn is_current(&self, releases: i64) -> bool {
        let seats = lock(&self.seats);
        seats.free.is_some() && seats.releases >= releases
    }

    fn choose(self: &Arc<Self>, count: usize, section: Option<usize>, releases: i64) -> Option<Choice> {
        let mut seats = lock(&self.seats);
        if seats.releases < releases {
            return None;
        }
        let free = seats.free.as_mut()?;
        let Some(chosen) = free.best(count, section) else { return Some(Choice::TooFew(free.count(section))) };
        for seat in &chosen {
            free.set(*seat, false);
        }
        seats.proposed.extend(&chosen);
        Some(Choice::Seats(Proposal { list: self.clone(), seats: chosen, taken: false }))
    }

    fn set(&self, layout: &Layout, free: &[SeatId], releases: i64) {
        let mut seats = lock(&self.seats);
        let mut map = FreeSeats::new(layout);
        for seat in free.iter().filter(|seat| !seats.proposed.contains(seat)) {
            map.set(*seat, true);
        }
        (seats.free, seats.releases) = (Some(map), releases);
    }
}

impl Proposal {
    /// The seats were taken, and the transaction is committed.
    pub(super) fn taken(mut self) {
        self.taken = true;
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        let mut seats = lock(&self.list.seats);
        for seat in &self.seats {
            seats.proposed.remove(seat);
        }
        if !self.taken {
            // Some are another's, or none were taken after all: the rows know.
            seats.free = None;
        }
    }
}

/// A schedule's rows of seats, in the order in which they are offered.
struct FreeSeats {
    rows: Vec<Row>,
}

struct Row {
    section: usize,
    first: SeatId,
    free: usize,
    seats: Vec<bool>,
}

impl FreeSeats {
    fn new(layout: &Layout) -> Self {
        let mut rows = Vec::new();
        let mut place = 0;
        for (section, facts) in layout.sections().iter().enumerate() {
            let seats = vec![false; usize::try_from(facts.seats_per_row).unwrap_or_default()];
            for _ in 0..facts.rows {
                rows.push(Row { section, first: layout.seat_at(place), free: 0, seats: seats.clone() });
                place += i64::from(facts.seats_per_row);
            }
        }
        Self { rows }
    }

    fn set(&mut self, seat: SeatId, free: bool) {
        let behind = self.rows.partition_point(|row| row.first <= seat);
        let Some(row) = behind.checked_sub(1).map(|index| &mut self.rows[index]) else { return };
        let number = usize::try_from(seat.0 - row.first.0).unwrap_or(usize::MAX);
        let Some(known) = row.seats.get_mut(number).filter(|known| **known != free) else { return };
        *known = free;
        if free { row.free += 1 } else { row.free -= 1 }
    }

    fn in_section(&self, section: Option<usize>) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.free > 0 && section.is_none_or(|section| row.section == section))
    }

    fn count(&self, section: Option<usize>) -> usize {
        self.in_section(section).map(|row| row.free).sum()
    }

    /// The first `count` side by side, else the first ones.
    fn best(&self, count: usize, section: Option<usize>) -> Option<Vec<SeatId>> {
        let run = self.in_section(section).filter(|row| row.free >= count).find_map(|row| {
            let first = row.seats.windows(count).position(|run| run.iter().all(|free| *free))?;
            Some((first..first + count).map(|number| row.seat(number)).collect())
        });
        run.or_else(|| {
            let singles = self.in_section(section).flat_map(|row| {
                let numbers = row.seats.iter().enumerate().filter(|(_, free)| **free);
                numbers.map(|(number, _)| row.seat(number))
            });
            let singles: Vec<SeatId> = singles.take(count).collect();
            (singles.len() == count).then_some(singles)
        })
    }
}

impl Row {
    fn seat(&self, number: usize) -> SeatId {
        SeatId(self.first.0 + i64::try_from(number).unwrap_or_default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use common::seating::Section;

    use super::*;

    fn layout() -> Layout {
        let section =
            |name: &str, rows, seats_per_row| Section { name: name.to_owned(), rows, seats_per_row, price: 1 };
        Layout::new(ScheduleId(1), vec![section("A", 2, 3), section("B", 1, 4)])
    }

    fn labels(seats: &[SeatId]) -> Vec<String> {
        let layout = layout();
        seats.iter().map(|seat| layout.seat(*seat).expect("a seat of the layout").label()).collect()
    }

    fn list(free: &[&str]) -> Arc<List> {
        let (layout, list) = (layout(), Arc::new(List::default()));
        let free: Vec<SeatId> = free.iter().map(|label| layout.find(label).expect("a label")).collect();
        list.set(&layout, &free, 0);
        list
    }

    fn choose(list: &Arc<List>, count: usize, section: Option<usize>) -> Result<Proposal, usize> {
        match list.choose(count, section, 0).expect("the list is current") {
            Choice::Seats(proposal) => Ok(proposal),
            Choice::TooFew(available) => Err(available),
        }
    }

    #[test]
    fn side_by_side_in_the_first_row_that_has_room_then_singles() {
        let list = list(&["A-1-1", "A-1-3", "A-2-2", "A-2-3", "B-1-1", "B-1-3"]);
        let pair = choose(&list, 2, None).ok().unwrap();
        assert_eq!(labels(&pair.seats), ["A-2-2", "A-2-3"]);
        let singles = choose(&list, 2, Some(1)).ok().unwrap();
        assert_eq!(labels(&singles.seats), ["B-1-1", "B-1-3"]);
        assert_eq!(choose(&list, 3, None).err(), Some(2));
    }

    #[test]
    fn what_is_proposed_is_proposed_to_nobody_else_even_if_it_is_read_as_free() {
        let list = list(&["A-1-1", "A-1-2"]);
        let first = choose(&list, 1, None).ok().unwrap();
        list.set(&layout(), &[layout().seat_at(0), layout().seat_at(1)], 0);
        let second = choose(&list, 1, None).ok().unwrap();
        assert_eq!((labels(&first.seats), labels(&second.seats)), (vec!["A-1-1".into()], vec!["A-1-2".into()]));
        second.taken();
        assert_eq!(choose(&list, 1, None).err(), Some(0));
        drop(first);
        assert!(list.choose(1, None, 0).is_none(), "a proposal that failed asks for a reading");
    }
}
