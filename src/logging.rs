//! What the process tells: the set-up of tracing.
//!
//! Events are formatted where they happen and written by a thread of their own (`spool`), so that
//! a slow terminal or log collector never holds up a turn.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry};

use plain::PlainFields;
use spool::Spool;

pub use panics::hide_panics;

mod panics;
mod plain;
mod spool;

/// Whether events are for people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStyle {
    /// A line for a person.
    Text,
    /// A line of JSON.
    Json,
}

/// Writes what is left when it is dropped.
#[must_use = "events that are told after it is dropped are lost"]
#[derive(Debug)]
pub struct Logging {
    spool: Spool,
    filter: LogFilter,
}

/// Which events are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedEvents {
    /// The least important ones.
    pub level: tracing::Level,
    /// Only Seriatim's: what a library tells of a connection may be all that came over it.
    pub own_only: bool,
}

/// The target of what operators have done, which is told whatever else is to be.
const AUDIT: &str = "seriatim::audit";

/// Which events are told, which can be changed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter(Handle<Targets, Registry>);

/// Tells events on standard error.
///
/// # Errors
/// When telemetry is set up already, or there is no thread to be had.
pub fn init(format: LogStyle, told: LoggedEvents) -> io::Result<Logging> {
    let spool = Spool::start(io::stderr())?;
    let (filter, handle) = reload::Layer::new(told.targets());
    let filtered = registry().with(filter);
    let told = fmt::layer().with_writer(spool.writer());
    let told = match format {
        LogStyle::Text if io::stderr().is_terminal() => filtered.with(told).try_init(),
        LogStyle::Text => {
            let plain = told.with_ansi(false).fmt_fields(PlainFields);
            filtered.with(plain).try_init()
        }
        LogStyle::Json => filtered.with(told.json().flatten_event(true)).try_init(),
    };
    told.map_err(io::Error::other)?;
    let filter = LogFilter(handle);
    Ok(Logging { spool, filter })
}

// === impl Telemetry ===

impl Logging {
    /// What can be changed of it later.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}

// === impl Told ===

impl LoggedEvents {
    fn targets(self) -> Targets {
        let others = match self.own_only {
            true => LevelFilter::OFF,
            false => LevelFilter::from_level(self.level),
        };
        let own = env!("CARGO_CRATE_NAME");
        Targets::new()
            .with_default(others)
            .with_target(own, self.level)
            .with_target(AUDIT, self.level.max(tracing::Level::INFO))
    }
}

// === impl Filter ===

impl LogFilter {
    /// Tells these events from now on.
    pub fn set(&self, told: LoggedEvents) {
        // An error is a process that tells nothing any more.
        let _ = self.0.reload(told.targets());
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.spool.flush();
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_operators_have_done_is_told_at_every_level() {
        for level in [Level::ERROR, Level::INFO, Level::TRACE] {
            for own_only in [false, true] {
                let targets = LoggedEvents { level, own_only }.targets();
                let told = |target, at| targets.would_enable(target, &at);
                assert!(told("seriatim::audit", Level::INFO), "at {level}");
                let is_info = level >= Level::INFO;
                assert_eq!(told("seriatim::access", Level::INFO), is_info, "at {level}");
                let others = !own_only;
                assert_eq!(told("hyper", Level::ERROR), others, "at {level}");
            }
        }
    }
}
