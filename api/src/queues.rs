//! What the api knows of queues without asking the database: each queue's marks, refreshed by one query for all, and the states of
//! admitted tokens, kept up to date by the results topic.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::QueueState;
use foldhash::fast::RandomState;
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::fifo::Newest;
use crate::store;

/// How often all queues' marks are read.
const REFRESH: Duration = Duration::from_millis(200);
/// How long such a read may take.
const REFRESH_MAX: Duration = Duration::from_secs(1);
/// When a token's state is read again although the results topic said nothing, in seconds.
const STATE_FRESH_SECONDS: u32 = 60;
/// A result that is older than this tells no news: it is told again.
const NEWS: Duration = Duration::from_secs(10);
/// Counters that tell whether a token changed while its row was read.
const STRIPES: usize = 1_024;

/// One queue, as of the last refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueMark {
    /// Whether it takes joins and admits.
    pub(crate) state: QueueState,
    /// Admissions a minute.
    pub(crate) rate_per_minute: i64,
    /// Buyers inside at the same time, at most.
    pub(crate) max_active: i64,
    /// The last place that was admitted.
    pub(crate) admitted_seq: i64,
    /// Places beyond it whose buyers have left, ascending.
    pub(crate) left: Vec<i64>,
}

/// Where a place in the line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In line, 1 for the next one.
    Waiting(i64),
    /// Given back while waiting.
    Left,
    /// Admitted once; whether it still is, the token's state tells.
    Passed,
}

impl QueueMark {
    /// A position is a subtraction, less those who left in between.
    pub(crate) fn place_of(&self, seq: i64) -> Place {
        if seq <= self.admitted_seq {
            return Place::Passed;
        }
        match self.left.binary_search(&seq) {
            Ok(_) => Place::Left,
            Err(before) => {
                let before = i64::try_from(before).unwrap_or(i64::MAX);
                Place::Waiting((seq - self.admitted_seq - before).max(1))
            }
        }
    }
}

impl QueueMark {
    /// This mark, but never behind `known`: a row may have been read before what the results topic has told since.
    fn not_behind(mut self, known: &Self) -> Self {
        self.admitted_seq = self.admitted_seq.max(known.admitted_seq);
        if !known.left.is_empty() {
            self.left.extend_from_slice(&known.left);
            self.left.sort_unstable();
            self.left.dedup();
        }
        self.drop_passed();
        self
    }

    fn drop_passed(&mut self) {
        let passed = self.left.partition_point(|seq| *seq <= self.admitted_seq);
        self.left.drain(..passed);
    }
}

type Marks = HashMap<ConcertId, Arc<QueueMark>>;

/// The marks of all queues.
pub(crate) struct Queues {
    marks: RwLock<Marks>,
    refreshes: watch::Sender<u64>,
    wanted: Notify,
    /// Moved when a queue is configured, so that a refresh that was under way is not believed.
    configured: AtomicU64,
}

