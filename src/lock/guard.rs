//! What a turn runs under, and its release by value.
//!
//! A [`LockGuard`] is the right to go on. It is not `Clone`; whoever serves the turn owns it, and when
//! it goes, the lock goes: by [`LockGuard::release`] where somebody can wait, by `Drop` where nobody can.
//! Nearly always it is one `StoreLock`: a lock in the store. Where the store gave no answer, or isn't
//! to be obeyed, it is whatever the configuration says instead, marked as [`Unprotected`].

use std::fmt;
use std::future::{pending, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::background::{BackgroundAcquire, BackgroundRelease};
use super::claim_state::ClaimState;
use super::extender::Extension;
use super::registry::ClaimRegistration;
use super::{Claim, Fence, LockLoss, Locks, StoreFuture, Terms, Unprotected};
use crate::deadline::Deadline;
use crate::key::SessionKey;
use crate::metrics::HeldGauge;

/// What a turn runs under.
#[must_use = "dropping it gives the lock back"]
pub struct LockGuard {
    key: SessionKey,
    since: Instant,
    waited: Option<Duration>,
    hold: Option<StoreLock>,
    /// What a turn has besides, or instead, where the store is not all there is.
    beside: Option<Box<SubstituteLock>>,
}

/// See [`LockGuard`].
pub(super) struct SubstituteLock {
    /// This replica's own lock, beside the store's.
    local: Option<StoreLock>,
    /// What asks the store on behalf of a turn that runs without.
    shadow: Option<BackgroundAcquire>,
}

/// One claim's lock in one store.
pub(super) struct StoreLock {
    claim: Arc<Claim>,
    fence: Fence,
    standing: Arc<ClaimState>,
    kept: Option<LockUpkeep>,
    settle: Duration,
    /// Its loss was told of.
    told: bool,
    locks: Arc<Locks>,
}

/// What keeps a lock while it is held.
pub(super) struct LockUpkeep {
    /// Dropped before it is released, so that an extension doesn't find it gone and call it a loss.
    extension: Option<Extension>,
    /// Dropped when its release is answered, or not waited for any longer: from then on a turn of this
    /// process may take over what is left of it in the store.
    entry: ClaimRegistration,
    /// `None` for one that stands beside another one of its turn, which is counted.
    holding: Option<HeldGauge>,
}

/// The release of a lock, under way. Resolves when the store has confirmed it, or when its time
/// for one command is over; the release then goes on in the background, as it does when this is
/// dropped.
#[must_use = "a release that nobody waits for is finished in the background"]
pub struct LockRelease {
    hold: Option<StoreRelease>,
    beside: Option<Box<(Option<StoreRelease>, Option<BackgroundRelease>)>>,
}

/// One lock on its way out of its store.
pub(super) struct StoreRelease {
    /// It is held on to until then.
    settling: Option<Pin<Box<Sleep>>>,
    kept: Option<LockUpkeep>,
    pending: Option<StoreFuture<bool>>,
    claim: Arc<Claim>,
    locks: Arc<Locks>,
    over: bool,
}

// === impl Held ===

impl LockGuard {
    pub(super) fn new(
        key: SessionKey,
        waited: Option<Duration>,
        hold: Option<StoreLock>,
        beside: Option<Box<SubstituteLock>>,
    ) -> Self {
        Self {
            key,
            since: Instant::now(),
            waited,
            hold,
            beside,
        }
    }

    /// The lock.
    pub fn key(&self) -> &SessionKey {
        &self.key
    }

    /// The number of this acquisition; `None` for a turn that the store doesn't protect: another
    /// store's numbers are by another clock.
    pub fn fence(&self) -> Option<Fence> {
        let hold = self.hold.as_ref()?;
        self.unprotected().is_none().then_some(hold.fence)
    }

    /// For how long it has been held.
    pub fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long the turn stood in line for it; `None`: it didn't have to.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Why the store doesn't protect this turn, and whether another one was seen to run beside it;
    /// `None` for one that it does.
    pub fn unprotected(&self) -> Option<&Arc<Unprotected>> {
        let shadow = self.beside.as_ref()?.shadow.as_ref()?;
        Some(shadow.mark())
    }

    /// The moment after which this turn may move nothing; `None` if it runs without a lock.
    pub fn deadline(&self) -> Option<&Deadline> {
        Some(self.hold.as_ref()?.standing.deadline())
    }

    /// Whether the turn has to stop, and why. A turn that may go on without its lock is warned
    /// about, once.
    pub fn must_stop(&mut self) -> Option<LockLoss> {
        let loss = self.hold.as_mut().and_then(StoreLock::must_stop);
        loss.or_else(|| self.beside.as_ref()?.interrupted())
    }

    /// As [`LockGuard::must_stop`], and wakes the task when the lock is taken away. It does not wake it
    /// at the deadline: that takes a timer, and whoever polls has one anyway.
    pub fn poll_must_stop(&mut self, cx: &Context<'_>) -> Option<LockLoss> {
        if let Some(hold) = &self.hold {
            hold.standing.wake(cx);
        }
        if let Some(beside) = &self.beside {
            beside.wake(cx);
        }
        self.must_stop()
    }

    /// Resolves when the lock is lost and the turn has to stop for it. Cancel-safe.
    pub async fn lost(&mut self) -> LockLoss {
        loop {
            let deadline = self.deadline().cloned();
            let passed = async {
                match &deadline {
                    Some(deadline) => deadline.reached().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                loss = poll_fn(|cx| self.poll_must_stop(cx).map_or(Poll::Pending, Poll::Ready)) => {
                    return loss;
                }
                () = passed => {}
            }
        }
    }

    /// Gives the lock back, after its time to settle. The command is sent when the result is first
    /// polled.
    pub fn release(self) -> LockRelease {
        let beside = self.beside.map(|beside| {
            let local = beside.local.map(StoreLock::release);
            Box::new((local, beside.shadow.and_then(BackgroundAcquire::stop)))
        });
        LockRelease {
            hold: self.hold.map(StoreLock::release),
            beside,
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("key", self.key())
            .field("fence", &self.fence())
            .finish_non_exhaustive()
    }
}

// === impl Beside ===

impl SubstituteLock {
    /// The other one is the store's.
    pub(super) fn local(mut hold: StoreLock) -> Self {
        hold.uncount();
        Self {
            local: Some(hold),
            shadow: None,
        }
    }

    pub(super) fn shadow(shadow: BackgroundAcquire) -> Self {
        Self {
            local: None,
            shadow: Some(shadow),
        }
    }

    /// Whether the turn is to make way, wherever it was said: by the store, or, when
    /// that is out of reach, by this replica's own lock.
    fn interrupted(&self) -> Option<LockLoss> {
        let shadow = self.shadow.as_ref();
        let told = shadow.is_some_and(|shadow| shadow.mark().is_interrupted());
        let local = self.local.as_ref();
        let asked = local.is_some_and(|local| local.standing.is_interrupted());
        (told || asked).then_some(LockLoss::Interrupted)
    }

    fn wake(&self, cx: &Context<'_>) {
        if let Some(shadow) = &self.shadow {
            shadow.mark().wake(cx);
        }
        if let Some(local) = &self.local {
            local.standing.wake(cx);
        }
    }
}

// === impl Hold ===

impl StoreLock {
    /// A lock granted in answer to a command sent at `sent`, from which its lease counts.
    pub(super) fn granted(
        locks: &Arc<Locks>,
        claim: Arc<Claim>,
        (fence, sent): (Fence, Instant),
        (standing, entry): (Arc<ClaimState>, ClaimRegistration),
        terms: &Terms,
    ) -> Self {
        standing.extend(sent, terms.lease);
        let extension = terms.extend_every.map(|every| {
            locks
                .extender()
                .watch(Arc::clone(&claim), Arc::clone(&standing), sent, every)
        });
        Self {
            claim,
            fence,
            standing,
            kept: Some(LockUpkeep {
                extension,
                entry,
                holding: Some(locks.metrics().holding()),
            }),
            settle: terms.settle,
            told: false,
            locks: Arc::clone(locks),
        }
    }

    /// It isn't counted among the locks that are held: its turn has another one.
    pub(super) fn uncount(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.holding = None;
        }
    }

    /// Changes for how long it is held on to when it is dropped; gives what it was.
    pub(super) fn set_settle(&mut self, settle: Duration) -> Duration {
        mem::replace(&mut self.settle, settle)
    }

    /// Resolves when the lock is lost.
    pub(super) async fn lost(&self) -> LockLoss {
        let looked = poll_fn(|cx| {
            self.standing.wake(cx);
            match self.standing.loss(Instant::now()) {
                Some(loss) => Poll::Ready(loss),
                None => Poll::Pending,
            }
        });
        let mut looked = std::pin::pin!(looked);
        loop {
            tokio::select! {
                loss = &mut looked => return loss,
                () = self.standing.lease().reached() => {}
            }
        }
    }

    /// Whether an operator has taken it away.
    pub(super) fn was_forced(&self) -> bool {
        self.standing.is_forced()
    }

    fn must_stop(&mut self) -> Option<LockLoss> {
        let loss = self.standing.loss(Instant::now())?;
        // Making way is no accident that one may go on after.
        let stops = self.standing.stops_when_lost() || loss == LockLoss::Interrupted;
        if !mem::replace(&mut self.told, true) {
            self.locks.metrics().lost(loss.word());
            if !stops {
                tracing::warn!(key = %self.claim.key.redacted(), %loss, "turn goes on without its lock");
            }
        }
        stops.then_some(loss)
    }

    /// Gives the lock back, after its time to settle.
    pub(super) fn release(mut self) -> StoreRelease {
        let settling = (!self.settle.is_zero()).then(|| {
            // Its answer is over: there is nothing left to interrupt, and its end may be seen.
            self.standing.settle();
            Box::pin(sleep(self.settle))
        });
        StoreRelease {
            settling,
            kept: self.kept.take(),
            pending: None,
            claim: Arc::clone(&self.claim),
            locks: Arc::clone(&self.locks),
            over: false,
        }
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Released otherwise.
        let Some(kept) = self.kept.take() else {
            return;
        };
        let claim = Arc::clone(&self.claim);
        // What is lost has nothing to settle under it any more; what was interrupted has.
        let is_lost = matches!(
            self.standing.loss(Instant::now()),
            Some(LockLoss::Expired | LockLoss::Taken)
        );
        if self.settle.is_zero() || is_lost {
            drop(kept);
            self.locks.releaser().release(claim);
        } else {
            let settled = Instant::now() + self.settle;
            self.locks.releaser().release_after(claim, settled, kept);
        }
    }
}

// === impl Releasing ===

impl Future for LockRelease {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut is_ready = poll_away(&mut this.hold, cx);
        if let Some(beside) = &mut this.beside {
            is_ready &= poll_away(&mut beside.0, cx);
            is_ready &= poll_away(&mut beside.1, cx);
        }
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// Polls what is there, and drops it when it is ready.
fn poll_away<F: Future<Output = ()> + Unpin>(part: &mut Option<F>, cx: &mut Context<'_>) -> bool {
    if let Some(future) = part
        && Pin::new(future).poll(cx).is_pending()
    {
        return false;
    }
    *part = None;
    true
}

// === impl Freeing ===

impl Future for StoreRelease {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(());
        }
        if let Some(sleep) = &mut this.settling {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.settling = None;
        }
        let pending = this.pending.get_or_insert_with(|| {
            if let Some(kept) = &mut this.kept {
                kept.extension = None;
                kept.entry.retire();
            }
            this.locks.store().release(&this.claim)
        });
        let Poll::Ready(result) = pending.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        this.over = true;
        this.kept = None;
        match result {
            Ok(_) if this.claim.is_in_doubt() => {
                // Another command by the same claim may yet arrive.
                this.locks.releaser().withdraw(Arc::clone(&this.claim));
            }
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(key = %self.claim.key.redacted(), "lock was no longer this turn's when it ended");
            }
            Err(error) => {
                tracing::warn!(key = %self.claim.key.redacted(), %error, "lock not released; going on in the background");
                self.locks.releaser().release(Arc::clone(&self.claim));
            }
        }
        Poll::Ready(())
    }
}

impl Drop for StoreRelease {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let claim = Arc::clone(&self.claim);
        match (self.settling.take(), self.kept.take()) {
            (Some(sleep), Some(kept)) => {
                let settled = sleep.deadline();
                self.locks.releaser().release_after(claim, settled, kept);
            }
            // Perhaps sent, perhaps not: it is repeated until the store confirms it.
            (_, kept) => {
                drop(kept);
                self.locks.releaser().release(claim);
            }
        }
    }
}
