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
use tokio::time::sleep;

use super::pulse::Pulse;
use super::standing::Standing;
use super::{Claim, Holder, Message, Store, Watched};
use crate::key::SessionKey;

/// Who of this instance waits, by session. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Board(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<HashMap<SessionKey, Vec<Waiter>>>,
    /// Somebody waits, where nobody did.
    begun: Notify,
}

struct Waiter {
    claim: Arc<Claim>,
    standing: Arc<Standing>,
    interrupts: bool,
}

/// A place on the board, until it is dropped.
pub(super) struct Seat {
    claim: Arc<Claim>,
    board: Board,
}

/// How often the lines are looked at: a holder that tells nobody that it is gone costs those who
/// wait so much, and each instance costs the store two commands a second while anybody waits in it.
const LOOK: Duration = Duration::from_millis(500);

/// How many lines one command looks at: as [`super::extender`] has it, half a millisecond of the
/// store's time.
const BATCH: usize = 100;

// === impl Board ===

impl Board {
    /// Notes that a turn waits, whose place in the store's line is known.
    pub(super) fn join(
        &self,
        claim: &Arc<Claim>,
        standing: &Arc<Standing>,
        interrupts: bool,
    ) -> Seat {
        let mut lines = self.lock();
        let was_empty = lines.is_empty();
        lines.entry(claim.key.clone()).or_default().push(Waiter {
            claim: Arc::clone(claim),
            standing: Arc::clone(standing),
            interrupts,
        });
        drop(lines);
        if was_empty {
            self.0.begun.notify_one();
        }
        Seat {
            claim: Arc::clone(claim),
            board: self.clone(),
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
    fn call_holder(&self, key: &SessionKey, holder: &Holder) -> bool {
        let lines = self.lock();
        let mut waiters = lines.get(key).into_iter().flatten();
        let own = waiters.find(|waiter| holder.is(&waiter.claim.token));
        own.inspect(|own| own.standing.call()).is_some()
    }

    fn interrupts(&self, key: &SessionKey) -> bool {
        let lines = self.lock();
        let mut waiters = lines.get(key).into_iter().flatten();
        waiters.any(|waiter| waiter.interrupts)
    }

    fn keys(&self) -> Vec<SessionKey> {
        self.lock().keys().cloned().collect()
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

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Vec<Waiter>>> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.leave(&self.claim);
    }
}

// === the task ===

/// Looks at the lines in which somebody of `instance` waits, for ever.
pub(super) async fn look_after(
    board: Board,
    store: Arc<dyn Store>,
    pulse: Arc<Pulse>,
    instance: Arc<str>,
) {
    let mut dead = HashMap::new();
    loop {
        let keys = board.keys();
        if keys.is_empty() {
            board.0.begun.notified().await;
            sleep(LOOK).await;
            continue;
        }
        let mut found = HashMap::new();
        for keys in keys.chunks(BATCH) {
            let lines: Vec<_> = keys
                .iter()
                .map(|key| (key.clone(), dead.remove(key)))
                .collect();
            let watched = match store.watch(&instance, &lines).await {
                Ok(watched) => watched,
                Err(error) => {
                    tracing::debug!(%error, lines = lines.len(), "lines not looked at");
                    // Whoever asks himself finds out how long there is no answer.
                    keys.iter().for_each(|key| board.call_line(key));
                    continue;
                }
            };
            for ((key, _), watched) in lines.into_iter().zip(watched) {
                match watched {
                    Watched::Unknown | Watched::Free => board.call_line(&key),
                    Watched::Held(holder) if board.call_holder(&key, &holder) => {}
                    Watched::Held(holder) => {
                        if board.interrupts(&key) {
                            interrupt(&*store, &holder).await;
                        }
                        if pulse.is_dead(&holder).await {
                            found.insert(key, holder);
                        }
                    }
                }
            }
        }
        dead = found;
        if dead.is_empty() {
            sleep(LOOK).await;
        }
    }
}

/// Asks a holder to make way. One that isn't Seriatim can't be asked, and one that doesn't hear it
/// is asked again at the next look.
pub(super) async fn interrupt(store: &dyn Store, holder: &Holder) {
    if let Some(turn) = holder.turn()
        && let Err(error) = store
            .tell(&turn.instance, Message::Interrupt(turn.id))
            .await
    {
        tracing::debug!(%error, holder = holder.as_str(), "not told to make way yet");
    }
}
