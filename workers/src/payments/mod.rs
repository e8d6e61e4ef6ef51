//! Payments: all that moves money and all that ends a hold, in the order of the buyer's log. This file ties the runtime to the
//! rules (`decide`, over `state`) and to the tables (`store`), and knows neither.

mod decide;
mod state;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::catalogue::Schedules;
use common::ids::{ConcertId, PaymentId, RequestId, ReservationId, ScheduleId, UserId};
use common::messages::payments::PaymentCommand;
use common::messages::results::RequestResult;
use common::topics;
use hashlink::LruCache;
use sqlx::PgConnection;

use self::state::{Account, State};
use self::store::WhoPaid;
use crate::runtime::word::{Applied, Cause, Clock, Emissions, Event, Logged, Outcome, Told, Word};

/// Accounts that are remembered: those that changed last.
const ACCOUNTS_MAX: usize = 100_000;

/// The word `payments`.
#[derive(Debug)]
pub struct Payments {
    /// The deployment's, told in bodies.
    currency: String,
    schedules: Schedules,
    /// As this worker wrote them.
    accounts: LruCache<UserId, Account>,
    /// The last try came to nothing: perhaps it met another worker's, for which the next one waits.
    lock: bool,
}

impl Payments {
    /// A worker's; `currency` is the deployment's one currency.
    pub fn new(currency: impl Into<String>) -> Self {
        let accounts = LruCache::new(ACCOUNTS_MAX);
        Self { currency: currency.into(), schedules: Schedules::default(), accounts, lock: false }
    }

    /// Loads all that the batch touches, and decides it. What is written back is checked to be as it was loaded; what is merely looked at is
    /// not, so that is read afterwards, if it was remembered.
    async fn decide(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        batch: &[&Logged<PaymentCommand>],
    ) -> Result<(State, Vec<Outcome>), sqlx::Error> {
        loop {
            let mut state = self.load(transaction, batch).await?;
            let outcomes = batch.iter().map(|logged| decide_one(&mut state, now, logged)).collect();
            if self.are_as_remembered(transaction, &state.unchecked_accounts()).await? {
                return Ok((state, outcomes));
            }
        }
    }

    /// Whether the database has these accounts as they are remembered; those that are otherwise are forgotten.
    async fn are_as_remembered(
        &mut self,
        transaction: &mut PgConnection,
        remembered: &HashMap<UserId, Account>,
    ) -> Result<bool, sqlx::Error> {
        let users: Vec<UserId> = remembered.keys().copied().collect();
        let read: HashMap<UserId, Account> = store::accounts(transaction, &users).await?.into_iter().collect();
        let others: Vec<&UserId> = users.iter().filter(|user| read.get(user) != remembered.get(user)).collect();
        for user in &others {
            self.accounts.remove(*user);
        }
        Ok(others.is_empty())
    }

    /// Loads all that the batch touches. The first try locks nothing.
    async fn load(
        &mut self,
        transaction: &mut PgConnection,
        batch: &[&Logged<PaymentCommand>],
    ) -> Result<State, sqlx::Error> {
        let touched = Touched::by(batch);
        let mut state = State::new(&self.currency);
        if self.lock {
            store::lock(transaction, &touched.accounts, &touched.reservations, &touched.payments).await?;
        }
        let mut unknown: Vec<UserId> = Vec::new();
        for user in touched.accounts {
            match self.accounts.get(&user) {
                Some(account) => state.add_remembered_account(user, *account),
                None => unknown.push(user),
            }
        }
        for (user, account) in store::accounts(transaction, &unknown).await? {
            state.add_account(user, account);
        }
        let first_charges: Vec<UserId> =
            touched.charged.iter().copied().filter(|user| state.account(*user).is_none()).collect();
        for (user, account) in store::open_accounts(transaction, &first_charges).await? {
            state.add_account(user, account);
        }
        let reservations = store::reservations(transaction, &touched.reservations, &touched.payments).await?;
        let mut schedules: Vec<ScheduleId> = reservations.iter().map(|row| row.schedule_id).collect();
        schedules.sort_unstable();
        schedules.dedup();
        self.schedules.load(transaction, &schedules).await?;
        for row in reservations {
            let schedule = self.schedules.get(row.schedule_id).ok_or_else(|| store::schedule_is_missing(&row))?;
            state.add_reservation(row, schedule.clone());
        }
        Ok(state)
    }
}

impl Word for Payments {
    type Command = PaymentCommand;
    const TOPIC: &'static str = topics::PAYMENTS;
    const GROUP: &'static str = "boxoffice-payments";
    const WORKER: &'static str = "payment-worker";
    const TICK: Option<Duration> = None;
    const CAUSES: Option<&'static str> = Some(topics::RESERVATIONS);

