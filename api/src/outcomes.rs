//! What became of recent requests, and who waits for what will become of others. The results reader brings the outcomes; a caller who
//! asks or waits touches no database.
//!
//! A request is in one of three places of its shard: among the outcomes, among the pending ones (accepted here, no outcome yet), or in
//! neither, and then only the database knows. All three are bounded and forget the oldest first. An outcome that its only caller has got is
//! not kept at all: under a crowd of callers who wait, that is nearly every one. The others are soon asked for, or not at all, and go after a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use common::ids::{RequestId, UserId};
use common::messages::results::RequestResult;
use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::fifo::{Fifo, SHARDS, Sharded};

/// An outcome is remembered for once to twice this time, if there is room so long.
pub(crate) const SWEEP: Duration = Duration::from_secs(5);
/// What an outcome takes besides its body, roughly, in bytes.
const OUTCOME_BYTES: usize = 512;

/// A request that the broker has and no worker has answered.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    /// Whose; None for an operator's.
    pub(crate) user_id: Option<UserId>,
    /// The type of its record.
    pub(crate) kind: &'static str,
    /// Hash of call and request, if it had an `Idempotency-Key`.
    pub(crate) request_hash: Option<String>,
    /// When the broker had it.
    pub(crate) submitted_at: DateTime<Utc>,
}

/// What is known of a request.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// It has ended.
    Finished(Arc<RequestResult>),
    /// It was accepted here, and has not ended.
    Pending(Pending),
}

/// A request's outcome, or the waiter that will get it.
pub(crate) enum Watch {
    /// It has ended.
    Finished(Arc<RequestResult>),
    /// It has not.
    Waiting(Waiter),
}

/// Bounds of what is remembered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutcomeBounds {
    /// Outcomes, at most.
    pub(crate) outcomes: usize,
    /// Their memory, in bytes.
    pub(crate) bytes: usize,
    /// Pending requests, at most.
    pub(crate) pending: usize,
}

/// Outcomes and waiters.
pub(crate) struct Outcomes {
    shards: Sharded<Shard>,
    bounds: OutcomeBounds,
    waiting: AtomicUsize,
    waiters: AtomicU64,
}

#[derive(Default)]
struct Shard {
    finished: Fifo<RequestId, Arc<RequestResult>>,
    finished_bytes: usize,
    /// The newest one at the last sweep.
    swept: u64,
    pending: Fifo<RequestId, Pending>,
    waiters: HashMap<RequestId, SmallVec<[NumberedWaiter; 1]>, RandomState>,
    ended: bool,
}

type NumberedWaiter = (u64, oneshot::Sender<Arc<RequestResult>>);

impl Outcomes {
    /// Nothing known yet.
    pub(crate) fn new(bounds: OutcomeBounds) -> Self {
        let per_shard = OutcomeBounds {
            outcomes: bounds.outcomes.div_ceil(SHARDS),
            bytes: bounds.bytes.div_ceil(SHARDS),
            pending: bounds.pending.div_ceil(SHARDS),
        };
        Self { shards: Sharded::default(), bounds: per_shard, waiting: AtomicUsize::new(0), waiters: AtomicU64::new(0) }
    }

    /// What is known of a request; None: nothing here.
    pub(crate) fn known(&self, request: RequestId) -> Option<Known> {
        let shard = self.shards.of(&request);
        let finished = shard.finished.get(&request).cloned().map(Known::Finished);
        finished.or_else(|| shard.pending.get(&request).cloned().map(Known::Pending))
    }

    /// The outcome, or a waiter that gets it when it comes. Nothing is missed in between.
    pub(crate) fn watch(self: &Arc<Self>, request: RequestId) -> Watch {
        let mut shard = self.shards.of(&request);
        if let Some(result) = shard.finished.get(&request) {
            return Watch::Finished(result.clone());
        }
        let (sender, receiver) = oneshot::channel();
        let number = self.waiters.fetch_add(1, Ordering::Relaxed);
        if !shard.ended {
            shard.waiters.entry(request).or_default().push((number, sender));
        }
        drop(shard);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Watch::Waiting(Waiter { request, number, receiver, is_told: false, outcomes: self.clone() })
    }

    /// The broker has the request.
    pub(crate) fn accepted(&self, request: RequestId, pending: Pending) {
        let mut shard = self.shards.of(&request);
        // The outcome may have come before this caller's thread did.
        if shard.finished.get(&request).is_none() {
            shard.pending.insert(request, pending);
            while shard.pending.len() > self.bounds.pending {
                shard.pending.pop_oldest();
            }
        }
    }

