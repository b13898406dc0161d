//! The backends: their connections, the headers on the way, and what can go wrong there.
//!
//! Invariant: a request is sent once. It is repeated only where hyper gives it back because not a
//! byte of it was written: on a kept connection that the backend had closed in the meantime.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::time::timeout;

use crate::budget::ReservedBytes;
use crate::config::upstream::UpstreamProtocol;
use crate::config::{Config, Upstream};
use crate::deadline::Deadline;
use crate::proxy::body_timer::{BodyLimits, BodyReadError};
use connect::Connector;
use pool::{Pool, PooledConnection};

pub(super) use response_timeout::{ExpiredTimeout, ResponseTimeout};
pub(super) use upload::{ReadAheadLimit, Upload};

mod connect;
pub(super) mod headers;
mod pool;
mod response_timeout;
pub(super) mod upgrade;
mod upload;

/// The backends, as one worker reaches them.
pub(super) struct Backends {
    /// That of all routes which have none of their own, and of what no route takes.
    usual: Option<Arc<Backend>>,
    /// Those of routes. They are few: whoever looks for one compares.
    of_routes: Vec<Arc<Backend>>,
}

/// One backend.
pub(super) struct Backend {
    connector: Connector,
    connect_timeout: Duration,
    pool: Pool,
}

/// The body of a request on its way to the backend.
pub(super) enum OutgoingBody {
    /// Read by the proxy already.
    Read(Option<ReservedBytes>),
    /// Streamed as it comes in. That none of it is sent too late, the connection sees to.
    Streamed(Upload),
    /// There is none, and nothing is to say so: hyper adds a length to what is known to have one.
    Nothing,
}

/// The body of the backend's answer, and the connection that it comes over.
pub(super) struct BackendBody {
    incoming: Incoming,
    /// Until the answer is over; dropping it closes the connection.
    connection: Option<PooledConnection>,
}

/// Why the backend gave no answer.
#[derive(Debug, Error)]
pub(super) enum ForwardError {
    #[error("the backend at {upstream} can't be reached: {reason}")]
    Unreachable { upstream: String, reason: String },
    #[error("the backend at {upstream} broke off before its answer: {reason}")]
    Broken { upstream: String, reason: String },
    #[error("no {what} from the backend at {upstream} within {limit:?}")]
    TimedOut {
        upstream: String,
        what: &'static str,
        limit: Duration,
    },
}

// === impl Backends ===

impl Backends {
    /// All that the configuration names.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(config: &Config) -> Self {
        let mut tls = None;
        let mut backend = |upstream: &Upstream| {
            let tls = || tls.get_or_insert_with(|| connect::tls(config)).clone();
            let connector = Connector::new(upstream.clone(), tls);
            Arc::new(Backend {
                connector,
                connect_timeout: config.timeouts.connect,
                pool: Pool::new(),
            })
        };
        let usual = config.upstream.as_ref().map(&mut backend);
        let mut of_routes: Vec<Arc<Backend>> = Vec::new();
        for upstream in config
            .routes
            .iter()
            .filter_map(|route| route.upstream.as_ref())
        {
            let known = of_routes.iter().chain(&usual);
            let known = known.into_iter().find(|known| known.upstream() == upstream);
            let known = known.cloned().unwrap_or_else(|| backend(upstream));
            of_routes.push(known);
        }
        Self { usual, of_routes }
    }

    /// The backend of a route, or of what has none of its own.
    pub(super) fn of(&self, upstream: Option<&Upstream>) -> Option<&Arc<Backend>> {
        match upstream {
            None => self.usual.as_ref(),
            Some(upstream) => self.of_routes.iter().find(|it| it.upstream() == upstream),
        }
    }
}

// === impl Backend ===

impl Backend {
    /// The backend, as the configuration names it.
    pub(super) fn upstream(&self) -> &Upstream {
        self.connector.upstream()
    }

    /// Whether a connection to it can leave HTTP (HTTP/2 knows no such thing).
    pub(super) fn can_switch(&self) -> bool {
        self.upstream().protocol != UpstreamProtocol::H2c
    }

