//! The keys in Redis: four for each session, one for each instance, one for each turn that is executed once, one for a
//! moment while replicas confirm a lock, and those of kept answers.
//!
//! The lock's own key is the session key, because Python code may share it. All others begin with
//! `store.prefix`. Invariant: all keys of a session contain the lock's key as a hash tag, so that a
//! cluster keeps them in one slot. The queue, the answers and the instance have a format number in their names.

use std::sync::{Arc, LazyLock};

use redis::Cmd;

use super::call::CallWriter;
use super::scripts::Script;
use crate::key::{INSTANCE, SessionKey};
use crate::lock::format::{ANSWER_FORMAT, INSTANCE_FORMAT, QUEUE_FORMAT};
use crate::lock::{Claim, ClaimId};

/// How keys and channels in Redis are named. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyNames {
    /// What every key and channel begins with, except for the locks; empty for no prefix.
    prefix: Arc<str>,
}

/// The keys of one session, in the order in which scripts expect them: the lock, its fence, its queue,
/// and its waiters.
pub(super) struct SessionKeys {
    /// One after the other, so that they take one allocation.
    text: String,
    /// Where each key ends.
    ends: [usize; ALL_KEYS],
}

/// The number of a session's keys.
pub(super) const ALL_KEYS: usize = 4;

/// The number of the keys that exist while a lock is held, which come first.
pub(super) const LOCK_AND_FENCE: usize = 2;

/// What the names of a lock's companions have behind its key: those of its fence, its queue and its waiters.
static ENDINGS: LazyLock<[String; ALL_KEYS - 1]> = LazyLock::new(|| {
    [
        "}:fence".to_owned(),
        format!("}}:{QUEUE_FORMAT}:queue"),
        format!("}}:{QUEUE_FORMAT}:waiters"),
    ]
});

/// What the name of an instance's channel begins with, behind the prefix.
static CHANNEL: LazyLock<String> = LazyLock::new(|| instance_key("", ""));

/// At most as many bytes as a companion has beside the prefix and the lock's key.
const LONGEST_NAME: usize = 16;

// === impl KeyNames ===

impl KeyNames {
    /// The names behind this prefix, which contains no braces.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The keys of a session.
    pub(super) fn session(&self, key: &SessionKey) -> SessionKeys {
        let lock = key.as_str();
        let longest = self.prefix.len() + lock.len() + LONGEST_NAME;
        let mut text = String::with_capacity(longest * ALL_KEYS);
        text.push_str(lock);
        let mut ends = [text.len(); ALL_KEYS];
        for (end, ending) in ends[1..].iter_mut().zip(ENDINGS.iter()) {
            text.extend([&*self.prefix, "{", lock, ending]);
            *end = text.len();
        }
        SessionKeys { text, ends }
    }

    /// A key of a session that exists for a moment only, while replicas confirm a lock.
    pub(super) fn confirmation(&self, key: &SessionKey) -> String {
        self.companion(key, "confirm")
    }

    /// The key of a session that names the turn of its newest kept answer.
    pub(super) fn newest_answer(&self, key: &SessionKey) -> String {
        self.companion(key, &format!("{ANSWER_FORMAT}:answer"))
    }

    /// The key of the answer to one turn of a session.
    pub(super) fn answer(&self, key: &SessionKey, turn: ClaimId) -> String {
        self.companion(key, &format!("{ANSWER_FORMAT}:answer:{turn}"))
    }

    /// The key of the record of a turn that is executed once. Its id is that of [`crate::key::OnceKey`].
    pub(super) fn record(&self, key: &SessionKey, id: &str) -> String {
        self.companion(key, &format!("{QUEUE_FORMAT}:once:{id}"))
    }

    /// The key of the record of a claim's turn; `None` if the turn isn't executed once.
    pub(super) fn record_of(&self, claim: &Claim) -> Option<String> {
        let once = claim.once.as_ref()?;
        Some(self.record(&claim.key, &once.turn.key.id))
    }

    fn companion(&self, key: &SessionKey, name: &str) -> String {
        [&*self.prefix, "{", key.as_str(), "}:", name].concat()
    }

