//! Finds the peer that is gone without a word: its machine has lost its network, or is off.
//!
//! Two things are asked. While nothing is on its way to the peer, the kernel probes it (keepalive), and
//! fails the connection itself. While something is on its way, the kernel would try for 15 minutes; so
//! [`Wire::peer_unreachable`](super::Wire::peer_unreachable) asks whether the peer acknowledges it.
//!
//! A peer that only reads nothing is not unreachable: its kernel acknowledges probes of its closed
//! window. How long it may do so is a matter of the bounds. A peer that reads nothing and then is gone
//! leaves these probes unanswered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::time::{Instant, sleep};

use super::bounds::Bounds;
use super::socket::Socket;
use super::tcp_state::TcpState;

/// How many probes without an answer fail an idle connection.
const PROBES: u32 = 3;

/// How often the kernel is asked within the limit.
const CHECKS: u32 = 6;

/// The shortest time between two checks.
const MIN_CHECK: Duration = Duration::from_millis(50);

/// Makes the kernel fail connections whose peer answers nothing for `limit` while they are idle. The
/// first half of the limit passes before the first of three probes (in whole seconds, at least one).
/// Connections that a listener accepts have its settings.
///
/// # Errors
/// If `socket` isn't a TCP socket.
pub fn probe_when_idle(socket: SockRef<'_>, limit: Duration) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(whole_seconds(limit / 2))
        .with_interval(whole_seconds(limit / (2 * PROBES)))
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// A duration in whole seconds, rounded up, because the kernel counts its probes in seconds.
fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs(duration.as_millis().div_ceil(1000) as u64)
}

/// Resolves when the peer of `stream` has acknowledged nothing for `limit` although something was sent
/// to it; 0: never. Meanwhile notes in `bounds` when half of the limit has passed. Cancel-safe.
pub(super) async fn unacknowledged(stream: Arc<Socket>, bounds: Bounds, limit: Duration) {
    let addresses = match &*stream {
        Socket::Tcp(_) if limit.is_zero() => None,
        Socket::Tcp(stream) => stream.local_addr().ok().zip(stream.peer_addr().ok()),
        Socket::Unix(_) => None,
    };
    if let Some((local, peer)) = addresses {
        match watch(local, peer, &bounds, limit).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "can't ask for the state of TCP; using TCP_USER_TIMEOUT");
                // An error means that the connection is over.
                let _ = stream.as_sock_ref().set_tcp_user_timeout(Some(limit));
            }
        }
    }
    std::future::pending().await
}

/// As [`unacknowledged`], on a TCP connection.
///
/// # Errors
/// If this system doesn't answer such questions.
async fn watch(
    local: SocketAddr,
    peer: SocketAddr,
    bounds: &Bounds,
    limit: Duration,
) -> io::Result<()> {
    let mut since: Option<Instant> = None;
    // When a byte had last moved at a check that found everything acknowledged.
    let mut quiet = None;
    let mut has_answered = false;
    loop {
        sleep((limit / CHECKS).max(MIN_CHECK)).await;
        let moved = bounds.last_byte_at();
        if quiet == Some(moved) {
            continue;
        }
        let state = match TcpState::query(local, peer) {
            Ok(state) => state,
            Err(error) if is_for_good(&error, has_answered) => return Err(error),
            Err(_) => continue,
        };
        has_answered = true;
        quiet = (!state.is_unacknowledged()).then_some(moved);
        let now = Instant::now();
        since = match since {
            _ if !state.is_resending() => None,
            Some(since) if state.last_ack >= now - since => Some(since),
            _ => Some(now),
        };
        let silent = since.map_or(Duration::ZERO, |since| now - since);
        bounds.set_unacknowledged(silent >= limit / 2);
        if silent >= limit {
            return Ok(());
        }
    }
}

/// Whether the kernel won't answer the next question either. One that has answered only lacks something
/// for the moment, for example file descriptors under load.
fn is_for_good(error: &io::Error, has_answered: bool) -> bool {
    let is_lacking = matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN)
    );
    !has_answered && !is_lacking
}

#[cfg(test)]
mod tests {
    use socket2::SockFilter;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::Wire;
    use super::*;

    #[test]
    fn only_a_system_that_never_answers_is_not_asked_again() {
        for lacking in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::AGAIN,
        ] {
            let error = lacking.into();
            assert!(!is_for_good(&error, false), "{error} may pass");
        }
        for refusal in [Errno::PERM, Errno::PROTONOSUPPORT, Errno::NOENT] {
            let error = refusal.into();
            assert!(is_for_good(&error, false), "{error} is a refusal");
            assert!(!is_for_good(&error, true), "{error} after an answer");
        }
        let unreadable = io::ErrorKind::InvalidData.into();
        assert!(is_for_good(&unreadable, false), "an unknown kernel");
    }

    #[tokio::test]
    async fn a_peer_that_acknowledges_nothing_is_noted_before_it_counts_as_gone() {
        crate::time_limit::limit_this_test();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(address).await.expect("it listens");
        let (served, _) = listener.accept().await.expect("a client");
        let bounds = Bounds::default();
        let mut wire = Wire::new(served, bounds.clone()).expect("a live socket");
        // No packet reaches the client's socket any more (`BPF_RET | BPF_K`, of which 0 bytes are kept).
        SockRef::from(&client)
            .attach_filter(&[SockFilter::new(6, 0, 0, 0)])
            .expect("any process may filter its own sockets");
        wire.write_all(b"lost").await.expect("the buffer has room");
        assert!(!bounds.is_unacknowledged(), "nobody knows it yet");
        let gone = wire.peer_unreachable(Duration::from_secs(1));
        let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
        gone.expect("the kernel tells that nothing is acknowledged");
        assert!(
            bounds.for_stream().is_unacknowledged(),
            "and whoever ends a turn finds that its client got nothing"
        );
    }
}
