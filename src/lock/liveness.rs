//! Whether the instance of a lock's holder is alive. A dead one's locks may be taken over.
//!
//! Invariant: an instance counts as dead only if the store says that it has no heartbeat, or that
//! another process has its name. An instance with another `store.prefix` never does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{ClaimIssuer, Epoch, InstanceLiveness, LockHolder, Store};

/// Asks the store which instances are alive, and remembers the replies for a moment.
#[derive(Debug)]
pub(super) struct LivenessCheck {
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    /// After how long without a heartbeat an instance counts as dead.
    crash_recovery: Duration,
    /// Instances that were alive a moment ago.
    seen: Mutex<HashMap<Arc<str>, SeenLiveness>>,
}

/// Whether the instance of a lock holder is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// The instance is dead.
    Dead {
        /// The age from which on its locks may be taken over. If the store only lost the heartbeat, a
        /// living instance has sent another one by then.
        min_age: Duration,
    },
    /// The instance is alive.
    Alive {
        /// When it counts as dead unless it sends another heartbeat; `None`: never, or not known.
        until: Option<Instant>,
    },
}

/// An instance that was alive a moment ago.
#[derive(Clone, Copy, Debug)]
struct SeenLiveness {
    epoch: Epoch,
    /// When this instance asked the store.
    at: Instant,
    /// When the heartbeat expires.
    until: Instant,
}

/// How long the result of a lookup is reused. Saves one command per busy turn, and is no longer than
/// the interval at which waiters watch their queues.
const LOOKUP_TTL: Duration = Duration::from_millis(500);

/// The `crash_recovery` that an instance without a heartbeat expects of others: the default.
const DEFAULT_RECOVERY: Duration = Duration::from_secs(30);

/// How many other instances are remembered. One more clears the table.
const MAX_SEEN: usize = 1000;

// === impl LivenessCheck ===

impl LivenessCheck {
    /// A check for the turns of the issuer's instance. `crash_recovery` is how long its own heartbeat is
    /// valid; `None`: it sends none.
    pub(super) fn new(
        store: Arc<dyn Store>,
        issuer: Arc<ClaimIssuer>,
        crash_recovery: Option<Duration>,
    ) -> Self {
        Self {
            store,
            issuer,
            crash_recovery: crash_recovery.unwrap_or(DEFAULT_RECOVERY),
            seen: Mutex::default(),
        }
    }

    /// Whether the instance of this holder is alive. A holder whose instance can't be looked up counts
    /// as alive.
    pub(super) async fn check(&self, holder: &LockHolder) -> Liveness {
        let Some(turn) = holder.turn().filter(|turn| turn.has_heartbeat) else {
            return Liveness::Alive { until: None };
        };
        // The heartbeats of another prefix have other keys, which this user may not be allowed to read.
        if !turn.shares_prefix(&self.issuer) {
            return Liveness::Alive { until: None };
        }
        let own = (self.issuer.instance(), self.issuer.epoch());
        if own == (&turn.instance, turn.id.epoch) {
            return Liveness::Alive { until: None };
        }
        let at = Instant::now();
        let seen = self.seen.lock().get(&turn.instance).copied();
        if let Some(seen) = seen
            && seen.epoch == turn.id.epoch
            && at < seen.until.min(seen.at + LOOKUP_TTL)
        {
            return Liveness::Alive {
                until: Some(seen.until),
            };
        }
        match self.store.liveness(&turn.instance).await {
            Ok(Some(InstanceLiveness { epoch, ttl })) if epoch == turn.id.epoch => {
                let until = at + ttl;
                let mut seen = self.seen.lock();
                if seen.len() >= MAX_SEEN {
                    seen.clear();
                }
                seen.insert(turn.instance.clone(), SeenLiveness { epoch, at, until });
                Liveness::Alive { until: Some(until) }
            }
            // Another process has the name, so the holder's process is gone.
            Ok(Some(_)) => Liveness::Dead {
                min_age: Duration::ZERO,
            },
            Ok(None) => Liveness::Dead {
                min_age: self.crash_recovery / 2,
            },
            Err(_) => Liveness::Alive { until: None },
        }
    }
}
