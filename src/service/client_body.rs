//! The body of a request, as a handler gets it.
//!
//! Invariant: a body that a handler drops before its end is not lost. hyper would close an HTTP/1
//! connection for it, and the client's next request on that connection would fail. The rest goes to the
//! connection instead, which reads it away or says that it closes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::client::ClientLink;

/// The body of a request that arrives from a client.
#[derive(Debug)]
pub struct ClientBody {
    /// `None` once it is over.
    incoming: Option<Incoming>,
    /// Where the rest goes; `None`: hyper takes care of it (HTTP/2), or there is none.
    link: Option<ClientLink>,
    /// The number of its request on the connection.
    request: u64,
    /// The client waits to be asked for it.
    waits: bool,
}

// === impl ClientBody ===

impl ClientBody {
    /// The body of the request that hyper hands out now over HTTP/1; its rest goes to `link`. If the client
    /// `waits` for an interim response before it sends the body (RFC 9110 §10.1.1), it gets one when the body is
    /// first polled.
    pub(crate) fn new(incoming: Incoming, link: &ClientLink, waits: bool) -> Self {
        let has_body = !incoming.is_end_stream();
        let request = link.begin_body(has_body, waits);
        Self {
            incoming: Some(incoming),
            link: has_body.then(|| link.clone()),
            request,
            waits,
        }
    }

    /// Whether the client waits to be asked for the body, and hasn't been.
    pub(crate) fn is_withheld(&self) -> bool {
        self.waits && self.incoming.is_some()
    }

    fn on_end(&mut self) {
        self.incoming = None;
        if let Some(link) = self.link.take() {
            link.end_body(self.request, None);
        }
    }
}

impl From<Incoming> for ClientBody {
    /// A body whose rest hyper takes care of, as it does over HTTP/2.
    fn from(incoming: Incoming) -> Self {
        Self {
            incoming: Some(incoming),
            link: None,
            request: 0,
            waits: false,
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.waits
            && let Some(link) = &self.link
        {
            link.on_body_polled(self.request);
            self.waits = false;
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(incoming).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.on_end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        incoming.map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            let incoming = self.incoming.take();
            let rest = incoming.filter(|incoming| !incoming.is_end_stream());
            link.end_body(self.request, rest);
        }
    }
}
