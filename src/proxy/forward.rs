//! The backends: their connections, the bodies on the way, and what can go wrong.
//!
//! Invariant: a request is sent once. It is sent again only if the backend had closed the pooled connection
//! on which it was sent, and if no byte of it was written, or if repeating it is harmless ([`is_repeatable`]).
//! A turn that holds a lock is repeated only if no byte of it was written.

use std::error::Error as _;
use std::future::pending;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::timeout;

use crate::budget::ReservedBytes;
use crate::config::upstream::UpstreamProtocol;
use crate::config::{Config, Upstream};
use crate::deadline::Deadline;
use crate::listen::InterimResponses;
use crate::proxy::body_timer::{BodyLimits, BodyReadError};
use connect::Connector;
use exchange_notes::InterimTarget;
use pool::{Pool, PooledConnection};

pub(super) use response_timeout::{ExpiredTimeout, ResponseTimeout};
pub(super) use upload::{ReadAheadLimit, Upload};

mod backend_io;
mod connect;
mod exchange_notes;
pub(super) mod headers;
mod pool;
mod response_timeout;
pub(super) mod upgrade;
mod upload;

/// The backends of a configuration, with the connections of one worker.
pub(super) struct Backends {
    /// The backend of routes without their own `upstream`, and of requests that no route takes.
    default: Option<Arc<Backend>>,
    /// The backends of routes. They are few, so a search compares them one by one.
    of_routes: Vec<Arc<Backend>>,
}

/// One backend and its pool of connections.
pub(super) struct Backend {
    connector: Connector,
    connect_timeout: Duration,
    pool: Pool,
}

/// The body of a request on its way to the backend.
pub(super) enum OutgoingBody {
    /// A body that the proxy has read; `None` once it is sent.
    Read(Option<ReservedBytes>),
    /// A body that is streamed as it arrives. The connection's deadline stops it when the lock is lost. Boxed, because
    /// each connection to a backend has room for 32 requests.
    Streamed(Box<Upload>),
    /// No body, and no `content-length`. hyper adds that header to any body of a known length.
    Nothing,
}

// hyper's queue to each connection has room for 32 requests with their bodies.
const _: () = assert!(size_of::<OutgoingBody>() <= 72);

/// The future that sends a request and resolves with the head of the response.
pub(super) type SendFuture =
    Pin<Box<dyn Future<Output = Result<Response<BackendBody>, ForwardError>> + Send>>;

/// The body of the backend's response, and the connection over which it arrives.
pub(super) struct BackendBody {
    incoming: Incoming,
    /// A frame that was read ahead; `None`: none was.
    read_ahead: Option<Result<Frame<Bytes>, hyper::Error>>,
    /// The connection, until the response is over. Dropping it closes the connection.
    connection: Option<PooledConnection>,
}

/// Why the backend gave no response.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    #[error("the backend at {upstream} can't be reached: {reason}")]
    Unreachable { upstream: String, reason: String },
    #[error("the backend at {upstream} broke off before its response: {reason}")]
    Broken { upstream: String, reason: String },
    #[error("the backend at {upstream} sent a response that can't be read: {reason}")]
    Malformed { upstream: String, reason: String },
    #[error("no {what} from the backend at {upstream} within {limit:?}")]
    TimedOut {
        upstream: String,
        what: &'static str,
        limit: Duration,
    },
}

// === impl Backends ===

impl Backends {
    /// The backends that the configuration names.
    pub(super) fn new(config: &Config) -> Self {
        let mut tls = None;
        let mut backend = |upstream: &Upstream| {
            let tls = || tls.get_or_insert_with(|| connect::tls(config)).clone();
            let connector = Connector::new(upstream.clone(), tls);
            Arc::new(Backend {
                connector,
                connect_timeout: config.timeouts.connect,
                pool: Pool::default(),
            })
        };
        let default = config.upstream.as_ref().map(&mut backend);
        let mut of_routes: Vec<Arc<Backend>> = Vec::new();
        for upstream in config.routes.iter().flat_map(|route| &route.upstream) {
            let mut known = of_routes.iter().chain(&default);
            let known = known.find(|known| known.upstream() == upstream).cloned();
            of_routes.push(known.unwrap_or_else(|| backend(upstream)));
        }
        Self { default, of_routes }
    }

    /// The backend at a route's own `upstream`; for `None`, the default one.
    pub(super) fn find(&self, upstream: Option<&Upstream>) -> Option<&Arc<Backend>> {
        match upstream {
            None => self.default.as_ref(),
            Some(upstream) => self.of_routes.iter().find(|it| it.upstream() == upstream),
        }
    }
}

// === impl Backend ===

impl Backend {
    /// Where the backend is.
    pub(super) fn upstream(&self) -> &Upstream {
        &self.connector.upstream
    }

