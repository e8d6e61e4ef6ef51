//! Waiting: for a condition, or for a moment that is known. Nothing else in the tests sleeps.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(60);

/// Asks `check` until it is content (Ok), and answers what it said.
///
/// # Panics
/// It is not within `within`; the message has what it said last.
pub async fn eventually<T, E: Debug>(what: &str, within: Duration, check: impl AsyncFnMut() -> Result<T, E>) -> T {
    eventually_each(LOOK_EVERY, what, within, check).await
}

/// The same, for a condition that may be looked at this often only.
///
/// # Panics
/// As [`eventually`].
pub async fn eventually_each<T, E: Debug>(
    every: Duration,
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) if begun.elapsed() > within => panic!("not within {within:?}: {what}; last: {last:?}"),
            Err(_) => tokio::time::sleep(every).await,
        }
    }
}

/// For [`eventually`]: the value, content or not.
pub fn met<T>(condition: bool, value: T) -> Result<T, T> {
    if condition { Ok(value) } else { Err(value) }
}

/// Waits for a moment, such as the end of a hold.
pub async fn at(moment: DateTime<Utc>) {
    // A moment that is past is no wait.
    tokio::time::sleep((moment - Utc::now()).to_std().unwrap_or_default()).await;
}

/// Seconds.
pub const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
