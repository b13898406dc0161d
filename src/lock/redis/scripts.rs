//! The Lua scripts. Each is in a file of its own, which begins with its keys and arguments.

use std::sync::LazyLock;

use redis::{Cmd, Pipeline, Script as Hashed};

use super::call::{CallWriter, push_argument};
use crate::lock::format::INSTANCE_FORMAT;
use crate::lock::holder::UNKNOWN_HOLDER;
use crate::lock::{Dismissal, OFFER_TTL, OnceClaim, QUEUE_TTL, WAITER_TIMEOUT};

/// A script, and the SHA-1 hash by which Redis knows it.
pub(super) struct Script(LazyLock<HashedText>);

struct HashedText {
    text: String,
    hash: String,
    /// The beginning of a call behind the number of its arguments: `EVALSHA` and the hash.
    call: Vec<u8>,
}

/// Takes a lock, or a place in its queue.
pub(super) static ACQUIRE: Script = script!("acquire", |script| with_shortcut(
    include_str!("scripts/acquire_free.lua"),
    script
));
/// Frees a lock, and leaves its queue.
pub(super) static RELEASE: Script = script!("release", |script| with_shortcut(
    include_str!("scripts/release_alone.lua"),
    script
));
/// Watches any number of queues.
pub(super) static WATCH: Script = script!("watch", with_session);
/// Reads any number of locks, for an operator.
pub(super) static INSPECT: Script = script!("inspect", with_session);
/// Takes a lock away from its holder, for an operator.
pub(super) static FORCE_RELEASE: Script = script!("force_release", with_session);
/// Takes a waiter out of the queue, for an operator.
pub(super) static DEQUEUE: Script = script!("dequeue", with_session);
/// Extends any number of locks.
pub(super) static EXTEND: Script = script!("extend", String::from);
/// Renews an instance's heartbeat.
pub(super) static HEARTBEAT: Script = script!("heartbeat", String::from);
/// Reads an instance's heartbeat.
pub(super) static LIVENESS: Script = script!("liveness", String::from);
/// Gives the `run_id` of the server.
pub(super) static SERVER: Script = script!("server", String::from);
/// Adds to a kept answer.
pub(super) static WRITE_ANSWER: Script = script!("write_answer", String::from);
/// Finds out which answers there are for a session.
pub(super) static FIND_ANSWER: Script = script!("find_answer", String::from);
/// Reads a kept answer.
pub(super) static READ_ANSWER: Script = script!("read_answer", String::from);
/// Deletes an instance's heartbeat.
pub(super) static UNREGISTER: Script = script!("unregister", String::from);

macro_rules! script {
    ($name:literal, $complete:expr) => {
        Script(LazyLock::new(|| {
            let text = $complete(include_str!(concat!("scripts/", $name, ".lua")));
            let hash = Hashed::new(&text).get_hash().to_owned();
            let mut call = Vec::new();
            push_argument(&mut call, [b"EVALSHA"]);
            push_argument(&mut call, [hash.as_bytes()]);
            HashedText { text, hash, call }
        }))
    };
}
use script;

/// How many waiters of a full queue are checked when a turn is refused. If half of the waiters are
/// dead, nearly every check finds room, and it costs Redis some microseconds.
const CHECKED_WAITERS: usize = 4;

/// A script about sessions, behind the constants and functions that all of them share.
fn with_session(script: &str) -> String {
    with_shortcut("", script)
}

/// Like [`with_session`], with `shortcut` before the functions: it serves the usual case, for which Redis then makes none
/// of them.
fn with_shortcut(shortcut: &str, script: &str) -> String {
    format!(
        "local WAITER_TIMEOUT, OFFER_TTL, QUEUE_TTL, CHECKED_WAITERS, UNKNOWN_HOLDER, MESSAGE_FORMAT = \
         {}, {}, {}, {}, '{}', {}\n{}{shortcut}{}{script}",
        WAITER_TIMEOUT.as_micros(),
        OFFER_TTL.as_millis(),
        QUEUE_TTL.as_millis(),
        CHECKED_WAITERS,
        UNKNOWN_HOLDER,
        INSTANCE_FORMAT,
        include_str!("scripts/clock.lua"),
        include_str!("scripts/common.lua"),
    )
}

// === impl Script ===

impl Script {
    /// Begins a call by hash in a connection's buffer; its keys and arguments have to follow.
    pub(super) fn write<'b>(
        &self,
        buffer: &'b mut Vec<u8>,
        keys: usize,
        arguments: usize,
    ) -> CallWriter<'b> {
        CallWriter::new(buffer, &self.0.call, keys, arguments)
    }

    /// A call by hash, with its keys; `argument_bytes` is the size of the arguments to come.
    pub(super) fn call<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k str> + Clone,
        argument_bytes: usize,
    ) -> Cmd {
        let bytes: usize = keys.clone().map(str::len).sum();
        let mut command = Cmd::with_capacity(12 + keys.len() * 3, 64 + bytes + argument_bytes);
        command.arg("EVALSHA").arg(&*self.0.hash).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        command
    }
}

/// Loads all scripts into Redis.
pub(super) fn load() -> Pipeline {
    let mut pipeline = redis::pipe();
    for script in [
        &ACQUIRE,
        &RELEASE,
        &WATCH,
        &EXTEND,
        &HEARTBEAT,
        &LIVENESS,
        &UNREGISTER,
        &SERVER,
        &INSPECT,
        &FORCE_RELEASE,
        &DEQUEUE,
        &WRITE_ANSWER,
        &FIND_ANSWER,
        &READ_ANSWER,
    ] {
        pipeline
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(&*script.0.text)
            .ignore();
    }
    pipeline
}
/// What the script that releases is told of a turn that is executed once.
pub(super) fn turn_fate(once: &OnceClaim) -> &'static str {
    match (once.sent_flag().is_set(), once.dismissal()) {
        (true, _) => "e",
        (false, None) => "",
        (false, Some(Dismissal::Superseded)) => "s",
        (false, Some(Dismissal::Dequeued)) => "q",
    }
}
