use chrono::{DateTime, Utc};
use common::catalogue::PaymentFailurePolicy;
use common::ids::{ConcertId, RequestId};
use common::seating::{Layout, Section};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

pub(in crate::reservations) const SCHEDULE: ScheduleId = ScheduleId(42);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

pub(in crate::reservations) fn clock() -> Clock {
    Clock { asked_at: at(0), now: at(1) }
}

pub(in crate::reservations) fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(n))
}

/// Two rows of five seats at 100, one schedule, `limit` seats a buyer.
fn schedule(limit: i32) -> Schedule {
    let sections = vec![Section { name: "A".to_owned(), rows: 2, seats_per_row: 5, price: 100 }];
    Schedule {
        schedule_id: SCHEDULE,
        concert_id: ConcertId(7),
        starts_at: at(100),
        layout: Layout::new(SCHEDULE, sections),
        hold_seconds: 300,
        max_seats_per_buyer: limit,
        on_payment_failure: PaymentFailurePolicy::KeepHold,
    }
}

pub(in crate::reservations) fn state(limit: i32) -> State {
    let schedule = schedule(limit);
    let seats: Vec<SeatId> = (0..10).map(|place| schedule.layout.seat_at(place)).collect();
    State {
        users: (1..=9).map(user).collect(),
        maps: HashMap::from([(SCHEDULE, SeatMap::new(&schedule.layout, seats.iter().copied()))]),
        free: seats.into_iter().map(|seat| (seat, true)).collect(),
        schedules: HashMap::from([(SCHEDULE, Arc::new(schedule))]),
        live: HashMap::new(),
    }
}

pub(in crate::reservations) fn seat(place: i64) -> SeatId {
    schedule(4).layout.seat_at(place)
}

fn hold(request: u128, buyer: u128) -> Hold {
    Hold {
        request_id: RequestId(Uuid::from_u128(request)),
        request_hash: None,
        user_id: user(buyer),
        schedule_id: SCHEDULE,
        seat_ids: None,
        seats: None,
        best_available: None,
        pay: false,
    }
}

pub(in crate::reservations) fn named_hold(request: u128, buyer: u128, places: &[i64]) -> Hold {
    Hold { seat_ids: Some(places.iter().map(|place| seat(*place)).collect()), ..hold(request, buyer) }
}

pub(in crate::reservations) fn best_hold(request: u128, buyer: u128, count: i64) -> Hold {
    Hold { best_available: Some(BestAvailable { count, section: None }), ..hold(request, buyer) }
}

#[test]
fn a_hold_lasts_its_full_time_from_the_moment_it_is_made() {
    let made = decide(&mut state(4), &named_hold(1, 1, &[0, 1]), clock()).unwrap();
    assert_eq!(made.hold_expires_at, at(1 + 300));
    assert_eq!((made.total, made.status, made.seat_ids), (200, ReservationStatus::Held, vec![seat(0), seat(1)]));
}

#[test]
fn seats_go_by_id_by_label_or_to_the_best() {
    let mut state = state(4);
    let by_label = Hold { seats: Some(vec!["A-2-5".to_owned()]), ..hold(1, 1) };
    assert_eq!(decide(&mut state, &by_label, clock()).unwrap().seat_ids, [seat(9)]);
    assert_eq!(decide(&mut state, &named_hold(2, 2, &[1]), clock()).unwrap().seat_ids, [seat(1)]);
    assert_eq!(decide(&mut state, &best_hold(3, 3, 3), clock()).unwrap().seat_ids, [seat(2), seat(3), seat(4)]);
}

