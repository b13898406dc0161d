//! Asks the store in the background, for a turn that runs without its lock.
//!
//! A turn may run although the store did not reply, or although locks are only observed. A background
//! task goes on asking for the turn's lock. So other turns see this one as soon as the store is
//! reachable again, and two turns that run at once are noticed, counted and logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::acquire::AcquireProgress;
use super::claim_state::ClaimState;
use super::lock_client::{LockClient, Requester};
use super::store_lock::StoreLock;
use super::{
    AcquireError, CallChain, ClaimId, LockHolder, LockLoss, LockOptions, OnLost, UnprotectedReason,
};
use crate::key::SessionKey;

/// The background task of a turn that runs already. Dropping it frees what the task got.
pub(super) struct BackgroundAcquire {
    /// The turn that runs without the store's protection.
    pub(super) turn: Arc<Unprotected>,
    /// Dropped to end the task.
    stop: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
}

/// A turn that runs without the store's protection.
#[derive(Debug)]
pub struct Unprotected {
    /// Why the store doesn't protect the turn.
    pub reason: UnprotectedReason,
    has_overlapped: AtomicBool,
    state: Arc<ClaimState>,
}

/// The pause after the first refusal, which isn't counted as an overlap yet: the release of a turn
/// that is over may be on its way.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The pause after every other attempt.
const PAUSE: Duration = Duration::from_millis(250);

// === impl BackgroundAcquire ===

impl BackgroundAcquire {
    /// Starts to ask, in a task on the client's runtime. `state` is that of the lock that the turn has; `None`:
    /// the turn has none.
    pub(super) fn start(
        client: &Arc<LockClient>,
        key: SessionKey,
        requester: Requester<'_>,
        options: &LockOptions,
        reason: UnprotectedReason,
        state: Option<&Arc<ClaimState>>,
    ) -> Self {
        // Without a lock, only an interruption ends the turn.
        let state = state.map_or_else(|| Arc::new(ClaimState::new(None, true)), Arc::clone);
        client.instance.metrics.unprotected(reason);
        let turn = Arc::new(Unprotected {
            reason,
            has_overlapped: AtomicBool::new(false),
            state,
        });
        let (stop, turn_is_over) = oneshot::channel();
        let (stopping, stopped) = oneshot::channel();
        let task = BackgroundTask {
            client: Arc::clone(client),
            turn: Arc::clone(&turn),
            key,
            route: requester.route.into(),
            request: requester.request.into(),
            known_as: requester.turn,
            is_kept: requester.is_kept,
            options: LockOptions {
                blocking: false,
                ..*options
            },
        };
        client.releaser.track(async move {
            task.run(turn_is_over).await;
            drop(stopping);
        });
        Self {
            turn,
            stop,
            stopped,
        }
    }

    /// Ends the task. The future resolves when the task has freed its lock; `None` if nobody has to wait
    /// for that.
    pub(super) fn stop(self) -> Option<impl Future<Output = ()> + Send> {
        drop(self.stop);
        let stopped = self.stopped;
        self.turn
            .is_enforced()
            .then_some(async { drop(stopped.await) })
    }
}

// === impl Unprotected ===

impl Unprotected {
    /// Whether another turn of the session was seen to run at the same time.
    pub fn has_overlapped(&self) -> bool {
        self.has_overlapped.load(Ordering::Relaxed)
    }

    /// The state of the turn, which an interruption changes: that of its lock, if it has one.
    pub(super) fn state(&self) -> &ClaimState {
        &self.state
    }

    fn is_enforced(&self) -> bool {
        self.reason != UnprotectedReason::Observe
    }

    /// Makes the turn stop. Does nothing for a turn that is only observed.
    fn interrupt(&self) {
        if self.is_enforced() {
            self.state.interrupt();
        }
    }
}

// === the task ===

struct BackgroundTask {
    client: Arc<LockClient>,
    turn: Arc<Unprotected>,
    key: SessionKey,
    route: Box<str>,
    request: Box<str>,
    /// The id by which the turn is known.
    known_as: Option<ClaimId>,
    /// Whether the turn's answer is kept for other requests.
    is_kept: bool,
    options: LockOptions,
}