    /// Whether a connection to the backend can leave HTTP by an upgrade, which HTTP/2 doesn't have.
    pub(super) fn can_upgrade(&self) -> bool {
        self.upstream().protocol != UpstreamProtocol::H2c
    }

    /// Sends a request, and returns when the head of the response has arrived. No byte is sent after
    /// `deadline`. `has_begun` is set while a byte may have been sent. `is_turn` says whether the request
    /// holds a lock. Interim responses pass to `interim`, and wake the task that polls this first; `None`: they are
    /// left out. None are read from HTTP/2.
    ///
    /// Dropping the future closes the connection, so that the backend sees that its client is gone.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before the response begins.
    pub(super) async fn send(
        &self,
        mut request: Box<Request<OutgoingBody>>,
        is_turn: bool,
        deadline: Option<&Deadline>,
        has_begun: Option<&AtomicBool>,
        interim: Option<&InterimResponses>,
    ) -> Result<Response<BackendBody>, ForwardError> {
        let note = |is| {
            if let Some(has_begun) = has_begun {
                has_begun.store(is, Ordering::Relaxed);
            }
        };
        let body = request.body();
        if body.is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
            *request.body_mut() = OutgoingBody::Nothing;
        }
        let may_switch = request.headers().contains_key(UPGRADE);
        let is_repeatable = !is_turn && is_repeatable(&request);
        let mut is_repeated = false;
        loop {
            // The other pooled connections are as old.
            let kept = match is_repeated {
                true => None,
                false => self.pool.take(),
            };
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if let Some(deadline) = deadline {
                connection.bounds.stop_at(deadline.clone());
            }
            let again = (is_kept && is_repeatable).then(|| copy_without_body(&request));
            let target = match interim {
                Some(responses) => Some(InterimTarget::new(responses.clone()).await),
                None => None,
            };
            note(true);
            let mut error = match connection.send(*request, target).await {
                Ok(response) => return self.accept(response, connection, may_switch),
                Err(error) => error,
            };
            match (error.take_message(), again) {
                (Some(unsent), _) if is_kept => {
                    note(false);
                    *request = unsent;
                }
                (_, Some(again)) if !connection.notes.has_begun() => {
                    is_repeated = true;
                    request = again;
                }
                _ => return Err(self.failed(&error.into_error())),
            }
        }
    }

    /// Takes the head of a response, unless the response can be read in two ways.
    fn accept(
        &self,
        mut response: Response<Incoming>,
        connection: PooledConnection,
        may_switch: bool,
    ) -> Result<Response<BackendBody>, ForwardError> {
        let status = response.status();
        connection.notes.complete(&mut response);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return match may_switch {
                true => Ok(response.map(|body| BackendBody::switching(body, connection))),
                false => Err(self.malformed("it switches to a protocol that was not requested")),
            };
        }
        if !headers::is_framed(response.headers()) {
            return Err(self.malformed("it has a transfer coding that was not requested"));
        }
        if !headers::unite_lengths(response.headers_mut()) {
            return Err(self.malformed("it has more than one content-length"));
        }
        Ok(response.map(|body| BackendBody::new(body, connection)))
    }

    /// The error when no head of a response arrived within `limit`.
    pub(super) fn response_timed_out(&self, limit: Duration) -> ForwardError {
        ForwardError::TimedOut {
            upstream: self.name(),
            what: "response",
            limit,
        }
    }

    async fn connect(&self) -> Result<PooledConnection, ForwardError> {
        // Boxed, because it is rare, and larger than the rest of the future.
        let connecting = Box::pin(self.connector.connect(self.pool.clone()));
        match timeout(self.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| ForwardError::Unreachable {
                upstream: self.name(),
                reason: error.to_string(),
            }),
            Err(_) => Err(ForwardError::TimedOut {
                upstream: self.name(),
                what: "connection",
                limit: self.connect_timeout,
            }),
        }
    }

    /// The error when `error` came in place of a response.
    fn failed(&self, error: &hyper::Error) -> ForwardError {
        let reason = error.to_string();
        match is_malformed(error) {
            true => self.malformed(&reason),
            false => ForwardError::Broken {
                upstream: self.name(),
                reason,
            },
        }
    }

    fn malformed(&self, reason: &str) -> ForwardError {
        ForwardError::Malformed {
            upstream: self.name(),
            reason: reason.to_owned(),
        }
    }

    fn name(&self) -> String {
        self.upstream().to_string()
    }
}

/// Whether the backend has sent something that is no HTTP. Otherwise its connection broke.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    let kind = cause.map(io::Error::kind);
    // Of a body's framing, hyper says it by these kinds.
    error.is_parse() || matches!(kind, Some(ErrorKind::InvalidInput | ErrorKind::InvalidData))
}

