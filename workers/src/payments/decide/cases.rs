//! One row for each way in which a command can end.

use common::bodies::ReservationStatus::{self, Cancelled, Expired, Held, Paid, Refunded};
use common::catalogue::PaymentFailurePolicy::{KeepHold, ReleaseHold};
use common::ids::{PaymentId, UserId};
use common::messages::payments::{CHARGE_MAX, PaymentCommand};
use common::problems::Slug;
use serde_json::{Value, json};

use super::super::state::{Account, State};
use super::fixtures::*;

const TOTAL: i64 = 2 * PRICE;
const STATUSES: [ReservationStatus; 5] = [Held, Paid, Expired, Cancelled, Refunded];

fn slug(result: Result<(u16, Value), common::problems::Problem>) -> Option<Slug> {
    result.err().map(|problem| problem.slug)
}

/// Nothing was written down.
fn nothing_changed(state: &State) -> bool {
    let changes = state.changes();
    changes.accounts.is_empty()
        && changes.entries.is_empty()
        && changes.reservations.is_empty()
        && changes.paid.is_empty()
        && changes.refunded.is_empty()
        && changes.released.is_empty()
}

/// The accounts that are written back.
fn accounts(state: &State) -> Vec<(UserId, Account)> {
    state.changes().accounts.into_iter().map(|account| (account.user_id, account.after)).collect()
}

/// Why a hold that has ended cannot be paid, cancelled or expired.
fn ended_as(status: ReservationStatus) -> Slug {
    match status {
        Held => panic!("it has not ended"),
        Paid => Slug::AlreadyPaid,
        Expired => Slug::ReservationExpired,
        Cancelled | Refunded => Slug::ReservationCancelled,
    }
}

#[test]
fn a_charge_adds_to_the_balance_and_tells_it() {
    for (amount, balance) in [(1, 0), (CHARGE_MAX, 7), (300, i64::MAX - 300)] {
        let mut state = world(Held, balance, KeepHold);
        let (status, body) = decide_at(&mut state, &charge(request(1), user(1), amount), 0).expect("it succeeds");
        assert_eq!(status, 201);
        let expected =
            json!({"entry_id": request(1), "amount": amount, "balance": balance + amount, "currency": "KRW"});
        assert_eq!(body, expected);
        assert_eq!(accounts(&state), [(user(1), Account { balance: balance + amount, entries: 6 })]);
        let entry = &state.changes().entries[0];
        assert_eq!((entry.number, entry.amount, entry.balance_after), (6, amount, balance + amount));
    }
}

#[test]
fn a_charge_that_cannot_be_is_refused_and_changes_nothing() {
    let rows = [
        (user(1), 0, Slug::InvalidRequest),
        (user(1), -5, Slug::InvalidRequest),
        (user(1), i64::MIN, Slug::InvalidRequest),
        (user(1), CHARGE_MAX + 1, Slug::InvalidRequest),
        (user(1), i64::MAX, Slug::InvalidRequest),
        (user(9), 0, Slug::InvalidRequest),
        (user(9), 1, Slug::UserNotFound),
    ];
    for (who, amount, expected) in rows {
        let mut state = world(Held, 0, KeepHold);
        assert_eq!(slug(decide_at(&mut state, &charge(request(1), who, amount), 0)), Some(expected), "{who} {amount}");
        assert!(nothing_changed(&state), "{who} {amount}");
    }
    let mut full = world(Held, i64::MAX - 9, KeepHold);
    assert_eq!(slug(decide_at(&mut full, &charge(request(1), user(1), 10), 0)), Some(Slug::InvalidRequest));
    assert!(nothing_changed(&full));
}

#[test]
fn a_payment_takes_the_money_and_answers_the_paid_reservation() {
    // In time means until the very end of the hold; the concert's policy and `pay: true` make no difference.
    for (asked, policy, goes_on) in [(-300, KeepHold, false), (0, ReleaseHold, false), (0, KeepHold, true)] {
        let mut state = world(Held, TOTAL + 1, policy);
        let command = pay(request(1), user(1), reservation_id(1), goes_on);
        let (status, body) = decide_at(&mut state, &command, asked).expect("it is paid");
        assert_eq!(status, 201);
        assert_eq!(body["payment_id"], json!(request(1)));
        assert_eq!(
            (&body["status"], &body["amount"], &body["balance"]),
            (&json!("SUCCEEDED"), &json!(TOTAL), &json!(1))
        );
        let told = &body["reservation"];
        assert_eq!((&told["status"], &told["payment_required"]), (&json!("PAID"), &json!(false)));
        assert_eq!((&told["payment_id"], &told["seats"][1]["label"]), (&json!(request(1)), &json!("A-1-2")));
        let changes = state.changes();
        assert_eq!(accounts(&state), [(user(1), Account { balance: 1, entries: 6 })]);
        assert_eq!((changes.entries[0].amount, changes.entries[0].balance_after), (-TOTAL, 1));
        assert_eq!(changes.entries[0].reservation_id, Some(reservation_id(1)));
        assert_eq!((changes.paid[0].amount, changes.paid[0].balance), (TOTAL, 1));
        assert!(changes.released.is_empty(), "sold seats are not free");
    }
}

