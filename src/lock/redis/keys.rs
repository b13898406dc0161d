//! The keys in Redis: four for each session, one for each instance.
//!
//! Invariant: all keys of a session contain the lock's key as a hash tag, so that a cluster keeps them
//! in one slot.

use redis::Cmd;

use super::scripts::Script;
use crate::key::{INSTANCE, SessionKey};

/// The keys of one session, in the order in which scripts expect them: the lock, its fence, its queue,
/// and its waiters.
pub(super) struct SessionKeys([String; ALL_KEYS]);

/// The number of a session's keys.
pub(super) const ALL_KEYS: usize = 4;

/// The number of the keys that exist while a lock is held, which come first.
pub(super) const LOCK_AND_FENCE: usize = 2;

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

    /// A call of a script with all keys; `argument_bytes` is the size of the arguments to come.
    pub(super) fn call(&self, script: &Script, argument_bytes: usize) -> Cmd {
        script.call(self.0.iter().map(String::as_str), argument_bytes)
    }
}

/// A call of a script about several sessions, with the first `keys_each` keys of each of them;
/// `argument_bytes` is the size of the arguments to come.
pub(super) fn call_for<'k>(
    sessions: impl Iterator<Item = &'k SessionKey>,
    script: &Script,
    keys_each: usize,
    argument_bytes: usize,
) -> Cmd {
    let keys: Vec<_> = sessions.map(SessionKeys::new).collect();
    let keys: Vec<_> = keys.iter().flat_map(|keys| &keys.0[..keys_each]).collect();
    script.call(keys.iter().map(|key| key.as_str()), argument_bytes)
}

/// The key of an instance's heartbeat, which is also the name of its channel.
pub(super) fn instance_key(instance: &str) -> String {
    [INSTANCE, instance].concat()
}
