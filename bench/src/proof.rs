//! What must be true after all scenarios, however fast they were: nothing that was accepted is lost, nothing was told twice, the tables are
//! sound.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Result, ensure};
use boxoffice_tests::log::{self, GROUPS};
use boxoffice_tests::wait::{eventually, met};
use boxoffice_tests::{audit, database};
use sqlx::PgPool;
use uuid::Uuid;

const APPLIED_WITHIN: Duration = Duration::from_mins(1);
/// Ids that are looked for in one statement.
const IDS_AT_ONCE: usize = 100_000;
const MADE: &str =
    "SELECT count(*) FROM requests WHERE request_id = ANY($1) AND kind = 'reservation.hold' AND status = 'SUCCEEDED'";
const DECIDED: &str = "SELECT count(*) FROM requests WHERE request_id = ANY($1) AND kind = 'reservation.hold'";

/// The holds that clients were told of.
#[derive(Default)]
pub(crate) struct Told {
    made: RefCell<Vec<Uuid>>,
    accepted: RefCell<Vec<Uuid>>,
}

impl Told {
    /// One is made.
    pub(crate) fn made(&self, id: Uuid) {
        self.made.borrow_mut().push(id);
    }

    /// One will have an outcome, whichever.
    pub(crate) fn accepted(&self, id: Uuid) {
        self.accepted.borrow_mut().push(id);
    }
}

/// Proves it, once the workers have applied the log.
///
/// # Errors
/// Two clients were told the same hold, or one that is not there.
///
/// # Panics
/// A record has no outcome, or a rule of the tables is broken; the message says which.
pub(crate) async fn prove(pool: &PgPool, told: &Told) -> Result<()> {
    let topics = GROUPS.map(|(topic, _)| topic);
    let (begun, ended) = (topics.map(log::beginnings_of), topics.map(log::ends_of));
    let (begun, ended): (log::Offsets, log::Offsets) =
        (begun.into_iter().flatten().collect(), ended.into_iter().flatten().collect());
    eventually("all is applied", APPLIED_WITHIN, async || {
        let applied = database::applied(pool).await;
        let behind =
            ended.iter().find(|(partition, end)| **end > begun[*partition] && applied.get(*partition) < Some(*end));
        met(behind.is_none(), behind)
    })
    .await;
    audit::audit_log(pool, &begun, &ended).await;
    audit::audit_at_rest(pool).await;
    let (made, accepted) = (told.made.take(), told.accepted.take());
    are_there(pool, made, MADE).await?;
    are_there(pool, accepted, DECIDED).await
}

/// Each of these holds is another one, and the statement counts it.
async fn are_there(pool: &PgPool, mut ids: Vec<Uuid>, count: &'static str) -> Result<()> {
    let told = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == told, "{} holds were told more than once", told - ids.len());
    for ids in ids.chunks(IDS_AT_ONCE) {
        let there: i64 = sqlx::query_scalar(count).bind(ids).fetch_one(pool).await?;
        let all = ids.len();
        ensure!(usize::try_from(there) == Ok(all), "{there} of {all} holds that were told are there: {count}");
    }
    Ok(())
}