#[test]
fn a_free_seat_is_paid_without_an_entry_and_without_an_account() {
    let free = schedule(0, KeepHold);
    let mut state = State::new("KRW");
    state.add_reservation(reservation(1, user(1), &free, 1, Held), free);
    let (_, body) = decide_at(&mut state, &pay(request(1), user(1), reservation_id(1), false), 0).expect("it is paid");
    assert_eq!((&body["amount"], &body["balance"]), (&json!(0), &json!(0)));
    let (_, body) =
        decide_at(&mut state, &refund(request(2), user(1), PaymentId::from(request(1))), 1).expect("it is refunded");
    assert_eq!((&body["status"], &body["balance"]), (&json!("REFUNDED"), &json!(0)));
    let changes = state.changes();
    assert!(changes.entries.is_empty() && changes.accounts.is_empty());
    assert_eq!((changes.paid.len(), changes.refunded.len()), (1, 1));
}

#[test]
fn an_ended_reservation_is_neither_paid_nor_cancelled_nor_expired_again() {
    for status in STATUSES.into_iter().filter(|status| *status != Held) {
        let commands = [
            pay(request(1), user(1), reservation_id(1), false),
            cancel(request(1), user(1), reservation_id(1)),
            expire(request(1), user(1), reservation_id(1)),
        ];
        for command in commands {
            for asked in [-1, 1] {
                let mut state = world(status, TOTAL, KeepHold);
                assert_eq!(
                    slug(decide_at(&mut state, &command, asked)),
                    Some(ended_as(status)),
                    "{status:?} {command:?}"
                );
                assert!(nothing_changed(&state));
            }
        }
    }
}

#[test]
fn another_buyers_reservation_and_one_that_is_not_are_told_apart_and_left_alone() {
    let commands = |id| -> [PaymentCommand; 4] {
        [
            pay(request(1), user(1), id, false),
            pay(request(1), user(1), id, true),
            cancel(request(1), user(1), id),
            expire(request(1), user(1), id),
        ]
    };
    for (id, expected) in [(2, Slug::ReservationOfAnotherBuyer), (9, Slug::ReservationNotFound)] {
        for command in commands(reservation_id(id)) {
            let mut state = world(Held, TOTAL, ReleaseHold);
            let problem = decide_at(&mut state, &command, 1).expect_err("it is not this buyer's");
            assert_eq!(problem.slug, expected);
            assert!(problem.members.is_empty(), "{command:?}");
            assert!(nothing_changed(&state));
        }
    }
}

#[test]
fn a_hold_that_ran_out_before_it_was_asked_for_is_ended_by_whoever_finds_it() {
    let commands = [
        pay(request(1), user(1), reservation_id(1), false),
        pay(request(1), user(1), reservation_id(1), true),
        cancel(request(1), user(1), reservation_id(1)),
    ];
    for command in commands {
        let mut state = world(Held, TOTAL, ReleaseHold);
        assert_eq!(slug(decide_at(&mut state, &command, 1)), Some(Slug::ReservationExpired));
        assert_eq!(status_of(&state, reservation_id(1)), Expired);
        assert!(state.changes().entries.is_empty());
        assert_eq!(state.changes().released.len(), 1);
    }
}

#[test]
fn a_short_balance_keeps_or_releases_the_hold_as_it_was_agreed() {
    let rows = [(KeepHold, false, Held), (KeepHold, true, Cancelled), (ReleaseHold, false, Cancelled)];
    for (policy, goes_on, ends_as) in rows {
        let mut state = world(Held, TOTAL - 1, policy);
        let command = pay(request(1), user(1), reservation_id(1), goes_on);
        let problem = decide_at(&mut state, &command, 0).expect_err("it is short");
        assert_eq!(problem.slug, Slug::InsufficientBalance);
        assert_eq!(status_of(&state, reservation_id(1)), ends_as);
        let mut members = json!({"balance": TOTAL - 1, "required": TOTAL});
        if ends_as == Cancelled {
            members["reservation_id"] = json!(reservation_id(1));
            members["seats_released"] = json!(true);
        }
        assert_eq!(Value::Object(problem.members), members);
        let changes = state.changes();
        assert!(changes.entries.is_empty() && changes.accounts.is_empty() && changes.paid.is_empty());
        assert_eq!(changes.released.len(), usize::from(ends_as == Cancelled));
    }
}

