//! Work on large bodies: how much of it is done at once in the whole process.
//!
//! Invariant: a body of up to [`SMALL`] bytes waits for nobody, one of up to [`MIDDLING`] for no
//! larger one, and none for longer than [`PATIENCE`].

use std::panic::resume_unwind;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::SessionError;

/// What is read or decoded in one go, in bytes: less than a millisecond's work, and more than most
/// turns have.
pub(super) const SMALL: usize = 128 << 10;

/// Up to here a body is a long conversation's, in bytes. What is larger has files in it.
const MIDDLING: usize = 1 << 20;

/// How long a body waits for others of its size before it is refused: the client may come again, and
/// its connection isn't held.
const PATIENCE: Duration = Duration::from_secs(10);

/// At once, of each size: two, because there may be no more cores, and a worker has other turns.
const AT_ONCE: usize = 2;

static MIDDLING_ONES: Semaphore = Semaphore::const_new(AT_ONCE);
static LARGE_ONES: Semaphore = Semaphore::const_new(AT_ONCE);

/// How large a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodySize {
    Small,
    Middling,
    Large,
}

/// The right to work on a body. Dropping it lets the next one work.
pub(super) type WorkPermit = Option<SemaphorePermit<'static>>;

// === impl Size ===

impl BodySize {
    /// Of so many bytes.
    pub(super) fn of(bytes: usize) -> Self {
        match bytes {
            _ if bytes <= SMALL => Self::Small,
            _ if bytes <= MIDDLING => Self::Middling,
            _ => Self::Large,
        }
    }

    /// Waits for a place to work on a body of this size.
    ///
    /// # Errors
    /// When there is none for too long.
    pub(super) async fn place(self) -> Result<WorkPermit, SessionError> {
        let places = match self {
            Self::Small => return Ok(None),
            Self::Middling => &MIDDLING_ONES,
            Self::Large => &LARGE_ONES,
        };
        match timeout(PATIENCE, places.acquire()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            // They are never closed.
            Ok(Err(_)) | Err(_) => Err(SessionError::Overloaded),
        }
    }

    /// Does work on a body of this size where no other turn waits for it.
    ///
    /// # Errors
    /// When there is no place for too long.
    pub(super) async fn apart<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SessionError> {
        let place = self.place().await?;
        let working = spawn_blocking(move || {
            let _place = place;
            work()
        });
        working.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The process ends.
            Err(_) => SessionError::Overloaded,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_for_no_larger_one() {
        let mut large = Vec::new();
        for _ in 0..AT_ONCE {
            large.push(BodySize::of(MIDDLING + 1).place().await.unwrap());
        }
        let one_more = BodySize::of(10 << 20).place();
        assert!(one_more.now_or_never().is_none(), "a large one waits");
        let middling = BodySize::of(SMALL + 1).place().now_or_never();
        assert!(
            matches!(middling, Some(Ok(Some(_)))),
            "a smaller one doesn't"
        );
        let small = BodySize::of(SMALL).place().now_or_never();
        assert!(
            matches!(small, Some(Ok(None))),
            "and a small one needs no place"
        );
        let late = BodySize::of(10 << 20).place().await;
        assert!(
            matches!(late, Err(SessionError::Overloaded)),
            "nobody waits for ever"
        );
        drop(large);
        let next = BodySize::of(10 << 20).place().now_or_never();
        assert!(matches!(next, Some(Ok(Some(_)))), "a place is given back");
    }
}
