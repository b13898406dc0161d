//! Connections beyond the limit: each is told so in a few bytes, and closed.
//!
//! Invariant: what a connection costs that isn't served is bounded in time, and all of them together
//! in number; no worker has to do with them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{AcceptedConnection, http1};
use crate::wire::{Bounds, Wire};

/// Tells clients that there are too many. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoadShedder {
    telling: Arc<AtomicUsize>,
}

/// How many are told at once; what comes beyond is closed without a word. Their sockets are open
/// beside those that are served.
const AT_ONCE: usize = 128;

/// For how long a client's request is read, so that closing doesn't take the answer along.
const LINGER: Duration = Duration::from_secs(1);

/// How much of it.
const LINGER_BYTES: usize = 64 * 1024;

// === impl Shed ===

impl LoadShedder {
    /// Answers whatever the client will ask, and closes. Where TLS is spoken an answer would cost a
    /// handshake: `None` closes at once.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn turn_away(&self, accepted: AcceptedConnection, answer: Option<&Response<Bytes>>) {
        let Some(answer) = answer else {
            return;
        };
        let telling = ShedConnection::begin(&self.telling);
        if let Some(telling) = telling {
            let answer = http1::in_bytes(answer);
            tokio::spawn(async move {
                let _telling = telling;
                let _ = timeout(LINGER, tell(accepted, answer)).await;
            });
        }
    }
}

async fn tell(accepted: AcceptedConnection, answer: Bytes) -> std::io::Result<()> {
    let mut wire = pin!(Wire::new(accepted.into_socket()?, Bounds::new())?);
    wire.write_all(&answer).await?;
    wire.shutdown().await?;
    let (mut sink, mut left) = ([0; 4096], LINGER_BYTES);
    while left > 0 {
        match wire.read(&mut sink).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

/// One of those that are being told.
struct ShedConnection(Arc<AtomicUsize>);

impl ShedConnection {
    fn begin(count: &Arc<AtomicUsize>) -> Option<Self> {
        let own = Self(Arc::clone(count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        // Dropped, it counts itself out.
        (before < AT_ONCE).then_some(own)
    }
}

impl Drop for ShedConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
