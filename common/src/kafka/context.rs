//! What the Kafka library says of its own accord. While a broker is away it says the same many times a second; here each kind of
//! trouble is told once in a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The same kind of trouble is not told again within this time.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Kinds of trouble that are remembered before it starts afresh.
const KINDS_MAX: usize = 100;

/// For producers and consumers that need nothing else from the library.
#[derive(Debug, Default)]
pub struct QuietContext {
    told: Mutex<HashMap<String, Instant>>,
}

impl QuietContext {
    fn is_news(&self, kind: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(kind).is_some_and(|at| at.elapsed() < TOLD_AGAIN_AFTER) {
            return false;
        }
        if told.len() >= KINDS_MAX {
            told.clear();
        }
        told.insert(kind.to_owned(), Instant::now());
        true
    }
}

impl ClientContext for QuietContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(facility, message, "Kafka client");
            }
            _ if self.is_news(facility) => tracing::warn!(facility, message, "Kafka client"),
            _ => tracing::debug!(facility, message, "Kafka client, again"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is no trouble to those who asked to be told of it.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        if self.is_news(&error.to_string()) {
            tracing::warn!(%error, reason, "Kafka client");
        } else {
            tracing::debug!(%error, reason, "Kafka client, again");
        }
    }
}

impl ConsumerContext for QuietContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once() {
        let context = QuietContext::default();
        assert!(context.is_news("FAIL") && !context.is_news("FAIL") && context.is_news("OTHER"));
    }
}
