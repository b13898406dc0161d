//! The client of a request, and the state that its handler and its HTTP/1 connection share while the
//! request is served.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, StatusCode};
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

/// The interim responses that a handler has sent, and whether its request's body is malformed. Clones
/// belong to the same HTTP/1 connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientLink(Arc<ClientLinkState>);

#[derive(Debug, Default)]
struct ClientLinkState {
    interim: Mutex<BytesMut>,
    has_interim: AtomicBool,
    has_malformed_body: AtomicBool,
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

    pub(crate) fn has_malformed_body(&self) -> bool {
        self.0.has_malformed_body.load(Ordering::Relaxed)
    }

    /// Notes that the request's body is malformed.
    pub(crate) fn set_malformed_body(&self) {
        self.0.has_malformed_body.store(true, Ordering::Relaxed);
    }
}
