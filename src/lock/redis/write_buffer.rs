//! Gathers commands that are written at the same moment into one system call.
//!
//! Many turns send commands to Redis at the same time. The buffer keeps the commands until every task
//! that can run has run, and writes them together. A single command waits for one round of the run queue.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that gathers writes until it is flushed, and one round of the run queue longer.
#[derive(Debug)]
pub(super) struct WriteBuffer<S> {
    stream: S,
    gathered: BytesMut,
    /// Whether the other tasks have run since the first byte was gathered.
    has_yielded: bool,
}

/// The size of the buffer in bytes: about two hundred commands. More is written at once.
const CAPACITY: usize = 64 << 10;

// === impl WriteBuffer ===

impl<S> WriteBuffer<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            gathered: BytesMut::new(),
            has_yielded: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> WriteBuffer<S> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        self.has_yielded = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteBuffer<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteBuffer<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= CAPACITY {
            ready!(self.poll_write_out(cx))?;
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && !self.has_yielded {
            // The waker puts this task at the end of the run queue.
            self.has_yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_written_arrives_whole_and_in_order() {
        crate::time_limit::limit_this_test();
        let (near, mut far) = tokio::io::duplex(1000);
        let expected: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let sent = expected.clone();
        let writer = tokio::spawn(async move {
            let mut buffer = WriteBuffer::new(near);
            for piece in sent.chunks(777) {
                buffer.write_all(piece).await.unwrap();
                if piece[0] % 3 == 0 {
                    buffer.flush().await.unwrap();
                }
            }
            buffer.shutdown().await.unwrap();
        });
        let mut arrived = Vec::new();
        far.read_to_end(&mut arrived).await.unwrap();
        writer.await.unwrap();
        assert!(
            arrived == expected,
            "nothing is lost, repeated or out of order"
        );
    }
}
