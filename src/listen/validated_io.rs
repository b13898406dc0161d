//! Between a connection's bytes and hyper: the screen, where it stands in the stream.
//!
//! Invariant: what hyper reads has passed the [`Screen`]. A head is held back until all of it is
//! there, in a buffer of its own only if it comes in pieces; what follows a request that asks for an
//! upgrade is held back until that is answered. What is refused is answered at the end of what runs.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::bad_request::{BadRequest, RejectedRequest};
use super::room::FULL;
use super::validate::Screen;

/// A stream with a screen in it.
pub(super) struct ValidatedIo<IO> {
    io: IO,
    screen: Screen,
    /// What has come and hyper has not seen.
    held: BytesMut,
    /// So much of it may pass.
    cleared: usize,
    /// It has not been offered to the screen yet.
    is_new: bool,
    /// A head has to be complete by a certain time.
    is_due: bool,
    head_limit: Duration,
    ending: ClosingPhase,
    /// hyper has flushed what it wrote: here something else may stand between its bytes.
    is_flushed: bool,
    /// Of interim answers, what has been begun and has to be written first.
    owed: Bytes,
    gate: ConnectionState,
}

/// What a connection's screen tells whoever serves it, and is told. Clones are the same gate.
#[derive(Clone, Debug)]
pub(super) struct ConnectionState(Arc<ConnectionShared>);

#[derive(Debug)]
struct ConnectionShared {
    said: Mutex<PendingError>,
    is_refused: AtomicBool,
    /// One of [`NOTHING`], [`NO_TUNNEL`], [`TUNNEL`].
    decision: AtomicU8,
    is_undecided: AtomicBool,
    is_tunnel: AtomicBool,
    /// What hyper gets was refused in the middle of a body.
    has_bad_body: AtomicBool,
    /// Not a byte of the head that is waited for has come.
    is_silent: AtomicBool,
    is_gone: AtomicBool,
    /// There are interim answers to be written.
    has_interim: AtomicBool,
    /// There is an [`ExchangeGuard`].
    is_answering: AtomicBool,
    reader: AtomicWaker,
    server: AtomicWaker,
}

/// A request that is being answered, until its answer's last byte.
pub(super) struct ExchangeGuard(ConnectionState);

#[derive(Debug, Default)]
struct PendingError {
    head_due: Option<Instant>,
    refused: Option<RejectedRequest>,
    answer: Option<Bytes>,
    interim: BytesMut,
}

const NOTHING: u8 = 0;
const NO_TUNNEL: u8 = 1;
const TUNNEL: u8 = 2;

/// How far the closing of the stream is.
enum ClosingPhase {
    Open,
    Answering(Bytes),
    ShuttingDown,
    /// Reads on for a moment: a socket that is closed with bytes unread is reset, and the answer
    /// lost with it (RFC 9112 §9.6).
    Lingering(Pin<Box<Sleep>>, usize),
    Over,
}

/// How many bytes of interim answers wait for a client at most: a few. What is more is not sent.
const MAX_INTERIM: usize = 16 << 10;

/// For how long a client's bytes are read that nobody wants: a few round trips.
const LINGER: Duration = Duration::from_secs(1);

/// How many of them: what is under way on a fast network.
const LINGER_BYTES: usize = 1 << 20;

// === impl Screened ===

impl<IO> ValidatedIo<IO> {
    /// `early` has been read from `io` before. The first head is due at `head_due`, later ones
    /// `head_limit` after their first byte.
    pub(super) fn new(
        io: IO,
        early: BytesMut,
        screen: Screen,
        head_due: Instant,
        head_limit: Duration,
    ) -> (Self, ConnectionState) {
        let gate = ConnectionState(Arc::new(ConnectionShared {
            said: Mutex::new(PendingError {
                head_due: Some(head_due),
                ..PendingError::default()
            }),
            is_refused: AtomicBool::new(false),
            decision: AtomicU8::new(NOTHING),
            is_undecided: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            has_bad_body: AtomicBool::new(false),
            is_silent: AtomicBool::new(early.is_empty()),
            is_gone: AtomicBool::new(false),
            has_interim: AtomicBool::new(false),
            is_answering: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            server: AtomicWaker::new(),
        }));
        let screened = Self {
            io,
            screen,
            is_new: !early.is_empty(),
            held: early,
            cleared: 0,
            is_due: true,
            head_limit,
            ending: ClosingPhase::Open,
            is_flushed: true,
            owed: Bytes::new(),
            gate: gate.clone(),
        };
        (screened, gate)
    }

    /// Offers what is held to the screen, and hands out what may pass.
    fn offer_held(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        self.is_new = false;
        let passed = self.screen.pass(&self.held);
        self.cleared = passed.bytes;
        let cleared = self.hand_out(buf);
        self.note(passed.refused, cleared)
    }