    /// Sends a request and gives the head of its answer. Dropping the future closes the connection,
    /// which is how a backend learns that nobody wants its answer. No byte is sent after `deadline`.
    /// `begun` says whether one may have been sent.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before the answer begins.
    pub(super) async fn send(
        &self,
        mut request: Request<OutgoingBody>,
        deadline: Option<&Deadline>,
        begun: Option<&AtomicBool>,
    ) -> Result<Response<BackendBody>, ForwardError> {
        let note = |is| {
            if let Some(begun) = begun {
                begun.store(is, Ordering::Relaxed);
            }
        };
        let body = request.body();
        if body.is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
            *request.body_mut() = OutgoingBody::Nothing;
        }
        let may_switch = request.headers().contains_key(UPGRADE);
        loop {
            let kept = self.pool.take();
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect().await?,
            };
            if let Some(deadline) = deadline {
                connection.bounds.stop_at(deadline.clone());
            }
            note(true);
            let mut error = match connection.send(request).await {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    if !may_switch {
                        return Err(self.broken("it went on in another protocol unasked"));
                    }
                    return Ok(response.map(|body| BackendBody::switching(body, connection)));
                }
                Ok(response) if headers::is_framed(response.headers()) => {
                    return Ok(response.map(|body| BackendBody::new(body, connection)));
                }
                Ok(_) => return Err(self.broken("its answer is encoded in a way nobody asked for")),
                Err(error) => error,
            };
            match error.take_message() {
                Some(unsent) if is_kept => {
                    note(false);
                    request = unsent;
                }
                _ => return Err(self.broken(error.into_error())),
            }
        }
    }

    /// No head of an answer came within `limit`.
    pub(super) fn no_head_within(&self, limit: Duration) -> ForwardError {
        ForwardError::TimedOut {
            upstream: self.name(),
            what: "answer",
            limit,
        }
    }

    async fn connect(&self) -> Result<PooledConnection, ForwardError> {
        // In a box: rare, and larger than all else that a request has under way.
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

    fn broken(&self, reason: impl ToString) -> ForwardError {
        ForwardError::Broken {
            upstream: self.name(),
            reason: reason.to_string(),
        }
    }

    fn name(&self) -> String {
        self.upstream().to_string()
    }
}

/// Has interim answers (RFC 9110 §15.2) handed to `pass`, but for 100: whether a body may come is said
/// by the proxy, which reads it. The task that calls this is woken to do something with them. Those in
/// HTTP/2 hyper keeps to itself.
pub(super) async fn pass_interim<B>(
    request: &mut Request<B>,
    pass: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    hyper::ext::on_informational(request, move |said| {
        if said.status() != StatusCode::CONTINUE {
            let mut headers = said.headers().clone();
            headers::clean_answer(&mut headers);
            pass(said.status(), &headers);
            waker.wake_by_ref();
        }
    });
}

// === impl Outgoing ===

impl OutgoingBody {
    /// Reads what streams in to its end, if it is announced and no longer than `most`.
    ///
    /// # Errors
    /// When it passes one of its limits, or is broken off.
    pub(super) async fn read_if_small(
        &mut self,
        most: usize,
        room: ReadAheadLimit<'_>,
        limits: BodyLimits,
    ) -> Result<(), BodyReadError> {
        match self {
            Self::Read(_) | Self::Nothing => Ok(()),
            Self::Streamed(upload) => upload.read_if_small(most, room, limits).await,
        }
    }

    /// What happens to it while its turn waits: what streams in is read ahead, up to so many bytes, and
    /// what is read makes way for others. Resolves when there is no body any more, and loses nothing
    /// when it is dropped.
    pub(super) async fn wait(&mut self, most: usize, room: ReadAheadLimit<'_>) -> BodyReadError {
        match self {
            Self::Read(Some(whole)) => {
                whole.reclaimed().await;
                BodyReadError::TakenBack
            }
            Self::Read(None) | Self::Nothing => pending().await,
            Self::Streamed(upload) => upload.read_ahead(most, room).await,
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
            Self::Streamed(upload) => Pin::new(upload).poll_frame(cx),
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

// === impl Answer ===

impl BackendBody {
    fn new(incoming: Incoming, connection: PooledConnection) -> Self {
        let mut answer = Self {
            incoming,
            connection: Some(connection),
        };
        answer.give_back_at_the_end(false);
        answer
    }

    /// An answer behind which its connection leaves HTTP: it is kept as long as this is.
    fn switching(incoming: Incoming, connection: PooledConnection) -> Self {
        Self {
            incoming,
            connection: Some(connection),
        }
    }

    fn give_back_at_the_end(&mut self, is_end: bool) {
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
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.give_back_at_the_end(frame.is_trailers()),
            Poll::Ready(None) => self.give_back_at_the_end(true),
            // Closed here and now, and not when the client has taken notice.
            Poll::Ready(Some(Err(_))) => self.connection = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