    /// An outcome has come: whoever waits is woken, and it is remembered for who may ask. Who was answered and sent no `Idempotency-Key`
    /// will hardly ask again; if he does, the database knows. A repeat changes nothing.
    pub(crate) fn arrived(&self, result: RequestResult) {
        let request = result.request_id;
        let result = Arc::new(result);
        let mut shard = self.shards.of(&request);
        shard.pending.remove(&request);
        let waiters = shard.waiters.remove(&request);
        // A waiter that cannot be told has hung up. One whose time runs out at this moment looks whether it was told.
        let is_told =
            waiters.into_iter().flatten().fold(false, |told, (_, waiter)| waiter.send(result.clone()).is_ok() || told);
        if !(is_told && result.request_hash.is_none()) && shard.finished.get(&request).is_none() {
            shard.finished_bytes += weight(&result);
            shard.finished.insert(request, result);
            while shard.finished.len() > self.bounds.outcomes || shard.finished_bytes > self.bounds.bytes {
                let Some(oldest) = shard.finished.pop_oldest() else { break };
                shard.finished_bytes -= weight(&oldest);
            }
        }
    }

    /// Forgets the outcomes that were there at the last sweep. Those with an `Idempotency-Key` stay while there is room: a repeat has its
    /// answer from here even if the database is down.
    pub(crate) fn sweep(&self) {
        for mut shard in self.shards.all() {
            let last = shard.swept;
            shard.swept = shard.finished.newest();
            while let Some(old) = shard.finished.pop_up_to(last) {
                if old.request_hash.is_some() {
                    shard.finished.insert(old.request_id, old);
                } else {
                    shard.finished_bytes -= weight(&old);
                }
            }
        }
    }

    /// Nobody waits any longer, from now on: the process is about to stop.
    pub(crate) fn end_waiting(&self) {
        for mut shard in self.shards.all() {
            shard.ended = true;
            shard.waiters.clear();
        }
    }

    /// Callers that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Outcomes and pending requests that are remembered.
    pub(crate) fn len(&self) -> (usize, usize) {
        self.shards
            .all()
            .fold((0, 0), |(finished, pending), shard| (finished + shard.finished.len(), pending + shard.pending.len()))
    }

    fn forget(&self, request: RequestId, number: u64) {
        let mut shard = self.shards.of(&request);
        if let Some(waiters) = shard.waiters.get_mut(&request) {
            waiters.retain(|(other, _)| *other != number);
            if waiters.is_empty() {
                shard.waiters.remove(&request);
            }
        }
    }
}

fn weight(result: &RequestResult) -> usize {
    OUTCOME_BYTES + result.body().map_or(0, |body| body.get().len())
}

/// One caller that waits for one outcome; forgotten when dropped.
pub(crate) struct Waiter {
    request: RequestId,
    number: u64,
    receiver: oneshot::Receiver<Arc<RequestResult>>,
    /// Then it is not among the waiters any longer.
    is_told: bool,
    outcomes: Arc<Outcomes>,
}

impl Waiter {
    /// The outcome, when it comes; None when nobody waits any longer.
    pub(crate) async fn outcome(&mut self) -> Option<Arc<RequestResult>> {
        let outcome = (&mut self.receiver).await.ok();
        self.is_told = outcome.is_some();
        outcome
    }

