//! Lingering close (RFC 9112 §9.6): the server reads on for a moment after its last response. A
//! socket that is closed with unread bytes is reset, and the reset may destroy the response before
//! the client has read it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A lingering close in progress. The writing side is shut down before it begins.
#[derive(Debug)]
pub struct Linger {
    until: Pin<Box<Sleep>>,
    /// How many more bytes are read and dropped.
    bytes_left: usize,
}

/// How long a lingering close takes at most: a few round trips.
const LONGEST: Duration = Duration::from_secs(1);

// === impl Linger ===

impl Linger {
    /// Begins a lingering close that reads `most_bytes` at most, and lasts a second at most.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(most_bytes: usize) -> Self {
        Self {
            until: Box::pin(sleep(LONGEST)),
            bytes_left: most_bytes,
        }
    }

    /// Reads and drops what comes on `io`. Ready when the client has closed its side, or when a limit
    /// is reached.
    pub fn poll<IO: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<()> {
        loop {
            let mut sink = [0; 4096];
            let mut sink = ReadBuf::new(&mut sink);
            match Pin::new(&mut *io).poll_read(cx, &mut sink) {
                Poll::Pending => return self.until.as_mut().poll(cx),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    let count = sink.filled().len();
                    self.bytes_left = self.bytes_left.saturating_sub(count);
                    if count == 0 || self.bytes_left == 0 || self.until.is_elapsed() {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lingering_close_ends_with_the_client_with_its_bytes_or_with_its_time() {
        let start = Instant::now();
        let (mut client, mut server) = duplex(1 << 16);
        client.write_all(&[0; 10_000]).await.expect("there is room");
        let mut linger = Linger::new(8_000);
        poll_fn(|cx| linger.poll(cx, &mut server)).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "enough bytes end it");
        let mut linger = Linger::new(1 << 20);
        poll_fn(|cx| linger.poll(cx, &mut server)).await;
        assert_eq!(start.elapsed(), LONGEST, "a silent client has a second");
        drop(client);
        let mut linger = Linger::new(1 << 20);
        poll_fn(|cx| linger.poll(cx, &mut server)).await;
        assert_eq!(start.elapsed(), LONGEST, "a client that closes ends it");
    }
}
