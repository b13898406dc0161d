//! New connections to a backend: TCP or a Unix socket, TLS, and the handshake of HTTP/1.1 or HTTP/2.
//!
//! Invariant: a connection carries one request at a time, in HTTP/2, too. So a turn that is cut off can
//! close its connection, and no session shares one with another.

use std::io;
use std::sync::{Arc, Weak};

use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::backend_io::BackendIo;
use super::exchange_notes::{ExchangeNotes, MAX_HEADERS};
use super::pool::{ConnectionTask, Pool, PooledConnection, RequestSender};
use crate::client_tls;
use crate::config::upstream::{TrustedCas, UpstreamAddress, UpstreamProtocol};
use crate::config::{Config, Upstream};
use crate::dial;
use crate::wire::{Bounds, Socket, Wire};

/// Opens connections to one backend.
pub(super) struct Connector {
    /// Where the backend is.
    pub(super) upstream: Upstream,
    tls: Option<TlsConnector>,
}

/// How large the head of a response in HTTP/2 may be, in bytes: [`MAX_HEADERS`] lines of a usual length.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// The flow-control window of HTTP/2: how much of a response a backend may send before the client has
/// read it, in bytes. hyper's default of 2 MiB is memory that a slow client could take. This one is
/// enough for full speed within a host or a cluster.
const WINDOW: u32 = 256 << 10;

/// How much of a request in HTTP/2 is buffered for a backend that doesn't read it, in bytes.
const SEND_BUFFER: usize = 64 << 10;

/// A connection after its handshake.
struct Established {
    sender: RequestSender,
    tasks: ConnectionTask,
    notes: ExchangeNotes,
}

/// Runs the tasks that hyper spawns for an HTTP/2 connection, as long as the connection exists.
#[derive(Clone)]
struct ConnectionSpawner(Weak<Mutex<JoinSet<()>>>);

// === impl Connector ===

impl Connector {
    /// A connector to this backend. `tls` is called if the backend speaks TLS.
    pub(super) fn new(upstream: Upstream, tls: impl FnOnce() -> TlsConnector) -> Self {
        let tls = matches!(upstream.protocol, UpstreamProtocol::Https(_)).then(tls);
        Self { upstream, tls }
    }

    /// Opens a connection, which goes to `pool` when it is given back.
    ///
    /// # Errors
    /// When the backend can't be reached, or a handshake fails.
    pub(super) async fn connect(&self, pool: Pool) -> io::Result<PooledConnection> {
        let socket: Socket = match &self.upstream.address {
            UpstreamAddress::Port(host, port) => dial::connect(host, *port).await?.into(),
            UpstreamAddress::Socket(path) => UnixStream::connect(path).await?.into(),
        };
        let bounds = Bounds::default();
        let wire = Wire::new(socket, bounds.clone())?;
        let handshake = match (&self.upstream.protocol, &self.tls) {
            (UpstreamProtocol::H2c, _) => http2(BackendIo::http2(wire)).await,
            (UpstreamProtocol::Https(name), Some(tls)) => {
                let stream = tls.connect(name.clone(), wire).await?;
                http1(BackendIo::http1(stream)).await
            }
            (UpstreamProtocol::Http1 | UpstreamProtocol::Https(_), _) => {
                http1(BackendIo::http1(wire)).await
            }
        };
        let Established {
            sender,
            tasks,
            notes,
        } = handshake.map_err(io::Error::other)?;
        Ok(PooledConnection {
            bounds,
            sender,
            tasks,
            notes,
            opened: Instant::now(),
            pool,
        })
    }
}

async fn http1(
    io: BackendIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
) -> hyper::Result<Established> {
    let notes = io.notes();
    let (sender, driver) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(io))
        .await?;
    let task = tokio::spawn(async move {
        // Its errors reach whoever waits for the response.
        let _ = driver.with_upgrades().await;
    });
    Ok(Established {
        sender: RequestSender::Http1(sender),
        tasks: ConnectionTask::One(task.abort_handle()),
        notes,
    })
}

async fn http2(io: BackendIo<Wire>) -> hyper::Result<Established> {
    let notes = io.notes();
    let tasks = Arc::new(Mutex::new(JoinSet::new()));
    let spawner = ConnectionSpawner(Arc::downgrade(&tasks));
    let (sender, driver) = http2::Builder::new(spawner.clone())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .handshake(TokioIo::new(io))
        .await?;
    spawner.execute(async move {
        let _ = driver.await;
    });
    Ok(Established {
        sender: RequestSender::Http2(sender),
        tasks: ConnectionTask::Several(tasks),
        notes,
    })
}

/// What connects with TLS: verified by the public authorities, and by these.
pub(super) fn tls(config: &Config) -> TlsConnector {
    let own = config.upstream_ca_file.iter();
    let own = own.flat_map(|cas: &TrustedCas| &cas.certificates);
    let mut config = client_tls::client_config(own);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

// === impl ConnectionSpawner ===

impl<F> Executor<F> for ConnectionSpawner
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Without its connection, a task has nothing to do.
        if let Some(tasks) = self.0.upgrade() {
            let mut tasks = tasks.lock();
            // Forgets the tasks of earlier turns.
            while tasks.try_join_next().is_some() {}
            tasks.spawn(future);
        }
    }
}
