//! A moment that several parties watch and one can move.
//!
//! A lease has one: the holder's answer, the client's connection and the backend's connection all
//! stop at it, and an extension moves it for all of them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A shared moment on the monotonic clock. Clones are the same moment.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    base: Instant,
    /// Nanoseconds behind `base`; [`NEVER`] for no deadline.
    offset: AtomicU64,
}

const NEVER: u64 = u64::MAX;

// === impl Deadline ===

impl Deadline {
    /// A deadline at `at`.
    pub fn at(at: Instant) -> Self {
        // From now on, not from `at` on: it may be moved to an earlier moment.
        let base = Instant::now().min(at);
        let deadline = Self(Arc::new(Shared {
            base,
            offset: AtomicU64::new(NEVER),
        }));
        deadline.move_to(at);
        deadline
    }

    /// Moves it to `at`. Moments before this value was made count as that moment.
    pub fn move_to(&self, at: Instant) {
        let offset = at.saturating_duration_since(self.0.base).as_nanos();
        let offset = u64::try_from(offset).unwrap_or(NEVER - 1).min(NEVER - 1);
        self.0.offset.store(offset, Ordering::Release);
    }

    /// Takes it away: it never passes.
    pub fn lift(&self) {
        self.0.offset.store(NEVER, Ordering::Release);
    }

    /// When it passes; `None`: never.
    pub fn get(&self) -> Option<Instant> {
        match self.0.offset.load(Ordering::Acquire) {
            NEVER => None,
            offset => Some(self.0.base + Duration::from_nanos(offset)),
        }
    }

    /// Whether it has passed at `now`.
    pub fn passed(&self, now: Instant) -> bool {
        self.get().is_some_and(|at| now >= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_sees_it_move() {
        let start = Instant::now();
        let deadline = Deadline::at(start);
        let clone = deadline.clone();
        assert!(
            clone.passed(start),
            "a deadline passes at its moment, not after it"
        );
        deadline.move_to(start + Duration::from_secs(1));
        assert!(!clone.passed(start), "an extension is seen by every clone");
        assert!(
            clone.passed(start + Duration::from_secs(1)),
            "and so is its end"
        );
        deadline.move_to(start);
        assert!(clone.passed(start), "a loss moves it back");
        deadline.lift();
        assert_eq!(clone.get(), None, "a deadline that was lifted never passes");
    }
}
