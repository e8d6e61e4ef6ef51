//! Commands whose success was told before the database forgot it: joins get the places that their tokens say, and what became of
//! these tokens since is what becomes of them. Pure, like `decide`.

use common::bodies::{TokenBody, TokenStatus};
use common::ids::{ConcertId, TokenId};
use common::keys::QueueTokens;
use common::messages::tokens::{Issue, TokenCommand};

use super::decide::State;
use super::line::{Line, Place};
use crate::runtime::word::{Fate, Outcome, Told};

/// Applies one command so that it comes out as told.
pub(crate) fn decide_again(state: &mut State, command: &TokenCommand, told: &Told, keys: &QueueTokens) -> Outcome {
    let concert = match command {
        TokenCommand::Issue(issue) => issue.concert_id,
        TokenCommand::Leave(leave) => leave.concert_id,
        TokenCommand::Configure(configure) => configure.concert_id,
    };
    let Some(line) = state.lines.get_mut(&concert) else { return lacks_concert(concert) };
    match command {
        TokenCommand::Issue(issue) => {
            issue_again(line, issue, told, keys);
            if state.unknown_users.contains(&issue.user_id) {
                // Places stay dense: the token has its own, and is over.
                if let Some(index) = line.live(issue.user_id) {
                    line.end(index, if line.is_active(index) { TokenStatus::Expired } else { TokenStatus::Left });
                }
                return Outcome::Lacks(format!("there is no user {}", issue.user_id));
            }
        }
        TokenCommand::Leave(leave) => {
            let own = line.live(leave.user_id).filter(|index| line.tokens[*index].token_id == leave.token_id);
            if let Some(index) = own {
                line.end(index, TokenStatus::Left);
            }
        }
        TokenCommand::Configure(configure) => line.configure(&configure.settings),
    }
    // Nobody else is admitted now: the settings may be old ones still.
    Outcome::AsTold
}

/// What became of tokens since the backup that has them: they were admitted; and, `at_last`, those are over that neither a record of
/// theirs nor another word has ended meanwhile.
pub(crate) fn tell_fates(line: &mut Line, fates: &[(TokenId, Fate)], at_last: bool) {
    for (token_id, fate) in fates {
        let own = line.live(fate.user_id).filter(|index| line.tokens[*index].token_id == *token_id);
        let Some(index) = own else { continue };
        if let Some((at, until)) = fate.admitted {
            line.admit_again(index, at, until);
        }
        if at_last && fate.ended_at.is_some() {
            line.end(index, ended_as(*fate, line.is_active(index)));
        }
    }
}

fn lacks_concert(concert: ConcertId) -> Outcome {
    Outcome::Lacks(format!("there is no concert {concert}"))
}

fn issue_again(line: &mut Line, issue: &Issue, told: &Told, keys: &QueueTokens) {
    let token_id = TokenId::from(issue.request_id);
    let Some(body) = told.body::<TokenBody>().filter(|body| body.token_id == token_id) else {
        // The buyer had a token already: that one came with its own join.
        return;
    };
    if let Some(before) = line.live(issue.user_id) {
        // It had ended when this one was made; its payment may not be applied yet.
        line.end(before, if line.is_active(before) { TokenStatus::Completed } else { TokenStatus::Left });
    }
    let place =
        keys.verify(&body.queue_token).ok().map(|claims| Place { seq: claims.seq, kid: keys.kid(&body.queue_token) });
    let index = line.join(token_id, issue.user_id, body.issued_at, place);
    if let Some(until) = body.expires_at {
        line.admit_again(index, body.issued_at, until);
    }
    if let Some((at, until)) = told.fate.and_then(|fate| fate.admitted) {
        line.admit_again(index, at, until);
    }
}

/// What a token that is over had become, as far as its times tell.
fn ended_as(fate: Fate, active: bool) -> TokenStatus {
    match (fate.admitted, fate.ended_at) {
        _ if !active => TokenStatus::Left,
        (Some((_, until)), Some(ended)) if ended >= until => TokenStatus::Expired,
        _ => TokenStatus::Completed,
    }
}
