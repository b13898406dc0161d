//! Ids for requests whose client sent none.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids that are unique in the process by a counter, and across processes by a random start.
pub(super) struct RequestIds {
    start: String,
    issued: AtomicU64,
}

// === impl RequestIds ===

impl RequestIds {
    /// Ids that begin with `process`, a number that no other worker has.
    pub(super) fn new(process: u64) -> Self {
        Self {
            start: format!("{process:016x}-"),
            issued: AtomicU64::new(0),
        }
    }

    /// The next id.
    pub(super) fn next(&self) -> String {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        format!("{}{number:x}", self.start)
    }
}
