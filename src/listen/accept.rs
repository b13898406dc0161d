//! Listening sockets: bound before anything is served, and accepting until draining begins.
//!
//! A Unix socket is a file, which is removed when its listener is; an old one that nobody serves
//! any more gives way.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::drain::DrainWatch;
use crate::wire;

/// Where a listener is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenEndpoint {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A Unix socket's path.
    Unix(PathBuf),
}

/// A bound and listening socket, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    socket: BoundSocket,
    address: ListenEndpoint,
}

#[derive(Debug)]
enum BoundSocket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener, SocketFile),
}

/// On a poller.
enum AcceptLoop {
    Tcp(TcpListener),
    Unix(
        UnixListener,
        #[expect(dead_code, reason = "removed with it")] SocketFile,
    ),
}

/// The file of a Unix socket, as long as it is one's own.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// A connection that was accepted, on no thread's poller.
#[derive(Debug)]
pub struct AcceptedConnection {
    socket: EitherSocket,
    /// The client's address; `None` over a Unix socket.
    pub ip: Option<IpAddr>,
}

#[derive(Debug)]
enum EitherSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
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
    pub fn bind(address: &ListenEndpoint) -> io::Result<Self> {
        match address {
            ListenEndpoint::Tcp(address) => Self::bind_tcp(*address),
            ListenEndpoint::Unix(path) => Self::bind_unix(path),
        }
    }

    fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the old process' connections to time out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = StdTcpListener::from(socket);
        let address = ListenEndpoint::Tcp(socket.local_addr()?);
        Ok(Self {
            socket: BoundSocket::Tcp(socket),
            address,
        })
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = SocketFile(path.to_owned());
        socket.listen(BACKLOG)?;
        Ok(Self {
            socket: BoundSocket::Unix(socket.into(), file),
            address: ListenEndpoint::Unix(path.to_owned()),
        })
    }

    /// The address that it really has.
    pub fn address(&self) -> &ListenEndpoint {
        &self.address
    }

    /// Accepts until draining begins, handing each connection to `take`; then closes the socket.
    ///
    /// # Errors
    /// When the socket can't be watched.
    pub async fn accept(
        self,
        mut drain: DrainWatch,
        mut take: impl FnMut(AcceptedConnection),
    ) -> io::Result<()> {
        let accepting = match self.socket {
            BoundSocket::Tcp(socket) => AcceptLoop::Tcp(TcpListener::from_std(socket)?),
            BoundSocket::Unix(socket, file) => {
                AcceptLoop::Unix(UnixListener::from_std(socket)?, file)
            }
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.draining() => return Ok(()),
                accepted = accepting.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    take(accepted);
                    // A thousand that come at once are not all accepted before the first is served.
                    tokio::task::yield_now().await;
                }
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

impl AcceptLoop {
    async fn accept(&self) -> io::Result<AcceptedConnection> {
        // Detached from this thread's poller, because it may be another worker's.
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(AcceptedConnection {
                    socket: EitherSocket::Tcp(stream.into_std()?),
                    ip: Some(peer.ip().to_canonical()),
                })
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let socket = EitherSocket::Unix(stream.into_std()?);
                Ok(AcceptedConnection { socket, ip: None })
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

/// Removes a socket's file that nobody listens on. Any other file stays, and is in the way.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // Somebody serves it, or it is somebody else's: binding says so.
        _ => Ok(()),
    }
}

// === impl SocketFile ===

impl Drop for SocketFile {
    fn drop(&mut self) {
        // One that is gone already is as good as removed.
        let _ = std::fs::remove_file(&self.0);
    }
}

// === impl Accepted ===

impl AcceptedConnection {
    /// The socket, on this thread's poller.
    pub(super) fn into_socket(self) -> io::Result<wire::Socket> {
        Ok(match self.socket {
            EitherSocket::Tcp(stream) => TcpStream::from_std(stream)?.into(),
            EitherSocket::Unix(stream) => UnixStream::from_std(stream)?.into(),
        })
    }
}

// === impl Endpoint ===

impl ListenEndpoint {
    /// Endpoint and port, if that is what it is.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for ListenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
