//! What a turn holds while it runs, and its release by value.
//!
//! A [`LockGuard`] is the right to go on. It is not `Clone`: whoever serves the turn owns it.
//! [`LockGuard::release`] frees the lock where the caller can wait; `Drop` frees it in the background.
//! Nearly always the guard is one lock in the store. If the store failed, or locks are only observed,
//! the guard is what the configuration says instead, and [`LockGuard::unprotected`] says so.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::background::BackgroundAcquire;
use super::claim_state::ClaimState;
use super::store_lock::{StoreLock, StoreRelease};
use super::{ClaimId, Fence, LockLoss, SentFlag, TurnTag, Unprotected};
use crate::deadline::{ByteClock, Deadline};
use crate::key::SessionKey;

/// The right of a turn to run.
#[must_use = "dropping the guard frees the lock"]
pub struct LockGuard {
    key: SessionKey,
    /// The id by which the turn is known: of its first claim, if it has one.
    turn: ClaimId,
    since: Instant,
    waited: Option<Duration>,
    /// The lock that the turn runs under; `None`: it runs without one.
    lock: Option<StoreLock>,
    /// What the turn has besides the lock, or instead of it; `None` for nearly all turns.
    substitute: Option<Box<SubstituteLock>>,
}

/// What a turn has besides the store's lock, or instead of it.
pub(super) enum SubstituteLock {
    /// This replica's own lock, besides the store's. It isn't counted as held.
    Local(StoreLock),
    /// A background task that asks the store for a turn that runs without the store's lock.
    Background(BackgroundAcquire),
}

/// The release of a [`LockGuard`]. Resolves when the store has confirmed it, or `store.timeout` has
/// passed. In that case, or when it is dropped, the release goes on in the background.
#[must_use = "a release that nobody waits for is finished in the background"]
pub struct LockRelease {
    lock: Option<StoreRelease>,
    substitute: Option<SubstituteRelease>,
}

type SubstituteRelease = Pin<Box<dyn Future<Output = ()> + Send>>;

// === impl LockGuard ===

impl LockGuard {
    /// A guard for a turn that begins now. `waited` is how long it waited; `None`: it didn't have to.
    pub(super) fn new(
        key: SessionKey,
        turn: ClaimId,
        waited: Option<Duration>,
        lock: Option<StoreLock>,
        substitute: Option<SubstituteLock>,
    ) -> Self {
        Self {
            key,
            turn,
            since: Instant::now(),
            waited,
            lock,
            substitute: substitute.map(Box::new),
        }
    }

    /// The session whose lock the turn holds.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The tag by which calls of the turn's backend are known. Takes some hundred nanoseconds.
    pub fn tag(&self) -> TurnTag {
        TurnTag::new(self.turn)
    }

    /// The number of this acquisition; `None` for a turn that the store doesn't protect, because the
    /// fences of a local lock come from another clock.
    pub fn fence(&self) -> Option<Fence> {
        let lock = self.lock.as_ref()?;
        self.unprotected().is_none().then_some(lock.fence())
    }

    /// The id by which the turn is known.
    pub fn turn(&self) -> ClaimId {
        self.turn
    }

    /// What tells whether the turn's backend may have run the turn; `None`: nobody needs to know.
    pub fn sent_flag(&self) -> Option<&SentFlag> {
        self.lock.as_ref()?.sent_flag()
    }

    /// Notes who knows when a byte of the turn last moved, for the metrics.
    pub fn follow(&self, bytes: Arc<dyn ByteClock>) {
        if let Some(lock) = &self.lock {
            lock.state().follow(bytes);
        }
    }

    /// When the turn began to run.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// How long the turn has been running.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long the turn waited in the queue; `None`: it didn't have to.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Why the store doesn't protect this turn; `None`: the store protects it.
    pub fn unprotected(&self) -> Option<&Arc<Unprotected>> {
        match self.substitute.as_deref()? {
            SubstituteLock::Background(background) => Some(&background.turn),
            SubstituteLock::Local(_) => None,
        }
    }

