//! Records of `boxoffice.results.v1`: the outcome of each request, and what happens to queue tokens.
//!
//! A result goes to the partition that has the number of its source record's: results keep the order of their commands,
//! and a batch of commands is a batch of results.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Envelope, Unreadable, invalid_member, refused, write_record};
use crate::ids::{ConcertId, RequestId, TokenId, UserId};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "request_status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RequestStatus {
    /// It had its effect.
    Succeeded,
    /// It had none; the problem says why.
    Failed,
}

/// The record that decided an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

/// The outcome of a request: `request.succeeded` or `request.failed`. Also the row in `requests`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RequestResult {
    /// The request.
    pub request_id: RequestId,
    /// Whose; None for an operator's.
    pub user_id: Option<UserId>,
    /// The type of the request's first record.
    pub kind: String,
    /// How it ended.
    pub status: RequestStatus,
    /// The status that a waiting caller gets.
    pub http_status: u16,
    /// The body that a waiting caller gets, when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The problem document that a waiting caller gets, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Box<RawValue>>,
    /// The record that decided it.
    pub source: Source,
    /// The record with which the request began, when that was another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Source>,
    /// Hash of the call and the request, when the record had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// When the request's first record was appended.
    pub submitted_at: DateTime<Utc>,
    /// When it was decided.
    pub finished_at: DateTime<Utc>,
    /// The concert whose queue token of this buyer changed with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concert_id: Option<ConcertId>,
}

impl RequestResult {
    /// The body or the problem, whichever there is.
    pub fn body(&self) -> Option<&RawValue> {
        self.result.as_deref().or(self.problem.as_deref())
    }

    /// The same, without the rest.
    pub fn into_body(self) -> Option<Box<RawValue>> {
        self.result.or(self.problem)
    }
}

/// What happened to a queue token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEvent {
    /// The token.
    pub token_id: TokenId,
    /// Whose.
    pub user_id: UserId,
    /// Which concert's queue.
    pub concert_id: ConcertId,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// Until when an admitted token may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// Its place in the concert's order of joins, so that whoever counts positions need not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
}

/// A record of the results topic.
#[derive(Debug, Clone)]
pub enum ResultRecord {
    /// `request.succeeded` or `request.failed`: a request's outcome.
    Request(RequestResult),
    /// `token.admitted`: the buyer may enter.
    TokenAdmitted(TokenEvent),
    /// `token.expired`: the token has ended; its time ran out, its buyer paid, or left.
    TokenExpired(TokenEvent),
}

impl ResultRecord {
    /// The record's `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Request(result) => match result.status {
                RequestStatus::Succeeded => "request.succeeded",
                RequestStatus::Failed => "request.failed",
            },
            Self::TokenAdmitted(_) => "token.admitted",
            Self::TokenExpired(_) => "token.expired",
        }
    }

    /// What it is about, the record's key: the request's id or the token's.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Request(result) => result.request_id.0,
            Self::TokenAdmitted(event) | Self::TokenExpired(event) => event.token_id.0,
        }
    }

    /// The record's value.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Request(result) => write_record(self.kind(), result),
            Self::TokenAdmitted(event) | Self::TokenExpired(event) => write_record(self.kind(), event),
        }
    }

    /// Reads a record's value.
    ///
    /// # Errors
    /// What is wrong with it: results are written by the workers only, so this is a defect or a stranger's record.
    pub fn read(value: &[u8]) -> Result<Self, Unreadable> {
        let kind = Envelope::read(value)?;
        let read = match kind.as_ref() {
            "request.succeeded" | "request.failed" => serde_json::from_slice(value).map(Self::Request),
            "token.admitted" => serde_json::from_slice(value).map(Self::TokenAdmitted),
            "token.expired" => serde_json::from_slice(value).map(Self::TokenExpired),
            other => return Err(refused(value, Unreadable::UnknownType(other.to_owned()))),
        };
        read.map_err(|error| invalid_member(value, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_as_it_was_written() {
        let result = RequestResult {
            request_id: RequestId(Uuid::from_u128(1)),
            user_id: None,
            kind: "queue.configure".to_owned(),
            status: RequestStatus::Succeeded,
            http_status: 200,
            result: Some(RawValue::from_string(r#"{"a": [1, 2]}"#.to_owned()).unwrap()),
            problem: None,
            source: Source { topic: "t".to_owned(), partition: 3, offset: 7 },
            began: None,
            request_hash: None,
            submitted_at: DateTime::UNIX_EPOCH,
            finished_at: DateTime::UNIX_EPOCH,
            concert_id: Some(ConcertId(5)),
        };
        let written = ResultRecord::Request(result).write();
        let value: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&value["type"], &value["version"]), (&"request.succeeded".into(), &1.into()));
        let ResultRecord::Request(read) = ResultRecord::read(&written).unwrap() else { panic!("a request's result") };
        assert_eq!(read.body().unwrap().get(), r#"{"a": [1, 2]}"#);
        assert_eq!((read.source.offset, read.concert_id), (7, Some(ConcertId(5))));
    }
}
