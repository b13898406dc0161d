//! A turn that has left HTTP (RFC 9110 §7.8): bytes are passed on in both directions, whatever they
//! say, until one side is done.
//!
//! Invariant: such a turn has every limit of one that answers over HTTP, and holds its lock until the
//! backend has been left. Then the lock is given back, and only then the client sees the end. It
//! can't go on without its client, whatever its route says: there is nobody whom the backend could
//! hear.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::drain::DrainWatch;
use crate::lock::{LockGuard, LockLoss};
use crate::wire::{Bounds, Ended};

/// Where tunnels run. One for each worker.
pub(super) struct Tunnels {
    /// Waits for them before the worker ends.
    turns: TaskTracker,
    /// Kept, because requests are served on no particular one.
    runtime: Handle,
    drain: DrainWatch,
}

/// Both ends of a tunnel, each of them still to leave HTTP.
pub(super) struct TunnelEndpoints<C> {
    pub(super) client: OnUpgrade,
    /// Of the client's connection.
    pub(super) bounds: Bounds,
    pub(super) backend: OnUpgrade,
    /// The backend's connection, which is over when this is dropped.
    pub(super) connection: C,
    /// Its protocol says by itself when it is over (RFC 6455 §7.1): a side that closes its connection
    /// has nothing more to hear.
    pub(super) is_websocket: bool,
}

/// What there is to tell of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TunnelSummary {
    pub(super) end: TunnelEnd,
    /// Handed to the client's connection.
    pub(super) bytes: u64,
    /// For how long the lock was held; `None` without one.
    pub(super) hold: Option<Duration>,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TunnelEnd {
    /// Both sides are done, or the backend is.
    Complete,
    /// The client left without waiting for the backend's end.
    ClientGone,
    /// The backend's connection broke.
    UpstreamAborted,
    /// The lock was lost.
    LockLost(LockLoss),
    /// The client's connection was ended from this side of it.
    Ended(Ended),
}

/// What passes bytes on.
struct TunnelPump {
    client: TunnelSide,
    backend: TunnelSide,
    to_client: TunnelFlow,
    to_backend: TunnelFlow,
    /// Whether the lock is held: then the tunnel is over with the backend's last byte.
    is_locked: bool,
    is_websocket: bool,
    /// Since one side is done: until when the other may take.
    closing: Option<Pin<Box<Sleep>>>,
}

enum TunnelSide {
    InHttp(OnUpgrade),
    Open(TokioIo<Upgraded>),
}

/// One direction.
#[derive(Default)]
struct TunnelFlow {
    /// Read, and not taken by the other side.
    rest: Vec<u8>,
    written: usize,
    is_unflushed: bool,
    source_is_over: bool,
    /// The other side has been told so, or will never take anything again.
    is_over: bool,
    bytes: u64,
}

/// A direction can't go on, because one side can't.
enum SideFailed {
    Source,
    Sink,
}

/// How many bytes are read at once: as much as one read of a TLS record or a few messages gives.
/// They are on the stack, so that a silent tunnel costs none.
const PIECE: usize = 16 << 10;

/// How long a WebSocket's side may take to close its connection when the other has: a peer in order
/// does it at once (RFC 6455 §7.1.1).
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

// === impl Tunnels ===

impl Tunnels {
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(turns: TaskTracker, drain: DrainWatch) -> Self {
        Self {
            turns,
            runtime: Handle::current(),
            drain,
        }
    }

    /// Runs one, and tells once how it ended.
    pub(super) fn run<C>(
        &self,
        ends: TunnelEndpoints<C>,
        held: Option<LockGuard>,
        tell: impl FnOnce(TunnelSummary) + Send + 'static,
    ) where
        C: Send + 'static,
    {
        let tunnel = run(ends, held, self.drain.clone(), tell);
        self.turns.spawn_on(tunnel, &self.runtime);
    }
}

async fn run<C>(
    ends: TunnelEndpoints<C>,
    mut held: Option<LockGuard>,
    mut drain: DrainWatch,
    tell: impl FnOnce(TunnelSummary),
) {
    let TunnelEndpoints {
        client,
        bounds,
        backend,
        connection,
        is_websocket,
    } = ends;
    let mut passing = TunnelPump {
        client: TunnelSide::InHttp(client),
        backend: TunnelSide::InHttp(backend),
        to_client: TunnelFlow::default(),
        to_backend: TunnelFlow::default(),
        is_locked: held.is_some(),
        is_websocket,
        closing: None,
    };
    let end = tokio::select! {
        // Before bytes are passed on: none is without the lock, or beyond a limit.
        biased;
        loss = lost(held.as_mut()) => TunnelEnd::LockLost(loss),
        () = drain.aborting() => TunnelEnd::Ended(Ended::Aborted),
        why = reached(&bounds) => TunnelEnd::Ended(why),
        end = poll_fn(|cx| passing.poll(cx)) => end,
    };
    // Whoever else watches the bounds may have been first, and what was seen of it an error.
    let end = match (held.as_mut().and_then(LockGuard::must_stop), bounds.ended()) {
        (Some(loss), _) => TunnelEnd::LockLost(loss),
        (None, Some(why)) if end != TunnelEnd::Complete => TunnelEnd::Ended(why),
        _ => end,
    };
    let TunnelPump {
        client,
        backend,
        to_client,
        ..
    } = passing;
    // The backend is left before the lock is.
    drop(backend);
    drop(connection);
    yield_now().await;
    let hold = held.as_ref().map(LockGuard::age);
    match (held, end) {
        // A process that stops has no time to wait, and a lock that was lost is nobody's to wait
        // for: theirs is given back in the background.
        (held, TunnelEnd::LockLost(_) | TunnelEnd::Ended(Ended::Aborted)) => drop(held),
        (Some(held), _) => tokio::select! {
            biased;
            () = drain.aborting() => {}
            () = held.release() => {}
        },
        (None, _) => {}
    }
    // A protocol that knows no other end than the connection's is not to see one in order.
    if end != TunnelEnd::Complete && !is_websocket {
        bounds.reset_on_close();
    }
    drop(client);
    tell(TunnelSummary {
        end,
        bytes: to_client.bytes,
        hold,
    });
}

