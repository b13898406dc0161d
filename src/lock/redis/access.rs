//! Which keys and commands the Redis user may use.
//!
//! The scripts use several keys and commands, and Redis doesn't say which one it denied: Redis 6 names no
//! command that a script calls, and no version names a key. So each is tried by itself. Invariant: the
//! commands change nothing, because nobody uses their keys.

use redis::{Cmd, cmd};

use super::keys::SessionKeys;
use crate::lock::StoreError;

/// A command that is allowed or denied, and its text for the error.
pub(super) struct AccessAttempt {
    pub(super) command: Cmd,
    pub(super) text: String,
}

/// How the answer to an HSET that is allowed begins.
const LACKS_ARGUMENT: &str = "ERR wrong number of arguments";

// === impl AccessAttempt ===

impl AccessAttempt {
    /// One attempt for each key and for each command that turns use.
    pub(super) fn all(keys: SessionKeys) -> Vec<Self> {
        let SessionKeys([lock, fence, queue, waiters]) = keys;
        let reads = [&lock, &fence, &queue, &waiters].map(|key| ("GET", key, &[][..]));
        // `XX` sets only what is there. HSET lacks a value: Redis checks the permission first, and the
        // arguments later.
        let others: [(_, _, &[&str]); 14] = [
            ("SET", &lock, &["", "XX", "PX", "1"]),
            ("EXISTS", &lock, &[]),
            ("PEXPIRE", &lock, &["1"]),
            ("PTTL", &lock, &[]),
            ("DEL", &lock, &[]),
            ("ZADD", &queue, &["XX", "0", "0"]),
            ("ZSCORE", &queue, &["0"]),
            ("ZCARD", &queue, &[]),
            ("ZRANGE", &queue, &["0", "0"]),
            ("ZREM", &queue, &["0"]),
            ("HSET", &waiters, &["0", "0", "0"]),
            ("HGET", &waiters, &["0"]),
            ("HEXISTS", &waiters, &["0"]),
            ("HDEL", &waiters, &["0"]),
        ];
        let all = reads.into_iter().chain(others);
        all.map(|(name, key, arguments)| {
            let mut command = cmd(name);
            command.arg(key).arg(arguments);
            let text = [name, " ", key].concat();
            Self { command, text }
        })
        .collect()
    }

    /// The error of this attempt; `None` if the command was allowed.
    pub(super) fn denied(text: &str, error: StoreError) -> Option<StoreError> {
        let StoreError::Refused { store, reason } = error else {
            return Some(error);
        };
        if reason.starts_with(LACKS_ARGUMENT) {
            return None;
        }
        let reason = format!("{reason}; tried {text}").into();
        Some(StoreError::Refused { store, reason })
    }
}