impl Queues {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            marks: RwLock::default(),
            refreshes: watch::channel(0).0,
            wanted: Notify::new(),
            configured: AtomicU64::new(0),
        }
    }

    /// Reads the marks of a queue that is not known: its concert was just made. None: there is no such concert.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn read(&self, pool: &PgPool, concert: ConcertId) -> Result<Option<Arc<QueueMark>>, sqlx::Error> {
        let Some((_, mark)) = store::queues::marks(pool, Some(concert)).await?.pop() else { return Ok(None) };
        let mark = Arc::new(mark);
        self.marks.write().unwrap_or_else(PoisonError::into_inner).insert(concert, mark.clone());
        Ok(Some(mark))
    }

    /// The marks of a queue, if they are known.
    pub(crate) fn known(&self, concert: ConcertId) -> Option<Arc<QueueMark>> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).get(&concert).cloned()
    }

    /// Changes with each refresh: streams look for new positions then.
    pub(crate) fn refreshes(&self) -> watch::Receiver<u64> {
        self.refreshes.subscribe()
    }

    /// The results topic says that a queue was configured: its state counts at once, the rest with the next refresh.
    pub(crate) fn configured(&self, concert: ConcertId, state: QueueState) {
        self.configured.fetch_add(1, Ordering::AcqRel);
        self.change(concert, |mark| mark.state = state);
        self.wanted.notify_one();
    }

    /// The results topic says that this place was admitted, and so all before it.
    pub(crate) fn admitted(&self, concert: ConcertId, seq: i64) {
        if self.known(concert).is_some_and(|mark| mark.admitted_seq < seq) {
            self.change(concert, |mark| {
                mark.admitted_seq = mark.admitted_seq.max(seq);
                mark.drop_passed();
            });
        }
    }

    /// The results topic says that a token has ended; if it was waiting, its place counts no more.
    pub(crate) fn left(&self, concert: ConcertId, seq: i64) {
        if self.known(concert).is_some_and(|mark| matches!(mark.place_of(seq), Place::Waiting(_))) {
            self.change(concert, |mark| {
                if let Err(place) = mark.left.binary_search(&seq) {
                    mark.left.insert(place, seq);
                }
            });
        }
    }

    fn change(&self, concert: ConcertId, change: impl FnOnce(&mut QueueMark)) {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(mark) = marks.get_mut(&concert) {
            change(Arc::make_mut(mark));
        }
    }

    /// Queues whose marks are known.
    pub(crate) fn len(&self) -> usize {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Refreshes all marks until `stop`. While the database is down the last ones stay; `database_up` hears of each try.
    pub(crate) async fn keep_fresh(&self, pool: &PgPool, stop: CancellationToken, database_up: impl Fn(bool)) {
        let mut every = tokio::time::interval(REFRESH);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.wanted.notified() => {}
                () = stop.cancelled() => return,
            }
            let before = self.configured.load(Ordering::Acquire);
            let error = match tokio::time::timeout(REFRESH_MAX, store::queues::marks(pool, None)).await {
                Ok(Ok(marks)) => {
                    self.replace(marks, before);
                    None
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {REFRESH_MAX:?}")),
            };
            database_up(error.is_none());
            match &error {
                Some(error) if !failing => tracing::warn!(error, "positions stand still: the queues cannot be read"),
                None if failing => tracing::info!("positions move again"),
                _ => {}
            }
            failing = error.is_some();
        }
    }

    /// Takes what was read, unless a queue was configured since; another refresh is under way then.
    fn replace(&self, read: Vec<(ConcertId, QueueMark)>, configured_before: u64) {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        if self.configured.load(Ordering::Acquire) != configured_before {
            return;
        }
        let known = std::mem::take(&mut *marks);
        *marks = read
            .into_iter()
            .map(|(concert, mark)| match known.get(&concert) {
                Some(known) => (concert, Arc::new(mark.not_behind(known))),
                None => (concert, Arc::new(mark)),
            })
            .collect();
        drop(marks);
        self.refreshes.send_modify(|count| *count += 1);
    }
}

/// What is known of an admitted token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenState {
    /// It may be used until then.
    Active(DateTime<Utc>),
    /// Expired, completed or left.
    Ended,
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    token: TokenId,
    state: TokenState,
    /// Until when it is not read again, in seconds since these states began: many are remembered, and each is the smaller.
    fresh_until: u32,
}

/// The states of the tokens that were admitted, the last one of each buyer and concert.
pub(crate) struct TokenStates {
    states: Newest<(ConcertId, UserId), Remembered>,
    /// Moved by each change that the results topic tells, so that a row that was read before it is not remembered after it.
    changes: Box<[AtomicU64]>,
    hasher: RandomState,
    began: Instant,
}

/// Taken before a row is read; see [`TokenStates::remember`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadMark {
    stripe: usize,
    count: u64,
}

impl TokenStates {
    /// At most `entries` of them.
    pub(crate) fn new(entries: usize) -> Self {
        let changes = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        Self { states: Newest::new(entries), changes, hasher: RandomState::default(), began: Instant::now() }
    }

