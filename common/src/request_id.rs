//! Request ids that prove themselves: `GET /v1/requests/{id}` can tell a request that nobody has written down yet from an id
//! that somebody made up, without a row in any table.
//!
//! A version 8 UUID. The first 60 free bits are time and chance, or derived from the buyer and an `Idempotency-Key`; the last 62
//! are an HMAC-SHA256 of the first and of the buyer, so an id is good for its own buyer only.

use std::sync::atomic::{AtomicU32, Ordering};

use chrono::Utc;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::ids::{RequestId, UserId};

const VERSION_8: u64 = 0x8 << 12;
const FREE_BITS: u64 = !(0xF << 12);
const VARIANT: u64 = 0b10 << 62;
const PROOF_BITS: u64 = u64::MAX >> 2;
const COUNTER_BITS: u32 = 28;

/// Mints and checks request ids with one secret key.
#[derive(Clone)]
pub struct RequestIds {
    mac: Hmac<Sha256>,
}

impl RequestIds {
    /// `secret` is the deployment's `REQUEST_ID_KEY`.
    pub fn new(secret: &str) -> Self {
        Self { mac: Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length") }
    }

    /// A new id for a request of `buyer` (None: an operator).
    pub fn fresh(&self, buyer: Option<UserId>) -> RequestId {
        let seconds = u64::try_from(Utc::now().timestamp()).unwrap_or_default() & u64::from(u32::MAX);
        let sixty_bits = (seconds << COUNTER_BITS) | u64::from(next_counter());
        self.proven(spread(sixty_bits), buyer)
    }

    /// The id of the request that `buyer` (None: an operator) marked with this `Idempotency-Key`: always the same.
    pub fn derived(&self, buyer: Option<UserId>, idempotency_key: &str) -> RequestId {
        let mut mac = self.mac.clone();
        mac.update(b"idempotency-key");
        mac.update(owner(buyer).as_bytes());
        mac.update(idempotency_key.as_bytes());
        self.proven(first_u64(mac) & FREE_BITS | VERSION_8, buyer)
    }

    /// Whether this id was minted here for `buyer`.
    pub fn proves(&self, id: RequestId, buyer: Option<UserId>) -> bool {
        let (first, _) = id.0.as_u64_pair();
        self.proven(first, buyer) == id
    }

    fn proven(&self, first: u64, buyer: Option<UserId>) -> RequestId {
        let mut mac = self.mac.clone();
        mac.update(b"request-id");
        mac.update(&first.to_be_bytes());
        mac.update(owner(buyer).as_bytes());
        RequestId(Uuid::from_u64_pair(first, first_u64(mac) & PROOF_BITS | VARIANT))
    }
}

fn owner(buyer: Option<UserId>) -> Uuid {
    buyer.map_or(Uuid::nil(), |user| user.0)
}

fn first_u64(mac: Hmac<Sha256>) -> u64 {
    let bytes: [u8; 32] = mac.finalize().into_bytes().into();
    u64::from_be_bytes(bytes[..8].try_into().expect("8 of 32 bytes"))
}

/// Moves the low 12 of 60 bits below the version nibble.
fn spread(sixty_bits: u64) -> u64 {
    let high = sixty_bits >> 12 << 16;
    let low = sixty_bits & 0xFFF;
    high | VERSION_8 | low
}

/// A counter with a start by chance: no two ids of a process share a second and a count, and two processes hardly ever do.
fn next_counter() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    static START: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let start = *START.get_or_init(|| Uuid::new_v4().as_fields().0);
    start.wrapping_add(COUNTER.fetch_add(1, Ordering::Relaxed)) & ((1 << COUNTER_BITS) - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ids() -> RequestIds {
        RequestIds::new("a secret of at least 32 characters")
    }

    fn buyer(n: u128) -> UserId {
        UserId(Uuid::from_u128(n))
    }

    #[test]
    fn a_fresh_id_is_a_version_8_uuid_that_proves_its_own_buyer_only() {
        let id = ids().fresh(Some(buyer(1)));
        assert_eq!(id.0.get_version_num(), 8);
        assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122);
        assert!(ids().proves(id, Some(buyer(1))));
        assert!(!ids().proves(id, Some(buyer(2))) && !ids().proves(id, None));
        assert!(!RequestIds::new("another secret of some 32 characters").proves(id, Some(buyer(1))));
    }

    #[test]
    fn an_id_that_was_made_up_proves_nothing() {
        assert!(!ids().proves(RequestId(Uuid::new_v4()), Some(buyer(1))));
        let mut bytes = *ids().fresh(Some(buyer(1))).0.as_bytes();
        bytes[15] ^= 1;
        assert!(!ids().proves(RequestId(Uuid::from_bytes(bytes)), Some(buyer(1))));
    }

    #[test]
    fn the_same_key_of_the_same_buyer_is_the_same_request() {
        let id = ids().derived(Some(buyer(1)), "k");
        assert_eq!(id, ids().derived(Some(buyer(1)), "k"));
        assert_ne!(id, ids().derived(Some(buyer(2)), "k"));
        assert_ne!(id, ids().derived(Some(buyer(1)), "K"));
        assert!(ids().proves(id, Some(buyer(1))));
        assert_eq!(id.0.get_version_num(), 8);
    }

    #[test]
    fn fresh_ids_of_one_buyer_do_not_collide() {
        let all: HashSet<_> = (0..100_000).map(|_| ids().fresh(Some(buyer(1)))).collect();
        assert_eq!(all.len(), 100_000);
    }
}
