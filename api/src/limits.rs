//! Rate limits, by buyer, by queue token, by address. A limit that is not passed costs one look at one shard of a map.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use common::ids::{TokenId, UserId};
use common::problems::Slug;
use foldhash::fast::RandomState;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::config::Rates;
use crate::error::ApiError;

/// How often callers who have not come for a while are forgotten; what is remembered is bounded by what comes in that time.
pub(crate) const SWEEP: Duration = Duration::from_secs(2);

/// Every limit of the api.
pub(crate) struct Limits {
    /// Requests through the log, by buyer.
    pub(crate) log: Limit<UserId>,
    /// Polls, by queue token.
    pub(crate) polls: Limit<TokenId>,
    /// Reads of requests, by buyer.
    pub(crate) requests: Limit<UserId>,
    /// Log-ins, by user.
    pub(crate) logins_by_user: Limit<UserId>,
    /// Log-ins, by address.
    pub(crate) logins_by_address: Limit<IpAddr>,
    /// Sign-ups, by address.
    pub(crate) sign_ups: Limit<IpAddr>,
}

impl Limits {
    /// As configured.
    pub(crate) fn new(rates: &Rates) -> Self {
        Self {
            log: Limit::new("log", rates.log_per_second, rates.log_burst),
            polls: Limit::new("polls", rates.poll_per_second, rates.poll_burst),
            requests: Limit::new("requests", rates.requests_per_second, rates.requests_burst),
            logins_by_user: Limit::new("logins_by_user", rates.login_per_second, rates.login_burst),
            logins_by_address: Limit::new("logins_by_address", rates.login_per_second, rates.login_burst),
            sign_ups: Limit::new("sign_ups", rates.sign_up_per_second, rates.sign_up_burst),
        }
    }

    /// Forgets idle callers.
    pub(crate) fn sweep(&self) {
        self.log.sweep();
        self.polls.sweep();
        self.requests.sweep();
        self.logins_by_user.sweep();
        self.logins_by_address.sweep();
        self.sign_ups.sweep();
    }
}

/// One limit.
pub(crate) struct Limit<K: Hash + Eq + Clone> {
    name: &'static str,
    limiter: Option<RateLimiter<K, DashMapStateStore<K, RandomState>, DefaultClock>>,
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(name: &'static str, per_second: u32, burst: u32) -> Self {
        let limiter = NonZeroU32::new(per_second).map(|rate| {
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            RateLimiter::dashmap_with_hasher(Quota::per_second(rate).allow_burst(burst), RandomState::default())
        });
        Self { name, limiter }
    }

    /// Counts one call of `key`.
    ///
    /// # Errors
    /// 429 `rate-limited` with the time until the next one is allowed.
    pub(crate) fn check(&self, key: &K) -> Result<(), ApiError> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(key).map_err(|early| {
            metrics::counter!("api_limited_total", "limit" => self.name).increment(1);
            let wait = early.wait_time_from(DefaultClock::default().now());
            // It may have passed meanwhile; "at once" would still be too fast for whoever takes it literally.
            let seconds = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
            let detail = format!("That was too fast. Come again in {seconds} s.");
            ApiError::new(Slug::RateLimited, detail).retry_after(seconds)
        })
    }

    fn sweep(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_and_each_key_has_its_own() {
        let limit = Limit::new("test", 1, 3);
        for _ in 0..3 {
            assert!(limit.check(&1).is_ok());
        }
        let Err(ApiError::Refused(refusal)) = limit.check(&1) else { panic!("limited") };
        assert_eq!((refusal.problem.slug, refusal.retry_after_seconds), (Slug::RateLimited, Some(1)));
        assert!(limit.check(&2).is_ok());
    }

    #[test]
    fn zero_a_second_is_no_limit() {
        let limit = Limit::new("test", 0, 0);
        assert!((0..1_000).all(|_| limit.check(&1).is_ok()));
    }
}