/// Whether a request without a lock may be sent a second time, if the backend closed a pooled connection
/// without a byte of response (RFC 9110 §9.2.2, RFC 9112 §9.3.1): its method is idempotent, it has no body, and
/// it asks for no upgrade.
fn is_repeatable(request: &Request<OutgoingBody>) -> bool {
    let is_idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    is_idempotent && request.body().is_end_stream() && !request.headers().contains_key(UPGRADE)
}

/// A copy of a request that has no body.
fn copy_without_body(request: &Request<OutgoingBody>) -> Box<Request<OutgoingBody>> {
    let mut copy = Box::new(Request::new(OutgoingBody::Nothing));
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

// === impl OutgoingBody ===

impl OutgoingBody {
    /// Reads a streamed body to its end, if its length is known and at most `most` bytes.
    ///
    /// # Errors
    /// When the body passes one of its limits, or breaks off.
    pub(super) async fn read_if_small(
        &mut self,
        most: usize,
        read_ahead: ReadAheadLimit<'_>,
        limits: BodyLimits,
    ) -> Result<(), BodyReadError> {
        match self {
            Self::Read(_) | Self::Nothing => Ok(()),
            Self::Streamed(upload) => upload.read_if_small(most, read_ahead, limits).await,
        }
    }

    /// Takes care of the body while its turn waits: a streamed body is read ahead, up to `most` bytes,
    /// and a body that was read may have to give its memory to others. Returns only when the body is
    /// lost. Cancel-safe.
    pub(super) async fn wait(
        &mut self,
        most: usize,
        read_ahead: ReadAheadLimit<'_>,
    ) -> BodyReadError {
        match self {
            Self::Read(Some(whole)) => {
                whole.reclaimed().await;
                BodyReadError::TakenBack
            }
            Self::Read(None) | Self::Nothing => pending().await,
            Self::Streamed(upload) => upload.read_ahead(most, read_ahead).await,
        }
    }
}

impl Body for OutgoingBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Read(whole) => {
                let whole = whole.take().map(ReservedBytes::into_bytes);
                Poll::Ready(whole.map(|whole| Ok(Frame::data(whole))))
            }
            Self::Streamed(upload) => Pin::new(&mut **upload).poll_frame(cx),
            Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Read(whole) => whole.is_none(),
            Self::Streamed(upload) => upload.is_end_stream(),
            Self::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Read(whole) => {
                let whole = whole.as_ref().map(ReservedBytes::body);
                SizeHint::with_exact(whole.map_or(0, |whole| whole.len() as u64))
            }
            Self::Streamed(upload) => upload.size_hint(),
            Self::Nothing => SizeHint::default(),
        }
    }
}

// === impl BackendBody ===

impl BackendBody {
    fn new(incoming: Incoming, connection: PooledConnection) -> Self {
        let mut body = Self::switching(incoming, connection);
        body.give_back_at_end(false);
        body
    }

    /// The body of a response after which the connection leaves HTTP. The connection stays open until
    /// this is dropped.
    fn switching(incoming: Incoming, connection: PooledConnection) -> Self {
        Self {
            incoming,
            read_ahead: None,
            connection: Some(connection),
        }
    }

    /// Takes the body, if its length is known and all of it has arrived in one piece. `None`: it has no byte, or more may
    /// come.
    pub(super) fn take_whole(&mut self, cx: &mut Context<'_>) -> Option<Frame<Bytes>> {
        let length = self.size_hint().exact()?;
        if length == 0 || self.read_ahead.is_some() {
            return None;
        }
        let Poll::Ready(frame) = Pin::new(&mut *self).poll_frame(cx) else {
            return None;
        };
        match frame {
            Some(Ok(frame)) if self.incoming.is_end_stream() => Some(frame),
            other => {
                self.read_ahead = other;
                None
            }
        }
    }

    /// What is wrong with a response that has begun and breaks off with `error`, for the log.
    pub(super) fn abort_reason(error: &hyper::Error) -> String {
        let cause = error.source().map(ToString::to_string);
        let cause = cause.unwrap_or_else(|| error.to_string());
        match is_malformed(error) {
            true => format!("the backend's response can't be read: {cause}"),
            false => format!("the backend broke off: {cause}"),
        }
    }

    fn give_back_at_end(&mut self, is_end: bool) {
        if (is_end || self.incoming.is_end_stream())
            && let Some(connection) = self.connection.take()
        {
            connection.give_back();
        }
    }
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(frame) = self.read_ahead.take() {
            return Poll::Ready(Some(frame));
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.give_back_at_end(frame.is_trailers()),
            Poll::Ready(None) => self.give_back_at_end(true),
            // Closes the connection now, and not when the client has read the error.
            Poll::Ready(Some(Err(_))) => self.connection = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.read_ahead.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let read_ahead = self.read_ahead.as_ref();
        let data = read_ahead.and_then(|frame| frame.as_ref().ok()?.data_ref());
        match (rest.exact(), data) {
            (Some(rest), Some(data)) => SizeHint::with_exact(rest + data.len() as u64),
            _ => rest,
        }
    }
}
