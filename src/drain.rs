//! The signal to stop, in two steps: `begin` (accept nothing new, let turns end) and `abort` (end the turns
//! that still run).
//!
//! `app` holds the [`Drain`], and whatever serves holds a [`DrainWatch`]. Invariant: the steps never go
//! back. How long draining may take is decided in `app`.

use tokio::sync::watch;

/// Begins draining and aborts what is left. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<DrainPhase>);

/// Shows how far draining has come. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<DrainPhase>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DrainPhase {
    Serving,
    Draining,
    Aborting,
}

/// Makes a [`Drain`] and its [`DrainWatch`].
pub fn channel() -> (Drain, DrainWatch) {
    let (sender, receiver) = watch::channel(DrainPhase::Serving);
    (Drain(sender), DrainWatch(receiver))
}

// === impl Drain ===

impl Drain {
    /// Begins draining: nothing new is accepted, and running turns may end.
    pub fn begin(&self) {
        self.advance(DrainPhase::Draining);
    }

    /// Aborts the turns that still run.
    pub fn abort(&self) {
        self.advance(DrainPhase::Aborting);
    }

    fn advance(&self, to: DrainPhase) {
        self.0.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }
}

// === impl DrainWatch ===

impl DrainWatch {
    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= DrainPhase::Draining
    }

    /// Whether running turns are being aborted.
    pub fn is_aborting(&self) -> bool {
        *self.0.borrow() >= DrainPhase::Aborting
    }

    /// Resolves when draining begins. Cancel-safe.
    pub async fn draining(&mut self) {
        self.reach(DrainPhase::Draining).await;
    }

    /// Resolves when running turns must be aborted. Cancel-safe.
    pub async fn aborting(&mut self) {
        self.reach(DrainPhase::Aborting).await;
    }

    async fn reach(&mut self, phase: DrainPhase) {
        // `Drain` is dropped only when the process ends; then this counts as reached.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_never_goes_back() {
        crate::time_limit::limit_this_test();
        let (drain, mut watch) = channel();
        assert!(!watch.is_draining(), "draining has not begun");
        drain.abort();
        drain.begin();
        watch.draining().await;
        watch.aborting().await;
    }
}
