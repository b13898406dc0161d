//! The body of an answer: the proxy's own, or the backend's under its guard.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::forward::BackendBody;
use super::record::EndRecorder;
use super::stream::{GuardedBody, ResponseAborted};

/// The body of an answer.
pub struct ProxyBody(ProxyBodyKind);

#[expect(
    clippy::large_enum_variant,
    reason = "most are of the large kind, and each would cost an allocation"
)]
enum ProxyBodyKind {
    Own(Full<Bytes>),
    Backend(GuardedBody<BackendBody, EndRecorder>),
}

// === impl ProxyBody ===

impl ProxyBody {
    pub(super) fn own(whole: impl Into<Bytes>) -> Self {
        Self(ProxyBodyKind::Own(Full::new(whole.into())))
    }

    pub(super) fn backend(body: GuardedBody<BackendBody, EndRecorder>) -> Self {
        Self(ProxyBodyKind::Backend(body))
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
            ProxyBodyKind::Own(whole) => {
                let frame = Pin::new(whole).poll_frame(cx);
                frame.map_err(|never| match never {})
            }
            ProxyBodyKind::Backend(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            ProxyBodyKind::Own(whole) => whole.is_end_stream(),
            ProxyBodyKind::Backend(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            ProxyBodyKind::Own(whole) => whole.size_hint(),
            ProxyBodyKind::Backend(body) => body.size_hint(),
        }
    }
}
