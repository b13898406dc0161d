//! The client of a request, and the state that its handler and its HTTP/1 connection share while the
//! request is served.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::bad_request::BadRequest;
use crate::http_syntax;
use crate::wire::Bounds;

/// The client of a request.
#[derive(Clone, Debug)]
pub struct ClientConnection {
    /// The address of the client, or of the last proxy before this one; `None` over a Unix socket.
    pub ip: Option<IpAddr>,
    /// The address as a header value, made once for all requests of the connection; `None` over a Unix
    /// socket.
    pub ip_value: Option<HeaderValue>,
    /// The scheme that the client uses: http or https.
    pub scheme: Scheme,
    /// The bounds of the connection (HTTP/1) or of the request's stream (HTTP/2).
    pub bounds: Bounds,
    /// `None` over HTTP/2.
    pub(crate) link: Option<ClientLink>,
}

/// Sends interim responses (1xx, RFC 9110 §15.2) to a client, before the final response.
#[derive(Clone, Debug)]
pub struct InterimResponses(ClientLink);

/// The interim responses that a handler has sent, and what became of its request's body. Clones belong to
/// the same HTTP/1 connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientLink(Arc<ClientLinkState>);

#[derive(Debug, Default)]
struct ClientLinkState {
    interim: Mutex<BytesMut>,
    has_interim: AtomicBool,
    has_malformed_body: AtomicBool,
    /// The request has a body that is not over, whoever has it.
    has_body: AtomicBool,
    /// The client sends its body only when it is asked for it (`expect: 100-continue`), and isn't yet.
    is_client_waiting: AtomicBool,
    /// The rest of a body that its handler has dropped.
    unread: Mutex<Option<Incoming>>,
    /// Wakes the connection's task when its handler has dropped a body.
    body_waker: AtomicWaker,
}

/// How many bytes of interim responses may wait for a client: a few responses. Further ones are
/// dropped.
const MAX_INTERIM: usize = 16 << 10;

// === impl ClientConnection ===

impl ClientConnection {
    /// Sends interim responses to the client; `None` over HTTP/2, where hyper can't send any.
    pub fn interim(&self) -> Option<InterimResponses> {
        self.link.clone().map(InterimResponses)
    }

    /// Why the rest of the request's body can't be read; `None`: the client isn't at fault.
    pub fn bad_body(&self) -> Option<BadRequest> {
        let has_malformed_body = self.link.as_ref()?.has_malformed_body();
        has_malformed_body.then_some(BadRequest::Malformed("the body's chunks are malformed"))
    }
}

// === impl InterimResponses ===

impl InterimResponses {
    /// Sends one interim response when the connection is polled next. Drops it if the final response
    /// has begun by then, or if too many wait.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let mut head = BytesMut::new();
        http_syntax::write_head(status, headers, &mut head);
        head.extend_from_slice(b"\r\n");
        let link = &self.0.0;
        let mut waiting = link.interim.lock();
        if waiting.len() + head.len() <= MAX_INTERIM {
            waiting.extend_from_slice(&head);
            link.has_interim.store(true, Ordering::Relaxed);
        }
    }
}

// === impl ClientLink ===

impl ClientLink {
    /// Takes the interim responses that wait; `None`: none does.
    pub(crate) fn take_interim(&self) -> Option<Bytes> {
        let has_interim = self.0.has_interim.load(Ordering::Relaxed);
        has_interim.then(|| {
            self.0.has_interim.store(false, Ordering::Relaxed);
            std::mem::take(&mut *self.0.interim.lock()).freeze()
        })
    }

    /// Notes that a request with a body begins; the client `waits` to be asked for it, or doesn't.
    pub(super) fn begin_body(&self, waits: bool) {
        self.0.has_body.store(true, Ordering::Relaxed);
        self.0.is_client_waiting.store(waits, Ordering::Relaxed);
    }

    /// Notes that the body was asked for.
    pub(super) fn on_body_polled(&self) {
        if self.is_client_waiting() {
            self.0.is_client_waiting.store(false, Ordering::Relaxed);
        }
    }

    /// Takes the rest of a body from its handler; `None`: it has been read to its end.
    pub(super) fn end_body(&self, rest: Option<Incoming>) {
        match rest {
            None => self.0.has_body.store(false, Ordering::Relaxed),
            Some(rest) => {
                *self.0.unread.lock() = Some(rest);
                self.0.body_waker.wake();
            }
        }
    }

    /// Whether the request has a body that is not over.
    pub(crate) fn has_body(&self) -> bool {
        self.0.has_body.load(Ordering::Relaxed)
    }

    /// Whether the client waits to be asked for the request's body.
    pub(crate) fn is_client_waiting(&self) -> bool {
        self.0.is_client_waiting.load(Ordering::Relaxed)
    }

    /// Takes what is left of a body that its handler has dropped; `None`: there is no such body.
    pub(crate) fn take_unread(&self) -> Option<Incoming> {
        let unread = self.0.unread.lock().take();
        if unread.is_some() {
            self.0.has_body.store(false, Ordering::Relaxed);
        }
        unread
    }

    /// As [`ClientLink::take_unread`], and wakes the task when there is such a body later.
    pub(crate) fn poll_unread(&self, cx: &Context<'_>) -> Option<Incoming> {
        if !self.has_body() {
            return None;
        }
        self.0.body_waker.register(cx.waker());
        self.take_unread()
    }

    pub(crate) fn has_malformed_body(&self) -> bool {
        self.0.has_malformed_body.load(Ordering::Relaxed)
    }

    /// Notes that the request's body is malformed.
    pub(crate) fn set_malformed_body(&self) {
        self.0.has_malformed_body.store(true, Ordering::Relaxed);
    }
}
