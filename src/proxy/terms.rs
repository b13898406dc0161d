//! What a route says of its lock, as the terms on which the lock is taken.

use crate::lock::{LockOptions, OnLost, Patience, Terms};

/// On which terms a route's turns hold their lock.
pub(super) fn terms(lock: &LockOptions) -> Terms {
    let patience = Patience {
        limit: lock.blocking_timeout,
        max_waiters: lock.max_waiters,
        interrupts: lock.interrupt,
    };
    Terms {
        lease: lock.lock_timeout,
        extend_every: lock.extend_lock_interval,
        stop_when_lost: lock.on_lost == OnLost::Abort,
        settle: lock.settle,
        patience: lock.blocking.then_some(patience),
        enforce: lock.enforce,
    }
}