    /// The moment after which the turn may send nothing. That of a turn without a lock has no moment until the
    /// turn is interrupted.
    pub fn deadline(&self) -> Option<&Deadline> {
        Some(self.state()?.deadline())
    }

    /// The state that an interruption changes, whichever lock of the turn it comes by.
    fn state(&self) -> Option<&ClaimState> {
        if let Some(lock) = &self.lock {
            return Some(lock.state());
        }
        match self.substitute.as_deref()? {
            SubstituteLock::Background(background) => Some(background.turn.state()),
            SubstituteLock::Local(_) => None,
        }
    }

    /// Whether the turn has to stop, and why. The first loss of a turn that may go on without its lock is
    /// logged.
    pub fn must_stop(&mut self) -> Option<LockLoss> {
        match &mut self.lock {
            Some(lock) => lock.must_stop(),
            None => {
                let is_interrupted = self.state().is_some_and(ClaimState::is_interrupted);
                is_interrupted.then_some(LockLoss::Interrupted)
            }
        }
    }

    /// Like [`LockGuard::must_stop`], and wakes the task when the lock is taken away. Does not wake the
    /// task at the deadline; the caller has to do that with a timer of its own.
    pub fn poll_must_stop(&mut self, cx: &Context<'_>) -> Option<LockLoss> {
        if let Some(state) = self.state() {
            state.register_waker(cx);
        }
        self.must_stop()
    }

    /// Waits until the turn has to stop because it lost its lock. Cancel-safe.
    pub async fn lost(&mut self) -> LockLoss {
        loop {
            let never = || Deadline::within(None);
            let deadline = self.deadline().cloned().unwrap_or_else(never);
            tokio::select! {
                biased;
                loss = poll_fn(|cx| self.poll_must_stop(cx).map_or(Poll::Pending, Poll::Ready)) => {
                    return loss;
                }
                () = deadline.reached() => {}
            }
        }
    }

    /// Whether the turn keeps its lock for a time after a complete response.
    pub fn settles(&self) -> bool {
        let substitute = match self.substitute.as_deref() {
            Some(SubstituteLock::Local(local)) => Some(local),
            _ => None,
        };
        let mut locks = self.lock.iter().chain(substitute);
        locks.any(StoreLock::settles)
    }

    /// Releases the lock of a complete turn after its time to settle. The command is sent when the future is
    /// polled.
    pub fn release(self) -> LockRelease {
        LockRelease {
            lock: self.lock.map(StoreLock::release),
            substitute: self.substitute.and_then(|substitute| substitute.release()),
        }
    }

    /// Like [`LockGuard::release`], for a turn whose request was cancelled, or whose response broke off.
    pub fn release_cancelled(mut self) -> LockRelease {
        let substitute = match self.substitute.as_deref_mut() {
            Some(SubstituteLock::Local(local)) => Some(local),
            _ => None,
        };
        for lock in self.lock.as_mut().into_iter().chain(substitute) {
            lock.note_cancelled();
        }
        self.release()
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("key", self.key())
            .field("fence", &self.fence())
            .finish_non_exhaustive()
    }
}

// === impl SubstituteLock ===

impl SubstituteLock {
    fn release(self) -> Option<SubstituteRelease> {
        match self {
            Self::Local(local) => Some(Box::pin(local.release())),
            Self::Background(background) => Some(Box::pin(background.stop()?)),
        }
    }
}

// === impl LockRelease ===

impl Future for LockRelease {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let is_released = poll_part(&mut this.lock, cx);
        match poll_part(&mut this.substitute, cx) && is_released {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// Polls a future and drops it when it is ready; `true` if nothing is left to wait for.
fn poll_part<F: Future<Output = ()> + Unpin>(part: &mut Option<F>, cx: &mut Context<'_>) -> bool {
    if let Some(future) = part
        && Pin::new(future).poll(cx).is_pending()
    {
        return false;
    }
    *part = None;
    true
}
