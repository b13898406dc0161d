//! The state that [`ValidatedIo`](super::validated_io::ValidatedIo) and the task that serves the
//! connection share.
//!
//! The stream notes the request that it refused, and that it was dropped. The task notes how each
//! response begins and ends, and the bytes to write before the connection is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::validate::OptionsTarget;
use crate::deadline::AtomicInstant;
use crate::header_names::OriginalNames;
use crate::service::{ClientLink, RejectedRequest, ServedConnection};
use crate::wire::Bounds;

/// The state of one HTTP/1 connection. Clones share the state.
#[derive(Clone, Debug)]
pub(super) struct ConnectionState(Arc<ConnectionShared>);

#[derive(Debug)]
struct ConnectionShared {
    pending: Mutex<PendingError>,
    /// The targets of OPTIONS requests that hyper has not handed out yet.
    options_targets: Mutex<VecDeque<OptionsTarget>>,
    /// The names of requests and of a response that are not in lower case.
    names: Mutex<PendingNames>,
    /// There are names of requests that hyper has not handed out yet.
    has_request_names: AtomicBool,
    /// There are names of a response that hyper has not written yet.
    has_response_names: AtomicBool,
    /// When the head that is being received must be complete; unset: no head is.
    head_due: AtomicInstant,
    /// How long a head may take, from its first byte.
    head_limit: Duration,
    bounds: Bounds,
    /// How long the connection is kept without a request.
    idle: Duration,
    /// A byte of the head that is waited for has arrived.
    has_head_begun: AtomicBool,
    /// Something was refused, and nothing more passes.
    is_rejected: AtomicBool,
    /// A request that asks for an upgrade (RFC 9110 §7.8) waits for its response.
    is_upgrade_pending: AtomicBool,
    /// That response has begun, and the stream has not taken the answer.
    has_upgrade_answer: AtomicBool,
    /// The response made the connection a tunnel.
    is_tunnel: AtomicBool,
    /// A request is being answered: there is an [`ExchangeGuard`].
    is_answering: AtomicBool,
    /// The number of the request whose head has arrived last. It may be a later one than hyper has handed out.
    arrived: AtomicU64,
    /// How many bytes of that request's body have not arrived; [`UNKNOWN_REST`]: it has no length.
    body_rest: AtomicU64,
    /// The response to the newest request has begun.
    has_response_begun: AtomicBool,
    /// The connection closes after the request that runs, and the response says so.
    has_announced_close: AtomicBool,
    /// The client has had its time to send the rest of a body, and the connection closes for it.
    has_lingered: AtomicBool,
    /// The process stops.
    is_draining: AtomicBool,
    /// The stream is dropped.
    is_stream_dropped: AtomicBool,
    link: ClientLink,
    /// Wakes the task that reads the stream.
    reader: AtomicWaker,
    /// Wakes the task that serves the connection.
    server: AtomicWaker,
}

#[derive(Debug, Default)]
struct PendingError {
    /// The refused request, until the task has taken it.
    rejected: Option<RejectedRequest>,
    /// The bytes to write before the connection is closed.
    last_response: Option<Bytes>,
}

/// The names of heads on their way through hyper.
#[derive(Debug, Default)]
struct PendingNames {
    /// The names of requests that hyper has not handed out yet. In one buffer, because a client may send many small
    /// requests at once.
    requests: BytesMut,
    /// The numbers of these requests, and how many bytes of the buffer each has.
    lengths: VecDeque<(u64, usize)>,
    /// The names of the response that hyper writes next.
    response: Option<OriginalNames>,
}

/// How long a connection that is being closed may at least be silent: longer than it lingers without a byte.
const CLOSING_SILENCE: Duration = Duration::from_secs(10);

/// The rest of a body that has no length.
const UNKNOWN_REST: u64 = u64::MAX;

/// A request that is being answered, until the last byte of its response.
pub(super) struct ExchangeGuard(ConnectionState);

// === impl ConnectionState ===

impl ConnectionState {
    pub(super) fn new<H>(connection: &ServedConnection<'_, H>) -> Self {
        Self(Arc::new(ConnectionShared {
            pending: Mutex::default(),
            options_targets: Mutex::default(),
            names: Mutex::default(),
            has_request_names: AtomicBool::new(false),
            has_response_names: AtomicBool::new(false),
            head_due: AtomicInstant::new(connection.first_head_due),
            head_limit: connection.request_head,
            bounds: connection.client.bounds.clone(),
            idle: connection.idle,
            has_head_begun: AtomicBool::new(!connection.early.is_empty()),
            is_rejected: AtomicBool::new(false),
            is_upgrade_pending: AtomicBool::new(false),
            has_upgrade_answer: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            is_answering: AtomicBool::new(false),
            arrived: AtomicU64::new(0),
            body_rest: AtomicU64::new(0),
            has_response_begun: AtomicBool::new(false),
            has_announced_close: AtomicBool::new(false),
            has_lingered: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            is_stream_dropped: AtomicBool::new(false),
            link: ClientLink::default(),
            reader: AtomicWaker::new(),
            server: AtomicWaker::new(),
        }))
    }

