//! A client's stream, of which hyper reads only what is validated.
//!
//! Invariant: every byte that hyper reads has passed the [`RequestValidator`]. A head is held back until
//! it is complete, in a buffer of its own only if it arrives in pieces. What follows a request that asks
//! for an upgrade is held back until the response begins. What is refused is answered when the running
//! request has ended, and before the connection is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection_state::ConnectionState;
use super::validate::RequestValidator;
use crate::header_names::NameRestorer;
use crate::service::{HEAD_BUDGET_EXCEEDED, RejectedRequest};
use crate::wire::Linger;

/// A stream whose requests are validated as they are read.
pub(super) struct ValidatedIo<IO> {
    io: IO,
    validator: RequestValidator,
    /// What has been read from `io` and not handed to hyper.
    held: BytesMut,
    /// How many of the held bytes may pass.
    validated: usize,
    /// The held bytes have not been offered to the validator yet.
    is_unread: bool,
    /// The head that is being received is due at a certain time.
    is_head_due: bool,
    closing: ClosingPhase,
    /// hyper has flushed what it wrote, so an interim response may stand here.
    is_flushed: bool,
    /// The rest of the interim responses that are being written.
    interim: Bytes,
    /// Gives the names in responses their own letter case.
    restorer: NameRestorer,
    state: ConnectionState,
}

/// How far the closing of the stream is.
enum ClosingPhase {
    Open,
    /// The last response is being written; what is left of it.
    Answering(Bytes),
    ShuttingDown,
    /// Reads on, so that the client gets the last response.
    Lingering(Linger),
    Closed,
}

// === impl ValidatedIo ===

impl<IO> ValidatedIo<IO> {
    /// `early` has been read from `io` already.
    pub(super) fn new(
        io: IO,
        early: BytesMut,
        validator: RequestValidator,
        state: ConnectionState,
    ) -> Self {
        Self {
            io,
            validator,
            is_unread: !early.is_empty(),
            held: early,
            validated: 0,
            is_head_due: true,
            closing: ClosingPhase::Open,
            is_flushed: true,
            interim: Bytes::new(),
            restorer: NameRestorer::default(),
            state,
        }
    }

    /// Validates the held bytes, and hands out those that may pass.
    fn validate_held(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        self.is_unread = false;
        let validated = self.validator.validate(&self.held);
        self.validated = validated.bytes;
        let has_passed = self.hand_out(buf);
        self.note(validated.rejected, has_passed)
    }

