//! What holds whatever is asked, in whatever order, in batches of whatever size.

use std::collections::HashMap;

use common::bodies::ReservationStatus::{self, Held, Paid};
use common::catalogue::PaymentFailurePolicy::{KeepHold, ReleaseHold};
use common::ids::{PaymentId, UserId};
use common::messages::Command as _;
use common::messages::payments::PaymentCommand;
use common::problems::Slug;
use proptest::prelude::*;
use serde_json::Value;

use super::super::state::{Account, Entry, State};
use super::fixtures::*;

const USERS: u128 = 3;
const RESERVATIONS: u128 = 5;

/// A command by one of a few buyers (one of whom does not exist) about one of a few reservations, and when it is asked.
#[derive(Debug, Clone)]
struct Asked {
    command: PaymentCommand,
    seconds: i64,
}

/// The world before anything is asked: users 1 to 3 and 5 holds of different prices and policies. Some of it is free.
fn start() -> State {
    let mut state = State::new("KRW");
    for n in 1..=USERS {
        state.add_account(user(n), Account::default());
    }
    for n in 1..=RESERVATIONS {
        let policy = if n % 2 == 0 { ReleaseHold } else { KeepHold };
        let schedule = schedule(if n == 5 { 0 } else { PRICE }, policy);
        let seats = i64::try_from(n % 3 + 1).expect("small");
        state.add_reservation(reservation(n, user(n % 2 + 1), &schedule, seats, Held), schedule);
    }
    state
}

/// The state as the database gives it to the next batch.
fn reloaded(state: &State) -> State {
    let mut fresh = State::new("KRW");
    for n in 1..=USERS {
        fresh.add_account(user(n), state.account(user(n)).expect("accounts stay"));
    }
    for n in 1..=RESERVATIONS {
        let booking = state.reservation(reservation_id(n)).expect("reservations stay");
        fresh.add_reservation(booking.row.clone(), booking.schedule.clone());
    }
    fresh
}

fn asked_in_order() -> impl Strategy<Value = Vec<Asked>> {
    let one = (0..9_u8, 1..=USERS + 1, 1..=RESERVATIONS + 1, -3..6_i64, 0..40_u128);
    prop::collection::vec(one, 0..40).prop_map(|all| {
        let mut seconds = -20;
        all.into_iter()
            .enumerate()
            .map(|(i, (kind, who, about, step, other))| {
                // Mostly forwards, now and then a little back, as when a record is redriven.
                seconds += step;
                let id = request(i as u128);
                let (who, about) = (user(who), reservation_id(about));
                let command = match kind {
                    0..3 => charge(id, who, i64::from(kind) * 700 + step),
                    3 | 4 => pay(id, who, about, false),
                    5 => pay(id, who, about, true),
                    6 => refund(id, who, PaymentId::from(request(other))),
                    7 => cancel(id, who, about),
                    _ => expire(id, who, about),
                };
                Asked { command, seconds }
            })
            .collect()
    })
}

/// Applies everything in batches that end where `ends` says, and tells each outcome and each entry.
fn apply(all: &[Asked], ends: &[usize]) -> (State, Vec<String>, Vec<Entry>) {
    let mut state = start();
    let (mut outcomes, mut entries) = (Vec::new(), Vec::new());
    for (i, asked) in all.iter().enumerate() {
        if ends.contains(&i) {
            entries.extend_from_slice(state.changes().entries);
            state = reloaded(&state);
        }
        let outcome = decide_at(&mut state, &asked.command, asked.seconds);
        outcomes.push(match outcome {
            Ok((status, body)) => format!("{status} {body}"),
            Err(problem) => problem.document("/", None).to_string(),
        });
    }
    entries.extend_from_slice(state.changes().entries);
    (state, outcomes, entries)
}

