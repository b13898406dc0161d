//! The bounds of a connection, or of one HTTP/2 stream on it: deadlines, and a limit on silence.
//!
//! Invariant: a stream's deadline also holds for its connection as long as the connection may still
//! have bytes of that stream to write. The bounds end nothing themselves: [`Wire`](super::Wire) refuses
//! writes, and the task that serves the connection ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::deadlines::Deadlines;
use super::flush::FlushWait;
use crate::deadline::{AtomicInstant, ByteClock, Deadline};

/// Until when a connection may move bytes, and how long it may be silent. Clones share the bounds.
#[derive(Clone, Debug)]
pub struct Bounds(Arc<BoundsState>);

#[derive(Debug)]
struct BoundsState {
    /// When a byte last moved.
    last_byte_at: AtomicInstant,
    /// Only comments have moved since `turn_byte_at`.
    has_comments: AtomicBool,
    /// When a byte of the turn last moved before the comments.
    turn_byte_at: AtomicInstant,
    /// The longest silence allowed, in nanoseconds; 0: no limit.
    silence_limit: AtomicU64,
    deadlines: Mutex<Deadlines>,
    /// The connection's bounds, if these are the bounds of one stream on it (HTTP/2).
    connection: Option<Bounds>,
    /// A write has found the socket full, or somebody waits for a flush: the writer may have buffered
    /// bytes since its last flush.
    may_have_buffered: AtomicBool,
    /// The [`Ended`] reason as a number; 0: not ended.
    ended: AtomicU8,
    /// The client takes the close of the connection for the end of the response.
    is_close_the_end: AtomicBool,
    /// The connection is reset when it is closed.
    resets_on_close: AtomicBool,
    /// The peer's machine acknowledges nothing.
    is_unacknowledged: AtomicBool,
}

/// Why this side ended a connection, or how it found the connection over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// The peer closed or reset the connection.
    PeerGone = 1,
    /// A deadline passed.
    DeadlinePassed = 2,
    /// No byte moved for too long.
    Silent = 3,
    /// The process stops and can't wait longer.
    Aborted = 4,
}

// === impl Bounds ===

impl Bounds {
    /// The bounds of one HTTP/2 stream on this connection. The task that serves the stream ends it
    /// when it reaches its bounds. If bytes of the stream are still to be written then, the connection
    /// writes nothing any more.
    pub fn for_stream(&self) -> Self {
        Self::within(Some(self.clone()))
    }

    fn within(connection: Option<Self>) -> Self {
        Self(Arc::new(BoundsState {
            last_byte_at: AtomicInstant::new(Instant::now()),
            has_comments: AtomicBool::new(false),
            turn_byte_at: AtomicInstant::new(Instant::now()),
            silence_limit: AtomicU64::new(0),
            deadlines: Mutex::default(),
            connection,
            may_have_buffered: AtomicBool::new(false),
            ended: AtomicU8::new(0),
            is_close_the_end: AtomicBool::new(false),
            resets_on_close: AtomicBool::new(false),
            is_unacknowledged: AtomicBool::new(false),
        }))
    }

    /// Allows no write once `deadline` has passed.
    pub fn stop_at(&self, deadline: Deadline) {
        if let Some(connection) = &self.0.connection {
            connection.deadlines().add(self.0.id(), deadline.clone());
        }
        self.deadlines().own = Some(deadline);
    }

    /// Ends the connection when no byte moves for `longest`, counted from now.
    pub fn end_when_silent(&self, longest: Duration) {
        self.touch();
        self.allow_silence(longest);
    }

    /// Allows a silence of `longest`, counted from the last byte that moved.
    pub fn allow_silence(&self, longest: Duration) {
        let limit = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        self.0.silence_limit.store(limit, Ordering::Relaxed);
    }

    /// Removes the deadline after a response that is complete. The limit on silence stays.
    pub fn lift_deadline(&self) {
        self.deadlines().own = None;
        if let Some(connection) = &self.0.connection {
            connection.deadlines().remove(self.0.id());
        }
    }

