//! Times an HTTP/2 connection: since when a head is being received, and when a piece of a response was
//! last written. h2 doesn't say: it hands over complete heads, and buffers responses.
//!
//! Invariant: the bytes pass unchanged. Of frames, only the header is read (RFC 9113 §4.1). If the bytes
//! aren't frames, h2 ends the connection.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::body::OpenStreams;
use crate::deadline::AtomicInstant;
use crate::service::HeadReservation;

/// A stream that notes the times of its frames as they are read and written.
pub(super) struct FrameWatcher<IO> {
    /// What has been read from `io` already, and not handed out.
    early: BytesMut,
    io: IO,
    read: FrameReader,
    written: FrameReader,
    times: FrameTimes,
    /// The memory of the head that is being received.
    memory: HeadReservation,
    open_streams: OpenStreams,
}

/// The times of a connection's frames. Clones belong to the same connection.
#[derive(Clone)]
pub(super) struct FrameTimes(Arc<FrameTimesState>);

struct FrameTimesState {
    /// When the head that is being received began; unset: none is being received.
    head_since: AtomicInstant,
    /// When a piece of a response was last written, or the connection was made.
    response_at: AtomicInstant,
    /// A piece of a response was written since `response_at` was set.
    has_response: AtomicBool,
}

/// The position in the frames of one direction.
struct FrameReader {
    /// How many bytes are left of the current frame's payload, or of the preface.
    left: usize,
    header: [u8; FRAME_HEADER],
    /// How many bytes of the next frame's header were read.
    got: usize,
    kind: u8,
    /// The current frame's headers continue in the next frame.
    is_continued: bool,
    /// How many bytes of the current head or frame were read.
    length: usize,
    /// Some of the bytes that were read last belong to a request or a response.
    has_message: bool,
}

/// How an HTTP/2 connection begins if both sides know that they speak it (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Not a kind of frame. The preface has a timeout of its own.
const PREFACE_OR_NONE: u8 = u8::MAX;

// === impl FrameWatcher ===

impl<IO> FrameWatcher<IO> {
    pub(super) fn new(
        early: BytesMut,
        io: IO,
        memory: HeadReservation,
        open_streams: OpenStreams,
    ) -> Self {
        let times = FrameTimesState {
            head_since: AtomicInstant::unset(),
            response_at: AtomicInstant::new(Instant::now()),
            has_response: AtomicBool::new(false),
        };
        Self {
            early,
            io,
            read: FrameReader::after_preface(PREFACE.len()),
            written: FrameReader::after_preface(0),
            times: FrameTimes(Arc::new(times)),
            memory,
            open_streams,
        }
    }

    pub(super) fn times(&self) -> FrameTimes {
        self.times.clone()
    }

