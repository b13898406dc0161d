//! `[log]`: what Seriatim logs on standard error, and in which form.
//!
//! Invariant: with `ids = "hash"`, no route reads an id from a header that is logged as it is.

use http::HeaderName;
use tracing::Level;

use super::option::options;
use super::reader::ConfigTable;
use super::routes::Route;
use super::value_kind::{Words, word, words};
use crate::key::Source;

options! {
    /// What Seriatim logs on standard error.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LogConfig in "log" {
        /// The form of log lines: `text` for people, or `json` for machines.
        format: LogFormat = LogFormat::Text, word(), example "\"json\"", Restart;
        /// The least severe level that is logged. Each request is logged at `info`; what operators do
        /// to locks is always logged.
        level: Level = Level::INFO, word(), example "\"warn\"", Live;
        /// How the log and the spans name sessions: `plain` shows the ids of users and sessions; `hash`
        /// shows a session as `#` and the first 16 hex digits of the SHA-256 of its lock's name, the
        /// same on every replica, and no id. In spans, the ids are hashed too.
        ids: LogIds = LogIds::Plain, word(), example "\"hash\"", Live;
    }
}

words! {
    /// The form of log lines.
    pub enum LogFormat {
        /// A line of text, for people.
        Text = "text",
        /// A JSON object on a line, for machines.
        Json = "json",
    }
}

words! {
    /// How the log and the spans name users and sessions.
    pub enum LogIds {
        /// By their ids.
        Plain = "plain",
        /// By a digest of the session's key.
        Hash = "hash",
    }
}

impl Words for Level {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
}

impl LogConfig {
    /// Reports an id that can't be hidden, because it is also the id of the request, which is logged to
    /// join the lines of different programs.
    pub(super) fn check(&self, table: &ConfigTable<'_>, routes: &[Route]) {
        const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
        let turns = routes.iter().filter_map(|route| route.turn.as_ref());
        let mut sources = turns
            .flat_map(|turn| turn.session_id.iter().chain(&turn.user_id))
            .flat_map(|template| template.sources());
        if self.ids == LogIds::Hash
            && sources.any(|source| matches!(source, Source::Header(name) if *name == REQUEST_ID))
        {
            let why = "a route reads an id from {header:x-request-id}, and every log line shows this \
                       header: write \"plain\", or read the id from another header";
            table.note("ids", why);
        }
    }
}