    /// The outcome, if it has come. One that comes later is remembered for others.
    pub(crate) fn told(mut self) -> Option<Arc<RequestResult>> {
        self.receiver.close();
        self.receiver.try_recv().ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.outcomes.waiting.fetch_sub(1, Ordering::Relaxed);
        if !self.is_told {
            self.outcomes.forget(self.request, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use common::messages::results::{RequestStatus, Source};
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::*;

    fn outcomes(outcomes: usize) -> Arc<Outcomes> {
        Arc::new(Outcomes::new(OutcomeBounds { outcomes, bytes: 1 << 20, pending: 32 }))
    }

    fn id(n: u128) -> RequestId {
        RequestId(Uuid::from_u128(n))
    }

    fn result(n: u128) -> RequestResult {
        RequestResult {
            request_id: id(n),
            user_id: None,
            kind: "queue.configure".to_owned(),
            status: RequestStatus::Succeeded,
            http_status: 200,
            result: Some(RawValue::from_string("{}".to_owned()).unwrap()),
            problem: None,
            source: Source { topic: "t".to_owned(), partition: 0, offset: 0 },
            began: None,
            request_hash: None,
            submitted_at: DateTime::UNIX_EPOCH,
            finished_at: DateTime::UNIX_EPOCH,
            concert_id: None,
        }
    }

    fn pending() -> Pending {
        Pending { user_id: None, kind: "queue.configure", request_hash: None, submitted_at: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn an_outcome_lasts_from_one_sweep_to_the_next_but_one() {
        let outcomes = outcomes(100);
        let finished = |n| matches!(outcomes.known(id(n)), Some(Known::Finished(_)));
        outcomes.arrived(result(1));
        outcomes.sweep();
        outcomes.arrived(result(2));
        assert!(finished(1) && finished(2));
        outcomes.arrived(RequestResult { request_hash: Some("hash".to_owned()), ..result(3) });
        outcomes.sweep();
        assert!(!finished(1) && finished(2));
        (0..3).for_each(|_| outcomes.sweep());
        assert_eq!((outcomes.len(), finished(3)), ((1, 0), true), "who sent a key may repeat himself");
        assert_eq!(outcomes.shards.all().map(|shard| shard.finished_bytes).sum::<usize>(), weight(&result(3)));
    }

    #[tokio::test]
    async fn all_who_wait_are_woken_and_a_repeat_with_the_same_key_finds_it() {
        let outcomes = outcomes(100);
        let (Watch::Waiting(mut one), Watch::Waiting(mut two)) = (outcomes.watch(id(1)), outcomes.watch(id(1))) else {
            panic!("nothing is known yet")
        };
        outcomes.arrived(RequestResult { request_hash: Some("hash".to_owned()), ..result(1) });
        assert_eq!(one.outcome().await.unwrap().request_id, id(1));
        assert_eq!(two.outcome().await.unwrap().request_id, id(1));
        assert!(matches!(outcomes.watch(id(1)), Watch::Finished(_)));
    }

    #[tokio::test]
    async fn an_outcome_is_kept_unless_its_caller_has_got_it() {
        let outcomes = outcomes(100);
        let (Watch::Waiting(mut one), Watch::Waiting(two)) = (outcomes.watch(id(1)), outcomes.watch(id(2))) else {
            panic!("nothing is known yet")
        };
        drop(two);
        (1..=3).for_each(|n| outcomes.arrived(result(n)));
        assert_eq!(one.outcome().await.unwrap().request_id, id(1));
        let is_kept = |n| matches!(outcomes.watch(id(n)), Watch::Finished(_));
        assert!(!is_kept(1), "who waited has it");
        assert!(is_kept(2), "who waited has hung up");
        assert!(is_kept(3), "nobody waited");
    }

    #[tokio::test]
    async fn an_outcome_that_comes_when_nobody_looks_any_longer_is_told_or_kept() {
        let outcomes = outcomes(100);
        let (Watch::Waiting(early), Watch::Waiting(late)) = (outcomes.watch(id(1)), outcomes.watch(id(2))) else {
            panic!("nothing is known yet")
        };
        outcomes.arrived(result(1));
        assert_eq!(early.told().unwrap().request_id, id(1));
        assert!(late.told().is_none());
        outcomes.arrived(result(2));
        assert!(matches!(outcomes.watch(id(2)), Watch::Finished(_)));
    }

    #[tokio::test]
    async fn at_the_end_nobody_waits_any_longer_but_what_is_known_is_still_told() {
        let outcomes = outcomes(100);
        let Watch::Waiting(mut before) = outcomes.watch(id(1)) else { panic!("nothing is known yet") };
        outcomes.end_waiting();
        let Watch::Waiting(mut after) = outcomes.watch(id(1)) else { panic!("nothing is known yet") };
        assert!(before.outcome().await.is_none() && after.outcome().await.is_none());
        outcomes.arrived(result(1));
        assert!(matches!(outcomes.watch(id(1)), Watch::Finished(_)));
    }

    #[test]
    fn a_waiter_that_goes_is_forgotten() {
        let outcomes = outcomes(100);
        let watch = outcomes.watch(id(1));
        assert_eq!(outcomes.waiting(), 1);
        drop(watch);
        assert_eq!(outcomes.waiting(), 0);
        assert!(outcomes.shards.all().all(|shard| shard.waiters.is_empty()));
    }

    #[test]
    fn a_request_is_pending_until_its_outcome_whichever_comes_first() {
        let outcomes = outcomes(100);
        outcomes.accepted(id(1), pending());
        assert!(matches!(outcomes.known(id(1)), Some(Known::Pending(_))));
        outcomes.arrived(result(1));
        assert!(matches!(outcomes.known(id(1)), Some(Known::Finished(_))));
        outcomes.arrived(result(2));
        outcomes.accepted(id(2), pending());
        assert!(matches!(outcomes.known(id(2)), Some(Known::Finished(_))));
        assert_eq!(outcomes.len(), (2, 0));
    }

    #[test]
    fn the_oldest_are_forgotten_first_and_memory_is_bounded() {
        let outcomes = outcomes(SHARDS);
        for n in 0..10_000 {
            outcomes.accepted(id(n), pending());
            outcomes.arrived(result(n));
        }
        let (finished, pending) = outcomes.len();
        assert!(finished <= SHARDS && pending == 0);
        assert!(matches!(outcomes.known(id(9_999)), Some(Known::Finished(_))));
        assert!(outcomes.shards.all().all(|shard| { shard.pending.traces() <= 70 && shard.finished.traces() <= 70 }));
    }
}
