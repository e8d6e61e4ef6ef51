//! The topics, their consumer groups, and which partition a key belongs to.

/// Joins, leaves and settings of queues, keyed by concert: one concert is one line.
pub const TOKENS: &str = "boxoffice.tokens.v1";
/// Holds, keyed by schedule: one schedule has one writer.
pub const RESERVATIONS: &str = "boxoffice.reservations.v1";
/// All that moves money or ends a hold, keyed by buyer: one balance has one writer.
pub const PAYMENTS: &str = "boxoffice.payments.v1";
/// Outcomes and token events, for whoever waits.
pub const RESULTS: &str = "boxoffice.results.v1";

/// The topics that workers consume.
pub const COMMANDS: [&str; 3] = [TOKENS, RESERVATIONS, PAYMENTS];

/// Partitions of a topic that workers consume, unless configured otherwise.
pub const PARTITIONS_DEFAULT: i32 = 24;
/// Partitions of the results topic, unless configured otherwise. Each api process reads all of them, so more of them share no work; they
/// cut what is told into smaller batches, and a broker looks at each for each fetch.
pub const RESULTS_PARTITIONS_DEFAULT: i32 = 1;

/// Where the unreadable records of a topic go.
pub fn dead_letters(topic: &str) -> String {
    format!("{topic}.dlt")
}

/// The partition that the `murmur2_random` partitioner (and so every Java tool) gives a key.
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7FFF_FFFF).cast_signed() % partitions
}

/// Kafka's murmur2: seed 0x9747b28c, little-endian blocks of four bytes.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    #[expect(clippy::cast_possible_truncation, reason = "the algorithm hashes the low 32 bits of the length")]
    let mut h = SEED ^ data.len() as u32;
    let mut blocks = data.chunks_exact(4);
    for block in &mut blocks {
        let mut k = u32::from_le_bytes(block.try_into().expect("chunks of four")).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest`.
    #[test]
    fn murmur2_is_the_one_of_kafka() {
        let vectors: [(&str, i32); 7] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
            ("", 275_646_681),
        ];
        for (text, expected) in vectors {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), expected, "{text}");
        }
    }
}
