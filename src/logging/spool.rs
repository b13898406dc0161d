//! A buffer between the threads that log and the thread that writes the log.
//!
//! Invariant: logging never waits for writing. While the writer is blocked and the buffer full, lines are
//! dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// The buffer and its writer thread, which lives as long as the process.
#[derive(Debug)]
pub(super) struct Spool(Arc<SpoolState>);

/// Adds lines to the buffer.
#[derive(Clone, Debug)]
pub(super) struct SpoolWriter(Arc<SpoolState>);

#[derive(Debug, Default)]
struct SpoolState {
    buffer: Mutex<SpoolBuffer>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct SpoolBuffer {
    /// Complete lines that are not written yet.
    lines: Vec<u8>,
    /// How many lines were dropped since the last write.
    dropped: u64,
    /// Whether the thread is writing lines that it has taken out of `lines`.
    is_writing: bool,
}

/// How long lines are collected before they are written with one call: too short for a reader to notice,
/// long enough to save most calls under load.
const GATHER: Duration = Duration::from_millis(20);

/// The size of the buffer in bytes: some ten thousand lines.
const CAPACITY: usize = 4 << 20;

/// How long the end of the process waits for a writer that is blocked.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

// === impl Spool ===

impl Spool {
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(SpoolState::default());
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || writer.write_to(out))?;
        Ok(Self(shared))
    }

    pub(super) fn writer(&self) -> SpoolWriter {
        SpoolWriter(Arc::clone(&self.0))
    }

    /// Blocks until all lines are written, for a second at most.
    pub(super) fn flush(&self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let mut buffer = self.0.buffer.lock();
        while !buffer.lines.is_empty() || buffer.is_writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.0.written.wait_for(&mut buffer, left);
        }
    }
}

// === impl SpoolState ===

impl SpoolState {
    fn write_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut buffer = self.buffer.lock();
            buffer.is_writing = false;
            self.written.notify_all();
            while buffer.lines.is_empty() {
                self.filled.wait(&mut buffer);
            }
            buffer.is_writing = true;
            drop(buffer);
            thread::sleep(GATHER);
            let mut buffer = self.buffer.lock();
            std::mem::swap(&mut buffer.lines, &mut lines);
            let dropped = std::mem::take(&mut buffer.dropped);
            drop(buffer);
            // An error has nowhere to go: this is the log.
            let _ = out.write_all(&lines);
            if dropped > 0 {
                let _ = writeln!(
                    out,
                    "{dropped} log lines were dropped: standard error was not read fast enough"
                );
            }
            let _ = out.flush();
            lines.clear();
        }
    }
}

// === impl SpoolWriter ===

impl SpoolWriter {
    /// Adds a complete line, or drops and counts it while the buffer is full.
    pub(super) fn add(&self, line: &[u8]) {
        let mut buffer = self.0.buffer.lock();
        if buffer.lines.len() + line.len() > CAPACITY {
            buffer.dropped += 1;
            return;
        }
        let was_empty = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        if was_empty {
            self.0.filled.notify_one();
        }
    }
}

impl Write for SpoolWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for SpoolWriter {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