    fn note_written(&mut self, bytes: &[u8]) {
        self.written.read(bytes);
        if self.written.has_message {
            self.times.0.has_response.store(true, Ordering::Relaxed);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FrameWatcher<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.early.is_empty() {
            let read = Pin::new(&mut this.io).poll_read(cx, buf)?;
            if read.is_pending() && this.open_streams.is_empty() {
                ready!(this.memory.poll_reclaimed(cx));
                return Poll::Ready(Err(ErrorKind::OutOfMemory.into()));
            }
            ready!(read);
        } else {
            let count = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..count]);
            this.early.advance(count);
            if this.early.is_empty() {
                this.early = BytesMut::new();
            }
        }
        let began = this.read.read(&buf.filled()[before..]);
        let is_within = this.read.is_within();
        this.times.note_head(is_within, began);
        if began || !is_within {
            // The head is complete: from here on its request owns the memory that it needs.
            this.memory.release();
        }
        // While streams are open the head may still arrive without memory: one head for each connection.
        if is_within && !this.memory.reserve_head(this.read.length) && this.open_streams.is_empty()
        {
            return Poll::Ready(Err(ErrorKind::OutOfMemory.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for FrameWatcher<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.note_written(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let count = left.min(buf.len());
            self.note_written(&buf[..count]);
            left -= count;
        }
        Poll::Ready(Ok(written))
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

// === impl FrameTimes ===

impl FrameTimes {
    /// Since when a head is being received; `None`: none is.
    pub(super) fn head_since(&self) -> Option<Instant> {
        self.0.head_since.load()
    }

    /// When a piece of a response was last written, as far as is known. The time is read here, so that
    /// writing needs no clock. Other frames don't count: a client that pings gets replies to its pings,
    /// whether or not it reads responses.
    pub(super) fn response_at(&self) -> Instant {
        if self.0.has_response.swap(false, Ordering::Relaxed) {
            self.0.response_at.store(Instant::now());
        }
        self.0.response_at.load().unwrap_or_else(Instant::now)
    }

    fn note_head(&self, is_within: bool, began: bool) {
        if !is_within {
            self.0.head_since.clear();
        } else if began {
            self.0.head_since.store(Instant::now());
        }
    }
}

// === impl FrameReader ===

impl FrameReader {
    /// A reader for one direction of a connection, which begins with a preface of so many bytes.
    fn after_preface(preface: usize) -> Self {
        Self {
            left: preface,
            header: [0; FRAME_HEADER],
            got: 0,
            kind: PREFACE_OR_NONE,
            is_continued: false,
            length: 0,
            has_message: false,
        }
    }

    /// Reads on, and says whether a head or another frame begins in these bytes.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        let mut began = false;
        let is_of_a_message = |kind| matches!(kind, DATA | HEADERS | CONTINUATION);
        self.has_message = self.left > 0 && is_of_a_message(self.kind);
        while !bytes.is_empty() {
            let count = self.left.min(bytes.len());
            self.left -= count;
            self.length += count;
            bytes = &bytes[count..];
            if bytes.is_empty() {
                break;
            }
            if self.got == 0 && !self.is_continued {
                began = true;
                self.length = 0;
            }
            let count = (FRAME_HEADER - self.got).min(bytes.len());
            self.header[self.got..self.got + count].copy_from_slice(&bytes[..count]);
            self.got += count;
            bytes = &bytes[count..];
            if self.got == FRAME_HEADER {
                let [high, middle, low, kind, flags, ..] = self.header;
                self.left = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.got = 0;
                self.kind = kind;
                self.has_message |= is_of_a_message(kind);
                self.is_continued =
                    matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
            }
        }
        began
    }

    /// Whether a head or a frame is incomplete. Bodies don't count: they have timeouts of their own.
    fn is_within(&self) -> bool {
        self.got > 0
            || self.is_continued
            || self.left > 0 && !matches!(self.kind, DATA | PREFACE_OR_NONE)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::service::HeadBudget;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + usize::from(length), 0);
        frame
    }

    #[test]
    fn a_head_is_incomplete_until_its_last_byte_however_it_arrives() {
        let head = [frame(HEADERS, 0, 3), frame(CONTINUATION, END_HEADERS, 2)].concat();
        for piece in [1, 2, 9, 12, head.len()] {
            let mut frames = FrameReader::after_preface(PREFACE.len());
            frames.read(PREFACE);
            assert!(!frames.is_within(), "the preface begins no head");
            let mut left = head.len();
            for (at, bytes) in head.chunks(piece).enumerate() {
                let began = frames.read(bytes);
                left -= bytes.len();
                assert_eq!(began, at == 0, "a head begins once: {piece}");
                assert_eq!(frames.is_within(), left > 0, "until its last byte: {piece}");
            }
        }
    }

    #[test]
    fn a_body_and_complete_frames_are_no_head() {
        let mut frames = FrameReader::after_preface(PREFACE.len());
        frames.read(PREFACE);
        frames.read(&frame(4, 0, 0));
        assert!(!frames.is_within(), "an empty frame is complete");
        frames.read(&frame(DATA, 0, 9)[..12]);
        assert!(!frames.is_within(), "a body may arrive slowly");
        let rest = [&frame(DATA, 0, 9)[12..], &frame(6, 0, 8)[..5]].concat();
        assert!(frames.read(&rest), "the next frame begins");
        assert!(frames.is_within(), "the next frame is incomplete");
        let next = [&frame(6, 0, 8)[5..], &frame(HEADERS, 0, 1)].concat();
        assert!(frames.read(&next), "and the frame after it");
    }

    #[test]
    fn a_response_is_told_from_replies_to_pings() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let mut io = FrameWatcher::new(
            BytesMut::new(),
            server,
            HeadReservation::default(),
            OpenStreams::default(),
        );
        let times = io.times();
        let write = |io: &mut FrameWatcher<_>, bytes: &[u8]| {
            let mut cx = Context::from_waker(Waker::noop());
            let written = Pin::new(io).poll_write(&mut cx, bytes);
            assert!(written.is_ready(), "there is room");
        };
        let start = times.response_at();
        write(&mut io, &frame(4, 0, 6));
        write(&mut io, &frame(6, 1, 8));
        assert_eq!(
            times.response_at(),
            start,
            "settings and pings are no response"
        );
        write(&mut io, &frame(HEADERS, END_HEADERS, 5));
        let head = times.response_at();
        assert!(head > start, "a head is a piece of a response");
        write(&mut io, &frame(DATA, 0, 5)[..11]);
        let body = times.response_at();
        assert!(body > head, "a body is a piece of a response");
        write(&mut io, &frame(DATA, 0, 5)[11..]);
        assert!(times.response_at() > body, "so is the rest of a body");
        let all = times.response_at();
        write(&mut io, &frame(6, 1, 8));
        assert_eq!(times.response_at(), all, "later pings are not");
        drop(client);
    }

    #[test]
    fn a_head_that_is_being_received_needs_memory() {
        let heads = HeadBudget::default();
        let full = heads.fill(|next| next.reserve_request(0));
        let mut sent = PREFACE.to_vec();
        sent.extend_from_slice(&[0, 0x40, 0, HEADERS, 0, 0, 0, 0, 1]);
        sent.resize(sent.len() + 0x4000, 0);
        let open_streams = OpenStreams::default();
        let read = || {
            let (bytes, memory) = (BytesMut::from(&sent[..]), heads.reserve());
            let mut io = FrameWatcher::new(bytes, tokio::io::empty(), memory, open_streams.clone());
            let (mut space, mut cx) = ([0; 32 << 10], Context::from_waker(Waker::noop()));
            Pin::new(&mut io).poll_read(&mut cx, &mut ReadBuf::new(&mut space))
        };
        assert!(
            matches!(read(), Poll::Ready(Err(_))),
            "there is no memory left"
        );
        let one = open_streams.clone();
        let read_beside = read();
        assert!(
            matches!(read_beside, Poll::Ready(Ok(()))),
            "a connection with an open stream goes on"
        );
        drop(one);
        drop(full);
        assert!(
            matches!(read(), Poll::Ready(Ok(()))),
            "there is memory again"
        );
    }
}
