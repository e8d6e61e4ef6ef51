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

/// Where the search stands.
#[derive(Debug)]
pub(crate) struct Search {
    /// Nothing before is left to ask about, in this round.
    from: DateTime<Utc>,
    asked: HashSet<RequestId>,
    round_began: Instant,
}

impl Default for Search {
    fn default() -> Self {
        Self { from: DateTime::UNIX_EPOCH, asked: HashSet::new(), round_began: Instant::now() }
    }
}

impl Search {
    /// The records that ask to end the holds that are overdue and `owns` says are ours, or nobody's.
    pub(crate) async fn look(
        &mut self,
        connection: &mut PgConnection,
        owns: &(dyn Fn(&str) -> bool + Sync),
        source: &str,
    ) -> Result<Vec<OutMessage>, sqlx::Error> {
        if self.round_began.elapsed() >= Duration::from_millis(ASK_AGAIN_MS.unsigned_abs()) {
            *self = Self::default();
        }
        let found = store::overdue(connection, self.from, LOOKED_AT_MAX).await?;
        let mut messages = Vec::new();
        let mut left_out = None;
        for hold in &found {
            if hold.since_ms < ORPHANED_MS && !owns(&hold.schedule_id.to_string()) {
                left_out.get_or_insert(hold.hold_expires_at);
                continue;
            }
            let request_id = request_id(hold.reservation_id, hold.since_ms / ASK_AGAIN_MS);
            if self.asked.insert(request_id) {
                messages.push(OutMessage::new(&expire(hold, request_id), request_id, source, None));
            }
        }
        if let Some(next) = left_out.or(found.last().map(|hold| hold.hold_expires_at)) {
            self.from = next;
        }
        Ok(messages)
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
