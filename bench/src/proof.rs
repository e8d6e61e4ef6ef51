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

/// The holds that a client was told to be made, at once or when it asked, or that were accepted and must come true.
#[derive(Default)]
pub(crate) struct Told(RefCell<Vec<Uuid>>);

impl Told {
    /// One more.
    pub(crate) fn note(&self, id: Uuid) {
        self.0.borrow_mut().push(id);
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
    were_made(pool, told).await
}

/// Each hold that was told is another one, and is in the database.
async fn were_made(pool: &PgPool, told: &Told) -> Result<()> {
    let mut ids = told.0.borrow().clone();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == count, "{} holds were told more than once", count - ids.len());
    let made = "SELECT count(*) FROM requests WHERE request_id = ANY($1) AND kind = 'reservation.hold' AND status = 'SUCCEEDED'";
    for ids in ids.chunks(IDS_AT_ONCE) {
        let made: i64 = sqlx::query_scalar(made).bind(ids).fetch_one(pool).await?;
        ensure!(
            usize::try_from(made) == Ok(ids.len()),
            "{made} of {} holds that were told are in the database",
            ids.len()
        );
    }
    Ok(())
}
