//! What the rules of payments see and change while one batch is decided: accounts and reservations as the database has them, and
//! what is to be written back, with what was read of it: nothing is locked in between. No rule stands here but one: the ledger adds up.

use std::collections::HashMap;
use std::sync::Arc;

use common::bodies::{EntryKind, Reservation, ReservationBody, ReservationStatus};
use common::catalogue::Schedule;
use common::ids::{EntryId, PaymentId, ReservationId, ScheduleId, UserId};

/// A row of `accounts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Account {
    /// The sum of its entries, in minor units; never negative.
    pub(super) balance: i64,
    /// How many entries it has: the last one's number.
    pub(super) entries: i64,
}

/// An account as it was read, and as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoadedAccount {
    pub(super) user_id: UserId,
    /// As it was read or remembered; None: there was none.
    pub(super) before: Option<Account>,
    /// From an earlier batch: it may have changed since.
    pub(super) is_remembered: bool,
    pub(super) after: Account,
}

impl LoadedAccount {
    fn has_changed(&self) -> bool {
        self.before != Some(self.after)
    }
}

/// A change of a balance: a row of `ledger_entries`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) user_id: UserId,
    /// Dense in the account, from 1.
    pub(super) number: i64,
    pub(super) id: EntryId,
    pub(super) kind: EntryKind,
    /// In minor units; a debit is negative.
    pub(super) amount: i64,
    /// In minor units.
    pub(super) balance_after: i64,
    pub(super) reservation_id: Option<ReservationId>,
}

/// A payment that was made: a new row of `payments`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paid {
    pub(super) payment_id: PaymentId,
    pub(super) reservation_id: ReservationId,
    pub(super) user_id: UserId,
    /// In minor units.
    pub(super) amount: i64,
    /// Right after it, in minor units.
    pub(super) balance: i64,
}

/// A payment that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refunded {
    pub(super) payment_id: PaymentId,
    /// Right after the refund, in minor units.
    pub(super) balance: i64,
}

/// A reservation with its schedule.
#[derive(Debug, Clone)]
pub(super) struct Booking {
    pub(super) row: Reservation,
    pub(super) schedule: Arc<Schedule>,
    /// As it was read.
    pub(super) status_before: ReservationStatus,
}

impl Booking {
    /// Whether it is to be written: a status never comes back.
    fn has_changed(&self) -> bool {
        self.row.status != self.status_before
    }
}

/// The accounts and reservations that a batch touches.
#[derive(Debug, Clone)]
pub(super) struct State {
    currency: String,
    accounts: HashMap<UserId, LoadedAccount>,
    bookings: HashMap<ReservationId, Booking>,
    payments: HashMap<PaymentId, ReservationId>,
    entries: Vec<Entry>,
    paid: Vec<Paid>,
    refunded: Vec<Refunded>,
}

/// What is to be written back: of accounts and reservations the final rows, each once and in the order of locking.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    pub(super) accounts: Vec<LoadedAccount>,
    pub(super) entries: &'a [Entry],
    pub(super) reservations: Vec<&'a Booking>,
    pub(super) paid: &'a [Paid],
    /// Some of them may be among `paid`.
    pub(super) refunded: &'a [Refunded],
    /// Schedules of which seats came free.
    pub(super) released: Vec<ScheduleId>,
}

impl State {
    pub(super) fn new(currency: &str) -> Self {
        Self {
            currency: currency.to_owned(),
            accounts: HashMap::new(),
            bookings: HashMap::new(),
            payments: HashMap::new(),
            entries: Vec::new(),
            paid: Vec::new(),
            refunded: Vec::new(),
        }
    }

    /// An account as the database has it.
    pub(super) fn add_account(&mut self, user: UserId, account: Account) {
        self.insert_account(user, account, false);
    }

    /// An account as the database had it.
    pub(super) fn add_remembered_account(&mut self, user: UserId, account: Account) {
        self.insert_account(user, account, true);
    }

    fn insert_account(&mut self, user_id: UserId, account: Account, is_remembered: bool) {
        let loaded = LoadedAccount { user_id, before: Some(account), after: account, is_remembered };
        self.accounts.insert(user_id, loaded);
    }

    /// The accounts that are remembered and not written back, which would tell whether they are still so: nothing may rest on them.
    pub(super) fn unchecked_accounts(&self) -> HashMap<UserId, Account> {
        let unchecked = self.accounts.values().filter(|account| account.is_remembered && !account.has_changed());
        unchecked.map(|account| (account.user_id, account.after)).collect()
    }

