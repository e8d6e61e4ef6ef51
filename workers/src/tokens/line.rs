//! One concert's queue in memory: its row, the tokens that a batch may touch, and what may be done to them. Nobody is admitted
//! before an earlier one who waits, above the active limit, or without the bucket's credit.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use common::bodies::TokenStatus;
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::results::TokenEvent;
use common::messages::tokens::{QueueSettings, QueueState};

use super::bucket::Bucket;
use super::demand::Demand;
use crate::runtime::word::Event;

/// A row of `queues`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queue {
    /// The concert.
    pub(crate) concert_id: ConcertId,
    /// Whether it takes joins and admits.
    pub(crate) state: QueueState,
    /// Admissions a minute.
    pub(crate) rate_per_minute: i64,
    /// Admissions that may come at once after a quiet time.
    pub(crate) burst: i64,
    /// Buyers inside at the same time, at most.
    pub(crate) max_active: i64,
    /// How long a newly admitted buyer may stay.
    pub(crate) active_seconds: i64,
    /// The right to admit.
    pub(crate) bucket: Bucket,
    /// The place of the next join; places are dense, from 1.
    pub(crate) next_seq: i64,
    /// The place of the last one admitted.
    pub(crate) admitted_seq: i64,
    /// All that were ever admitted.
    pub(crate) admitted_total: i64,
}

impl Queue {
    fn admits(&self) -> bool {
        matches!(self.state, QueueState::Open | QueueState::Draining)
    }
}

/// A row of `queue_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the columns' names")]
pub(crate) struct Token {
    /// Its place among the joins.
    pub(crate) seq: i64,
    /// Its id.
    pub(crate) token_id: TokenId,
    /// Whose.
    pub(crate) user_id: UserId,
    /// The key that signed it; None: the key that signs now.
    pub(crate) kid: Option<String>,
    /// What has become of it.
    pub(crate) status: TokenStatus,
    /// When its buyer joined.
    pub(crate) issued_at: DateTime<Utc>,
    /// When it was admitted.
    pub(crate) admitted_at: Option<DateTime<Utc>>,
    /// Until when it may be used, once admitted.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// When it ended; None while it is live.
    pub(crate) ended_at: Option<DateTime<Utc>>,
    /// Those before it, behind the last one admitted, who had left when it was loaded.
    pub(crate) gone_before: i64,
    /// What has to be written.
    pub(crate) change: Change,
}

/// How a token differs from its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not at all.
    None,
    /// The row is there and is to be changed.
    Changed,
    /// There is no row yet.
    New,
}

/// Counts over a queue's tokens, as of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// ACTIVE ones at most, those included whose time is over and who were not swept yet. None: nobody knows, so nobody is
    /// admitted.
    pub(crate) active: Option<i64>,
    /// ACTIVE ones whose time is over, if they are to be swept.
    pub(crate) overdue: i64,
    /// Those behind the last one admitted who have left.
    pub(crate) gone: i64,
    /// Admissions in the last 60 seconds; only counted when the queue is configured.
    pub(crate) admitted_last_minute: i64,
}

/// What was loaded of a queue's tokens.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The buyers' own, overdue ones, and the first of those who wait: live ones only, each once.
    pub(crate) tokens: Vec<Token>,
    /// The first of those who wait, in order, as indices of `tokens`. A buyer's own token may lie far behind them, with others
    /// in between that were not loaded.
    pub(crate) front: VecDeque<usize>,
    /// All who wait are in `front`.
    pub(crate) front_complete: bool,
    /// Counts over all tokens of the queue.
    pub(crate) counts: Counts,
    /// The ACTIVE ones were counted just now; else their number is a bound.
    pub(crate) counted: bool,
    /// Admissions that this transaction makes at most.
    pub(crate) admissions_max: i64,
}

/// Those in line that are loaded when tokens come back that were told of: whoever was before an admitted one is admitted, too.
const RETOLD_FRONT_MAX: i64 = 100_000;

