//! The token bucket that makes admission exact: over any window, admissions ≤ rate × time + burst.
//!
//! Integers only. `credit` counts 60-millionths of an admission, because at one admission a minute a microsecond (the
//! database's finest step) earns exactly one of them: nothing is ever rounded, however often the bucket is refilled.

use chrono::{DateTime, Utc};

/// What one admission costs, in the unit of `credit`.
pub(crate) const ADMISSION: i64 = 60_000_000;

/// A queue's right to admit, as of an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// In 60-millionths of an admission.
    pub(crate) credit: i64,
    /// The instant that `credit` is of.
    pub(crate) refilled_at: DateTime<Utc>,
}

impl Bucket {
    /// Earns what the time up to `now` is worth at `rate_per_minute`, and keeps what `burst` admissions cost at most.
    ///
    /// Answers the bucket's own time, which never goes back: a transaction that began earlier and got the row's lock later
    /// counts as of the one before it, or else its admissions would lie in a window that had not earned them.
    pub(crate) fn refill(&mut self, now: DateTime<Utc>, rate_per_minute: i64, burst: i64) -> DateTime<Utc> {
        let elapsed_us = (now - self.refilled_at).num_microseconds().unwrap_or(i64::MAX);
        if elapsed_us > 0 {
            self.credit = self.credit.saturating_add(rate_per_minute.saturating_mul(elapsed_us));
            self.refilled_at = now;
        }
        self.cap(burst);
        self.refilled_at
    }

    /// Keeps what `burst` admissions cost at most: a smaller burst counts at once, a larger one has to be earned.
    pub(crate) fn cap(&mut self, burst: i64) {
        self.credit = self.credit.min(burst.saturating_mul(ADMISSION));
    }

    /// Admissions that it is good for.
    pub(crate) fn admissions(&self) -> i64 {
        (self.credit / ADMISSION).max(0)
    }

    /// Pays for one admission, if it can.
    pub(crate) fn take(&mut self) -> bool {
        let enough = self.credit >= ADMISSION;
        if enough {
            self.credit -= ADMISSION;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    fn at(us: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::microseconds(us)
    }

    fn empty() -> Bucket {
        Bucket { credit: 0, refilled_at: at(0) }
    }

    #[test]
    fn one_admission_is_earned_in_exactly_its_time_and_not_a_microsecond_earlier() {
        for (rate, us) in [(1, 60_000_000), (7, 8_571_429), (600, 100_000), (1_000_000, 60)] {
            let mut bucket = empty();
            bucket.refill(at(us - 1), rate, 10);
            assert!(!bucket.take(), "at {rate} a minute, {us} µs");
            bucket.refill(at(us), rate, 10);
            assert!(bucket.take() && !bucket.take(), "at {rate} a minute, {us} µs");
        }
    }

    #[test]
    fn a_quiet_time_of_any_length_is_worth_the_burst() {
        for now in [at(3_600_000_000), DateTime::<Utc>::MAX_UTC] {
            let mut bucket = empty();
            bucket.refill(now, 1_000_000, 100_000);
            assert_eq!(bucket.admissions(), 100_000);
        }
    }

    #[test]
    fn time_that_goes_back_earns_nothing_and_is_not_paid_twice() {
        let mut bucket = empty();
        assert_eq!(bucket.refill(at(60_000_000), 1, 10), at(60_000_000));
        assert_eq!(bucket.refill(at(0), 1, 10), at(60_000_000));
        bucket.refill(at(60_000_000), 1, 10);
        assert_eq!(bucket.admissions(), 1);
    }

    #[test]
    fn a_smaller_burst_counts_at_once_and_a_larger_one_is_earned() {
        let mut bucket = Bucket { credit: 50 * ADMISSION, refilled_at: at(0) };
        bucket.cap(100);
        assert_eq!(bucket.admissions(), 50);
        bucket.cap(20);
        assert_eq!(bucket.admissions(), 20);
    }

    proptest! {
        #[test]
        fn refilling_often_earns_what_refilling_once_does(
            steps in prop::collection::vec(0_i64..5_000_000, 1..50),
            rate in 1_i64..=1_000_000,
        ) {
            let (mut often, mut now) = (empty(), 0);
            for step in steps {
                now += step;
                often.refill(at(now), rate, 100_000);
            }
            let mut once = empty();
            once.refill(at(now), rate, 100_000);
            prop_assert_eq!(often, once);
        }
    }
}