    /// Hands out what may pass, and says whether there was anything.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.cleared.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        self.cleared -= count;
        if self.held.is_empty() {
            // Not kept for the whole life of a connection.
            self.held = BytesMut::new();
        }
        count > 0
    }

    /// Notes what the screen said, when `has_passed` says whether hyper got anything.
    fn note(&mut self, refused: Option<RejectedRequest>, has_passed: bool) -> io::Result<()> {
        if let Some(refused) = refused {
            if refused.in_body {
                self.gate.0.has_bad_body.store(true, Ordering::Relaxed);
                // What was before it is handed out first; then hyper asks again.
                return match has_passed {
                    true => Ok(()),
                    false => Err(bad_body()),
                };
            }
            self.gate.refuse(refused);
            return Ok(());
        }
        // A head that is begun and not complete is due; what is behind it is not.
        let is_due = self.screen.is_at_a_head() && self.held.len() > self.cleared;
        if is_due != self.is_due {
            self.is_due = is_due;
            let due = is_due.then(|| Instant::now() + self.head_limit);
            self.gate.lock().head_due = due;
        }
        // From its head on: the answer may come before the body's end.
        if self.screen.awaits_decision() {
            self.gate.0.is_undecided.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lends what heads have taken until more comes, unless a request is under way. When others have
    /// taken it, this is over: as if the client had closed, or with an answer to the head that is coming
    /// in.
    fn poll_making_way(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gate.0.is_answering.load(Ordering::Relaxed) {
            // hyper asks during an answer, and not again at its end.
            self.gate.0.reader.register(cx.waker());
            return Poll::Pending;
        }
        if !self.screen.is_at_a_head() {
            return Poll::Pending;
        }
        if self.held.is_empty() {
            self.screen.room.keep_buffer();
        }
        ready!(self.screen.room.poll_lost(cx));
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.gate.refuse(FULL);
        Poll::Pending
    }

    fn decided(&mut self) {
        match self.gate.0.decision.swap(NOTHING, Ordering::Relaxed) {
            NOTHING => return,
            decision => self.screen.decide(decision == TUNNEL),
        }
        self.is_new = !self.held.is_empty();
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ValidatedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.gate.0.decision.load(Ordering::Relaxed) != NOTHING {
            this.decided();
        }
        loop {
            if this.cleared > 0 {
                this.hand_out(buf);
                return Poll::Ready(Ok(()));
            }
            if this.gate.0.has_bad_body.load(Ordering::Relaxed) {
                return Poll::Ready(Err(bad_body()));
            }
            if this.gate.is_refused() {
                return Poll::Pending;
            }
            if this.screen.is_undecided() {
                this.gate.0.reader.register(cx.waker());
                return Poll::Pending;
            }
            let start = buf.filled().len();
            if this.is_new {
                this.offer_held(buf)?;
            } else {
                let read = Pin::new(&mut this.io).poll_read(cx, buf)?;
                if read.is_pending() && this.screen.room.holds_any() {
                    return this.poll_making_way(cx);
                }
                ready!(read);
                let came = buf.filled().len() - start;
                if came == 0 {
                    return Poll::Ready(Ok(()));
                }
                if this.is_due {
                    this.gate.0.is_silent.store(false, Ordering::Relaxed);
                }
                if this.held.is_empty() {
                    let passed = this.screen.pass(&buf.filled()[start..]);
                    let rest = start + passed.bytes;
                    if passed.bytes < came && passed.refused.is_none() {
                        this.held.extend_from_slice(&buf.filled()[rest..]);
                    }
                    buf.set_filled(rest);
                    this.note(passed.refused, passed.bytes > 0)?;
                } else {
                    this.held.extend_from_slice(&buf.filled()[start..]);
                    buf.set_filled(start);
                    this.offer_held(buf)?;
                }
            }
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

fn bad_body() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the request's body is malformed",
    )
}

impl<IO: AsyncWrite + Unpin> ValidatedIo<IO> {
    /// Writes the interim answers that wait, if they may stand here.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flushed && self.gate.0.has_interim.load(Ordering::Relaxed) {
            self.gate.0.has_interim.store(false, Ordering::Relaxed);
            let waiting = std::mem::take(&mut self.gate.lock().interim);
            if self.owed.is_empty() {
                self.owed = waiting.freeze();
            }
        }
        while !self.owed.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.owed))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.owed.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ValidatedIo<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.is_flushed = false;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        self.is_flushed = false;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written all that it had.
        self.is_flushed = true;
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Answers what was refused, and lets the client read it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.ending {
                ClosingPhase::Open => {
                    let answer = this.gate.lock().answer.take();
                    this.ending =
                        answer.map_or(ClosingPhase::ShuttingDown, ClosingPhase::Answering);
                }
                ClosingPhase::Answering(rest) if rest.has_remaining() => {
                    let written = ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
                    rest.advance(written);
                }
                ClosingPhase::Answering(_) => {
                    ready!(Pin::new(&mut this.io).poll_flush(cx))?;
                    this.ending = ClosingPhase::ShuttingDown;
                }
                ClosingPhase::ShuttingDown => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    let has_unread = this.gate.is_refused()
                        || this.gate.bad_body().is_some()
                        || this.screen.is_in_a_body();
                    this.ending = match has_unread {
                        true => ClosingPhase::Lingering(Box::pin(sleep(LINGER)), LINGER_BYTES),
                        false => ClosingPhase::Over,
                    };
                }
                ClosingPhase::Lingering(until, left) => {
                    let mut sink = [0; 4096];
                    let mut sink = ReadBuf::new(&mut sink);
                    let read = Pin::new(&mut this.io).poll_read(cx, &mut sink);
                    let is_over = match read {
                        Poll::Pending => {
                            ready!(until.as_mut().poll(cx));
                            true
                        }
                        Poll::Ready(Ok(())) => {
                            *left = left.saturating_sub(sink.filled().len());
                            sink.filled().is_empty() || *left == 0 || until.is_elapsed()
                        }
                        Poll::Ready(Err(_)) => true,
                    };
                    if is_over {
                        this.ending = ClosingPhase::Over;
                    }
                }
                ClosingPhase::Over => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO> Drop for ValidatedIo<IO> {
    fn drop(&mut self) {
        self.gate.0.is_gone.store(true, Ordering::Relaxed);
        self.gate.0.server.wake();
    }
}

