//! Support for the integration tests: a scripted backend, a raw client, a real Redis as one server, with
//! Sentinels or as a cluster, and a faulty network.
//!
//! Invariant: no test sleeps and hopes. Every wait has a condition, ends after [`LIMIT`] at the latest,
//! and then says what it waited for. Everything that is started here ends when its value is dropped.
//! Only [`app`] knows the application under test.

// The support may offer more than the tests use at present.
#![allow(dead_code)]

pub(crate) mod app;
pub(crate) mod backend;
pub(crate) mod bench;
pub(crate) mod client;
pub(crate) mod cluster_redis;
pub(crate) mod collector;
pub(crate) mod fault;
pub(crate) mod faulty_store;
pub(crate) mod h2;
pub(crate) mod h2_client;
pub(crate) mod kept;
pub(crate) mod load;
pub(crate) mod pool;
pub(crate) mod process;
pub(crate) mod python;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod sentinel_redis;
pub(crate) mod time_limit;
pub(crate) mod tls_redis;
pub(crate) mod wire;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::panic::Location;
use std::time::Duration;
use tokio::net::TcpSocket;

/// The limit of a single wait. It is long enough for two slow cores that run all tests at once, and is
/// reached only when a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The pause between two checks of a condition that sends no notification.
const POLL: Duration = Duration::from_millis(3);

/// Waits until `condition` holds. Panics with `what` after [`LIMIT`].
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

/// Waits until the asynchronous `condition` holds. Panics with `what` after [`LIMIT`], even if a single
/// check takes that long.
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

/// Awaits `future`. Panics with `what` after [`LIMIT`].
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    time_limit::limit_this_test();
    async move {
        match tokio::time::timeout(LIMIT, future).await {
            Ok(output) => output,
            Err(_) => panic!("waited {LIMIT:?} for: {what} (at {caller})"),
        }
    }
}

/// An address on which no process listened a moment ago: for servers that need a port number, and for
/// connections that must be refused. Another process may take the port at any time, so a server that
/// fails to start there must be tried again.
pub(crate) fn unused_addr() -> SocketAddr {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on the loopback interface");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// An address that stays reserved while this value lives: connections to it are refused, and no other
/// process gets the port by chance. A server that sets SO_REUSEADDR, as usual, can listen on it (Linux
/// only).
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
