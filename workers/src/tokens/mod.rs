//! The queue: joins in, in strict order, and admissions out, at an exact rate. One concert is one line.
//!
//! `decide` has the rules for commands (`again`: for those whose outcome was told before the database forgot it), `line` those of one queue, `bucket` the rate; `store` the SQL. `demand` says what has to be
//! loaded for a batch, `joined` whose token need not be searched for, and `inside` when it is worth while to count who is inside. This file ties them to the runtime.

mod again;
mod bucket;
mod decide;
mod demand;
mod inside;
mod joined;
mod line;
#[cfg(test)]
mod model;
mod store;

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::bodies::{LeftBody, TokenBody, TokenIdentity, TokenStatus};
use common::ids::{ConcertId, TokenId};
use common::keys::{QueueClaims, QueueTokens};
use common::messages::tokens::TokenCommand;
use common::topics;
use sqlx::{PgConnection, PgPool};

use self::decide::{Decision, State, Ticket, decide};
use self::demand::Demands;
use self::inside::Inside;
use self::joined::Joined;
use self::line::{Line, Standing};
use self::store::{Candidate, Lines};
use crate::runtime::word::{Applied, Clock, Emissions, Fate, Logged, Outcome, Word};
use crate::users::Users;

/// Queues that one tick looks at; the next tick goes on behind them.
const TICK_QUEUES_MAX: usize = 500;
/// Queues of which it is remembered that nobody waits; then it starts afresh.
const EMPTY_REMEMBERED_MAX: usize = 10_000;

/// The word tokens: `token.issue`, `token.leave`, `queue.configure`.
pub struct Tokens {
    keys: QueueTokens,
    users: Users,
    /// Where the next tick begins.
    tick_after: ConcertId,
    /// Queues where nobody waits (all who did have left), as of this place of the next join. Only a join can change that.
    empty: HashMap<ConcertId, i64>,
    inside: Inside,
    joined: Joined,
}

impl Tokens {
    /// With the keys that queue tokens are signed with.
    pub fn new(keys: QueueTokens) -> Self {
        Self {
            keys,
            users: Users::default(),
            tick_after: ConcertId(0),
            empty: HashMap::new(),
            inside: Inside::default(),
            joined: Joined::default(),
        }
    }

    async fn load(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        demands: &Demands,
    ) -> Result<State, sqlx::Error> {
        let joiners = demands.values().flat_map(|demand| demand.joiners.iter().copied());
        self.users.load(transaction, joiners.clone()).await?;
        let unknown_users = joiners.filter(|user| !self.users.exists(*user)).collect();
        let concerts: Vec<i64> = demands.keys().map(|concert| concert.0).collect();
        let mut lines = store::lock_queues(transaction, now, &concerts, true).await?;
        if !lines.is_empty() {
            store::load_tokens(transaction, &mut lines, demands, &self.inside, &self.joined).await?;
        }
        Ok(State { lines, unknown_users })
    }

    /// The answer that a decision is told with.
    fn outcome(&self, decision: Decision) -> Outcome {
        match decision {
            Decision::Issued(ticket) => self.issued(&ticket),
            Decision::Left(concert, token_id) => {
                Outcome::succeeded(200, &LeftBody { token_id, status: TokenStatus::Left }).with_token_of(concert)
            }
            Decision::Configured(body) => Outcome::succeeded(200, &body),
            Decision::Refused(problem) => Outcome::Failed(problem),
        }
    }

    fn issued(&self, ticket: &Ticket) -> Outcome {
        let keys = &self.keys;
        let Ticket { token_id, user_id, concert_id, seq, issued_at, .. } = *ticket;
        let claims = QueueClaims::new(token_id, user_id, concert_id, seq, issued_at);
        let queue_token = keys.sign(&claims, ticket.kid.as_deref().unwrap_or_else(|| keys.signing_kid()));
        let identity = TokenIdentity { queue_token, token_id, concert_id, issued_at };
        let body = match ticket.standing {
            Standing::Active { expires_at } => TokenBody::active(identity, expires_at, ticket.queue_state),
            Standing::Waiting { position } => {
                TokenBody::waiting(identity, position, ticket.queue_state, ticket.rate_per_minute, ticket.max_active)
            }
        };
        Outcome::succeeded(if ticket.created { 201 } else { 200 }, &body).with_token_of(concert_id)
    }

    /// The next queues that a tick has to look at, in the order of concerts, and after the last one from the first again.
    async fn next_candidates(&mut self, pool: &PgPool) -> Result<Vec<i64>, sqlx::Error> {
        let limit = i64::try_from(TICK_QUEUES_MAX).unwrap_or(i64::MAX);
        let found = store::candidates(pool, self.tick_after, limit).await?;
        let more = found.len() == TICK_QUEUES_MAX;
        self.tick_after = found.last().filter(|_| more).map_or(ConcertId(0), |last| last.concert_id);
        let has_overdue_or_waiting =
            |queue: &&Candidate| queue.overdue || self.empty.get(&queue.concert_id) != Some(&queue.next_seq);
        let found: Vec<&Candidate> = found.iter().filter(has_overdue_or_waiting).collect();
        let to_count = found.iter().filter(|queue| !queue.overdue && !self.has_room(queue));
        let to_count = to_count.filter(|queue| self.inside.count_is_due(queue.concert_id, queue.at));
        let to_count: Vec<i64> = to_count.map(|queue| queue.concert_id.0).collect();
        if !to_count.is_empty() {
            store::count_inside(pool, &to_count, &mut self.inside).await?;
        }
        let has_work = found.iter().filter(|queue| queue.overdue || self.has_room(queue));
        Ok(has_work.map(|queue| queue.concert_id.0).collect())
    }

