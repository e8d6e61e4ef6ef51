//! The records of the topics: what the api (or a person with kcat) writes and a worker reads. One file per word.
//!
//! A record is one JSON object with `type`, `version`, `request_id` and `user_id`; unknown members are ignored. A record
//! that cannot be read is told apart by [`Unreadable`], whose names travel in dead letters.

pub mod payments;
pub mod reservations;
pub mod results;
pub mod tokens;

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer as _, Serialize};
use thiserror::Error;

use crate::ids::{ConcertId, RequestId, UserId};

/// The version that all records have today.
pub const VERSION: u32 = 1;

/// One type of record: its name, its topic, its key.
pub trait Message: Serialize + DeserializeOwned {
    /// The record's `type`.
    const TYPE: &'static str;
    /// The topic that it belongs in.
    const TOPIC: &'static str;

    /// The record's key, as text.
    fn key(&self) -> String;
}

/// What a record that goes on with a request of another topic says about its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The type of the request's first record.
    pub kind: String,
    /// When the first record was appended.
    pub submitted_at: DateTime<Utc>,
    /// The first record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<results::Source>,
}

/// Why a record cannot be read. Such a record is a dead letter; all else gets an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// No value at all.
    #[error("the record has no value; a command is a JSON object")]
    NullValue,
    /// Bytes that are no JSON object with a type and a version.
    #[error("the value is no JSON object with `type` and `version`: {0}")]
    NotAnObject(String),
    /// A type that this topic does not have.
    #[error("unknown type `{0}`; see docs/topics.md for the types of this topic")]
    UnknownType(String),
    /// A version that this worker does not know.
    #[error("unknown version {0}; this worker reads version 1")]
    UnknownVersion(u64),
    /// A member is missing or of the wrong type.
    #[error("missing or mistyped member: {0}")]
    InvalidMember(String),
    /// The key is not the one that the value asks for, so the record is in the wrong log.
    #[error("the key is `{found}`, the value's own is `{expected}`")]
    KeyMismatch {
        /// What the value asks for.
        expected: String,
        /// What the record has.
        found: String,
    },
    /// The record can be read, but the database refuses its contents whatever is tried.
    #[error("the database refuses the record: {0}")]
    Refused(String),
    /// Its success was told, but the restored database lacks what it needs.
    #[error("its success was told, and cannot be repeated: {0}")]
    Unrepeatable(String),
}

impl Unreadable {
    /// The stable name for `kafka_dlt-exception-fqcn`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NullValue => "boxoffice.NullValue",
            Self::NotAnObject(_) => "boxoffice.NotAnObject",
            Self::UnknownType(_) => "boxoffice.UnknownType",
            Self::UnknownVersion(_) => "boxoffice.UnknownVersion",
            Self::InvalidMember(_) => "boxoffice.InvalidMember",
            Self::KeyMismatch { .. } => "boxoffice.KeyMismatch",
            Self::Refused(_) => "boxoffice.Refused",
            Self::Unrepeatable(_) => "boxoffice.Unrepeatable",
        }
    }
}

/// A command of one topic: an enum over the topic's messages.
pub trait Command: Sized {
    /// Reads a record's value of the given type. `None`: the topic has no such type.
    fn read(kind: &str, value: &[u8]) -> Option<Result<Self, serde_json::Error>>;

    /// The record's key by the value's own account.
    fn key(&self) -> String;

    /// The record's `type`.
    fn kind(&self) -> &'static str;

    /// The request's id.
    fn request_id(&self) -> RequestId;

    /// Hash of the call and the request as parsed, if the api wrote the record.
    fn request_hash(&self) -> Option<&str>;

    /// Whose request it is; None for an operator's.
    fn user_id(&self) -> Option<UserId>;

    /// Where the request began, when it was not here.
    fn origin(&self) -> Option<&Origin> {
        None
    }

    /// The concert whose queue its buyer leaves with it.
    fn queue_left(&self) -> Option<ConcertId> {
        None
    }
}

/// Implements [`Command`] for an enum whose variants each hold one message.
macro_rules! command {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $(#[doc = concat!("A [`", stringify!($variant), "`].")] $variant($variant),)*
        }

        impl $crate::messages::Command for $name {
            fn read(kind: &str, value: &[u8]) -> Option<Result<Self, serde_json::Error>> {
                $(if kind == <$variant as $crate::messages::Message>::TYPE {
                    return Some(serde_json::from_slice(value).map(Self::$variant));
                })*
                None
            }

            fn key(&self) -> String {
                match self { $(Self::$variant(message) => $crate::messages::Message::key(message),)* }
            }

            fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => <$variant as $crate::messages::Message>::TYPE,)* }
            }

            fn request_id(&self) -> $crate::ids::RequestId {
                match self { $(Self::$variant(message) => message.request_id,)* }
            }

            fn request_hash(&self) -> Option<&str> {
                match self { $(Self::$variant(message) => message.request_hash.as_deref(),)* }
            }

            fn user_id(&self) -> Option<$crate::ids::UserId> {
                match self { $(Self::$variant(message) => message.user_id.into(),)* }
            }

            fn origin(&self) -> Option<&$crate::messages::Origin> {
                match self { $(Self::$variant(message) => $crate::messages::Relations::origin(message),)* }
            }

            fn queue_left(&self) -> Option<$crate::ids::ConcertId> {
                match self { $(Self::$variant(message) => $crate::messages::Relations::queue_left(message),)* }
            }
        }
    };
}
pub(crate) use command;

