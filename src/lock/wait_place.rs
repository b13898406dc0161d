//! The place of a waiting turn in its session's queue, for who tells it to the client.

use std::sync::atomic::{AtomicU32, Ordering};

/// The place of a waiting turn among the waiters of its session that are alive. The turn and the task that watches the
/// queues share it.
#[derive(Debug, Default)]
pub struct WaitPlace(AtomicU32);

// === impl WaitPlace ===

impl WaitPlace {
    /// The place, counted from 1, as it was when the queue was last watched; `None`: not known.
    pub fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|place| *place > 0)
    }

    /// Sets the place; `None`: the turn has none.
    pub(super) fn set(&self, place: Option<u32>) {
        self.0.store(place.unwrap_or_default(), Ordering::Relaxed);
    }
}
