//! `[replay]`: how much of the answers of turns is kept, and for how long.
//!
//! Invariant: the memory of all kept answers has room for one of the largest. Keeping answers is left to
//! `crate::answer`; which routes keep theirs is said by the routes.

use std::time::Duration;

use super::StoreAddress;
use super::option::{Options, options};
use super::reader::ConfigTable;
use super::value_kind::{DurationIn, HOUR, Optional, SECOND, SizeFrom, Text, word, words};
use crate::cipher::CipherKeys;
use crate::secret::SecretFile;

options! {
    /// How much of the answers of turns is kept, and for how long.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ReplayConfig in "replay" {
        /// The largest answer that is kept whole, in bytes of its body. Of a larger one, the last 256 KiB are kept, or
        /// `max_turn` if that is less, for clients that have attached before.
        max_turn: usize = 4 << 20, SizeFrom(1), example "\"16MiB\"", Live;
        /// How long an answer is kept after its end.
        keep: Duration = SECOND * 120, DurationIn(SECOND..=HOUR * 24), example "\"10m\"", Live;
        /// The memory for all kept answers of a replica, in bytes. When it is full, the oldest answer that has ended is
        /// forgotten; if there is none, only the last 16 KiB of each answer that grows are kept. So each turn that runs
        /// may need 16 KiB more. At least `max_turn`.
        max_total: usize = 256 << 20, SizeFrom(1), example "\"1GiB\"", Live;
        /// What a client gets that attaches to an answer whose beginning isn't kept: `reject` refuses it with 409
        /// `answer_too_long`; `live` gives it what comes from now on, if the answer is an event stream.
        over_limit: OverLimit = OverLimit::Reject, word(), example "\"live\"", Live;
        /// A file with the key that encrypts answers in Redis (AES-256-GCM): 32 random bytes as 64 hexadecimal digits
        /// or in base64. With several lines, the first key encrypts, and each of them decrypts. A new key in the file
        /// takes effect when the configuration is read again.
        key_file: Option<CipherKeys> = None, Optional(KEY_FILE),
            unset "answers in Redis are not encrypted", example "\"/run/secrets/answers-key\"", Live;
    }
}

words! {
    /// What a client gets that attaches to an answer whose beginning isn't kept.
    pub enum OverLimit {
        /// It is refused with 409.
        Reject = "reject",
        /// It gets what comes from now on.
        Live = "live",
    }
}

/// The path of a file with keys.
const KEY_FILE: Text<CipherKeys, String> = Text {
    what: "path",
    parse: |path| CipherKeys::read(&SecretFile::new(path)).map_err(|error| error.to_string()),
    show: |keys| keys.file().path().display().to_string(),
};

impl ReplayConfig {
    /// Reports a key for answers in Redis where there is none.
    pub(super) fn check_store(&self, store: &StoreAddress, table: &ConfigTable<'_>) {
        if self.key_file.is_some() && *store == StoreAddress::Memory {
            let why = "is used only with Redis: write store.url = \"redis://host:6379/0\" too, or leave this out";
            table.note("key_file", why);
        }
    }

    /// Reports a memory limit that has no room for the largest answer.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        if self.max_total < self.max_turn && !table.is_wrong("max_turn") {
            let why = format!(
                "must be at least max_turn, which is {} bytes: a larger answer could not be kept",
                self.max_turn
            );
            table.note("max_total", why);
        }
    }

    /// Reports options where no route keeps its answers.
    pub(super) fn check_unused(&self, table: &ConfigTable<'_>) {
        for (key, _) in self.show() {
            if table.wrote(key) && self.differs_from_default(key) {
                let why = "is used only with replay = true on a route or in [lock]: write it too, or leave this out";
                table.note(key, why);
            }
        }
    }
}
