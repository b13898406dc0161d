//! The body of an answer: the proxy's own, or the backend's under its guard.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::forward::Answer;
use super::record::Record;
use super::stream::{AnswerError, GuardedBody};

/// The body of an answer.
pub struct ProxyBody(Kind);

#[expect(
    clippy::large_enum_variant,
    reason = "most are of the large kind, and each would cost an allocation"
)]
enum Kind {
    Own(Full<Bytes>),
    Backend(GuardedBody<Answer, Record>),
}

// === impl ProxyBody ===

impl ProxyBody {
    pub(super) fn own(whole: impl Into<Bytes>) -> Self {
        Self(Kind::Own(Full::new(whole.into())))
    }

    pub(super) fn backend(body: GuardedBody<Answer, Record>) -> Self {
        Self(Kind::Backend(body))
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut self.0 {
            Kind::Own(whole) => {
                let frame = Pin::new(whole).poll_frame(cx);
                frame.map_err(|never| match never {})
            }
            Kind::Backend(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(whole) => whole.is_end_stream(),
            Kind::Backend(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(whole) => whole.size_hint(),
            Kind::Backend(body) => body.size_hint(),
        }
    }
}