    /// The state that a request's handler and this connection share.
    pub(super) fn link(&self) -> &ClientLink {
        &self.0.link
    }

    /// When the head that is being received must be complete; `None`: no head is being received.
    pub(super) fn head_due(&self) -> Option<Instant> {
        self.0.head_due.load()
    }

    /// Notes whether a head is being received. If so, its time begins now.
    pub(super) fn set_head_due(&self, is_due: bool) {
        match is_due {
            true => self.0.head_due.store(Instant::now() + self.0.head_limit),
            false => self.0.head_due.clear(),
        }
    }

    /// Whether a byte of the head that is waited for has arrived.
    pub(super) fn has_head_begun(&self) -> bool {
        self.0.has_head_begun.load(Ordering::Relaxed)
    }

    pub(super) fn set_head_begun(&self) {
        self.0.has_head_begun.store(true, Ordering::Relaxed);
    }

    /// Whether a part of a head has arrived, and not all of it.
    fn is_receiving_head(&self) -> bool {
        self.has_head_begun() && self.head_due().is_some()
    }

    /// Refuses what the client sent; nothing more passes. Only the first refusal counts.
    pub(super) fn reject(&self, rejected: impl Into<RejectedRequest>) {
        let mut pending = self.0.pending.lock();
        if !self.is_answering() {
            // Time for the last response: the head may have taken longer than a connection is kept.
            self.0
                .bounds
                .end_when_silent(self.0.idle.max(CLOSING_SILENCE));
        }
        self.0.head_due.clear();
        pending.rejected.get_or_insert(rejected.into());
        self.0.is_rejected.store(true, Ordering::Relaxed);
    }

    /// Whether something was refused.
    pub(super) fn is_rejected(&self) -> bool {
        self.0.is_rejected.load(Ordering::Relaxed)
    }

    /// Takes the refused request, so that it is answered once; `None`: nothing was refused since.
    pub(super) fn take_rejected(&self) -> Option<RejectedRequest> {
        match self.is_rejected() {
            true => self.0.pending.lock().rejected.take(),
            false => None,
        }
    }

    /// Sets the bytes to write before the connection is closed.
    pub(super) fn set_last_response(&self, response: Bytes) {
        self.0.pending.lock().last_response = Some(response);
    }

    /// Takes the bytes to write before the connection is closed; `None`: there are none.
    pub(super) fn take_last_response(&self) -> Option<Bytes> {
        self.0.pending.lock().last_response.take()
    }

    /// Notes the targets of OPTIONS requests that hyper gets.
    pub(super) fn add_options_targets(&self, targets: Vec<OptionsTarget>) {
        self.0.options_targets.lock().extend(targets);
    }

    /// Takes the target of the OPTIONS request that hyper hands out; `None`: it has another kind of target.
    /// Call this only for a target that hyper hands out as `/` of a host.
    pub(super) fn next_options_target(&self) -> Option<OptionsTarget> {
        self.0.options_targets.lock().pop_front()
    }

    /// Notes the names of requests that hyper gets, each with the request's number, in their order.
    pub(super) fn add_request_names(&self, names: &[(u64, OriginalNames)]) {
        let mut pending = self.0.names.lock();
        for (request, names) in names {
            let names = names.as_bytes();
            pending.requests.extend_from_slice(names);
            pending.lengths.push_back((*request, names.len()));
        }
        self.0.has_request_names.store(true, Ordering::Relaxed);
    }

    /// Takes the names of the request that hyper has just handed out; `None`: they are in lower case.
    pub(super) fn take_request_names(&self) -> Option<OriginalNames> {
        if !self.0.has_request_names.load(Ordering::Relaxed) {
            return None;
        }
        let request = self.link().request();
        let mut pending = self.0.names.lock();
        let (_, length) = *pending.lengths.front().filter(|(of, _)| *of == request)?;
        pending.lengths.pop_front();
        let names = OriginalNames::from_bytes(&pending.requests[..length]);
        pending.requests.advance(length);
        if pending.lengths.is_empty() {
            // Frees the buffer, which may have had many requests.
            pending.requests = BytesMut::new();
            self.0.has_request_names.store(false, Ordering::Relaxed);
        }
        Some(names)
    }

    /// Sets the names of the response that hyper writes next.
    pub(super) fn set_response_names(&self, names: OriginalNames) {
        self.0.names.lock().response = Some(names);
        self.0.has_response_names.store(true, Ordering::Relaxed);
    }

    /// Takes the names of the response that hyper writes next; `None`: they are in lower case.
    pub(super) fn take_response_names(&self) -> Option<OriginalNames> {
        if !self.0.has_response_names.load(Ordering::Relaxed) {
            return None;
        }
        self.0.has_response_names.store(false, Ordering::Relaxed);
        self.0.names.lock().response.take()
    }

    /// Notes that a request has arrived and is being answered.
    pub(super) fn begin_exchange(&self) -> ExchangeGuard {
        self.0.is_answering.store(true, Ordering::Relaxed);
        self.0.has_response_begun.store(false, Ordering::Relaxed);
        ExchangeGuard(self.clone())
    }