    /// A reservation as the database has it.
    pub(super) fn add_reservation(&mut self, row: Reservation, schedule: Arc<Schedule>) {
        if let Some(payment) = row.payment_id {
            self.payments.insert(payment, row.reservation_id);
        }
        let status_before = row.status;
        self.bookings.insert(row.reservation_id, Booking { row, schedule, status_before });
    }

    pub(super) fn currency(&self) -> &str {
        &self.currency
    }

    /// The buyer's account; None before the first charge.
    pub(super) fn account(&self, user: UserId) -> Option<Account> {
        self.accounts.get(&user).map(|account| account.after)
    }

    /// The buyer's balance, in minor units; 0 before the first charge.
    pub(super) fn balance(&self, user: UserId) -> i64 {
        self.account(user).unwrap_or_default().balance
    }

    pub(super) fn reservation(&self, id: ReservationId) -> Option<&Booking> {
        self.bookings.get(&id)
    }

    /// The reservation that a payment paid.
    pub(super) fn paid_by(&self, payment: PaymentId) -> Option<&Booking> {
        self.payments.get(&payment).and_then(|id| self.bookings.get(id))
    }

    /// The reservation's body, as it stands now.
    pub(super) fn body(&self, booking: &Booking) -> ReservationBody {
        booking.row.body(&booking.schedule, &self.currency)
    }

    /// Writes a ledger entry and gives the balance after it; None, and nothing is changed, if that would be negative or too
    /// large for the ledger. An amount of 0 is no entry.
    pub(super) fn move_money(
        &mut self,
        user_id: UserId,
        kind: EntryKind,
        amount: i64,
        id: EntryId,
        reservation_id: Option<ReservationId>,
    ) -> Option<i64> {
        if amount == 0 {
            return Some(self.balance(user_id));
        }
        let balance_after = self.balance(user_id).checked_add(amount).filter(|balance| *balance >= 0)?;
        let none = LoadedAccount { user_id, before: None, after: Account::default(), is_remembered: false };
        let account = &mut self.accounts.entry(user_id).or_insert(none).after;
        account.balance = balance_after;
        account.entries += 1;
        let number = account.entries;
        self.entries.push(Entry { user_id, number, id, kind, amount, balance_after, reservation_id });
        Some(balance_after)
    }

    /// The reservation becomes `status`.
    pub(super) fn settle(&mut self, id: ReservationId, status: ReservationStatus) {
        if let Some(booking) = self.bookings.get_mut(&id) {
            booking.row.status = status;
        }
    }

    /// The reservation is as it was before a command that came to nothing.
    pub(super) fn put_back(&mut self, before: Option<Booking>) {
        if let Some(before) = before {
            self.bookings.insert(before.row.reservation_id, before);
        }
    }

    /// Notes a payment; its reservation becomes PAID.
    pub(super) fn note_paid(&mut self, paid: Paid) {
        self.settle(paid.reservation_id, ReservationStatus::Paid);
        if let Some(booking) = self.bookings.get_mut(&paid.reservation_id) {
            booking.row.payment_id = Some(paid.payment_id);
        }
        self.payments.insert(paid.payment_id, paid.reservation_id);
        self.paid.push(paid);
    }

    /// Notes a refund; the payment's reservation becomes REFUNDED.
    pub(super) fn note_refunded(&mut self, reservation: ReservationId, refunded: Refunded) {
        self.settle(reservation, ReservationStatus::Refunded);
        self.refunded.push(refunded);
    }

    /// What is to be written back.
    pub(super) fn changes(&self) -> Changes<'_> {
        let mut accounts: Vec<_> = self.accounts.values().filter(|account| account.has_changed()).copied().collect();
        accounts.sort_unstable_by_key(|account| account.user_id);
        let mut reservations: Vec<_> = self.bookings.values().filter(|booking| booking.has_changed()).collect();
        reservations.sort_unstable_by_key(|booking| booking.row.reservation_id);
        let mut released: Vec<_> = reservations
            .iter()
            .filter(|booking| booking.row.status != ReservationStatus::Paid)
            .map(|booking| booking.row.schedule_id)
            .collect();
        released.sort_unstable();
        released.dedup();
        Changes { accounts, entries: &self.entries, reservations, paid: &self.paid, refunded: &self.refunded, released }
    }
}
