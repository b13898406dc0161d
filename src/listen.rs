//! Sockets and connections: HTTP/1 and HTTP/2, over TCP, TLS or a Unix socket. Serves whoever
//! implements [`Serve`]; knows no route and no lock.
//!
//! Invariant: when a connection is over, for whatever reason, everything that served it is dropped
//! at once: the handler's future or the answer's body. Whoever must let go of something does it in
//! there. The same holds for one request of an HTTP/2 connection.

use std::error::Error;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::drain::DrainWatch;
use crate::wire::{Bounds, Wire};
use stream::ClientStream;
use validated_io::ConnectionState;

pub use accept::{AcceptedConnection, ListenEndpoint, Listener};
pub use bad_request::{BadRequest, RejectedRequest};
pub use limit::{ConnectionLimit, ConnectionPermit};
pub use room::HeadRoom;
pub use tls::TlsServer;
pub use validate::{is_alike, is_head_only};

mod accept;
mod bad_request;
mod http1;
mod http2;
mod limit;
mod room;
pub mod shed;
mod stream;
mod tls;
pub mod validate;
mod validated_io;

/// Answers requests. Cheap to clone: each connection and each request has its own.
pub trait Serve: Clone + Send + 'static {
    /// Of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// Answers a request. Dropping the future, and the answer's body later, is how it is told that
    /// nobody wants the answer any more.
    fn serve(
        self,
        client: ClientConnection,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + 'static;

    /// What a client gets that sent something which isn't served. Called once for each such thing.
    fn refuse(&self, ip: Option<IpAddr>, refused: &RejectedRequest) -> Response<Bytes>;
}

/// What all connections of a listener have in common.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// How long the head of a request may take, from its first byte; the first one of a connection,
    /// and TLS before it, from accepting.
    pub request_head: Duration,
    /// For how long a connection without a request is kept.
    pub idle: Duration,
    /// TLS, if it is spoken.
    pub tls: Option<TlsServer>,
    /// What large heads and further requests on a connection take.
    pub room: HeadRoom,
}

/// Serves with a function, and answers nothing else: for listeners of a process' own. A client that
/// neither takes its answer nor asks for another is left after [`ServeSettings::default`]'s time.
#[derive(Clone)]
pub struct FnService<F>(pub F);

/// The client of a request.
#[derive(Clone, Debug)]
pub struct ClientConnection {
    /// Its address, or that of the last proxy before this one; `None` behind a Unix socket.
    pub ip: Option<IpAddr>,
    /// The same as it stands in a header, made once for all requests of the connection.
    pub ip_value: Option<HeaderValue>,
    /// How it came: http or https.
    pub scheme: Scheme,
    /// The bounds of its connection, or of its own request where there are others beside it.
    pub bounds: Bounds,
    gate: Option<ConnectionState>,
}

/// Where interim answers are sent to a client, before its answer.
#[derive(Clone, Debug)]
pub struct InterimResponses(ConnectionState);

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientProtocol {
    Http1,
    Http2,
}

/// A connection, ready for its protocol.
struct OpenedConnection {
    stream: ClientStream,
    protocol: ClientProtocol,
    /// What has been read of it.
    early: BytesMut,
}

/// What serves a connection, beside its stream.
struct ServedConnection<'c, H> {
    handler: H,
    client: ClientConnection,
    settings: &'c ServeSettings,
    head_due: Instant,
    drain: DrainWatch,
    early: BytesMut,
}

/// A timer that is armed only when there is something to wait for, and moved only when it fires or
/// that comes nearer: a turn that ends before its lease costs no timer at all.
#[derive(Default)]
struct ConnectionAlarm(Option<Pin<Box<Sleep>>>);

/// What `timeouts.idle_stream` is by default.
const IDLE: Duration = Duration::from_secs(300);

/// How HTTP/2 begins, where both sides know that they speak it (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// === impl Settings ===

impl Default for ServeSettings {
    /// What the configuration says by default, without TLS.
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(10),
            idle: IDLE,
            tls: None,
            room: HeadRoom::default(),
        }
    }
}

// === impl Answering ===

impl<F, A, B> Serve for FnService<F>
where
    F: Fn(ClientConnection, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;

    fn serve(
        self,
        client: ClientConnection,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<B>> + Send + 'static {
        client.bounds.end_when_silent(IDLE);
        (self.0)(client, request)
    }

    fn refuse(&self, _: Option<IpAddr>, refused: &RejectedRequest) -> Response<Bytes> {
        let text = refused.why.to_string();
        let length = text.len();
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = refused.why.status();
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        response
    }
}

// === impl Client ===

impl ClientConnection {
    /// Where interim answers can be sent to it; `None` if it can't be sent any: over HTTP/2 hyper
    /// doesn't.
    pub fn interim(&self) -> Option<InterimResponses> {
        self.gate.clone().map(InterimResponses)
    }

