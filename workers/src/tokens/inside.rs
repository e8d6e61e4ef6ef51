//! How many are inside at most, without counting them each time: a queue may have a million inside.
//!
//! Only an admission adds one, and each admission, whoever makes it, moves the queue's `admitted_total`. So the number counted
//! once, and the admissions since, are a bound for ever; it is too high by those who have paid, left or run out of time since.
//! A new count is needed only when the bound stands in somebody's way.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use common::ids::ConcertId;

/// Queues that are remembered before it starts afresh.
const REMEMBERED_MAX: usize = 10_000;
/// Time from one count to the next, for each one inside: a full queue of a thousand is counted at every tick, one of a
/// million not more often than the database can bear.
const COUNT_REST_US: i64 = 2;

/// Upper bounds of how many are inside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inside {
    known: HashMap<ConcertId, Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    at_most: i64,
    /// The queue's, when `at_most` was right.
    admitted_total: i64,
    counted_at: DateTime<Utc>,
}

impl Inside {
    /// Those inside a queue whose `admitted_total` is this are not more.
    pub(crate) fn at_most(&self, concert: ConcertId, admitted_total: i64) -> Option<i64> {
        let known = self.known.get(&concert)?;
        // Fewer admissions than there were: the database is another one.
        let since = admitted_total.checked_sub(known.admitted_total).filter(|since| *since >= 0)?;
        Some(known.at_most + since)
    }

    /// Whether the queue was not counted yet, or long enough ago.
    pub(crate) fn count_is_due(&self, concert: ConcertId, now: DateTime<Utc>) -> bool {
        let rest = |known: &Known| TimeDelta::microseconds(known.at_most.saturating_mul(COUNT_REST_US));
        self.known.get(&concert).is_none_or(|known| now - known.counted_at >= rest(known))
    }

    /// Remembers that not more than `at_most` are inside, as of `admitted_total`. `counted_at` tells when they were counted, if they
    /// just were.
    pub(crate) fn note(
        &mut self,
        concert: ConcertId,
        at_most: i64,
        admitted_total: i64,
        counted_at: Option<DateTime<Utc>>,
    ) {
        if self.known.len() >= REMEMBERED_MAX && !self.known.contains_key(&concert) {
            self.known.clear();
        }
        let before = self.known.get(&concert).map(|known| known.counted_at);
        if let Some(counted_at) = counted_at.or(before) {
            self.known.insert(concert, Known { at_most, admitted_total, counted_at });
        }
    }

    /// Forgets all bounds: they may be of a transaction that was rolled back.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONCERT: ConcertId = ConcertId(1);

    fn at(us: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::microseconds(us)
    }

    #[test]
    fn whoever_admits_the_bound_grows_with_it() {
        let mut inside = Inside::default();
        assert_eq!(inside.at_most(CONCERT, 7), None);
        inside.note(CONCERT, 5, 7, Some(at(0)));
        assert_eq!(inside.at_most(CONCERT, 7), Some(5));
        assert_eq!(inside.at_most(CONCERT, 10), Some(8));
        assert_eq!(inside.at_most(CONCERT, 6), None, "a database of an earlier time");
    }

    #[test]
    fn the_more_are_inside_the_more_seldom_they_are_counted() {
        let mut inside = Inside::default();
        assert!(inside.count_is_due(CONCERT, at(0)));
        inside.note(CONCERT, 1_000, 1_000, Some(at(0)));
        assert!(!inside.count_is_due(CONCERT, at(1_999)));
        inside.note(CONCERT, 1_000, 1_000, None);
        assert!(inside.count_is_due(CONCERT, at(2_000)));
        inside.note(CONCERT, 1_000_000, 1_000_000, Some(at(0)));
        assert!(!inside.count_is_due(CONCERT, at(1_999_999)));
    }
}
