//! This instance's heartbeat. `liveness` says whether another instance has one.
//!
//! Each instance keeps one key in the store alive. While the key is there, nobody takes over the
//! instance's locks. So a lost node blocks its sessions for `store.crash_recovery` rather than for
//! their leases, and all locks of an instance together cost one command now and then.
//!
//! Invariant: an instance that can't renew its heartbeat stops its turns before the key expires. If the key is
//! gone, the store may have lost its data, and for a moment nobody begins a turn: other instances have yet to
//! stop theirs.
//!
//! What is lost: an instance that starts after such a loss can't know of it, and begins turns at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::claim_state::ClaimState;
use super::liveness::{Liveness, LivenessCheck};
use super::registry::ClaimRegistry;
use super::{ClaimIssuer, HeartbeatReply, LockHolder, Store, StoreError, StoreHealth};
use crate::deadline::{AtomicInstant, Deadline, margin};
use crate::key::SessionKey;
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
    liveness: LivenessCheck,
    /// The claims of this process.
    registry: ClaimRegistry,
}

#[derive(Debug)]
struct HeartbeatTask {
    /// When other instances may count this one as dead.
    deadline: Deadline,
    /// The last heartbeat; `None` before the first.
    last: watch::Receiver<Option<SentHeartbeat>>,
    /// Notified to send a heartbeat now.
    wanted: Arc<Notify>,
    /// When turns may begin again after the key was gone.
    resumes: Arc<AtomicInstant>,
    task: AbortOnDropHandle<()>,
}

/// A heartbeat that has a reply, or failed.
#[derive(Clone, Debug)]
struct SentHeartbeat {
    sent: Instant,
    result: Result<(), StoreError>,
}

