//! What a seat map looks like on the wire: JSON, plain or in gzip. A run of seats whose letters have not changed since
//! the last time is taken over compressed as it is.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use common::catalogue::Schedule;
use common::seating::Section;
use flate2::Compression;

use super::gzip::{self, Piece};

/// Seats that are compressed together.
const RUN_SEATS: usize = 1_024;
/// Bytes of JSON that a seat takes, about.
const SEAT_JSON_BYTES: usize = 128;
/// How hard to compress: beyond this level it takes much longer and gains little.
const LEVEL: u32 = 3;
const TAIL: &[u8] = b"]}";
/// Stands for a seat that the view leaves out.
pub(super) const LEFT_OUT: u8 = b'-';

/// What of a map is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct View {
    /// Index of the one section that is shown; None: all.
    pub(crate) section: Option<usize>,
    /// Whether seats are shown that are held or sold.
    pub(crate) all: bool,
}

impl View {
    /// The places that it shows, from 0.
    pub(super) fn places(self, schedule: &Schedule) -> Range<usize> {
        let count = |sections: &[Section]| -> usize {
            usize::try_from(sections.iter().map(Section::seats).sum::<i64>()).expect("sections have no negative sizes")
        };
        let sections = schedule.layout.sections();
        match self.section {
            None => 0..count(sections),
            Some(index) => count(&sections[..index])..count(&sections[..=index]),
        }
    }

    /// The letters of the places that it shows; those of seats that it leaves out say nothing.
    pub(super) fn letters(self, schedule: &Schedule, map: &[u8]) -> Vec<u8> {
        let shown = map.get(self.places(schedule)).unwrap_or_default();
        shown.iter().map(|letter| if self.all || *letter == b'A' { *letter } else { LEFT_OUT }).collect()
    }
}

/// A run of seats, compressed.
#[derive(Debug)]
pub(super) struct Run {
    letters: Box<[u8]>,
    follows: bool,
    piece: Piece,
}

impl Run {
    /// Bytes that it keeps in memory.
    pub(super) fn size(&self) -> usize {
        self.letters.len() + self.piece.size()
    }
}

/// The runs of a view, in order.
pub(super) type Runs = Vec<Arc<Run>>;

/// Compresses the runs of a view; those of `before` that are the same are taken over.
pub(super) fn runs(schedule: &Schedule, view: View, letters: &[u8], before: &[Arc<Run>]) -> Runs {
    let first_place = view.places(schedule).start;
    // Whether seats stand before the run: then its first one begins with a comma.
    let mut follows = false;
    let mut json = String::new();
    let mut runs = Runs::with_capacity(letters.len().div_ceil(RUN_SEATS));
    for (index, letters) in letters.chunks(RUN_SEATS).enumerate() {
        let same = before.get(index).filter(|run| run.follows == follows && *run.letters == *letters);
        let run = same.cloned().unwrap_or_else(|| {
            json.clear();
            json.reserve(letters.len() * SEAT_JSON_BYTES);
            write_seats(&mut json, schedule, first_place + index * RUN_SEATS, letters, follows);
            let piece = Piece::new(json.as_bytes(), Compression::new(LEVEL));
            Arc::new(Run { letters: letters.into(), follows, piece })
        });
        follows = follows || letters.iter().any(|letter| *letter != LEFT_OUT);
        runs.push(run);
    }
    runs
}

/// The body in gzip.
pub(super) fn compressed(schedule: &Schedule, as_of: DateTime<Utc>, runs: &[Arc<Run>]) -> Bytes {
    gzip::member(head(schedule, as_of).as_bytes(), runs.iter().map(|run| &run.piece), TAIL)
}

/// The body as it is.
pub(super) fn plain(schedule: &Schedule, as_of: DateTime<Utc>, view: View, letters: &[u8]) -> Bytes {
    let mut json = head(schedule, as_of);
    let shown = letters.iter().filter(|letter| **letter != LEFT_OUT).count();
    json.reserve(shown * SEAT_JSON_BYTES);
    write_seats(&mut json, schedule, view.places(schedule).start, letters, false);
    let mut bytes = json.into_bytes();
    bytes.extend(TAIL);
    bytes.into()
}

fn head(schedule: &Schedule, as_of: DateTime<Utc>) -> String {
    format!(
        r#"{{"schedule_id":{},"concert_id":{},"starts_at":"{}","as_of":"{}","seats":["#,
        schedule.schedule_id,
        schedule.concert_id,
        schedule.starts_at.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        as_of.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    )
}

/// Writes the seats at `first_place` and after it, one for each letter.
fn write_seats(json: &mut String, schedule: &Schedule, first_place: usize, letters: &[u8], mut follows: bool) {
    let mut seat_ids =
        schedule.layout.seat_at(i64::try_from(first_place).expect("a schedule has 200,000 seats at most")).0..;
    let mut letters = letters.iter();
    let mut skipped = first_place;
    for section in schedule.layout.sections() {
        let seats = usize::try_from(section.seats()).expect("sections have no negative sizes");
        if skipped >= seats {
            skipped -= seats;
            continue;
        }
        let per_row = usize::try_from(section.seats_per_row).expect("rows have no negative sizes");
        let fixed = SectionText::new(section);
        for (place, (letter, seat_id)) in (skipped..seats).zip((&mut letters).zip(&mut seat_ids)) {
            if *letter != LEFT_OUT {
                let comma = if follows { "," } else { "" };
                fixed.write_seat(json, comma, seat_id, place / per_row + 1, place % per_row + 1, *letter);
                follows = true;
            }
        }
        skipped = 0;
    }
}

/// What is the same for all seats of a section.
struct SectionText {
    quoted_name: String,
    price: i64,
}

impl SectionText {
    fn new(section: &Section) -> Self {
        Self { quoted_name: serde_json::to_string(&section.name).expect("text is JSON"), price: section.price }
    }

    fn write_seat(&self, json: &mut String, comma: &str, seat_id: i64, row: usize, number: usize, letter: u8) {
        let Self { quoted_name, price } = self;
        let name = &quoted_name[1..quoted_name.len() - 1];
        let status = match letter {
            b'A' => "AVAILABLE",
            b'H' => "HELD",
            _ => "SOLD",
        };
        write!(
            json,
            r#"{comma}{{"seat_id":{seat_id},"section":{quoted_name},"row":{row},"number":{number},"label":"{name}-{row}-{number}","price":{price},"status":"{status}"}}"#,
        )
        .expect("writing to a string never fails");
    }
}
