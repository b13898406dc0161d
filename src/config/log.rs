//! `[log]`: what is told, and in which form.

use tracing::Level;

use http::HeaderName;

use super::Route;
use super::reader::ConfigTable;
use crate::key::Source;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// For people, or for machines.
    pub format: LogFormat,
    /// The least important events that are told.
    pub level: Level,
    /// How users and sessions are named in them.
    pub ids: LogIds,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// A line of JSON.
    Json,
}

/// How users and sessions are named in events and in spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogIds {
    /// By their ids.
    Plain,
    /// By a digest of the session's key.
    Hash,
}

// === impl Log ===

impl LogConfig {
    pub(super) fn read(table: &mut ConfigTable<'_>) -> Self {
        Self {
            format: table.or("format", LogFormat::Text, |entry| {
                entry.one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
            }),
            level: table.or("level", Level::INFO, |entry| {
                entry.one_of(&[
                    ("error", Level::ERROR),
                    ("warn", Level::WARN),
                    ("info", Level::INFO),
                    ("debug", Level::DEBUG),
                    ("trace", Level::TRACE),
                ])
            }),
            ids: table.or("ids", LogIds::Plain, |entry| {
                entry.one_of(&[("plain", LogIds::Plain), ("hash", LogIds::Hash)])
            }),
        }
    }
    /// Notes what can't be hidden: a request's id stands in every line, for others to be joined to it.
    pub(super) fn check(&self, table: &ConfigTable<'_>, routes: &[Route]) {
        const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
        let turns = routes.iter().filter_map(|route| route.turn.as_ref());
        let mut sources = turns
            .flat_map(|turn| turn.session_id.iter().chain(&turn.user_id))
            .flat_map(|template| template.sources());
        if self.ids == LogIds::Hash
            && sources.any(|source| matches!(source, Source::Header(name) if *name == REQUEST_ID))
        {
            let why = "a route reads an id from {header:x-request-id}, which stands in every line as it \
                       came: write \"plain\", or have the id in another header";
            table.note("ids", why);
        }
    }
}
