//! A request's body that streams through, part of which may have been read ahead.
//!
//! A client that has sent more than its connection's buffers hold is not seen to leave: its closing
//! stands behind bytes that nobody reads. So the body of a turn that waits is read ahead, within the
//! limit of a body that is read for its session.
//!
//! As long as a body moves the backend can't be expected to answer, however slow its client is: the
//! time for an answer begins anew with each piece ([`AnswerDue`]).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Outgoing;

/// A body, as it comes in.
pub(in crate::proxy) struct Upload {
    ahead: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
    /// Told of each piece that goes out.
    progress: Option<Arc<Progress>>,
}

/// When the head of an answer is due.
pub(in crate::proxy) struct AnswerDue {
    limit: Duration,
    begun: Instant,
    /// Of a request whose body was not all there when it began.
    progress: Option<Arc<Progress>>,
}

/// When a piece of a request went out last, in nanoseconds after it began.
struct Progress {
    begun: Instant,
    moved: AtomicU64,
}

// === impl Upload ===

impl Upload {
    /// A body of which nothing has been read.
    pub(in crate::proxy) fn new(rest: Incoming) -> Self {
        Self {
            ahead: VecDeque::new(),
            rest,
            progress: None,
        }
    }

    /// Reads ahead, up to so many bytes. Never resolves, and loses nothing when it is dropped.
    pub(super) async fn read_ahead(&mut self, most: usize) -> Infallible {
        let mut read = 0;
        while read < most {
            let frame = poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await;
            let Some(frame) = frame else {
                break;
            };
            let data = frame.as_ref().ok().and_then(Frame::data_ref);
            read += data.map_or(0, Bytes::len);
            let is_last = frame.is_err();
            self.ahead.push_back(frame);
            if is_last {
                break;
            }
        }
        pending().await
    }
}

// === impl AnswerDue ===

impl AnswerDue {
    /// So long after now, or after the body has moved last.
    pub(in crate::proxy) fn within(limit: Duration, body: &mut Outgoing) -> Self {
        let begun = Instant::now();
        let mut progress = None;
        if let Outgoing::Streamed(upload) = body
            && !upload.is_end_stream()
        {
            let moved = AtomicU64::new(0);
            progress = Some(Arc::new(Progress { begun, moved }));
            upload.progress.clone_from(&progress);
        }
        Self {
            limit,
            begun,
            progress,
        }
    }

    /// The moment, as things stand: it may move on.
    pub(in crate::proxy) fn at(&self) -> Instant {
        let progress = self.progress.as_ref();
        let moved = progress.map_or(0, |progress| progress.moved.load(Ordering::Relaxed));
        self.begun + Duration::from_nanos(moved) + self.limit
    }
}

// === impl Body ===

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        };
        if let (Poll::Ready(_), Some(progress)) = (&polled, &self.progress) {
            let after = progress.begun.elapsed().as_nanos();
            let after = u64::try_from(after).unwrap_or(u64::MAX);
            progress.moved.store(after, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let frames = self.ahead.iter().flatten();
        let ahead: usize = frames.filter_map(Frame::data_ref).map(Bytes::len).sum();
        let (ahead, rest) = (ahead as u64, self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}
