//! A backend for HTTP/2 without TLS that responds as a test says; and a relay that forwards connections
//! to the scripted backend, from a Unix socket or out of TLS.
//!
//! Invariant: a response body that is no longer wanted is dropped, and its feed notices.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::within;

/// A response body that a test feeds.
pub(crate) struct Fed(mpsc::Receiver<Result<Frame<Bytes>, Abort>>);

/// Feeds a body. The body ends when all its feeds are dropped.
#[derive(Clone)]
pub(crate) struct Feed(mpsc::Sender<Result<Frame<Bytes>, Abort>>);

/// Aborts a response.
#[derive(Debug)]
pub(crate) struct Abort;

/// A running server.
pub(crate) struct Server {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// Forwards connections to the scripted backend. Ends when dropped.
pub(crate) struct Relay(JoinHandle<()>);

// === impl Server ===

impl Server {
    /// Starts a server on a free port. Everything that it serves ends with the test's runtime.
    pub(crate) async fn start<F>(
        handle: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Fed>> + Send + 'static,
    {
        Self::serve(handle, false).await
    }

    /// Starts a server that closes each connection after its first response.
    pub(crate) async fn closing_after_each<F>(
        handle: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Fed>> + Send + 'static,
    {
        Self::serve(handle, true).await
    }

    async fn serve<F>(
        handle: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        closes: bool,
    ) -> Self
    where
        F: Future<Output = Response<Fed>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("the listener's address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("the server accepts");
                counted.fetch_add(1, Ordering::SeqCst);
                let handle = handle.clone();
                let answered = Arc::new(Notify::new());
                let notify = Arc::clone(&answered);
                let service = service_fn(move |request| {
                    let (answer, notify) = (handle(request), Arc::clone(&notify));
                    async move {
                        let answer = answer.await;
                        notify.notify_one();
                        Ok::<_, Infallible>(answer)
                    }
                });
                tokio::spawn(async move {
                    let builder = http2::Builder::new(TokioExecutor::new());
                    let served = builder.serve_connection(TokioIo::new(socket), service);
                    let mut served = std::pin::pin!(served);
                    tokio::select! {
                        _ = &mut served => return,
                        () = answered.notified(), if closes => {}
                    }
                    served.as_mut().graceful_shutdown();
                    let _ = served.await;
                });
            }
        });
        Self {
            addr,
            connections,
            accepting,
        }
    }

    /// `h2c://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("h2c://{}", self.addr)
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === impl Feed ===

/// An empty body and its feed.
pub(crate) fn body() -> (Feed, Fed) {
    let (feed, fed) = mpsc::channel(8);
    (Feed(feed), Fed(fed))
}

/// A complete body.
pub(crate) fn whole(text: impl Into<Bytes>) -> Fed {
    let (feed, fed) = body();
    feed.0
        .try_send(Ok(Frame::data(text.into())))
        .expect("there is room for one frame");
    fed
}

impl Feed {
    /// Sends data; `false` if the response is no longer wanted.
    pub(crate) async fn data(&self, text: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Frame::data(text.into()))).await.is_ok()
    }

    pub(crate) async fn trailers(&self, trailers: HeaderMap) -> bool {
        self.0.send(Ok(Frame::trailers(trailers))).await.is_ok()
    }

    pub(crate) async fn abort(&self) {
        let _ = self.0.send(Err(Abort)).await;
    }

    /// Waits until the response is no longer wanted.
    pub(crate) async fn unwanted(&self) {
        within("the response to be dropped", self.0.closed()).await;
    }
}

// === impl Fed ===

impl Body for Fed {
    type Data = Bytes;
    type Error = Abort;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abort>>> {
        self.0.poll_recv(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("aborted by the test")
    }
}

impl std::error::Error for Abort {}

// === impl Relay ===

impl Relay {
    /// Forwards from a Unix socket to `to`.
    pub(crate) fn from_socket(path: &Path, to: SocketAddr) -> Self {
        let listener = UnixListener::bind(path).expect("a socket in its own folder");
        Self(tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("the relay accepts");
                tokio::spawn(relay(socket, to));
            }
        }))
    }

    /// Listens with TLS, and forwards the plain bytes to `to`.
    pub(crate) async fn out_of_tls(tls: TlsAcceptor, to: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("the listener's address");
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("the relay accepts");
                let tls = tls.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(socket).await {
                        relay(stream, to).await;
                    }
                });
            }
        });
        (Self(accepting), addr)
    }
}

async fn relay(mut from: impl AsyncRead + AsyncWrite + Unpin, to: SocketAddr) {
    let mut to = TcpStream::connect(to).await.expect("the backend listens");
    to.set_nodelay(true).expect("TCP_NODELAY");
    let _ = copy_bidirectional(&mut from, &mut to).await;
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}
