//! Turns that are executed once: what a claim says of its turn. What the store says of a repeat is in `store`.
//!
//! A turn with a once id has a record beside its session's lock. The record says whether the turn waits, runs or has
//! ended, and stays for a while after the turn. A request that finds the record of another turn with its id is a
//! repeat, and gets no lock.
//!
//! Invariant: while a record is there, no other turn with its id is granted the lock, unless the first turn is out of the
//! queue and was never granted it. A turn whose backend was sent no byte leaves no record. Only one that was replaced or
//! taken out of the queue leaves one for a while, so that a repeat which waits for it doesn't run in its place.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::ClaimId;
use crate::key::OnceKey;

/// A turn that is executed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnceTurn {
    /// What tells a repeat of the turn.
    pub key: OnceKey,
    /// For how long the store remembers the turn after its end.
    pub keep: Duration,
    /// The id by which the turn is known, whichever of its claims gets the lock.
    pub turn: ClaimId,
}

/// What a claim adds to its turn's record.
#[derive(Debug)]
pub struct OnceClaim {
    /// The turn of the claim.
    pub turn: Arc<OnceTurn>,
    /// Whether the backend may have run the turn.
    is_sent: SentFlag,
    /// Why somebody else ended the turn; not set for a turn that nobody did.
    dismissal: OnceLock<Dismissal>,
}

/// Why a turn is not to run, although its client wanted it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dismissal {
    /// A newer turn has replaced it, or somebody stopped it.
    Superseded,
    /// An operator has taken it out of the queue.
    Dequeued,
}

/// Whether a turn's backend may have been sent a byte, and so may have run the turn. Cheap to clone:
/// the claim and the request to the backend share one value.
#[derive(Clone, Debug, Default)]
pub struct SentFlag(Arc<AtomicBool>);

// === impl SentFlag ===

impl SentFlag {
    /// The flag itself: true while a byte may have been sent.
    pub fn as_bool(&self) -> &AtomicBool {
        &self.0
    }

    /// Notes that the backend says it has not run the turn, so that a repeat may be sent.
    pub fn note_refused(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the backend may have run the turn.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl OnceClaim ===

impl OnceClaim {
    /// What a new claim of the turn adds. Its backend has been sent nothing.
    pub(super) fn new(turn: Arc<OnceTurn>) -> Self {
        Self {
            turn,
            is_sent: SentFlag::default(),
            dismissal: OnceLock::new(),
        }
    }

    /// Notes that the turn is not to run. Means nothing once its backend was sent a byte.
    pub fn dismiss(&self, why: Dismissal) {
        // The first reason stays.
        let _ = self.dismissal.set(why);
    }

    /// Why the turn is not to run; `None`: nobody ended it.
    pub fn dismissal(&self) -> Option<Dismissal> {
        self.dismissal.get().copied()
    }

    /// What tells whether the turn's backend may have run the turn.
    pub fn sent_flag(&self) -> &SentFlag {
        &self.is_sent
    }

    /// What the record says of the turn and its claim, between the state and the token.
    pub(super) fn describe(&self, claim: ClaimId) -> String {
        let OnceTurn { key, turn, .. } = &*self.turn;
        format!("{} {turn} {claim}", key.fingerprint)
    }

    /// For how long the record stays while the claim waits or holds its lock. A waiter asks again before half of that
    /// is over, and a lock's extension renews it.
    pub(super) fn record_ttl(&self, lease: Duration) -> Duration {
        self.turn.keep + lease
    }
}
