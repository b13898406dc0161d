//! A request's body that is streamed, part of which may have been read ahead.
//!
//! A small body is read before its turn asks for the lock, so that a client that doesn't send it blocks
//! no session. The body of a turn that waits is read ahead, because the end of a connection is behind
//! unread bytes: the proxy could not see that the client has left. What is read ahead is limited, by
//! body and for all bodies together.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::headers;
use super::response_timeout::UploadProgress;
use crate::budget::{Budget, Reservation};
use crate::listen::ClientBody;
use crate::proxy::body_timer::{BodyLimits, BodyReadError, BodyTimer, is_empty, length};
use crate::wire;

/// A body that is streamed as it arrives.
pub(in crate::proxy) struct Upload {
    /// What was read ahead, and is not sent yet.
    ahead: VecDeque<Frame<Bytes>>,
    rest: ClientBody,
    /// The memory of what was read ahead.
    reserved: Option<Reservation>,
    /// Notes each piece that is sent.
    progress: Option<Arc<UploadProgress>>,
    /// The bounds of an HTTP/2 stream, which note each piece that arrives; `None` for HTTP/1.1, whose
    /// connection notes it.
    stream: Option<wire::Bounds>,
    /// The headers that routes read, which trailers may not have; `None`: no trailer passes.
    trailers: Option<Arc<[HeaderName]>>,
}

/// The limit for reading ahead: not while all bodies together take `most` bytes of `budget`.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct ReadAheadLimit<'b> {
    pub(in crate::proxy) budget: &'b Budget,
    pub(in crate::proxy) most: usize,
}

// === impl Upload ===

impl Upload {
    /// A body of which nothing is read yet.
    pub(in crate::proxy) fn new(
        rest: ClientBody,
        client: &wire::Bounds,
        trailers: Option<Arc<[HeaderName]>>,
    ) -> Self {
        Self {
            ahead: VecDeque::new(),
            rest,
            reserved: None,
            progress: None,
            stream: client.is_for_stream().then(|| client.clone()),
            trailers,
        }
    }

    /// Reads the body to its end, if its length is known and at most `most` bytes; less of it when
    /// `read_ahead` is reached.
    ///
    /// # Errors
    /// When the body passes one of its limits, or breaks off.
    pub(super) async fn read_if_small(
        &mut self,
        most: usize,
        read_ahead: ReadAheadLimit<'_>,
        limits: BodyLimits,
    ) -> Result<(), BodyReadError> {
        let announced = self.rest.size_hint().exact();
        if announced.is_some_and(|length| (1..=most as u64).contains(&length)) {
            let mut timer = BodyTimer::new(limits);
            self.read(usize::MAX, read_ahead, Some(&mut timer)).await?;
        }
        Ok(())
    }

    /// Reads up to `most` bytes ahead. Returns only when the body breaks off. Cancel-safe.
    pub(super) async fn read_ahead(
        &mut self,
        most: usize,
        read_ahead: ReadAheadLimit<'_>,
    ) -> BodyReadError {
        match self.read(most, read_ahead, None).await {
            Ok(()) => pending().await,
            Err(error) => error,
        }
    }

    async fn read(
        &mut self,
        most: usize,
        read_ahead: ReadAheadLimit<'_>,
        mut timer: Option<&mut BodyTimer>,
    ) -> Result<(), BodyReadError> {
        let reserved = self
            .reserved
            .get_or_insert_with(|| read_ahead.budget.reserve());
        let mut read = 0;
        while read < most
            && read_ahead.budget.bytes() < read_ahead.most
            && !self.rest.is_end_stream()
        {
            let frame = match &mut timer {
                Some(timer) => timer.frame(&mut self.rest).await?,
                None => self.rest.frame().await.transpose()?,
            };
            let Some(frame) = frame else {
                break;
            };
            if is_empty(&frame) {
                continue;
            }
            let weight = weight(&frame);
            read += weight;
            reserved.add(weight);
            self.ahead.push_back(frame);
        }
        Ok(())
    }

    /// The progress of the body from now on; `None`: all of it has arrived.
    pub(super) fn track_progress(
        &mut self,
        limits: BodyLimits,
        begun: Instant,
    ) -> Option<Arc<UploadProgress>> {
        let has_arrived = self.rest.is_end_stream();
        self.progress = (!has_arrived).then(|| Arc::new(UploadProgress::new(limits, begun)));
        self.progress.clone()
    }
}

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
                Poll::Ready(Some(Ok(frame)))
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
                Poll::Ready(Some(Ok(frame))) if is_empty(frame) => {}
                Poll::Ready(Some(Ok(frame))) => {
                    progress.moved(length(frame), self.is_end_stream());
                }
                Poll::Ready(_) => progress.moved(0, true),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead: usize = self.ahead.iter().map(length).sum();
        let (ahead, rest) = (ahead as u64, self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

/// The memory that a buffered frame takes, in bytes. A body in chunks of one byte takes a hundred times its
/// length.
fn weight(piece: &Frame<Bytes>) -> usize {
    size_of::<Frame<Bytes>>() + length(piece)
}
