//! A new connection to a backend: reached, encrypted and greeted in its protocol.
//!
//! HTTP/2 is spoken as HTTP/1.1 is: one turn at a time on a connection. So what ends a turn ends its
//! connection, whatever it speaks, and no session shares anything with another.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper::client::conn::{http1, http2};
use hyper::rt::{Executor, Read, Write};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::OutgoingBody;
use super::pool::{ConnectionTask, Pool, PooledConnection, RequestSender};
use crate::client_tls;
use crate::config::upstream::{TrustedCas, UpstreamAddress, UpstreamProtocol};
use crate::config::{Config, Upstream};
use crate::wire::{Bounds, Socket, Wire};

/// What new connections to one backend are made with.
pub(super) struct Connector {
    upstream: Upstream,
    tls: Option<TlsConnector>,
}

/// How many header lines an answer may have: more than any real one has, and few enough for the
/// room that is kept for them while a head is read (8 KiB). Beyond it there is no answer (502).
const MAX_HEADERS: usize = 256;

/// How large the head of an answer in HTTP/2 may be, in bytes: as many lines of a usual length.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// How much of an answer in HTTP/2 a backend may send before the client has taken it, in bytes.
/// hyper's own default of 2 MiB would be memory that a slow client costs the proxy; this one keeps
/// a stream within a host or a cluster at its full speed.
const WINDOW: u32 = 256 << 10;

/// How much of a request in HTTP/2 is held for a backend that doesn't take it, in bytes.
const SEND_BUFFER: usize = 64 << 10;

/// Runs what hyper spawns for a connection in HTTP/2 as long as the connection is there.
#[derive(Clone)]
struct ConnectionSpawner(Weak<Mutex<JoinSet<()>>>);

// === impl Connector ===

impl Connector {
    /// For this backend; `tls` is asked for if it speaks that.
    pub(super) fn new(upstream: Upstream, tls: impl FnOnce() -> TlsConnector) -> Self {
        let tls = matches!(upstream.protocol, UpstreamProtocol::Https(_)).then(tls);
        Self { upstream, tls }
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Connects. The connection goes to `pool` when it is given back.
    pub(super) async fn connect(&self, pool: Pool) -> io::Result<PooledConnection> {
        let socket: Socket = match &self.upstream.address {
            UpstreamAddress::Port(host, port) => TcpStream::connect((&**host, *port)).await?.into(),
            UpstreamAddress::Socket(path) => UnixStream::connect(path).await?.into(),
        };
        let bounds = Bounds::new();
        let wire = Wire::new(socket, bounds.clone())?;
        let greeted = match (&self.upstream.protocol, &self.tls) {
            (UpstreamProtocol::H2c, _) => http2(TokioIo::new(wire)).await,
            (UpstreamProtocol::Https(name), Some(tls)) => {
                let stream = tls.connect(name.clone(), wire).await?;
                http1(TokioIo::new(stream)).await
            }
            (UpstreamProtocol::Http1 | UpstreamProtocol::Https(_), _) => {
                http1(TokioIo::new(wire)).await
            }
        };
        let (sender, tasks) = greeted.map_err(io::Error::other)?;
        Ok(PooledConnection::new(sender, tasks, bounds, pool))
    }
}

async fn http1<I>(io: I) -> hyper::Result<(RequestSender, ConnectionTask)>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let (sender, driver) = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MAX_HEADERS)
        .handshake::<_, OutgoingBody>(io)
        .await?;
    let task = tokio::spawn(async move {
        // Its errors reach whoever waits for the answer.
        let _ = driver.with_upgrades().await;
    });
    Ok((
        RequestSender::Http1(sender),
        ConnectionTask::One(task.abort_handle()),
    ))
}

async fn http2<I>(io: I) -> hyper::Result<(RequestSender, ConnectionTask)>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let tasks = Arc::new(Mutex::new(JoinSet::new()));
    let spawner = ConnectionSpawner(Arc::downgrade(&tasks));
    let (sender, driver) = http2::Builder::new(spawner.clone())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .handshake::<_, OutgoingBody>(io)
        .await?;
    spawner.execute(async move {
        let _ = driver.await;
    });
    Ok((RequestSender::Http2(sender), ConnectionTask::Several(tasks)))
}

/// What connects with TLS: verified by the public authorities, and by these.
pub(super) fn tls(config: &Config) -> TlsConnector {
    let own = config.upstream_ca_file.iter();
    let own = own.flat_map(|cas: &TrustedCas| &cas.certificates);
    let mut config = client_tls::client_config(own);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

// === impl Spawner ===

impl<F> Executor<F> for ConnectionSpawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Without its connection there is nothing to run it for.
        if let Some(tasks) = self.0.upgrade() {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of the turns before.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(future);
        }
    }
}
