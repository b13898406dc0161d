//! Which keys and commands the Redis user may use.
//!
//! The scripts use several keys and commands, and Redis doesn't say which one it denied: Redis 6 names no
//! command that a script calls, and no version names a key. So each is tried by itself. Invariant: the
//! commands change nothing, because nobody uses their keys.

use redis::{Cmd, cmd};

use super::RedisStore;
use super::command::StoreCommand;
use super::connection::packed;
use super::keys::SessionKeys;
use crate::key::SessionKey;
use crate::lock::{StoreError, StoreFuture};

/// A command that is allowed or denied, and its text for the error.
pub(super) struct AccessAttempt {
    pub(super) command: Cmd,
    /// The key that the command is about.
    pub(super) key: String,
    pub(super) text: String,
}

/// How the answer to an HSET that is allowed begins.
const LACKS_ARGUMENT: &str = "ERR wrong number of arguments";

// === impl RedisStore ===

impl RedisStore {
    /// See [`super::Store::check_access`].
    pub(super) fn try_access(&self, key: &SessionKey) -> StoreFuture<()> {
        let record = self.names.record(key, "self-test");
        let (keys, instance) = (self.names.session(key), self.instance.as_deref());
        let attempts = AccessAttempt::all(&keys, &record, instance);
        let (routes, channel) = (self.routes.clone(), self.instance.clone());
        let key = key.clone();
        StoreFuture::new(async move {
            // An error of the connection is about none of the attempts. It may be about the channel, to which
            // each new connection subscribes.
            let time = cmd("TIME");
            let sent = routes.send(
                routes.slot(key.as_str()),
                StoreCommand::CheckAccess,
                packed(&time),
            );
            sent.await.map_err(|error| match &channel {
                Some(channel) if is_channel_denied(&error) => {
                    name_denied(error, &format!("SUBSCRIBE {channel}"))
                }
                _ => error,
            })?;
            routes.try_all(attempts).await
        })
    }
}

// === impl AccessAttempt ===

impl AccessAttempt {
    /// One attempt for each key and for each command that turns use. `record` is the key of a turn that is executed
    /// once. `instance` is the key of this process's heartbeat, which is only read: it is in use. `None`: the store knows
    /// no such key.
    pub(super) fn all(keys: &SessionKeys, record: &str, instance: Option<&str>) -> Vec<Self> {
        let keys = keys.all();
        let [lock, _fence, queue, waiters] = keys;
        let reads = keys.into_iter().chain([record]).chain(instance);
        let reads = reads.map(|key| ("GET", key, &[][..]));
        // `XX` sets only what is there. HSET lacks a value: Redis checks the permission first, and the
        // arguments later.
        let others: [(_, _, &[&str]); 17] = [
            ("SET", lock, &["", "XX", "PX", "1"]),
            ("EXISTS", lock, &[]),
            ("PEXPIRE", lock, &["1"]),
            ("PTTL", lock, &[]),
            ("DEL", lock, &[]),
            ("ZADD", queue, &["XX", "0", "0"]),
            ("ZSCORE", queue, &["0"]),
            ("ZCARD", queue, &[]),
            ("ZRANGE", queue, &["0", "0"]),
            ("ZREM", queue, &["0"]),
            ("HSET", waiters, &["0", "0", "0"]),
            ("HGET", waiters, &["0"]),
            ("HEXISTS", waiters, &["0"]),
            ("HDEL", waiters, &["0"]),
            ("SET", record, &["", "XX", "PX", "1"]),
            ("PEXPIRE", record, &["1"]),
            ("DEL", record, &[]),
        ];
        let all = reads.chain(others);
        all.map(|(name, key, arguments)| {
            let mut command = cmd(name);
            command.arg(key).arg(arguments);
            let text = [name, " ", key].concat();
            let key = key.to_owned();
            Self { command, key, text }
        })
        .collect()
    }

    /// The error of this attempt; `None` if the command was allowed.
    pub(super) fn denied(text: &str, error: StoreError) -> Option<StoreError> {
        match &error {
            StoreError::Refused { reason, .. } if reason.starts_with(LACKS_ARGUMENT) => None,
            _ => Some(name_attempt(error, text)),
        }
    }
}

/// The error with what was tried, if Redis denied a right. `text` has the commands, and the key or channel.
pub(super) fn name_denied(error: StoreError, text: &str) -> StoreError {
    match &error {
        // Before Redis 7, an error inside a script is in the text of another error.
        StoreError::Refused { reason, .. } if reason.contains("NOPERM") => {
            name_attempt(error, text)
        }
        _ => error,
    }
}

/// Whether Redis denied a channel. It doesn't say which one.
pub(super) fn is_channel_denied(error: &StoreError) -> bool {
    let StoreError::Refused { reason, .. } = error else {
        return false;
    };
    reason.starts_with("NOPERM")
        && ["channel", "'subscribe'"]
            .iter()
            .any(|it| reason.contains(it))
}

/// The error of the store with what was tried.
fn name_attempt(error: StoreError, text: &str) -> StoreError {
    match error {
        StoreError::Refused { store, reason } => StoreError::Refused {
            store,
            reason: format!("{reason}; tried {text}").into(),
        },
        error => error,
    }
}
