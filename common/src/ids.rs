//! Newtypes for every id, so that one cannot stand where another belongs. On the wire they are bare UUIDs or integers.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<RequestId> for $name {
            /// What a request makes carries the request's id.
            fn from(request: RequestId) -> Self {
                Self(request.0)
            }
        }
    };
}

macro_rules! integer_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// The id of a request through the log; see [`crate::request_id`] for how the api mints them. Any UUID will do in a
/// hand-made record.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema,
)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

uuid_id!(/// A buyer.
    UserId);
uuid_id!(/// A queue token: the id of the join that made it.
    TokenId);
uuid_id!(/// A reservation: the id of the hold that made it.
    ReservationId);
uuid_id!(/// A payment: the id of the request that paid.
    PaymentId);
uuid_id!(/// A ledger entry: the id of the request that moved the money.
    EntryId);
integer_id!(/// A concert, with its queue.
    ConcertId);
integer_id!(/// One performance of a concert.
    ScheduleId);
integer_id!(/// One seat of one schedule; [`crate::seating`] computes all about it.
    SeatId);
