//! Connections beyond the limit: each gets a short error response, and is closed.
//!
//! Invariant: a connection that isn't served is bounded in time, and all of them together in number. No
//! worker has anything to do with them.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::accept::AcceptedConnection;
use crate::http1;
use crate::wire::{Bounds, Linger, Wire};

/// Answers connections beyond the limit with an error response. Cheap to clone; clones share the limit
/// on responses at once.
#[derive(Clone, Debug, Default)]
pub struct LoadShedder {
    open: Arc<AtomicUsize>,
}

/// A connection that gets an error response.
struct ShedConnection(Arc<AtomicUsize>);

/// How many connections get an error response at once; further ones are closed without one. Their
/// sockets are open in addition to those that are served.
const AT_ONCE: usize = 128;

/// How long one error response may take, lingering included.
const LONGEST: Duration = Duration::from_secs(1);

/// How many bytes of the client's request a lingering close reads at most.
const LINGER_BYTES: usize = 64 * 1024;

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
        if let Some(shed) = ShedConnection::open(&self.open) {
            let response = http1::encode_last_response(response);
            tokio::spawn(async move {
                let _shed = shed;
                let _ = timeout(LONGEST, send(accepted, response)).await;
            });
        }
    }
}

async fn send(accepted: AcceptedConnection, response: Bytes) -> std::io::Result<()> {
    let mut wire = pin!(Wire::new(accepted.into_socket()?, Bounds::new())?);
    wire.write_all(&response).await?;
    wire.shutdown().await?;
    let mut linger = Linger::new(LINGER_BYTES);
    poll_fn(|cx| linger.poll(cx, &mut *wire)).await;
    Ok(())
}

// === impl ShedConnection ===

impl ShedConnection {
    /// `None`: as many connections as allowed get an error response now.
    fn open(count: &Arc<AtomicUsize>) -> Option<Self> {
        let own = Self(Arc::clone(count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        // Dropping the guard takes it from the count again.
        (before < AT_ONCE).then_some(own)
    }
}

impl Drop for ShedConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
