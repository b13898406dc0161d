//! Sockets and connections. Takes any hyper service; knows no route and no lock.
//!
//! Invariant: when a connection is over, for whatever reason, everything that served it is dropped
//! at once: the handler's future or the answer's body. Whoever must let go of something does it in
//! there.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::drain::Watch;
use crate::wire::{Bounds, Ended, Wire};

/// A bound and listening socket, not yet accepting.
#[derive(Debug)]
pub struct Listener(StdListener);

/// The client at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address, or that of the last proxy before this one.
    pub ip: IpAddr,
    /// The same as text, made once for all requests of the connection.
    pub ip_text: Arc<str>,
    /// The bounds of its connection.
    pub bounds: Bounds,
}

/// How many connections the kernel keeps ready for `accept`: what other proxies ask for; the
/// kernel lowers it to its own `somaxconn`.
const BACKLOG: i32 = 4096;

/// How long to wait when the process has no file descriptor left: long enough for some turn to
/// end, short enough for clients not to give up.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);

// === impl Listener ===

impl Listener {
    /// Binds `address` and listens; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A restart must not wait for the old process' connections to time out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into()))
    }

    /// The address that it really has.
    ///
    /// # Errors
    /// When the socket is dead.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts until draining begins, handing each connection to `take`; then closes the socket.
    ///
    /// # Errors
    /// When the socket can't be watched.
    pub async fn accept(
        self,
        mut drain: Watch,
        mut take: impl FnMut(StdStream, SocketAddr),
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(self.0)?;
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.draining() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                // Detached from this thread's poller, because it may be another worker's.
                Ok((stream, peer)) => match stream.into_std() {
                    Ok(stream) => take(stream, peer),
                    Err(error) => tracing::debug!(%peer, %error, "connection lost at once"),
                },
                Err(error) if is_the_connections_own(&error) => {
                    tracing::debug!(%error, "connection lost before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept connections; trying again");
                    tokio::time::sleep(OUT_OF_FILES_PAUSE).await;
                }
            }
        }
    }
}

/// Whether `accept` failed because of the one connection, rather than of this process.
fn is_the_connections_own(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

// === connections ===

/// Serves one connection until it is over, and drops what served it.
pub async fn serve<S, B>(
    stream: StdStream,
    peer: SocketAddr,
    mut drain: Watch,
    service: impl FnOnce(Client) -> S,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let ip = peer.ip().to_canonical();
    let client = Client {
        ip,
        ip_text: ip.to_string().into(),
        bounds: Bounds::new(),
    };
    let bounds = client.bounds.clone();
    let wire = TcpStream::from_std(stream).and_then(|stream| Wire::new(stream, bounds.clone()));
    let wire = match wire {
        Ok(wire) => wire,
        Err(error) => return tracing::debug!(%peer, %error, "connection lost at once"),
    };
    let mut gone = pin!(wire.peer_gone());
    let reset = wire.resetter();
    let mut timer = pin!(BoundsTimer::new(&bounds));
    let mut conn = pin!(
        http1::Builder::new()
            // An answer that passes through gets nothing added.
            .auto_date_header(false)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(wire), service(client))
            .with_upgrades()
    );

    let mut stopping = pin!({
        let mut drain = drain.clone();
        async move { drain.draining().await }
    });
    let mut aborting = pin!(drain.aborting());
    let mut told_to_stop = false;
    let served = poll_fn(|cx| {
        // First, because nothing may move once the bounds are reached.
        if let Some(why) = bounds.reached(Instant::now()) {
            return Poll::Ready(Err(why));
        }
        if let Poll::Ready(result) = conn.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        if gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Ended::PeerGone));
        }
        if told_to_stop {
            if aborting.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Ended::Aborted));
            }
        } else if stopping.as_mut().poll(cx).is_ready() {
            told_to_stop = true;
            conn.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        timer.as_mut().poll(cx).map(Err)
    })
    .await;
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "connection ended with an error");
            reset();
        }
        // What still serves is dropped on return, after it can see the reason.
        Err(why) => {
            tracing::debug!(%peer, ?why, "connection ended");
            bounds.end(why);
            reset();
        }
    }
}

/// Resolves when a bound is reached. Armed only when a connection has bounds, and moved only when
/// it fires or they come nearer: a turn that ends before its lease costs no timer at all.
struct BoundsTimer<'b> {
    bounds: &'b Bounds,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<'b> BoundsTimer<'b> {
    fn new(bounds: &'b Bounds) -> Self {
        Self {
            bounds,
            sleep: None,
        }
    }
}

impl Future for BoundsTimer<'_> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            let Some(due) = self.bounds.due() else {
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if due < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(why) = self.bounds.reached(Instant::now()) {
                return Poll::Ready(why);
            }
        }
    }
}
