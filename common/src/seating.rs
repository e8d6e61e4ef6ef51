//! The layout of a schedule, and the arithmetic of its seats: `seat_id = schedule_id << 18 | place`, places counting from 1 in
//! the order of sections, rows and numbers. So an id names its schedule, the order of ids is the order in which best
//! available looks, and label, row, number and price need no table.

use serde::{Deserialize, Serialize};

use crate::ids::{ScheduleId, SeatId};

const PLACE_BITS: u32 = 18;

/// The most seats that one schedule may have.
pub const SEATS_PER_SCHEDULE_MAX: i64 = 200_000;

/// One section of a schedule: `rows × seats_per_row` seats at one price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Section {
    /// Unique in the schedule.
    pub name: String,
    /// Rows, numbered from 1, the first one in front.
    pub rows: i32,
    /// Seats in each row, numbered from 1.
    pub seats_per_row: i32,
    /// Price of a seat, in minor units.
    pub price: i64,
}

impl Section {
    /// Seats in the section.
    pub fn seats(&self) -> i64 {
        i64::from(self.rows) * i64::from(self.seats_per_row)
    }
}

/// A seat, told from its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat<'a> {
    /// Its id.
    pub seat_id: SeatId,
    /// Its section.
    pub section: &'a Section,
    /// Its row, from 1.
    pub row: i32,
    /// Its number in the row, from 1.
    pub number: i32,
}

impl Seat<'_> {
    /// `section-row-number`.
    pub fn label(&self) -> String {
        format!("{}-{}-{}", self.section.name, self.row, self.number)
    }
}

/// The sections of one schedule, in the order of best available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    schedule_id: ScheduleId,
    sections: Vec<Section>,
}

impl Layout {
    /// The layout of `schedule_id`.
    pub fn new(schedule_id: ScheduleId, sections: Vec<Section>) -> Self {
        Self { schedule_id, sections }
    }

    /// The sections in order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Seats in all sections.
    pub fn total_seats(&self) -> i64 {
        self.sections.iter().map(Section::seats).sum()
    }

    /// The id of the seat at a place that counts from 0.
    pub fn seat_at(&self, place_from_0: i64) -> SeatId {
        SeatId((self.schedule_id.0 << PLACE_BITS) | (place_from_0 + 1))
    }

    /// The place of a seat of this schedule, from 0; None for any other id.
    pub fn place_of(&self, seat_id: SeatId) -> Option<i64> {
        let place = (seat_id.0 & ((1 << PLACE_BITS) - 1)) - 1;
        (schedule_of(seat_id) == self.schedule_id && (0..self.total_seats()).contains(&place)).then_some(place)
    }

    /// All about a seat of this schedule; None for any other id.
    pub fn seat(&self, seat_id: SeatId) -> Option<Seat<'_>> {
        let mut place = self.place_of(seat_id)?;
        for section in &self.sections {
            if place < section.seats() {
                let per_row = i64::from(section.seats_per_row);
                let row = i32::try_from(place / per_row).ok()? + 1;
                let number = i32::try_from(place % per_row).ok()? + 1;
                return Some(Seat { seat_id, section, row, number });
            }
            place -= section.seats();
        }
        None
    }

    /// The seat with this label (`section-row-number`, written as [`Seat::label`] writes it).
    pub fn find(&self, label: &str) -> Option<SeatId> {
        let (rest, number) = label.rsplit_once('-')?;
        let (name, row) = rest.rsplit_once('-')?;
        let (row, number) = (plain_number(row)?, plain_number(number)?);
        let mut place = 0;
        for section in &self.sections {
            if section.name == name {
                let per_row = i64::from(section.seats_per_row);
                let inside = row <= i64::from(section.rows) && number <= per_row;
                return inside.then(|| self.seat_at(place + (row - 1) * per_row + number - 1));
            }
            place += section.seats();
        }
        None
    }

    /// The ids of all seats: from the first to the last, both included.
    pub fn seat_range(&self) -> (SeatId, SeatId) {
        (self.seat_at(0), self.seat_at(self.total_seats() - 1))
    }

    /// The sum of the seats' prices, in minor units. Ids of other schedules count nothing.
    pub fn total_price(&self, seat_ids: &[SeatId]) -> i64 {
        seat_ids.iter().filter_map(|id| self.seat(*id)).map(|seat| seat.section.price).sum()
    }
}

/// The schedule that a seat belongs to.
pub fn schedule_of(seat_id: SeatId) -> ScheduleId {
    ScheduleId(seat_id.0 >> PLACE_BITS)
}

/// A positive number without sign or leading zeros: a seat has one label only.
fn plain_number(text: &str) -> Option<i64> {
    let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str, rows: i32, seats_per_row: i32, price: i64) -> Section {
        Section { name: name.to_owned(), rows, seats_per_row, price }
    }

    fn layout() -> Layout {
        Layout::new(ScheduleId(42), vec![section("A", 2, 3, 500), section("B-1", 1, 4, 700)])
    }

    #[test]
    fn ids_labels_and_places_agree_in_both_directions() {
        let layout = layout();
        let labels: Vec<String> =
            (0..layout.total_seats()).map(|p| layout.seat(layout.seat_at(p)).expect("a place").label()).collect();
        assert_eq!(
            labels,
            ["A-1-1", "A-1-2", "A-1-3", "A-2-1", "A-2-2", "A-2-3", "B-1-1-1", "B-1-1-2", "B-1-1-3", "B-1-1-4"]
        );
        for (place, label) in (0..).zip(&labels) {
            assert_eq!(layout.find(label), Some(layout.seat_at(place)));
            assert_eq!(layout.place_of(layout.seat_at(place)), Some(place));
        }
    }

    #[test]
    fn what_is_no_seat_of_the_schedule_is_not_found() {
        let layout = layout();
        for label in ["A-3-1", "A-1-4", "A-0-1", "A-01-1", "A-+1-1", "C-1-1", "A-1", "nonsense", "", "A-1-1-1", "--"] {
            assert_eq!(layout.find(label), None, "{label}");
        }
        for id in [0, -1, 1, i64::MAX, (42 << 18) + 11, 42 << 18, (43 << 18) + 1] {
            assert_eq!(layout.seat(SeatId(id)), None, "{id}");
        }
    }

    #[test]
    fn prices_add_up() {
        let layout = layout();
        assert_eq!(layout.total_price(&[layout.seat_at(0), layout.seat_at(9)]), 1_200);
    }
}
