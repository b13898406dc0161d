//! Whether the peer of a connection has closed it, asked at this very moment.
//!
//! What has arrived at this end is not enough to know: under load the kernel may deliver a close
//! later than the next connection's request, although it was sent before. So the peer's end, which
//! is on this machine too, is looked up in `/proc/net`. Where there is none, what has arrived must
//! do. A proxy in another network namespace is out of reach.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

/// A second handle on a connection's socket. Weak, so that it keeps nothing open.
pub(super) struct Probe {
    socket: Weak<TcpStream>,
    /// This end and the other.
    ends: Option<(SocketAddr, SocketAddr)>,
}

/// What keeps a [`Probe`] alive: to be dropped together with the socket.
pub(super) struct Probed(Arc<TcpStream>);

// === impl Probed ===

impl Probed {
    pub(super) fn new(socket: &tokio::net::TcpStream) -> Self {
        let handle = socket.as_fd().try_clone_to_owned();
        Self(Arc::new(
            handle.expect("a second handle on a socket").into(),
        ))
    }

    pub(super) fn probe(&self) -> Probe {
        let ends = self
            .0
            .local_addr()
            .and_then(|this| Ok((this, self.0.peer_addr()?)));
        Probe {
            socket: Arc::downgrade(&self.0),
            ends: ends.ok(),
        }
    }
}

// === impl Probe ===

impl Probe {
    /// Whether a close or a reset has arrived.
    pub(super) fn heard_close(&self) -> bool {
        let Some(socket) = self.socket.upgrade() else {
            return true;
        };
        match socket.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Whether the peer has closed, heard or not. Reads the kernel's list of all connections.
    pub(super) fn peer_closed(&self) -> bool {
        if self.heard_close() {
            return true;
        }
        // A socket that was reset before it was asked has no peer any more.
        let Some((this, peer)) = self.ends else {
            return true;
        };
        let Ok(connections) = fs::read_to_string("/proc/net/tcp") else {
            return false;
        };
        let connections6 = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
        let peer_is_open = |line: &str| is_open(line, peer.port(), this.port());
        !connections
            .lines()
            .chain(connections6.lines())
            .any(peer_is_open)
    }
}

/// Reads `  0: 0100007F:C350 0100007F:1F90 01 ...`: number, local and remote address, state.
fn is_open(line: &str, local: u16, remote: u16) -> bool {
    // ESTABLISHED, and CLOSE_WAIT: this side has closed, the peer has not.
    const OPEN: [&str; 2] = ["01", "08"];
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let words: Vec<&str> = line.split_whitespace().take(4).collect();
    let [_, from, to, state] = words[..] else {
        return false;
    };
    port(from) == Some(local) && port(to) == Some(remote) && OPEN.contains(&state)
}