    /// What is known of a token, and whether that is still fresh. An end is for ever.
    pub(crate) fn get(&self, concert: ConcertId, buyer: UserId, token: TokenId) -> Option<(TokenState, bool)> {
        let known = self.states.get(&(concert, buyer)).filter(|known| known.token == token)?;
        Some((known.state, known.state == TokenState::Ended || self.seconds() < known.fresh_until))
    }

    /// To be called before the row of a token is read.
    pub(crate) fn read_mark(&self, concert: ConcertId, buyer: UserId) -> ReadMark {
        let stripe = self.stripe(concert, buyer);
        ReadMark { stripe, count: self.changes[stripe].load(Ordering::Acquire) }
    }

    /// Remembers what was read, unless the token may have changed meanwhile.
    pub(crate) fn remember(
        &self,
        concert: ConcertId,
        buyer: UserId,
        token: TokenId,
        state: TokenState,
        before: ReadMark,
    ) {
        // Looked at where what the topic tells is put in, too: that comes after it, or has moved the counter.
        let is_unchanged = || self.changes[before.stripe].load(Ordering::Acquire) == before.count;
        self.states.change((concert, buyer), |_| is_unchanged().then(|| self.fresh(token, state)));
    }

    /// The results topic says that the token is admitted until then, as of `told_at`.
    pub(crate) fn admitted(
        &self,
        concert: ConcertId,
        buyer: UserId,
        token: TokenId,
        until: DateTime<Utc>,
        told_at: DateTime<Utc>,
    ) {
        self.moved(concert, buyer);
        // Results are delivered at least once: this one may be told again, long after the token's end.
        let is_news = (Utc::now() - told_at).to_std().unwrap_or_default() < NEWS;
        self.states.change((concert, buyer), |known| {
            let admitted = self.fresh(token, TokenState::Active(until));
            match known {
                _ if !is_news => None,
                // Which of two is the newer one, only the database knows.
                Some(known) if known.token != token => Some(Remembered { fresh_until: 0, ..admitted }),
                Some(known) if known.state == TokenState::Ended => None,
                _ => Some(admitted),
            }
        });
    }

    /// The results topic says that this token of the buyer has ended.
    pub(crate) fn ended(&self, concert: ConcertId, buyer: UserId, token: TokenId) {
        self.moved(concert, buyer);
        // Of a newer token nothing is said.
        let is_news = |known: Option<&Remembered>| known.is_none_or(|known| known.token == token);
        self.states.change((concert, buyer), |known| is_news(known).then(|| self.fresh(token, TokenState::Ended)));
    }

    /// A token of the buyer may have ended, and it is not known which: the one that is known is read again before it counts. That one, if it
    /// was live.
    pub(crate) fn doubted(&self, concert: ConcertId, buyer: UserId) -> Option<TokenId> {
        self.moved(concert, buyer);
        let mut doubted = None;
        self.states.change((concert, buyer), |known| {
            let live = known.filter(|known| known.state != TokenState::Ended)?;
            doubted = Some(live.token);
            Some(Remembered { fresh_until: 0, ..*live })
        });
        doubted
    }

