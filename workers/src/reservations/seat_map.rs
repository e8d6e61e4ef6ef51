//! Which seats of a schedule are free, one bit a seat: what best available is chosen from. It does not get slower as the
//! house fills: a row is a few words, and rows without enough free seats are passed over by their count.

use common::ids::SeatId;
use common::seating::Layout;

const WORD_BITS: usize = 64;

/// The free seats of one schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeatMap {
    sections: Vec<SectionMap>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SectionMap {
    name: String,
    /// Place of its first seat, from 0.
    first_place: usize,
    seats_per_row: usize,
    free: usize,
    rows: Vec<RowMap>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RowMap {
    free: usize,
    /// A bit is set while its seat is free.
    words: Vec<u64>,
}

impl SeatMap {
    /// A map of `layout` in which only `free` seats are free.
    pub(crate) fn new(layout: &Layout, free: impl IntoIterator<Item = SeatId>) -> Self {
        let mut first_place = 0;
        let sections = layout.sections().iter().map(|section| {
            let (rows, seats_per_row) = (to_usize(section.rows), to_usize(section.seats_per_row));
            let row = RowMap { free: 0, words: vec![0; seats_per_row.div_ceil(WORD_BITS)] };
            let map =
                SectionMap { name: section.name.clone(), first_place, seats_per_row, free: 0, rows: vec![row; rows] };
            first_place += rows * seats_per_row;
            map
        });
        let mut map = Self { sections: sections.collect() };
        for seat in free {
            map.set(layout, seat, true);
        }
        map
    }

    /// Whether a seat is free.
    pub(crate) fn is_free(&self, layout: &Layout, seat: SeatId) -> bool {
        let Some((section, row, number)) = self.find(layout, seat) else { return false };
        self.sections[section].rows[row].words[number / WORD_BITS] & (1 << (number % WORD_BITS)) != 0
    }

    /// Section, row in it and number in that, each from 0; None: it is another schedule's.
    fn find(&self, layout: &Layout, seat: SeatId) -> Option<(usize, usize, usize)> {
        let place = usize::try_from(layout.place_of(seat)?).ok()?;
        let index = self.sections.partition_point(|section| section.first_place <= place) - 1;
        let section = &self.sections[index];
        let place = place - section.first_place;
        Some((index, place / section.seats_per_row, place % section.seats_per_row))
    }

    /// Marks a seat; ids of other schedules are passed over.
    pub(crate) fn set(&mut self, layout: &Layout, seat: SeatId, free: bool) {
        let Some((section, row, number)) = self.find(layout, seat) else { return };
        let section = &mut self.sections[section];
        let (row, bit) = (&mut section.rows[row], 1 << (number % WORD_BITS));
        let word = &mut row.words[number / WORD_BITS];
        match (*word & bit != 0, free) {
            (false, true) => {
                *word |= bit;
                row.free += 1;
                section.free += 1;
            }
            (true, false) => {
                *word &= !bit;
                row.free -= 1;
                section.free -= 1;
            }
            _ => {}
        }
    }

    /// The free seats, in the named section or in all.
    pub(crate) fn free(&self, section: Option<&str>) -> usize {
        self.eligible(section).map(|section| section.free).sum()
    }

    /// The best `count` free seats: side by side if there are any, in the order of sections, rows and numbers, else the first
    /// single ones. None: there are not that many.
    pub(crate) fn best(&self, layout: &Layout, count: usize, section: Option<&str>) -> Option<Vec<SeatId>> {
        if count == 0 || self.free(section) < count {
            return None;
        }
        let places = self.adjacent(count, section).unwrap_or_else(|| self.singles(count, section));
        Some(places.into_iter().filter_map(|place| Some(layout.seat_at(i64::try_from(place).ok()?))).collect())
    }

    fn adjacent(&self, count: usize, section: Option<&str>) -> Option<Vec<usize>> {
        self.eligible(section).filter(|section| section.free >= count).find_map(|section| {
            section.rows.iter().enumerate().filter(|(_, row)| row.free >= count).find_map(|(index, row)| {
                let number = row.run_of(count)?;
                let first = section.first_place + index * section.seats_per_row + number;
                Some((first..first + count).collect())
            })
        })
    }

    fn singles(&self, count: usize, section: Option<&str>) -> Vec<usize> {
        let in_section = |section: &'_ SectionMap| {
            let (first, per_row) = (section.first_place, section.seats_per_row);
            let rows = section.rows.iter().enumerate().filter(|(_, row)| row.free > 0);
            rows.flat_map(move |(index, row)| row.numbers().map(move |number| first + index * per_row + number))
                .take(count)
                .collect::<Vec<_>>()
        };
        self.eligible(section).flat_map(in_section).take(count).collect()
    }

    fn eligible<'a>(&'a self, section: Option<&'a str>) -> impl Iterator<Item = &'a SectionMap> {
        self.sections.iter().filter(move |candidate| section.is_none_or(|name| candidate.name == name))
    }
}