    /// Whether the response to the newest request has begun.
    pub(super) fn has_response_begun(&self) -> bool {
        self.0.has_response_begun.load(Ordering::Relaxed)
    }

    /// Whether a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.0.is_answering.load(Ordering::Relaxed)
    }

    /// Notes that everything is written. Unless a request is being answered, the connection waits for the
    /// next one from here on. A head that has begun has its own limit.
    pub(super) fn on_flushed(&self) {
        if self.is_answering() || self.is_tunnel() || self.is_rejected() {
            return;
        }
        match self.is_receiving_head() {
            true => self.0.bounds.allow_any_silence(),
            false => self.0.bounds.allow_silence(self.0.idle),
        }
    }

    /// Notes how many bytes of the body of this request have not arrived; `None`: that isn't known. It is the
    /// request whose head has arrived last.
    pub(super) fn set_body_rest(&self, request: u64, rest: Option<u64>) {
        let rest = rest.unwrap_or(UNKNOWN_REST);
        self.0.arrived.store(request, Ordering::Relaxed);
        self.0.body_rest.store(rest, Ordering::Relaxed);
    }

    /// How many bytes have not arrived of the body of the request that hyper handed out last; `None`: that
    /// isn't known.
    pub(super) fn body_rest(&self) -> Option<u64> {
        // The head of a later request comes behind the whole body.
        if self.0.arrived.load(Ordering::Relaxed) != self.link().request() {
            return Some(0);
        }
        let rest = self.0.body_rest.load(Ordering::Relaxed);
        (rest != UNKNOWN_REST).then_some(rest)
    }

    /// Notes that the connection closes after this request, and that its response says so.
    pub(super) fn set_announced_close(&self) {
        self.0.has_announced_close.store(true, Ordering::Relaxed);
    }

    /// Whether the connection serves no request after this one.
    pub(super) fn is_last_request(&self) -> bool {
        self.0.has_announced_close.load(Ordering::Relaxed)
            || self.is_draining()
            || self.0.bounds.is_close_the_end()
    }

    /// Notes that the client has had its time to send the rest of a body.
    pub(super) fn set_lingered(&self) {
        self.0.has_lingered.store(true, Ordering::Relaxed);
    }

    /// Whether the client has had its time to send the rest of a body.
    pub(super) fn has_lingered(&self) -> bool {
        self.0.has_lingered.load(Ordering::Relaxed)
    }

    /// Notes that the process stops.
    pub(super) fn set_draining(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Whether the process stops.
    pub(super) fn is_draining(&self) -> bool {
        self.0.is_draining.load(Ordering::Relaxed)
    }

    /// Notes that a request asks for an upgrade.
    pub(super) fn set_upgrade_pending(&self) {
        self.0.is_upgrade_pending.store(true, Ordering::Relaxed);
    }

    /// Whether the response to a request that asks for an upgrade has begun, and has made the
    /// connection a tunnel; given once. `None`: no such response has begun.
    pub(super) fn take_upgrade_answer(&self) -> Option<bool> {
        // A load is cheaper than a swap, and nearly every read finds nothing.
        if !self.0.has_upgrade_answer.load(Ordering::Acquire) {
            return None;
        }
        self.0.has_upgrade_answer.store(false, Ordering::Relaxed);
        Some(self.is_tunnel())
    }

    /// Whether the connection has become a tunnel.
    pub(super) fn is_tunnel(&self) -> bool {
        self.0.is_tunnel.load(Ordering::Relaxed)
    }

    /// Wakes the task of `cx` when a response begins or ends.
    pub(super) fn register_reader(&self, cx: &Context<'_>) {
        self.0.reader.register(cx.waker());
    }

    /// Notes that the stream is dropped.
    pub(super) fn on_stream_dropped(&self) {
        self.0.is_stream_dropped.store(true, Ordering::Relaxed);
        self.0.server.wake();
    }

    /// Ready when the stream is dropped.
    pub(super) fn poll_stream_dropped(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.server.register(cx.waker());
        match self.0.is_stream_dropped.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

// === impl ExchangeGuard ===

impl ExchangeGuard {
    /// Notes that the response begins, with this status.
    pub(super) fn on_response(&self, status: StatusCode) {
        let state = &self.0.0;
        state.has_response_begun.store(true, Ordering::Relaxed);
        // The final response has begun, so interim responses may not follow.
        state.link.take_interim();
        let is_tunnel = status == StatusCode::SWITCHING_PROTOCOLS;
        if is_tunnel || state.is_upgrade_pending.load(Ordering::Relaxed) {
            state.is_upgrade_pending.store(false, Ordering::Relaxed);
            state.is_tunnel.store(is_tunnel, Ordering::Relaxed);
            state.has_upgrade_answer.store(true, Ordering::Release);
            state.reader.wake();
        }
    }

    /// Returns the error of a response's body unchanged. A body whose errors go through this owns the
    /// guard, and drops it with its last byte.
    pub(super) fn pass<E>(&self, error: E) -> E {
        error
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        self.0.0.is_answering.store(false, Ordering::Relaxed);
        self.0.0.reader.wake();
    }
}
