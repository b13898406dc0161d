//! Finishes what was dropped: the release of a lock whose turn was cut short, and the withdrawal
//! of a claim whose outcome nobody waited for.
//!
//! Invariant: a claim that is handed over here is out of the store by the time its lease ends, and
//! as soon as the store can be reached. `Drop` can't await; it hands over instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;

use super::guard::LockUpkeep;
use super::{Claim, Store, StoreError, Withdrawal};

/// Takes claims out of the store in the background. Cheap to clone.
#[derive(Clone)]
pub struct Releaser {
    store: Arc<dyn Store>,
    tasks: TaskTracker,
    runtime: Handle,
}

/// How long to wait before trying again: short at first, because a client may be waiting to come
/// back, then no more often than a store that is down can bear from many claims at once.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(50)..Duration::from_millis(500);

/// How late a command may arrive at the store and still be executed there: generously, for a store
/// has a limit of its own, of `store.timeout` and a slack.
const LATE: Duration = Duration::from_secs(70);

// === impl Releaser ===

impl Releaser {
    /// A releaser that works on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        }
    }

    /// Frees the lock of a claim that was granted.
    pub fn release(&self, claim: Arc<Claim>) {
        if claim.is_in_doubt() {
            return self.withdraw(claim);
        }
        let store = Arc::clone(&self.store);
        self.finish(claim, move |claim| {
            let released = store.release(claim);
            async move { released.await.map(|_| Withdrawal::ForGood) }
        });
    }

    /// As [`Releaser::release`], once the lock has been held on to until `settled` by what is `kept`.
    pub(super) fn release_after(&self, claim: Arc<Claim>, settled: Instant, kept: LockUpkeep) {
        let this = self.clone();
        self.track(async move {
            // Made here: whoever drops a lock may be outside of a runtime, where no timer can be made.
            sleep_until(settled).await;
            drop(kept);
            this.release(claim);
        });
    }

    /// Runs what has to be over before the process is.
    pub(super) fn track(&self, work: impl Future<Output = ()> + Send + 'static) {
        // On a runtime that is shutting down this spawns nothing, and doesn't panic.
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Takes back a claim that may have been granted, or may yet be.
    pub fn withdraw(&self, claim: Arc<Claim>) {
        let store = Arc::clone(&self.store);
        self.finish(claim, move |claim| store.withdraw(claim));
    }

    /// Resolves when everything that was handed over is finished, or `longest` has passed; `false`
    /// if something was left to the end of its lease.
    pub async fn flush(&self, longest: Duration) -> bool {
        self.tasks.close();
        timeout(longest, self.tasks.wait()).await.is_ok()
    }

    fn finish<F>(&self, claim: Arc<Claim>, attempt: impl Fn(&Claim) -> F + Send + 'static)
    where
        F: Future<Output = Result<Withdrawal, StoreError>> + Send,
    {
        let work = async move {
            // What was granted ends with its lease, and what is still on its way when it is given up
            // holds for a lease from its arrival on.
            let give_up = Instant::now() + claim.lease * 2 + LATE;
            let mut pause = RETRY.start;
            loop {
                match attempt(&claim).await {
                    Ok(Withdrawal::ForGood) => return,
                    Ok(Withdrawal::ForNow) => {}
                    Err(error) => {
                        tracing::debug!(key = %claim.key.redacted(), %error, "lock not released yet");
                    }
                }
                if Instant::now() + pause > give_up {
                    tracing::warn!(key = %claim.key.redacted(), "lock left to the end of its lease");
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.end);
            }
        };
        self.track(work);
    }
}
