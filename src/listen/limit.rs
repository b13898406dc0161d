//! A limit on how many connections are open at once.
//!
//! Invariant: at most as many permits exist as the limit says. A permit that is dropped makes room for
//! the next connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Hands out permits for connections, up to a limit. Cheap to clone; clones share the limit.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    most: usize,
    open: Arc<AtomicUsize>,
}

/// The right of one connection to be open. Dropping it gives the right back.
#[derive(Debug)]
pub struct ConnectionPermit {
    open: Arc<AtomicUsize>,
}

// === impl ConnectionLimit ===

impl ConnectionLimit {
    /// A limit of `most` connections. It keeps the number of open ones in `open`, for others to read.
    pub fn new(most: usize, open: Arc<AtomicUsize>) -> Self {
        Self { most, open }
    }

    /// A permit for one more connection; `None` when the limit is reached.
    pub fn try_open(&self) -> Option<ConnectionPermit> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let open = Arc::clone(&self.open);
        let permit = ConnectionPermit { open };
        // A permit that isn't handed out counts itself out again.
        (before < self.most).then_some(permit)
    }
}

// === impl ConnectionPermit ===

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_that_is_dropped_makes_room_for_the_next() {
        let limit = ConnectionLimit::new(2, Arc::default());
        let (first, second) = (limit.try_open(), limit.try_open());
        assert!(first.is_some() && second.is_some(), "two may be open");
        assert!(limit.try_open().is_none(), "a third may not");
        drop(first);
        assert!(limit.try_open().is_some(), "one has closed");
    }
}
