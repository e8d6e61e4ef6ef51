//! What the results topic tells the rest of the process: a queue token changed, the seats of a schedule changed.
//!
//! The results reader tells it before it wakes the callers that wait for an outcome, so a buyer reads what he wrote.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use chrono::{DateTime, Utc};
use common::ids::{ScheduleId, TokenId};
use tokio::sync::watch;

/// What happened last to a queue token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenChange {
    /// Nothing since it is watched.
    None,
    /// Its buyer may enter, until then.
    Admitted(Option<DateTime<Utc>>),
    /// It has ended.
    Ended,
    /// It may have.
    Doubted,
}

/// Called with the schedule whose seats changed; None: any may have changed.
pub(crate) type SeatHook = Box<dyn Fn(Option<ScheduleId>) + Send + Sync>;

type Watched = Arc<Mutex<HashMap<TokenId, watch::Sender<TokenChange>>>>;

/// Who listens.
#[derive(Default)]
pub(crate) struct Bus {
    watched: Watched,
    seats: OnceLock<SeatHook>,
}

impl Bus {
    /// Follows one token until the watch is dropped.
    pub(crate) fn watch_token(&self, token: TokenId) -> TokenWatch {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = watched.entry(token).or_insert_with(|| watch::channel(TokenChange::None).0).subscribe();
        drop(watched);
        TokenWatch { token, changes, watched: self.watched.clone() }
    }

    /// Tells those who follow the token.
    pub(crate) fn token_changed(&self, token: TokenId, change: TokenChange) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(&token) {
            sender.send_replace(change);
        }
    }

    /// Sets who is told of changed seats, once.
    pub(crate) fn on_seats_changed(&self, hook: SeatHook) {
        if self.seats.set(hook).is_err() {
            tracing::error!("a second listener for changed seats is not heard");
        }
    }

    /// Tells that seats changed hands; None: of a schedule that is not known.
    pub(crate) fn seats_changed(&self, schedule: Option<ScheduleId>) {
        if let Some(hook) = self.seats.get() {
            hook(schedule);
        }
    }
}

/// One follower of a token.
pub(crate) struct TokenWatch {
    token: TokenId,
    /// Changes when something happens to the token.
    pub(crate) changes: watch::Receiver<TokenChange>,
    watched: Watched,
}

impl Drop for TokenWatch {
    fn drop(&mut self) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // This one is still counted.
        if watched.get(&self.token).is_some_and(|sender| sender.receiver_count() <= 1) {
            watched.remove(&self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_hear_of_their_token_and_are_forgotten_when_they_go() {
        let bus = Bus::default();
        let token = TokenId(uuid::Uuid::from_u128(1));
        let (one, two) = (bus.watch_token(token), bus.watch_token(token));
        bus.token_changed(TokenId(uuid::Uuid::from_u128(2)), TokenChange::Ended);
        assert!(!one.changes.has_changed().unwrap());
        bus.token_changed(token, TokenChange::Ended);
        assert_eq!(*two.changes.borrow(), TokenChange::Ended);
        drop(one);
        assert_eq!(bus.watched.lock().unwrap().len(), 1);
        drop(two);
        assert!(bus.watched.lock().unwrap().is_empty());
    }
}
