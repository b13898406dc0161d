//! Translates a route's `[lock]` configuration into the options of the lock.

use crate::config::{LockConfig, OnLost};
use crate::lock::{Patience, Terms};

/// The options with which the turns of a route take their lock.
pub(super) fn terms(lock: &LockConfig) -> Terms {
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