impl RowMap {
    /// The numbers (from 0) of the free seats.
    fn numbers(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest.wrapping_sub(1);
                (bit < WORD_BITS).then_some(index * WORD_BITS + bit)
            })
        })
    }

    /// The number (from 0) at which the first `count` consecutive free seats begin.
    fn run_of(&self, count: usize) -> Option<usize> {
        let (mut begin, mut length) = (0, 0);
        for number in self.numbers() {
            if length > 0 && number == begin + length {
                length += 1;
            } else {
                (begin, length) = (number, 1);
            }
            if length == count {
                return Some(begin);
            }
        }
        None
    }
}

fn to_usize(count: i32) -> usize {
    usize::try_from(count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use common::ids::ScheduleId;
    use common::seating::Section;
    use proptest::prelude::*;

    use super::*;

    fn layout(sections: &[(&str, i32, i32)]) -> Layout {
        let section = |&(name, rows, seats_per_row): &(&str, i32, i32)| Section {
            name: name.to_owned(),
            rows,
            seats_per_row,
            price: 1,
        };
        Layout::new(ScheduleId(1), sections.iter().map(section).collect())
    }

    fn all(layout: &Layout) -> Vec<SeatId> {
        (0..layout.total_seats()).map(|place| layout.seat_at(place)).collect()
    }

    fn labels(layout: &Layout, seats: &[SeatId]) -> Vec<String> {
        seats.iter().map(|seat| layout.seat(*seat).expect("a seat of the layout").label()).collect()
    }

    fn take(map: &mut SeatMap, layout: &Layout, taken: &[&str]) {
        for label in taken {
            map.set(layout, layout.find(label).expect("a label of the layout"), false);
        }
    }

    #[test]
    fn side_by_side_in_the_first_row_that_has_room_then_singles() {
        let layout = layout(&[("A", 2, 4), ("B", 1, 70)]);
        let mut map = SeatMap::new(&layout, all(&layout));
        let best =
            |map: &SeatMap, count, section| map.best(&layout, count, section).map(|seats| labels(&layout, &seats));
        assert_eq!(best(&map, 2, None).unwrap(), ["A-1-1", "A-1-2"]);
        take(&mut map, &layout, &["A-1-2"]);
        assert_eq!(best(&map, 3, None).unwrap(), ["A-2-1", "A-2-2", "A-2-3"]);
        assert_eq!(best(&map, 5, None).unwrap(), ["B-1-1", "B-1-2", "B-1-3", "B-1-4", "B-1-5"]);
        assert_eq!(best(&map, 1, Some("B")).unwrap(), ["B-1-1"]);
        take(&mut map, &layout, &["A-2-2", "A-2-4"]);
        assert_eq!(best(&map, 2, Some("A")).unwrap(), ["A-1-3", "A-1-4"]);
        assert_eq!(
            best(&map, 4, Some("A")).unwrap(),
            ["A-1-1", "A-1-3", "A-1-4", "A-2-1"],
            "no four together: singles"
        );
        assert_eq!(best(&map, 6, Some("A")), None);
        assert_eq!((map.free(Some("A")), map.free(None), map.free(Some("C"))), (5, 75, 0));
        let is_free = |label| map.is_free(&layout, layout.find(label).unwrap());
        assert_eq!(["A-1-2", "A-1-3", "A-2-4", "B-1-70"].map(is_free), [false, true, false, true]);
        assert!(!map.is_free(&layout, SeatId(1)), "another schedule's");
    }

    #[test]
    fn a_run_may_cross_the_words_of_a_row_but_not_its_end() {
        let layout = layout(&[("A", 2, 66)]);
        let mut map = SeatMap::new(&layout, []);
        for label in ["A-1-63", "A-1-64", "A-1-65", "A-2-1"] {
            map.set(&layout, layout.find(label).unwrap(), true);
        }
        let three = map.best(&layout, 3, None).unwrap();
        assert_eq!(labels(&layout, &three), ["A-1-63", "A-1-64", "A-1-65"]);
        map.set(&layout, layout.find("A-1-63").unwrap(), false);
        map.set(&layout, layout.find("A-1-66").unwrap(), true);
        take(&mut map, &layout, &["A-1-64"]);
        assert_eq!(
            labels(&layout, &map.best(&layout, 3, None).unwrap()),
            ["A-1-65", "A-1-66", "A-2-1"],
            "not adjacent"
        );
    }

    proptest! {
        /// Against the plain definition: the first run in seat order, else the first singles.
        #[test]
        fn best_is_what_a_naive_search_finds(free in prop::collection::vec(any::<bool>(), 2 * 5 + 3 * 67), count in 1_usize..7) {
            let layout = layout(&[("A", 2, 5), ("B", 3, 67)]);
            let seats: Vec<SeatId> = all(&layout).into_iter().zip(&free).filter(|(_, free)| **free).map(|(seat, _)| seat).collect();
            let map = SeatMap::new(&layout, seats.clone());
            let row = |seat: SeatId| layout.seat(seat).map(|seat| (seat.section.name.clone(), seat.row));
            let run = seats.windows(count).find(|run| {
                run.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1) && row(run[0]) == row(run[count - 1])
            });
            let naive = run.or_else(|| seats.get(..count)).map(<[SeatId]>::to_vec);
            prop_assert_eq!(map.best(&layout, count, None), naive);
            prop_assert_eq!(map.free(None), seats.len());
        }
    }
}
