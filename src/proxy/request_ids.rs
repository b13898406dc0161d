//! Ids for requests that bring none.

use std::sync::atomic::{AtomicU64, Ordering};

/// Unique in the process by a counter, and between processes by a random start.
pub(super) struct RequestIds {
    start: String,
    issued: AtomicU64,
}

// === impl RequestIds ===

impl RequestIds {
    /// Those that begin with `process`, a number that no other has.
    pub(super) fn new(process: u64) -> Self {
        Self {
            start: format!("{process:016x}-"),
            issued: AtomicU64::new(0),
        }
    }

    pub(super) fn next(&self) -> String {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        format!("{}{number:x}", self.start)
    }
}
