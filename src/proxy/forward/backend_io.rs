//! The bytes of one connection to a backend, as hyper reads and writes them.
//!
//! Invariant: a failed write doesn't hide what the backend has sent. A backend may respond early and close
//! the connection with the rest of the request unread. The socket then refuses writes, while the response
//! waits to be read. hyper would drop the response at the error; so the rest of the request is dropped
//! here instead, until the connection's end is read. Deadlines are kept below, by the wire.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange_notes::{ExchangeNotes, ResponseHeadReader};
use crate::header_names::NameRestorer;

/// A connection to a backend, below hyper and above TLS.
pub(super) struct BackendIo<IO> {
    io: IO,
    /// How a write failed because the peer had closed the connection; `None`: none did.
    write_failure: Option<io::ErrorKind>,
    /// Reads and writes the heads of HTTP/1; `None`: the connection speaks HTTP/2, and no byte of it changes.
    heads: Option<Http1Heads>,
    notes: ExchangeNotes,
}

/// What reads and writes the heads of HTTP/1 on a connection.
#[derive(Default)]
struct Http1Heads {
    /// Reads those of responses.
    reader: ResponseHeadReader,
    /// Gives the names in requests their own letter case.
    restorer: NameRestorer,
}

// === impl BackendIo ===

impl<IO> BackendIo<IO> {
    /// Wraps a connection for HTTP/1 on which nothing was sent yet.
    pub(super) fn http1(io: IO) -> Self {
        Self {
            heads: Some(Http1Heads::default()),
            ..Self::http2(io)
        }
    }

    /// Wraps a connection for HTTP/2 on which nothing was sent yet.
    pub(super) fn http2(io: IO) -> Self {
        Self {
            io,
            write_failure: None,
            heads: None,
            notes: ExchangeNotes::default(),
        }
    }

    /// What is noted of the exchange on this connection.
    pub(super) fn notes(&self) -> ExchangeNotes {
        self.notes.clone()
    }

    /// Does `write`. After the peer has closed the connection, nothing is written, and the result says that all
    /// `length` bytes were.
    fn written(
        &mut self,
        length: usize,
        write: impl FnOnce(
            Pin<&mut IO>,
            Option<&mut NameRestorer>,
            &ExchangeNotes,
        ) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>>
    where
        IO: Unpin,
    {
        if self.write_failure.is_none() {
            let io = Pin::new(&mut self.io);
            let restorer = self.heads.as_mut().map(|heads| &mut heads.restorer);
            match ready!(write(io, restorer, &self.notes)) {
                Err(error) if is_by_peer(error.kind()) => self.write_failure = Some(error.kind()),
                written => return Poll::Ready(written),
            }
        }
        Poll::Ready(Ok(length))
    }
}

/// Whether this is how a write fails when the peer has closed the connection.
fn is_by_peer(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl<IO: AsyncRead + Unpin> AsyncRead for BackendIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        match (&buf.filled()[before..], self.write_failure) {
            // The failed write has taken the reset out of the socket. The end must not look orderly, because
            // it would complete a response that only the close of the connection ends.
            ([], Some(failure)) => Poll::Ready(Err(failure.into())),
            (arrived, _) => {
                let this = &mut *self;
                let reader = this.heads.as_mut().map(|heads| &mut heads.reader);
                this.notes.on_read(arrived, reader);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for BackendIo<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.written(length, |io, restorer, notes| match restorer {
            Some(restorer) => {
                let names = || notes.take_request_names();
                restorer.poll_write(bufs, names, |bufs| io.poll_write_vectored(cx, bufs))
            }
            None => io.poll_write_vectored(cx, bufs),
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.written(0, |io, _, _| io.poll_flush(cx).map_ok(|()| 0));
        flushed.map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;
    use crate::header_names::NameCollector;

    #[tokio::test]
    async fn what_the_peer_sent_before_it_closed_is_read_after_a_write_has_failed() {
        crate::time_limit::limit_this_test();
        let (mut peer, near) = UnixStream::pair().expect("two sockets");
        let mut io = BackendIo::http1(near);
        peer.write_all(b"early").await.expect("there is room");
        drop(peer);
        let mut length = 0;
        while io.write_failure.is_none() {
            length += io.write(b"the rest").await.expect("the rest is dropped");
        }
        assert!(length > 0, "it counts as written");
        io.flush().await.expect("nothing is left to be written");
        let mut read = [0; 5];
        io.read_exact(&mut read).await.expect("the response");
        assert_eq!(&read, b"early");
        let end = io.read(&mut read).await.expect_err("the end isn't orderly");
        assert_eq!(end.kind(), io::ErrorKind::BrokenPipe, "the write's error");
    }

    #[tokio::test]
    async fn what_looks_like_a_head_is_changed_in_http_1_only() {
        crate::time_limit::limit_this_test();
        let mut names = NameCollector::default();
        names.add(b"Host", true, b"");
        let names = names.take();
        let head = b"GET / HTTP/1.1\r\nhost: b\r\n\r\n";
        for (is_http1, expected) in [(true, b"H"), (false, b"h")] {
            let (mut peer, near) = UnixStream::pair().expect("two sockets");
            let mut io = match is_http1 {
                true => BackendIo::http1(near),
                false => BackendIo::http2(near),
            };
            io.notes().begin(names.as_ref(), None);
            io.write_all(head).await.expect("there is room");
            let mut arrived = vec![0; head.len()];
            peer.read_exact(&mut arrived)
                .await
                .expect("the same length");
            assert_eq!(&arrived[16..17], expected, "HTTP/1: {is_http1}");
        }
    }
}