impl BackgroundTask {
    /// Asks for the lock and holds it, until the turn is over.
    async fn run(&self, mut turn_is_over: oneshot::Receiver<()>) {
        // How often in a row the lock was busy.
        let mut refusals = 0_u32;
        loop {
            let acquired = tokio::select! {
                biased;
                _ = &mut turn_is_over => return,
                acquired = self.acquire() => acquired,
            };
            let pause = match acquired {
                Ok(mut lock) => {
                    if self.turn.reason == UnprotectedReason::Local {
                        lock.uncount();
                    }
                    if self.hold(lock, &mut turn_is_over).await {
                        return;
                    }
                    // The lock was lost. It may be free again when the release has arrived.
                    refusals = 0;
                    FIRST_PAUSE
                }
                // Perhaps a claim of this turn whose first reply got lost.
                Err(AcquireError::Busy(_, holder, _))
                    if self.client.instance.registry.has_abandoned(&holder) =>
                {
                    FIRST_PAUSE
                }
                // A turn of this process that waits for the local lock, which this turn has.
                Err(AcquireError::Busy(_, holder, _)) if self.waits_for_this_turn(&holder) => {
                    refusals = 0;
                    PAUSE
                }
                Err(AcquireError::Busy(_, holder, _)) => {
                    refusals += 1;
                    if refusals == 2 && !self.turn.has_overlapped() {
                        self.report_overlap(&holder);
                    }
                    if refusals == 1 { FIRST_PAUSE } else { PAUSE }
                }
                // The store failed, so nobody else can be seen.
                Err(_) => {
                    refusals = 0;
                    PAUSE
                }
            };
            tokio::select! {
                biased;
                _ = &mut turn_is_over => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Holds the lock until the turn is over; `false` if it was lost before, and may be acquired again.
    async fn hold(&self, lock: StoreLock, turn_is_over: &mut oneshot::Receiver<()>) -> bool {
        let lost = tokio::select! {
            biased;
            _ = &mut *turn_is_over => None,
            loss = lock.lost() => Some(loss),
        };
        match lost {
            Some(LockLoss::Interrupted) => {
                self.turn.interrupt();
                let _ = turn_is_over.await;
            }
            // An operator freed the lock for other turns, so this turn doesn't take it again.
            Some(_) if lock.state().is_force_released() => {
                drop(lock);
                if self.options.on_lost == OnLost::Abort {
                    self.turn.interrupt();
                }
                let _ = turn_is_over.await;
                return true;
            }
            Some(_) => return false,
            None => {}
        }
        lock.release().await;
        true
    }

    async fn acquire(&self) -> Result<StoreLock, AcquireError> {
        let requester = Requester {
            route: &self.route,
            request: &self.request,
            turn: self.known_as,
            // It never waits.
            callers: &CallChain::default(),
            place: None,
            // The turn runs already, and nobody knows whether another one with its id did.
            once: None,
            is_kept: self.is_kept,
        };
        let key = self.key.clone();
        let progress = &mut AcquireProgress::default();
        self.client
            .acquire(key, requester, &self.options, progress)
            .await
    }

    /// Whether the holder is a turn of this process that has the store's lock, and begins when this turn has
    /// given the local lock back.
    fn waits_for_this_turn(&self, holder: &LockHolder) -> bool {
        let state = holder
            .turn()
            .and_then(|turn| self.client.instance.registry.find(turn.id));
        state.is_some_and(|state| state.waits_locally())
    }

    fn report_overlap(&self, holder: &LockHolder) {
        self.turn.has_overlapped.store(true, Ordering::Relaxed);
        self.client.instance.metrics.overlapped();
        tracing::warn!(
            key = %self.key.redacted(),
            route = %self.route,
            request_id = %self.request,
            reason = self.turn.reason.as_str(),
            other_holder = &*holder.redacted(),
            "two turns of one session run at once"
        );
    }
}
