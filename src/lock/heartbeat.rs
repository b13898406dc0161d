//! This instance's sign of life, and whether another's is there.
//!
//! An instance keeps one key of its own alive in the store. While that is there, nobody takes its
//! locks for a dead process'; so a lost node blocks its sessions for `store.crash_recovery` rather
//! than for their leases, and all its locks together cost one command now and then. Invariant: an
//! instance that could not keep its key stops its own turns before the key can be gone.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::claim_state::ClaimState;
use super::registry::ClaimRegistry;
use super::{ClaimIssuer, Epoch, HeartbeatReply, LockHolder, Store, StoreError, margin};
use crate::deadline::Deadline;
use crate::metrics::Metrics;

/// The sign of life of this instance. Its task ends when it is dropped.
pub(super) struct Heartbeat {
    store: Arc<dyn Store>,
    claimant: Arc<ClaimIssuer>,
    metrics: Metrics,
    /// For how long instances are taken for alive, as far as this one knows.
    recovery: Duration,
    beating: Option<HeartbeatTask>,
    /// Instances that were alive a moment ago.
    seen: Mutex<HashMap<Arc<str>, SeenLiveness>>,
}

/// What is known of a holder's instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// It is gone, and so are its turns that have held their locks for so long: it would have said by
    /// now that it lives if only its sign had got lost.
    Gone(Duration),
    /// It is there. Unless it gives a sign of life before this moment, it is gone then.
    Alive(Option<Instant>),
}

#[derive(Clone, Copy, Debug)]
struct SeenLiveness {
    epoch: Epoch,
    at: Instant,
    /// When its sign of life ends.
    until: Instant,
}

#[derive(Debug)]
struct HeartbeatTask {
    /// When the instance may be taken for dead.
    deadline: Deadline,
    last: watch::Receiver<Option<Result<(), StoreError>>>,
    task: AbortHandle,
}

/// How long an instance that was alive is taken to be so: a look at the store less for each busy
/// turn, and no longer than a waiter looks at its line anyway.
const FRESH: Duration = Duration::from_millis(500);

/// What others are taken to do by an instance that gives no sign of life itself: the default.
const USUAL: Duration = Duration::from_secs(30);

/// How soon a beat that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// How many other instances are remembered; with more than that, all are forgotten.
const REMEMBERED: usize = 1000;

// === impl Pulse ===

impl Heartbeat {
    /// Keeps the claimant's key alive for `recovery` from each beat on, in a task on the current
    /// runtime, and beats also when told to; with `None`, keeps none. When another process takes the name, every claim in `roll`
    /// is lost.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn start(
        store: Arc<dyn Store>,
        claimant: Arc<ClaimIssuer>,
        recovery: Option<Duration>,
        (roll, again): (ClaimRegistry, Arc<Notify>),
        metrics: Metrics,
    ) -> Self {
        let beating = recovery.map(|recovery| {
            let deadline = Deadline::at(Instant::now());
            let (sender, last) = watch::channel(None);
            let heart = HeartbeatState {
                store: Arc::clone(&store),
                claimant: Arc::clone(&claimant),
                recovery,
                deadline: deadline.clone(),
                last: sender,
                roll,
                again,
                metrics: metrics.clone(),
            };
            let task = tokio::spawn(heart.beat()).abort_handle();
            HeartbeatTask {
                deadline,
                last,
                task,
            }
        });
        Self {
            store,
            claimant,
            metrics,
            recovery: recovery.unwrap_or(USUAL),
            beating,
            seen: Mutex::default(),
        }
    }

    /// When this instance may be taken for dead; `None`: never.
    pub(super) fn deadline(&self) -> Option<&Deadline> {
        self.beating.as_ref().map(|beating| &beating.deadline)
    }

    /// Resolves when this instance is known to be alive; waits for a first beat, but not while the
    /// store is known not to answer. Cancel-safe.
    ///
    /// # Errors
    /// With what the store said to the last beat.
    pub(super) async fn is_felt(&self) -> Result<(), StoreError> {
        let Some(beating) = &self.beating else {
            return Ok(());
        };
        if !beating.deadline.passed(Instant::now()) {
            return Ok(());
        }
        let mut last = beating.last.clone();
        loop {
            match &*last.borrow_and_update() {
                Some(Err(error)) => return Err(error.clone()),
                // A process that was stopped in the middle (SIGSTOP) wakes up with an old beat.
                Some(Ok(())) if !beating.deadline.passed(Instant::now()) => return Ok(()),
                Some(Ok(())) | None => {}
            }
            if last.changed().await.is_err() {
                let reason = "the process is stopping".into();
                return Err(StoreError::NoSign { reason });
            }
        }
    }

    /// What the store said to the last beat, if that was an error.
    pub(super) fn trouble(&self) -> Option<StoreError> {
        let last = self.beating.as_ref()?.last.borrow();
        last.as_ref()?.as_ref().err().cloned()
    }

    /// What is known of this holder's instance. One that can't be asked after counts as alive.
    pub(super) async fn look_for(&self, holder: &LockHolder) -> Liveness {
        let Some(turn) = holder.turn().filter(|turn| turn.has_pulse) else {
            return Liveness::Alive(None);
        };
        let own = (self.claimant.instance(), self.claimant.epoch());
        if own == (&turn.instance, turn.id.epoch) {
            return Liveness::Alive(None);
        }
        let asked = Instant::now();
        let known = self.seen().get(&turn.instance).copied();
        if let Some(seen) = known
            && seen.epoch == turn.id.epoch
            && asked < seen.until.min(seen.at + FRESH)
        {
            return Liveness::Alive(Some(seen.until));
        }
        match self.store.sign_of(&turn.instance).await {
            Ok(Some(sign)) if sign.epoch == turn.id.epoch => {
                let until = asked + sign.lasts;
                let mut seen = self.seen();
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
                let sight = SeenLiveness {
                    epoch: sign.epoch,
                    at: asked,
                    until,
                };
                seen.insert(turn.instance, sight);
                Liveness::Alive(Some(until))
            }
            // The name is another process' by now: this one is no more.
            Ok(Some(_)) => Liveness::Gone(Duration::ZERO),
            Ok(None) => Liveness::Gone(self.recovery / 2),
            Err(_) => Liveness::Alive(None),
        }
    }

    /// A lock was taken over from this holder.
    pub(super) fn took_over(&self, holder: &LockHolder) {
        self.metrics.took_over();
        tracing::info!(
            holder = &*holder.redacted(),
            "the holder's instance is gone; its lock was taken over"
        );
    }

    /// Stops beating, and takes the key away: whatever this instance still held is free. To be
    /// called when nothing of it runs any more.
    pub(super) async fn stop(&self, longest: Duration) {
        let Some(beating) = &self.beating else {
            return;
        };
        beating.task.abort();
        let (instance, epoch) = (self.claimant.instance(), self.claimant.epoch());
        // A key that stays ends by itself.
        if let Ok(Err(error)) = timeout(longest, self.store.stop(instance, epoch)).await {
            tracing::debug!(%error, "the instance's key is left to its end");
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Arc<str>, SeenLiveness>> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse")
            .field("beating", &self.beating)
            .finish_non_exhaustive()
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        if let Some(beating) = &self.beating {
            beating.task.abort();
        }
    }
}

