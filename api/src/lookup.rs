//! Rows that callers ask for one by one, read together: while one statement is under way, those who come gather for the next. The number
//! of statements does not grow with the callers, and a lone caller waits for nobody.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::log_database_error;
use crate::fresh::ReadError;

/// Rows that one statement reads, at most.
const KEYS_MAX: usize = 500;
/// How long a statement may take. The next ones wait for it, and a connection whose other end is gone says nothing for long.
const READ_MAX: Duration = Duration::from_secs(3);

/// Finds values of type `V` by their keys.
pub(crate) struct Lookup<K, V> {
    asked: mpsc::Sender<Asked<K, V>>,
}

struct Asked<K, V> {
    key: K,
    answer: oneshot::Sender<Result<Option<V>, ReadError>>,
}

impl<K: Copy + Eq + Hash + Send + 'static, V: Clone + Send + 'static> Lookup<K, V> {
    /// Looks up with `read`, which gets the keys and leaves out of its answer those that do not exist.
    pub(crate) fn start<F, R>(read: F) -> Self
    where
        F: Fn(Vec<K>) -> R + Send + 'static,
        R: Future<Output = Result<HashMap<K, V>, sqlx::Error>> + Send,
    {
        let (asked, mut waiting) = mpsc::channel::<Asked<K, V>>(KEYS_MAX);
        tokio::spawn(async move {
            let mut together = Vec::new();
            while waiting.recv_many(&mut together, KEYS_MAX).await > 0 {
                let keys = together.iter().map(|asked| asked.key).collect();
                let found = match tokio::time::timeout(READ_MAX, read(keys)).await {
                    Ok(found) => found,
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                };
                // Told here: those who asked may have gone.
                let found = found.inspect_err(log_database_error).ok();
                if found.is_none() {
                    // Who waits behind them does not wait as long again: else a database that hangs fails one batch after another.
                    together.extend(std::iter::from_fn(|| waiting.try_recv().ok()));
                }
                for Asked { key, answer } in together.drain(..) {
                    let told = found.as_ref().map(|found| found.get(&key).cloned());
                    // Who does not wait any more has hung up, or had no more time.
                    let _ = answer.send(told.ok_or(ReadError::JustFailed));
                }
            }
        });
        Self { asked }
    }

    /// The value of a key; None: there is none.
    ///
    /// # Errors
    /// The statement failed; the log has been told how.
    pub(crate) async fn get(&self, key: K) -> Result<Option<V>, ReadError> {
        let (answer, told) = oneshot::channel();
        self.asked.send(Asked { key, answer }).await.map_err(|_| ReadError::JustFailed)?;
        told.await.unwrap_or(Err(ReadError::JustFailed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::*;

    type Statements = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Looks up the doubles of even numbers; each statement waits for a permit, and its keys are noted.
    fn doubles() -> (Arc<Lookup<u32, u32>>, Arc<Semaphore>, Statements) {
        let (permits, statements) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (gate, notes) = (permits.clone(), statements.clone());
        let lookup = Lookup::start(move |keys: Vec<u32>| {
            let (gate, notes) = (gate.clone(), notes.clone());
            async move {
                notes.lock().unwrap().push(keys.clone());
                gate.acquire().await.unwrap().forget();
                if keys.contains(&99) {
                    return Err(sqlx::Error::PoolTimedOut);
                }
                Ok(keys.into_iter().filter(|key| key % 2 == 0).map(|key| (key, 2 * key)).collect())
            }
        });
        (Arc::new(lookup), permits, statements)
    }

    async fn ask(lookup: &Arc<Lookup<u32, u32>>, keys: &[u32]) -> Vec<Result<Option<u32>, ReadError>> {
        futures::future::join_all(keys.iter().map(|key| lookup.get(*key))).await
    }

    /// Asks for a key, and returns once its statement has begun.
    async fn under_way(
        lookup: &Arc<Lookup<u32, u32>>,
        statements: &Statements,
        key: u32,
    ) -> JoinHandle<Result<Option<u32>, ReadError>> {
        let lookup = lookup.clone();
        let asked = tokio::spawn(async move { lookup.get(key).await });
        while statements.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        asked
    }

    #[tokio::test]
    async fn those_who_come_during_a_statement_share_the_next_one() {
        let (lookup, permits, statements) = doubles();
        let first = under_way(&lookup, &statements, 2).await;
        let (others, ()) = tokio::join!(ask(&lookup, &[4, 5, 4]), async {
            tokio::task::yield_now().await;
            permits.add_permits(2);
        });
        assert_eq!(first.await.unwrap().unwrap(), Some(4));
        let others: Vec<Option<u32>> = others.into_iter().map(Result::unwrap).collect();
        assert_eq!(others, [Some(8), None, Some(8)]);
        assert_eq!(*statements.lock().unwrap(), [vec![2], vec![4, 5, 4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_statement_that_does_not_end_is_given_up() {
        let (lookup, permits, _) = doubles();
        let given_up = tokio::time::timeout(2 * READ_MAX, lookup.get(2)).await.expect("nobody waits for ever");
        assert!(matches!(given_up, Err(ReadError::JustFailed)));
        permits.add_permits(1);
        assert_eq!(lookup.get(2).await.unwrap(), Some(4));
    }

    #[tokio::test]
    async fn who_waits_behind_a_statement_that_fails_is_told_with_it() {
        let (lookup, permits, statements) = doubles();
        let first = under_way(&lookup, &statements, 99).await;
        let (others, ()) = tokio::join!(ask(&lookup, &[2, 4]), async {
            tokio::task::yield_now().await;
            permits.add_permits(2);
        });
        assert!(first.await.unwrap().is_err() && others.iter().all(Result::is_err), "{others:?}");
        assert_eq!(*statements.lock().unwrap(), [vec![99]]);
    }

    #[tokio::test]
    async fn a_statement_that_fails_is_told_to_all_who_share_it_and_the_next_one_goes_on() {
        let (lookup, permits, _) = doubles();
        permits.add_permits(2);
        let told = ask(&lookup, &[99, 2]).await;
        assert!(matches!(told[..], [Err(ReadError::JustFailed), Err(ReadError::JustFailed)]), "{told:?}");
        assert_eq!(lookup.get(2).await.unwrap(), Some(4));
    }
}
