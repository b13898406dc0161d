//! Finishes in the background what was dropped: releases of locks whose turns were cut short, and
//! withdrawals of claims whose outcome nobody waited for.
//!
//! Invariant: a claim that the releaser gets is out of the store as soon as the store can be reached,
//! and at the end of its lease at the latest. `Drop` can't await, so it hands claims over here.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::{Claim, Store, StoreError, Withdrawal};

/// Removes claims from the store in tasks on one runtime. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Releaser {
    store: Arc<dyn Store>,
    tasks: TaskTracker,
    runtime: Handle,
}

/// The pause between two attempts: short at first, because the client may come back at once, then long
/// enough that many claims at once don't overload a store that is down.
const RETRY_PAUSE: Range<Duration> = Duration::from_millis(50)..Duration::from_millis(500);

/// How late a command may still arrive at the store and be executed. Generous: the store's own limit is
/// `store.timeout` and some slack.
const MAX_DELAY: Duration = Duration::from_secs(70);

// === impl Releaser ===

impl Releaser {
    /// A releaser that works on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    /// Frees the lock of a claim that was granted.
    pub(super) fn release(&self, claim: Arc<Claim>) {
        if claim.is_in_doubt() {
            return self.withdraw(claim);
        }
        let store = Arc::clone(&self.store);
        self.retry(claim, move |claim| {
            let released = store.release(claim);
            async move { released.await.map(|_| Withdrawal::ForGood) }
        });
    }

    /// Frees the lock of a claim at `settled`. Until then `upkeep` keeps the lock.
    pub(super) fn release_at(
        &self,
        settled: Instant,
        claim: Arc<Claim>,
        upkeep: impl Send + 'static,
    ) {
        let this = self.clone();
        self.track(async move {
            // The timer is made in the task: the caller may be outside of a runtime.
            sleep_until(settled).await;
            drop(upkeep);
            this.release(claim);
        });
    }

    /// Takes back a claim that may have been granted, or may still be.
    pub(super) fn withdraw(&self, claim: Arc<Claim>) {
        let store = Arc::clone(&self.store);
        self.retry(claim, move |claim| store.withdraw(claim));
    }

    /// Spawns a task that [`Releaser::flush`] waits for.
    pub(super) fn track(&self, work: impl Future<Output = ()> + Send + 'static) {
        // On a runtime that is shutting down this spawns nothing, and doesn't panic.
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Waits until all background work is finished, for `limit` at most. Gives `false` if some was left,
    /// so that its locks end with their leases. Cancel-safe.
    pub(super) async fn flush(&self, limit: Duration) -> bool {
        self.tasks.close();
        timeout(limit, self.tasks.wait()).await.is_ok()
    }

    fn retry<F>(&self, claim: Arc<Claim>, attempt: impl Fn(&Claim) -> F + Send + 'static)
    where
        F: Future<Output = Result<Withdrawal, StoreError>> + Send,
    {
        self.track(async move {
            // A granted lock ends with its lease. A command that is still on its way starts a lease when
            // it arrives.
            let give_up = Instant::now() + claim.lease * 2 + MAX_DELAY;
            let mut pause = RETRY_PAUSE.start;
            loop {
                match attempt(&claim).await {
                    Ok(Withdrawal::ForGood) => return,
                    Ok(Withdrawal::ForNow) => {}
                    Err(error) => {
                        tracing::debug!(key = %claim.key.redacted(), %error, "lock not released; trying again");
                    }
                }
                if Instant::now() + pause > give_up {
                    tracing::warn!(key = %claim.key.redacted(), "lock not released; it ends with its lease");
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE.end);
            }
        });
    }
}
