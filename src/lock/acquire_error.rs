//! Why a turn did not get its lock.

use std::time::Duration;

use thiserror::Error;

use super::claim_state::ClaimState;
use super::{BusySession, LockHolder, RepeatedTurn, StoreError};
use crate::key::SessionKey;

/// Why a turn did not get its lock.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// Another turn of the session holds the lock, and this one doesn't wait.
    #[error("{0:?} is held by another turn")]
    Busy(SessionKey, LockHolder, BusySession),
    /// The holder of the lock waits for this turn's request: its backend sent the request.
    #[error("the turn that holds {0:?} waits for this one")]
    WouldDeadlock(SessionKey),
    /// The session's queue is full.
    #[error("too many turns wait for {0:?}")]
    QueueFull(SessionKey, BusySession),
    /// The lock did not become free within `blocking_timeout`. `None`: the store did not tell how busy the session is.
    #[error("{0:?} did not become free within {1:?}")]
    TimedOut(SessionKey, Duration, Option<BusySession>),
    /// A newer turn replaced this one, or an operator stopped it.
    #[error("a newer turn of {0:?} replaced this one, or an operator stopped it")]
    Superseded(SessionKey),
    /// An operator took the waiting turn out of the queue.
    #[error("an operator took the turn out of the queue of {0:?}")]
    Dequeued(SessionKey),
    /// The session has seen another turn with this one's once id.
    #[error("{0:?} has seen another turn with this one's once id")]
    Repeated(SessionKey, RepeatedTurn),
    /// The session has seen another request with this one's once id.
    #[error("{0:?} has seen another request with this one's once id")]
    KeyReused(SessionKey),
    /// An operator took the lock away before the turn began.
    #[error("an operator released {0:?} before the turn began")]
    Taken(SessionKey),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl AcquireError ===

impl AcquireError {
    /// The error for a claim that lost its lock: to an operator, or because its instance counted as dead.
    pub(super) fn lock_lost(key: &SessionKey, state: &ClaimState) -> Self {
        if state.is_force_released() {
            return Self::Taken(key.clone());
        }
        if state.is_name_taken() {
            return StoreError::NameTaken.into();
        }
        let reason = "it expired while the turn waited for its lock".into();
        StoreError::NoHeartbeat { reason }.into()
    }
}
