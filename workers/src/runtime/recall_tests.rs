use common::messages::results::{RequestStatus, Source};
use uuid::Uuid;

use super::*;
use crate::payments::Payments;

fn told(id: u128, topic: &str, partition: i32, offset: i64) -> RequestResult {
    RequestResult {
        request_id: RequestId(Uuid::from_u128(id)),
        user_id: None,
        kind: "payment.pay".to_owned(),
        status: RequestStatus::Failed,
        http_status: 404,
        result: None,
        problem: None,
        source: Source { topic: topic.to_owned(), partition, offset },
        began: None,
        request_hash: None,
        submitted_at: DateTime::default(),
        finished_at: DateTime::default(),
        concert_id: None,
    }
}

fn applied(own: i64, causes: i64) -> Applied {
    Applied { own: Positions::from([(1, own)]), causes: Positions::from([(1, causes)]), log_time: None }
}

/// Two outcomes that the database did not know when they were read: one of the word's own, one of its causes.
fn memory() -> Memory {
    let mut memory = Memory::default();
    memory.take::<Payments>(told(1, topics::PAYMENTS, 1, 5), &applied(5, 5));
    memory.take::<Payments>(told(2, topics::RESERVATIONS, 1, 7), &applied(5, 5));
    memory.applied = applied(5, 5);
    memory
}

#[test]
fn what_another_worker_applied_and_told_while_this_one_read_is_no_restore() {
    let mut memory = memory();
    memory.check(applied(6, 8));
    assert!(memory.is_empty());
    let restored = [applied(5, 8), applied(6, 7)];
    for applied in restored {
        let mut memory = self::memory();
        memory.check(applied);
        assert!(memory.is_active() && memory.told(RequestId(Uuid::from_u128(1))).is_some());
    }
}

#[test]
fn nobody_waits_for_a_cause_that_the_log_has_lost() {
    let mut memory = memory();
    let source = Source { topic: topics::RESERVATIONS.to_owned(), partition: 1, offset: 6 };
    let cause = Cause::Request(RequestId(Uuid::from_u128(3)), Some(&source));
    memory.note(applied(5, 5));
    assert!(memory.is_pending(&cause));
    memory.beginnings.causes = Positions::from([(1, 7)]);
    memory.note(applied(5, 5));
    assert!(memory.is_active() && !memory.is_pending(&cause));
    assert!(memory.is_pending(&Cause::Request(RequestId(Uuid::from_u128(2)), None)));
}
