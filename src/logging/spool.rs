//! A buffer between those who tell and the one who writes.
//!
//! Invariant: telling never waits for writing. What can't be kept while the writer is stuck is
//! dropped, and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// The buffer and its thread. The thread lives as long as the process.
#[derive(Debug)]
pub(super) struct Spool(Arc<SpoolState>);

/// Puts lines into the buffer.
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
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
}

/// How long lines are gathered before they are written with one call: too short to be noticed by
/// who watches, long enough to spare most calls under load.
const GATHER: Duration = Duration::from_millis(20);

/// What is kept at most while the writer is stuck, in bytes: some ten thousand lines.
const CAPACITY: usize = 4 << 20;

/// How long the end of the process waits for a writer that is stuck.
const LAST_WAIT: Duration = Duration::from_secs(1);

// === impl Spool ===

impl Spool {
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(SpoolState::default());
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name("telemetry".into())
            .spawn(move || writer.write_to(out))?;
        Ok(Self(shared))
    }

    pub(super) fn writer(&self) -> SpoolWriter {
        SpoolWriter(Arc::clone(&self.0))
    }

    /// Returns when everything is written, or the writer is stuck.
    pub(super) fn flush(&self) {
        let until = Instant::now() + LAST_WAIT;
        let mut buffer = self.0.buffer.lock();
        while !buffer.lines.is_empty() || buffer.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.0.written.wait_for(&mut buffer, left);
        }
    }
}

// === impl Shared ===

impl SpoolState {
    fn write_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            let mut buffer = self.buffer.lock();
            buffer.writing = false;
            self.written.notify_all();
            while buffer.lines.is_empty() {
                self.filled.wait(&mut buffer);
            }
            buffer.writing = true;
            drop(buffer);
            thread::sleep(GATHER);
            let mut buffer = self.buffer.lock();
            std::mem::swap(&mut buffer.lines, &mut lines);
            let dropped = std::mem::take(&mut buffer.dropped);
            drop(buffer);
            // With nobody to read it, there is nobody to tell that it can't be written.
            let _ = out.write_all(&lines);
            if dropped > 0 {
                let _ = writeln!(
                    out,
                    "{dropped} events were dropped: nobody read them in time"
                );
            }
            let _ = out.flush();
            lines.clear();
        }
    }
}

// === impl SpoolWriter ===

impl Write for SpoolWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut buffer = self.0.buffer.lock();
        if buffer.lines.len() + line.len() > CAPACITY {
            buffer.dropped += 1;
            return Ok(line.len());
        }
        let was_empty = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line);
        drop(buffer);
        if was_empty {
            self.0.filled.notify_one();
        }
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
