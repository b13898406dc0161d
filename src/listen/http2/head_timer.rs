//! Since when a head is coming in over HTTP/2, and when a piece of an answer went out last, which h2
//! doesn't tell: it hands over whole heads, and buffers answers.
//!
//! Invariant: what passes is not changed, and of frames no more is looked at than where they begin
//! and end (RFC 9113 §4.1). What is no frame, h2 ends the connection for.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::super::PREFACE;
use super::super::room::HeadReservation;
use super::body::OpenStreams;

/// A stream that is watched as it is read, and of which something may have been read before.
pub(super) struct FrameWatcher<IO> {
    early: BytesMut,
    io: IO,
    read: FrameReader,
    written: FrameReader,
    moved: FrameTimes,
    /// For the head that is coming in.
    room: HeadReservation,
    under_way: OpenStreams,
}

/// What has moved when. Clones are of the same connection.
#[derive(Clone)]
pub(super) struct FrameTimes(Arc<FrameTimesState>);

/// In nanoseconds behind `base`.
struct FrameTimesState {
    base: Instant,
    /// [`NONE`]: nothing is under way.
    head_began: AtomicU64,
    /// When it was last asked whether a piece of an answer was written, and one was.
    answer: AtomicU64,
    /// A piece of an answer was written since.
    has_answered: AtomicBool,
}

/// How far the frames of a connection have been read.
struct FrameReader {
    /// What is left of the current frame's payload, or of the preface.
    left: usize,
    header: [u8; FRAME_HEADER],
    /// How much of the next frame's header is there.
    got: usize,
    kind: u8,
    /// Its headers go on in the next frame.
    goes_on: bool,
    /// How much has come of what is under way, in bytes.
    length: usize,
    /// Some of what was read last is of a request or an answer.
    has_message: bool,
}

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// No frame's kind: that a preface comes in time is seen to in another way.
const PREFACE_OR_NONE: u8 = u8::MAX;

const NONE: u64 = u64::MAX;

// === impl Watched ===

impl<IO> FrameWatcher<IO> {
    pub(super) fn new(
        early: BytesMut,
        io: IO,
        room: HeadReservation,
        under_way: OpenStreams,
    ) -> Self {
        let shared = FrameTimesState {
            base: Instant::now(),
            head_began: AtomicU64::new(NONE),
            answer: AtomicU64::new(0),
            has_answered: AtomicBool::new(false),
        };
        Self {
            early,
            io,
            read: FrameReader::behind(PREFACE.len()),
            written: FrameReader::behind(0),
            moved: FrameTimes(Arc::new(shared)),
            room,
            under_way,
        }
    }

    pub(super) fn moved(&self) -> FrameTimes {
        self.moved.clone()
    }

