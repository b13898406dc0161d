//! The lease of a lock that is held: its deadline, its loss, its release by value.
//!
//! A [`Held`] is the right to go on. It is not `Clone`; whoever serves the turn owns it, and when
//! it goes, the lock goes: by [`Held::release`] where somebody can wait, by `Drop` where nobody can.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::extender::Extension;
use super::{Claim, Fence, Locks, Pending, Terms, margin};
use crate::deadline::Deadline;
use crate::key::SessionKey;

/// A lock that this process holds.
#[must_use = "dropping it gives the lock back"]
pub struct Held {
    claim: Arc<Claim>,
    fence: Fence,
    lease: Arc<Lease>,
    extension: Option<Extension>,
    stop_when_lost: bool,
    warned: bool,
    since: Instant,
    locks: Arc<Locks>,
    over: bool,
}

/// How long a lock is promised, and whether that is still so.
#[derive(Debug)]
pub(super) struct Lease {
    deadline: Deadline,
    taken: AtomicBool,
    waker: AtomicWaker,
}

/// How a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its time was over, or the store could not be reached to extend it.
    Expired,
    /// The store says that the lock isn't this turn's any more.
    Taken,
}

/// The release of a lock, under way. Resolves when the store has confirmed it, or when its time
/// for one command is over; the release then goes on in the background, as it does when this is
/// dropped.
#[must_use = "a release that nobody waits for is finished in the background"]
pub struct Releasing {
    pending: Option<Pending<bool>>,
    claim: Arc<Claim>,
    locks: Arc<Locks>,
}

// === impl Held ===

impl Held {
    /// A lock granted in answer to a command sent at `sent`, from which its lease counts.
    pub(super) fn granted(
        locks: Arc<Locks>,
        claim: Arc<Claim>,
        fence: Fence,
        sent: Instant,
        terms: &Terms,
    ) -> Self {
        let lease = Arc::new(Lease::from(sent, terms.lease));
        let extension = terms.extend_every.map(|every| {
            locks
                .extender()
                .watch(Arc::clone(&claim), Arc::clone(&lease), sent, every)
        });
        Self {
            claim,
            fence,
            lease,
            extension,
            stop_when_lost: terms.stop_when_lost,
            warned: false,
            since: Instant::now(),
            locks,
            over: false,
        }
    }

    /// The lock.
    pub fn key(&self) -> &SessionKey {
        &self.claim.key
    }

    /// The number of this acquisition.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// For how long it has been held.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The moment after which this turn may move nothing; `None` if it may go on unprotected.
    pub fn deadline(&self) -> Option<&Deadline> {
        self.stop_when_lost.then_some(&self.lease.deadline)
    }

    /// Whether the turn has to stop, and why. A turn that may go on without its lock is warned
    /// about, once.
    pub fn must_stop(&mut self) -> Option<Loss> {
        let loss = self.lease.loss(Instant::now())?;
        if self.stop_when_lost {
            return Some(loss);
        }
        if !self.warned {
            self.warned = true;
            tracing::warn!(key = %self.claim.key, %loss, "turn goes on without its lock");
        }
        None
    }

    /// As [`Held::must_stop`], and wakes the task when the lock is taken away. It does not wake it
    /// at the deadline: that takes a timer, and whoever polls has one anyway.
    pub fn poll_must_stop(&mut self, cx: &Context<'_>) -> Option<Loss> {
        self.lease.waker.register(cx.waker());
        self.must_stop()
    }

    /// Gives the lock back. The command is sent when the result is first polled.
    pub fn release(mut self) -> Releasing {
        self.over = true;
        Releasing {
            pending: Some(self.locks.store().release(&self.claim)),
            claim: Arc::clone(&self.claim),
            locks: Arc::clone(&self.locks),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the release, so that an extension doesn't find the lock gone and call it a loss.
        drop(self.extension.take());
        if !self.over {
            self.locks.releaser().release(Arc::clone(&self.claim));
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("key", self.key())
            .field("fence", &self.fence)
            .finish()
    }
}

// === impl Lease ===

impl Lease {
    fn from(sent: Instant, lease: Duration) -> Self {
        Self {
            deadline: Deadline::at(end(sent, lease)),
            taken: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Counts the lease from `sent` on: an extension sent then has succeeded.
    pub(super) fn extend(&self, sent: Instant, lease: Duration) {
        self.deadline.move_to(end(sent, lease));
    }

    /// The store says that the lock is no longer the holder's.
    pub(super) fn lose(&self) {
        self.taken.store(true, Ordering::Release);
        self.deadline.move_to(Instant::now());
        self.waker.wake();
    }

    /// Whether there is still something to extend at `now`.
    pub(super) fn loss(&self, now: Instant) -> Option<Loss> {
        if self.taken.load(Ordering::Acquire) {
            Some(Loss::Taken)
        } else {
            self.deadline.passed(now).then_some(Loss::Expired)
        }
    }
}

/// When a holder stops whose lease was asked for at `sent`: the store counts from later than that.
fn end(sent: Instant, lease: Duration) -> Instant {
    sent + lease.saturating_sub(margin(lease))
}

// === impl Loss ===

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its lease ran out",
            Self::Taken => "its lock was taken away",
        })
    }
}

// === impl Releasing ===

impl Future for Releasing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pending) = self.pending.as_mut() else {
            return Poll::Ready(());
        };
        let Poll::Ready(result) = pending.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.pending = None;
        match result {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(key = %self.claim.key, "lock was no longer this turn's when it ended");
            }
            Err(error) => {
                tracing::warn!(key = %self.claim.key, %error, "lock not released; going on in the background");
                self.locks.releaser().release(Arc::clone(&self.claim));
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        if self.pending.is_some() {
            // Perhaps sent, perhaps not: it is repeated until the store confirms it.
            self.locks.releaser().release(Arc::clone(&self.claim));
        }
    }
}