    /// Hands out validated bytes, and says whether there were any.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.validated.min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        self.validated -= count;
        if self.held.is_empty() {
            // Frees the buffer, which would otherwise live as long as the connection.
            self.held = BytesMut::new();
        }
        count > 0
    }

    /// Notes the validator's result. `has_passed` says whether hyper gets any bytes.
    fn note(&mut self, rejected: Option<RejectedRequest>, has_passed: bool) -> io::Result<()> {
        let options_targets = self.validator.take_options_targets();
        if !options_targets.is_empty() {
            self.state.add_options_targets(options_targets);
        }
        let names = self.validator.take_names();
        if !names.is_empty() {
            self.state.add_request_names(&names);
        }
        let request = self.validator.request();
        self.state
            .set_body_rest(request, self.validator.body_rest());
        if let Some(rejected) = rejected {
            if rejected.is_in_body {
                self.state.link().set_malformed_body(request);
                // hyper gets the bytes before the defect first, and reads again.
                return match has_passed {
                    true => Ok(()),
                    false => Err(malformed_body()),
                };
            }
            self.state.reject(rejected);
            return Ok(());
        }
        // A head that has begun is due; the pipelined bytes after a request aren't.
        let is_head_due = self.validator.is_at_head() && self.held.len() > self.validated;
        if is_head_due != self.is_head_due {
            self.is_head_due = is_head_due;
            self.state.set_head_due(is_head_due);
        }
        // With the head: the response may begin before the body's end.
        if self.validator.has_upgrade_request() {
            self.state.set_upgrade_pending();
        }
        Ok(())
    }

    /// While no request runs, lets other connections take the memory that heads need here. When one has
    /// taken it, the connection ends: as if the client had closed, or with an error response for the
    /// head that is being received.
    fn poll_reclaimed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.is_answering() {
            // hyper reads during a response, and not again at its end.
            self.state.register_reader(cx);
            return Poll::Pending;
        }
        if !self.validator.is_at_head() {
            return Poll::Pending;
        }
        if self.held.is_empty() {
            self.validator.memory.shrink_to_buffer();
        }
        ready!(self.validator.memory.poll_reclaimed(cx));
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.state.reject(HEAD_BUDGET_EXCEEDED);
        Poll::Pending
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ValidatedIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(is_tunnel) = this.state.take_upgrade_answer() {
            this.validator.on_upgrade_answer(is_tunnel);
            this.is_unread = !this.held.is_empty();
        }
        loop {
            if this.validated > 0 {
                this.hand_out(buf);
                return Poll::Ready(Ok(()));
            }
            if this.state.link().has_malformed_body() {
                return Poll::Ready(Err(malformed_body()));
            }
            if this.state.is_rejected() {
                return Poll::Pending;
            }
            if this.validator.is_upgrade_pending() {
                this.state.register_reader(cx);
                return Poll::Pending;
            }
            let start = buf.filled().len();
            if this.is_unread {
                this.validate_held(buf)?;
            } else {
                let read = Pin::new(&mut this.io).poll_read(cx, buf)?;
                if read.is_pending() && !this.validator.memory.is_empty() {
                    return this.poll_reclaimed(cx);
                }
                ready!(read);
                let count = buf.filled().len() - start;
                if count == 0 {
                    return Poll::Ready(Ok(()));
                }
                if this.is_head_due {
                    this.state.set_head_begun();
                }
                if this.held.is_empty() {
                    let validated = this.validator.validate(&buf.filled()[start..]);
                    let rest = start + validated.bytes;
                    if validated.bytes < count && validated.rejected.is_none() {
                        this.held.extend_from_slice(&buf.filled()[rest..]);
                    }
                    buf.set_filled(rest);
                    this.note(validated.rejected, validated.bytes > 0)?;
                } else {
                    this.held.extend_from_slice(&buf.filled()[start..]);
                    buf.set_filled(start);
                    this.validate_held(buf)?;
                }
            }
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

fn malformed_body() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the request's body is malformed",
    )
}

impl<IO: AsyncWrite + Unpin> ValidatedIo<IO> {
    /// Writes the interim responses that wait, if hyper has flushed what it wrote.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flushed
            && self.interim.is_empty()
            && let Some(waiting) = self.state.link().take_interim()
        {
            self.interim = waiting;
        }
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ValidatedIo<IO> {
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
        ready!(self.poll_interim(cx))?;
        let this = &mut *self;
        this.is_flushed = false;
        this.restorer.poll_write(
            bufs,
            || this.state.take_response_names(),
            |bufs| Pin::new(&mut this.io).poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written everything that it has.
        self.is_flushed = true;
        ready!(self.poll_interim(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.state.on_flushed();
        Poll::Ready(Ok(()))
    }

    /// Writes the last response if there is one, and lingers if the client may still be sending.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                ClosingPhase::Open => {
                    let response = this.state.take_last_response();
                    this.closing =
                        response.map_or(ClosingPhase::ShuttingDown, ClosingPhase::Answering);
                }
                ClosingPhase::Answering(rest) if rest.has_remaining() => {
                    let written = ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
                    rest.advance(written);
                }
                ClosingPhase::Answering(_) => {
                    ready!(Pin::new(&mut this.io).poll_flush(cx))?;
                    this.closing = ClosingPhase::ShuttingDown;
                }
                ClosingPhase::ShuttingDown => {
                    ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                    let has_unread = this.state.is_rejected()
                        || this.state.link().has_malformed_body()
                        || this.validator.is_in_body();
                    this.closing = match has_unread && !this.state.has_lingered() {
                        true => ClosingPhase::Lingering(Linger::begin()),
                        false => ClosingPhase::Closed,
                    };
                }
                ClosingPhase::Lingering(linger) => {
                    if this.state.is_draining() {
                        linger.hurry();
                    }
                    ready!(linger.poll(cx, &mut this.io));
                    this.closing = ClosingPhase::Closed;
                }
                ClosingPhase::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO> Drop for ValidatedIo<IO> {
    fn drop(&mut self) {
        self.state.on_stream_dropped();
    }
}
