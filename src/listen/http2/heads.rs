//! Since when a head is coming in over HTTP/2, which h2 doesn't tell: it hands over whole ones.
//!
//! Invariant: what passes is not changed, and of frames no more is looked at than where they begin
//! and end (RFC 9113 §4.1). What is no frame, h2 ends the connection for.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::super::PREFACE;

/// A stream that is watched as it is read, and of which something may have been read before.
pub(super) struct Watched<IO> {
    early: BytesMut,
    io: IO,
    frames: Frames,
    head: Head,
}

/// Since when what is read last is a part of something. Clones are of the same connection.
#[derive(Clone)]
pub(super) struct Head(Arc<Since>);

struct Since {
    base: Instant,
    /// In nanoseconds behind `base`; [`NONE`]: nothing is under way.
    began: AtomicU64,
}

/// How far the frames of a connection have been read.
struct Frames {
    /// What is left of the current frame's payload, or of the preface.
    left: usize,
    header: [u8; FRAME_HEADER],
    /// How much of the next frame's header is there.
    got: usize,
    is_data: bool,
    /// Its headers go on in the next frame.
    goes_on: bool,
}

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

const NONE: u64 = u64::MAX;

// === impl Watched ===

impl<IO> Watched<IO> {
    pub(super) fn new(early: BytesMut, io: IO) -> Self {
        let since = Since {
            base: Instant::now(),
            began: AtomicU64::new(NONE),
        };
        Self {
            early,
            io,
            frames: Frames::new(),
            head: Head(Arc::new(since)),
        }
    }

    pub(super) fn head(&self) -> Head {
        self.head.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.early.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let count = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..count]);
            this.early.advance(count);
            if this.early.is_empty() {
                this.early = BytesMut::new();
            }
        }
        let began = this.frames.read(&buf.filled()[before..]);
        this.head.note(this.frames.is_within(), began);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl Head ===

impl Head {
    /// Since when one is coming in; `None`: none is.
    pub(super) fn since(&self) -> Option<Instant> {
        match self.0.began.load(Ordering::Relaxed) {
            NONE => None,
            began => Some(self.0.base + std::time::Duration::from_nanos(began)),
        }
    }

    fn note(&self, is_within: bool, began: bool) {
        if !is_within {
            self.0.began.store(NONE, Ordering::Relaxed);
        } else if began {
            let now = u64::try_from(self.0.base.elapsed().as_nanos()).unwrap_or(NONE - 1);
            self.0.began.store(now, Ordering::Relaxed);
        }
    }
}

// === impl Frames ===

impl Frames {
    /// Of a connection that has yet to send its preface.
    fn new() -> Self {
        Self {
            left: PREFACE.len(),
            header: [0; FRAME_HEADER],
            got: 0,
            // That it comes in time is seen to in another way.
            is_data: true,
            goes_on: false,
        }
    }

    /// Reads on, and says whether something has begun in these bytes.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut began = false;
        while !bytes.is_empty() {
            let count = self.left.min(bytes.len());
            self.left -= count;
            bytes = &bytes[count..];
            if bytes.is_empty() {
                break;
            }
            began |= self.got == 0 && !self.goes_on;
            let count = (FRAME_HEADER - self.got).min(bytes.len());
            self.header[self.got..self.got + count].copy_from_slice(&bytes[..count]);
            self.got += count;
            bytes = &bytes[count..];
            if self.got == FRAME_HEADER {
                let [high, middle, low, kind, flags, ..] = self.header;
                self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.got = 0;
                self.is_data = kind == DATA;
                self.goes_on = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
            }
        }
        began
    }

    /// Whether what was read last is a part of something. A body isn't: it has a time of its own.
    fn is_within(&self) -> bool {
        self.got > 0 || self.goes_on || self.left > 0 && !self.is_data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + usize::from(length), 0);
        frame
    }

    #[test]
    fn a_head_is_under_way_until_its_last_byte_however_it_comes() {
        let head = [frame(HEADERS, 0, 3), frame(CONTINUATION, END_HEADERS, 2)].concat();
        for piece in [1, 2, 9, 12, head.len()] {
            let mut frames = Frames::new();
            frames.read(PREFACE);
            assert!(!frames.is_within(), "nothing has begun with the preface");
            let mut left = head.len();
            for (at, bytes) in head.chunks(piece).enumerate() {
                let began = frames.read(bytes);
                left -= bytes.len();
                assert_eq!(began, at == 0, "one head begins once: {piece}");
                assert_eq!(frames.is_within(), left > 0, "until it is whole: {piece}");
            }
        }
    }

    #[test]
    fn a_body_and_whole_frames_are_no_head() {
        let mut frames = Frames::new();
        frames.read(PREFACE);
        frames.read(&frame(4, 0, 0));
        assert!(!frames.is_within(), "an empty frame is whole");
        frames.read(&frame(DATA, 0, 9)[..12]);
        assert!(!frames.is_within(), "a body may come slowly");
        let rest = [&frame(DATA, 0, 9)[12..], &frame(6, 0, 8)[..5]].concat();
        assert!(frames.read(&rest), "what comes behind it begins");
        assert!(frames.is_within(), "and isn't whole");
        let next = [&frame(6, 0, 8)[5..], &frame(HEADERS, 0, 1)].concat();
        assert!(frames.read(&next), "so does the next");
    }
}
