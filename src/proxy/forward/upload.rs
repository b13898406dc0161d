//! A request's body that streams through, part of which may have been read ahead.
//!
//! A client that has sent more than its connection's buffers hold is not seen to leave: its closing
//! stands behind bytes that nobody reads. So the body of a turn that waits is read ahead, within the
//! limit of a body that is read for its session and what there is for all of them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::due::Progress;
use super::headers;
use crate::budget::{Budget, Reserved};
use crate::wire;

/// A body, as it comes in.
pub(in crate::proxy) struct Upload {
    ahead: VecDeque<Piece>,
    rest: Incoming,
    /// For what was read ahead.
    reserved: Option<Reserved>,
    /// Told of each piece that goes out.
    progress: Option<Arc<Progress>>,
    /// Told of each piece that comes in, where the connection can't tell of which request it is.
    stream: Option<wire::Bounds>,
    /// The headers that routes read, which no trailer may be. `None`: no trailer passes.
    trailers: Option<Arc<[HeaderName]>>,
}

type Piece = Result<Frame<Bytes>, hyper::Error>;

// === impl Upload ===

impl Upload {
    /// A body of which nothing has been read.
    pub(in crate::proxy) fn new(
        rest: Incoming,
        client: &wire::Bounds,
        trailers: Option<Arc<[HeaderName]>>,
    ) -> Self {
        Self {
            ahead: VecDeque::new(),
            rest,
            reserved: None,
            progress: None,
            stream: client.is_of_a_stream().then(|| client.clone()),
            trailers,
        }
    }

    /// Reads ahead, up to so many bytes of it and so many of all bodies. Never resolves, and loses
    /// nothing when it is dropped.
    pub(super) async fn read_ahead(
        &mut self,
        most: usize,
        (budget, most_of_all): (&Budget, usize),
    ) -> Infallible {
        let reserved = self.reserved.get_or_insert_with(|| budget.reserve());
        let mut read = 0;
        while read < most && budget.bytes() < most_of_all {
            let frame = poll_fn(|cx| Pin::new(&mut self.rest).poll_frame(cx)).await;
            let Some(frame) = frame else {
                break;
            };
            if frame.as_ref().is_ok_and(is_nothing) {
                continue;
            }
            let weight = weight(&frame);
            read += weight;
            reserved.add(weight);
            let is_last = frame.is_err();
            self.ahead.push_back(frame);
            if is_last {
                break;
            }
        }
        pending().await
    }

    /// How it goes out from now on; `None`: there is no more of it to come.
    pub(super) fn watched(&mut self, begun: Instant) -> Option<Arc<Progress>> {
        self.progress = (!self.is_end_stream()).then(|| Arc::new(Progress::new(begun)));
        self.progress.clone()
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
        let mut polled = match self.ahead.pop_front() {
            None => Pin::new(&mut self.rest).poll_frame(cx),
            Some(frame) => {
                if let Some(reserved) = &mut self.reserved {
                    reserved.shrink(weight(&frame));
                }
                Poll::Ready(Some(frame))
            }
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(stream) = &self.stream {
                stream.touch();
            }
            match (frame.trailers_mut(), &self.trailers) {
                (None, _) => {}
                (Some(trailers), Some(read)) => headers::clean_trailers(trailers, read),
                (Some(_), None) => polled = Poll::Ready(None),
            }
        }
        if let Some(progress) = &self.progress {
            match &polled {
                Poll::Pending => progress.stalled(),
                // A frame without a byte is no sign of life.
                Poll::Ready(Some(Ok(frame))) if is_nothing(frame) => {}
                Poll::Ready(_) => progress.moved(),
            }
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

/// A frame without a byte.
fn is_nothing(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_some_and(Bytes::is_empty)
}

/// What a piece that is kept costs, in bytes: a body of single bytes, each a chunk of its own, costs
/// a hundred times what it says.
fn weight(piece: &Piece) -> usize {
    let data = piece.as_ref().ok().and_then(Frame::data_ref);
    size_of::<Piece>() + data.map_or(0, Bytes::len)
}
