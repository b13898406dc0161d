//! Work on large bodies: how many are read or decoded at once in the whole process.
//!
//! Invariant: a body of up to [`SMALL`] bytes never waits, a body of up to [`MEDIUM`] bytes never waits
//! for a larger one, and no body waits for longer than [`PERMIT_TIMEOUT`].

use std::panic::resume_unwind;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::error::SessionError;

/// The largest body that is read or decoded in one go, in bytes: it takes less than a millisecond, and
/// the bodies of most turns are smaller.
pub(super) const SMALL: usize = 128 << 10;

/// The largest body of a long conversation, in bytes. A larger body has files in it.
const MEDIUM: usize = 1 << 20;

/// How long a body waits for others of its size before its request is refused: the client can try again,
/// and doesn't hold a connection until then.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many bodies of each size are worked on at once: two, because there may be no more cores, and each
/// worker has other turns to serve.
const CONCURRENT: usize = 2;

static MEDIUM_PERMITS: Semaphore = Semaphore::const_new(CONCURRENT);
static LARGE_PERMITS: Semaphore = Semaphore::const_new(CONCURRENT);

/// How much work a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodySize {
    /// At most [`SMALL`] bytes.
    Small,
    /// At most [`MEDIUM`] bytes.
    Medium,
    /// More than [`MEDIUM`] bytes.
    Large,
}

// === impl BodySize ===

impl BodySize {
    /// The size of a body of so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        match bytes {
            _ if bytes <= SMALL => Self::Small,
            _ if bytes <= MEDIUM => Self::Medium,
            _ => Self::Large,
        }
    }

    /// Waits until a body of this size may be worked on. A small body needs no permit. Dropping the permit
    /// lets the next body be worked on. Dropping the future gives up the place among those that wait.
    ///
    /// # Errors
    /// [`SessionError::Overloaded`] when that takes too long.
    ///
    /// # Panics
    /// When it has to wait outside of a tokio runtime.
    pub(super) async fn permit(self) -> Result<Option<SemaphorePermit<'static>>, SessionError> {
        let permits = match self {
            Self::Small => return Ok(None),
            Self::Medium => &MEDIUM_PERMITS,
            Self::Large => &LARGE_PERMITS,
        };
        match timeout(PERMIT_TIMEOUT, permits.acquire()).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            // The semaphores are never closed.
            Ok(Err(_)) | Err(_) => Err(SessionError::Overloaded),
        }
    }

    /// Runs work on a body of this size on a thread where no other turn waits for it. Dropping the future
    /// doesn't stop work that has begun.
    ///
    /// # Errors
    /// [`SessionError::Overloaded`] when the work can't begin for too long.
    ///
    /// # Panics
    /// When the work panics, or outside of a tokio runtime.
    pub(super) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SessionError> {
        let permit = self.permit().await?;
        let running = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        running.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down.
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
        crate::time_limit::limit_this_test();
        let mut large = Vec::new();
        for _ in 0..CONCURRENT {
            large.push(BodySize::new(MEDIUM + 1).permit().await.unwrap());
        }
        let one_more = BodySize::new(10 << 20).permit();
        assert!(one_more.now_or_never().is_none(), "a large one waits");
        let medium = BodySize::new(SMALL + 1).permit().now_or_never();
        assert!(matches!(medium, Some(Ok(Some(_)))), "a smaller one doesn't");
        let small = BodySize::new(SMALL).permit().now_or_never();
        assert!(
            matches!(small, Some(Ok(None))),
            "and a small one needs no permit"
        );
        let late = BodySize::new(10 << 20).permit().await;
        assert!(
            matches!(late, Err(SessionError::Overloaded)),
            "nobody waits for ever"
        );
        drop(large);
        let next = BodySize::new(10 << 20).permit().now_or_never();
        assert!(matches!(next, Some(Ok(Some(_)))), "a permit is given back");
    }
}