#[test]
fn a_failed_second_half_of_pay_true_says_what_became_of_the_seats() {
    for status in STATUSES {
        let mut state = world(status, TOTAL, KeepHold);
        let command = pay(request(1), user(1), reservation_id(1), true);
        // Held: it ran out before it was asked to be paid.
        let problem = decide_at(&mut state, &command, 1).expect_err("it cannot be paid");
        assert_eq!(problem.members["reservation_id"], json!(reservation_id(1)));
        assert_eq!(problem.members["seats_released"], json!(status != Paid));
    }
}

#[test]
fn a_refund_gives_the_money_and_the_seats_back_until_the_schedule_begins() {
    let mut state = world(Paid, 3, KeepHold);
    let command = refund(request(1), user(1), PaymentId::from(request(0)));
    let (status, body) = decide_at(&mut state, &command, STARTS_S - 1).expect("it is refunded");
    assert_eq!(status, 201);
    assert_eq!(body["payment_id"], json!(request(0)));
    assert_eq!(
        (&body["status"], &body["amount"], &body["balance"]),
        (&json!("REFUNDED"), &json!(TOTAL), &json!(TOTAL + 3))
    );
    assert_eq!(body["reservation"]["status"], json!("REFUNDED"));
    let changes = state.changes();
    assert_eq!(accounts(&state), [(user(1), Account { balance: TOTAL + 3, entries: 6 })]);
    assert_eq!((changes.entries[0].amount, changes.entries[0].balance_after), (TOTAL, TOTAL + 3));
    assert_eq!(changes.refunded[0].balance, TOTAL + 3);
    assert_eq!(changes.released.len(), 1);
}

#[test]
fn a_refund_that_cannot_be_is_refused_and_changes_nothing() {
    let payment = PaymentId::from(request(0));
    let rows = [
        (Paid, user(2), payment, 0, Slug::PaymentNotFound),
        (Paid, user(1), PaymentId::from(request(9)), 0, Slug::PaymentNotFound),
        (Paid, user(1), payment, STARTS_S, Slug::NotRefundable),
        (Paid, user(1), payment, STARTS_S + 1, Slug::NotRefundable),
        (Refunded, user(1), payment, 0, Slug::NotRefundable),
        (Refunded, user(2), payment, 0, Slug::PaymentNotFound),
    ];
    for (status, who, payment, asked, expected) in rows {
        let mut state = world(status, 0, KeepHold);
        let problem = decide_at(&mut state, &refund(request(1), who, payment), asked).expect_err("it is refused");
        assert_eq!(problem.slug, expected, "{status:?} {who} {asked}");
        assert!(nothing_changed(&state));
    }
    let mut full = world(Paid, i64::MAX, KeepHold);
    let problem = decide_at(&mut full, &refund(request(1), user(1), payment), 0).expect_err("it is full");
    assert_eq!(problem.slug, Slug::InvalidRequest);
    assert!(nothing_changed(&full));
}

#[test]
fn a_cancelled_hold_frees_its_seats() {
    for asked in [-1, 0] {
        let mut state = world(Held, 0, KeepHold);
        let command = cancel(request(1), user(1), reservation_id(1));
        let (status, body) = decide_at(&mut state, &command, asked).expect("it is cancelled");
        assert_eq!(status, 200);
        assert_eq!((&body["status"], &body["payment_id"]), (&json!("CANCELLED"), &Value::Null));
        assert_eq!(status_of(&state, reservation_id(1)), Cancelled);
        assert_eq!(state.changes().released.len(), 1);
    }
}

#[test]
fn an_expiry_has_an_effect_after_the_holds_end_and_not_before() {
    let command = expire(request(1), user(1), reservation_id(1));
    let mut state = world(Held, 0, KeepHold);
    for asked in [-1, 0] {
        let problem = decide_at(&mut state, &command, asked).expect_err("it comes too early");
        assert_eq!(problem.slug, Slug::InvalidRequest);
        assert!(problem.detail.contains("2027-01-15T08:00:00.000Z"), "{}", problem.detail);
        assert!(nothing_changed(&state));
    }
    let (status, body) = decide_at(&mut state, &command, 1).expect("it has run out");
    assert_eq!((status, &body["status"]), (200, &json!("EXPIRED")));
    assert_eq!(state.changes().released.len(), 1);
}
