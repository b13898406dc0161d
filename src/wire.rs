//! One connection over TCP or a Unix socket, and the bounds within which it may move bytes.
//!
//! Invariant: no byte is written once the [`Bounds`]' deadline has passed, even one that waited in
//! a buffer while the process was stopped, because the bounds are asked at the write itself and
//! not by a timer that may be late. What the bytes mean is not known here.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::Instant;

use crate::deadline::Deadline;
use deadlines::Deadlines;

pub use socket::Socket;

mod deadlines;
mod socket;
#[cfg(test)]
mod tests;

/// A connection as hyper reads and writes it, or TLS below hyper.
#[derive(Debug)]
pub struct Wire {
    stream: Arc<Socket>,
    bounds: Bounds,
}

/// Until when, and how long in silence, a connection may go on. Clones are the same bounds.
#[derive(Clone, Debug)]
pub struct Bounds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    base: Instant,
    /// When a byte moved last, in nanoseconds behind `base`.
    moved: AtomicU64,
    /// The longest silence allowed, in nanoseconds; 0: any.
    silence: AtomicU64,
    deadlines: Mutex<Deadlines>,
    /// The connection's, if these are the bounds of one request among others on it.
    connection: Option<Bounds>,
    /// A write has found the socket full, and what wrote holds bytes back since.
    is_blocked: AtomicBool,
    ended: AtomicU8,
    /// The end of the connection is the end of the answer: nothing else can tell an aborted one.
    close_is_end: AtomicBool,
    /// It is reset when it is closed.
    is_broken_off: AtomicBool,
}

/// Why a connection was ended from this side of it, or found to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// The peer closed or reset it.
    PeerGone = 1,
    /// Its deadline passed.
    DeadlinePassed = 2,
    /// It was silent for too long.
    Silent = 3,
    /// The process is stopping and can't wait longer.
    Aborted = 4,
}

// === impl Wire ===

impl Wire {
    /// Wraps a connected stream, and turns Nagle's algorithm off: a streamed answer is made of
    /// small pieces, each wanted at once.
    ///
    /// # Errors
    /// When the socket is dead already.
    pub fn new(stream: impl Into<Socket>, bounds: Bounds) -> io::Result<Self> {
        let stream = stream.into();
        stream.set_nodelay()?;
        Ok(Self {
            stream: Arc::new(stream),
            bounds,
        })
    }

    /// Resolves when the peer has closed its side, whether or not its last bytes were read.
    ///
    /// hyper stops reading while it holds bytes of a pipelined request, and then doesn't notice
    /// that its client is gone. This does: the kernel reports the closing by itself (`EPOLLRDHUP`,
    /// which tokio hands out with the interest `PRIORITY`).
    pub fn peer_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let stream = Arc::clone(&self.stream);
        async move {
            // An error of `ready` means that the runtime goes down, and the connection with it.
            while let Ok(ready) = stream.ready(Interest::PRIORITY).await {
                if ready.is_read_closed() {
                    return;
                }
                // Urgent data, which HTTP has no use for: let it count as read.
                let read = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = stream.try_io(Interest::PRIORITY, read);
            }
        }
    }

    /// What resets the connection, when it is closed, if it has to be.
    pub fn resetter(&self) -> impl FnOnce() + use<> {
        let (stream, bounds) = (Arc::clone(&self.stream), self.bounds.clone());
        move || {
            if bounds.close_is_end() {
                // A socket that can't be asked any more is closed or reset already.
                let _ = stream.as_sock_ref().set_linger(Some(Duration::ZERO));
            }
        }
    }

    /// What cuts the connection in both directions, whoever has it by now.
    pub fn severer(&self) -> impl FnOnce() + use<> {
        let stream = Arc::clone(&self.stream);
        move || {
            // An error is a socket that is cut already.
            let _ = stream.as_sock_ref().shutdown(std::net::Shutdown::Both);
        }
    }

    fn write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Poll::Ready(ready) = self.stream.poll_write_ready(cx) else {
                self.bounds.blocked();
                return Poll::Pending;
            };
            ready?;
            let now = Instant::now();
            if self.bounds.deadline_passed(now) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(written) => {
                    self.bounds.moved(now);
                    return Poll::Ready(Ok(written));
                }
                failed => return Poll::Ready(failed),
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.bounds.0.is_broken_off.load(Ordering::Relaxed) {
            // A socket that can't be asked any more is closed or reset already.
            let _ = self.stream.as_sock_ref().set_linger(Some(Duration::ZERO));
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
                        // The socket is empty: what comes next is a new edge. Saying so here
                        // spares the read that would only find it out (as tokio's own stream does).
                        let empty = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                        let _ = self.stream.try_io(Interest::READABLE, empty);
                    }
                    self.bounds.moved(Instant::now());
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
        // A socket holds nothing back, and whoever flushes has written all that it held.
        self.bounds.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(
            self.stream
                .as_sock_ref()
                .shutdown(std::net::Shutdown::Write),
        )
    }
}

// === impl Bounds ===

impl Bounds {
    /// No bounds yet.
    pub fn new() -> Self {
        Self::within(None)
    }

    /// The bounds of one request among others on this connection (HTTP/2). Whoever serves it ends it
    /// when they are reached; if its bytes are still to be written then, no byte of the connection is.
    pub fn of_a_stream(&self) -> Self {
        Self::within(Some(self.clone()))
    }

