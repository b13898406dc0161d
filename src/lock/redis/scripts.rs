//! The Lua scripts, each in a file of its own that opens with its arguments.

use std::sync::LazyLock;

use redis::{Cmd, Script as Hashed};

/// A script and the hash that Redis knows it by.
pub(super) struct Script {
    text: &'static str,
    hash: LazyLock<String>,
}

/// Takes a lock.
pub(super) static ACQUIRE: Script = script!("acquire");
/// Frees a lock.
pub(super) static RELEASE: Script = script!("release");
/// Extends any number of locks.
pub(super) static EXTEND: Script = script!("extend");

macro_rules! script {
    ($name:literal) => {{
        const TEXT: &str = include_str!(concat!("scripts/", $name, ".lua"));
        Script {
            text: TEXT,
            hash: LazyLock::new(|| Hashed::new(TEXT).get_hash().to_owned()),
        }
    }};
}
use script;

// === impl Script ===

impl Script {
    /// A call by hash, with its keys; arguments are appended to what it gives.
    pub(super) fn call(&self, keys: &[&[String; 2]]) -> Cmd {
        // The token is the longest of the arguments to come, some two hundred bytes.
        let bytes: usize = keys
            .iter()
            .flat_map(|pair| pair.iter().map(String::len))
            .sum();
        let mut command = Cmd::with_capacity(3 + keys.len() * 5, 64 + bytes + keys.len() * 256);
        command
            .arg("EVALSHA")
            .arg(self.hash.as_str())
            .arg(keys.len() * 2);
        for [lock, companion] in keys {
            command.arg(lock).arg(companion);
        }
        command
    }
}

/// What makes Redis know all scripts.
pub(super) fn load() -> redis::Pipeline {
    let mut pipeline = redis::pipe();
    for script in [&ACQUIRE, &RELEASE, &EXTEND] {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text).ignore();
    }
    pipeline
}
