//! This instance's heartbeat. `liveness` says whether another instance has one.
//!
//! Each instance keeps one key in the store alive. While the key is there, nobody takes over the
//! instance's locks. So a lost node blocks its sessions for `store.crash_recovery` rather than for
//! their leases, and all locks of an instance together cost one command now and then.
//!
//! Invariant: an instance that can't renew its heartbeat stops its turns before the key expires.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::claim_state::ClaimState;
use super::liveness::LivenessCheck;
use super::registry::ClaimRegistry;
use super::{ClaimIssuer, HeartbeatReply, LockHolder, Store, StoreError, StoreHealth};
use crate::deadline::{Deadline, margin};
use crate::metrics::Metrics;

/// The heartbeat of this instance, and what it knows of other instances. Dropping it ends its task.
#[derive(Debug)]
pub(super) struct Heartbeat {
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    metrics: Metrics,
    /// The task that renews the heartbeat; `None` for an instance without one.
    task: Option<HeartbeatTask>,
    /// What is known of other instances.
    pub(super) liveness: LivenessCheck,
}

#[derive(Debug)]
struct HeartbeatTask {
    /// When other instances may count this one as dead.
    deadline: Deadline,
    /// The result of the last heartbeat; `None` before the first.
    last: watch::Receiver<Option<Result<(), StoreError>>>,
    task: AbortOnDropHandle<()>,
}

/// The pause before a failed heartbeat is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

// === impl Heartbeat ===

impl Heartbeat {
    /// Starts the task that renews the issuer's heartbeat, on the current runtime. `crash_recovery` is
    /// how long a heartbeat is valid; `None`: the instance sends none. The task also sends a heartbeat
    /// when `reconnected` is notified, and sets `health`. If another process takes the instance's name,
    /// all claims in `registry` are lost.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(
        store: Arc<dyn Store>,
        issuer: Arc<ClaimIssuer>,
        crash_recovery: Option<Duration>,
        registry: ClaimRegistry,
        reconnected: Arc<Notify>,
        metrics: Metrics,
        health: StoreHealth,
    ) -> Self {
        let task = crash_recovery.map(|crash_recovery| {
            let deadline = Deadline::at(Instant::now());
            let (sender, last) = watch::channel(None);
            let worker = HeartbeatWorker {
                store: Arc::clone(&store),
                issuer: Arc::clone(&issuer),
                crash_recovery,
                deadline: deadline.clone(),
                last: sender,
                registry,
                reconnected,
                health,
            };
            HeartbeatTask {
                deadline,
                last,
                task: AbortOnDropHandle::new(tokio::spawn(worker.run())),
            }
        });
        Self {
            liveness: LivenessCheck::new(Arc::clone(&store), Arc::clone(&issuer), crash_recovery),
            store,
            issuer,
            metrics,
            task,
        }
    }

    /// When other instances may count this one as dead; `None`: never.
    pub(super) fn deadline(&self) -> Option<&Deadline> {
        self.task.as_ref().map(|task| &task.deadline)
    }

    /// Waits until this instance has a valid heartbeat, but not while the store is known not to reply.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the last heartbeat failed.
    pub(super) async fn wait_until_alive(&self) -> Result<(), StoreError> {
        let Some(task) = &self.task else {
            return Ok(());
        };
        if !task.deadline.passed(Instant::now()) {
            return Ok(());
        }
        let mut last = task.last.clone();
        loop {
            match &*last.borrow_and_update() {
                Some(Err(error)) => return Err(error.clone()),
                // A process that was stopped (SIGSTOP) wakes up with an old heartbeat.
                Some(Ok(())) if !task.deadline.passed(Instant::now()) => return Ok(()),
                Some(Ok(())) | None => {}
            }
            if last.changed().await.is_err() {
                let reason = "the process is stopping".into();
                return Err(StoreError::NoHeartbeat { reason });
            }
        }
    }

    /// The error of the last heartbeat; `None` if it succeeded.
    pub(super) fn last_error(&self) -> Option<StoreError> {
        let last = self.task.as_ref()?.last.borrow();
        last.as_ref()?.as_ref().err().cloned()
    }

    /// Counts and logs that the lock of a dead holder was taken over.
    pub(super) fn record_takeover(&self, holder: &LockHolder) {
        self.metrics.took_over();
        tracing::info!(
            holder = &*holder.redacted(),
            "lock taken over: its holder's instance is gone"
        );
    }

    /// Ends the task and deletes the heartbeat, so that the instance counts as dead at once. To be
    /// called when the instance serves no turn any more. Waits for the store for `limit` at most.
    pub(super) async fn stop(&self, limit: Duration) {
        let Some(task) = &self.task else {
            return;
        };
        task.task.abort();
        let unregistered = self
            .store
            .unregister(self.issuer.instance(), self.issuer.epoch());
        if let Ok(Err(error)) = timeout(limit, unregistered).await {
            tracing::debug!(%error, "heartbeat not deleted; it expires by itself");
        }
    }
}