    fn within(connection: Option<Self>) -> Self {
        Self(Arc::new(Shared {
            base: Instant::now(),
            moved: AtomicU64::new(0),
            silence: AtomicU64::new(0),
            deadlines: Mutex::default(),
            connection,
            is_blocked: AtomicBool::new(false),
            ended: AtomicU8::new(0),
            close_is_end: AtomicBool::new(false),
            is_broken_off: AtomicBool::new(false),
        }))
    }

    /// Lets no byte be written once `deadline` has passed.
    pub fn stop_at(&self, deadline: Deadline) {
        if let Some(connection) = &self.0.connection {
            connection.lock().add(self.id(), deadline.clone());
        }
        self.lock().own = Some(deadline);
    }

    /// Ends the connection when no byte moves for `longest`, counted from now.
    pub fn end_when_silent(&self, longest: Duration) {
        self.moved(Instant::now());
        self.0.silence.store(nanos(longest), Ordering::Relaxed);
    }

    /// Takes the deadline away; silence is still bounded.
    pub fn lift_deadline(&self) {
        self.lock().own = None;
        if let Some(connection) = &self.0.connection {
            connection.lock().remove(self.id());
        }
    }

    /// The same where the answer was cut: what its connection holds of it is not to be written later.
    pub fn retire_deadline(&self) {
        self.lock().own = None;
        self.0.retire();
    }

    /// Nothing is to be written to the connection once the deadline has passed, ever.
    pub fn keep_deadline(&self) {
        let Some(deadline) = self.lock().own.take() else {
            return;
        };
        if let Some(connection) = &self.0.connection {
            let mut deadlines = connection.lock();
            deadlines.remove(self.id());
            deadlines.keep(deadline);
        }
    }

    /// A byte of the request or of its answer has moved.
    pub fn touch(&self) {
        self.moved(Instant::now());
    }

    /// A write has found the socket full.
    fn blocked(&self) {
        self.0.is_blocked.store(true, Ordering::Relaxed);
    }

    /// Everything that was to be written is.
    fn flushed(&self) {
        if self.0.is_blocked.swap(false, Ordering::Relaxed) {
            self.lock().forget_retired();
        }
    }

    /// When a byte has moved last.
    pub fn moved_at(&self) -> Instant {
        self.0.base + Duration::from_nanos(self.0.moved.load(Ordering::Relaxed))
    }

    /// Whether these are of one request among others on its connection.
    pub fn is_of_a_stream(&self) -> bool {
        self.0.connection.is_some()
    }

    /// What the connection knows them by.
    fn id(&self) -> usize {
        self.0.id()
    }

    /// Takes all bounds away.
    pub fn lift(&self) {
        self.lift_deadline();
        self.0.silence.store(0, Ordering::Relaxed);
    }

    /// Says whether the client takes the end of the connection for the end of an answer, as HTTP/1.0
    /// does: then one that is aborted has to be reset.
    pub fn set_close_is_end(&self, is_end: bool) {
        self.0.close_is_end.store(is_end, Ordering::Relaxed);
    }

    /// Whether the client takes the one end for the other.
    pub fn close_is_end(&self) -> bool {
        self.0.close_is_end.load(Ordering::Relaxed)
    }

    /// Has the connection reset when it is closed, so that its end can't be taken for an orderly one
    /// by a protocol that knows no other.
    pub fn break_off(&self) {
        self.0.is_broken_off.store(true, Ordering::Relaxed);
    }

    /// When the bounds have to be looked at again; `None`: there are none.
    pub fn due(&self) -> Option<Instant> {
        let deadline = self.lock().own.as_ref().and_then(Deadline::get);
        deadline.into_iter().chain(self.silent_at()).min()
    }

    /// Which of the bounds has been reached at `now`.
    pub fn reached(&self, now: Instant) -> Option<Ended> {
        if self.deadline_passed(now) {
            Some(Ended::DeadlinePassed)
        } else if self.silent_at().is_some_and(|at| now >= at) {
            Some(Ended::Silent)
        } else {
            None
        }
    }

    /// Notes why the connection is over, for whoever is dropped with it.
    pub fn end(&self, why: Ended) {
        self.0.ended.store(why as u8, Ordering::Relaxed);
    }

    /// Why the connection is over; `None`: it isn't, or its own protocol ended it.
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

    fn deadline_passed(&self, now: Instant) -> bool {
        self.lock().any_passed(now)
    }

    fn silent_at(&self) -> Option<Instant> {
        match self.0.silence.load(Ordering::Relaxed) {
            0 => None,
            silence => {
                let moved = self.0.moved.load(Ordering::Relaxed);
                Some(self.0.base + Duration::from_nanos(moved.saturating_add(silence)))
            }
        }
    }

    fn moved(&self, now: Instant) {
        let moved = nanos(now.saturating_duration_since(self.0.base));
        self.0.moved.store(moved, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Deadlines> {
        self.0.lock()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Deadlines> {
        // Nothing can panic while it is held; a poisoned lock is as good as any.
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Takes a request's deadline from its connection, which may hold bytes of its answer.
    fn retire(&self) {
        if let Some(connection) = &self.connection {
            let is_blocked = connection.0.is_blocked.load(Ordering::Relaxed);
            connection.lock().retire(self.id(), is_blocked);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::new()
    }
}

/// Whole nanoseconds; 584 years are as good as for ever.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
