//! One held lock in one store, and its release by value.
//!
//! Invariant: a lock that is dropped is freed. [`StoreLock::release`] frees it where the caller can
//! wait; `Drop` gives it to the releaser. A lock with a time to settle is kept alive until then.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::claim_state::ClaimState;
use super::extender::Extension;
use super::lock_client::LockClient;
use super::registry::ClaimRegistration;
use super::{
    Claim, ClaimId, Dismissal, Fence, LockLoss, LockOptions, OnceClaim, SentFlag, StoreError,
    StoreFuture,
};
use crate::metrics::HeldGauge;

/// A lock that one claim holds in one store.
pub(super) struct StoreLock {
    claim: Arc<Claim>,
    fence: Fence,
    state: Arc<ClaimState>,
    /// `None` once the lock is being released.
    upkeep: Option<LockUpkeep>,
    settle: SettleTimes,
    /// Whether the loss of the lock was counted and logged.
    is_loss_reported: bool,
    client: Arc<LockClient>,
}

/// How long a lock is kept after its turn.
#[derive(Clone, Copy, Default)]
pub(super) struct SettleTimes {
    /// After a complete response.
    complete: Duration,
    /// After a turn that ended in another way.
    cancelled: Duration,
}

/// A successful acquisition.
pub(super) struct Grant {
    pub(super) fence: Fence,
    /// When the command was sent. The lease counts from here.
    pub(super) sent: Instant,
}

/// What keeps a lock alive while it is held.
struct LockUpkeep {
    /// Ends before the release, so that an extension doesn't find the lock gone and report a loss.
    extension: Option<Extension>,
    /// Ends when the release has a reply or goes on in the background. From then on a turn of this
    /// process may take over what the store still has of the claim.
    registration: ClaimRegistration,
    /// `None` for the second lock of a turn, which isn't counted.
    held: Option<HeldGauge>,
}

/// The release of one lock. Resolves when the store replied or `store.timeout` has passed. If it
/// failed or is dropped, the release goes on in the background.
pub(super) struct StoreRelease {
    /// The timer of `lock.settle`; the lock is kept until it ends.
    settling: Option<Pin<Box<Sleep>>>,
    upkeep: Option<LockUpkeep>,
    pending: Option<StoreFuture<bool>>,
    claim: Arc<Claim>,
    client: Arc<LockClient>,
    is_done: bool,
}

// === impl StoreLock ===

impl StoreLock {
    /// A lock that was granted to a claim.
    pub(super) fn new(
        client: &Arc<LockClient>,
        claim: Arc<Claim>,
        grant: Grant,
        state: Arc<ClaimState>,
        registration: ClaimRegistration,
        options: &LockOptions,
    ) -> Self {
        let Grant { fence, sent } = grant;
        state.extend(sent, options.lock_timeout);
        let (extender, interval) = (&client.extender, options.extend_lock_interval);
        let extension = extender.add(Arc::clone(&claim), Arc::clone(&state), sent, interval);
        Self {
            claim,
            fence,
            state,
            upkeep: Some(LockUpkeep {
                extension: Some(extension),
                registration,
                held: Some(client.instance.metrics.holding()),
            }),
            settle: SettleTimes {
                complete: options.settle,
                cancelled: options.settle_cancelled.unwrap_or(options.settle),
            },
            is_loss_reported: false,
            client: Arc::clone(client),
        }
    }

    /// The id of the claim that holds the lock.
    pub(super) fn id(&self) -> ClaimId {
        self.claim.id
    }

    /// The number of this acquisition.
    pub(super) fn fence(&self) -> Fence {
        self.fence
    }

    /// What tells whether the turn's backend may have run the turn; `None`: the turn isn't executed once.
    pub(super) fn sent_flag(&self) -> Option<&SentFlag> {
        self.claim.once.as_ref().map(OnceClaim::sent_flag)
    }

    /// The state of the claim that holds the lock.
    pub(super) fn state(&self) -> &Arc<ClaimState> {
        &self.state
    }

    /// Removes the lock from the count of held locks, because its turn has another one.
    pub(super) fn uncount(&mut self) {
        if let Some(upkeep) = &mut self.upkeep {
            upkeep.held = None;
        }
    }

    /// Whether the lock is kept for a time after a complete response.
    pub(super) fn settles(&self) -> bool {
        !self.settle.complete.is_zero()
    }

    /// Changes how long the lock is kept after the turn; gives the former value.
    pub(super) fn set_settle(&mut self, settle: SettleTimes) -> SettleTimes {
        mem::replace(&mut self.settle, settle)
    }