/// The place that a token was told to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Among the joins.
    pub(crate) seq: i64,
    /// The key that signed the token.
    pub(crate) kid: Option<String>,
}

/// Where a live token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Inside.
    Active {
        /// Until then.
        expires_at: DateTime<Utc>,
    },
    /// In line.
    Waiting {
        /// From 1.
        position: i64,
    },
}

/// One concert's queue.
#[derive(Debug)]
pub(crate) struct Line {
    /// The queue's row, as it is to be.
    pub(crate) queue: Queue,
    /// Whether the row is to be written.
    pub(crate) changed: bool,
    /// The tokens that were loaded or made.
    pub(crate) tokens: Vec<Token>,
    /// What happened to them.
    pub(crate) events: Vec<Event>,
    /// The queue's own time, which never goes back; all that happens in this transaction happens then.
    pub(crate) at: DateTime<Utc>,
    live: HashMap<UserId, usize>,
    /// Who waits, in order, as far as loaded.
    front: VecDeque<usize>,
    /// All who wait are in `front`; else nobody may be appended to it, since others come before.
    front_complete: bool,
    counts: Counts,
    counted: bool,
    active: Option<i64>,
    /// Behind the last one admitted, as of the load.
    first_unadmitted: i64,
    admitted_now: i64,
    admissions_max: i64,
    /// Places of those who left the line in this transaction.
    left_now: Vec<i64>,
}

impl Line {
    /// A queue whose row was just locked, with nothing loaded yet. Its bucket is refilled up to `now`.
    pub(crate) fn new(mut queue: Queue, now: DateTime<Utc>) -> Self {
        let at = queue.bucket.refill(now, queue.rate_per_minute, queue.burst);
        let first_unadmitted = queue.admitted_seq + 1;
        Self {
            queue,
            changed: false,
            tokens: Vec::new(),
            events: Vec::new(),
            at,
            live: HashMap::new(),
            front: VecDeque::new(),
            front_complete: false,
            counts: Counts::default(),
            counted: false,
            active: None,
            first_unadmitted,
            admitted_now: 0,
            admissions_max: 0,
            left_now: Vec::new(),
        }
    }

    /// Whether `demand` can admit anybody at all.
    pub(crate) fn may_admit(&self, demand: &Demand) -> bool {
        demand.configured || (self.queue.admits() && self.queue.bucket.admissions() > 0)
    }

    /// Whether those inside have to be counted for `demand`: an operator wants to know, or the bound `at_most` stands in the way
    /// of an admission. `due`: it is time for another count.
    pub(crate) fn needs_count(&self, demand: &Demand, at_most: Option<i64>, due: bool) -> bool {
        if demand.configured || !self.may_admit(demand) {
            return demand.configured;
        }
        let Some(at_most) = at_most else { return true };
        let somebody_waits = self.queue.next_seq > self.first_unadmitted;
        let wanted = if somebody_waits { i64::MAX } else { count(demand.joiners.len()) };
        due && self.queue.max_active - at_most < wanted.min(self.queue.bucket.admissions())
    }

    /// How many may be let in at most while `demand` is met.
    fn room(&self, demand: &Demand, active: i64) -> i64 {
        self.queue.max_active.max(demand.max_active) - active + count(demand.leavers.len())
    }

    /// How many of those who wait have to be loaded, so that `demand` cannot admit a join before them: as many as can be
    /// admitted (`rows_max` at most), and for each that may leave one more.
    pub(crate) fn front_max(&self, demand: &Demand, counts: &Counts, rows_max: i64) -> i64 {
        if demand.retold {
            return RETOLD_FRONT_MAX;
        }
        let Some(active) = counts.active.filter(|_| self.may_admit(demand)) else { return 0 };
        let room = self.room(demand, active - counts.overdue);
        let admissions = room.min(self.queue.bucket.admissions()).clamp(0, rows_max);
        // An operator is told how long the first one has waited, who comes after those who are admitted.
        admissions + count(demand.leavers.len()) + i64::from(demand.configured)
    }

