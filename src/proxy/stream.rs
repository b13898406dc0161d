//! The body of a backend's response on its way to the client, with the turn's lock inside it.
//!
//! Invariant: the lock is released before the client can see the end of the response. A body that ends
//! with its last frame (`content-length`) has that frame held back until the release is done, and so
//! have trailers. A body that just ends (chunked) has its end held back. A response with a `content-length` whose
//! body has arrived in one piece with its head is held back from the head on, and leaves in one piece. In every
//! other case the body is dropped, and the turn with it: first the backend's connection, then the lock. A turn that
//! goes on without its client is handed over to [`Orphans`].

use std::future::poll_fn;
use std::mem::replace;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep};

use super::end::{End, Leaving, leave};
use super::forward::BackendBody;
use super::orphan::{OrphanedResponse, Orphans};
use super::record::RequestRecord;
use super::silence::{COMMENT, SilenceFiller, SilentBackend};
use crate::answer::AnswerWriter;
use crate::lock::{INTERRUPT_GRACE, LockGuard, LockLoss};
use crate::wire::{Ended, FlushWait};

/// A response's body on its way to the client, and the lock of its turn.
pub struct GuardedBody {
    state: StreamState,
    /// The request's record; `None` once it is finished or handed over.
    record: Option<Box<RequestRecord>>,
    /// Where the turn goes on when its client is gone; `None`: it is cancelled.
    orphans: Option<Arc<Orphans>>,
    /// How many bytes of the body the client's connection took.
    bytes: u64,
    /// Since when the backend sends nothing. Noted only for a turn that may go on without its client.
    silent_since: Option<Instant>,
    /// Waits for what was handed to the connection, before the response is cut off.
    written: FlushWait,
    /// Ends that wait for an interrupted turn, before its deadline; `None`: the turn goes on.
    grace: Option<Pin<Box<Sleep>>>,
    /// Writes the turn's answer for other requests; `None`: it isn't kept, or has ended.
    answer: Option<Box<AnswerWriter>>,
    /// Keeps the client while the backend's event stream is silent; `None`: the response is no event stream, or its
    /// client isn't kept.
    filler: Option<Box<SilenceFiller>>,
}

enum StreamState {
    /// The response is under way. The fields are dropped in this order: the backend is left before the
    /// lock is given back.
    Streaming {
        backend: BackendBody,
        held: Option<LockGuard>,
    },
    /// The backend's response is over, and the client doesn't know yet.
    Releasing {
        leaving: Leaving,
        last: Option<Result<Frame<Bytes>, ResponseAborted>>,
    },
    Over,
}

/// Why a response is cut off instead of ended. hyper closes the connection on this error, so that the
/// client can't take the response for a whole one.
#[derive(Debug, Error)]
pub enum ResponseAborted {
    /// The backend broke off.
    #[error("the backend broke off: {0}")]
    Backend(hyper::Error),
    /// The turn lost its lock.
    #[error("the lock was lost: {0}")]
    LockLost(LockLoss),
    /// The backend sent nothing for `timeouts.idle_stream`.
    #[error("the backend was silent for too long")]
    Silent,
    /// The answer of another request's turn, which this response is, broke off.
    #[error("the answer broke off")]
    Answer,
    /// The next bytes of the answer, which this response is, aren't kept any more.
    #[error("the client was too slow for an answer that isn't kept whole")]
    AnswerGone,
}

// === impl GuardedBody ===

impl GuardedBody {
    /// The body of a response under the lock `held`. `orphans`: where the turn goes on when its client
    /// is gone; `None`: it is cancelled then. `answer` writes it for other requests.
    pub(super) fn new(
        backend: BackendBody,
        held: Option<LockGuard>,
        orphans: Option<Arc<Orphans>>,
        record: Box<RequestRecord>,
        filler: Option<SilenceFiller>,
        answer: Option<Box<AnswerWriter>>,
    ) -> Self {
        Self {
            answer,
            filler: filler.map(Box::new),
            state: StreamState::Streaming { backend, held },
            record: Some(record),
            orphans,
            bytes: 0,
            silent_since: None,
            written: FlushWait::default(),
            grace: None,
        }
    }

    /// Releases the lock of a response without a body, or with a `content-length` and a body that has arrived in one piece
    /// with the head, and waits for it: such a response leaves in one piece. Returns at once for any other response.
    /// Cancel-safe.
    pub(super) async fn release_if_whole(&mut self) {
        poll_fn(|cx| self.poll_released_if_whole(cx)).await;
    }