// === the task ===

struct HeartbeatState {
    store: Arc<dyn Store>,
    claimant: Arc<ClaimIssuer>,
    recovery: Duration,
    deadline: Deadline,
    last: watch::Sender<Option<Result<(), StoreError>>>,
    roll: ClaimRegistry,
    /// The store may have lost the key.
    again: Arc<Notify>,
    metrics: Metrics,
}

impl HeartbeatState {
    async fn beat(self) {
        let (instance, epoch) = (self.claimant.instance(), self.claimant.epoch());
        // Until the first beat the name may be that of the process before this one.
        let mut taken = true;
        loop {
            let sent = Instant::now();
            let beaten = self.store.beat(instance, epoch, self.recovery, taken).await;
            self.metrics.store_is_up(matches!(
                beaten,
                Ok(HeartbeatReply::Kept | HeartbeatReply::Begun)
            ));
            let pause = match beaten {
                Ok(beat @ (HeartbeatReply::Kept | HeartbeatReply::Begun)) => {
                    // The key may also be gone before its time: a Redis that restarts from an old
                    // snapshot has the locks, and not what was said in the last seconds.
                    let lapsed =
                        beat == HeartbeatReply::Begun || self.deadline.passed(Instant::now());
                    if !taken && lapsed {
                        // Whoever has asked in between takes this instance for dead, and may act on
                        // it at any later time: all that it has claimed so far is lost.
                        tracing::warn!(%instance, "it counted as gone for a while: its turns have lost their locks");
                        self.roll.each(ClaimState::lose);
                    }
                    taken = false;
                    self.deadline
                        .move_to(sent + self.recovery - margin(self.recovery));
                    self.last.send_replace(Some(Ok(())));
                    self.recovery / 3
                }
                Ok(HeartbeatReply::Refused) => {
                    tracing::error!(
                        %instance,
                        "another process has this instance's name; store.instance must be its own"
                    );
                    self.deadline.move_to(Instant::now());
                    self.roll.each(ClaimState::lose);
                    let reason = format!("another process is called {instance:?} too").into();
                    self.last
                        .send_replace(Some(Err(StoreError::NoSign { reason })));
                    self.recovery / 3
                }
                Err(error) => {
                    tracing::debug!(%instance, %error, "no sign of life; trying again");
                    self.last.send_replace(Some(Err(error)));
                    RETRY
                }
            };
            let _ = timeout(pause, self.again.notified()).await;
        }
    }
}
