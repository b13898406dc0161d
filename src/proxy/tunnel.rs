//! Turns that have left HTTP by an upgrade (RFC 9110 §7.8), such as WebSockets: bytes are copied in both
//! directions until one side is done.
//!
//! Invariant: a tunnel has every limit of a turn over HTTP, and holds its lock until the backend has been
//! left. The client sees the end after the lock is released. A tunnel never goes on without its client,
//! whatever its route says, because the backend would wait for a client that is gone.

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
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::end::{End, leave};
use super::forward::BackendBody;
use super::record::RequestRecord;
use crate::drain::DrainWatch;
use crate::lock::{LockGuard, LockLoss};
use crate::wire::{Bounds, Ended};

/// Runs tunnels. One for each worker.
pub(super) struct Tunnels {
    /// The worker waits for these tasks before it ends.
    turns: TaskTracker,
    /// The worker's runtime.
    runtime: Handle,
    drain: DrainWatch,
}

/// Both ends of a tunnel, before they have left HTTP.
pub(super) struct TunnelEndpoints {
    pub(super) client: OnUpgrade,
    pub(super) backend: OnUpgrade,
    /// The backend's connection, which is closed when this is dropped.
    pub(super) connection: BackendBody,
    /// Whether the tunnel's protocol is WebSocket, which says by itself when it is over (RFC 6455
    /// §7.1): a side that closes its connection reads nothing more.
    pub(super) is_websocket: bool,
}

/// Copies bytes between both sides.
struct TunnelPump {
    client: TunnelSide,
    backend: TunnelSide,
    to_client: TunnelFlow,
    to_backend: TunnelFlow,
    /// Whether the turn has a lock. If so, the tunnel ends with the backend's last byte.
    is_locked: bool,
    is_websocket: bool,
    /// Runs since one side of a WebSocket is done: how long the other may still take.
    closing: Option<Pin<Box<Sleep>>>,
}

/// One side of a tunnel.
enum TunnelSide {
    /// The connection has not left HTTP yet.
    InHttp(OnUpgrade),
    Open(TokioIo<Upgraded>),
}

/// One direction of a tunnel.
#[derive(Default)]
struct TunnelFlow {
    /// What was read and not yet written.
    rest: Vec<u8>,
    /// How much of `rest` is written.
    written: usize,
    is_unflushed: bool,
    source_is_over: bool,
    /// The sink knows that the source is over, or takes nothing any more.
    is_over: bool,
    /// How many bytes were written.
    bytes: u64,
}

/// Which side of a direction failed.
enum SideFailed {
    Source,
    Sink,
}

/// How many bytes are read at once: about one TLS record or a few messages. The buffer is on the stack, so
/// that a silent tunnel takes no memory for it.
const PIECE: usize = 16 << 10;

/// How long one side of a WebSocket may take to close its connection after the other side did. A correct
/// peer closes at once (RFC 6455 §7.1.1).
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

// === impl Tunnels ===

impl Tunnels {
    /// Runs tunnels as tasks among `turns`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(turns: TaskTracker, drain: DrainWatch) -> Self {
        Self {
            turns,
            runtime: Handle::current(),
            drain,
        }
    }

    /// Runs a tunnel as a task, and finishes `record` when it ends.
    pub(super) fn run(
        &self,
        ends: TunnelEndpoints,
        held: Option<LockGuard>,
        record: Box<RequestRecord>,
    ) {
        let tunnel = run(ends, held, record, self.drain.clone());
        self.turns.spawn_on(tunnel, &self.runtime);
    }
}

