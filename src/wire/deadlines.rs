//! The deadlines of one connection: its own, and those of the HTTP/2 streams on it. And who waits until
//! the connection has written what it has buffered.

use std::sync::Arc;

use tokio::time::Instant;

use super::flush::FlushWaiter;
use crate::deadline::Deadline;

/// All deadlines of one connection. An HTTP/1 connection, or the bounds of a single stream, have at
/// most their own.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// The deadline of the connection itself; `None`: it has none.
    pub(super) own: Option<Deadline>,
    /// The deadlines of the streams that run now.
    streams: Vec<StreamDeadline>,
    /// The deadlines of responses that were cut. The connection may have buffered bytes of them, and
    /// forgets the deadlines with the next flush.
    retired: Vec<Deadline>,
    /// The deadlines of responses that were cut while their client read nothing. Bytes of them may
    /// be written at any time, so the connection keeps these deadlines until it closes.
    kept: Vec<Deadline>,
    /// Who waits for the next flush.
    flush_waiters: Vec<Arc<FlushWaiter>>,
}

#[derive(Debug)]
struct StreamDeadline {
    id: usize,
    deadline: Deadline,
}

// === impl Deadlines ===

impl Deadlines {
    pub(super) fn any_passed(&self, now: Instant) -> bool {
        let own = self.own.iter();
        let streams = self.streams.iter().map(|stream| &stream.deadline);
        let mut all = own.chain(streams).chain(&self.retired).chain(&self.kept);
        all.any(|deadline| deadline.passed(now))
    }

    /// Sets the deadline of the stream `id`.
    pub(super) fn add(&mut self, id: usize, deadline: Deadline) {
        self.remove(id);
        self.streams.push(StreamDeadline { id, deadline });
    }

    /// Removes the deadline of the stream `id`, and gives it back.
    pub(super) fn remove(&mut self, id: usize) -> Option<Deadline> {
        let at = self.streams.iter().position(|stream| stream.id == id)?;
        Some(self.streams.swap_remove(at).deadline)
    }

    /// Removes the deadline of the stream `id`: at once or, if the connection `has_buffered` bytes,
    /// with the next flush.
    pub(super) fn retire(&mut self, id: usize, has_buffered: bool) {
        let deadline = self.remove(id);
        if has_buffered {
            self.retired.extend(deadline);
        }
    }

    /// Forgets the retired deadlines, after a flush. Gives back who has waited for it.
    pub(super) fn on_flushed(&mut self) -> Vec<Arc<FlushWaiter>> {
        self.retired.clear();
        std::mem::take(&mut self.flush_waiters)
    }

    /// Adds somebody who waits for the next flush.
    pub(super) fn add_flush_waiter(&mut self, waiter: Arc<FlushWaiter>) {
        self.flush_waiters.push(waiter);
    }

    /// Keeps `deadline` as long as the connection lives.
    pub(super) fn keep(&mut self, deadline: Deadline) {
        self.kept.push(deadline);
    }
}
