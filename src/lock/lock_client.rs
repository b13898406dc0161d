//! One worker's access to one store: what acquiring, holding and releasing a lock have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::extender::Extender;
use super::instance::Instance;
use super::releaser::Releaser;
use super::{CallChain, ClaimId, LockHolder, OnceTurn, Store, StoreError, WaitPlace};
use crate::key::SessionKey;

/// A store, and what this worker and its process do in it in the background.
#[derive(Debug)]
pub(super) struct LockClient {
    pub(super) store: Arc<dyn Store>,
    pub(super) releaser: Releaser,
    pub(super) extender: Extender,
    pub(super) instance: Arc<Instance>,
    /// For how long a turn that waits puts up with a store that fails; `None`: for as long as it may wait.
    pub(super) outage_limit: Option<Duration>,
    /// The last connection to the store since which the instance has renewed its heartbeat.
    confirmed: AtomicU64,
}

/// The turn that asks for a lock: how its token names it, and who waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requester<'r> {
    /// The name of the turn's route.
    pub(super) route: &'r str,
    /// The id of the turn's request.
    pub(super) request: &'r str,
    /// The id by which the turn is known already, if it has another claim; `None`: this is its first.
    pub(super) turn: Option<ClaimId>,
    /// The turns that wait for the request.
    pub(super) callers: &'r CallChain,
    /// Where the turn's place in the queue is noted; `None`: nobody wants to know it.
    pub(super) place: Option<&'r Arc<WaitPlace>>,
    /// What the store remembers of the turn, so that it is executed once; `None`: nothing.
    pub(super) once: Option<&'r Arc<OnceTurn>>,
    /// Whether the turn's answer is kept for other requests, which its token tells them.
    pub(super) is_kept: bool,
}

/// The first connection to a store: the instance sends its first heartbeat anyway.
const FIRST_CONNECTION: u64 = 1;

// === impl LockClient ===

impl LockClient {
    /// A client whose background work runs on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(
        store: Arc<dyn Store>,
        instance: Arc<Instance>,
        outage_limit: Option<Duration>,
    ) -> Self {
        Self {
            releaser: Releaser::new(Arc::clone(&store)),
            extender: Extender::new(Arc::clone(&store)),
            store,
            instance,
            outage_limit,
            confirmed: AtomicU64::new(FIRST_CONNECTION),
        }
    }

    /// Whether the holder waits for a request of these callers, so that the request would wait for itself. A
    /// turn of this process that is over, and whose lock is about to be free, waits for nobody.
    pub(super) fn waits_for(&self, holder: &LockHolder, callers: &CallChain) -> bool {
        let registry = &self.instance.registry;
        !callers.is_empty()
            && holder
                .turn()
                .is_some_and(|turn| callers.contains(turn.tag()) && !registry.is_over(turn.id))
    }

    /// Whether turns of this session may ask the store for its lock at `now`, so that there is nothing to wait for.
    pub(super) fn is_ready(&self, key: &SessionKey, now: Instant) -> bool {
        let is_over = |resumes| resumes <= now;
        self.instance.heartbeat.is_alive(now) && self.resumes(key).is_none_or(is_over)
    }

    /// Waits until turns of this session may ask the store for its lock: the instance has a valid heartbeat, and other
    /// instances have had the time to stop turns whose locks the store has lost. Cancel-safe.
    ///
    /// # Errors
    /// When the last heartbeat failed.
    pub(super) async fn wait_until_ready(&self, key: &SessionKey) -> Result<(), StoreError> {
        loop {
            self.instance.heartbeat.wait_until_alive().await?;
            match self.resumes(key) {
                Some(resumes) if Instant::now() < resumes => sleep_until(resumes).await,
                _ => return Ok(()),
            }
        }
    }

    /// When turns of this session may begin after another server has answered for the store; `None`: none has.
    fn resumes(&self, key: &SessionKey) -> Option<Instant> {
        let changed = self.store.server_changed(key)?;
        Some(changed + self.instance.failover_grace)
    }

    /// Waits until the instance has renewed its heartbeat since the store's current connection was made. A store
    /// that has restarted without its data grants a lock to an instance whose heartbeat it doesn't have. The
    /// heartbeat then counts the claim as lost. Cancel-safe.
    ///
    /// # Errors
    /// When the heartbeat fails.
    pub(super) async fn confirm_heartbeat(&self) -> Result<(), StoreError> {
        let connection = self.store.connection();
        if connection > self.confirmed.load(Ordering::Acquire) {
            self.instance.heartbeat.renew().await?;
            self.confirmed.fetch_max(connection, Ordering::AcqRel);
        }
        Ok(())
    }
}