    /// Takes what was loaded, and ends the tokens whose time is over.
    pub(crate) fn begin(&mut self, loaded: Loaded) {
        self.counts = loaded.counts;
        self.counted = loaded.counted;
        self.active = loaded.counts.active;
        self.tokens = loaded.tokens;
        self.front = loaded.front;
        self.front_complete = loaded.front_complete;
        self.admissions_max = loaded.admissions_max;
        self.live = self.tokens.iter().enumerate().map(|(index, token)| (token.user_id, index)).collect();
        for index in 0..self.tokens.len() {
            let token = &self.tokens[index];
            if token.status == TokenStatus::Active && token.expires_at.is_some_and(|end| end <= self.at) {
                self.end(index, TokenStatus::Expired);
            }
        }
    }

    /// The live token of a buyer.
    pub(crate) fn live(&self, user: UserId) -> Option<usize> {
        self.live.get(&user).copied()
    }

    /// Somebody left the line behind the last one admitted, so a place alone does not tell a position.
    pub(crate) fn has_gaps(&self) -> bool {
        self.counts.gone > 0
    }

    /// The waiting tokens that `users` have, in order of places.
    pub(crate) fn waiting_of(&self, users: &[UserId]) -> Vec<usize> {
        let own = users.iter().filter_map(|user| self.live(*user));
        let mut waiting: Vec<usize> = own.filter(|index| self.tokens[*index].status == TokenStatus::Waiting).collect();
        waiting.sort_unstable_by_key(|index| self.tokens[*index].seq);
        waiting.dedup();
        waiting
    }

    /// A buyer without a live token joins: behind all others, or at the place that the token was told to have.
    pub(crate) fn join(
        &mut self,
        token_id: TokenId,
        user_id: UserId,
        issued_at: DateTime<Utc>,
        told: Option<Place>,
    ) -> usize {
        let index = self.tokens.len();
        let Place { seq, kid } = told.unwrap_or(Place { seq: self.queue.next_seq, kid: None });
        self.tokens.push(Token {
            seq,
            token_id,
            user_id,
            kid,
            status: TokenStatus::Waiting,
            issued_at,
            admitted_at: None,
            expires_at: None,
            ended_at: None,
            gone_before: self.counts.gone,
            change: Change::New,
        });
        self.queue.next_seq = self.queue.next_seq.max(seq + 1);
        self.changed = true;
        self.live.insert(user_id, index);
        if self.front_complete {
            self.front.push_back(index);
        }
        index
    }

    /// Ends a live token: its buyer left, or its time is over.
    pub(crate) fn end(&mut self, index: usize, status: TokenStatus) {
        let token = &mut self.tokens[index];
        match token.status {
            TokenStatus::Active => self.active = self.active.map(|active| active - 1),
            _ => self.left_now.push(token.seq),
        }
        token.status = status;
        token.ended_at = Some(self.at);
        mark(token);
        self.live.remove(&token.user_id);
        let event = event(token, self.queue.concert_id, self.at, None);
        self.events.push(Event::Expired(event));
    }

    /// Admits those whose turn it is.
    pub(crate) fn admit(&mut self) {
        let Some(mut active) = self.active.filter(|_| self.queue.admits()) else { return };
        let expires_at = self.at + TimeDelta::seconds(self.queue.active_seconds);
        while let Some(index) = self.next_in_line()
            && active < self.queue.max_active
            && self.admitted_now < self.admissions_max
            && self.queue.bucket.take()
        {
            self.let_in(index, self.at, expires_at);
            active += 1;
        }
        self.active = Some(active);
    }

    /// Admits a token that was admitted before the database forgot it, and all before it: they were, too. It takes nothing from the
    /// bucket, which gave it then.
    pub(crate) fn admit_again(&mut self, index: usize, at: DateTime<Utc>, until: DateTime<Utc>) {
        while let Some(next) = self.next_in_line().filter(|_| self.tokens[index].status == TokenStatus::Waiting) {
            self.let_in(next, at, until);
            self.active = self.active.map(|active| active + 1);
        }
    }