    /// Begins a call of a script in a connection's buffer, with the keys of a claim's session, and that of its turn's
    /// record, if there is one. As many arguments have to follow.
    pub(super) fn write_about<'b>(
        &self,
        claim: &Claim,
        script: &Script,
        arguments: usize,
        buffer: &'b mut Vec<u8>,
    ) -> CallWriter<'b> {
        let record = self.record_of(claim);
        let keys = ALL_KEYS + usize::from(record.is_some());
        let mut call = script.write(buffer, keys, arguments);
        let lock = claim.key.as_str();
        call.text(lock);
        for ending in ENDINGS.iter() {
            let parts = [&*self.prefix, "{", lock, ending];
            call.parts(parts.map(str::as_bytes));
        }
        if let Some(record) = record {
            call.text(&record);
        }
        call
    }

    /// A call of a script about several sessions, with the first `keys_each` keys of each of them, and then the
    /// keys in `records`; `argument_bytes` is the size of the arguments to come.
    pub(super) fn call_for<'k>(
        &self,
        sessions: impl Iterator<Item = &'k SessionKey>,
        records: &[String],
        script: &Script,
        keys_each: usize,
        argument_bytes: usize,
    ) -> Cmd {
        let keys: Vec<_> = sessions.map(|key| self.session(key)).collect();
        let keys = keys
            .iter()
            .flat_map(|keys| keys.all().into_iter().take(keys_each));
        let keys: Vec<_> = keys.chain(records.iter().map(String::as_str)).collect();
        script.call(keys.into_iter(), argument_bytes)
    }

    /// The key of an instance's heartbeat, which is also the name of its channel.
    pub(super) fn instance(&self, instance: &str) -> String {
        instance_key(&self.prefix, instance)
    }

    /// The parts of the name of an instance's channel.
    pub(super) fn channel<'n>(&'n self, instance: &'n str) -> [&'n str; 3] {
        [&self.prefix, &CHANNEL, instance]
    }

    /// Whether a key is a heartbeat or a companion of a lock, and so no lock.
    pub(super) fn is_beside_locks(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&*self.prefix);
        rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(INSTANCE))
    }
}

/// The key of the heartbeat of an instance whose `store.prefix` is `prefix`.
pub(super) fn instance_key(prefix: &str, instance: &str) -> String {
    format!("{prefix}{INSTANCE}{INSTANCE_FORMAT}:{instance}")
}

// === impl SessionKeys ===

impl SessionKeys {
    /// The keys in their order.
    pub(super) fn all(&self) -> [&str; ALL_KEYS] {
        std::array::from_fn(|at| {
            let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.text[begin..self.ends[at]]
        })
    }

    /// A call of a script with all keys; `argument_bytes` is the size of the arguments to come.
    pub(super) fn call(&self, script: &Script, argument_bytes: usize) -> Cmd {
        script.call(self.all().into_iter(), argument_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_lock_begins_with_the_prefix() {
        let key = SessionKey::literal("lock:session:u:s");
        for prefix in ["", "staging:", "lock:session:"] {
            let names = KeyNames::new(prefix);
            let keys = names.session(&key);
            let [lock, companions @ ..] = keys.all();
            assert_eq!(lock, key.as_str(), "Python code knows the lock by this key");
            let heartbeat = names.instance("agent-0");
            let confirmation = names.confirmation(&key);
            let record = names.record(&key, "6ab9");
            let answer = names.newest_answer(&key);
            let queue = format!("{prefix}{{lock:session:u:s}}:1:queue");
            assert_eq!(companions[1], queue, "the queue has a format number");
            assert_eq!(
                names.channel("agent-0").concat(),
                heartbeat,
                "the channel has the name of the heartbeat's key"
            );
            let others = [&*heartbeat, &*confirmation, &*record, &*answer];
            for beside in companions.iter().chain(&others) {
                assert!(
                    beside.starts_with(prefix),
                    "{beside} has the prefix {prefix:?}"
                );
                assert!(
                    names.is_beside_locks(beside),
                    "{beside} isn't listed as a lock"
                );
            }
            assert!(!names.is_beside_locks(lock), "a lock is listed");
        }
    }
}
