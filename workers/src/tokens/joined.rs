//! Who may have joined a line. In the minute when sales open nearly every join is its buyer's first, and the search for a live token that he
//! has already finds nothing.
//!
//! Places are dense from 1, and each join takes one. So of a line whose places were all given by this worker, from the first one on, it knows
//! all who ever joined: the next place is still the one where it left the line. Of any other line it knows nothing, and everybody is searched
//! for; for good, if partitions move or a transaction is rolled back once the line has begun. Those who joined are kept in a filter that may
//! take a stranger for one of them, which costs a search, and never the reverse. Were it wrong all the same, the unique index
//! `queue_tokens_live` would refuse a second live token, and the next try, with all forgotten, would find the first.

use std::collections::HashMap;

use common::ids::{ConcertId, UserId};
use fastbloom::BloomFilter;

use super::line::{Change, Line, Queue};

/// Joins that are remembered before it starts afresh; there are not more lines.
const JOINS_MAX: usize = 2_000_000;
/// Bits of the filter, 2 MB: when it is full, 1 stranger in 50 is taken for one who joined.
const FILTER_BITS: usize = 1 << 24;

/// Those who joined the lines that are known from their first place on.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The next place of each line, as this worker left it.
    lines: HashMap<ConcertId, i64>,
    filter: BloomFilter,
    joins: usize,
    joins_max: usize,
}

impl Default for Joined {
    fn default() -> Self {
        Self::of_at_most(JOINS_MAX)
    }
}

impl Joined {
    fn of_at_most(joins_max: usize) -> Self {
        let filter = BloomFilter::with_num_bits(FILTER_BITS).expected_items(joins_max);
        Self { lines: HashMap::new(), filter, joins: 0, joins_max }
    }

    /// Whether this buyer may have joined the line, whose row is locked.
    pub(crate) fn may_include(&self, queue: &Queue, user: UserId) -> bool {
        !self.knows(queue.concert_id, queue.next_seq) || self.filter.contains(&(queue.concert_id, user))
    }

    /// Remembers the joins of a transaction that is about to be committed. A token that comes back with a place that it was told to have
    /// leaves a gap or fills one: then the places do not add up, and the line is not known any longer.
    pub(crate) fn note(&mut self, line: &Line) {
        let Queue { concert_id, next_seq, .. } = line.queue;
        let new = line.tokens.iter().filter(|token| token.change == Change::New);
        let given = new.clone().count();
        if given == 0 {
            return;
        }
        let known = i64::try_from(given).is_ok_and(|given| self.knows(concert_id, next_seq - given));
        if self.joins + given > self.joins_max {
            self.forget();
        } else if known {
            new.for_each(|token| _ = self.filter.insert(&(concert_id, token.user_id)));
            self.joins += given;
            self.lines.insert(concert_id, next_seq);
        } else {
            self.lines.remove(&concert_id);
        }
    }

    /// Forgets everybody: what was noted may have been rolled back, or the database is another one.
    pub(crate) fn forget(&mut self) {
        self.lines.clear();
        self.filter.clear();
        self.joins = 0;
    }

    fn knows(&self, concert: ConcertId, next_seq: i64) -> bool {
        next_seq == 1 || self.lines.get(&concert) == Some(&next_seq)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use common::ids::TokenId;
    use common::messages::tokens::QueueState;
    use uuid::Uuid;

    use super::*;
    use crate::tokens::bucket::Bucket;
    use crate::tokens::line::Place;

    fn user(n: u128) -> UserId {
        UserId(Uuid::from_u128(n))
    }

    fn line(concert: i64, next_seq: i64) -> Line {
        let queue = Queue {
            concert_id: ConcertId(concert),
            state: QueueState::Open,
            rate_per_minute: 60,
            burst: 1,
            max_active: 0,
            active_seconds: 60,
            bucket: Bucket { credit: 0, refilled_at: DateTime::UNIX_EPOCH },
            next_seq,
            admitted_seq: 0,
            admitted_total: 0,
        };
        Line::new(queue, DateTime::UNIX_EPOCH)
    }

    /// The line after these buyers have joined it, from its place `next_seq` on.
    fn joined_by(next_seq: i64, users: impl IntoIterator<Item = u128>) -> Line {
        let mut line = line(1, next_seq);
        for n in users {
            line.join(TokenId(Uuid::from_u128(n)), user(n), DateTime::UNIX_EPOCH, None);
        }
        line
    }

    #[test]
    fn a_line_that_is_known_from_its_first_place_includes_those_who_joined_and_no_others() {
        let mut joined = Joined::default();
        assert!(!joined.may_include(&line(1, 1).queue, user(1)), "nobody has ever joined it");
        joined.note(&joined_by(1, 1..=500));
        joined.note(&joined_by(501, 501..=1_000));
        let now = line(1, 1_001).queue;
        assert!((1..=1_000).all(|n| joined.may_include(&now, user(n))));
        assert!((1_001..=2_000).filter(|n| joined.may_include(&now, user(*n))).count() < 20);
        assert!(joined.may_include(&line(2, 1_001).queue, user(1_001)), "nothing is known of another line");
    }

    #[test]
    fn a_line_in_which_others_gave_places_may_include_everybody() {
        let mut joined = Joined::default();
        joined.note(&joined_by(1, [1]));
        assert!(joined.may_include(&line(1, 3).queue, user(9)), "another worker made place 2");
        joined.note(&joined_by(3, [3]));
        assert!(joined.may_include(&line(1, 4).queue, user(9)), "and is not remembered by what came after it");
        joined.note(&joined_by(4, []));
        assert!(joined.may_include(&line(1, 4).queue, user(9)));
    }

    #[test]
    fn a_line_to_which_a_token_came_back_with_its_own_place_may_include_everybody() {
        let mut joined = Joined::default();
        joined.note(&joined_by(1, 1..=2));
        let mut line = joined_by(3, []);
        for (n, seq) in [(5, 5), (3, 3)] {
            let told = Some(Place { seq, kid: None });
            line.join(TokenId(Uuid::from_u128(n)), user(n), DateTime::UNIX_EPOCH, told);
        }
        joined.note(&line);
        assert!(joined.may_include(&line.queue, user(9)), "place 4 is another's");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut joined = Joined::of_at_most(3);
        joined.note(&joined_by(1, 1..=2));
        assert!(!joined.may_include(&line(1, 3).queue, user(9)));
        joined.note(&joined_by(3, 3..=4));
        assert!(joined.may_include(&line(1, 5).queue, user(9)), "it starts afresh, with lines that begin now");
        assert_eq!(joined.joins, 0);
    }

    #[test]
    fn what_was_rolled_back_is_forgotten() {
        let mut joined = Joined::default();
        joined.note(&joined_by(1, [1]));
        joined.forget();
        assert!(joined.may_include(&line(1, 2).queue, user(2)), "another buyer may have got this place since");
    }
}