    /// Lets the first in line in.
    fn let_in(&mut self, index: usize, at: DateTime<Utc>, expires_at: DateTime<Utc>) {
        self.front.pop_front();
        let token = &mut self.tokens[index];
        token.status = TokenStatus::Active;
        token.admitted_at = Some(at);
        token.expires_at = Some(expires_at);
        mark(token);
        self.admitted_now += 1;
        self.queue.admitted_seq = token.seq;
        self.queue.admitted_total += 1;
        self.changed = true;
        let event = event(token, self.queue.concert_id, at, Some(expires_at));
        self.events.push(Event::Admitted(event));
    }

    /// Whether a token is admitted and not over.
    pub(crate) fn is_active(&self, index: usize) -> bool {
        self.tokens[index].status == TokenStatus::Active
    }

    fn next_in_line(&mut self) -> Option<usize> {
        while let Some(index) = self.front.front().copied() {
            if self.tokens[index].status == TokenStatus::Waiting {
                return Some(index);
            }
            self.front.pop_front();
        }
        None
    }

    /// Changes the settings. What was earned until now was earned at the old rate.
    pub(crate) fn configure(&mut self, settings: &QueueSettings) {
        let queue = &mut self.queue;
        queue.rate_per_minute = settings.rate_per_minute.unwrap_or(queue.rate_per_minute);
        queue.burst = settings.burst.unwrap_or(queue.burst);
        queue.max_active = settings.max_active.unwrap_or(queue.max_active);
        queue.active_seconds = settings.active_seconds.unwrap_or(queue.active_seconds);
        queue.state = settings.state.unwrap_or(queue.state);
        queue.bucket.cap(queue.burst);
        self.changed = true;
    }

    /// Where a live token stands.
    pub(crate) fn standing(&self, index: usize) -> Standing {
        let token = &self.tokens[index];
        match token.expires_at {
            Some(expires_at) => Standing::Active { expires_at },
            None => Standing::Waiting { position: self.position(token) },
        }
    }

    /// A subtraction: its place, less those admitted, less those who left in between. All that were admitted in this
    /// transaction came before it.
    fn position(&self, token: &Token) -> i64 {
        let left_now = self.left_now.iter().filter(|seq| **seq < token.seq).count();
        (token.seq - self.first_unadmitted + 1 - token.gone_before - self.admitted_now - count(left_now)).max(1)
    }

    /// Buyers in line.
    pub(crate) fn waiting(&self) -> i64 {
        self.queue.next_seq - self.first_unadmitted - self.counts.gone - self.admitted_now - count(self.left_now.len())
    }

    /// Buyers inside, at most; exactly if [`Self::was_counted`].
    pub(crate) fn active(&self) -> Option<i64> {
        self.active
    }

    /// Those inside were counted in this transaction.
    pub(crate) fn was_counted(&self) -> bool {
        self.counted
    }

    /// Admissions in the last 60 seconds; only known when the queue is configured.
    pub(crate) fn admitted_last_minute(&self) -> i64 {
        self.counts.admitted_last_minute + self.admitted_now
    }

    /// When the first in line joined.
    pub(crate) fn oldest_issued_at(&mut self) -> Option<DateTime<Utc>> {
        self.next_in_line().map(|index| self.tokens[index].issued_at)
    }

    /// Nobody waits: known for certain, because all who could were loaded.
    pub(crate) fn is_empty(&mut self) -> bool {
        self.front_complete && self.next_in_line().is_none()
    }
}

fn mark(token: &mut Token) {
    if token.change == Change::None {
        token.change = Change::Changed;
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn event(token: &Token, concert_id: ConcertId, at: DateTime<Utc>, expires_at: Option<DateTime<Utc>>) -> TokenEvent {
    TokenEvent { token_id: token.token_id, user_id: token.user_id, concert_id, at, expires_at, seq: Some(token.seq) }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
