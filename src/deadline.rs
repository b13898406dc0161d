//! A moment that several parties watch and one can move.
//!
//! A lease has one: the holder's answer, the client's connection and the backend's connection all
//! stop at it, and an extension moves it for all of them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A shared moment on the monotonic clock. Clones are the same moment.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<DeadlineState>);

#[derive(Debug)]
struct DeadlineState {
    base: Instant,
    /// Nanoseconds behind `base`; [`NEVER`] for no deadline.
    offset: AtomicU64,
    /// A deadline of more than this one, which ends it too.
    outer: Option<Deadline>,
}

const NEVER: u64 = u64::MAX;

// === impl Deadline ===

impl Deadline {
    /// A deadline at `at`.
    pub fn at(at: Instant) -> Self {
        // From now on, not from `at` on: it may be moved to an earlier moment.
        let base = Instant::now().min(at);
        let deadline = Self(Arc::new(DeadlineState {
            base,
            offset: AtomicU64::new(NEVER),
            outer: None,
        }));
        deadline.move_to(at);
        deadline
    }

    /// A deadline that passes with `outer` at the latest, and has no moment of its own yet.
    pub fn within(outer: Option<&Self>) -> Self {
        Self(Arc::new(DeadlineState {
            base: Instant::now(),
            offset: AtomicU64::new(NEVER),
            outer: outer.cloned(),
        }))
    }

    /// Moves it to `at`. Moments before this value was made count as that moment.
    pub fn move_to(&self, at: Instant) {
        let offset = at.saturating_duration_since(self.0.base).as_nanos();
        let offset = u64::try_from(offset).unwrap_or(NEVER - 1).min(NEVER - 1);
        self.0.offset.store(offset, Ordering::Release);
    }

    /// When it passes; `None`: never.
    pub fn get(&self) -> Option<Instant> {
        let own = match self.0.offset.load(Ordering::Acquire) {
            NEVER => None,
            offset => Some(self.0.base + Duration::from_nanos(offset)),
        };
        let outer = self.0.outer.as_ref().and_then(Self::get);
        own.into_iter().chain(outer).min()
    }

    /// Resolves when it has passed, also when it was moved meanwhile. One that is given its first
    /// moment meanwhile isn't noticed. Cancel-safe.
    pub async fn reached(&self) {
        while let Some(at) = self.get() {
            if Instant::now() >= at {
                return;
            }
            sleep_until(at).await;
        }
        std::future::pending().await
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
    }

    #[test]
    fn the_outer_deadline_ends_the_inner_one() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let outer = Deadline::at(start + second);
        let inner = Deadline::within(Some(&outer));
        assert_eq!(
            inner.get(),
            outer.get(),
            "one without a moment has the outer one's"
        );
        inner.move_to(start + second * 2);
        assert_eq!(inner.get(), outer.get(), "the earlier of the two counts");
        outer.move_to(start + second * 3);
        assert_eq!(
            inner.get(),
            Some(start + second * 2),
            "and an extension of the outer one is seen"
        );
        assert_eq!(
            Deadline::within(None).get(),
            None,
            "without either it never passes"
        );
    }
}