/// Resolves when the lock is lost and the turn has to stop for it.
async fn lost(held: Option<&mut LockGuard>) -> LockLoss {
    match held {
        Some(held) => held.lost().await,
        None => std::future::pending().await,
    }
}

/// Resolves when a bound is reached.
async fn reached(bounds: &Bounds) -> Ended {
    while let Some(due) = bounds.due() {
        if let Some(why) = bounds.reached(Instant::now()) {
            return why;
        }
        sleep_until(due).await;
    }
    std::future::pending().await
}

// === impl Passing ===

impl TunnelPump {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        let client = match ready!(self.client.poll(cx)) {
            Some(client) => client,
            None => return Poll::Ready(TunnelEnd::ClientGone),
        };
        let backend = match ready!(self.backend.poll(cx)) {
            Some(backend) => backend,
            None => return Poll::Ready(TunnelEnd::UpstreamAborted),
        };
        match self.to_client.poll(cx, backend, client, !self.is_locked) {
            // It has no more to say, and would say it to nobody but a turn that holds its lock.
            Poll::Ready(Ok(())) if self.is_locked || self.to_backend.is_over => {
                return Poll::Ready(TunnelEnd::Complete);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SideFailed::Source)) => return Poll::Ready(TunnelEnd::UpstreamAborted),
            Poll::Ready(Err(SideFailed::Sink)) => return Poll::Ready(TunnelEnd::ClientGone),
        }
        match self.to_backend.poll(cx, client, backend, true) {
            Poll::Ready(Ok(())) if self.to_client.is_over => {
                return Poll::Ready(TunnelEnd::Complete);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SideFailed::Source)) => return Poll::Ready(TunnelEnd::ClientGone),
            // What it has said before may still be under way to here, and its end is behind it.
            Poll::Ready(Err(SideFailed::Sink)) => self.to_backend.is_over = true,
        }
        if self.is_websocket && (self.to_backend.is_over || self.to_client.is_over) {
            let closing = self
                .closing
                .get_or_insert_with(|| Box::pin(sleep(CLOSE_WITHIN)));
            ready!(closing.as_mut().poll(cx));
            return Poll::Ready(match self.to_client.is_over {
                true => TunnelEnd::Complete,
                false => TunnelEnd::ClientGone,
            });
        }
        Poll::Pending
    }
}

// === impl Side ===

impl TunnelSide {
    /// Ready when it has left HTTP; `None`: it never will.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<&mut TokioIo<Upgraded>>> {
        if let Self::InHttp(leaving) = self {
            match ready!(Pin::new(leaving).poll(cx)) {
                Ok(open) => *self = Self::Open(TokioIo::new(open)),
                Err(_) => return Poll::Ready(None),
            }
        }
        Poll::Ready(match self {
            Self::Open(open) => Some(open),
            Self::InHttp(_) => None,
        })
    }
}

// === impl Flow ===

impl TunnelFlow {
    /// Ready when the source is over and everything has been handed to the sink, which is told so if
    /// it `hears` of it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
        hears: bool,
    ) -> Poll<Result<(), SideFailed>> {
        while !self.is_over {
            if ready!(self.poll_write_rest(cx, sink)).is_err() {
                return Poll::Ready(Err(SideFailed::Sink));
            }
            if self.source_is_over {
                let told = match hears {
                    true => ready!(Pin::new(&mut *sink).poll_shutdown(cx)),
                    false => ready!(Pin::new(&mut *sink).poll_flush(cx)),
                };
                if told.is_err() {
                    return Poll::Ready(Err(SideFailed::Sink));
                }
                self.is_over = true;
                break;
            }
            let mut space = [MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *source).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(SideFailed::Source)),
                Poll::Pending => {
                    if self.is_unflushed {
                        if ready!(Pin::new(&mut *sink).poll_flush(cx)).is_err() {
                            return Poll::Ready(Err(SideFailed::Sink));
                        }
                        self.is_unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            let piece = piece.filled();
            self.source_is_over = piece.is_empty();
            if !piece.is_empty() {
                let taken = match Pin::new(&mut *sink).poll_write(cx, piece) {
                    Poll::Ready(Ok(taken)) => taken,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(SideFailed::Sink)),
                    Poll::Pending => 0,
                };
                self.took(taken);
                self.rest.extend_from_slice(&piece[taken..]);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_rest(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while self.written < self.rest.len() {
            let rest = &self.rest[self.written..];
            let taken = ready!(Pin::new(&mut *sink).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += taken;
            self.took(taken);
        }
        self.rest = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn took(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.is_unflushed |= bytes > 0;
    }
}