    fn poll_released_if_whole(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let StreamState::Streaming { backend, held } = &mut self.state {
            // Nothing of a body passes without the lock, and no client waits for a head for so long as turns settle.
            let may_wait = |held: &mut LockGuard| held.must_stop().is_none() && !held.settles();
            let mut is_quick = || held.as_mut().is_none_or(may_wait);
            if backend.is_end_stream() {
                self.release(None);
            } else if is_quick()
                && let Some(frame) = backend.take_whole(cx)
            {
                self.count(&frame);
                self.release(Some(Ok(frame)));
            }
        }
        if let StreamState::Releasing { leaving, last } = &mut self.state {
            ready!(leaving.poll_released(cx));
            if last.is_none() {
                let hold = leaving.hold;
                self.end_answer(true);
                self.finish(self.whole_end(), hold);
            }
        }
        Poll::Ready(())
    }

    /// Counts a frame of the backend, and keeps it for those who read the answer later.
    fn count(&mut self, frame: &Frame<Bytes>) {
        self.bytes += length(frame);
        if let Some(answer) = &mut self.answer {
            answer.frame(frame);
        }
    }

    /// How a turn ends whose response is whole: not as complete if its client takes nothing any more.
    fn whole_end(&self) -> End {
        let is_lost = |record: &RequestRecord| record.client.is_unacknowledged();
        match self.record.as_deref().is_some_and(is_lost) {
            true => End::Disconnected(Some(Ended::PeerGone)),
            false => End::Complete,
        }
    }

    /// Begins to release the lock. The backend's response is over with `last`.
    fn release(&mut self, last: Option<Result<Frame<Bytes>, ResponseAborted>>) {
        if let StreamState::Streaming { backend, held } =
            replace(&mut self.state, StreamState::Over)
        {
            let end = match last {
                Some(Err(_)) => End::UpstreamAborted,
                _ => End::Complete,
            };
            let leaving = leave(backend, held, end);
            self.state = StreamState::Releasing { leaving, last };
        }
    }

    /// Leaves the backend because the turn has lost its lock.
    fn cut_off(&mut self, loss: LockLoss) {
        if let StreamState::Streaming { backend, held } =
            replace(&mut self.state, StreamState::Over)
        {
            let end = End::LockLost(loss);
            let hold = leave(backend, held, end).hold;
            self.finish(end, hold);
        }
    }

    /// Leaves a backend that has been silent for too long.
    fn leave_silent(&mut self) {
        if let StreamState::Streaming { backend, held } =
            replace(&mut self.state, StreamState::Over)
        {
            let hold = leave(backend, held, End::IdleTimeout).hold;
            self.finish(End::IdleTimeout, hold);
        }
    }

    /// Ends the kept answer, as whole or as aborted. The lock is released, so that whoever sees the end may send the
    /// session's next turn.
    fn end_answer(&mut self, is_whole: bool) {
        if let Some(answer) = self.answer.take().filter(|_| is_whole) {
            answer.end_whole();
        }
    }

    /// Finishes the record, after what is left of the turn was dropped.
    fn finish(&mut self, end: End, hold: Option<Duration>) {
        self.state = StreamState::Over;
        self.end_answer(false);
        if let Some(record) = self.record.take() {
            // The connection may serve another request. The client may go on reading what hyper still
            // holds of a whole response; of one that was cut off, nothing more is written.
            match end {
                End::Complete => record.client.lift_deadline(),
                _ => record.client.retire_deadline(),
            }
            record.finish_turn(end, hold, self.bytes);
        }
    }
}

