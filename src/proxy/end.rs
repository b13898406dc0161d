//! The end of a turn: how it ended, and the one way in which every turn leaves its backend and then
//! gives its lock back. Streams, tunnels, turns without a client and refused turns all end here.
//!
//! Invariant: the backend is left before the lock is given back.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::yield_now;

use crate::drain::DrainWatch;
use crate::lock::{LockGuard, LockLoss, LockRelease};
use crate::outcome::Outcome;
use crate::wire::Ended;

/// How a turn ended that had reached its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The response went out whole; in a tunnel, both sides are done or the backend is.
    Complete,
    /// The backend broke off.
    UpstreamAborted,
    /// The backend's response did not begin in time, and its client was gone.
    UpstreamTimeout,
    /// The backend fell silent in the middle of its response, and its client was gone.
    IdleTimeout,
    /// The turn lost its lock.
    LockLost(LockLoss),
    /// The process had no more time for the turn.
    DrainAborted,
    /// The client's connection was over before the turn. `None`: its own protocol ended it.
    Disconnected(Option<Ended>),
}

/// A turn whose backend has been left, and whose lock is being given back. Dropping it lets the
/// release go on in the background.
pub(super) struct Leaving {
    /// For how long the turn held its lock; `None`: it had none.
    pub(super) hold: Option<Duration>,
    release: Option<LockRelease>,
}

/// Leaves `backend`, which closes its connection if the response isn't over, and then gives back the
/// lock. After a lost lock, or in a process that stops, there is no release to wait for.
pub(super) fn leave<B>(backend: B, held: Option<LockGuard>, end: End) -> Leaving {
    drop(backend);
    let hold = held.as_ref().map(LockGuard::age);
    let release = held
        .filter(|_| end.is_release_awaited())
        .map(|held| match end {
            End::Complete => held.release(),
            _ => held.release_cancelled(),
        });
    Leaving { hold, release }
}

// === impl End ===

impl End {
    /// The outcome under which this end is recorded.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Complete => Outcome::Complete,
            Self::UpstreamAborted => Outcome::UpstreamAborted,
            Self::UpstreamTimeout => Outcome::UpstreamTimeout,
            Self::IdleTimeout | Self::Disconnected(Some(Ended::Silent)) => Outcome::IdleTimeout,
            Self::LockLost(loss) => loss.into(),
            Self::Disconnected(Some(Ended::DeadlinePassed)) => Outcome::LockLost,
            Self::DrainAborted | Self::Disconnected(Some(Ended::Aborted)) => Outcome::DrainAborted,
            Self::Disconnected(None | Some(Ended::PeerGone)) => Outcome::ClientGone,
        }
    }

    /// Whether the turn waits for the release of its lock after this end. A process that stops has no time to
    /// wait, and a lock that was lost has nothing to wait for.
    fn is_release_awaited(self) -> bool {
        !matches!(
            self,
            Self::LockLost(_) | Self::DrainAborted | Self::Disconnected(Some(Ended::Aborted))
        )
    }
}

// === impl Leaving ===

impl Leaving {
    /// Ready when the store has confirmed the release, or when nobody has to wait for it.
    pub(super) fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.release {
            Some(release) => Pin::new(release).poll(cx),
            None => Poll::Ready(()),
        }
    }

    /// Waits for the release, but not longer than the process has time. Gives the time for which the
    /// turn held its lock. Cancel-safe: the release then goes on in the background.
    pub(super) async fn released(self, drain: &mut DrainWatch) -> Option<Duration> {
        if let Some(release) = self.release {
            // Dropping a connection only wakes the task that closes it. That task runs first.
            yield_now().await;
            tokio::select! {
                biased;
                () = drain.aborting() => {}
                () = release => {}
            }
        }
        self.hold
    }
}
