//! `[log]`: what is told, and in which form.

use tracing::Level;

use super::raw::Table;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people, or for machines.
    pub format: LogFormat,
    /// The least important events that are told.
    pub level: Level,
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// A line of JSON.
    Json,
}

// === impl Log ===

impl Log {
    pub(super) fn read(table: &mut Table<'_>) -> Self {
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
        }
    }
}
