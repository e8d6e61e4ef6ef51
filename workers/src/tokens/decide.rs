//! The rules of the queue: who joins, who is admitted, who leaves, what an operator may set. Pure: no I/O, no clock of its own.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use common::bodies::{QueueBody, TokenStatus};
use common::ids::{ConcertId, TokenId, UserId};
use common::messages::tokens::{Configure, Issue, Leave, QueueState, TokenCommand};
use common::problems::{Problem, Slug};

use super::line::{Line, Standing};
use crate::runtime::word::Clock;

/// All that a batch may touch.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The queues, by concert.
    pub(crate) lines: BTreeMap<ConcertId, Line>,
    /// Those of the batch's buyers whom nobody knows.
    pub(crate) unknown_users: HashSet<UserId>,
}

/// What is decided about a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// The buyer has this token.
    Issued(Ticket),
    /// The token was given back.
    Left(ConcertId, TokenId),
    /// The queue is as the operator wants it.
    Configured(QueueBody),
    /// No.
    Refused(Problem),
}

/// A live token right after a join, with what its body says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// It was made by this join; else the buyer had it before.
    pub(crate) created: bool,
    /// Its id.
    pub(crate) token_id: TokenId,
    /// Whose.
    pub(crate) user_id: UserId,
    /// For which concert.
    pub(crate) concert_id: ConcertId,
    /// Its place among the joins.
    pub(crate) seq: i64,
    /// When its buyer joined.
    pub(crate) issued_at: DateTime<Utc>,
    /// The key that signed it; None: the key that signs now.
    pub(crate) kid: Option<String>,
    /// Where it stands.
    pub(crate) standing: Standing,
    /// The queue's state.
    pub(crate) queue_state: QueueState,
    /// The queue's admissions a minute.
    pub(crate) rate_per_minute: i64,
    /// The queue's active limit.
    pub(crate) max_active: i64,
}

/// Decides one command; those of a batch in log order.
pub(crate) fn decide(state: &mut State, command: &TokenCommand, clock: Clock) -> Decision {
    let decision = match command {
        TokenCommand::Issue(issue) => decide_issue(state, issue, clock),
        TokenCommand::Leave(leave) => decide_leave(state, leave),
        TokenCommand::Configure(configure) => decide_configure(state, configure),
    };
    decision.unwrap_or_else(Decision::Refused)
}

fn decide_issue(state: &mut State, issue: &Issue, clock: Clock) -> Result<Decision, Problem> {
    if state.unknown_users.contains(&issue.user_id) {
        let detail = format!("nobody knows the buyer {}; sign up with POST /v1/users", issue.user_id);
        return Err(Problem::new(Slug::UserNotFound, detail));
    }
    let line = line_of(state, issue.concert_id)?;
    let had = line.live(issue.user_id);
    let index = match had {
        Some(index) => index,
        None if matches!(line.queue.state, QueueState::Open | QueueState::Paused) => {
            line.join(issue.request_id.into(), issue.user_id, joined_at(clock), None)
        }
        None => {
            let detail = format!("the queue of concert {} takes no more buyers", issue.concert_id);
            return Err(Problem::new(Slug::QueueClosed, detail));
        }
    };
    line.admit();
    let token = &line.tokens[index];
    Ok(Decision::Issued(Ticket {
        created: had.is_none(),
        token_id: token.token_id,
        user_id: token.user_id,
        concert_id: issue.concert_id,
        seq: token.seq,
        issued_at: token.issued_at,
        kid: token.kid.clone(),
        standing: line.standing(index),
        queue_state: line.queue.state,
        rate_per_minute: line.queue.rate_per_minute,
        max_active: line.queue.max_active,
    }))
}

/// A join counts from when it was asked. In milliseconds, which is what the signed token says, so that its string is the same
/// each time; never after the database's now, whatever the clocks' skew.
fn joined_at(clock: Clock) -> DateTime<Utc> {
    let joined = clock.asked_at.min(clock.now);
    DateTime::from_timestamp_millis(joined.timestamp_millis()).unwrap_or(joined)
}

fn decide_leave(state: &mut State, leave: &Leave) -> Result<Decision, Problem> {
    let line = line_of(state, leave.concert_id)?;
    let own = line.live(leave.user_id).filter(|index| line.tokens[*index].token_id == leave.token_id);
    let Some(index) = own else {
        let detail =
            format!("{} is no live queue token of this buyer for concert {}", leave.token_id, leave.concert_id);
        return Err(Problem::new(Slug::QueueTokenNotFound, detail));
    };
    line.end(index, TokenStatus::Left);
    line.admit();
    Ok(Decision::Left(leave.concert_id, leave.token_id))
}

fn decide_configure(state: &mut State, configure: &Configure) -> Result<Decision, Problem> {
    let settings = &configure.settings;
    if settings.is_empty() {
        return Err(Problem::invalid_request("", "name at least one setting of the queue"));
    }
    if let Some((name, detail)) = settings.out_of_range() {
        return Err(Problem::invalid_request(&format!("/{name}"), detail));
    }
    let line = line_of(state, configure.concert_id)?;
    line.configure(settings);
    line.admit();
    Ok(Decision::Configured(queue_body(line)))
}

fn queue_body(line: &mut Line) -> QueueBody {
    let oldest_wait = line.oldest_issued_at().map(|issued_at| (line.at - issued_at).num_seconds().max(0));
    let queue = &line.queue;
    QueueBody {
        concert_id: queue.concert_id,
        state: queue.state,
        rate_per_minute: queue.rate_per_minute,
        burst: queue.burst,
        max_active: queue.max_active,
        active_seconds: queue.active_seconds,
        waiting: line.waiting(),
        active: line.active().unwrap_or_default(),
        admitted_total: queue.admitted_total,
        joined_total: queue.next_seq - 1,
        oldest_wait_seconds: oldest_wait,
        admitted_per_minute: line.admitted_last_minute(),
    }
}

fn line_of(state: &mut State, concert: ConcertId) -> Result<&mut Line, Problem> {
    let missing = || Problem::new(Slug::ConcertNotFound, format!("there is no concert {concert}"));
    state.lines.get_mut(&concert).ok_or_else(missing)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
