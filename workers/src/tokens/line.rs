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
pub struct Queue {
    /// The concert.
    pub concert_id: ConcertId,
    /// Whether it takes joins and admits.
    pub state: QueueState,
    /// Admissions a minute.
    pub rate_per_minute: i64,
    /// Admissions that may come at once after a quiet time.
    pub burst: i64,
    /// Buyers inside at the same time, at most.
    pub max_active: i64,
    /// How long a newly admitted buyer may stay.
    pub active_seconds: i64,
    /// The right to admit.
    pub bucket: Bucket,
    /// The place of the next join; places are dense, from 1.
    pub next_seq: i64,
    /// The place of the last one admitted.
    pub admitted_seq: i64,
    /// All that were ever admitted.
    pub admitted_total: i64,
}

impl Queue {
    fn admits(&self) -> bool {
        matches!(self.state, QueueState::Open | QueueState::Draining)
    }
}

/// A row of `queue_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its place among the joins.
    pub seq: i64,
    /// Its id.
    pub token_id: TokenId,
    /// Whose.
    pub user_id: UserId,
    /// The key that signed it; None: the key that signs now, because it is new.
    pub kid: Option<String>,
    /// What has become of it.
    pub status: TokenStatus,
    /// When its buyer joined.
    pub issued_at: DateTime<Utc>,
    /// When it was admitted.
    pub admitted_at: Option<DateTime<Utc>>,
    /// Until when it may be used, once admitted.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it ended; None while it is live.
    pub ended_at: Option<DateTime<Utc>>,
    /// Those before it, behind the last one admitted, who had left when it was loaded.
    pub gone_before: i64,
    /// What has to be written.
    pub change: Change,
}

/// How a token differs from its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// The row is there and is to be changed.
    Changed,
    /// There is no row yet.
    New,
}

/// Counts over a queue's tokens, as of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// ACTIVE ones, those included whose time is over and who were not swept yet.
    pub active: i64,
    /// Of these, those whose time is over.
    pub overdue: i64,
    /// Those behind the last one admitted who have left.
    pub gone: i64,
    /// Admissions in the last 60 seconds; only counted when the queue is configured.
    pub admitted_last_minute: i64,
}

/// What was loaded of a queue's tokens.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The buyers' own, overdue ones, and the first of those who wait: live ones only, each once.
    pub tokens: Vec<Token>,
    /// The first of those who wait, in order, as indices of `tokens`. A buyer's own token may lie far behind them, with others
    /// in between that were not loaded.
    pub front: VecDeque<usize>,
    /// All who wait are in `front`.
    pub front_complete: bool,
    /// Counts over all tokens of the queue.
    pub counts: Counts,
}

/// Where a live token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
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
pub struct Line {
    /// The queue's row, as it is to be.
    pub queue: Queue,
    /// Whether the row is to be written.
    pub changed: bool,
    /// The tokens that were loaded or made.
    pub tokens: Vec<Token>,
    /// What happened to them.
    pub events: Vec<Event>,
    /// The queue's own time, which never goes back; all that happens in this transaction happens then.
    pub at: DateTime<Utc>,
    live: HashMap<UserId, usize>,
    /// Who waits, in order, as far as loaded.
    front: VecDeque<usize>,
    /// All who wait are in `front`; else nobody may be appended to it, since others come before.
    front_complete: bool,
    counts: Counts,
    active: i64,
    /// Behind the last one admitted, as of the load.
    first_unadmitted: i64,
    admitted_now: i64,
    /// Places of those who left the line in this transaction.
    left_now: Vec<i64>,
}