    /// Removes the deadline after a response that was cut. The connection keeps the deadline until
    /// it has written the bytes that it may have buffered of the response.
    pub fn retire_deadline(&self) {
        self.deadlines().own = None;
        self.0.retire();
    }

    /// Hands the deadline of a stream over to the connection for good: after it the connection
    /// never writes anything.
    pub fn keep_deadline(&self) {
        let Some(deadline) = self.deadlines().own.take() else {
            return;
        };
        if let Some(connection) = &self.0.connection {
            let mut deadlines = connection.deadlines();
            deadlines.remove(self.0.id());
            deadlines.keep(deadline);
        }
    }

    /// Removes the deadline and the limit on silence, for the next request.
    pub fn lift(&self) {
        self.lift_deadline();
        self.allow_any_silence();
        self.0.has_comments.store(false, Ordering::Relaxed);
    }

    /// Removes the limit on silence.
    pub fn allow_any_silence(&self) {
        self.0.silence_limit.store(0, Ordering::Relaxed);
    }

    /// Notes that a byte of the request or of its response moves now.
    pub fn touch(&self) {
        self.0.has_comments.store(false, Ordering::Relaxed);
        self.touch_at(Instant::now());
    }

    /// Notes that the proxy writes a comment because nothing else moves. For those who ask when a byte last moved, it is
    /// none, until [`Bounds::touch`].
    pub fn on_comment(&self) {
        if !self.0.has_comments.swap(true, Ordering::Relaxed)
            && let Some(last) = self.last_byte_at()
        {
            self.0.turn_byte_at.store(last);
        }
    }

    /// The clock of these bounds, for others who ask when a byte last moved.
    pub fn byte_clock(&self) -> Arc<dyn ByteClock> {
        Arc::clone(&self.0) as Arc<dyn ByteClock>
    }

    pub(super) fn touch_at(&self, now: Instant) {
        self.0.last_byte_at.store(now);
    }

    /// When a byte last moved; `None`: none has.
    pub(super) fn last_byte_at(&self) -> Option<Instant> {
        self.0.last_byte_at.load()
    }

    /// Notes whether the peer's machine has left what was sent to it unacknowledged for long.
    pub(super) fn set_unacknowledged(&self, is_unacknowledged: bool) {
        let noted = &self.0.is_unacknowledged;
        noted.store(is_unacknowledged, Ordering::Relaxed);
    }

    /// Whether the peer's machine has left what was sent to it unacknowledged for long, so that the peer
    /// has probably not got it.
    pub fn is_unacknowledged(&self) -> bool {
        let of_connection = self.0.connection.as_ref();
        self.0.is_unacknowledged.load(Ordering::Relaxed)
            || of_connection.is_some_and(Self::is_unacknowledged)
    }

    /// Notes that a write found the socket full.
    pub(super) fn on_write_blocked(&self) {
        self.0.may_have_buffered.store(true, Ordering::Relaxed);
    }

    /// Notes that the writer has written everything that it buffered.
    pub(super) fn on_flushed(&self) {
        if self.0.may_have_buffered.swap(false, Ordering::Relaxed) {
            let waiters = self.deadlines().on_flushed();
            for waiter in waiters {
                waiter.on_flushed();
            }
        }
    }

    /// Whether the connection has written all that it was given. Not known of a stream, whose last bytes may wait
    /// for the peer's window: `false`.
    pub fn has_written_all(&self) -> bool {
        self.0.connection.is_none() && !self.0.may_have_buffered.load(Ordering::Relaxed)
    }

    /// Ready when the connection has written everything that it had buffered when `wait` was first polled.
    /// Once it is ready, it stays so. Never ready if the connection ends before.
    pub fn poll_flushed(&self, wait: &mut FlushWait, cx: &mut Context<'_>) -> Poll<()> {
        wait.poll(cx, |waiter| {
            let connection = self.0.connection.as_ref().unwrap_or(self);
            connection.deadlines().add_flush_waiter(waiter);
            let may_have_buffered = &connection.0.may_have_buffered;
            may_have_buffered.store(true, Ordering::Relaxed);
        })
    }

