//! Turns that go on without their client: the backend's response is read to its end, and thrown away unless it is kept.
//!
//! Invariant: such a turn keeps every limit that it had with its client, and holds its lock until the
//! backend has finished or has been left. Whether a turn may go on is decided by whoever hands it over.

use std::pin::pin;
use std::time::Duration;

use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::end::{End, Leaving, leave};
use super::forward::{BackendBody, SendFuture, headers};
use super::record::RequestRecord;
use crate::answer::{AnswerHead, AnswerWriter};
use crate::drain::DrainWatch;
use crate::lock::LockGuard;
use crate::wire::Bounds;

/// Runs turns that go on without their client. One for each worker.
pub(super) struct Orphans {
    /// The worker waits for these tasks before it ends.
    turns: TaskTracker,
    /// The worker's runtime. A turn is handed over in a `Drop`, which may run outside of it.
    runtime: Handle,
    drain: DrainWatch,
    idle_stream: Duration,
}

/// What is left of a turn whose client is gone. Its fields are dropped in this order: the backend is
/// left before the lock is given back.
struct Orphan<W> {
    /// Reads the response to its end.
    work: W,
    held: LockGuard,
    record: Box<RequestRecord>,
    /// How many bytes of the response's body the client's connection took.
    bytes: u64,
    /// Whether those are all bytes that the backend had sent.
    has_all: bool,
}

/// A response whose client is gone.
pub(super) struct OrphanedResponse {
    /// The rest of its body.
    pub(super) body: BackendBody,
    /// Since when the backend is silent; `None`: it isn't.
    pub(super) silent_since: Option<Instant>,
    /// How many bytes of the body the client's connection took.
    pub(super) bytes: u64,
}

/// Writes the answer of a turn for other requests; `None`: it isn't kept.
type OrphanAnswer = Option<Box<AnswerWriter>>;

/// How the work of an orphan ended.
struct WorkEnd {
    end: End,
    /// The answer, which isn't ended yet.
    answer: OrphanAnswer,
    /// Whether the backend sent a byte of the body that the client can't have got.
    is_missing: bool,
}

// === impl Orphans ===

impl Orphans {
    /// Runs turns as tasks among `turns`. A backend that is silent for `idle_stream` is left.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(turns: TaskTracker, drain: DrainWatch, idle_stream: Duration) -> Self {
        Self {
            turns,
            runtime: Handle::current(),
            drain,
            idle_stream,
        }
    }

    /// Whether a turn may go on whose backend has been silent since `silent_since`; `None`: it isn't.
    pub(super) fn may_adopt(&self, silent_since: Option<Instant>) -> bool {
        let is_silent = silent_since.is_some_and(|since| since.elapsed() >= self.idle_stream);
        !is_silent && !self.drain.is_aborting()
    }

    /// Goes on with a turn whose response has not begun. The backend has until `give_up` to begin it.
    pub(super) fn adopt_request(
        &self,
        sending: SendFuture,
        give_up: Instant,
        held: LockGuard,
        record: Box<RequestRecord>,
        mut answer: OrphanAnswer,
    ) {
        let (idle_stream, bounds) = (self.idle_stream, record.client.clone());
        let work = async move {
            let end = match timeout_at(give_up, sending).await {
                Err(_) => End::UpstreamTimeout,
                Ok(Err(_)) => End::UpstreamAborted,
                Ok(Ok(response)) => {
                    let (mut head, body) = response.into_parts();
                    headers::clean_response_headers(&mut head.headers);
                    if let Some(answer) =
                        answer.as_mut().filter(|_| !head.status.is_informational())
                    {
                        answer.head(AnswerHead::new(head.status, &head.headers));
                    }
                    return read_to_end(body, Instant::now(), idle_stream, &bounds, answer).await;
                }
            };
            WorkEnd {
                end,
                answer,
                is_missing: true,
            }
        };
        self.adopt(Orphan {
            work,
            held,
            record,
            bytes: 0,
            // Not even the head.
            has_all: false,
        });
    }

    /// Goes on with a turn in the middle of its response.
    pub(super) fn adopt_response(
        &self,
        response: OrphanedResponse,
        held: LockGuard,
        record: Box<RequestRecord>,
        answer: OrphanAnswer,
    ) {
        let OrphanedResponse {
            body,
            silent_since,
            bytes,
        } = response;
        let since = silent_since.unwrap_or_else(Instant::now);
        let has_all = record.client.has_written_all();
        self.adopt(Orphan {
            work: {
                let (idle_stream, bounds) = (self.idle_stream, record.client.clone());
                async move { read_to_end(body, since, idle_stream, &bounds, answer).await }
            },
            held,
            record,
            bytes,
            has_all,
        });
    }

    /// Ends a whole answer when the lock of its turn is released.
    pub(super) fn end_answer(&self, leaving: Leaving, answer: Box<AnswerWriter>) {
        let mut drain = self.drain.clone();
        let ending = async move {
            leaving.released(&mut drain).await;
            answer.end_whole();
        };
        self.turns.spawn_on(ending, &self.runtime);
    }

    fn adopt<W>(&self, orphan: Orphan<W>)
    where
        W: Future<Output = WorkEnd> + Send + 'static,
    {
        let turn = go_on(orphan, self.drain.clone());
        self.turns.spawn_on(turn, &self.runtime);
    }
}

async fn go_on<W: Future<Output = WorkEnd>>(orphan: Orphan<W>, mut drain: DrainWatch) {
    // Bound in reverse, because locals are dropped in reverse.
    let Orphan {
        has_all,
        bytes,
        record,
        mut held,
        work,
    } = orphan;
    let cut = |end| WorkEnd {
        end,
        answer: None,
        is_missing: true,
    };
    let WorkEnd {
        end,
        answer,
        is_missing,
    } = {
        let work = pin!(work);
        tokio::select! {
            // The lock comes first: without it nothing more is read.
            biased;
            loss = held.lost() => cut(End::LockLost(loss)),
            () = drain.aborting() => cut(End::DrainAborted),
            ended = work => ended,
        }
    };
    // The backend went with `work`.
    let hold = leave((), Some(held), end).released(&mut drain).await;
    // Whoever sees the end may send the session's next turn.
    if let Some(answer) = answer.filter(|_| end == End::Complete) {
        answer.end_whole();
    }
    record.finish_without_client(end, hold, bytes, has_all && !is_missing);
}

/// Reads the rest of a response to its end. Each frame restarts the idle timeout, is noted in `bounds`, those of the
/// client that is gone, and goes to `answer`, if that is kept.
async fn read_to_end(
    mut response: BackendBody,
    mut since: Instant,
    idle_stream: Duration,
    bounds: &Bounds,
    mut answer: OrphanAnswer,
) -> WorkEnd {
    let mut is_missing = false;
    let end = loop {
        if response.is_end_stream() {
            break End::Complete;
        }
        match timeout_at(since + idle_stream, response.frame()).await {
            Ok(Some(Ok(frame))) => {
                since = Instant::now();
                bounds.touch();
                if let Some(answer) = &mut answer {
                    answer.frame(&frame);
                }
                is_missing |= frame.data_ref().is_some_and(|data| !data.is_empty());
            }
            Ok(Some(Err(_))) => break End::UpstreamAborted,
            Ok(None) => break End::Complete,
            Err(_) => break End::IdleTimeout,
        }
    };
    WorkEnd {
        end,
        answer,
        is_missing,
    }
}
