//! The body of an answer, with the turn inside it; and how an answer can end.
//!
//! Invariant: the lock is released before the client can see the end of the answer. A body that
//! ends with its last frame (a `content-length`) has that frame held back until the release is
//! done, and so have trailers; one that just ends (chunked) has its end held back. Whatever else
//! happens to a body, it is dropped, and the turn with it: first what the backend still sends, then
//! the lock. A turn that outlives its client is handed over instead, the lock with what the backend
//! still sends.

use std::mem::replace;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::time::Instant;

use crate::lock::{LockGuard, LockLoss, LockRelease};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An answer on its way to the client, and the lock under which it was made.
pub(super) struct GuardedBody<B: Body, T: OnStreamEnd<B>> {
    state: StreamState<B>,
    tell: Option<T>,
    bytes: u64,
    /// Since when the backend has been waited for. Noted only for a turn that outlives its client.
    silent_since: Option<Instant>,
    /// For how long the lock was held, once it isn't any more.
    hold: Option<Duration>,
}

enum StreamState<B> {
    // In this order, which is the order in which they are dropped: the backend is left before the
    // lock is.
    Streaming {
        backend: B,
        held: Option<LockGuard>,
    },
    /// The backend's answer is over; the client doesn't know yet.
    Releasing {
        releasing: Option<LockRelease>,
        last: Option<Result<Frame<Bytes>, ResponseAborted>>,
    },
    Over,
}

/// Is told, once, how the answer ended; or is given the rest of it when its client is gone.
pub(super) trait OnStreamEnd<B> {
    fn tell(self, ending: StreamSummary);

    /// Whether the turn, as long as it is locked, is one that outlives its client.
    fn outlives_client(&self) -> bool;

    /// The connection is over before the answer is, of a turn that outlives its client.
    fn go_on(self, rest: RemainingStream<B>);
}

/// What is left of a turn when its client is gone in the middle of the answer.
pub(super) struct RemainingStream<B> {
    // In this order, as in `StreamState`.
    pub(super) backend: B,
    pub(super) held: LockGuard,
    /// Of the body, handed to the client's connection.
    pub(super) bytes: u64,
    /// Since when the backend has been waited for; `None` if it has more to say at once, or may
    /// have.
    pub(super) silent_since: Option<Instant>,
}

/// What there is to tell at the end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamSummary {
    pub(super) end: StreamEnd,
    /// Of the body, handed to the client's connection.
    pub(super) bytes: u64,
    /// For how long the lock was held; `None` without one.
    pub(super) hold: Option<Duration>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// Whole.
    Complete,
    /// The backend broke off.
    UpstreamAborted,
    /// The lock was lost in the middle.
    LockLost(LockLoss),
    /// The connection was over before the answer was.
    Dropped,
}

/// Why an answer is aborted instead of ended. hyper closes the connection on it, so that the client
/// can't take it for a whole one.
#[derive(Debug, Error)]
pub enum ResponseAborted {
    /// The backend broke off.
    #[error("the backend broke off: {0}")]
    Backend(BoxError),
    /// The lock was lost.
    #[error("the lock was lost: {0}")]
    LockLost(LockLoss),
}

// === impl GuardedBody ===

impl<B, T> GuardedBody<B, T>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    T: OnStreamEnd<B>,
{
    pub(super) fn new(backend: B, held: Option<LockGuard>, tell: T) -> Self {
        let state = StreamState::Streaming { backend, held };
        Self {
            state,
            tell: Some(tell),
            bytes: 0,
            silent_since: None,
            hold: None,
        }
    }

    /// Resolves when an answer without a body has let go of its lock; at once for any other.
    pub(super) async fn settle_if_empty(&mut self) {
        if let StreamState::Streaming { backend, held } = &mut self.state
            && backend.is_end_stream()
        {
            let held = held.take();
            self.release(held, None);
            if let StreamState::Releasing {
                releasing: Some(releasing),
                ..
            } = &mut self.state
            {
                releasing.await;
            }
            self.finish(StreamEnd::Complete);
        }
    }