    /// Whether these are the bounds of one stream among others on its connection (HTTP/2).
    pub fn is_for_stream(&self) -> bool {
        self.0.connection.is_some()
    }

    /// Notes whether the client takes the close of the connection for the end of the response, as
    /// HTTP/1.0 does (RFC 1945 §7.2.2). If so, the connection of a response that was cut is reset.
    pub fn set_close_is_end(&self, is_end: bool) {
        self.0.is_close_the_end.store(is_end, Ordering::Relaxed);
    }

    /// Whether the client takes the close of the connection for the end of the response.
    pub fn is_close_the_end(&self) -> bool {
        self.0.is_close_the_end.load(Ordering::Relaxed)
    }

    /// Makes the close of the connection a reset. A protocol that knows no other end than the close
    /// can then tell a cut connection from a finished one.
    pub fn reset_on_close(&self) {
        self.0.resets_on_close.store(true, Ordering::Relaxed);
    }

    pub(super) fn resets_on_close(&self) -> bool {
        self.0.resets_on_close.load(Ordering::Relaxed)
    }

    /// When the bounds may be reached, as far as is known now; `None`: there are no bounds.
    pub fn due(&self) -> Option<Instant> {
        let deadline = self.deadlines().own.as_ref().and_then(Deadline::get);
        deadline.into_iter().chain(self.silent_at()).min()
    }

    /// Which bound has been reached at `now`; `None`: none has.
    pub fn reached(&self, now: Instant) -> Option<Ended> {
        if self.has_deadline_passed(now) {
            Some(Ended::DeadlinePassed)
        } else if self.silent_at().is_some_and(|at| now >= at) {
            Some(Ended::Silent)
        } else {
            None
        }
    }

    /// Notes why the connection is over. The handler's future and the response's body read the
    /// reason when they are dropped.
    pub fn end(&self, why: Ended) {
        self.0.ended.store(why as u8, Ordering::Relaxed);
    }

    /// Why the connection is over; `None`: it goes on, or its own protocol ended it.
    pub fn ended(&self) -> Option<Ended> {
        [
            Ended::PeerGone,
            Ended::DeadlinePassed,
            Ended::Silent,
            Ended::Aborted,
        ]
        .into_iter()
        .find(|why| *why as u8 == self.0.ended.load(Ordering::Relaxed))
        .or_else(|| self.0.connection.as_ref()?.ended())
    }

    pub(super) fn has_deadline_passed(&self, now: Instant) -> bool {
        self.deadlines().any_passed(now)
    }

    /// When the silence becomes too long; `None`: silence has no limit.
    fn silent_at(&self) -> Option<Instant> {
        match self.0.silence_limit.load(Ordering::Relaxed) {
            0 => None,
            limit => Some(self.0.last_byte_at.load()? + Duration::from_nanos(limit)),
        }
    }

    fn deadlines(&self) -> parking_lot::MutexGuard<'_, Deadlines> {
        self.0.deadlines.lock()
    }
}

impl Default for Bounds {
    /// Bounds that allow everything so far.
    fn default() -> Self {
        Self::within(None)
    }
}

// === impl BoundsState ===

impl BoundsState {
    /// A number that the connection knows the stream by.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn retire(&self) {
        if let Some(connection) = &self.connection {
            let may_have_buffered = connection.0.may_have_buffered.load(Ordering::Relaxed);
            let mut deadlines = connection.deadlines();
            deadlines.retire(self.id(), may_have_buffered);
        }
    }
}

impl ByteClock for BoundsState {
    fn last_byte_at(&self) -> Option<Instant> {
        match self.has_comments.load(Ordering::Relaxed) {
            true => self.turn_byte_at.load(),
            false => self.last_byte_at.load(),
        }
    }
}

impl Drop for BoundsState {
    fn drop(&mut self) {
        self.retire();
    }
}
