//! Whether the broker answers, as the results reader sees it: with a broker that is known to be down nobody is kept waiting.

use std::sync::atomic::{AtomicBool, Ordering};

/// The broker's state.
#[derive(Debug, Default)]
pub(crate) struct KafkaHealth {
    up: AtomicBool,
    reading: AtomicBool,
    suspected: AtomicBool,
}

impl KafkaHealth {
    /// The broker answers, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// The results topic is read.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.load(Ordering::Relaxed)
    }

    /// Something went wrong: the results reader shall find out whether the broker is there.
    pub(crate) fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Whether somebody suspects; asked once.
    pub(crate) fn take_suspicion(&self) -> bool {
        self.suspected.swap(false, Ordering::Relaxed)
    }

    /// What the results reader found out.
    pub(crate) fn set_up(&self, up: bool) {
        if self.up.swap(up, Ordering::Relaxed) != up {
            if up {
                tracing::info!("the broker answers");
            } else {
                tracing::warn!("the broker does not answer; requests through the log are refused until it does");
            }
        }
    }

    /// All partitions of the results topic are assigned.
    pub(crate) fn set_reading(&self) {
        self.reading.store(true, Ordering::Relaxed);
    }
}