    /// The hold: a reservation has the id of the request that made it.
    fn cause<'a>(command: &'a PaymentCommand, _: Option<&Told>) -> Cause<'a> {
        let (reservation, origin) = match command {
            PaymentCommand::Pay(pay) => (pay.reservation_id, pay.origin.as_ref()),
            PaymentCommand::Cancel(cancel) => (cancel.reservation_id, None),
            PaymentCommand::Expire(expire) => (expire.reservation_id, None),
            PaymentCommand::Charge(_) | PaymentCommand::Refund(_) => return Cause::None,
        };
        Cause::Request(RequestId(reservation.0), origin.and_then(|origin| origin.source.as_ref()))
    }

    fn had_effect(told: &RequestResult) -> bool {
        decide::had_effect(told)
    }

    fn has_to_undo(command: &PaymentCommand, outcome: Option<&RequestResult>) -> bool {
        decide::has_to_undo(command, outcome)
    }

    async fn apply(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        batch: &[&Logged<PaymentCommand>],
    ) -> Result<Applied, sqlx::Error> {
        let (state, mut outcomes) = self.decide(transaction, now, batch).await?;
        let changes = state.changes();
        store::save(transaction, now, &changes).await?;
        self.accounts.extend(changes.accounts.iter().map(|account| (account.user_id, account.after)));
        let buyers = buyers_who_paid(&state, batch, &outcomes);
        let ended = store::end_tokens(transaction, now, who_paid(&buyers, batch)).await?;
        for token in &ended {
            let first = buyers.get(&(token.concert_id, token.user_id)).and_then(|i| outcomes.get_mut(*i));
            if let Some(Outcome::Succeeded { concert_id, .. }) = first {
                *concert_id = Some(token.concert_id);
            }
        }
        self.lock = false;
        let events = ended.into_iter().map(Event::Expired).collect();
        Ok(Applied { outcomes, emissions: Emissions { events, messages: Vec::new() } })
    }

    fn forget(&mut self) {
        self.schedules.forget();
        self.accounts.clear();
        self.lock = true;
    }
}

fn decide_one(state: &mut State, now: DateTime<Utc>, logged: &Logged<PaymentCommand>) -> Outcome {
    let clock = Clock { asked_at: logged.asked_at, now };
    match &logged.told {
        _ if logged.cause_pending && decide::lacks_reservation(state, &logged.command) => Outcome::Waits,
        _ if logged.is_repeat => decide::undo(state, &logged.command),
        Some(told) => decide::decide_again(state, &logged.command, told, clock),
        None => decide::decide(state, &logged.command, clock),
    }
}

/// What a batch names, each once.
struct Touched {
    /// Whose balance may change.
    accounts: Vec<UserId>,
    /// Who is charged an amount that can be charged: they get an account if they have none.
    charged: Vec<UserId>,
    reservations: Vec<ReservationId>,
    payments: Vec<PaymentId>,
}

impl Touched {
    fn by(batch: &[&Logged<PaymentCommand>]) -> Self {
        let mut touched =
            Self { accounts: Vec::new(), charged: Vec::new(), reservations: Vec::new(), payments: Vec::new() };
        for logged in batch {
            match &logged.command {
                PaymentCommand::Charge(charge) => {
                    if decide::can_be_charged(charge.amount) {
                        touched.accounts.push(charge.user_id);
                        touched.charged.push(charge.user_id);
                    }
                }
                PaymentCommand::Pay(pay) => {
                    touched.accounts.push(pay.user_id);
                    touched.reservations.push(pay.reservation_id);
                }
                PaymentCommand::Refund(refund) => {
                    touched.accounts.push(refund.user_id);
                    touched.payments.push(refund.payment_id);
                }
                PaymentCommand::Cancel(cancel) => touched.reservations.push(cancel.reservation_id),
                PaymentCommand::Expire(expire) => touched.reservations.push(expire.reservation_id),
            }
        }
        sort(&mut touched.accounts);
        sort(&mut touched.charged);
        sort(&mut touched.reservations);
        sort(&mut touched.payments);
        touched
    }
}

fn sort<T: Ord>(ids: &mut Vec<T>) {
    ids.sort_unstable();
    ids.dedup();
}

/// Who paid for which concert, with the place in the batch of the first such payment: that one ends the queue token.
fn buyers_who_paid(
    state: &State,
    batch: &[&Logged<PaymentCommand>],
    outcomes: &[Outcome],
) -> BTreeMap<(ConcertId, UserId), usize> {
    let mut buyers = BTreeMap::new();
    for (i, (logged, outcome)) in batch.iter().zip(outcomes).enumerate() {
        let paid = match outcome {
            Outcome::Succeeded { .. } => true,
            Outcome::AsTold => logged.told.as_ref().is_some_and(|told| told.succeeded()),
            _ => false,
        };
        if let (PaymentCommand::Pay(pay), true) = (&logged.command, paid)
            && let Some(reservation) = state.reservation(pay.reservation_id)
        {
            buyers.entry((reservation.row.concert_id, pay.user_id)).or_insert(i);
        }
    }
    buyers
}

fn who_paid(buyers: &BTreeMap<(ConcertId, UserId), usize>, batch: &[&Logged<PaymentCommand>]) -> Vec<WhoPaid> {
    let who = buyers.iter().map(|(&(concert_id, user_id), &place)| {
        let token_seq = match &batch[place].command {
            PaymentCommand::Pay(pay) => pay.token_seq,
            _ => None,
        };
        WhoPaid { concert_id, user_id, asked_at: batch[place].asked_at, token_seq }
    });
    who.collect()
}
