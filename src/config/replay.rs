//! `[replay]`: how much of the answers of turns is kept, and for how long.
//!
//! Invariant: the memory of all kept answers has room for one of the largest. Keeping answers is left to
//! `crate::answer`; which routes keep theirs is said by the routes.

use std::time::Duration;

use super::option::{Options, options};
use super::reader::ConfigTable;
use super::value_kind::{DurationIn, HOUR, SECOND, SizeFrom, word, words};

options! {
    /// How much of the answers of turns is kept, and for how long.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ReplayConfig in "replay" {
        /// The largest answer that is kept whole, in bytes of its body. Of a larger one, the last 256 KiB are kept,
        /// for clients that have attached before.
        max_turn: usize = 4 << 20, SizeFrom(1), example "\"16MiB\"", Live;
        /// How long an answer is kept after its end.
        keep: Duration = SECOND * 120, DurationIn(SECOND..=HOUR * 24), example "\"10m\"", Live;
        /// The memory for all kept answers of a replica, in bytes. When it is full, the oldest answer that has ended is
        /// forgotten; if there is none, the last 256 KiB of the new one are kept. At least `max_turn`.
        max_total: usize = 256 << 20, SizeFrom(1), example "\"1GiB\"", Live;
        /// What a client gets that attaches to an answer whose beginning isn't kept: `reject` refuses it with 409
        /// `answer_too_long`; `live` gives it what comes from now on, if the answer is an event stream.
        over_limit: OverLimit = OverLimit::Reject, word(), example "\"live\"", Live;
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

impl ReplayConfig {
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
