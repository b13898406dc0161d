//! One connection over TCP or a Unix socket, and the [`Bounds`] within which it may move bytes.
//!
//! Invariant: no byte is written once a deadline of the [`Bounds`] has passed. [`Wire`] checks the
//! deadline at each write and not with a timer, which may be late; so a byte that waited in a buffer
//! while the process was stopped isn't written either. What the bytes mean is not known here.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::Instant;

pub use bounds::{Bounds, Ended};
pub use flush::FlushWait;
pub use linger::{Linger, LingerTimer};
pub use socket::Socket;
pub use unreachable::probe_when_idle;

mod bounds;
mod deadlines;
mod flush;
mod linger;
mod socket;
mod tcp_state;
#[cfg(test)]
mod tests;
mod unreachable;

/// A connection that hyper, or TLS below hyper, reads and writes.
#[derive(Debug)]
pub struct Wire {
    stream: Arc<Socket>,
    bounds: Bounds,
}

// === impl Wire ===

impl Wire {
    /// Wraps a connected socket and turns Nagle's algorithm off: a streamed response is made of small
    /// pieces, and the client wants each at once.
    ///
    /// # Errors
    /// When the socket is closed already.
    pub fn new(stream: impl Into<Socket>, bounds: Bounds) -> io::Result<Self> {
        let stream = stream.into();
        stream.set_nodelay()?;
        Ok(Self {
            stream: Arc::new(stream),
            bounds,
        })
    }

    /// Resolves when the peer has closed its side, whether or not its last bytes were read.
    /// Cancel-safe.
    ///
    /// hyper stops reading while it holds bytes of a pipelined request, and then doesn't notice
    /// that its client is gone. This future does: the kernel reports the closing by itself
    /// (`EPOLLRDHUP`, which tokio reports for the interest `PRIORITY`).
    pub fn peer_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let stream = Arc::clone(&self.stream);
        async move {
            // `ready` fails only when the runtime shuts down, and the connection with it.
            while let Ok(ready) = stream.ready(Interest::PRIORITY).await {
                if ready.is_read_closed() {
                    return;
                }
                // Urgent data, which HTTP has no use for: it counts as read.
                stream.clear_ready(Interest::PRIORITY);
            }
        }
    }

    /// Resolves when the peer's machine has acknowledged nothing for `limit` although something was sent
    /// to it; 0: never. A peer that reads nothing for a while acknowledges that, and isn't meant. Never
    /// resolves for a Unix socket. Cancel-safe.
    pub fn peer_unreachable(&self, limit: Duration) -> impl Future<Output = ()> + Send + use<> {
        unreachable::unacknowledged(Arc::clone(&self.stream), self.bounds.clone(), limit)
    }

    /// A function that makes the close of the connection a reset, if the client would take an orderly
    /// close for the end of the response ([`Bounds::set_close_is_end`]).
    pub fn resetter(&self) -> impl FnOnce() + use<> {
        let (stream, bounds) = (Arc::clone(&self.stream), self.bounds.clone());
        move || {
            if bounds.is_close_the_end() {
                stream.reset_on_close();
            }
        }
    }

    /// A function that shuts the connection down in both directions, whatever owns it by then.
    pub fn severer(&self) -> impl FnOnce() + use<> {
        let stream = Arc::clone(&self.stream);
        move || {
            // An error means that the socket is shut down already.
            let _ = stream.as_sock_ref().shutdown(Shutdown::Both);
        }
    }

    fn write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(cx) else {
                self.bounds.on_write_blocked();
                return Poll::Pending;
            };
            ready?;
            let now = Instant::now();
            if self.bounds.has_deadline_passed(now) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(written) => {
                    self.bounds.touch_at(now);
                    return Poll::Ready(Ok(written));
                }
                failed => return Poll::Ready(failed),
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.bounds.resets_on_close() {
            self.stream.reset_on_close();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read) => {
                    if read > 0 && buf.remaining() > 0 {
                        // The socket is empty. Telling tokio so saves the read that would only find
                        // that out, as tokio's own stream does.
                        self.stream.clear_ready(Interest::READABLE);
                    }
                    self.bounds.touch();
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket buffers nothing here, and a caller flushes after it has written everything.
        self.bounds.on_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.as_sock_ref().shutdown(Shutdown::Write))
    }
}
