//! HTTP/2 for clients: one connection with concurrent requests, each with its own bounds.
//!
//! Invariant: a request that reaches its bounds is reset alone, a moment before its deadline, and its
//! response never looks complete. If the reset can't be sent, because the process was stopped or the
//! client reads nothing, the connection's [`Bounds`](crate::wire::Bounds) keep the response's bytes from
//! being written, and the connection ends. hyper and h2 do the rest. CONNECT isn't supported.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::service::{ClientBody, ClientConnection, HeadBudget, Serve, ServedConnection, note_end};
use crate::wire::Ended;
use body::{OpenStreams, StreamBody, StreamLease};
use connection_timer::{ConnectionTimer, ExpiredPhase, PhaseLimits};
use frame_watcher::FrameWatcher;
use stream_task::StreamExecutor;

pub(crate) use frame_watcher::PREFACE;

mod body;
mod connection_timer;
mod frame_watcher;
mod request;
mod response;
mod stream_task;

/// The most concurrent requests on one connection: what RFC 9113 §6.5.2 recommends at least, and more
/// than a browser has tabs, so that some requests may wait in the queue while others stream.
const MAX_STREAMS: u32 = 100;

/// How much of one request a client may send before it is read, in bytes: usually a whole turn.
const STREAM_WINDOW: u32 = 128 * 1024;

/// How much of all requests together a client may send before it is read, in bytes. This bounds the
/// memory of a connection.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// How much of one response h2 buffers for a client that doesn't read, in bytes: the largest frame.
/// Each request has such a buffer. A larger one makes no response faster, because every write is
/// followed by a flush.
const SEND_BUFFER: usize = 16 * 1024;

/// The most bytes of headers in a request, where each header counts 32 more: the limit of HTTP/1.
const MAX_HEADERS: u32 = 64 * 1024;

/// The most requests that a client may reset before anybody has read them, against the attack of
/// CVE-2023-44487: h2's own default.
const MAX_PENDING_RESETS: usize = 20;

/// The most requests that h2 may reset because they broke the protocol. A client that exceeds this is
/// broken.
const MAX_BROKEN: usize = 128;

/// How long a closing connection without a request may be silent: a round trip for a request that is
/// on its way, and time for a client that reads slowly.
const GRACE: Duration = Duration::from_secs(5);

/// How long a closing connection without a request may be silent while the process drains. Many
/// clients read nothing while they have no request.
const GRACE_DRAINING: Duration = Duration::from_secs(1);

/// Serves a connection until it is over, and returns whether its end was orderly. `gone` resolves when
/// the client has disconnected.
pub(crate) async fn serve<H: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: ServedConnection<'_, H>,
    mut gone: Pin<&mut (impl Future<Output = ()> + Send)>,
) -> bool {
    let ServedConnection {
        handler,
        client,
        request_head,
        idle,
        unreachable,
        heads,
        first_head_due,
        mut drain,
        early,
    } = connection;
    let (bounds, ip) = (client.bounds.clone(), client.ip);
    let (executor, open_streams) = (StreamExecutor::default(), OpenStreams::default());
    let io = FrameWatcher::new(early, stream, heads.reserve(), open_streams.clone());
    let limits = PhaseLimits { request_head, idle };
    let mut timer = ConnectionTimer::new(first_head_due, limits, io.times());
    let service = stream_service(
        handler,
        client,
        heads.clone(),
        open_streams,
        executor.clone(),
    );
    let builder = builder(executor.clone(), unreachable);
    let mut conn = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut tasks = FuturesUnordered::new();
    let mut abort = drain.clone();
    let (mut draining, mut aborting) = (pin!(drain.draining()), pin!(abort.aborting()));
    let mut is_draining = false;
    let end = poll_fn(|cx| {
        loop {
            // Before the connection: what a finished request has left is not written.
            while let Poll::Ready(Some(())) = tasks.poll_next_unpin(cx) {}
            if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                return Poll::Ready(Ok(result));
            }
            let new = executor.take_new();
            if !new.is_empty() {
                tasks.extend(new);
                timer.on_request();
                continue;
            }
            if gone.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Ended::PeerGone));
            }
            if aborting.as_mut().poll(cx).is_ready() {
                // Each handler is polled once more, and may write a last word.
                for task in tasks.iter_mut() {
                    let _ = Pin::new(task).poll(cx);
                }
                let _ = conn.as_mut().poll(cx);
                return Poll::Ready(Err(Ended::Aborted));
            }
            if !is_draining && draining.as_mut().poll(cx).is_ready() {
                is_draining = true;
                timer.close(GRACE_DRAINING);
                conn.as_mut().graceful_shutdown();
                continue;
            }
            if tasks.is_empty() {
                timer.on_idle();
            }
            let expired = ready!(timer.poll(cx));
            conn.as_mut().graceful_shutdown();
            if expired == ExpiredPhase::Connection {
                // Sends GOAWAY if the client reads, and doesn't wait for it.
                let _ = conn.as_mut().poll(cx);
                return Poll::Ready(Err(Ended::Silent));
            }
            timer.close(GRACE);
        }
    })
    .await;
    // The tasks own the executor, and the executor owns the tasks: this breaks the cycle.
    drop(executor.take_new());
    // The handlers and bodies that still run are dropped on return, and read the reason.
    note_end(end, &bounds, ip)
}

/// A builder of connections whose client must answer a PING within `unreachable`; 0: there are no PINGs.
/// A client may be gone although its connection is there, because a proxy below HTTP has it.
fn builder(executor: StreamExecutor, unreachable: Duration) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(executor);
    if !unreachable.is_zero() {
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(unreachable / 2)
            .keep_alive_timeout(unreachable);
    }
    builder
        .auto_date_header(false)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_BROKEN);
    builder
}

/// Answers the requests of one connection, each with its own bounds and memory.
fn stream_service<H: Serve>(
    handler: H,
    client: ClientConnection,
    heads: HeadBudget,
    open_streams: OpenStreams,
    executor: StreamExecutor,
) -> impl Service<
    Request<Incoming>,
    Response = Response<
        impl Body<Data = Bytes, Error = Box<dyn Error + Send + Sync>> + Send + 'static,
    >,
    Error = Infallible,
    Future: Send + 'static,
> {
    service_fn(move |request| {
        let is_first = open_streams.is_empty();
        let mut lease = StreamLease {
            memory: heads.reserve(),
            open: open_streams.clone(),
        };
        let bounds = client.bounds.for_stream();
        executor.set_next_bounds(bounds.clone());
        let client = ClientConnection {
            bounds: bounds.clone(),
            ..client.clone()
        };
        let handler = handler.clone();
        async move {
            let mut response = match request::validate(request, &mut lease.memory, is_first) {
                Ok(request) => {
                    let response = handler.serve(client, request.map(ClientBody::from)).await;
                    response.map(|body| StreamBody::new(body, bounds, lease))
                }
                Err(rejected) => {
                    let response = handler.refuse(client.ip, &rejected);
                    response.map(|body| StreamBody::Refused(body.into()))
                }
            };
            response::detach(response.headers_mut());
            Ok::<_, Infallible>(response)
        }
    })
}
