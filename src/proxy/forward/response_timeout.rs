//! When an answer is due, and when a request that is still on its way is given up.
//!
//! As long as a body moves the backend can't be expected to answer, however slow its client is: the
//! time for an answer begins anew with each piece. While the backend wants more and the client sends
//! nothing, that silence is the client's ([`BodyTimer`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::OutgoingBody;
use crate::proxy::body_timer::{BodyLimits, BodyTimeout, BodyTimer};

/// When the head of an answer is due.
pub(in crate::proxy) struct ResponseTimeout {
    begun: Instant,
    /// For the answer, once the request is out or has stopped.
    answer: Duration,
    /// Of a request whose body was not all there when it began.
    progress: Option<Arc<UploadProgress>>,
}

/// What is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ExpiredTimeout {
    /// The head of the backend's response.
    Response,
    /// More of the client's body.
    Body(BodyTimeout),
}

/// How a body goes out. One side notes what moves, the other looks at the time.
pub(super) struct UploadProgress(Mutex<UploadTimes>);

struct UploadTimes {
    /// When a piece of it went out last.
    last: Instant,
    timer: BodyTimer,
    /// Nothing more of it will go out.
    is_over: bool,
}

/// How often at most a body is looked at that nobody waits for: its time may begin at any moment.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

// === impl AnswerDue ===

impl ResponseTimeout {
    /// So long after now, or after the body has moved last, which has to keep to its `limits`.
    pub(in crate::proxy) fn new(
        answer: Duration,
        limits: BodyLimits,
        body: &mut OutgoingBody,
    ) -> Self {
        let begun = Instant::now();
        let progress = match body {
            OutgoingBody::Streamed(upload) => upload.watched(limits, begun),
            OutgoingBody::Read(_) | OutgoingBody::Nothing => None,
        };
        Self {
            begun,
            answer,
            progress,
        }
    }

    /// When the answer is due, as things stand: it may move on.
    pub(in crate::proxy) fn response_due(&self) -> Instant {
        let progress = self.progress.as_ref();
        progress.map_or(self.begun, |progress| progress.moves().last) + self.answer
    }

    /// When to look again.
    pub(in crate::proxy) fn next(&self) -> Instant {
        let body = self.progress.as_ref();
        let body = body.and_then(|progress| progress.moves().next());
        body.map_or(self.response_due(), |next| next.min(self.response_due()))
    }

    /// What is overdue at `now`.
    pub(in crate::proxy) fn expired(&self, now: Instant) -> Option<ExpiredTimeout> {
        let body = self.progress.as_ref();
        match body.and_then(|progress| progress.moves().timer.overdue(now)) {
            Some(limit) => Some(ExpiredTimeout::Body(limit)),
            None => (now >= self.response_due()).then_some(ExpiredTimeout::Response),
        }
    }
}

// === impl Progress ===

impl UploadProgress {
    pub(super) fn new(limits: BodyLimits, begun: Instant) -> Self {
        Self(Mutex::new(UploadTimes {
            last: begun,
            timer: BodyTimer::new(limits),
            is_over: false,
        }))
    }

    /// A piece of so many bytes went out; `is_over`: it was the last one.
    pub(super) fn moved(&self, bytes: usize, is_over: bool) {
        let now = Instant::now();
        let mut moves = self.moves();
        moves.last = now;
        moves.is_over = is_over;
        moves.timer.came(bytes, now);
    }

    /// More is wanted, and there is nothing.
    pub(super) fn stalled(&self) {
        self.moves().timer.wait(Instant::now());
    }

    fn moves(&self) -> MutexGuard<'_, UploadTimes> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Moves ===

impl UploadTimes {
    /// When to look at the body again; `None`: there is no need to.
    fn next(&self) -> Option<Instant> {
        if self.is_over {
            return None;
        }
        let soon = || Instant::now() + self.timer.patience().max(LOOK_AGAIN_AFTER);
        Some(self.timer.due().unwrap_or_else(soon))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_body_is_looked_at_no_more_often_than_it_needs() {
        let limits = BodyLimits {
            silence: SECOND * 30,
            rate: 100,
            total: SECOND * 300,
        };
        let progress = Arc::new(UploadProgress::new(limits, Instant::now()));
        let due = ResponseTimeout {
            begun: Instant::now(),
            answer: SECOND * 300,
            progress: Some(Arc::clone(&progress)),
        };
        // Until there is next to nothing left of its time.
        while progress.moves().timer.patience() > SECOND / 100 {
            progress.stalled();
            let patience = progress.moves().timer.patience();
            assert_eq!(due.next(), Instant::now() + patience, "then it is overdue");
            advance((patience - SECOND / 200).min(SECOND)).await;
            progress.moved(1, false);
        }
        let next = due.next();
        assert_eq!(
            next,
            Instant::now() + LOOK_AGAIN_AFTER,
            "what nobody waits for is looked at now and then"
        );
        progress.stalled();
        assert!(due.next() < next, "what is waited for is overdue soon");
        progress.moved(0, true);
        assert_eq!(
            due.next(),
            due.response_due(),
            "what is over is never overdue"
        );
        assert_eq!(
            due.expired(due.response_due()),
            Some(ExpiredTimeout::Response),
            "the answer is"
        );
    }
}
