//! The access log: one event for each request, written without tracing, because a turn pays for it.
//!
//! Invariant: its lines and those of other events stand in the order in which they happened. They share the
//! buffer and the filter.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::line::{EventLine, LineFormat};
use super::spool::SpoolWriter;

/// The target of the events.
pub(super) const TARGET: &str = "seriatim::access";

/// The access log of the process; unset: nothing is logged.
static ACCESS_LOG: OnceLock<AccessLog> = OnceLock::new();

/// Whether the level of the log lets the events pass.
static IS_ENABLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The memory of the last line.
    static LAST: Cell<String> = const { Cell::new(String::new()) };
}

#[derive(Debug)]
struct AccessLog {
    format: LineFormat,
    spool: SpoolWriter,
}

/// Starts the access log. The first one of a process stays.
pub(super) fn start(format: LineFormat, spool: SpoolWriter) {
    ACCESS_LOG.get_or_init(|| AccessLog { format, spool });
}

/// Switches the access log on or off.
pub(super) fn set_enabled(is_enabled: bool) {
    IS_ENABLED.store(is_enabled, Ordering::Relaxed);
}

/// Writes one event to the access log, with the fields that `add` adds. Does nothing while the level of the log is
/// above `info`.
pub(crate) fn log_access(add: impl FnOnce(&mut EventLine)) {
    if !IS_ENABLED.load(Ordering::Relaxed) {
        return;
    }
    let Some(log) = ACCESS_LOG.get() else {
        return;
    };
    let mut line = EventLine::begin(LAST.take(), log.format);
    add(&mut line);
    let mut line = line.end();
    log.spool.add(line.as_bytes());
    line.clear();
    LAST.set(line);
}