// === impl Gate ===

impl ConnectionState {
    /// When the head that is coming in has to be complete.
    pub(super) fn head_due(&self) -> Option<Instant> {
        self.lock().head_due
    }

    /// Whether nothing has come of the head that is waited for.
    pub(super) fn is_silent(&self) -> bool {
        self.0.is_silent.load(Ordering::Relaxed)
    }

    /// Lets nothing more pass.
    pub(super) fn refuse(&self, refused: impl Into<RejectedRequest>) {
        let mut said = self.lock();
        said.head_due = None;
        said.refused.get_or_insert(refused.into());
        self.0.is_refused.store(true, Ordering::Relaxed);
    }

    /// Whether something was refused that is to be answered by whoever serves the connection.
    pub(super) fn is_refused(&self) -> bool {
        self.0.is_refused.load(Ordering::Relaxed)
    }

    /// What was refused, once.
    pub(super) fn take_refused(&self) -> Option<RejectedRequest> {
        match self.is_refused() {
            true => self.lock().refused.take(),
            false => None,
        }
    }

    /// What is to be written at the end of the connection.
    pub(super) fn answer(&self, answer: Bytes) {
        self.lock().answer = Some(answer);
    }

    /// Has this written before the answer that is being waited for (RFC 9110 §15.2).
    pub(super) fn interim(&self, head: &[u8]) {
        let mut said = self.lock();
        if said.interim.len() + head.len() <= MAX_INTERIM {
            said.interim.extend_from_slice(head);
            self.0.has_interim.store(true, Ordering::Relaxed);
        }
    }

    /// A request has come.
    pub(super) fn exchange(&self) -> ExchangeGuard {
        self.0.is_answering.store(true, Ordering::Relaxed);
        ExchangeGuard(self.clone())
    }

    /// A request was answered so.
    fn answered(&self, status: StatusCode) {
        if self.0.has_interim.swap(false, Ordering::Relaxed) {
            // The answer overtook them: they may not stand behind its head.
            self.lock().interim.clear();
        }
        let is_tunnel = status == StatusCode::SWITCHING_PROTOCOLS;
        if !is_tunnel && !self.0.is_undecided.load(Ordering::Relaxed) {
            return;
        }
        self.0.is_undecided.store(false, Ordering::Relaxed);
        self.0.is_tunnel.store(is_tunnel, Ordering::Relaxed);
        let decision = if is_tunnel { TUNNEL } else { NO_TUNNEL };
        self.0.decision.store(decision, Ordering::Relaxed);
        self.0.reader.wake();
    }

    /// Whether the connection carries something else than HTTP by now.
    pub(super) fn is_tunnel(&self) -> bool {
        self.0.is_tunnel.load(Ordering::Relaxed)
    }

    /// Why the body of the request that is being served could not be read on.
    pub(super) fn bad_body(&self) -> Option<BadRequest> {
        let is_bad = self.0.has_bad_body.load(Ordering::Relaxed);
        is_bad.then_some(BadRequest::Malformed("the body's chunks are not in order"))
    }

    /// Ready when nobody has the stream any more.
    pub(super) fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.server.register(cx.waker());
        match self.0.is_gone.load(Ordering::Relaxed) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn lock(&self) -> MutexGuard<'_, PendingError> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Exchange ===

impl ExchangeGuard {
    /// The answer begins so.
    pub(super) fn begins(&self, status: StatusCode) {
        self.0.answered(status);
    }

    /// Has an error of the answer's body pass. A body that does so for each of its errors holds this.
    pub(super) fn pass<E>(&self, error: E) -> E {
        error
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        self.0.0.is_answering.store(false, Ordering::Relaxed);
        self.0.0.reader.wake();
    }
}
