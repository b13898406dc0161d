//! The deadlines under which a connection's bytes stand: its own, and those of the requests on it.

use tokio::time::Instant;

use crate::deadline::Deadline;

/// All deadlines of one connection. For HTTP/1 and for a single request there is one at most.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    pub(super) own: Option<Deadline>,
    /// Of the requests that are being answered, by whatever tells them apart.
    streams: Vec<(usize, Deadline)>,
    /// Of answers that were cut, and of which bytes are still to be written.
    retired: Vec<Deadline>,
    /// Of answers that were cut, and of which bytes may be written at any time.
    kept: Vec<Deadline>,
}

// === impl Deadlines ===

impl Deadlines {
    pub(super) fn any_passed(&self, now: Instant) -> bool {
        let own = self.own.iter();
        let streams = self.streams.iter().map(|(_, deadline)| deadline);
        let mut all = own.chain(streams).chain(&self.retired).chain(&self.kept);
        all.any(|deadline| deadline.passed(now))
    }

    pub(super) fn add(&mut self, id: usize, deadline: Deadline) {
        self.remove(id);
        self.streams.push((id, deadline));
    }

    pub(super) fn remove(&mut self, id: usize) -> Option<Deadline> {
        let at = self.streams.iter().position(|(of, _)| *of == id)?;
        Some(self.streams.swap_remove(at).1)
    }

    /// Forgets a request's deadline, at once or, where `holds_bytes`, when they are written.
    pub(super) fn retire(&mut self, id: usize, holds_bytes: bool) {
        let deadline = self.remove(id);
        if holds_bytes {
            self.retired.extend(deadline);
        }
    }

    pub(super) fn forget_retired(&mut self) {
        self.retired.clear();
    }

    pub(super) fn keep(&mut self, deadline: Deadline) {
        self.kept.push(deadline);
    }
}