fn rows(state: &State) -> Vec<(ReservationStatus, Option<PaymentId>)> {
    (1..=RESERVATIONS)
        .map(|n| state.reservation(reservation_id(n)).expect("reservations stay"))
        .map(|booking| (booking.row.status, booking.row.payment_id))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_balance_is_the_sum_of_its_entries_and_never_negative(all in asked_in_order()) {
        let (state, _, entries) = apply(&all, &[]);
        let mut sums: HashMap<UserId, Account> = HashMap::new();
        for entry in &entries {
            let account = sums.entry(entry.user_id).or_default();
            account.balance += entry.amount;
            account.entries += 1;
            prop_assert!(account.balance >= 0 && entry.amount != 0);
            prop_assert_eq!((entry.balance_after, entry.number), (account.balance, account.entries));
        }
        for n in 1..=USERS {
            prop_assert_eq!(state.account(user(n)), Some(sums.remove(&user(n)).unwrap_or_default()));
        }
        prop_assert!(sums.is_empty(), "nobody else has entries");
    }

    #[test]
    fn each_hold_ends_exactly_once(all in asked_in_order()) {
        let mut state = start();
        for asked in &all {
            let before = rows(&state);
            let outcome = decide_at(&mut state, &asked.command, asked.seconds);
            for (n, (was, is)) in (1..).zip(before.iter().zip(rows(&state))) {
                let refunded = was.0 == Paid && matches!(asked.command, PaymentCommand::Refund(_)) && outcome.is_ok();
                prop_assert!(was.0 == Held || *was == is || (refunded && is.1 == was.1));
                if *was != is {
                    let owner = state.reservation(reservation_id(n)).expect("reservations stay").row.user_id;
                    prop_assert_eq!(asked.command.user_id(), Some(owner), "only its buyer's log ends a hold");
                }
            }
        }
    }

    #[test]
    fn a_batch_gives_the_same_wherever_it_is_split(all in asked_in_order(), ends in prop::collection::vec(0..40_usize, 0..8)) {
        let (whole, outcomes, entries) = apply(&all, &[]);
        let (split, outcomes_split, entries_split) = apply(&all, &ends);
        prop_assert_eq!(outcomes, outcomes_split);
        prop_assert_eq!(entries, entries_split);
        prop_assert_eq!(rows(&whole), rows(&split));
        for n in 1..=USERS {
            prop_assert_eq!(whole.account(user(n)), split.account(user(n)));
        }
    }

    #[test]
    fn a_payment_in_time_beats_the_expiry_that_follows_it(
        asked in -300..=0_i64, late in 1..100_000_i64, early in prop::option::of(-300..=0_i64), split: bool,
    ) {
        let mut state = world(Held, 2 * PRICE, KeepHold);
        let expire = expire(request(1), user(1), reservation_id(1));
        if let Some(early) = early {
            let too_early = decide_at(&mut state, &expire, early).map_err(|problem| problem.slug);
            prop_assert_eq!(too_early, Err(Slug::InvalidRequest));
        }
        prop_assert!(decide_at(&mut state, &pay(request(2), user(1), reservation_id(1), false), asked).is_ok());
        if split {
            let booking = state.reservation(reservation_id(1)).expect("it is there").clone();
            state = State::new("KRW");
            state.add_reservation(booking.row, booking.schedule);
        }
        let expired = decide_at(&mut state, &expire, late).map_err(|problem| problem.slug);
        prop_assert_eq!(expired, Err(Slug::AlreadyPaid));
        prop_assert_eq!(status_of(&state, reservation_id(1)), Paid);
    }

    #[test]
    fn a_refund_restores_the_balance_and_frees_the_seats(more in 0..10_000_i64) {
        let mut state = world(Held, 2 * PRICE + more, KeepHold);
        let paid = decide_at(&mut state, &pay(request(1), user(1), reservation_id(1), false), 0);
        prop_assert_eq!(paid.map(|(_, body)| body["balance"].clone()), Ok(Value::from(more)));
        let payment = PaymentId::from(request(1));
        let refunded = decide_at(&mut state, &refund(request(2), user(1), payment), 1);
        prop_assert_eq!(refunded.map(|(_, body)| body["balance"].clone()), Ok(Value::from(2 * PRICE + more)));
        prop_assert_eq!(state.balance(user(1)), 2 * PRICE + more);
        prop_assert_eq!(status_of(&state, reservation_id(1)), ReservationStatus::Refunded);
        prop_assert_eq!(state.changes().released.len(), 1);
    }
}
