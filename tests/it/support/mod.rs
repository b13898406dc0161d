//! What the integration tests stand on: a scripted backend, a raw client, a real Redis and a bad
//! network.
//!
//! Invariant: nothing here sleeps and hopes. Every wait is for a condition, ends after [`LIMIT`] at
//! the latest, and then says what it waited for. Everything that is started here is ended when its
//! value is dropped. Only [`app`] knows the application under test.

// The support serves every test file, so what one of them leaves unused is not dead.
#![allow(dead_code)]

pub(crate) mod app;
pub(crate) mod backend;
pub(crate) mod bench;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod fault;
pub(crate) mod h2;
pub(crate) mod h2_client;
pub(crate) mod process;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod wire;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::panic::Location;
use std::time::Duration;
use tokio::net::TcpSocket;

/// How long any single wait may last. Long enough for two slow cores that run every test at once;
/// reached only when a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The pause between two looks at a condition that nothing announces.
const POLL: Duration = Duration::from_millis(3);

/// Waits until `condition` holds; panics with `what` after [`LIMIT`].
#[track_caller]
pub(crate) fn wait_for(
    mut condition: impl FnMut() -> bool,
    what: &str,
) -> impl Future<Output = ()> {
    within(what, async move {
        while !condition() {
            tokio::time::sleep(POLL).await;
        }
    })
}

/// Waits until the asynchronous `condition` holds; panics with `what` after [`LIMIT`], also when
/// one look takes that long.
#[track_caller]
pub(crate) fn wait_for_async(
    mut condition: impl AsyncFnMut() -> bool,
    what: &str,
) -> impl Future<Output = ()> {
    within(what, async move {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    })
}

/// Awaits `future`; panics with `what` after [`LIMIT`].
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match tokio::time::timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited {LIMIT:?} in vain for: {what} (at {caller})"),
        }
    }
}

/// An address on which nobody listened a moment ago: for servers that must be told their port, and
/// for connections that must be refused. Another process may take it at any time, so whoever starts
/// a server there tries again.
pub(crate) fn unused_addr() -> SocketAddr {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on the loopback interface");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// An address on which nobody listens, and which nobody is given by chance as long as this is
/// there: connections to it are refused. A server that sets SO_REUSEADDR, as they all do, can
/// listen on it (Linux's rules).
pub(crate) struct Reserved {
    addr: SocketAddr,
    _socket: TcpSocket,
}

impl Reserved {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket
            .set_reuseaddr(true)
            .expect("SO_REUSEADDR on a new socket");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("a free port");
        let addr = socket.local_addr().expect("a bound socket has an address");
        Self {
            addr,
            _socket: socket,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}
