//! The client of a request, and the state that its handler and its HTTP/1 connection share while the
//! request is served.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::bad_request::BadRequest;
use crate::deadline::Alarm;
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

/// What a handler and its HTTP/1 connection share: the interim responses that the handler has sent, and what
/// became of its request's body. Clones share one state.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientLink(Arc<ClientLinkState>);

#[derive(Debug, Default)]
struct ClientLinkState {
    interim: Mutex<BytesMut>,
    has_interim: AtomicBool,
    /// The number of the request whose body is malformed; 0: none is.
    malformed: AtomicU64,
    body: Mutex<CurrentBody>,
    /// Wakes the connection's task when a handler has dropped the current body.
    body_waker: AtomicWaker,
    /// The timer of the requests, which come one after another. It stays set when a request is over, so that the next one
    /// need not set it.
    alarm: Mutex<Alarm>,
}

/// The body of the request that was handed out last.
#[derive(Debug, Default)]
struct CurrentBody {
    /// The number of that request on its connection, counted from 1; 0: none was handed out.
    request: u64,
    /// The request has a body that is not over, whoever has it.
    is_open: bool,
    /// The client sends its body only when it is asked for it (`expect: 100-continue`), and isn't yet.
    is_client_waiting: bool,
    /// The rest, once its handler has dropped it.
    unread: Option<Incoming>,
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

    /// Whether the client sends the body of its request only when it is asked for it (`expect: 100-continue`), and
    /// has not been.
    pub fn withholds_body(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(ClientLink::is_client_waiting)
    }

    /// Ready once the moment that `due` gives has passed; see [`Alarm::poll`]. Over HTTP/2, where requests run at once,
    /// `own` is the timer. Call this in the task that serves the request.
    pub fn poll_alarm(
        &self,
        own: &mut Alarm,
        cx: &mut Context<'_>,
        due: impl Fn() -> Option<Instant>,
    ) -> Poll<()> {
        match &self.link {
            Some(link) => link.0.alarm.lock().poll(cx, due),
            None => own.poll(cx, due),
        }
    }

    /// Why the rest of the request's body can't be read; `None`: the client isn't at fault.
    pub fn bad_body(&self) -> Option<BadRequest> {
        let is_malformed = self.link.as_ref()?.is_body_malformed();
        is_malformed.then_some(BadRequest::Malformed("the body's chunks are malformed"))
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

    /// Notes that hyper hands out a request, and gives the request's number. `has_body`: it has a body. `waits`:
    /// the client sends the body only when asked (`expect: 100-continue`).
    pub(super) fn begin_body(&self, has_body: bool, waits: bool) -> u64 {
        let mut body = self.0.body.lock();
        let request = body.request + 1;
        // A body of an earlier request has been read to its end, whoever still has it.
        *body = CurrentBody {
            request,
            is_open: has_body,
            is_client_waiting: has_body && waits,
            unread: None,
        };
        request
    }

    /// Notes that the body of this request was asked for. An earlier request's body changes nothing.
    pub(super) fn on_body_polled(&self, request: u64) {
        let mut body = self.0.body.lock();
        if body.request == request {
            body.is_client_waiting = false;
        }
    }

    /// Takes the rest of this request's body from its handler; `None`: it has been read to its end. An earlier
    /// request's body changes nothing.
    pub(super) fn end_body(&self, request: u64, rest: Option<Incoming>) {
        let mut body = self.0.body.lock();
        if body.request != request {
            return;
        }
        body.is_open = rest.is_some();
        body.unread = rest;
        let wakes = body.is_open;
        drop(body);
        if wakes {
            self.0.body_waker.wake();
        }
    }

    /// The number of the request that was handed out last, counted from 1; 0: none was.
    pub(crate) fn request(&self) -> u64 {
        self.0.body.lock().request
    }

    /// Whether the request has a body that is not over.
    pub(crate) fn has_body(&self) -> bool {
        self.0.body.lock().is_open
    }

    /// Whether the client waits to be asked for the request's body.
    pub(crate) fn is_client_waiting(&self) -> bool {
        self.0.body.lock().is_client_waiting
    }

    /// Takes what is left of the request's body if its handler has dropped it; `None`: it hasn't, or nothing
    /// is left.
    pub(crate) fn take_unread(&self) -> Option<Incoming> {
        self.0.body.lock().take_unread()
    }

    /// As [`ClientLink::take_unread`], and wakes the task when there is such a body later.
    pub(crate) fn poll_unread(&self, cx: &Context<'_>) -> Option<Incoming> {
        let mut body = self.0.body.lock();
        if !body.is_open {
            return None;
        }
        self.0.body_waker.register(cx.waker());
        body.take_unread()
    }

    /// Whether a request has a malformed body: this request, or one that was not handed out yet.
    pub(crate) fn has_malformed_body(&self) -> bool {
        self.0.malformed.load(Ordering::Relaxed) != 0
    }

    /// Whether the body of the request that was handed out last is malformed.
    pub(crate) fn is_body_malformed(&self) -> bool {
        let malformed = self.0.malformed.load(Ordering::Relaxed);
        malformed != 0 && malformed == self.request()
    }

    /// Notes that the body of this request is malformed.
    pub(crate) fn set_malformed_body(&self, request: u64) {
        self.0.malformed.store(request, Ordering::Relaxed);
    }
}

// === impl CurrentBody ===

impl CurrentBody {
    fn take_unread(&mut self) -> Option<Incoming> {
        let unread = self.unread.take();
        if unread.is_some() {
            self.is_open = false;
        }
        unread
    }
}
