//! The byte stream of a connection to Redis: over TCP, with or without TLS, or over a Unix socket.

use std::io;
use std::time::Duration;

use redis::RedisError;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::address::RedisAddress;
use super::error::{not_executed, not_sent, server_error};
use super::node::RedisNode;
use super::tls::NO_TLS;
use super::url::RedisEndpoint;
use crate::dial;
use crate::lock::StoreError;

/// A byte stream to Redis.
pub(super) trait RedisStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> RedisStream for S {}

/// How often TCP probes an idle connection: several times within a minute, the shortest time after
/// which load balancers and NATs forget a connection.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Opens a stream. A TLS handshake without a reply fails at `give_up`.
///
/// # Errors
/// When there is no connection, or the handshake fails.
pub(super) async fn open(
    address: &RedisAddress,
    node: &RedisNode,
    give_up: Instant,
) -> Result<Box<dyn RedisStream>, StoreError> {
    let failed = |error: io::Error| not_sent(&node.label, &error.to_string());
    match &node.endpoint {
        RedisEndpoint::Tcp { host, port } => {
            let stream = tcp(host, *port, address.timeout).await;
            Ok(Box::new(stream.map_err(failed)?))
        }
        RedisEndpoint::Tls { host, port, name } => {
            let stream = tcp(host, *port, address.timeout).await.map_err(failed)?;
            let handshake = Box::pin(address.tls.handshake(name, stream));
            let done = timeout_at(give_up, handshake).await;
            let done =
                done.unwrap_or_else(|_| Err(format!("no reply to the TLS handshake: {NO_TLS}")));
            let stream = done.map_err(|reason| not_sent(&node.label, &reason))?;
            Ok(Box::new(stream))
        }
        RedisEndpoint::Socket(path) => {
            let stream = UnixStream::connect(path).await;
            Ok(Box::new(stream.map_err(failed)?))
        }
    }
}

/// The error for a login that failed.
pub(super) fn login_error(
    address: &RedisAddress,
    node: &RedisNode,
    error: &RedisError,
) -> StoreError {
    if server_error(error).is_some() {
        return not_executed(&node.label, error);
    }
    let reason = match &node.endpoint {
        RedisEndpoint::Tls { name, .. } => address.tls.login_failure(error, name),
        // A server that has answered before has not changed its TLS: it has just ended.
        RedisEndpoint::Tcp { .. } if !address.server.has_answered() => {
            let (tls, plain) = address.url.schemes();
            format!(
                "the connection was lost while logging in: {error}; if Redis has TLS at this port, write {tls} \
                 in place of {plain}"
            )
        }
        RedisEndpoint::Tcp { .. } | RedisEndpoint::Socket(_) => {
            format!("the connection was lost while logging in: {error}")
        }
    };
    not_sent(&node.label, &reason)
}

/// Opens a connection over TCP. It sends each command at once, and is probed so that load balancers keep it
/// and a dead peer is noticed.
async fn tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let stream = dial::connect(host, port).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 2);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(timeout.max(KEEPALIVE)))?;
    Ok(stream)
}
