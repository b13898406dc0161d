//! The keys in Redis: four for each session, one for each instance.
//!
//! Invariant: all keys of a session contain the lock's key as a hash tag, so that a cluster keeps them
//! in one slot.

use redis::Cmd;

use super::scripts::Script;
use crate::key::{INSTANCE, SessionKey};

/// The keys of one session: the lock, its fence, its queue, and its waiters.
pub(super) struct SessionKeys([String; 4]);

// === impl SessionKeys ===

impl SessionKeys {
    pub(super) fn new(key: &SessionKey) -> Self {
        let lock = key.as_str();
        let companion = |name: &str| ["{", lock, "}:", name].concat();
        Self([
            lock.to_owned(),
            companion("fence"),
            companion("queue"),
            companion("waiters"),
        ])
    }

    /// All keys, in the order in which scripts expect them.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.0.iter().map(String::as_str)
    }

    /// The keys that exist while a lock is held.
    pub(super) fn lock_and_fence(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.all().take(2)
    }

    /// A call of a script with all keys; `argument_bytes` is the size of the arguments to come.
    pub(super) fn call(&self, script: &Script, argument_bytes: usize) -> Cmd {
        script.call(self.all(), argument_bytes)
    }
}

/// The key of an instance's heartbeat, which is also the name of its channel.
pub(super) fn instance_key(instance: &str) -> String {
    [INSTANCE, instance].concat()
}