    fn wrote(&mut self, bytes: &[u8]) {
        self.written.read(bytes);
        if self.written.has_message {
            self.moved.0.has_answered.store(true, Ordering::Relaxed);
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
            if read.is_pending() && this.under_way.is_none() {
                ready!(this.room.poll_lost(cx));
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
        this.moved.note_head(is_within, began);
        if began || !is_within {
            // What was under way is whole: from here on its request has what it needs.
            this.room.give_back();
        }
        // Where others are under way, it is waited for: one for each connection.
        if is_within && !this.room.fits_head(this.read.length) && this.under_way.is_none() {
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
        self.wrote(&buf[..written]);
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
            self.wrote(&buf[..count]);
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

// === impl Moved ===

impl FrameTimes {
    /// Since when a head is coming in; `None`: none is.
    pub(super) fn head_since(&self) -> Option<Instant> {
        match self.0.head_began.load(Ordering::Relaxed) {
            NONE => None,
            began => Some(self.0.base + Duration::from_nanos(began)),
        }
    }

    /// When a piece of an answer was written last: the time is noted here, so that writing needs no
    /// clock. What else a client has us write, the answers to its pings say, is no sign that it takes
    /// anything.
    pub(super) fn answer_at(&self) -> Instant {
        if self.0.has_answered.swap(false, Ordering::Relaxed) {
            self.0.answer.store(self.now(), Ordering::Relaxed);
        }
        self.0.base + Duration::from_nanos(self.0.answer.load(Ordering::Relaxed))
    }

    fn note_head(&self, is_within: bool, began: bool) {
        if !is_within {
            self.0.head_began.store(NONE, Ordering::Relaxed);
        } else if began {
            self.0.head_began.store(self.now(), Ordering::Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.base.elapsed().as_nanos()).unwrap_or(NONE - 1)
    }
}

// === impl Frames ===

impl FrameReader {
    /// Of one side of a connection, behind a preface of so many bytes.
    fn behind(preface: usize) -> Self {
        Self {
            left: preface,
            header: [0; FRAME_HEADER],
            got: 0,
            kind: PREFACE_OR_NONE,
            goes_on: false,
            length: 0,
            has_message: false,
        }
    }

    /// Reads on, and says whether something has begun in these bytes.
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
            if self.got == 0 && !self.goes_on {
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
                self.goes_on = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
            }
        }
        began
    }

    /// Whether what was read last is a part of something. A body isn't: it has a time of its own.
    fn is_within(&self) -> bool {
        self.got > 0
            || self.goes_on
            || self.left > 0 && !matches!(self.kind, DATA | PREFACE_OR_NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::room::HeadRoom;
    use super::*;
    use std::task::Waker;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER + usize::from(length), 0);
        frame
    }

    #[test]
    fn a_head_is_under_way_until_its_last_byte_however_it_comes() {
        let head = [frame(HEADERS, 0, 3), frame(CONTINUATION, END_HEADERS, 2)].concat();
        for piece in [1, 2, 9, 12, head.len()] {
            let mut frames = FrameReader::behind(PREFACE.len());
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
        let mut frames = FrameReader::behind(PREFACE.len());
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

    #[test]
    fn what_is_written_of_an_answer_is_told_from_the_answers_to_pings() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let mut io = FrameWatcher::new(
            BytesMut::new(),
            server,
            HeadReservation::default(),
            OpenStreams::default(),
        );
        let moved = io.moved();
        let write = |io: &mut FrameWatcher<_>, bytes: &[u8]| {
            let mut cx = Context::from_waker(Waker::noop());
            let written = Pin::new(io).poll_write(&mut cx, bytes);
            assert!(written.is_ready(), "there is room");
        };
        let start = moved.answer_at();
        write(&mut io, &frame(4, 0, 6));
        write(&mut io, &frame(6, 1, 8));
        assert_eq!(moved.answer_at(), start, "settings and pings are no answer");
        write(&mut io, &frame(HEADERS, END_HEADERS, 5));
        let head = moved.answer_at();
        assert!(head > start, "its head is a piece of it");
        write(&mut io, &frame(DATA, 0, 5)[..11]);
        let body = moved.answer_at();
        assert!(body > head, "and so is its body");
        write(&mut io, &frame(DATA, 0, 5)[11..]);
        assert!(moved.answer_at() > body, "whatever the pieces");
        let all = moved.answer_at();
        write(&mut io, &frame(6, 1, 8));
        assert_eq!(moved.answer_at(), all, "pings behind it aren't");
        drop(client);
    }

    #[test]
    fn a_head_that_is_coming_in_takes_room() {
        let room = HeadRoom::default();
        let mut full = Vec::new();
        loop {
            let mut taken = room.take();
            if !taken.fits_request(0) {
                break;
            }
            full.push(taken);
        }
        let mut sent = PREFACE.to_vec();
        sent.extend_from_slice(&[0, 0x40, 0, HEADERS, 0, 0, 0, 0, 1]);
        sent.resize(sent.len() + 0x4000, 0);
        let under_way = OpenStreams::default();
        let read = || {
            let (bytes, room) = (BytesMut::from(&sent[..]), room.take());
            let mut io = FrameWatcher::new(bytes, tokio::io::empty(), room, under_way.clone());
            let (mut space, mut cx) = ([0; 32 << 10], Context::from_waker(Waker::noop()));
            Pin::new(&mut io).poll_read(&mut cx, &mut ReadBuf::new(&mut space))
        };
        assert!(matches!(read(), Poll::Ready(Err(_))), "there is none");
        let one = under_way.clone();
        let read_beside = read();
        assert!(
            matches!(read_beside, Poll::Ready(Ok(()))),
            "what is under way on the connection isn't ended for it"
        );
        drop(one);
        full.clear();
        assert!(matches!(read(), Poll::Ready(Ok(()))), "there is some");
    }
}
