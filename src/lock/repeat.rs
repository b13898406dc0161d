//! What the store says of a turn that a request repeats.

use super::{ClaimId, LockHolder};

/// Another turn with the once id of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatedTurn {
    /// The id by which the turn is known.
    pub turn: ClaimId,
    /// What the store knows of it.
    pub state: RepeatedState,
    /// What the lock's value is while the turn holds it; `None`: the turn has ended.
    pub holder: Option<LockHolder>,
}

/// What a store knows of a turn that a request repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatedState {
    /// The turn waits for its lock, or is about to take it.
    Waits,
    /// The turn has its lock.
    Runs,
    /// The turn has ended, and its backend may have run it.
    Ended,
    /// The turn had its lock and doesn't have it any more, and nobody has said how it ended.
    InDoubt,
}