    /// Notes that the turn didn't end with a complete response.
    pub(super) fn note_cancelled(&mut self) {
        self.settle.complete = self.settle.cancelled;
    }

    /// Waits until the lock is lost. Cancel-safe.
    pub(super) async fn lost(&self) -> LockLoss {
        loop {
            let loss = poll_fn(|cx| {
                self.state.register_waker(cx);
                self.state
                    .loss(Instant::now())
                    .map_or(Poll::Pending, Poll::Ready)
            });
            tokio::select! {
                loss = loss => return loss,
                () = self.state.lease_end().reached() => {}
            }
        }
    }

    /// How the turn lost its lock, if it has to stop for that. The first call after a loss counts it, and
    /// logs it if the turn goes on.
    pub(super) fn must_stop(&mut self) -> Option<LockLoss> {
        let loss = self.state.loss(Instant::now())?;
        // An interrupted turn always stops: somebody asked for it.
        let stops = self.state.stops_when_lost() || loss == LockLoss::Interrupted;
        if !mem::replace(&mut self.is_loss_reported, true) {
            self.client.instance.metrics.lost(loss);
            if !stops {
                tracing::warn!(key = %self.claim.key.redacted(), %loss, "lock lost; the turn goes on without it");
            }
        }
        stops.then_some(loss)
    }

    /// Lets the turn's repeats know that the turn was interrupted, if it ends before its backend was sent a byte.
    fn note_interruption(&self) {
        if let Some(once) = self
            .claim
            .once
            .as_ref()
            .filter(|_| self.state.is_interrupted())
        {
            once.dismiss(Dismissal::Superseded);
        }
    }

    /// Releases the lock after its time to settle. The command is sent when the future is first polled
    /// after that.
    pub(super) fn release(mut self) -> StoreRelease {
        self.note_interruption();
        // The response is over: there is nothing left to interrupt, and the client may see its end.
        self.state.start_settling();
        let settle = self.settle.complete;
        let settling = (!settle.is_zero()).then(|| Box::pin(sleep(settle)));
        StoreRelease {
            settling,
            upkeep: self.upkeep.take(),
            pending: None,
            claim: Arc::clone(&self.claim),
            client: Arc::clone(&self.client),
            is_done: false,
        }
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        let Some(upkeep) = self.upkeep.take() else {
            return;
        };
        self.note_interruption();
        let claim = Arc::clone(&self.claim);
        // A lost lock protects nothing that could settle. The lock of an interrupted turn does.
        let loss = self.state.loss(Instant::now());
        let is_lost = loss.is_some_and(|loss| loss != LockLoss::Interrupted);
        let settle = self.settle.cancelled;
        if settle.is_zero() || is_lost {
            drop(upkeep);
            self.client.releaser.release(claim);
        } else {
            // There is nothing left to interrupt, and a call of the turn's backend waits for nobody.
            self.state.start_settling();
            let settled = Instant::now() + settle;
            self.client.releaser.release_at(settled, claim, upkeep);
        }
    }
}

// === impl StoreRelease ===

impl StoreRelease {
    fn finish(&self, result: Result<bool, StoreError>) {
        let claim = &self.claim;
        match result {
            // An acquisition by the same claim may still arrive.
            Ok(_) if claim.is_in_doubt() => self.client.releaser.withdraw(Arc::clone(claim)),
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(key = %claim.key.redacted(), "lock was already lost when its turn ended");
            }
            Err(error) => {
                tracing::warn!(key = %claim.key.redacted(), %error, "lock not released; trying again in the background");
                self.client.releaser.release(Arc::clone(claim));
            }
        }
    }
}

impl Future for StoreRelease {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(());
        }
        if let Some(sleep) = &mut this.settling {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.settling = None;
        }
        let pending = this.pending.get_or_insert_with(|| {
            if let Some(upkeep) = &mut this.upkeep {
                upkeep.extension = None;
                upkeep.registration.retire();
            }
            this.client.store.release(&this.claim)
        });
        let Poll::Ready(result) = Pin::new(pending).poll(cx) else {
            return Poll::Pending;
        };
        this.is_done = true;
        this.upkeep = None;
        this.finish(result);
        Poll::Ready(())
    }
}

impl Drop for StoreRelease {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let claim = Arc::clone(&self.claim);
        match (self.settling.take(), self.upkeep.take()) {
            (Some(sleep), Some(upkeep)) => {
                let releaser = &self.client.releaser;
                releaser.release_at(sleep.deadline(), claim, upkeep);
            }
            // The command may have been sent. The releaser repeats it until the store confirms it.
            (_, upkeep) => {
                drop(upkeep);
                self.client.releaser.release(claim);
            }
        }
    }
}
