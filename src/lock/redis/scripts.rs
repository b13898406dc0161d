//! The Lua scripts, each in a file of its own that opens with its arguments.

use std::sync::LazyLock;

use redis::{Cmd, Script as Hashed};

use crate::lock::{KEPT, OFFER, STALE};

/// A script, with the hash that Redis knows it by.
pub(super) struct Script(LazyLock<(String, String)>);

/// Takes a lock, or a place in its line.
pub(super) static ACQUIRE: Script = script!("acquire", about_lines);
/// Frees a lock, and leaves its line.
pub(super) static RELEASE: Script = script!("release", about_lines);
/// Looks at any number of lines.
pub(super) static WATCH: Script = script!("watch", about_lines);
/// Looks at any number of locks, for an operator.
pub(super) static LOOK: Script = script!("look", about_lines);
/// Takes a lock away from its holder.
pub(super) static FORCE: Script = script!("force", about_lines);
/// Extends any number of locks.
pub(super) static EXTEND: Script = script!("extend", String::from);
/// Keeps an instance's key.
pub(super) static BEAT: Script = script!("beat", String::from);
/// Looks for an instance's key.
pub(super) static SIGN: Script = script!("sign", String::from);
/// Takes an instance's key away.
pub(super) static STOP: Script = script!("stop", String::from);

macro_rules! script {
    ($name:literal, $complete:expr) => {
        Script(LazyLock::new(|| {
            let text = $complete(include_str!(concat!("scripts/", $name, ".lua")));
            let hash = Hashed::new(&text).get_hash().to_owned();
            (text, hash)
        }))
    };
}
use script;

/// How many places of a full line are looked at for waiters who are dead, whenever somebody is refused:
/// of a line that is half dead, nearly every call then finds room, and Redis works for some microseconds.
const LOOKED_AT: usize = 4;

/// A script behind what all those about lines have in common.
fn about_lines(script: &str) -> String {
    let (stale, offer, kept) = (STALE.as_micros(), OFFER.as_millis(), KEPT.as_millis());
    let common = include_str!("scripts/line.lua");
    format!(
        "local STALE, OFFER, KEPT, LOOKED_AT = {stale}, {offer}, {kept}, {LOOKED_AT}\n{common}{script}"
    )
}

// === impl Script ===

impl Script {
    /// A call by hash, with its keys; arguments of about so many bytes are appended to what it
    /// gives.
    pub(super) fn call<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k str> + Clone,
        arguments: usize,
    ) -> Cmd {
        let bytes: usize = keys.clone().map(str::len).sum();
        let mut command = Cmd::with_capacity(12 + keys.len() * 3, 64 + bytes + arguments);
        command.arg("EVALSHA").arg(self.hash()).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        command
    }

    fn text(&self) -> &str {
        &self.0.0
    }

    fn hash(&self) -> &str {
        &self.0.1
    }
}

/// What makes Redis know all scripts.
pub(super) fn load() -> redis::Pipeline {
    let mut pipeline = redis::pipe();
    for script in [
        &ACQUIRE, &RELEASE, &WATCH, &EXTEND, &BEAT, &SIGN, &STOP, &LOOK, &FORCE,
    ] {
        pipeline
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(script.text())
            .ignore();
    }
    pipeline
}
