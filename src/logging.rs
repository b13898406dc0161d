//! Set-up of the log, which is written to standard error.
//!
//! Events are formatted where they happen and written by a thread of their own (`spool`). Invariant: a slow
//! terminal or log collector never delays a turn. The access log has a formatter of its own (`line`). Spans are not
//! handled here but in `trace`.

use std::io::{self, IsTerminal};

use tracing::dispatcher::{self, Dispatch};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::{Registry, fmt, registry};

use clock::LogClock;
use line::LineFormat;
use spool::Spool;

pub(crate) use access::log_access;
pub(crate) use line::{FieldName, FieldValue, fields};
pub use panics::hide_panics;

mod access;
mod clock;
mod line;
mod panics;
mod spool;

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStyle {
    /// One line of text for each event, for people.
    Text,
    /// One JSON object for each event, for programs.
    Json,
}

/// The running log. Dropping it writes the events that are still buffered.
#[must_use = "events that are logged after it is dropped are lost"]
#[derive(Debug)]
pub struct Logging {
    spool: Spool,
    /// Changes later which events are logged.
    pub filter: LogFilter,
}

/// Which events are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedEvents {
    /// The lowest level that is logged.
    pub level: tracing::Level,
    /// Whether only Seriatim's own events are logged: events of libraries may contain everything that came
    /// over a connection, and so ids.
    pub own_only: bool,
}

/// The target of the audit log: what operators did to locks. It is logged at every level.
const AUDIT: &str = "seriatim::audit";

/// Changes which events are logged while the process runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogFilter(Handle<Targets, Registry>);

/// Starts the log of the process.
///
/// # Errors
/// When a log was started already, or the system can't start a thread.
pub fn init(style: LogStyle, events: LoggedEvents) -> io::Result<Logging> {
    let spool = Spool::start(io::stderr())?;
    let is_terminal = io::stderr().is_terminal();
    let format = match style {
        LogStyle::Text if is_terminal && wants_colors() => LineFormat::ColoredText,
        LogStyle::Text => LineFormat::Text,
        LogStyle::Json => LineFormat::Json,
    };
    let targets = events.targets();
    access::set_enabled(targets.would_enable(access::TARGET, &tracing::Level::INFO));
    let (layer, handle) = reload::Layer::new(targets);
    let dispatch = dispatch(format, is_terminal, layer, spool.writer());
    dispatcher::set_global_default(dispatch).map_err(io::Error::other)?;
    access::start(format, spool.writer());
    let filter = LogFilter(handle);
    Ok(Logging { spool, filter })
}

/// Writes the events that pass the filter. On a terminal, control characters in messages are escaped.
fn dispatch<F, W>(format: LineFormat, is_terminal: bool, filter: F, writer: W) -> Dispatch
where
    F: Layer<Registry> + Send + Sync,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filtered = registry().with(filter);
    let layer = fmt::layer()
        .with_ansi(format == LineFormat::ColoredText)
        .with_ansi_sanitization(is_terminal)
        .with_timer(LogClock)
        .with_writer(writer);
    match format {
        LineFormat::Text | LineFormat::ColoredText => filtered.with(layer).into(),
        LineFormat::Json => filtered.with(layer.json().flatten_event(true)).into(),
    }
}

/// Whether a terminal gets colors: the variable `NO_COLOR` is unset or empty, see <https://no-color.org>.
fn wants_colors() -> bool {
    std::env::var("NO_COLOR").map_or(true, |value| value.is_empty())
}

// === impl Logging ===

impl Drop for Logging {
    fn drop(&mut self) {
        self.spool.flush();
    }
}

// === impl LoggedEvents ===

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

// === impl LogFilter ===

impl LogFilter {
    /// Logs these events from now on.
    pub fn set(&self, events: LoggedEvents) {
        let targets = events.targets();
        access::set_enabled(targets.would_enable(access::TARGET, &tracing::Level::INFO));
        // It fails only when the log is gone, at the end of the process.
        let _ = self.0.reload(targets);
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_audit_log_is_written_at_every_level() {
        for level in [Level::ERROR, Level::INFO, Level::TRACE] {
            for own_only in [false, true] {
                let targets = LoggedEvents { level, own_only }.targets();
                let is_logged = |target, at| targets.would_enable(target, &at);
                assert!(is_logged("seriatim::audit", Level::INFO), "at {level}");
                let is_info = level >= Level::INFO;
                assert_eq!(
                    is_logged("seriatim::access", Level::INFO),
                    is_info,
                    "at {level}"
                );
                let others = !own_only;
                assert_eq!(is_logged("hyper", Level::ERROR), others, "at {level}");
            }
        }
    }
}