    /// Tokens whose state is known.
    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    fn fresh(&self, token: TokenId, state: TokenState) -> Remembered {
        Remembered { token, state, fresh_until: self.seconds().saturating_add(STATE_FRESH_SECONDS) }
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn moved(&self, concert: ConcertId, buyer: UserId) {
        self.changes[self.stripe(concert, buyer)].fetch_add(1, Ordering::AcqRel);
    }

    fn stripe(&self, concert: ConcertId, buyer: UserId) -> usize {
        usize::try_from(self.hasher.hash_one((concert, buyer)) % STRIPES as u64).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn mark(admitted_seq: i64, left: &[i64]) -> QueueMark {
        QueueMark { state: QueueState::Open, rate_per_minute: 600, max_active: 10, admitted_seq, left: left.to_vec() }
    }

    #[test]
    fn a_position_is_a_subtraction_less_those_who_left_in_between() {
        let mark = mark(10, &[12, 15]);
        let expected = [
            (9, Place::Passed),
            (10, Place::Passed),
            (11, Place::Waiting(1)),
            (12, Place::Left),
            (13, Place::Waiting(2)),
            (14, Place::Waiting(3)),
            (15, Place::Left),
            (16, Place::Waiting(4)),
        ];
        for (seq, place) in expected {
            assert_eq!(mark.place_of(seq), place, "{seq}");
        }
    }

    #[test]
    fn a_refresh_does_not_fall_behind_what_the_results_topic_told() {
        let queues = Queues::new();
        queues.replace(vec![(CONCERT, mark(10, &[12]))], 0);
        queues.admitted(CONCERT, 12);
        queues.left(CONCERT, 14);
        queues.left(CONCERT, 9);
        assert_eq!(queues.known(CONCERT).unwrap().as_ref(), &mark(12, &[14]));
        queues.replace(vec![(CONCERT, mark(11, &[12]))], 0);
        assert_eq!(queues.known(CONCERT).unwrap().as_ref(), &mark(12, &[14]));
        queues.replace(vec![(CONCERT, mark(15, &[17]))], 0);
        assert_eq!(queues.known(CONCERT).unwrap().as_ref(), &mark(15, &[17]));
        queues.configured(CONCERT, QueueState::Closed);
        queues.replace(vec![(CONCERT, mark(16, &[]))], 0);
        assert_eq!(queues.known(CONCERT).unwrap().state, QueueState::Closed);
    }

    const CONCERT: ConcertId = ConcertId(1);

    fn buyer() -> UserId {
        UserId(Uuid::from_u128(1))
    }

    fn token(n: u128) -> TokenId {
        TokenId(Uuid::from_u128(n))
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let states = TokenStates::new(10);
        let until = Utc::now() + chrono::TimeDelta::seconds(60);
        let before = states.read_mark(CONCERT, buyer());
        states.doubted(CONCERT, buyer());
        states.remember(CONCERT, buyer(), token(1), TokenState::Active(until), before);
        assert_eq!(states.get(CONCERT, buyer(), token(1)), None);
        let before = states.read_mark(CONCERT, buyer());
        states.remember(CONCERT, buyer(), token(1), TokenState::Active(until), before);
        assert_eq!(states.get(CONCERT, buyer(), token(1)), Some((TokenState::Active(until), true)));
        assert_eq!(states.get(CONCERT, buyer(), token(2)), None);
    }

    #[test]
    fn an_end_is_for_ever_and_of_its_own_token_only() {
        let states = TokenStates::new(10);
        let until = Utc::now() + chrono::TimeDelta::seconds(60);
        states.admitted(CONCERT, buyer(), token(1), until, Utc::now());
        states.ended(CONCERT, buyer(), token(1));
        states.admitted(CONCERT, buyer(), token(1), until, Utc::now());
        assert_eq!(states.get(CONCERT, buyer(), token(1)), Some((TokenState::Ended, true)));
        states.admitted(CONCERT, buyer(), token(2), until, Utc::now());
        states.ended(CONCERT, buyer(), token(1));
        let admitted = Some((TokenState::Active(until), false));
        assert_eq!(states.get(CONCERT, buyer(), token(2)), admitted, "read once, since it may be the older one");
        states.admitted(CONCERT, buyer(), token(3), until, Utc::now() - chrono::TimeDelta::seconds(60));
        assert_eq!(states.get(CONCERT, buyer(), token(3)), None);
    }

    #[test]
    fn a_live_token_that_is_doubted_is_read_again_and_an_end_stands() {
        let states = TokenStates::new(10);
        let until = Utc::now() + chrono::TimeDelta::seconds(60);
        assert_eq!(states.doubted(CONCERT, buyer()), None);
        states.admitted(CONCERT, buyer(), token(2), until, Utc::now());
        assert_eq!(states.doubted(CONCERT, buyer()), Some(token(2)));
        assert_eq!(states.get(CONCERT, buyer(), token(2)), Some((TokenState::Active(until), false)));
        let before = states.read_mark(CONCERT, buyer());
        states.remember(CONCERT, buyer(), token(2), TokenState::Ended, before);
        assert_eq!(states.doubted(CONCERT, buyer()), None);
        assert_eq!(states.get(CONCERT, buyer(), token(2)), Some((TokenState::Ended, true)));
    }
}
