//! Records of `boxoffice.payments.v1`, keyed by buyer: all that moves money, and all that ends a hold.

use serde::{Deserialize, Serialize};

use super::{Message, Origin, Relations, command};
use crate::forms::object;
use crate::ids::{PaymentId, RequestId, ReservationId, UserId};
use crate::topics;

/// The most that one charge may add, in minor units.
pub const CHARGE_MAX: i64 = 10_000_000;

/// `balance.charge`: money is added to the buyer's balance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Charge {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// How much, in minor units: 1 to [`CHARGE_MAX`].
    pub amount: i64,
}

/// `payment.pay`: the buyer pays a held reservation from the balance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pay {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// What is paid.
    pub reservation_id: ReservationId,
    /// The place of the queue token that was shown with it: the worker looks there first for the one that it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_seq: Option<i64>,
    /// Where the request began, when it is the second half of a hold with `pay: true`. A failure then releases the hold.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "object")]
    pub origin: Option<Origin>,
}

/// `payment.refund`: the buyer gives paid seats back for the money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refund {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// What is refunded.
    pub payment_id: PaymentId,
}

/// `reservation.cancel`: the buyer gives a hold back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer.
    pub user_id: UserId,
    /// What is cancelled.
    pub reservation_id: ReservationId,
}

/// `reservation.expire`: the reservation worker saw that a hold is overdue. It has an effect only if it was appended
/// after the hold's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expire {
    /// The request: it has one outcome, however often its record is read.
    pub request_id: RequestId,
    /// Hash of the call and the request as parsed, to tell a repeat of an `Idempotency-Key` from its reuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_hash: Option<String>,
    /// The buyer whose hold it is.
    pub user_id: UserId,
    /// What has run out.
    pub reservation_id: ReservationId,
}

macro_rules! message {
    ($message:ty, $kind:literal) => {
        impl Message for $message {
            const TYPE: &'static str = $kind;
            const TOPIC: &'static str = topics::PAYMENTS;

            fn key(&self) -> String {
                self.user_id.to_string()
            }
        }
    };
}

message!(Charge, "balance.charge");
message!(Pay, "payment.pay");
message!(Refund, "payment.refund");
message!(Cancel, "reservation.cancel");
message!(Expire, "reservation.expire");

impl Relations for Charge {}
impl Relations for Refund {}
impl Relations for Cancel {}
impl Relations for Expire {}
impl Relations for Pay {
    fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }
}

command! {
    /// All that the payment worker reads.
    PaymentCommand { Charge, Pay, Refund, Cancel, Expire }
}