    fn has_room(&self, queue: &Candidate) -> bool {
        let at_most = self.inside.at_most(queue.concert_id, queue.admitted_total);
        at_most.is_some_and(|at_most| at_most < queue.max_active.into())
    }

    /// Does what is to be done at `now` in those of `concerts` that nobody else has locked.
    async fn sweep_and_admit(
        &self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        concerts: &[i64],
    ) -> Result<Lines, sqlx::Error> {
        let mut lines = store::lock_queues(transaction, now, concerts, false).await?;
        if !lines.is_empty() {
            store::load_tokens(transaction, &mut lines, &Demands::new(), &self.inside, &self.joined).await?;
            lines.values_mut().for_each(Line::admit);
            store::write(transaction, &lines, self.keys.signing_kid()).await?;
        }
        Ok(lines)
    }

    /// Remembers what saves work later: who joined, how many are inside, and where nobody waits.
    fn remember(&mut self, lines: &mut Lines) {
        for (concert, line) in lines {
            self.joined.note(line);
            if let Some(active) = line.active() {
                let counted_at = line.was_counted().then_some(line.at);
                self.inside.note(*concert, active, line.queue.admitted_total, counted_at);
            }
            if line.is_empty() {
                if self.empty.len() >= EMPTY_REMEMBERED_MAX {
                    self.empty.clear();
                }
                self.empty.insert(*concert, line.queue.next_seq);
            }
        }
    }
}

fn take_events(lines: &mut Lines) -> Emissions {
    let events = lines.values_mut().flat_map(|line| std::mem::take(&mut line.events)).collect();
    Emissions { events, messages: Vec::new() }
}

impl Word for Tokens {
    type Command = TokenCommand;
    const TOPIC: &'static str = topics::TOKENS;
    const GROUP: &'static str = "boxoffice-tokens";
    const WORKER: &'static str = "token-worker";
    const TICK: Option<Duration> = Some(Duration::from_millis(100));
    const CAUSES: Option<&'static str> = None;
    const READS_TOKEN_EVENTS: bool = true;

    async fn apply(
        &mut self,
        transaction: &mut PgConnection,
        now: DateTime<Utc>,
        batch: &[&Logged<TokenCommand>],
    ) -> Result<Applied, sqlx::Error> {
        let demands = demand::of(batch.iter().map(|logged| (&logged.command, logged.told.is_some())));
        let mut state = self.load(transaction, now, &demands).await?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for logged in batch {
            outcomes.push(if let Some(told) = &logged.told {
                again::decide_again(&mut state, &logged.command, told, &self.keys)
            } else {
                let clock = Clock { asked_at: logged.asked_at, now };
                self.outcome(decide(&mut state, &logged.command, clock))
            });
        }
        store::write(transaction, &state.lines, self.keys.signing_kid()).await?;
        // If the transaction fails after all, `forget` is called.
        self.remember(&mut state.lines);
        Ok(Applied { outcomes, emissions: take_events(&mut state.lines) })
    }

    async fn tokens_told(
        &mut self,
        pool: &PgPool,
        fates: &HashMap<TokenId, Fate>,
        at_last: bool,
    ) -> Result<(), sqlx::Error> {
        let stale = store::stale(pool, fates, at_last).await?;
        for fates in stale.chunks(TICK_QUEUES_MAX) {
            let mut demands = Demands::new();
            for (_, fate) in fates {
                let demand = demands.entry(fate.concert_id).or_default();
                demand.joiners.push(fate.user_id);
                demand.retold = true;
            }
            let concerts: Vec<i64> = demands.keys().map(|concert| concert.0).collect();
            let mut transaction = pool.begin().await?;
            let now = store::now(&mut transaction).await?;
            let mut lines = store::lock_queues(&mut transaction, now, &concerts, true).await?;
            store::load_tokens(&mut transaction, &mut lines, &demands, &self.inside, &self.joined).await?;
            for (concert, line) in &mut lines {
                let own: Vec<(TokenId, Fate)> =
                    fates.iter().filter(|(_, fate)| fate.concert_id == *concert).copied().collect();
                again::tell_fates(line, &own, at_last);
            }
            store::write(&mut transaction, &lines, self.keys.signing_kid()).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Ends tokens whose time is over and fills the places of those who paid, left or ran out of time. Every worker looks at every
    /// queue, whoever reads its partition, and leaves out those that another one has just locked: admission goes on while
    /// partitions move, and the row's lock keeps it exact.
    async fn tick(&mut self, pool: &PgPool, _owns: &(dyn Fn(&str) -> bool + Sync)) -> Result<Emissions, sqlx::Error> {
        let concerts = self.next_candidates(pool).await?;
        if concerts.is_empty() {
            return Ok(Emissions::default());
        }
        let mut transaction = pool.begin().await?;
        let now = store::now(&mut transaction).await?;
        let mut lines = self.sweep_and_admit(&mut transaction, now, &concerts).await?;
        transaction.commit().await?;
        self.remember(&mut lines);
        Ok(take_events(&mut lines))
    }

    fn forget(&mut self) {
        self.inside.clear();
        self.empty.clear();
        self.users.forget();
        self.joined.forget();
    }
}
