//! The search for holds that have run out. It ends none of them: it asks the payment worker to, by a record in the buyer's log.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use common::ids::{RequestId, ReservationId};
use common::messages::payments::Expire;
use sqlx::PgConnection;
use uuid::Uuid;

use super::store::{self, Overdue};
use crate::runtime::word::OutMessage;

/// A hold that still stands so long after its end is asked about again, with another request id: the broker's clock
/// may have been behind, and the first record without effect.
const ASK_AGAIN_MS: i64 = 10_000;
/// A hold of another worker's schedule that is overdue for so long has nobody who looks: its worker is gone.
const ORPHANED_MS: i64 = 1_000;
/// Holds looked at in one search.
const LOOKED_AT_MAX: i64 = 2_000;

/// Where the search stands; None: it has not begun.
#[derive(Debug, Default)]
pub(crate) struct Search(Option<Round>);

/// The search begins anew from time to time, so that it finds what still stands, and what was written late.
#[derive(Debug)]
struct Round {
    began: Instant,
    /// By the database's clock.
    began_at: DateTime<Utc>,
    /// Nothing before is left to ask about.
    from: DateTime<Utc>,
    asked: HashSet<RequestId>,
}

impl Search {
    /// The records that ask to end the holds that are overdue and `owns` says are ours, or nobody's.
    pub(crate) async fn look(
        &mut self,
        connection: &mut PgConnection,
        owns: &(dyn Fn(&str) -> bool + Sync),
        source: &str,
    ) -> Result<Vec<OutMessage>, sqlx::Error> {
        let round = match &mut self.0 {
            Some(round) if !round.is_over() => round,
            over => over.insert(Round::begin(connection).await?),
        };
        // What the statement does not find is not over at this moment: the database's clock has come at least as far.
        let looked_at = round.began_at + round.began.elapsed();
        let found = store::overdue(connection, round.from, LOOKED_AT_MAX).await?;
        let mut messages = Vec::new();
        let mut left_out = None;
        for hold in &found {
            if hold.since_ms < ORPHANED_MS && !owns(&hold.schedule_id.to_string()) {
                left_out.get_or_insert(hold.hold_expires_at);
                continue;
            }
            let request_id = request_id(hold.reservation_id, hold.since_ms / ASK_AGAIN_MS);
            if round.asked.insert(request_id) {
                messages.push(OutMessage::new(&expire(hold, request_id), request_id, source, None));
            }
        }
        let all_found = i64::try_from(found.len()).is_ok_and(|found| found < LOOKED_AT_MAX);
        let reached = found.last().filter(|_| !all_found).map_or(looked_at, |last| last.hold_expires_at);
        round.from = left_out.unwrap_or(reached);
        Ok(messages)
    }
}

impl Round {
    async fn begin(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let (from, began_at) = store::advance_search(connection).await?;
        Ok(Self { began: Instant::now(), began_at, from, asked: HashSet::new() })
    }

    fn is_over(&self) -> bool {
        self.began.elapsed() >= Duration::from_millis(ASK_AGAIN_MS.unsigned_abs())
    }
}

fn expire(hold: &Overdue, request_id: RequestId) -> Expire {
    Expire { request_id, request_hash: None, user_id: hold.user_id, reservation_id: hold.reservation_id }
}

/// The same for every worker that looks in the same ten seconds, so that two who ask are one request.
fn request_id(reservation: ReservationId, attempt: i64) -> RequestId {
    RequestId(Uuid::new_v5(&reservation.0, format!("expire-{attempt}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_the_reservations_own_and_another_one_after_ten_seconds() {
        let one = ReservationId(Uuid::from_u128(1));
        assert_eq!(request_id(one, 0), request_id(one, 0));
        assert_ne!(request_id(one, 0), request_id(one, 1));
        assert_ne!(request_id(one, 0), request_id(ReservationId(Uuid::from_u128(2)), 0));
    }
}
