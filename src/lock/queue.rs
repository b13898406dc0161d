//! Waiting in line, as this instance does it for all of its turns.
//!
//! The line itself is in the store, and so is its order. Here is who of this instance waits in which
//! line; whoever hands a lock over tells the instance, and the turn concerned asks for it again. One
//! task looks at all these lines now and then, with one command however many turns wait: for a
//! message that was lost, for a holder that knows nothing of lines, for one that is dead, and to say
//! that those who wait here are alive.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::claim_state::ClaimState;
use super::heartbeat::{Heartbeat, Liveness};
use super::{Claim, DeadHolder, LockHolder, Message, Store, WatchedQueue};
use crate::key::SessionKey;
use crate::metrics::WaitingGauge;

/// Who of this instance waits, by session. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct WaitQueue(Arc<WaitQueueState>);

#[derive(Default)]
struct WaitQueueState {
    lines: Mutex<HashMap<SessionKey, Vec<LocalWaiter>>>,
    /// Somebody waits, where nobody did.
    begun: Notify,
}

struct LocalWaiter {
    claim: Arc<Claim>,
    standing: Arc<ClaimState>,
    /// Whom it is to replace.
    replaces: Option<LockHolder>,
}

/// A place on the board, until it is dropped.
pub(super) struct QueuePlace {
    claim: Arc<Claim>,
    board: WaitQueue,
    _waiting: WaitingGauge,
}

/// How often the lines are looked at: a holder that tells nobody that it is gone costs those who
/// wait so much, and each instance costs the store two commands a second while anybody waits in it.
const LOOK: Duration = Duration::from_millis(500);

/// How soon it is looked again at the earliest.
const AT_MOST_EVERY: Duration = Duration::from_millis(10);

/// How many lines one command looks at: as [`super::extender`] has it, half a millisecond of the
/// store's time.
const BATCH: usize = 100;

// === impl Board ===

impl WaitQueue {
    /// Notes that a turn waits, whose place in the store's line is known, and whom it is to replace.
    pub(super) fn join(
        &self,
        claim: &Arc<Claim>,
        standing: &Arc<ClaimState>,
        replaces: Option<LockHolder>,
        waiting: WaitingGauge,
    ) -> QueuePlace {
        let mut lines = self.lock();
        let was_empty = lines.is_empty();
        lines
            .entry(claim.key.clone())
            .or_default()
            .push(LocalWaiter {
                claim: Arc::clone(claim),
                standing: Arc::clone(standing),
                replaces,
            });
        drop(lines);
        if was_empty {
            self.0.begun.notify_one();
        }
        QueuePlace {
            claim: Arc::clone(claim),
            board: self.clone(),
            _waiting: waiting,
        }
    }

    /// Has everybody ask again, because messages may have been lost.
    pub(super) fn call_all(&self) {
        let lines = self.lock();
        let waiters = lines.values().flatten();
        waiters.for_each(|waiter| waiter.standing.call());
    }

    fn call_line(&self, key: &SessionKey) {
        let lines = self.lock();
        let waiters = lines.get(key).into_iter().flatten();
        waiters.for_each(|waiter| waiter.standing.call());
    }

    /// Calls the waiter who holds the lock and doesn't know it; `false` if it is nobody here.
    fn call_holder(&self, key: &SessionKey, holder: &LockHolder) -> bool {
        let lines = self.lock();
        let mut waiters = lines.get(key).into_iter().flatten();
        let own = waiters.find(|waiter| holder.is(&waiter.claim.token));
        own.inspect(|own| own.standing.call()).is_some()
    }

    /// Whether somebody here is to replace this holder.
    fn replaces(&self, key: &SessionKey, holder: &LockHolder) -> bool {
        let lines = self.lock();
        let mut waiters = lines.get(key).into_iter().flatten();
        waiters.any(|waiter| waiter.replaces.as_ref() == Some(holder))
    }

    fn lines(&self) -> Vec<WatchedQueue> {
        let lines = self.lock();
        let lines = lines.iter().map(|(key, waiters)| WatchedQueue {
            key: key.clone(),
            dead: None,
            waiters: waiters.iter().map(|waiter| waiter.claim.id).collect(),
        });
        lines.collect()
    }

    fn leave(&self, claim: &Claim) {
        let mut lines = self.lock();
        if let Some(waiters) = lines.get_mut(&claim.key) {
            waiters.retain(|waiter| waiter.claim.id != claim.id);
            if waiters.is_empty() {
                lines.remove(&claim.key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Vec<LocalWaiter>>> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.board.leave(&self.claim);
    }
}

// === the task ===

/// Looks at the lines in which somebody of `instance` waits, for ever.
pub(super) async fn look_after(
    board: WaitQueue,
    store: Arc<dyn Store>,
    pulse: Arc<Heartbeat>,
    instance: Arc<str>,
) {
    let mut dead: HashMap<SessionKey, DeadHolder> = HashMap::new();
    loop {
        let mut lines = board.lines();
        if lines.is_empty() {
            dead.clear();
            board.0.begun.notified().await;
            sleep(LOOK).await;
            continue;
        }
        dead.retain(|key, _| lines.iter().any(|line| line.key == *key));
        for line in &mut lines {
            line.dead = dead.get(&line.key).cloned();
        }
        // Not later than any holder's instance may be gone, and at once where one was found to be.
        let mut next = Instant::now() + LOOK;
        for lines in lines.chunks(BATCH) {
            let found = match store.watch(&instance, lines).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, lines = lines.len(), "lines not looked at");
                    // Whoever asks himself finds out how long there is no answer.
                    lines.iter().for_each(|line| board.call_line(&line.key));
                    continue;
                }
            };
            for (line, found) in lines.iter().zip(found) {
                let key = &line.key;
                let tried = line.dead.as_ref().map(|dead| &dead.holder);
                if let Some(tried) = tried.filter(|tried| found.holder.as_ref() != Some(tried)) {
                    pulse.took_over(tried);
                    dead.remove(key);
                }
                let Some(holder) = found.holder else {
                    board.call_line(key);
                    continue;
                };
                let is_own = board.call_holder(key, &holder);
                if found.present + usize::from(is_own) < line.waiters.len() {
                    board.call_line(key);
                }
                if is_own {
                    continue;
                }
                if board.replaces(key, &holder) {
                    interrupt(&*store, &holder).await;
                }
                match pulse.look_for(&holder).await {
                    Liveness::Gone(after) => {
                        // One that was tried just now has to be older first.
                        if tried != Some(&holder) {
                            next = Instant::now();
                        }
                        dead.insert(key.clone(), DeadHolder { holder, after });
                    }
                    Liveness::Alive(until) => {
                        dead.remove(key);
                        next = until.map_or(next, |until| next.min(until));
                    }
                }
            }
        }
        sleep_until(next.max(Instant::now() + AT_MOST_EVERY)).await;
    }
}

/// Asks a holder to make way. One that isn't Seriatim can't be asked, and one that doesn't hear it
/// is asked again at the next look.
pub(super) async fn interrupt(store: &dyn Store, holder: &LockHolder) {
    if let Some(turn) = holder.turn()
        && let Err(error) = store
            .tell(&turn.instance, Message::Interrupt(turn.id))
            .await
    {
        tracing::debug!(%error, holder = &*holder.redacted(), "not told to make way yet");
    }
}
