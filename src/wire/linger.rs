//! Lingering close (RFC 9112 §9.6): the server reads on for a while after its last response. A socket
//! that is closed with unread bytes is reset, and the reset may destroy the response before the client
//! has read it.
//!
//! The limits are times and not a number of bytes: a client that still sends reads its response when it
//! has sent everything, and not before.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A lingering close in progress. The writing side is shut down before it begins.
#[derive(Debug)]
pub struct Linger(LingerTimer);

/// How long a server reads on what it doesn't want: until nothing has come for five seconds (or another
/// time), and for thirty seconds at most.
#[derive(Debug)]
pub struct LingerTimer {
    last_byte: Instant,
    /// How long the client may send nothing.
    silence: Duration,
    end: Instant,
    timer: Pin<Box<Sleep>>,
    is_hurried: bool,
}

/// How long a client may send nothing: nginx's default (`lingering_timeout`).
const SILENCE: Duration = Duration::from_secs(5);

/// How long the server reads on at most: nginx's default (`lingering_time`).
const LONGEST: Duration = Duration::from_secs(30);

/// How long a server in a hurry still reads on: a few round trips.
const HURRIED: Duration = Duration::from_secs(1);

/// How many bytes are read at once.
const PIECE: usize = 16 << 10;

// === impl LingerTimer ===

impl LingerTimer {
    /// A timer that starts now.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start() -> Self {
        Self::start_with(SILENCE)
    }

    /// A timer that starts now and ends when nothing has come for `silence`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    fn start_with(silence: Duration) -> Self {
        let now = Instant::now();
        Self {
            last_byte: now,
            silence,
            end: now + LONGEST,
            timer: Box::pin(sleep_until(now + silence)),
            is_hurried: false,
        }
    }

    /// Notes that bytes have come.
    pub fn on_bytes(&mut self) {
        self.last_byte = Instant::now();
    }

    /// Ends the time in a second, because the process stops. Further calls change nothing.
    pub fn hurry(&mut self) {
        if !self.is_hurried {
            self.is_hurried = true;
            self.end = self.end.min(Instant::now() + HURRIED);
            let due = self.due();
            self.timer.as_mut().reset(due);
        }
    }

    /// Ready when the time is over. Wakes the task then.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.due();
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    fn due(&self) -> Instant {
        self.end.min(self.last_byte + self.silence)
    }
}

// === impl Linger ===

impl Linger {
    /// Begins a lingering close.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin() -> Self {
        Self(LingerTimer::start())
    }

    /// Begins a lingering close that ends when nothing has come for `silence`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin_with(silence: Duration) -> Self {
        Self(LingerTimer::start_with(silence))
    }

    /// Ends the close in a second, because the process stops. Further calls change nothing.
    pub fn hurry(&mut self) {
        self.0.hurry();
    }

    /// Reads and drops what comes on `io`. Ready when the client has closed its side, or when the time
    /// is over.
    pub fn poll<IO: AsyncRead + Unpin>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<()> {
        loop {
            let mut sink = [0; PIECE];
            let mut sink = ReadBuf::new(&mut sink);
            match Pin::new(&mut *io).poll_read(cx, &mut sink) {
                Poll::Pending => return self.0.poll(cx),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if sink.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    self.0.on_bytes();
                    // A client that never pauses has no more time than others.
                    if self.0.last_byte >= self.0.end {
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

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;

    /// Lingers on a connection to which `send` sends; gives how long it took.
    async fn linger<F: Future<Output = ()>>(
        is_hurried: bool,
        send: impl FnOnce(DuplexStream) -> F,
    ) -> Duration {
        let start = Instant::now();
        let (client, mut server) = duplex(1 << 20);
        let mut linger = Linger::begin();
        if is_hurried {
            linger.hurry();
        }
        tokio::select! {
            () = poll_fn(|cx| linger.poll(cx, &mut server)) => {}
            () = send(client) => panic!("the client stays for as long as the server reads"),
        }
        start.elapsed()
    }

    async fn never_ends() {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_lingering_close_ends_with_the_client_or_with_its_time() {
        crate::time_limit::limit_this_test();
        let silent = async |client: DuplexStream| {
            never_ends().await;
            drop(client);
        };
        assert_eq!(linger(false, silent).await, SILENCE, "nothing comes");
        let closes = async |client: DuplexStream| {
            drop(client);
            never_ends().await;
        };
        assert_eq!(linger(false, closes).await, Duration::ZERO, "it has closed");
        let drips = async |mut client: DuplexStream| loop {
            client.write_all(b"x").await.expect("there is room");
            sleep(SILENCE - Duration::from_secs(1)).await;
        };
        let took = linger(false, drips).await;
        assert_eq!(took, LONGEST, "however often something comes");
        let much = async |mut client: DuplexStream| {
            for _ in 0..4 {
                let piece = vec![0; 16 << 20];
                client.write_all(&piece).await.expect("it is read");
                sleep(Duration::from_secs(4)).await;
            }
            never_ends().await;
        };
        let took = linger(false, much).await;
        assert_eq!(
            took,
            Duration::from_secs(12) + SILENCE,
            "however much comes, it is read"
        );
        let took = linger(true, drips).await;
        assert_eq!(took, HURRIED, "a process that stops waits for nobody");
    }
}
