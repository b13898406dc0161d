//! A request's body that streams through, part of which may have been read ahead.
//!
//! A client that has sent more than its connection's buffers hold is not seen to leave: its closing
//! stands behind bytes that nobody reads. So the body of a turn that waits is read ahead, within the
//! limit of a body that is read for its session.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A body, as it comes in.
pub(in crate::proxy) struct Upload {
    ahead: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

// === impl Upload ===

impl Upload {
    /// A body of which nothing has been read.
    pub(in crate::proxy) fn new(rest: Incoming) -> Self {
        Self {
            ahead: VecDeque::new(),
            rest,
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

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
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