/// What a message has to do with others: mostly nothing.
pub(crate) trait Relations {
    /// Where the request began, when it was not with this record.
    fn origin(&self) -> Option<&Origin> {
        None
    }

    /// The concert whose queue its buyer leaves with it.
    fn queue_left(&self) -> Option<ConcertId> {
        None
    }
}

/// What a record says of itself.
#[derive(Default)]
struct Envelope<'a> {
    kind: Option<Cow<'a, str>>,
    version: Option<u64>,
}

impl<'a> Envelope<'a> {
    /// The record's type, if it has a version that is known here. Both stand in front of all that we write: what comes behind them is
    /// left to who reads the members.
    fn read(value: &'a [u8]) -> Result<Cow<'a, str>, Unreadable> {
        let mut envelope = Self::default();
        let read = serde_json::Deserializer::from_slice(value).deserialize_map(&mut envelope);
        match (envelope.kind, envelope.version) {
            (Some(kind), Some(version)) if version == u64::from(VERSION) => Ok(kind),
            (Some(_), Some(version)) => Err(refused(value, Unreadable::UnknownVersion(version))),
            _ => {
                let why = read.map_or_else(|error| error.to_string(), |()| "`type` or `version` is missing".to_owned());
                Err(Unreadable::NotAnObject(why))
            }
        }
    }
}

impl<'de> Visitor<'de> for &mut Envelope<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while self.kind.is_none() || self.version.is_none() {
            match map.next_key::<Text<'de>>()? {
                Some(Text(name)) if name == "type" && self.kind.is_none() => {
                    self.kind = Some(map.next_value::<Text<'de>>()?.0);
                }
                Some(Text(name)) if name == "version" && self.version.is_none() => {
                    self.version = Some(map.next_value()?);
                }
                Some(_) => {
                    map.next_value::<IgnoredAny>()?;
                }
                None => break,
            }
        }
        Ok(())
    }
}

/// A string, where it stands if it can be read there.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Why a value is refused: what is no JSON as a whole is nothing else, however far it was read.
fn refused(value: &[u8], why: Unreadable) -> Unreadable {
    serde_json::from_slice::<IgnoredAny>(value).map_or_else(|error| Unreadable::NotAnObject(error.to_string()), |_| why)
}

/// The same for a member.
fn invalid_member(value: &[u8], error: &serde_json::Error) -> Unreadable {
    refused(value, Unreadable::InvalidMember(error.to_string()))
}

