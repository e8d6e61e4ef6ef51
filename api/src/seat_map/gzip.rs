//! Puts a gzip member together from pieces that were compressed one by one, so that a piece that has not changed is not
//! compressed again. Each piece is a run of whole deflate blocks that ends at a byte and looks back at no other; what
//! is not worth compressing stands in stored blocks.

use axum::body::Bytes;
use flate2::{Compress, Compression, Crc, FlushCompress};

const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Room for what deflate adds to data that does not shrink, and for the flush.
const DEFLATE_ROOM_BYTES: usize = 1024;

/// Compressed bytes with what gzip wants to know of the plain ones.
#[derive(Debug)]
pub(super) struct Piece {
    deflated: Bytes,
    crc: Crc,
}

impl Piece {
    /// Compresses `plain`.
    pub(super) fn new(plain: &[u8], level: Compression) -> Self {
        let mut crc = Crc::new();
        crc.update(plain);
        if plain.is_empty() {
            return Self { deflated: Bytes::new(), crc };
        }
        let mut deflate = Compress::new(level, false);
        let mut deflated = Vec::with_capacity(plain.len() / 4 + DEFLATE_ROOM_BYTES);
        let mut taken = 0;
        // Done when the flush leaves room: then all its bytes are out.
        while taken < plain.len() || deflated.len() == deflated.capacity() {
            deflated.reserve(DEFLATE_ROOM_BYTES);
            deflate
                .compress_vec(&plain[taken..], &mut deflated, FlushCompress::Full)
                .expect("deflate takes any bytes and has room");
            taken = usize::try_from(deflate.total_in()).expect("what is in memory is counted by usize");
        }
        deflated.shrink_to_fit();
        Self { deflated: deflated.into(), crc }
    }

    /// Bytes that it keeps in memory.
    pub(super) fn size(&self) -> usize {
        self.deflated.len() + size_of::<Self>()
    }
}

/// The gzip member of `head`, the pieces and `tail`; `head` and `tail` are stored and have at most 65,535 bytes each.
pub(super) fn member<'a>(head: &[u8], pieces: impl Iterator<Item = &'a Piece> + Clone, tail: &[u8]) -> Bytes {
    let room: usize = pieces.clone().map(|piece| piece.deflated.len()).sum();
    let mut out = Vec::with_capacity(HEADER.len() + head.len() + room + tail.len() + 2 * 5 + 8);
    let mut crc = Crc::new();
    out.extend(HEADER);
    stored(&mut out, head, false);
    crc.update(head);
    for piece in pieces {
        out.extend_from_slice(&piece.deflated);
        crc.combine(&piece.crc);
    }
    stored(&mut out, tail, true);
    crc.update(tail);
    out.extend(crc.sum().to_le_bytes());
    out.extend(crc.amount().to_le_bytes());
    out.into()
}

fn stored(out: &mut Vec<u8>, plain: &[u8], last: bool) {
    let length = u16::try_from(plain.len()).expect("a head or tail of a few hundred bytes");
    out.push(u8::from(last));
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend_from_slice(plain);
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn unzip(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut decoder = GzDecoder::new(bytes);
        decoder.read_to_end(&mut plain).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member and nothing after it");
        plain
    }

    proptest! {
        #[test]
        fn any_pieces_unzip_to_what_they_were_made_of(
            head in proptest::collection::vec(any::<u8>(), 0..300),
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5_000), 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let pieces: Vec<Piece> = parts.iter().map(|part| Piece::new(part, Compression::new(3))).collect();
            let expected = [head.clone(), parts.concat(), tail.clone()].concat();
            prop_assert_eq!(unzip(&member(&head, pieces.iter(), &tail)), expected);
        }
    }

    #[test]
    fn a_piece_that_shrinks_much_and_one_that_does_not_are_whole() {
        let flat = vec![b'a'; 500_000];
        let noise: Vec<u8> = (0..300_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        let pieces = [Piece::new(&flat, Compression::best()), Piece::new(&noise, Compression::fast())];
        assert_eq!(unzip(&member(b"[", pieces.iter(), b"]")), [&b"["[..], &flat, &noise, b"]"].concat());
    }
}