    /// Why the body of its request can't be read on, if that is the client's fault.
    pub fn bad_body(&self) -> Option<BadRequest> {
        self.gate.as_ref()?.bad_body()
    }
}

// === impl Interim ===

impl InterimResponses {
    /// Sends one, when whoever serves the connection is next polled. It is left out if the answer is
    /// there by then, or too many wait.
    pub fn say(&self, status: StatusCode, headers: &HeaderMap) {
        let mut head = Vec::new();
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend_from_slice(status.as_str().as_bytes());
        head.push(b' ');
        let reason = status.canonical_reason().unwrap_or_default();
        head.extend_from_slice(reason.as_bytes());
        for (name, value) in headers {
            head.extend_from_slice(b"\r\n");
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
        }
        head.extend_from_slice(b"\r\n\r\n");
        self.0.interim(&head);
    }
}

// === connections ===

/// Serves one connection until it is over, and drops what served it.
pub async fn serve<H: Serve>(
    accepted: AcceptedConnection,
    settings: &ServeSettings,
    drain: DrainWatch,
    handler: H,
) {
    let head_due = Instant::now() + settings.request_head;
    let ip = accepted.ip;
    let bounds = Bounds::new();
    let wire = accepted
        .into_socket()
        .and_then(|socket| Wire::new(socket, bounds.clone()));
    let wire = match wire {
        Ok(wire) => wire,
        Err(error) => return tracing::debug!(?ip, %error, "connection lost at once"),
    };
    let mut gone = pin!(wire.peer_gone());
    let (reset, sever) = (wire.resetter(), wire.severer());
    let opened = {
        let mut drain = drain.clone();
        tokio::select! {
            biased;
            opened = open(wire, settings, head_due) => opened,
            // It has sent no request.
            () = drain.draining() => None,
            () = &mut gone => None,
        }
    };
    let Some(OpenedConnection {
        stream,
        protocol,
        early,
    }) = opened
    else {
        return;
    };
    let connection = ServedConnection {
        handler,
        client: ClientConnection {
            ip,
            ip_value: ip.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()),
            scheme: match settings.tls {
                Some(_) => Scheme::HTTPS,
                None => Scheme::HTTP,
            },
            bounds: bounds.clone(),
            gate: None,
        },
        settings,
        head_due,
        drain,
        early,
    };
    let is_whole = match protocol {
        ClientProtocol::Http1 => http1::serve(stream, connection, gone, sever).await,
        // In a box: rare, and larger than the other.
        ClientProtocol::Http2 => Box::pin(http2::serve(stream, connection, gone)).await,
    };
    if !is_whole {
        reset();
    }
}

/// Makes a stream of a connection, and finds out what is spoken on it. `None`: nothing is, in time.
async fn open(wire: Wire, settings: &ServeSettings, due: Instant) -> Option<OpenedConnection> {
    let mut stream = match &settings.tls {
        None => ClientStream::Plain(wire),
        Some(tls) => {
            let opened = tokio::time::timeout_at(due, Box::pin(tls.accept(wire))).await;
            match opened {
                Ok(Ok(stream)) => ClientStream::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no TLS connection came about");
                    return None;
                }
                Err(_) => return None,
            }
        }
    };
    if let Some(protocol) = stream.negotiated() {
        let early = BytesMut::new();
        return Some(OpenedConnection {
            stream,
            protocol,
            early,
        });
    }
    let mut early = BytesMut::new();
    let protocol = tokio::time::timeout_at(due, spoken(&mut stream, &mut early)).await;
    let protocol = match protocol {
        Ok(protocol) => protocol?,
        // What has come is the beginning of a head, which is late.
        Err(_) if !early.is_empty() => ClientProtocol::Http1,
        Err(_) => return None,
    };
    Some(OpenedConnection {
        stream,
        protocol,
        early,
    })
}

/// Reads until it is known whether HTTP/2 is spoken; `None`: the client has closed before.
async fn spoken<IO: AsyncRead + Unpin>(
    stream: &mut IO,
    early: &mut BytesMut,
) -> Option<ClientProtocol> {
    loop {
        // As much as most heads have.
        early.reserve(1024);
        match stream.read_buf(early).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return None,
        }
        let common = early.len().min(PREFACE.len());
        if early[..common] != PREFACE[..common] {
            return Some(ClientProtocol::Http1);
        }
        if common == PREFACE.len() {
            return Some(ClientProtocol::Http2);
        }
    }
}

// === impl Alarm ===

impl ConnectionAlarm {
    /// Ready when it is later than `due` says. Asked anew each time, because it may move; not with
    /// the clock, or it would never be late.
    fn poll(&mut self, cx: &mut Context<'_>, due: impl Fn() -> Option<Instant>) -> Poll<()> {
        loop {
            let Some(at) = due() else {
                return Poll::Pending;
            };
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if at < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if due().is_some_and(|at| Instant::now() >= at) {
                return Poll::Ready(());
            }
        }
    }
}
