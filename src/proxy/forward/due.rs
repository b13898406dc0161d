//! When an answer is due, and when a request that is still on its way is given up.
//!
//! As long as a body moves the backend can't be expected to answer, however slow its client is: the
//! time for an answer begins anew with each piece. While the backend wants more and the client sends
//! nothing, that silence is the client's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Outgoing;

/// When the head of an answer is due.
pub(in crate::proxy) struct AnswerDue {
    begun: Instant,
    /// For the answer, once the request is out or has stopped.
    answer: Duration,
    /// Without a byte of the request's body.
    silence: Duration,
    /// Of a request whose body was not all there when it began.
    progress: Option<Arc<Progress>>,
}

/// What is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Overdue {
    /// The backend's answer.
    Answer,
    /// More of the client's body.
    Body,
}

/// How a body goes out, in nanoseconds after its request began.
pub(super) struct Progress {
    begun: Instant,
    /// When a piece of it went out last.
    moved: AtomicU64,
    /// Since when more of it is waited for; [`NOT_AWAITED`] while something comes, or nobody wants it.
    awaited: AtomicU64,
}

const NOT_AWAITED: u64 = u64::MAX;

// === impl AnswerDue ===

impl AnswerDue {
    /// So long after now, or after the body has moved last.
    pub(in crate::proxy) fn within(
        answer: Duration,
        silence: Duration,
        body: &mut Outgoing,
    ) -> Self {
        let begun = Instant::now();
        let progress = match body {
            Outgoing::Streamed(upload) => upload.watched(begun),
            Outgoing::Read(_) | Outgoing::Nothing => None,
        };
        Self {
            begun,
            answer,
            silence,
            progress,
        }
    }

    /// When the answer is due, as things stand: it may move on.
    pub(in crate::proxy) fn at(&self) -> Instant {
        let moved = self.progress.as_ref().map(|progress| &progress.moved);
        let moved = moved.map_or(0, |moved| moved.load(Ordering::Relaxed));
        self.begun + Duration::from_nanos(moved) + self.answer
    }

    /// When to look again.
    pub(in crate::proxy) fn next(&self) -> Instant {
        let silent = self.progress.as_ref().map(|progress| {
            // Not awaited at the moment: it could be from now on at the earliest.
            progress.awaited().unwrap_or_else(Instant::now) + self.silence
        });
        silent.map_or(self.at(), |silent| silent.min(self.at()))
    }

    /// What is overdue at `now`.
    pub(in crate::proxy) fn overdue(&self, now: Instant) -> Option<Overdue> {
        let awaited = self.progress.as_ref().and_then(|it| it.awaited());
        if awaited.is_some_and(|since| now >= since + self.silence) {
            Some(Overdue::Body)
        } else if now >= self.at() {
            Some(Overdue::Answer)
        } else {
            None
        }
    }
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            moved: AtomicU64::new(0),
            awaited: AtomicU64::new(NOT_AWAITED),
        }
    }

    /// A piece went out, or the end.
    pub(super) fn moved(&self) {
        self.moved.store(self.elapsed(), Ordering::Relaxed);
        self.awaited.store(NOT_AWAITED, Ordering::Relaxed);
    }

    /// More is wanted, and there is nothing.
    pub(super) fn stalled(&self) {
        if self.awaited.load(Ordering::Relaxed) == NOT_AWAITED {
            self.awaited.store(self.elapsed(), Ordering::Relaxed);
        }
    }

    fn awaited(&self) -> Option<Instant> {
        match self.awaited.load(Ordering::Relaxed) {
            NOT_AWAITED => None,
            since => Some(self.begun + Duration::from_nanos(since)),
        }
    }

    fn elapsed(&self) -> u64 {
        // 584 years are as good as for ever.
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(NOT_AWAITED - 1)
    }
}
