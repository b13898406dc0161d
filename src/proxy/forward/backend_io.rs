//! The bytes of one connection to a backend, as hyper reads and writes them.
//!
//! Invariant: a failed write doesn't hide what the backend has sent. A backend may respond early and close
//! the connection with the rest of the request unread. The socket then refuses writes, while the response
//! waits to be read. hyper would drop the response at the error; so the rest of the request is dropped
//! here instead, until the connection's end is read. Deadlines are kept below, by the wire.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use hyper::ext::ReasonPhrase;
use memchr::memchr;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a backend, below hyper and above TLS.
pub(super) struct BackendIo<IO> {
    io: IO,
    /// How a write failed because the peer had closed the connection; `None`: none did.
    write_failure: Option<io::ErrorKind>,
    start: ResponseStart,
}

/// What has arrived of the response to the request that was sent last. Clones share it.
#[derive(Clone, Default)]
pub(super) struct ResponseStart(Arc<ResponseStartState>);

#[derive(Default)]
struct ResponseStartState {
    has_begun: AtomicBool,
    /// The first line is complete, or is none that matters.
    has_line: AtomicBool,
    /// The first line, if it came in pieces or is not in ASCII.
    line: Mutex<Vec<u8>>,
}

/// The longest first line that is kept, in bytes: more than any reason phrase has.
const MAX_LINE: usize = 1024;

// === impl BackendIo ===

impl<IO> BackendIo<IO> {
    /// Wraps a connection on which nothing was sent yet.
    pub(super) fn new(io: IO) -> Self {
        Self {
            io,
            write_failure: None,
            start: ResponseStart::default(),
        }
    }

    /// What has arrived of the response that is read from this.
    pub(super) fn response_start(&self) -> ResponseStart {
        self.start.clone()
    }

    /// Writes. After the peer has closed the connection, nothing is written, and the result says that all
    /// `length` bytes were.
    fn written(
        &mut self,
        length: usize,
        write: impl FnOnce(Pin<&mut IO>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>>
    where
        IO: Unpin,
    {
        if self.write_failure.is_none() {
            match ready!(write(Pin::new(&mut self.io))) {
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
                self.start.note(arrived);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for BackendIo<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written(buf.len(), |io| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.written(length, |io| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.written(0, |io| io.poll_flush(cx).map_ok(|()| 0));
        flushed.map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl ResponseStart ===

impl ResponseStart {
    /// Forgets the last response, before a request is sent.
    pub(super) fn reset(&self) {
        self.0.has_begun.store(false, Ordering::Relaxed);
        self.0.has_line.store(false, Ordering::Relaxed);
        self.0.line.lock().clear();
    }

    /// Whether a byte of the response has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Relaxed)
    }

    /// The reason phrase (RFC 9112 §4) of an HTTP/1 response with this status, if hyper loses it: hyper
    /// keeps phrases in ASCII only. `None` also behind an interim response, whose phrase it is then.
    pub(super) fn lost_reason(&self, status: StatusCode) -> Option<ReasonPhrase> {
        let line = self.0.line.lock();
        if line.is_ascii() {
            return None;
        }
        let (version, rest) = (line.get(..9)?, line.get(9..)?);
        let reason = rest.strip_prefix(status.as_str().as_bytes())?;
        let reason = reason.strip_prefix(b" ")?;
        let reason = reason.strip_suffix(b"\r").unwrap_or(reason);
        let is_http1 = version.starts_with(b"HTTP/1.");
        // It fails for control characters alone, which hyper has refused.
        let reason = ReasonPhrase::try_from(Bytes::copy_from_slice(reason)).ok();
        reason.filter(|_| is_http1)
    }

    /// Notes bytes that have arrived.
    fn note(&self, arrived: &[u8]) {
        if arrived.is_empty() || self.0.has_line.load(Ordering::Relaxed) {
            return;
        }
        self.0.has_begun.store(true, Ordering::Relaxed);
        let end = memchr(b'\n', arrived);
        let piece = &arrived[..end.unwrap_or(arrived.len())];
        let mut line = self.0.line.lock();
        // Nearly every line is whole and in ASCII, and isn't copied.
        if !line.is_empty() || end.is_none() || !piece.is_ascii() {
            line.extend_from_slice(&piece[..piece.len().min(MAX_LINE)]);
        }
        let is_over = end.is_some() || line.len() >= MAX_LINE;
        self.0.has_line.store(is_over, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_the_peer_sent_before_it_closed_is_read_after_a_write_has_failed() {
        crate::time_limit::limit_this_test();
        let (mut peer, near) = UnixStream::pair().expect("two sockets");
        let mut io = BackendIo::new(near);
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

    #[test]
    fn a_reason_in_utf8_is_found_however_it_arrives() {
        let line = "HTTP/1.1 200 成功\r\n";
        let expected = "成功".as_bytes();
        for at in 0..line.len() {
            let start = ResponseStart::default();
            let (first, second) = line.as_bytes().split_at(at);
            start.note(first);
            start.note(second);
            start.note(b"x-a: \xff\r\n\r\n");
            let reason = start.lost_reason(StatusCode::OK).expect("a phrase");
            assert_eq!(reason.as_bytes(), expected, "split at {at}");
            assert_eq!(
                start.lost_reason(StatusCode::ACCEPTED),
                None,
                "it belongs to its own status"
            );
            start.reset();
            assert!(!start.has_begun(), "the next response has not begun");
            start.note(b"HTTP/1.1 200 OK\r\n");
            assert_eq!(start.lost_reason(StatusCode::OK), None, "hyper keeps it");
        }
    }

    #[test]
    fn a_line_without_an_end_is_kept_up_to_a_limit() {
        let start = ResponseStart::default();
        for _ in 0..10 {
            start.note(&[0xff; 400]);
        }
        assert!(start.0.line.lock().len() < 2 * MAX_LINE, "and no further");
    }
}
