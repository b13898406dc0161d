//! On which terms a turn takes, holds and waits for its lock. Uses nothing but durations.

use std::time::Duration;

/// On which terms a turn holds its lock.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// For how long the store promises it.
    pub lease: Duration,
    /// How often the lease is extended; `None`: never.
    pub extend_every: Option<Duration>,
    /// Whether the turn stops when its lock is lost, or goes on without.
    pub stop_when_lost: bool,
    /// For how long the lock is held on to when the turn is over.
    pub settle: Duration,
    /// How it waits for a busy lock; `None`: it doesn't.
    pub patience: Option<Patience>,
    /// Whether it needs the lock at all; otherwise it is only watched.
    pub enforce: bool,
}

/// How a turn waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For how long; `None`: for ever.
    pub limit: Option<Duration>,
    /// How many may wait.
    pub max_waiters: u32,
    /// Whether it replaces the holder and everybody who waits.
    pub interrupts: bool,
}
