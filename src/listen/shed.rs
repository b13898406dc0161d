//! Connections beyond the limit: each gets a short error response, and is closed.
//!
//! Invariant: a connection that isn't served is bounded in time, and all of them together in number. No
//! worker has anything to do with them.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::AsyncWriteExt;
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
                let _ = timeout(LONGEST, send(accepted, response)).await;
            });
        }
    }
}

impl Default for LoadShedder {
    fn default() -> Self {
        Self(ConnectionLimit::new(AT_ONCE, Arc::default()))
    }
}

async fn send(accepted: AcceptedConnection, response: Bytes) -> std::io::Result<()> {
    let mut wire = pin!(Wire::new(accepted.into_socket()?, Bounds::default())?);
    wire.write_all(&response).await?;
    wire.shutdown().await?;
    let mut linger = Linger::begin();
    poll_fn(|cx| linger.poll(cx, &mut *wire)).await;
    Ok(())
}
