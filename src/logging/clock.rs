//! The time of an event in the log.

use std::fmt;
use std::time::SystemTime;

use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::timestamp::{self, Precision};

/// Writes the time of an event as tracing-subscriber does, to the microsecond, with a quarter of the instructions.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogClock;

impl FormatTime for LogClock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let mut text = String::with_capacity(28);
        timestamp::push(&mut text, SystemTime::now(), Precision::Micros);
        writer.write_str(&text)
    }
}
