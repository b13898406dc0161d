//! When an answer is due, and when a request that is still on its way is given up.
//!
//! As long as a body moves the backend can't be expected to answer, however slow its client is: the
//! time for an answer begins anew with each piece. While the backend wants more and the client sends
//! nothing, that silence is the client's ([`BodyTimer`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Outgoing;
use crate::proxy::body_timer::{BodyLimits, BodyTimeout, BodyTimer};

/// When the head of an answer is due.
pub(in crate::proxy) struct AnswerDue {
    begun: Instant,
    /// For the answer, once the request is out or has stopped.
    answer: Duration,
    /// Of a request whose body was not all there when it began.
    progress: Option<Arc<Progress>>,
}

/// What is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Overdue {
    /// The backend's answer.
    Answer,
    /// More of the client's body.
    Body(BodyTimeout),
}

/// How a body goes out. One side notes what moves, the other looks at the time.
pub(super) struct Progress(Mutex<Moves>);

struct Moves {
    /// When a piece of it went out last.
    last: Instant,
    timer: BodyTimer,
}

// === impl AnswerDue ===

impl AnswerDue {
    /// So long after now, or after the body has moved last, which has to keep to its `limits`.
    pub(in crate::proxy) fn within(
        answer: Duration,
        limits: BodyLimits,
        body: &mut Outgoing,
    ) -> Self {
        let begun = Instant::now();
        let progress = match body {
            Outgoing::Streamed(upload) => upload.watched(limits, begun),
            Outgoing::Read(_) | Outgoing::Nothing => None,
        };
        Self {
            begun,
            answer,
            progress,
        }
    }

    /// When the answer is due, as things stand: it may move on.
    pub(in crate::proxy) fn at(&self) -> Instant {
        let progress = self.progress.as_ref();
        progress.map_or(self.begun, |progress| progress.moves().last) + self.answer
    }

    /// When to look again.
    pub(in crate::proxy) fn next(&self) -> Instant {
        let now = Instant::now();
        let body = self.progress.as_ref();
        let body = body.map(|progress| progress.moves().timer.due(now));
        body.map_or(self.at(), |due| due.min(self.at()))
    }

    /// What is overdue at `now`.
    pub(in crate::proxy) fn overdue(&self, now: Instant) -> Option<Overdue> {
        let body = self.progress.as_ref();
        match body.and_then(|progress| progress.moves().timer.overdue(now)) {
            Some(limit) => Some(Overdue::Body(limit)),
            None => (now >= self.at()).then_some(Overdue::Answer),
        }
    }
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(limits: BodyLimits, begun: Instant) -> Self {
        Self(Mutex::new(Moves {
            last: begun,
            timer: BodyTimer::new(limits),
        }))
    }

    /// A piece of so many bytes went out, or the end.
    pub(super) fn moved(&self, bytes: usize) {
        let now = Instant::now();
        let mut moves = self.moves();
        moves.last = now;
        moves.timer.came(bytes, now);
    }

    /// More is wanted, and there is nothing.
    pub(super) fn stalled(&self) {
        self.moves().timer.wait(Instant::now());
    }

    fn moves(&self) -> MutexGuard<'_, Moves> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