/// The pause before a failed heartbeat is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// For how long no turn begins after the store has lost its data, or may have lost the last writes: as long as other
/// instances need to connect again, to find their heartbeats or locks gone, and to stop their turns.
pub(super) const LOSS_PAUSE: Duration = Duration::from_secs(1);

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
        let claims = registry.clone();
        let task = crash_recovery.map(|crash_recovery| {
            let deadline = Deadline::at(Instant::now());
            let (sender, last) = watch::channel(None);
            let resumes = Arc::new(AtomicInstant::unset());
            let wanted = Arc::clone(&reconnected);
            let worker = HeartbeatWorker {
                store: Arc::clone(&store),
                issuer: Arc::clone(&issuer),
                crash_recovery,
                deadline: deadline.clone(),
                last: sender,
                registry,
                wanted: reconnected,
                resumes: Arc::clone(&resumes),
                is_refused: false,
                is_name_taken: false,
                health,
            };
            HeartbeatTask {
                deadline,
                last,
                wanted,
                resumes,
                task: AbortOnDropHandle::new(tokio::spawn(worker.run())),
            }
        });
        Self {
            liveness: LivenessCheck::new(Arc::clone(&store), Arc::clone(&issuer), crash_recovery),
            store,
            issuer,
            metrics,
            task,
            registry: claims,
        }
    }

    /// When other instances may count this one as dead; `None`: never.
    pub(super) fn deadline(&self) -> Option<&Deadline> {
        self.task.as_ref().map(|task| &task.deadline)
    }

    /// Whether this instance has a valid heartbeat at `now`, and turns may begin.
    pub(super) fn is_alive(&self, now: Instant) -> bool {
        // The deadline first: when the key is found gone, the pause is set before the deadline moves.
        let is_alive = |task: &HeartbeatTask| {
            let has_resumed = || task.resumes.load().is_none_or(|resumes| resumes <= now);
            !task.deadline.passed(now) && has_resumed()
        };
        self.task.as_ref().is_none_or(is_alive)
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
        loop {
            let now = Instant::now();
            if task.deadline.passed(now) {
                // A process that was stopped (SIGSTOP) wakes up with an old heartbeat, and sends another one.
                let is_alive = |_: &SentHeartbeat| !task.deadline.passed(Instant::now());
                task.find(|last| last.result.is_err() || is_alive(last))
                    .await?;
            } else if let Some(resumes) = task.resumes.load().filter(|resumes| now < *resumes) {
                sleep_until(resumes).await;
            } else {
                return Ok(());
            }
        }
    }

    /// Sends a heartbeat, and waits until one that was sent after this call has succeeded. Cancel-safe.
    ///
    /// # Errors
    /// When the heartbeat fails.
    pub(super) async fn renew(&self) -> Result<(), StoreError> {
        let Some(task) = &self.task else {
            return Ok(());
        };
        let asked = Instant::now();
        task.wanted.notify_one();
        task.find(|last| last.sent >= asked).await
    }

    /// The error of the last heartbeat; `None` if it succeeded.
    pub(super) fn last_error(&self) -> Option<StoreError> {
        let last = self.task.as_ref()?.last.borrow();
        last.as_ref()?.result.as_ref().err().cloned()
    }

    /// Whether the holder's instance is alive, which counts as dead for a claim of this process without a turn.
    /// Cancel-safe.
    pub(super) async fn check_holder(&self, holder: &LockHolder) -> Liveness {
        if self.registry.has_abandoned(holder) {
            return Liveness::Dead {
                min_age: Duration::ZERO,
            };
        }
        self.liveness.check(holder).await
    }

    /// Counts and logs that this session's lock was taken over from a dead holder, unless it was a claim of this process.
    pub(super) fn record_takeover(&self, key: &SessionKey, holder: &LockHolder) {
        if self.registry.has_abandoned(holder) {
            return;
        }
        self.metrics.took_over();
        tracing::info!(
            key = &*key.redacted(),
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

// === impl HeartbeatTask ===

impl HeartbeatTask {
    /// Waits until `is_wanted` accepts the last heartbeat, and gives its result. Cancel-safe.
    async fn find(&self, is_wanted: impl Fn(&SentHeartbeat) -> bool) -> Result<(), StoreError> {
        let mut last = self.last.clone();
        loop {
            let current = last.borrow_and_update().clone();
            if let Some(current) = current.filter(&is_wanted) {
                return current.result;
            }
            if last.changed().await.is_err() {
                let reason = "the process is stopping".into();
                return Err(StoreError::NoHeartbeat { reason });
            }
        }
    }
}

// === the task ===

struct HeartbeatWorker {
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    crash_recovery: Duration,
    deadline: Deadline,
    last: watch::Sender<Option<SentHeartbeat>>,
    registry: ClaimRegistry,
    /// Notified after a reconnection, because the store may have lost the key, and when a turn needs to know.
    wanted: Arc<Notify>,
    resumes: Arc<AtomicInstant>,
    /// Whether the store refused the last heartbeat, so that there is one warning per outage.
    is_refused: bool,
    /// Whether another process had the name at the last heartbeat, so that there is one error per conflict.
    is_name_taken: bool,
    health: StoreHealth,
}

impl HeartbeatWorker {
    async fn run(mut self) {
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
                Ok(HeartbeatReply::NameTaken) => self.on_name_taken(sent),
                Ok(reply) => {
                    (self.is_refused, self.is_name_taken) = (false, false);
                    self.on_alive(sent, reply == HeartbeatReply::Registered, is_first);
                    is_first = false;
                    self.crash_recovery / 3
                }
                Err(error) => self.on_error(sent, error),
            };
            let _ = timeout(pause, self.wanted.notified()).await;
        }
    }

    /// Notes the result of a heartbeat.
    fn set_last(&self, sent: Instant, result: Result<(), StoreError>) {
        self.last.send_replace(Some(SentHeartbeat { sent, result }));
    }

    /// Handles a heartbeat that failed; gives the pause until the next one.
    fn on_error(&mut self, sent: Instant, error: StoreError) -> Duration {
        let instance = self.issuer.instance();
        // The connection itself warns if the store can't be reached.
        let is_refused = matches!(error, StoreError::Refused { .. });
        if is_refused && !std::mem::replace(&mut self.is_refused, true) {
            tracing::warn!(
                %instance,
                %error,
                "heartbeat refused; without one within store.crash_recovery, all turns of this instance stop"
            );
        } else {
            tracing::debug!(%instance, %error, "heartbeat failed; trying again");
        }
        // Another process has the name until this one gets a heartbeat again.
        let error = match self.is_name_taken {
            true => StoreError::NameTaken,
            false => error,
        };
        self.set_last(sent, Err(error));
        RETRY_PAUSE
    }

    /// Handles a heartbeat that succeeded. `was_gone`: the key was not there before. It may be gone
    /// before it expires: a Redis that restarts from a snapshot has the locks, but not the last seconds.
    fn on_alive(&self, sent: Instant, was_gone: bool, is_first: bool) {
        let now = Instant::now();
        let has_expired = self.deadline.passed(now);
        // Even if it had expired: that of another instance, which the store lost, may not have.
        if !is_first && was_gone {
            self.resumes.store(now + LOSS_PAUSE);
        }
        if !is_first && (was_gone || has_expired) {
            // An instance that looked in between counts this one as dead, and may act on that at any later
            // time. So everything that this instance has claimed so far is lost.
            tracing::warn!(
                instance = %self.issuer.instance(),
                "heartbeat was missing for a while: the running turns of this instance have lost their locks"
            );
            self.registry.for_each(ClaimState::lose);
        }
        self.deadline
            .move_to(sent + self.crash_recovery - margin(self.crash_recovery));
        self.set_last(sent, Ok(()));
    }

    /// Handles a heartbeat that was refused; gives the pause until the next one.
    fn on_name_taken(&mut self, sent: Instant) -> Duration {
        let (instance, prefix) = (self.issuer.instance(), self.issuer.prefix());
        let error = StoreError::NameTaken;
        if !std::mem::replace(&mut self.is_name_taken, true) {
            tracing::error!(%instance, prefix, %error, "turns lost their locks, and new ones are refused");
        }
        self.deadline.move_to(Instant::now());
        self.registry.for_each(ClaimState::lose_name);
        self.set_last(sent, Err(error));
        self.crash_recovery / 3
    }
}
