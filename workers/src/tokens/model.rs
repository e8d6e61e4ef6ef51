//! For tests: a database of one queue, in memory. It loads what `store` loads, no more, and writes what a line says is changed.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use common::bodies::TokenStatus;
use common::ids::{ConcertId, UserId};
use common::messages::tokens::{QueueState, TokenCommand};
use uuid::Uuid;

use super::bucket::{ADMISSION, Bucket};
use super::decide::{Decision, State, decide};
use super::demand::{self, Demand};
use super::inside::Inside;
use super::line::{Change, Counts, Line, Loaded, Queue, Token};
use crate::runtime::word::{Clock, Event};

pub(crate) const CONCERT: ConcertId = ConcertId(7);

/// Microseconds after some midnight.
pub(crate) fn at(us: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::microseconds(us)
}

pub(crate) fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(n))
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) queue: Queue,
    /// In order of places, from 1.
    pub(crate) tokens: Vec<Token>,
    pub(crate) now: DateTime<Utc>,
    /// The share of rows that one transaction may change unasked.
    pub(crate) rows_max: i64,
    pub(crate) events: usize,
    inside: Inside,
}

impl World {
    /// An open queue with a full bucket; who is admitted may stay ten minutes.
    pub(crate) fn new(rate_per_minute: i64, burst: i64, max_active: i64) -> Self {
        let queue = Queue {
            concert_id: CONCERT,
            state: QueueState::Open,
            rate_per_minute,
            burst,
            max_active,
            active_seconds: 600,
            bucket: Bucket { credit: burst * ADMISSION, refilled_at: at(0) },
            next_seq: 1,
            admitted_seq: 0,
            admitted_total: 0,
        };
        Self {
            queue,
            tokens: Vec::new(),
            now: at(0),
            rows_max: demand::rows_max(1),
            events: 0,
            inside: Inside::default(),
        }
    }

    pub(crate) fn advance(&mut self, us: i64) {
        self.now += TimeDelta::microseconds(us);
    }

    /// What the token worker does with a batch.
    pub(crate) fn apply(&mut self, commands: &[TokenCommand]) -> Vec<Decision> {
        let demands = demand::of(commands.iter().map(|command| (command, false)));
        let line = self.load(&demands[&CONCERT]);
        let mut state = State::default();
        state.lines.insert(CONCERT, line);
        let clock = Clock { asked_at: self.now, now: self.now };
        let decisions = commands.iter().map(|command| decide(&mut state, command, clock)).collect();
        self.write(&state.lines[&CONCERT]);
        decisions
    }

    /// What the token worker does ten times a second.
    pub(crate) fn tick(&mut self) {
        let mut line = self.load(&Demand::default());
        line.admit();
        self.write(&line);
    }

    /// What the payment worker does.
    pub(crate) fn complete(&mut self, user: UserId) {
        let now = self.now;
        let live = self.tokens.iter_mut().find(|token| token.user_id == user && token.ended_at.is_none());
        if let Some(token) = live.filter(|token| token.status == TokenStatus::Active) {
            token.status = TokenStatus::Completed;
            token.ended_at = Some(now);
        }
    }

    /// All that were ever admitted.
    pub(crate) fn admitted(&self) -> usize {
        self.tokens.iter().filter(|token| token.admitted_at.is_some()).count()
    }

    pub(crate) fn with_status(&self, status: TokenStatus) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(move |token| token.status == status)
    }

    fn gone_before(&self, seq: i64) -> i64 {
        let left = self.with_status(TokenStatus::Left);
        let gone = left.filter(|token| token.seq > self.queue.admitted_seq && token.seq < seq);
        i64::try_from(gone.count()).unwrap()
    }

    fn load(&self, demand: &Demand) -> Line {
        let mut line = Line::new(self.queue.clone(), self.now);
        let overdue = |token: &&Token| token.expires_at.is_some_and(|end| end <= line.at);
        let count = |n: usize| i64::try_from(n).unwrap();
        let since = line.at - TimeDelta::seconds(60);
        let recent = self.tokens.iter().filter(|token| token.admitted_at.is_some_and(|admitted| admitted > since));
        let (at_most, due) =
            (self.inside.at_most(CONCERT, self.queue.admitted_total), self.inside.count_is_due(CONCERT, line.at));
        let counted = line.needs_count(demand, at_most, due);
        let swept = usize::from(*demand == Demand::default() || line.may_admit(demand));
        let active = count(self.with_status(TokenStatus::Active).count());
        assert!(at_most.is_none_or(|at_most| at_most >= active), "a bound that is too low");
        let counts = Counts {
            active: if counted { Some(active) } else { at_most },
            overdue: count(swept * self.with_status(TokenStatus::Active).filter(overdue).count()),
            gone: self.gone_before(i64::MAX),
            admitted_last_minute: if demand.configured { count(recent.count()) } else { 0 },
        };
        let front_max = line.front_max(demand, &counts, self.rows_max);
        let [rows_max, front_rows] = [self.rows_max, front_max].map(|rows| usize::try_from(rows).unwrap());
        let mut wanted: HashMap<i64, bool> = HashMap::new();
        let overdue = self.with_status(TokenStatus::Active).filter(overdue).take(rows_max * swept);
        let asked = |token: &&Token| demand.joiners.contains(&token.user_id) || demand.leavers.contains(&token.user_id);
        let own = self.tokens.iter().filter(|token| token.ended_at.is_none()).filter(asked);
        wanted.extend(overdue.chain(own).map(|token| (token.seq, false)));
        let waiting = self.with_status(TokenStatus::Waiting);
        wanted.extend(waiting.take(front_rows).map(|token| (token.seq, true)));
        let mut loaded = Loaded { counts, counted, admissions_max: self.rows_max, ..Loaded::default() };
        let mut front = VecDeque::new();
        for token in &self.tokens {
            let Some(in_front) = wanted.get(&token.seq) else { continue };
            if *in_front {
                front.push_back(loaded.tokens.len());
            }
            loaded.tokens.push(Token { gone_before: self.gone_before(token.seq), ..token.clone() });
        }
        loaded.front_complete = count(front.len()) < front_max;
        loaded.front = front;
        line.begin(loaded);
        line
    }

    fn write(&mut self, line: &Line) {
        for token in &line.tokens {
            let row = Token { change: Change::None, gone_before: 0, kid: None, ..token.clone() };
            match token.change {
                Change::None => {}
                Change::Changed => self.tokens[usize::try_from(token.seq - 1).unwrap()] = row,
                Change::New => self.tokens.push(row),
            }
        }
        if let Some(active) = line.active() {
            let counted_at = line.was_counted().then_some(line.at);
            self.inside.note(CONCERT, active, line.queue.admitted_total, counted_at);
        }
        if line.changed {
            self.queue = line.queue.clone();
        } else {
            let unfilled = Queue { bucket: self.queue.bucket, ..line.queue.clone() };
            assert_eq!(unfilled, self.queue, "a change that is not written");
        }
        self.events += line.events.iter().filter(|event| matches!(event, Event::Admitted(_))).count();
    }
}
