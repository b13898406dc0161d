//! The body of an answer over HTTP/2, which ends with an error when its request's bounds are reached.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use thiserror::Error;

use super::super::room::HeadReservation;
use crate::wire::{Bounds, Ended};

/// Each request of a connection has one as long as it is under way, and so have those who ask whether
/// there is any: whoever reads the connection, and whoever begins its requests.
#[derive(Clone, Default)]
pub(super) struct OpenStreams(Arc<()>);

/// What a request takes, and what says that there is one.
pub(super) type StreamLease = (HeadReservation, OpenStreams);

/// A handler's body, or one of this side's own.
pub(super) enum StreamBody<B> {
    Own(Full<Bytes>),
    /// `None` when it was cut. With what its request takes.
    Handlers(
        Option<Pin<Box<B>>>,
        Bounds,
        #[expect(dead_code, reason = "given back with it")] StreamLease,
    ),
}

/// Why an answer is aborted.
#[derive(Debug, Error)]
#[error("the request was ended: {0:?}")]
struct StreamAborted(Ended);

// === impl UnderWay ===

impl OpenStreams {
    /// Those who ask.
    const ASKING: usize = 2;

    /// Whether no request is.
    pub(super) fn is_none(&self) -> bool {
        Arc::strong_count(&self.0) <= Self::ASKING
    }
}

// === impl StreamBody ===

impl<B> StreamBody<B> {
    pub(super) fn new(body: B, bounds: Bounds, taking: StreamLease) -> Self {
        Self::Handlers(Some(Box::pin(body)), bounds, taking)
    }

    pub(super) fn own(body: Bytes) -> Self {
        Self::Own(Full::new(body))
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
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Handlers(body, bounds, _) => {
                if let Some(why) = bounds.ended() {
                    // The turn is let go of before anything else is done.
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
            Self::Own(body) => body.is_end_stream(),
            Self::Handlers(body, ..) => body.as_ref().is_none_or(|body| body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Handlers(Some(body), ..) => body.size_hint(),
            Self::Handlers(None, ..) => SizeHint::with_exact(0),
        }
    }
}
