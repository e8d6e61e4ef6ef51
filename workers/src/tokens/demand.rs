//! What a batch asks of each concert's queue, gathered before anything is loaded: it says what has to be.

use std::collections::BTreeMap;

use common::ids::{ConcertId, UserId};
use common::messages::tokens::TokenCommand;

/// Rows that one transaction admits or expires at most, over all queues; what is left is the next tick's.
const ROWS_MAX: i64 = 5_000;

/// What is asked of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Buyers who join or ask again.
    pub(crate) joiners: Vec<UserId>,
    /// Buyers who leave.
    pub(crate) leavers: Vec<UserId>,
    /// Its settings change.
    pub(crate) configured: bool,
    /// Tokens come back that were told of before the database forgot them.
    pub(crate) retold: bool,
    /// The largest active limit that it is given; 0 if none.
    pub(crate) max_active: i64,
}

/// What is asked of each queue, by concert: the order in which rows are locked.
pub(crate) type Demands = BTreeMap<ConcertId, Demand>;

/// Gathers what `commands` ask; with each, whether its outcome was told before.
pub(crate) fn of<'a>(commands: impl Iterator<Item = (&'a TokenCommand, bool)>) -> Demands {
    let mut demands = Demands::new();
    for (command, retold) in commands {
        match command {
            TokenCommand::Issue(issue) => {
                let demand = demands.entry(issue.concert_id).or_default();
                demand.joiners.push(issue.user_id);
                demand.retold |= retold;
            }
            TokenCommand::Leave(leave) => demands.entry(leave.concert_id).or_default().leavers.push(leave.user_id),
            TokenCommand::Configure(configure) => {
                let demand = demands.entry(configure.concert_id).or_default();
                demand.configured = true;
                demand.max_active = demand.max_active.max(configure.settings.max_active.unwrap_or_default());
            }
        }
    }
    demands
}

/// Each queue's share of the rows that one transaction may change besides those it is asked for.
pub(crate) fn rows_max(queues: usize) -> i64 {
    let queues = i64::try_from(queues).unwrap_or(i64::MAX).max(1);
    (ROWS_MAX / queues).max(1)
}
