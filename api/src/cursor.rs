//! Cursors of lists: where the next page begins, as an opaque string. It carries the sort key of the last item shown, a
//! tag of its list and a checksum, so that one of another list, or one that was damaged on the way, is told as such.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const CHECKSUM_BYTES: usize = 4;

/// The sort key of an item after which a page begins.
pub(crate) trait Cursor: Sized {
    /// Tells the lists apart.
    const TAG: u8;

    /// The key in bytes.
    fn to_bytes(&self) -> Vec<u8>;

    /// The key from what [`Self::to_bytes`] wrote; None for anything else.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;

    /// The string for `next_cursor`.
    fn encode(&self) -> String {
        let mut bytes = vec![Self::TAG];
        bytes.extend(self.to_bytes());
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads the string of a `cursor` parameter; None: it is no cursor of this list.
    fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (content, found) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        let (tag, key) = content.split_first()?;
        (*tag == Self::TAG && checksum(content) == found).then(|| Self::from_bytes(key))?
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash: [u8; 32] = Sha256::digest(content).into();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// In the list of concerts: the last one's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConcertCursor(pub(crate) i64);

impl Cursor for ConcertCursor {
    const TAG: u8 = b'c';

    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(i64::from_be_bytes(bytes)))
    }
}

/// In a buyer's ledger: the last entry's number in the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryCursor(pub(crate) i64);

impl Cursor for EntryCursor {
    const TAG: u8 = b'e';

    fn to_bytes(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(i64::from_be_bytes(bytes)))
    }
}

/// In a buyer's reservations: when the last one was held, and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReservationCursor {
    /// To the microsecond, as the database has it.
    pub(crate) held_at: DateTime<Utc>,
    /// Tells apart what was held at the same time.
    pub(crate) reservation_id: Uuid,
}

impl Cursor for ReservationCursor {
    const TAG: u8 = b'r';

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.held_at.timestamp_micros().to_be_bytes().to_vec();
        bytes.extend(self.reservation_id.as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (micros, id) = bytes.split_at_checked(8)?;
        let held_at = DateTime::from_timestamp_micros(i64::from_be_bytes(micros.try_into().ok()?))?;
        Some(Self { held_at, reservation_id: Uuid::from_slice(id).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_cursor_is_read_as_it_was_written(id: i64, micros in 0..4_000_000_000_000_000_i64, uuid: u128) {
            prop_assert_eq!(ConcertCursor::decode(&ConcertCursor(id).encode()), Some(ConcertCursor(id)));
            prop_assert_eq!(EntryCursor::decode(&EntryCursor(id).encode()), Some(EntryCursor(id)));
            let held_at = DateTime::from_timestamp_micros(micros).unwrap();
            let cursor = ReservationCursor { held_at, reservation_id: Uuid::from_u128(uuid) };
            prop_assert_eq!(ReservationCursor::decode(&cursor.encode()), Some(cursor));
        }

        #[test]
        fn what_is_no_cursor_is_refused_and_never_panics(text in ".{0,60}") {
            prop_assert_eq!(ConcertCursor::decode(&text), None);
            prop_assert_eq!(ReservationCursor::decode(&text), None);
        }
    }

    #[test]
    fn the_cursor_of_another_list_or_a_damaged_one_is_refused() {
        let good = ConcertCursor(7).encode();
        assert_eq!(EntryCursor::decode(&good), None);
        assert_eq!(ReservationCursor::decode(&good), None);
        assert_eq!(ConcertCursor::decode(&good[..good.len() - 1]), None);
        assert_eq!(ConcertCursor::decode(&format!("{good}A")), None);
        let mut bytes = URL_SAFE_NO_PAD.decode(&good).unwrap();
        bytes[5] ^= 1;
        assert_eq!(ConcertCursor::decode(&URL_SAFE_NO_PAD.encode(bytes)), None);
    }
}
