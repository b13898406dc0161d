//! The timeout for the head of a response, and the timeouts of a request's body that is still being sent.
//!
//! A backend usually responds when it has the whole body. So each piece of the body that is sent restarts
//! the timeout of the response. While the backend wants more of the body and the client sends none, the
//! client's time runs ([`BodyTimer`]).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::OutgoingBody;
use crate::proxy::body_timer::{BodyLimits, BodyTimeout, BodyTimer};

/// When the head of a response is due.
pub(in crate::proxy) struct ResponseTimeout {
    begun: Instant,
    /// How long the response may take after the last piece of the request.
    limit: Duration,
    /// How the body is sent; `None`: all of it was there when the request began.
    progress: Option<Arc<UploadProgress>>,
}

/// Which timeout has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ExpiredTimeout {
    /// The head of the backend's response.
    Response,
    /// A timeout of the request's body, which its client did not keep.
    Body(BodyTimeout),
}

/// How a body is sent. The body notes what was sent, and the timeout reads it.
pub(super) struct UploadProgress(Mutex<UploadTimes>);

struct UploadTimes {
    /// When a piece of the body was last sent.
    last: Instant,
    timer: BodyTimer,
    /// Nothing more of the body will be sent.
    is_over: bool,
}

/// How often a body is checked that is not waited for at the moment: its time may begin at any moment.
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(100);

// === impl ResponseTimeout ===

impl ResponseTimeout {
    /// A response is due `limit` after now, or after the last piece of `body`, which has to keep
    /// `limits`.
    pub(in crate::proxy) fn new(
        limit: Duration,
        limits: BodyLimits,
        body: &mut OutgoingBody,
    ) -> Self {
        let begun = Instant::now();
        let progress = match body {
            OutgoingBody::Streamed(upload) => upload.track_progress(limits, begun),
            OutgoingBody::Read(_) | OutgoingBody::Nothing => None,
        };
        Self {
            begun,
            limit,
            progress,
        }
    }

    /// When the response is due. Each piece of the body moves it.
    pub(in crate::proxy) fn response_due(&self) -> Instant {
        let progress = self.progress.as_ref();
        progress.map_or(self.begun, |progress| progress.times().last) + self.limit
    }

    /// When a timeout may pass next.
    pub(in crate::proxy) fn next(&self) -> Instant {
        let body = self.progress.as_ref();
        let body = body.and_then(|progress| progress.times().next());
        body.map_or(self.response_due(), |next| next.min(self.response_due()))
    }

    /// The timeout that has passed at `now`.
    pub(in crate::proxy) fn expired(&self, now: Instant) -> Option<ExpiredTimeout> {
        let body = self.progress.as_ref();
        match body.and_then(|progress| progress.times().timer.overdue(now)) {
            Some(limit) => Some(ExpiredTimeout::Body(limit)),
            None => (now >= self.response_due()).then_some(ExpiredTimeout::Response),
        }
    }
}

// === impl UploadProgress ===

impl UploadProgress {
    /// The progress of a body that has to keep `limits`, and of which nothing is sent yet.
    pub(super) fn new(limits: BodyLimits, begun: Instant) -> Self {
        Self(Mutex::new(UploadTimes {
            last: begun,
            timer: BodyTimer::new(limits),
            is_over: false,
        }))
    }

    /// Notes that a piece of `bytes` bytes was sent, and whether it was the last one.
    pub(super) fn moved(&self, bytes: usize, is_over: bool) {
        let now = Instant::now();
        let mut times = self.times();
        times.last = now;
        times.is_over = is_over;
        times.timer.came(bytes, now);
    }

    /// Notes that the backend wants more of the body, and nothing has arrived.
    pub(super) fn stalled(&self) {
        self.times().timer.wait(Instant::now());
    }

    fn times(&self) -> MutexGuard<'_, UploadTimes> {
        self.0.lock()
    }
}

// === impl UploadTimes ===

impl UploadTimes {
    /// When a timeout of the body may pass next; `None`: never.
    fn next(&self) -> Option<Instant> {
        if self.is_over {
            return None;
        }
        let soon = || Instant::now() + self.timer.patience().max(CHECK_AGAIN_AFTER);
        Some(self.timer.due().unwrap_or_else(soon))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_body_is_checked_no_more_often_than_it_needs() {
        crate::time_limit::limit_this_test();
        let limits = BodyLimits {
            silence: SECOND * 30,
            rate: 100,
            total: SECOND * 300,
        };
        let progress = Arc::new(UploadProgress::new(limits, Instant::now()));
        let due = ResponseTimeout {
            begun: Instant::now(),
            limit: SECOND * 300,
            progress: Some(Arc::clone(&progress)),
        };
        // Until there is next to nothing left of its time.
        while progress.times().timer.patience() > SECOND / 100 {
            progress.stalled();
            let patience = progress.times().timer.patience();
            assert_eq!(due.next(), Instant::now() + patience, "then it is overdue");
            advance((patience - SECOND / 200).min(SECOND)).await;
            progress.moved(1, false);
        }
        let next = due.next();
        let soon = Instant::now() + CHECK_AGAIN_AFTER;
        assert_eq!(next, soon, "what nobody waits for is checked now and then");
        progress.stalled();
        assert!(due.next() < next, "what is waited for is overdue soon");
        progress.moved(0, true);
        let response = due.response_due();
        assert_eq!(due.next(), response, "what is over is never overdue");
        let expired = due.expired(response);
        assert_eq!(expired, Some(ExpiredTimeout::Response), "the response is");
    }
}
