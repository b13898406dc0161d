//! Turns whose client is gone and which go on: the backend's answer is read to its end, for nobody.
//!
//! Invariant: such a turn has every limit that it had with its client, and holds its lock until
//! the backend's work is over or the backend has been left. Whoever hands one over decides whether
//! it may go on, and is told once how it ended.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::time::Duration;

use http::Response;
use http_body::Body;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::drain::DrainWatch;
use crate::lock::{LockGuard, LockLoss};
use crate::outcome::Outcome;

/// Where turns go on when their client is gone. One for each worker.
pub(super) struct Orphans {
    /// Waits for them before the worker ends.
    turns: TaskTracker,
    /// Kept, because a turn is handed over while something is dropped, wherever that may be.
    runtime: Handle,
    drain: DrainWatch,
    idle_stream: Duration,
}

/// How a turn without a client has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OrphanEnd {
    /// The answer was read to its end.
    Complete,
    /// The backend broke off.
    UpstreamAborted,
    /// The lock was lost.
    LockLost(LockLoss),
    /// The backend's answer did not begin in time.
    UpstreamTimeout,
    /// The backend fell silent in the middle of its answer.
    IdleTimeout,
    /// The process stops.
    DrainAborted,
}

/// In this order, which is the order in which they are dropped: the backend is left before the
/// lock is.
struct Orphan<W> {
    work: W,
    held: LockGuard,
}

// === impl Orphans ===

impl Orphans {
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

    /// Whether a turn may go on whose backend has been silent since then.
    pub(super) fn may_adopt(&self, silent_since: Option<Instant>) -> bool {
        let is_silent = silent_since.is_some_and(|since| since.elapsed() >= self.idle_stream);
        !is_silent && !self.drain.is_aborting()
    }

    /// Takes a turn whose backend has until `give_up` to begin its answer.
    pub(super) fn adopt_request<S, B, E>(
        &self,
        sending: S,
        give_up: Instant,
        held: LockGuard,
        tell: impl FnOnce(OrphanEnd, Duration) + Send + 'static,
    ) where
        S: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Send,
        E: Send,
    {
        let idle_stream = self.idle_stream;
        let work = async move {
            match timeout_at(give_up, sending).await {
                Err(_) => OrphanEnd::UpstreamTimeout,
                Ok(Err(_)) => OrphanEnd::UpstreamAborted,
                Ok(Ok(response)) => {
                    read_to_end(response.into_body(), Instant::now(), idle_stream).await
                }
            }
        };
        self.adopt(Orphan { work, held }, tell);
    }

    /// Takes a turn whose backend is answering and has been silent since then.
    pub(super) fn adopt_answer<B>(
        &self,
        answer: B,
        silent_since: Option<Instant>,
        held: LockGuard,
        tell: impl FnOnce(OrphanEnd, Duration) + Send + 'static,
    ) where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Send,
    {
        let since = silent_since.unwrap_or_else(Instant::now);
        let work = read_to_end(answer, since, self.idle_stream);
        self.adopt(Orphan { work, held }, tell);
    }

    fn adopt<W>(&self, orphan: Orphan<W>, tell: impl FnOnce(OrphanEnd, Duration) + Send + 'static)
    where
        W: Future<Output = OrphanEnd> + Send + 'static,
    {
        let turn = go_on(orphan, self.drain.clone(), tell);
        self.turns.spawn_on(turn, &self.runtime);
    }
}

async fn go_on<W>(orphan: Orphan<W>, mut drain: DrainWatch, tell: impl FnOnce(OrphanEnd, Duration))
where
    W: Future<Output = OrphanEnd>,
{
    let Orphan { work, mut held } = orphan;
    let end = {
        let work = pin!(work);
        tokio::select! {
            // Before the backend is asked: it is read no further without the lock.
            biased;
            loss = held.lost() => OrphanEnd::LockLost(loss),
            () = drain.aborting() => OrphanEnd::DrainAborted,
            end = work => end,
        }
    };
    // The backend's connection is closed by its task, which comes first.
    yield_now().await;
    let hold = held.age();
    match end {
        // A process that stops has no time to wait, and a lock that was lost is nobody's to wait
        // for: theirs is given back in the background.
        OrphanEnd::LockLost(_) | OrphanEnd::DrainAborted => drop(held),
        OrphanEnd::Complete
        | OrphanEnd::UpstreamAborted
        | OrphanEnd::UpstreamTimeout
        | OrphanEnd::IdleTimeout => tokio::select! {
            biased;
            () = drain.aborting() => {}
            () = held.release() => {}
        },
    }
    tell(end, hold);
}

/// Reads an answer to its end, and keeps nothing of it. Each frame begins the time for silence anew.
async fn read_to_end<B>(mut answer: B, mut since: Instant, idle_stream: Duration) -> OrphanEnd
where
    B: Body + Unpin,
{
    while !answer.is_end_stream() {
        let frame = poll_fn(|cx| Pin::new(&mut answer).poll_frame(cx));
        match timeout_at(since + idle_stream, frame).await {
            Ok(Some(Ok(_))) => since = Instant::now(),
            Ok(Some(Err(_))) => return OrphanEnd::UpstreamAborted,
            Ok(None) => break,
            Err(_) => return OrphanEnd::IdleTimeout,
        }
    }
    OrphanEnd::Complete
}

// === impl End ===

impl OrphanEnd {
    /// As it is counted.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Complete => Outcome::Complete,
            Self::UpstreamAborted => Outcome::UpstreamAborted,
            Self::LockLost(loss) => loss.into(),
            Self::UpstreamTimeout => Outcome::UpstreamTimeout,
            Self::IdleTimeout => Outcome::IdleTimeout,
            Self::DrainAborted => Outcome::DrainAborted,
        }
    }
}