impl Body for GuardedBody {
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
                    // The lock comes first: nothing of the backend passes without it.
                    if let Some(loss) = held.as_mut().and_then(|held| held.poll_must_stop(cx)) {
                        // An interrupted turn has its lock until it is left, and its client gets what
                        // is on its way: at least the head.
                        if loss == LockLoss::Interrupted {
                            let grace = this
                                .grace
                                .get_or_insert_with(|| Box::pin(sleep(INTERRUPT_GRACE)));
                            if grace.as_mut().poll(cx).is_pending() {
                                ready!(poll_written(&mut this.written, cx, this.record.as_deref()));
                            }
                        }
                        this.cut_off(loss);
                        return Poll::Ready(Some(Err(ResponseAborted::LockLost(loss))));
                    }
                    let Poll::Ready(frame) = Pin::new(&mut *backend).poll_frame(cx) else {
                        if this.orphans.is_some() {
                            this.silent_since.get_or_insert_with(Instant::now);
                        }
                        let Some(filler) = &mut this.filler else {
                            return Poll::Pending;
                        };
                        match ready!(filler.poll_silent(cx)) {
                            SilentBackend::Comment => {
                                if let Some(record) = &this.record {
                                    record.comments().sent();
                                }
                                return Poll::Ready(Some(Ok(Frame::data(COMMENT))));
                            }
                            SilentBackend::End => {
                                this.leave_silent();
                                return Poll::Ready(Some(Err(ResponseAborted::Silent)));
                            }
                        }
                    };
                    this.silent_since = None;
                    if let (Some(filler), Some(Ok(frame))) = (&mut this.filler, &frame)
                        && let Some(data) = frame.data_ref()
                    {
                        filler.heard(data);
                        if let Some(record) = &this.record {
                            record.client.touch();
                        }
                    }
                    let last = match frame {
                        Some(Ok(frame)) => {
                            // hyper takes trailers for the end and asks for nothing more.
                            let is_last = backend.is_end_stream() || frame.is_trailers();
                            this.count(&frame);
                            if !is_last {
                                return Poll::Ready(Some(Ok(frame)));
                            }
                            Some(Ok(frame))
                        }
                        Some(Err(error)) => {
                            if let Some(record) = &mut this.record {
                                record.note_error(BackendBody::abort_reason(&error));
                            }
                            Some(Err(ResponseAborted::Backend(error)))
                        }
                        None => None,
                    };
                    this.release(last);
                }
                StreamState::Releasing { leaving, last } => {
                    ready!(leaving.poll_released(cx));
                    let is_whole = !matches!(last, Some(Err(_)));
                    if let Some(answer) = this.answer.take().filter(|_| is_whole) {
                        answer.end_whole();
                    }
                    if !is_whole {
                        ready!(poll_written(&mut this.written, cx, this.record.as_deref()));
                    }
                    let (hold, last) = (leaving.hold, last.take());
                    let end = match &last {
                        Some(Err(_)) => End::UpstreamAborted,
                        _ => this.whole_end(),
                    };
                    this.finish(end, hold);
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

impl Drop for GuardedBody {
    fn drop(&mut self) {
        let (end, hold) = match replace(&mut self.state, StreamState::Over) {
            StreamState::Streaming { backend, mut held } => {
                let loss = held.as_mut().and_then(LockGuard::must_stop);
                let orphans = self.orphans.as_ref();
                if loss.is_none()
                    && let Some(orphans) = orphans.filter(|it| it.may_adopt(self.silent_since))
                    && let Some(record) = self.record.take_if(|_| held.is_some())
                    && let Some(held) = held.take()
                {
                    // An HTTP/2 connection goes on with other requests, to which the turn's deadline
                    // must not apply.
                    record.client.retire_deadline();
                    let answer = self.answer.take();
                    let response = OrphanedResponse {
                        body: backend,
                        silent_since: self.silent_since,
                        bytes: self.bytes,
                    };
                    return orphans.adopt_response(response, held, record, answer);
                }
                let end = loss.map_or(End::Disconnected(None), End::LockLost);
                let hold = leave(backend, held, end).hold;
                (end, hold)
            }
            StreamState::Releasing { leaving, last } => {
                let has_all = |record: &RequestRecord| record.client.has_written_all();
                let end = match last {
                    Some(Err(_)) => End::UpstreamAborted,
                    // The client has had every byte, and only the end is missing.
                    None if self.record.as_deref().is_some_and(has_all) => self.whole_end(),
                    _ => End::Disconnected(None),
                };
                let hold = leaving.hold;
                if let (Some(answer), Some(orphans)) = (self.answer.take(), &self.orphans)
                    && !matches!(last, Some(Err(_)))
                {
                    orphans.end_answer(leaving, answer);
                }
                (end, hold)
            }
            StreamState::Over => return,
        };
        self.finish(end, hold);
    }
}

/// Ready when the client's connection has written what it has of the response. An error of a body makes
/// hyper and h2 drop what they have buffered, even the response's head: the client would get a closed
/// connection, or a reset, in place of a truncated response.
fn poll_written(
    written: &mut FlushWait,
    cx: &mut Context<'_>,
    record: Option<&RequestRecord>,
) -> Poll<()> {
    match record {
        Some(record) => record.client.poll_flushed(written, cx),
        None => Poll::Ready(()),
    }
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}
