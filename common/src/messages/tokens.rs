//! Records of `boxoffice.tokens.v1`, keyed by concert.

use serde::{Deserialize, Serialize};

use super::{Message, Relations, command};
use crate::forms::from_its_name_alone;
use crate::ids::{ConcertId, RequestId, TokenId, UserId};
use crate::topics;

/// `token.issue`: a buyer joins the queue of a concert, or asks again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Issue {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// The concert.
    pub concert_id: ConcertId,
}

/// `token.leave`: a buyer leaves the queue. Holds stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leave {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// The concert.
    pub concert_id: ConcertId,
    /// The token that is given back.
    pub token_id: TokenId,
}

/// `queue.configure`: an operator changes settings of a queue. Members that are left out stay as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configure {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// Always null: an operator's.
    pub user_id: Option<UserId>,
    /// The concert.
    pub concert_id: ConcertId,
    /// What changes.
    #[serde(flatten)]
    pub settings: QueueSettings,
}

/// The settings of a queue that an operator may change, each optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QueueSettings {
    /// Admissions a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_minute: Option<i64>,
    /// Admissions that may come at once after a quiet time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<i64>,
    /// Buyers inside at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_active: Option<i64>,
    /// How long a newly admitted buyer may stay, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_seconds: Option<i64>,
    /// Whether the queue takes joins and admits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<QueueState>,
}

impl QueueSettings {
    /// Nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first setting that is out of its range: its name, and the range in words.
    pub fn out_of_range(&self) -> Option<(&'static str, String)> {
        [
            ("rate_per_minute", self.rate_per_minute, 1, 1_000_000),
            ("burst", self.burst, 1, 100_000),
            ("max_active", self.max_active, 0, 1_000_000),
            ("active_seconds", self.active_seconds, 5, 86_400),
        ]
        .into_iter()
        .find(|(_, value, low, high)| value.is_some_and(|v| !(*low..=*high).contains(&v)))
        .map(|(name, _, low, high)| (name, format!("{name} must be {low} to {high}")))
    }
}

/// PAUSED: joins yes, admissions no. DRAINING: no joins, admissions go on. CLOSED: neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(remote = "Self", rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "queue_state", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum QueueState {
    /// Joins and admissions.
    Open,
    /// Joins only.
    Paused,
    /// Admissions only.
    Draining,
    /// Neither.
    Closed,
}

from_its_name_alone!(QueueState);

macro_rules! message {
    ($message:ty, $kind:literal) => {
        impl Message for $message {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = topics::TOKENS;

            fn key(&self) -> String {
                self.concert_id.to_string()
            }
        }
    };
}

message!(Issue, "token.issue");
message!(Leave, "token.leave");
message!(Configure, "queue.configure");

impl Relations for Issue {}
impl Relations for Configure {}
impl Relations for Leave {
    fn queue_left(&self) -> Option<ConcertId> {
        Some(self.concert_id)
    }
}

command! {
    /// All that the token worker reads.
    TokenCommand { Issue, Leave, Configure }
}
