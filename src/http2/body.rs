//! The body of a response over HTTP/2. It ends with an error when its request reaches its bounds.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use thiserror::Error;

use crate::service::HeadReservation;
use crate::wire::{Bounds, Ended};

/// Counts the open streams of a connection: each stream owns a clone. Two more clones belong to the
/// observers, [`FrameWatcher`](super::frame_watcher::FrameWatcher) and the service.
#[derive(Clone, Default)]
pub(super) struct OpenStreams(Arc<()>);

/// What an open stream owns: its memory, and its place in the count. Dropping it returns both.
pub(super) struct StreamLease {
    pub(super) memory: HeadReservation,
    #[expect(dead_code, reason = "counts the stream until it is dropped")]
    pub(super) open: OpenStreams,
}

/// The body of a response.
pub(super) enum StreamBody<B> {
    /// The body of an error response to a request that was refused.
    Refused(Full<Bytes>),
    /// The body of a handler's response.
    Handler {
        /// `None` after the response was aborted.
        body: Option<Pin<Box<B>>>,
        bounds: Bounds,
        #[expect(dead_code, reason = "returned when the body is dropped")]
        lease: StreamLease,
    },
}

/// Why a response is aborted.
#[derive(Debug, Error)]
#[error("the request was aborted: {0:?}")]
struct StreamAborted(Ended);

// === impl OpenStreams ===

impl OpenStreams {
    const OBSERVERS: usize = 2;

    /// Whether no stream is open.
    pub(super) fn is_empty(&self) -> bool {
        Arc::strong_count(&self.0) <= Self::OBSERVERS
    }
}

// === impl StreamBody ===

impl<B> StreamBody<B> {
    pub(super) fn new(body: B, bounds: Bounds, lease: StreamLease) -> Self {
        Self::Handler {
            body: Some(Box::pin(body)),
            bounds,
            lease,
        }
    }
}

impl<B> Body for StreamBody<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Refused(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Handler { body, bounds, .. } => {
                if let Some(why) = bounds.ended() {
                    // Dropping the body gives the lock back, before anything else happens.
                    *body = None;
                    return Poll::Ready(Some(Err(StreamAborted(why).into())));
                }
                let Some(body) = body else {
                    return Poll::Ready(None);
                };
                let frame = body.as_mut().poll_frame(cx);
                if frame.is_ready() {
                    bounds.touch();
                }
                frame.map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Refused(body) => body.is_end_stream(),
            Self::Handler { body, .. } => body.as_ref().is_none_or(|body| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Refused(body) => body.size_hint(),
            Self::Handler { body, .. } => body
                .as_ref()
                .map_or(SizeHint::with_exact(0), |body| body.size_hint()),
        }
    }
}
