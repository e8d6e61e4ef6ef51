//! The bodies of seat maps, without a database.

use std::io::Read;

use chrono::{DateTime, Utc};
use common::catalogue::PaymentFailurePolicy;
use common::ids::ConcertId;
use common::seating::{Layout, Section};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn schedule(sections: &[(&str, i32, i32)]) -> Arc<Schedule> {
    let sections = sections
        .iter()
        .map(|(name, rows, seats_per_row)| Section {
            name: (*name).to_owned(),
            rows: *rows,
            seats_per_row: *seats_per_row,
            price: 700,
        })
        .collect();
    Arc::new(Schedule {
        schedule_id: ScheduleId(42),
        concert_id: ConcertId(7),
        starts_at: DateTime::UNIX_EPOCH,
        layout: Layout::new(ScheduleId(42), sections),
        hold_seconds: 300,
        max_seats_per_buyer: 4,
        on_payment_failure: PaymentFailurePolicy::KeepHold,
    })
}

fn shown(map: &Arc<SeatMap>, letters: &str, view: View) -> Shown {
    let reading = Reading::new(SeatStates { as_of: Utc::now(), letters: letters.to_owned() });
    let body = reading.body(&map.schedule, view);
    Shown { map: map.clone(), reading: Arc::new(reading), view, body }
}

fn unzipped(shown: &Shown) -> Bytes {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*shown.compress()).read_to_end(&mut plain).unwrap();
    plain.into()
}

const ALL: View = View { section: None, all: true };
const AVAILABLE: View = View { section: None, all: false };

#[test]
fn a_seat_is_told_with_all_that_the_contract_names() {
    let map = Arc::new(SeatMap::new(schedule(&[("A", 1, 2), ("나 구역", 2, 1)])));
    let body: Value = serde_json::from_slice(&shown(&map, "AHSA", ALL).write_plain()).unwrap();
    assert_eq!((&body["schedule_id"], &body["concert_id"]), (&42.into(), &7.into()));
    assert_eq!(body["starts_at"], "1970-01-01T00:00:00Z");
    let seats = body["seats"].as_array().unwrap();
    let labels: Vec<_> = seats.iter().map(|seat| seat["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["A-1-1", "A-1-2", "나 구역-1-1", "나 구역-2-1"]);
    let last = serde_json::json!({"seat_id": (42 << 18) + 4, "section": "나 구역", "row": 2, "number": 1,
        "label": "나 구역-2-1", "price": 700, "status": "AVAILABLE"});
    assert_eq!(seats[3], last);
    let statuses: Vec<_> = seats.iter().map(|seat| seat["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["AVAILABLE", "HELD", "SOLD", "AVAILABLE"]);
}

#[test]
fn a_view_shows_what_it_asks_for() {
    let map = Arc::new(SeatMap::new(schedule(&[("A", 1, 2), ("B", 2, 1)])));
    let labels = |view| {
        let body: Value = serde_json::from_slice(&unzipped(&shown(&map, "HAAS", view))).unwrap();
        let seats = body["seats"].as_array().unwrap().clone();
        seats.iter().map(|seat| seat["label"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(labels(AVAILABLE), ["A-1-2", "B-1-1"]);
    assert_eq!(labels(View { section: Some(1), all: false }), ["B-1-1"]);
    assert_eq!(labels(View { section: Some(1), all: true }), ["B-1-1", "B-2-1"]);
    assert_eq!(labels(View { section: Some(0), all: true }), ["A-1-1", "A-1-2"]);
}

#[test]
fn the_tag_tells_what_is_shown_and_not_when() {
    let map = Arc::new(SeatMap::new(schedule(&[("A", 1, 4)])));
    let tag = |letters, view| shown(&map, letters, view).etag().to_owned();
    assert_eq!(tag("AAHS", ALL), tag("AAHS", ALL));
    assert_ne!(tag("AAHS", ALL), tag("AASS", ALL));
    assert_eq!(tag("AAHS", AVAILABLE), tag("AASS", AVAILABLE));
    assert!(tag("AAHS", ALL).starts_with("W/\""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever was compressed before, and whatever of it is taken over.
    #[test]
    fn compressed_and_plain_are_the_same_through_any_changes(
        readings in proptest::collection::vec(proptest::collection::vec("[AHS]{3}", 1_000), 1..4),
        flips in proptest::collection::vec((0..3_000_usize, "[AHS]"), 0..4),
    ) {
        let map = Arc::new(SeatMap::new(schedule(&[("A", 3, 400), ("B", 1, 1), ("C", 200, 8), ("D", 1, 199)])));
        let mut readings: Vec<String> = readings.iter().map(|letters| letters.concat()).collect();
        let mut last = readings[readings.len() - 1].clone();
        for (place, letter) in flips {
            last.replace_range(place..=place, &letter);
            readings.push(last.clone());
        }
        readings.extend(["H".repeat(3_000), "A".repeat(3_000)]);
        for letters in readings {
            for view in [ALL, AVAILABLE, View { section: Some(2), all: false }, View { section: Some(1), all: true }] {
                let shown = shown(&map, &letters, view);
                let plain = shown.write_plain();
                prop_assert_eq!(&unzipped(&shown), &plain);
                let body: Value = serde_json::from_slice(&plain).unwrap();
                prop_assert!(body["seats"].is_array());
            }
        }
    }
}