    /// The backend's answer is over with `last`.
    fn release(
        &mut self,
        held: Option<LockGuard>,
        last: Option<Result<Frame<Bytes>, ResponseAborted>>,
    ) {
        self.hold = held.as_ref().map(LockGuard::age);
        self.state = StreamState::Releasing {
            releasing: held.map(LockGuard::release),
            last,
        };
    }
}

impl<B: Body, T: OnStreamEnd<B>> GuardedBody<B, T> {
    fn finish(&mut self, end: StreamEnd) {
        // Drops what is left of the turn before it is told of.
        self.state = StreamState::Over;
        if let Some(tell) = self.tell.take() {
            tell.tell(StreamSummary {
                end,
                bytes: self.bytes,
                hold: self.hold,
            });
        }
    }
}

impl<B, T> Body for GuardedBody<B, T>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    T: OnStreamEnd<B> + Unpin,
{
    type Data = Bytes;
    type Error = ResponseAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseAborted>>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                StreamState::Streaming { backend, held } => {
                    // Before the backend is asked: nothing it sends may pass without the lock.
                    if let Some(loss) = held.as_mut().and_then(|held| held.poll_must_stop(cx)) {
                        this.hold = held.as_ref().map(LockGuard::age);
                        this.finish(StreamEnd::LockLost(loss));
                        return Poll::Ready(Some(Err(ResponseAborted::LockLost(loss))));
                    }
                    let Poll::Ready(frame) = Pin::new(&mut *backend).poll_frame(cx) else {
                        if this.tell.as_ref().is_some_and(T::outlives_client) {
                            this.silent_since.get_or_insert_with(Instant::now);
                        }
                        return Poll::Pending;
                    };
                    this.silent_since = None;
                    let last = match frame {
                        Some(Ok(frame)) => {
                            this.bytes += length(&frame);
                            // hyper asks for nothing more behind trailers: they are the end.
                            if !backend.is_end_stream() && !frame.is_trailers() {
                                return Poll::Ready(Some(Ok(frame)));
                            }
                            Some(Ok(frame))
                        }
                        Some(Err(error)) => Some(Err(ResponseAborted::Backend(error.into()))),
                        None => None,
                    };
                    let held = held.take();
                    this.release(held, last);
                }
                StreamState::Releasing { releasing, last } => {
                    if let Some(releasing) = releasing {
                        ready!(Pin::new(releasing).poll(cx));
                    }
                    let last = last.take();
                    this.finish(match &last {
                        Some(Err(_)) => StreamEnd::UpstreamAborted,
                        _ => StreamEnd::Complete,
                    });
                    return Poll::Ready(last);
                }
                StreamState::Over => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, StreamState::Over)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            StreamState::Streaming { backend, .. } => backend.size_hint(),
            StreamState::Releasing {
                last: Some(Ok(frame)),
                ..
            } => SizeHint::with_exact(length(frame)),
            StreamState::Releasing { .. } | StreamState::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B: Body, T: OnStreamEnd<B>> Drop for GuardedBody<B, T> {
    fn drop(&mut self) {
        if matches!(self.state, StreamState::Over) {
            return;
        }
        let end = match replace(&mut self.state, StreamState::Over) {
            StreamState::Streaming { backend, mut held } => {
                self.hold = held.as_ref().map(LockGuard::age);
                let lost = held.as_mut().and_then(LockGuard::must_stop);
                if lost.is_none()
                    && held.is_some()
                    && let Some(tell) = self.tell.take_if(|tell| tell.outlives_client())
                    && let Some(held) = held
                {
                    return tell.go_on(RemainingStream {
                        backend,
                        held,
                        bytes: self.bytes,
                        silent_since: self.silent_since,
                    });
                }
                drop(backend);
                drop(held);
                lost.map_or(StreamEnd::Dropped, StreamEnd::LockLost)
            }
            StreamState::Releasing { .. } | StreamState::Over => StreamEnd::Dropped,
        };
        self.finish(end);
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