// === the task ===

struct HeartbeatWorker {
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    crash_recovery: Duration,
    deadline: Deadline,
    last: watch::Sender<Option<Result<(), StoreError>>>,
    registry: ClaimRegistry,
    /// Notified after a reconnection: the store may have lost the key.
    reconnected: Arc<Notify>,
    health: StoreHealth,
}

impl HeartbeatWorker {
    async fn run(self) {
        // At first the process before this one may have the name. A process that starts takes it.
        let mut is_first = true;
        loop {
            let sent = Instant::now();
            let (instance, epoch) = (self.issuer.instance(), self.issuer.epoch());
            let reply = self
                .store
                .heartbeat(instance, epoch, self.crash_recovery, is_first);
            let reply = reply.await;
            let is_up = !matches!(reply, Ok(HeartbeatReply::NameTaken) | Err(_));
            self.health.set(is_up);
            let pause = match reply {
                Ok(HeartbeatReply::NameTaken) => self.on_name_taken(),
                Ok(reply) => {
                    self.on_alive(sent, reply == HeartbeatReply::Registered, is_first);
                    is_first = false;
                    self.crash_recovery / 3
                }
                Err(error) => {
                    tracing::debug!(%instance, %error, "heartbeat failed; trying again");
                    self.last.send_replace(Some(Err(error)));
                    RETRY_PAUSE
                }
            };
            let _ = timeout(pause, self.reconnected.notified()).await;
        }
    }

    /// Handles a heartbeat that succeeded. `was_gone`: the key was not there before. It may be gone
    /// before it expires: a Redis that restarts from a snapshot has the locks, but not the last seconds.
    fn on_alive(&self, sent: Instant, was_gone: bool, is_first: bool) {
        let has_lapsed = was_gone || self.deadline.passed(Instant::now());
        if !is_first && has_lapsed {
            // An instance that looked in between counts this one as dead, and may act on that at any later
            // time. So everything that this instance has claimed so far is lost.
            tracing::warn!(
                instance = %self.issuer.instance(),
                "heartbeat was missing for a while: all turns of this instance have lost their locks"
            );
            self.registry.for_each(ClaimState::lose);
        }
        self.deadline
            .move_to(sent + self.crash_recovery - margin(self.crash_recovery));
        self.last.send_replace(Some(Ok(())));
    }

    /// Handles a heartbeat that was refused; gives the pause until the next one.
    fn on_name_taken(&self) -> Duration {
        let instance = self.issuer.instance();
        tracing::error!(
            %instance,
            "another process has this instance's name; set store.instance to a unique name"
        );
        self.deadline.move_to(Instant::now());
        self.registry.for_each(ClaimState::lose);
        let reason = format!("another process has the instance name {instance:?}").into();
        self.last
            .send_replace(Some(Err(StoreError::NoHeartbeat { reason })));
        self.crash_recovery / 3
    }
}