async fn run(
    ends: TunnelEndpoints,
    mut held: Option<LockGuard>,
    record: Box<RequestRecord>,
    mut drain: DrainWatch,
) {
    let TunnelEndpoints {
        client,
        backend,
        connection,
        is_websocket,
    } = ends;
    let bounds = record.client.clone();
    let mut pump = TunnelPump {
        client: TunnelSide::InHttp(client),
        backend: TunnelSide::InHttp(backend),
        to_client: TunnelFlow::default(),
        to_backend: TunnelFlow::default(),
        is_locked: held.is_some(),
        is_websocket,
        closing: None,
    };
    let end = tokio::select! {
        // The lock and the limits come first: no byte passes without them.
        biased;
        loss = lost(held.as_mut()) => End::LockLost(loss),
        () = drain.aborting() => End::DrainAborted,
        why = reached(&bounds) => End::Disconnected(Some(why)),
        end = poll_fn(|cx| pump.poll(cx)) => end,
    };
    // The error of a side may only show that another task has closed it, for one of these reasons.
    let end = match (held.as_mut().and_then(LockGuard::must_stop), bounds.ended()) {
        (Some(loss), _) => End::LockLost(loss),
        (None, Some(why)) if end != End::Complete => End::Disconnected(Some(why)),
        _ => end,
    };
    let TunnelPump {
        client,
        backend,
        to_client,
        ..
    } = pump;
    let hold = leave((backend, connection), held, end)
        .released(&mut drain)
        .await;
    // A client whose protocol has no other end than the connection's must not see an orderly end.
    if end != End::Complete && !is_websocket {
        bounds.reset_on_close();
    }
    drop(client);
    record.finish_turn(end, hold, to_client.bytes);
}

/// Resolves when the lock is lost and the turn has to stop for it.
async fn lost(held: Option<&mut LockGuard>) -> LockLoss {
    match held {
        Some(held) => held.lost().await,
        None => std::future::pending().await,
    }
}

/// Resolves when a limit of the client's connection is reached.
async fn reached(bounds: &Bounds) -> Ended {
    while let Some(due) = bounds.due() {
        if let Some(why) = bounds.reached(Instant::now()) {
            return why;
        }
        sleep_until(due).await;
    }
    std::future::pending().await
}

// === impl TunnelPump ===

impl TunnelPump {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some(client) = ready!(self.client.poll(cx)) else {
            return Poll::Ready(End::Disconnected(None));
        };
        let Some(backend) = ready!(self.backend.poll(cx)) else {
            return Poll::Ready(End::UpstreamAborted);
        };
        match self.to_client.poll(cx, backend, client, !self.is_locked) {
            // The backend is done: a turn with a lock ends here, any other when the client is done, too.
            Poll::Ready(Ok(())) if self.is_locked || self.to_backend.is_over => {
                return Poll::Ready(End::Complete);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SideFailed::Source)) => return Poll::Ready(End::UpstreamAborted),
            Poll::Ready(Err(SideFailed::Sink)) => return Poll::Ready(End::Disconnected(None)),
        }
        match self.to_backend.poll(cx, client, backend, true) {
            Poll::Ready(Ok(())) if self.to_client.is_over => {
                return Poll::Ready(End::Complete);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SideFailed::Source)) => return Poll::Ready(End::Disconnected(None)),
            // What the backend sent before it closed may still be on the way to the client.
            Poll::Ready(Err(SideFailed::Sink)) => self.to_backend.is_over = true,
        }
        if self.is_websocket && (self.to_backend.is_over || self.to_client.is_over) {
            let closing = self
                .closing
                .get_or_insert_with(|| Box::pin(sleep(CLOSE_WITHIN)));
            ready!(closing.as_mut().poll(cx));
            return Poll::Ready(match self.to_client.is_over {
                true => End::Complete,
                false => End::Disconnected(None),
            });
        }
        Poll::Pending
    }
}

// === impl TunnelSide ===

impl TunnelSide {
    /// Ready when the connection has left HTTP; `None`: it never will.
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

// === impl TunnelFlow ===

impl TunnelFlow {
    /// Ready when the source is over and everything is written to the sink. With `shuts_down`, the sink's
    /// connection is then closed for writing.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
        shuts_down: bool,
    ) -> Poll<Result<(), SideFailed>> {
        while !self.is_over {
            if ready!(self.poll_write_rest(cx, sink)).is_err() {
                return Poll::Ready(Err(SideFailed::Sink));
            }
            if self.source_is_over {
                let closed = match shuts_down {
                    true => ready!(Pin::new(&mut *sink).poll_shutdown(cx)),
                    false => ready!(Pin::new(&mut *sink).poll_flush(cx)),
                };
                if closed.is_err() {
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
                self.note_written(taken);
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
            self.note_written(taken);
        }
        self.rest = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.is_unflushed |= bytes > 0;
    }
}
