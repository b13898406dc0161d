//! Checks whether a connection's peer has closed it at this moment.
//!
//! The bytes that have arrived on this end are not enough to decide. While a test starts a program, the
//! forked process has a copy of every socket of this process until it executes the program, and during
//! that time a close does not arrive. So the probe looks up the peer's end in `/proc`, since it is on
//! this machine too: it is closed if no process holds it, except such a copy. Without `/proc`, the
//! probe relies on what has arrived. A peer in another network namespace is out of reach.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Weak};

/// A check of one connection. The reference is weak, so that it keeps no socket open.
pub(super) struct Probe {
    socket: Weak<TcpStream>,
    /// This end and the peer's end.
    ends: Option<(SocketAddr, SocketAddr)>,
}

/// A second handle on a connection's socket. It must be dropped together with the socket.
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
    /// Whether a close or a reset has arrived, or this end is closed.
    pub(super) fn has_received_close(&self) -> bool {
        let Some(socket) = self.socket.upgrade() else {
            return true;
        };
        match socket.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Whether the peer has closed, even if the close has not arrived. Takes milliseconds.
    pub(super) fn peer_closed(&self) -> bool {
        if self.has_received_close() {
            return true;
        }
        // A socket that was reset before the probe was made has no peer address.
        let Some((this, peer)) = self.ends else {
            return true;
        };
        match fs::read_to_string("/proc/net/tcp") {
            Err(_) => false,
            Ok(connections) => {
                let connections6 = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
                let mut lines = connections.lines().chain(connections6.lines());
                let inode = lines.find_map(|line| open_inode(line, peer.port(), this.port()));
                !inode.is_some_and(is_held)
            }
        }
    }
}

/// The inode of the socket with these ports, unless its process has closed it.
///
/// Reads `0: 0100007F:C350 0100007F:1F90 01 ...`: number, local and remote address, state; the
/// inode is the tenth word, and 0 when no process holds the socket.
fn open_inode(line: &str, local: u16, remote: u16) -> Option<&str> {
    // ESTABLISHED, and CLOSE_WAIT: the peer's end has not been closed by its process.
    const OPEN: [&str; 2] = ["01", "08"];
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, from, to, state, _, _, _, _, _, inode, ..] = words[..] else {
        return None;
    };
    let is_wanted = port(from) == Some(local) && port(to) == Some(remote);
    (is_wanted && OPEN.contains(&state) && inode != "0").then_some(inode)
}

/// Whether a process holds this socket: this one, or another program.
fn is_held(inode: &str) -> bool {
    let own = Path::new("/proc/self");
    let program = |process: &Path| fs::read_link(process.join("exe")).ok();
    if holds(own, inode) {
        return true;
    }
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    let mut others = processes
        .flatten()
        .map(|entry| entry.path())
        .filter(|process| {
            let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            process.file_name().is_some_and(is_number) && program(process) != program(own)
        });
    others.any(|process| holds(&process, inode))
}

fn holds(process: &Path, inode: &str) -> bool {
    let socket = format!("socket:[{inode}]");
    // Processes end, and some must not be read.
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    let mut files = files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok());
    files.any(|file| file.as_os_str() == socket.as_str())
}
