//! Listening sockets. A socket is bound before anything is served, and accepts until draining begins.
//!
//! Invariant: the file of a Unix socket is removed with its listener. A file that an old process left
//! behind is replaced if nobody listens on it; any other file stays, and binding fails.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::drain::DrainWatch;
use crate::wire;

/// The address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenEndpoint {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A bound socket, on which clients can connect. It doesn't accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: ListenEndpoint,
    /// `None`: a TCP socket has no file.
    file: Option<SocketFile>,
}

/// A listening socket that is registered with the runtime.
enum RegisteredSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The file of a Unix socket. Dropping this removes the file.
#[derive(Debug)]
struct SocketFile(PathBuf);

/// A connection that was accepted, and that any worker may serve: it isn't registered with a runtime.
#[derive(Debug)]
pub struct AcceptedConnection {
    socket: EitherSocket,
    /// The client's IP address; `None` over a Unix socket.
    pub ip: Option<IpAddr>,
}

#[derive(Debug)]
enum EitherSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// How many connections the kernel keeps ready for `accept`: as many as other proxies ask for. The
/// kernel lowers this to its `somaxconn`.
const BACKLOG: i32 = 4096;

/// How long to wait when the process has no file descriptor left: long enough for a turn to end, and
/// short enough that clients don't give up.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);

// === impl Listener ===

impl Listener {
    /// Binds `address` and listens; port 0 takes a free port.
    ///
    /// # Errors
    /// If the address is in use, or isn't an address of this machine.
    pub fn bind(address: &ListenEndpoint) -> io::Result<Self> {
        match address {
            ListenEndpoint::Tcp(address) => Self::bind_tcp(*address),
            ListenEndpoint::Unix(path) => Self::bind_unix(path),
        }
    }

    fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        // So a restart needn't wait until the old process' connections have timed out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let bound = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok(Self {
            socket,
            address: ListenEndpoint::Tcp(bound),
            file: None,
        })
    }

    fn bind_unix(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let file = Some(SocketFile(path.to_owned()));
        socket.listen(BACKLOG)?;
        Ok(Self {
            socket,
            address: ListenEndpoint::Unix(path.to_owned()),
            file,
        })
    }

    /// Makes the kernel end the connections of clients that are gone without a word, if they are idle and
    /// answer nothing for `limit`; 0: it doesn't. Has no effect on a Unix socket.
    ///
    /// # Errors
    /// If the system refuses the setting.
    pub fn probe_idle_clients(&self, limit: Duration) -> io::Result<()> {
        match self.address {
            ListenEndpoint::Tcp(_) if !limit.is_zero() => {
                wire::probe_when_idle(SockRef::from(&self.socket), limit)
            }
            _ => Ok(()),
        }
    }

    /// The address that the socket is bound to, with the port that the kernel chose for port 0.
    pub fn address(&self) -> &ListenEndpoint {
        &self.address
    }

    /// Accepts connections until draining begins, and calls `take` for each; then closes the socket.
    ///
    /// # Errors
    /// If the socket can't be registered with the runtime.
    pub async fn accept(
        self,
        mut drain: DrainWatch,
        mut take: impl FnMut(AcceptedConnection),
    ) -> io::Result<()> {
        let Self {
            socket,
            address,
            file: _file,
        } = self;
        let socket = match address {
            ListenEndpoint::Tcp(_) => RegisteredSocket::Tcp(TcpListener::from_std(socket.into())?),
            ListenEndpoint::Unix(_) => {
                RegisteredSocket::Unix(UnixListener::from_std(socket.into())?)
            }
        };
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.draining() => return Ok(()),
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    take(accepted);
                    // Of many connections at once, the first is served before all are accepted.
                    tokio::task::yield_now().await;
                }
                Err(error) if is_lost_connection(&error) => {
                    tracing::debug!(%error, "connection lost before accept");
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting connections failed; trying again");
                    tokio::time::sleep(OUT_OF_FILES_PAUSE).await;
                }
            }
        }
    }
}

impl RegisteredSocket {
    async fn accept(&self) -> io::Result<AcceptedConnection> {
        // Deregistered from this runtime, because another worker may serve the connection.
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(AcceptedConnection {
                    socket: EitherSocket::Tcp(stream.into_std()?),
                    ip: Some(peer.ip().to_canonical()),
                })
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let socket = EitherSocket::Unix(stream.into_std()?);
                Ok(AcceptedConnection { socket, ip: None })
            }
        }
    }
}

/// Whether `accept` failed because the connection was lost, and not because of this process.
fn is_lost_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// Removes the file of a socket on which nobody listens. Any other file stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // A process listens on it, or it can't be accessed: binding fails with the reason.
        _ => Ok(()),
    }
}

// === impl SocketFile ===

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

// === impl AcceptedConnection ===

impl AcceptedConnection {
    /// The socket, registered with the current runtime.
    ///
    /// # Errors
    /// If the socket can't be registered.
    pub(super) fn into_socket(self) -> io::Result<wire::Socket> {
        Ok(match self.socket {
            EitherSocket::Tcp(stream) => TcpStream::from_std(stream)?.into(),
            EitherSocket::Unix(stream) => UnixStream::from_std(stream)?.into(),
        })
    }
}

// === impl ListenEndpoint ===

impl ListenEndpoint {
    /// The IP address and the port; `None`: a Unix socket has neither.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain;

    #[tokio::test]
    async fn a_clients_socket_is_probed_when_it_is_idle() {
        crate::time_limit::limit_this_test();
        let seconds = Duration::from_secs;
        for (limit, expected) in [
            (seconds(30), Some((seconds(15), seconds(5)))),
            (seconds(1), Some((seconds(1), seconds(1)))),
            (Duration::ZERO, None),
        ] {
            let any = ListenEndpoint::Tcp(([127, 0, 0, 1], 0).into());
            let listener = Listener::bind(&any).expect("a free port");
            listener.probe_idle_clients(limit).expect("TCP can do it");
            let address = listener.address().tcp().expect("TCP");
            let (_never, watch) = drain::channel();
            let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(listener.accept(watch, move |connection| {
                let _ = sender.send(connection);
            }));
            let _client = TcpStream::connect(address).await.expect("it listens");
            let connection = accepted.recv().await.expect("a connection");
            let EitherSocket::Tcp(socket) = &connection.socket else {
                panic!("it is a TCP listener");
            };
            let socket = SockRef::from(socket);
            let is_probed = socket.keepalive().expect("a live socket");
            let times = is_probed.then(|| {
                let first = socket.tcp_keepalive_time().expect("a live socket");
                let next = socket.tcp_keepalive_interval();
                (first, next.expect("a live socket"))
            });
            assert_eq!(times, expected, "with a limit of {limit:?}");
            if is_probed {
                let probes = socket.tcp_keepalive_retries().expect("a live socket");
                assert_eq!(probes, 3, "one lost probe is not the end");
            }
        }
    }
}