impl Line {
    /// A queue whose row was just locked, with nothing loaded yet. Its bucket is refilled up to `now`.
    pub fn new(mut queue: Queue, now: DateTime<Utc>) -> Self {
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
            active: 0,
            first_unadmitted,
            admitted_now: 0,
            left_now: Vec::new(),
        }
    }

    /// How many of those who wait have to be loaded, so that `demand` cannot admit a join before them: as many as can be
    /// admitted (`rows_max` at most), and for each that may leave one more.
    pub fn front_max(&self, demand: &Demand, counts: &Counts, rows_max: i64) -> i64 {
        if !self.queue.admits() && !demand.configured {
            return 0;
        }
        let leavers = i64::try_from(demand.leavers.len()).unwrap_or(i64::MAX);
        let limit = self.queue.max_active.max(demand.max_active);
        let room = limit - (counts.active - counts.overdue) + leavers;
        let admissions = room.min(self.queue.bucket.admissions()).clamp(0, rows_max);
        // An operator is told how long the first one has waited, who comes after those who are admitted.
        admissions + leavers + i64::from(demand.configured)
    }

    /// Takes what was loaded, and ends the tokens whose time is over.
    pub fn begin(&mut self, loaded: Loaded) {
        self.counts = loaded.counts;
        self.active = loaded.counts.active;
        self.tokens = loaded.tokens;
        self.front = loaded.front;
        self.front_complete = loaded.front_complete;
        self.live = self.tokens.iter().enumerate().map(|(index, token)| (token.user_id, index)).collect();
        for index in 0..self.tokens.len() {
            let token = &self.tokens[index];
            if token.status == TokenStatus::Active && token.expires_at.is_some_and(|end| end <= self.at) {
                self.end(index, TokenStatus::Expired);
            }
        }
    }

    /// The live token of a buyer.
    pub fn live(&self, user: UserId) -> Option<usize> {
        self.live.get(&user).copied()
    }

    /// Somebody left the line behind the last one admitted, so a place alone does not tell a position.
    pub fn has_gaps(&self) -> bool {
        self.counts.gone > 0
    }

    /// The waiting tokens that `users` have, in order of places.
    pub fn waiting_of(&self, users: &[UserId]) -> Vec<usize> {
        let own = users.iter().filter_map(|user| self.live(*user));
        let mut waiting: Vec<usize> = own.filter(|index| self.tokens[*index].status == TokenStatus::Waiting).collect();
        waiting.sort_unstable_by_key(|index| self.tokens[*index].seq);
        waiting.dedup();
        waiting
    }

    /// A buyer without a live token joins.
    pub fn join(&mut self, token_id: TokenId, user_id: UserId, issued_at: DateTime<Utc>) -> usize {
        let index = self.tokens.len();
        self.tokens.push(Token {
            seq: self.queue.next_seq,
            token_id,
            user_id,
            kid: None,
            status: TokenStatus::Waiting,
            issued_at,
            admitted_at: None,
            expires_at: None,
            ended_at: None,
            gone_before: self.counts.gone,
            change: Change::New,
        });
        self.queue.next_seq += 1;
        self.changed = true;
        self.live.insert(user_id, index);
        if self.front_complete {
            self.front.push_back(index);
        }
        index
    }

    /// Ends a live token: its buyer left, or its time is over.
    pub fn end(&mut self, index: usize, status: TokenStatus) {
        let token = &mut self.tokens[index];
        match token.status {
            TokenStatus::Active => self.active -= 1,
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
    pub fn admit(&mut self) {
        if !self.queue.admits() {
            return;
        }
        let expires_at = self.at + TimeDelta::seconds(self.queue.active_seconds);
        while let Some(index) = self.next_in_line()
            && self.active < self.queue.max_active
            && self.queue.bucket.take()
        {
            self.front.pop_front();
            let token = &mut self.tokens[index];
            token.status = TokenStatus::Active;
            token.admitted_at = Some(self.at);
            token.expires_at = Some(expires_at);
            mark(token);
            self.active += 1;
            self.admitted_now += 1;
            self.queue.admitted_seq = token.seq;
            self.queue.admitted_total += 1;
            self.changed = true;
            let event = event(token, self.queue.concert_id, self.at, Some(expires_at));
            self.events.push(Event::Admitted(event));
        }
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
    pub fn configure(&mut self, settings: &QueueSettings) {
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
    pub fn standing(&self, index: usize) -> Standing {
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
    pub fn waiting(&self) -> i64 {
        self.queue.next_seq - self.first_unadmitted - self.counts.gone - self.admitted_now - count(self.left_now.len())
    }

    /// Buyers inside.
    pub fn active(&self) -> i64 {
        self.active
    }

    /// Admissions in the last 60 seconds; only known when the queue is configured.
    pub fn admitted_last_minute(&self) -> i64 {
        self.counts.admitted_last_minute + self.admitted_now
    }

    /// When the first in line joined.
    pub fn oldest_issued_at(&mut self) -> Option<DateTime<Utc>> {
        self.next_in_line().map(|index| self.tokens[index].issued_at)
    }

    /// Nobody waits: known for certain, because all who could were loaded.
    pub fn is_empty(&mut self) -> bool {
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