/// Reads a record of a command topic.
///
/// # Errors
/// [`Unreadable`] says what is wrong with it.
pub fn read<C: Command>(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<C, Unreadable> {
    let value = value.ok_or(Unreadable::NullValue)?;
    let kind = Envelope::read(value)?;
    let command = C::read(&kind, value)
        .ok_or_else(|| refused(value, Unreadable::UnknownType(kind.into_owned())))?
        .map_err(|error| invalid_member(value, &error))?;
    let expected = command.key();
    let found = key.unwrap_or_default();
    if found != expected.as_bytes() {
        return Err(Unreadable::KeyMismatch { expected, found: String::from_utf8_lossy(found).into_owned() });
    }
    Ok(command)
}

/// Writes a record's value: the message's members after `type` and `version`.
pub fn write<M: Message>(message: &M) -> Vec<u8> {
    write_record(M::TYPE, message)
}

fn write_record(kind: &str, members: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    struct Record<'a, M> {
        r#type: &'a str,
        version: u32,
        #[serde(flatten)]
        members: &'a M,
    }
    serde_json::to_vec(&Record { r#type: kind, version: VERSION, members })
        .expect("records have text keys and no maps of other kinds")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::reservations::{BestAvailable, Hold, ReservationCommand};
    use super::tokens::{QueueSettings, QueueState, TokenCommand};
    use super::*;
    use crate::ids::{ScheduleId, SeatId};

    fn hold() -> Hold {
        Hold {
            request_id: RequestId(Uuid::from_u128(7)),
            request_hash: None,
            user_id: UserId(Uuid::from_u128(8)),
            schedule_id: ScheduleId(42),
            seat_ids: Some(vec![SeatId(1), SeatId(2)]),
            seats: None,
            best_available: None,
            pay: false,
        }
    }

    fn read_json(key: &str, value: &serde_json::Value) -> Result<ReservationCommand, Unreadable> {
        read(Some(key.as_bytes()), Some(value.to_string().as_bytes()))
    }

    #[test]
    fn what_is_written_is_read() {
        let read = read::<ReservationCommand>(Some(b"42"), Some(&write(&hold())));
        assert_eq!(read, Ok(ReservationCommand::Hold(hold())));
    }

    #[test]
    fn a_person_can_write_one_and_unknown_members_are_ignored() {
        let value = json!({"type": "reservation.hold", "version": 1, "request_id": Uuid::from_u128(7), "colour": "blue",
            "user_id": Uuid::from_u128(8), "schedule_id": 42, "seat_ids": [1, 2]});
        assert_eq!(read_json("42", &value), Ok(ReservationCommand::Hold(hold())));
    }

    #[test]
    fn type_and_version_may_stand_anywhere() {
        let value = r#"{"colour": {"type": 1}, "seat_ids": [1, 2], "v\u0065rsion": 1, "schedule_id": 42, "user_id":
            "00000000-0000-0000-0000-000000000008", "request_id": "00000000-0000-0000-0000-000000000007", "type": "reservation.h\u006fld"}"#;
        assert_eq!(read(Some(b"42"), Some(value.as_bytes())), Ok(ReservationCommand::Hold(hold())));
    }

    #[test]
    fn unknown_members_are_ignored_wherever_they_stand() {
        let value = json!({"type": "reservation.hold", "version": 1, "request_id": Uuid::from_u128(7), "seat_ids": null,
            "user_id": Uuid::from_u128(8), "schedule_id": 42, "best_available": {"count": 2, "section": null, "colour": 1}});
        let best = BestAvailable { count: 2, section: None };
        let wanted = Hold { seat_ids: None, best_available: Some(best), ..hold() };
        assert_eq!(read_json("42", &value), Ok(ReservationCommand::Hold(wanted)));
        let value = json!({"type": "queue.configure", "version": 1, "request_id": Uuid::from_u128(7), "user_id": null,
            "concert_id": 1, "state": "CLOSED", "burst": null, "colour": {"OPEN": null}});
        let Ok(TokenCommand::Configure(read)) = read(Some(b"1"), Some(value.to_string().as_bytes())) else {
            panic!("it can be read")
        };
        assert_eq!(read.settings, QueueSettings { state: Some(QueueState::Closed), ..QueueSettings::default() });
    }

    #[test]
    fn what_cannot_be_read_is_told_apart() {
        let name = |result: Result<ReservationCommand, Unreadable>| result.expect_err("unreadable").name();
        let good = json!({"type": "reservation.hold", "version": 1, "request_id": Uuid::from_u128(7),
            "user_id": Uuid::from_u128(8), "schedule_id": 42, "seat_ids": [1]});
        let with = |member: &str, value: serde_json::Value| {
            let mut changed = good.clone();
            changed[member] = value;
            changed
        };
        assert_eq!(name(read(Some(b"42"), None)), "boxoffice.NullValue");
        assert_eq!(name(read(Some(b"42"), Some(b"\xff\x00"))), "boxoffice.NotAnObject");
        assert_eq!(name(read(Some(b"42"), Some(b"[1]"))), "boxoffice.NotAnObject");
        assert_eq!(name(read(Some(b"42"), Some(b"[\"reservation.hold\", 1]"))), "boxoffice.NotAnObject");
        assert_eq!(name(read_json("42", &with("best_available", json!([2, "A"])))), "boxoffice.InvalidMember");
        assert_eq!(name(read_json("42", &json!({"version": 1}))), "boxoffice.NotAnObject");
        assert_eq!(name(read_json("42", &with("version", json!("1")))), "boxoffice.NotAnObject");
        let written = write(&hold());
        let cut = &written[..written.len() - 1];
        assert_eq!(name(read(Some(b"42"), Some(cut))), "boxoffice.NotAnObject");
        let unknown = br#"{"type": "payment.pay", "version": 1, "#;
        assert_eq!(name(read(Some(b"42"), Some(unknown))), "boxoffice.NotAnObject", "as a whole");
        assert_eq!(name(read_json("42", &with("type", json!("payment.pay")))), "boxoffice.UnknownType");
        assert_eq!(name(read_json("42", &with("version", json!(2)))), "boxoffice.UnknownVersion");
        assert_eq!(name(read_json("42", &with("schedule_id", json!("42")))), "boxoffice.InvalidMember");
        assert_eq!(name(read_json("42", &with("user_id", json!(null)))), "boxoffice.InvalidMember");
        assert_eq!(name(read_json("43", &good)), "boxoffice.KeyMismatch");
        assert_eq!(name(read::<ReservationCommand>(None, Some(good.to_string().as_bytes()))), "boxoffice.KeyMismatch");
    }
}
