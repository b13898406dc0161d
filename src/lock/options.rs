//! The options of a route's lock, as the section `[lock]` of the configuration sets them.
//!
//! Invariant: this file uses nothing but the standard library. It leaves out how the options are read
//! and documented (`config::lock`), and what a request's key is made of.

use std::time::Duration;

/// How the turns of a route take, keep and wait for their locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// The lease: for how long the store promises the lock.
    pub lock_timeout: Duration,
    /// The time between two extensions of the lease; `None`: the lease is never extended.
    pub extend_lock_interval: Option<Duration>,
    /// Whether a turn whose session is busy waits in the queue; otherwise it is refused.
    pub blocking: bool,
    /// The longest time in the queue; `None`: as long as the client stays.
    pub blocking_timeout: Option<Duration>,
    /// Whether the newest turn replaces the running turn and all waiters. Used with `blocking`.
    pub interrupt: bool,
    /// The most waiters of one session. Used with `blocking`.
    pub max_waiters: u32,
    /// What happens to a turn whose lock is lost.
    pub on_lost: OnLost,
    /// How long the lock is kept after the response of its turn is complete.
    pub settle: Duration,
    /// How long the lock is kept after a turn that did not end with a complete response; `None`: as after others.
    pub settle_cancelled: Option<Duration>,
    /// Whether a turn needs its lock; otherwise overlapping turns are only counted and logged.
    pub enforce: bool,
}

/// What happens to a turn whose lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    /// The turn is aborted.
    Abort,
    /// The turn goes on without a lock.
    Continue,
}
