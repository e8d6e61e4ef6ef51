//! What all workers share and no word knows better: consuming, batches, transactions, offsets, dead letters, results, shutdown.

pub mod word;
