//! The rest of a request's body that its handler doesn't want. The client sends it in any case, and its
//! next request comes behind it.
//!
//! A rest that is known to be short is read away, and the connection is kept. Otherwise the response says
//! `connection: close` (RFC 9112 §9.3: a server that doesn't read a body has to close), so that no client
//! sends its next request into a connection that closes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::connection_state::ConnectionState;
use crate::wire::LingerTimer;

/// The rest of a body that is being read away.
pub(super) struct DiscardedBody {
    body: Incoming,
    timer: LingerTimer,
}

/// The longest rest that is read away, in bytes: as in Go's server.
const LONGEST_REST: u64 = 256 << 10;

/// How long a response waits for the end of a body whose length isn't known. The end nearly always comes
/// right behind the head.
const END_WITHIN: Duration = Duration::from_millis(20);

// === impl DiscardedBody ===

impl DiscardedBody {
    /// Begins to read `body` away.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            timer: LingerTimer::start(),
        }
    }

    /// Ready with `true` when the body is over, and with `false` when the client has taken too long. In the second
    /// case, dropping it closes the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => self.timer.on_bytes(),
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(true),
                Poll::Pending => return self.timer.poll(cx).map(|()| false),
            }
        }
    }
}

/// Decides, before a response with this head begins, whether the connection is kept in spite of what the
/// client has still to send of its request. If it isn't, the response says so.
pub(super) async fn announce(state: &ConnectionState, status: StatusCode, headers: &mut HeaderMap) {
    // Nothing can follow a malformed body, even if its handler has read it up to the defect.
    let is_malformed = state.link().is_body_malformed();
    let has_rest = is_malformed || state.link().has_body();
    if status == StatusCode::SWITCHING_PROTOCOLS || !has_rest {
        return;
    }
    let rest = state.body_rest();
    let is_kept = match rest {
        _ if is_malformed => false,
        _ if state.link().is_client_waiting() => false,
        Some(0..=LONGEST_REST) => true,
        _ => match state.link().take_unread() {
            Some(body) if rest.is_none() => {
                timeout(END_WITHIN, is_read_away(body)).await == Ok(true)
            }
            Some(_) => false,
            // The backend has the body. It may stream in both directions at once, and read all of it; one
            // that refuses the request probably doesn't.
            None => status.is_success(),
        },
    };
    if !is_kept {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let says_close = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    if headers.get_all(CONNECTION).iter().any(says_close) {
        state.set_announced_close();
    }
}

/// Reads `body` away if it is short, and says whether it is. One that breaks off is not.
async fn is_read_away(mut body: Incoming) -> bool {
    let mut rest = LONGEST_REST;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let length = frame.data_ref().map_or(0, Bytes::len);
        match rest.checked_sub(length as u64) {
            Some(left) => rest = left,
            None => return false,
        }
    }
    true
}
