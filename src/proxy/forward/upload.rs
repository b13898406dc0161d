//! A request's body that streams through, part of which may have been read ahead.
//!
//! A small body is read before its turn asks for the lock: who doesn't send it keeps no session busy.
//!
//! A client that has sent more than its connection's buffers hold is not seen to leave: its closing
//! stands behind bytes that nobody reads. So the body of a turn that waits is read ahead, within the
//! limit of a body that is read for its session and what there is for all of them.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::headers;
use super::response_timeout::UploadProgress;
use crate::budget::{Budget, Reservation};
use crate::proxy::body_timer::{
    BodyLimits, BodyReadError, BodyTimer, is_empty, length, next_frame,
};
use crate::wire;

/// A body, as it comes in.
pub(in crate::proxy) struct Upload {
    ahead: VecDeque<Frame<Bytes>>,
    rest: Incoming,
    /// For what was read ahead.
    reserved: Option<Reservation>,
    /// Told of each piece that goes out.
    progress: Option<Arc<UploadProgress>>,
    /// Told of each piece that comes in, where the connection can't tell of which request it is.
    stream: Option<wire::Bounds>,
    /// The headers that routes read, which no trailer may be. `None`: no trailer passes.
    trailers: Option<Arc<[HeaderName]>>,
}

/// Where bytes that are read ahead are counted, and up to how many of all bodies.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct ReadAheadLimit<'b> {
    pub(in crate::proxy) budget: &'b Budget,
    pub(in crate::proxy) most: usize,
}

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
            stream: client.is_for_stream().then(|| client.clone()),
            trailers,
        }
    }

    /// Reads it to its end, if it is announced and no longer than `most`; or as much of it as there is
    /// room for.
    ///
    /// # Errors
    /// When it passes one of its limits, or is broken off.
    pub(super) async fn read_if_small(
        &mut self,
        most: usize,
        room: ReadAheadLimit<'_>,
        limits: BodyLimits,
    ) -> Result<(), BodyReadError> {
        let announced = self.rest.size_hint().exact();
        if announced.is_some_and(|length| (1..=most as u64).contains(&length)) {
            let mut timer = BodyTimer::new(limits);
            self.read(usize::MAX, room, Some(&mut timer)).await?;
        }
        Ok(())
    }

    /// Reads ahead, up to so many bytes. Resolves only when the body is broken off, and loses nothing
    /// when it is dropped.
    pub(super) async fn read_ahead(
        &mut self,
        most: usize,
        room: ReadAheadLimit<'_>,
    ) -> BodyReadError {
        match self.read(most, room, None).await {
            Ok(()) => pending().await,
            Err(unread) => unread,
        }
    }

    async fn read(
        &mut self,
        most: usize,
        room: ReadAheadLimit<'_>,
        mut timer: Option<&mut BodyTimer>,
    ) -> Result<(), BodyReadError> {
        let reserved = self.reserved.get_or_insert_with(|| room.budget.reserve());
        let mut read = 0;
        while read < most && room.budget.bytes() < room.most && !self.rest.is_end_stream() {
            let frame = match &mut timer {
                Some(timer) => timer.frame(&mut self.rest).await?,
                None => next_frame(&mut self.rest).await?,
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

    /// How it goes out from now on; `None`: there is no more of it to come.
    pub(super) fn watched(
        &mut self,
        limits: BodyLimits,
        begun: Instant,
    ) -> Option<Arc<UploadProgress>> {
        // What has come by now needs no client.
        let is_all_there = self.rest.is_end_stream();
        self.progress = (!is_all_there).then(|| Arc::new(UploadProgress::new(limits, begun)));
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

/// What a piece that is kept costs, in bytes: a body of single bytes, each a chunk of its own, costs
/// a hundred times what it says.
fn weight(piece: &Frame<Bytes>) -> usize {
    size_of::<Frame<Bytes>>() + length(piece)
}