#[test]
fn each_refusal_says_why_and_changes_nothing() {
    let before = state(4);
    let taken = {
        let mut state = before.clone();
        decide(&mut state, &named_hold(1, 1, &[0]), clock()).unwrap();
        state
    };
    let begun = Clock { asked_at: at(100), now: at(100) };
    let elsewhere = Hold { schedule_id: ScheduleId(43), ..named_hold(2, 2, &[1]) };
    let both = Hold { best_available: Some(BestAvailable { count: 1, section: None }), ..named_hold(2, 2, &[1]) };
    let no_section =
        Hold { best_available: Some(BestAvailable { count: 1, section: Some("Z".to_owned()) }), ..hold(2, 2) };
    let labels = Hold { seats: Some(vec!["A-1-2".to_owned(), "A-9-9".to_owned()]), ..hold(2, 2) };
    let cases = [
        (named_hold(2, 99, &[1]), clock(), Slug::UserNotFound),
        (elsewhere, clock(), Slug::ScheduleNotFound),
        (hold(2, 2), clock(), Slug::InvalidRequest),
        (both, clock(), Slug::InvalidRequest),
        (named_hold(2, 2, &[]), clock(), Slug::InvalidRequest),
        (named_hold(2, 2, &[1, 1]), clock(), Slug::InvalidRequest),
        (best_hold(2, 2, 0), clock(), Slug::InvalidRequest),
        (best_hold(2, 2, 21), clock(), Slug::InvalidRequest),
        (named_hold(2, 2, &[1]), begun, Slug::SalesEnded),
        (named_hold(2, 2, &[1, 10]), clock(), Slug::SeatNotFound),
        (labels, clock(), Slug::SeatNotFound),
        (no_section, clock(), Slug::SeatNotFound),
        (named_hold(2, 2, &[1, 2, 3, 4, 5]), clock(), Slug::ReservationLimitExceeded),
        (named_hold(2, 2, &[0, 1]), clock(), Slug::SeatUnavailable),
    ];
    for (hold, clock, slug) in cases {
        let mut state = taken.clone();
        assert_eq!(decide(&mut state, &hold, clock).unwrap_err().slug, slug, "{hold:?}");
        assert_eq!((state.free, state.live), (taken.free.clone(), taken.live.clone()), "{slug:?}");
    }
}

#[test]
fn a_refusal_names_the_seats_that_are_gone_and_the_limit() {
    let mut state = state(4);
    decide(&mut state, &named_hold(1, 1, &[0, 1, 2]), clock()).unwrap();
    let gone = decide(&mut state, &named_hold(2, 2, &[1, 3]), clock()).unwrap_err();
    assert_eq!(gone.members["seat_ids"], json!([seat(1)]));
    let limit = decide(&mut state, &named_hold(3, 1, &[5, 6]), clock()).unwrap_err();
    assert_eq!((&limit.members["limit"], &limit.members["live"]), (&json!(4), &json!(3)));
    for request in 10..=11 {
        decide(&mut state, &best_hold(request, request - 5, 3), clock()).unwrap();
    }
    let sold_out = decide(&mut state, &best_hold(12, 4, 2), clock()).unwrap_err();
    assert_eq!((sold_out.slug, &sold_out.members["available"]), (Slug::SoldOut, &json!(1)));
}

proptest! {
    /// Whatever is asked: no seat is held twice, all or none, and nobody has more than the limit.
    #[test]
    fn no_seat_is_held_twice_and_the_limit_holds(
        asked in prop::collection::vec((1_u128..9, prop::collection::vec(0_i64..12, 0..5), 0_i64..5), 1..40),
    ) {
        let mut state = state(3);
        let mut holders: HashMap<SeatId, UserId> = HashMap::new();
        for (request, (buyer, places, best)) in asked.into_iter().enumerate() {
            let request = request as u128 + 1;
            let hold = if best > 0 { best_hold(request, buyer, best) } else { named_hold(request, buyer, &places) };
            if let Ok(made) = decide(&mut state, &hold, clock()) {
                prop_assert_eq!(made.total, 100 * i64::try_from(made.seat_ids.len()).unwrap());
                for seat in made.seat_ids {
                    prop_assert_eq!(holders.insert(seat, user(buyer)), None);
                }
            }
            for buyer in 1..9 {
                prop_assert!(holders.values().filter(|holder| **holder == user(buyer)).count() <= 3);
            }
        }
        let free = state.free.values().filter(|free| **free).count();
        prop_assert_eq!(free + holders.len(), 10);
        prop_assert_eq!(state.maps[&SCHEDULE].free(None), free);
    }
}
