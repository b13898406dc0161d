//! Connections beyond the limit: each gets a short error response, and is closed.
//!
//! Invariant: a connection that isn't served is bounded in time, and all of them together in number. No
//! worker has anything to do with them.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::accept::AcceptedConnection;
use super::limit::ConnectionLimit;
use crate::http1;
use crate::wire::{Bounds, Linger, Wire};

/// Answers connections beyond the limit with an error response. Cheap to clone; clones share the limit
/// on responses at once.
#[derive(Clone, Debug)]
pub struct LoadShedder(ConnectionLimit);

/// How many connections get an error response at once; further ones are closed without one. Their
/// sockets are open in addition to those that are served.
const AT_ONCE: usize = 128;

/// How long one error response may take, lingering included: long enough for a client on a fast network to
/// send a large upload, and short enough to make room for others.
const LONGEST: Duration = Duration::from_secs(5);

/// How long a client may neither send nor close after its error response. It would take a place from others
/// for nothing.
const SILENCE: Duration = Duration::from_secs(1);

// === impl LoadShedder ===

impl LoadShedder {
    /// Sends `response` before the client's request is read, and closes the connection. `None` closes it
    /// at once: where the listener has TLS, a response would cost a handshake.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn turn_away(&self, accepted: AcceptedConnection, response: Option<&Response<Bytes>>) {
        let Some(response) = response else {
            return;
        };
        if let Some(permit) = self.0.try_open() {
            let response = http1::encode_last_response(response);
            tokio::spawn(async move {
                let _permit = permit;
                if let Ok(wire) = wire(accepted) {
                    send(wire, response).await;
                }
            });
        }
    }
}

impl Default for LoadShedder {
    fn default() -> Self {
        Self(ConnectionLimit::new(AT_ONCE, Arc::default()))
    }
}

fn wire(accepted: AcceptedConnection) -> io::Result<Wire> {
    Wire::new(accepted.into_socket()?, Bounds::default())
}

/// Sends the response, and waits for as long as its client may need to read it.
async fn send<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, response: Bytes) {
    let sending = async {
        io.write_all(&response).await?;
        io.shutdown().await?;
        let mut linger = Linger::begin_with(SILENCE);
        poll_fn(|cx| linger.poll(cx, &mut io)).await;
        io::Result::Ok(())
    };
    let _ = timeout(LONGEST, sending).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Turns away a client that has sent its request and then does as `client`; gives how long it took.
    async fn turn_away<F: Future<Output = ()>>(client: impl FnOnce(DuplexStream) -> F) -> Duration {
        let start = Instant::now();
        let (mut side, server) = duplex(1 << 10);
        side.write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("there is room");
        tokio::select! {
            () = send(server, Bytes::from_static(b"HTTP/1.1 503\r\n\r\n")) => {}
            () = client(side) => panic!("the client stays for as long as the server reads"),
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_still_sends_keeps_its_place_for_long() {
        crate::time_limit::limit_this_test();
        let silent = async |client: DuplexStream| {
            std::future::pending::<()>().await;
            drop(client);
        };
        assert_eq!(turn_away(silent).await, SILENCE, "it only stays");
        let closes = async |client: DuplexStream| {
            drop(client);
            std::future::pending().await
        };
        assert_eq!(turn_away(closes).await, Duration::ZERO, "it has closed");
        let sends = async |mut client: DuplexStream| loop {
            client.write_all(&[0; 100]).await.expect("it is read");
            sleep(SILENCE / 2).await;
        };
        assert_eq!(turn_away(sends).await, LONGEST, "it sends an upload");
    }
}
