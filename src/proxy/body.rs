//! The body of a response: of an error response, or of the backend's response with the turn's lock.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::stream::{GuardedBody, ResponseAborted};

/// The body of a response.
pub struct ProxyBody(ProxyBodyKind);

#[expect(
    clippy::large_enum_variant,
    reason = "most are of the large kind, and each would cost an allocation"
)]
enum ProxyBodyKind {
    Whole(Full<Bytes>),
    Guarded(GuardedBody),
}

// === impl ProxyBody ===

impl ProxyBody {
    /// A body that the proxy has made itself.
    pub(super) fn whole(body: Bytes) -> Self {
        Self(ProxyBodyKind::Whole(Full::new(body)))
    }

    /// The body of a backend's response.
    pub(super) fn guarded(body: GuardedBody) -> Self {
        Self(ProxyBodyKind::Guarded(body))
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        match &mut self.0 {
            ProxyBodyKind::Whole(body) => {
                let frame = Pin::new(body).poll_frame(cx);
                frame.map_err(|never| match never {})
            }
            ProxyBodyKind::Guarded(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            ProxyBodyKind::Whole(body) => body.is_end_stream(),
            ProxyBodyKind::Guarded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            ProxyBodyKind::Whole(body) => body.size_hint(),
            ProxyBodyKind::Guarded(body) => body.size_hint(),
        }
    }
}
