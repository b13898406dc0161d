//! What the process tells: the set-up of tracing.
//!
//! Events are formatted where they happen and written by a thread of their own (`spool`), so that
//! a slow terminal or log collector never holds up a turn.

use std::io::{self, IsTerminal};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::SubscriberInitExt;

use plain::PlainFields;
use spool::Spool;

mod plain;
mod spool;

/// Whether events are for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line for a person.
    Text,
    /// A line of JSON.
    Json,
}

/// Writes what is left when it is dropped.
#[must_use = "events that are told after it is dropped are lost"]
#[derive(Debug)]
pub struct Telemetry(Spool);

/// Tells events down to `level` on standard error.
///
/// # Errors
/// When telemetry is set up already, or there is no thread to be had.
pub fn init(format: Format, level: Level) -> io::Result<Telemetry> {
    let spool = Spool::start(io::stderr())?;
    let builder = fmt()
        .with_max_level(LevelFilter::from_level(level))
        .with_writer(spool.writer());
    let told = match format {
        Format::Text if io::stderr().is_terminal() => builder.finish().try_init(),
        Format::Text => builder
            .with_ansi(false)
            .fmt_fields(PlainFields)
            .finish()
            .try_init(),
        Format::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    told.map_err(io::Error::other)?;
    Ok(Telemetry(spool))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.0.flush();
    }
}
