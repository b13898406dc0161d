//! Stopping in an orderly way: the signal that it begins, and the one that it must end.
//!
//! Whoever serves holds a [`DrainWatch`]; the composition root holds the [`Drain`]. Draining has two
//! steps and never goes back: `begin` (take nothing new, let what runs end) and `abort` (end what
//! still runs).

use tokio::sync::watch;

/// The side that says when. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<DrainPhase>);

/// The side that obeys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<DrainPhase>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DrainPhase {
    Serving,
    Draining,
    Aborting,
}

/// A pair of the two sides.
pub fn channel() -> (Drain, DrainWatch) {
    let (sender, receiver) = watch::channel(DrainPhase::Serving);
    (Drain(sender), DrainWatch(receiver))
}

// === impl Drain ===

impl Drain {
    /// Nothing new is begun from now on; what runs may end.
    pub fn begin(&self) {
        self.advance(DrainPhase::Draining);
    }

    /// What still runs is ended.
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

// === impl Watch ===

impl DrainWatch {
    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= DrainPhase::Draining
    }

    /// Whether what still runs is being ended.
    pub fn is_aborting(&self) -> bool {
        *self.0.borrow() >= DrainPhase::Aborting
    }

    /// Resolves when draining begins. Cancel-safe.
    pub async fn draining(&mut self) {
        self.reach(DrainPhase::Draining).await;
    }

    /// Resolves when what still runs must end. Cancel-safe.
    pub async fn aborting(&mut self) {
        self.reach(DrainPhase::Aborting).await;
    }

    async fn reach(&mut self, phase: DrainPhase) {
        // The other side is gone only when the process ends: what still runs ends with it.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_never_goes_back() {
        let (drain, mut watch) = channel();
        assert!(!watch.is_draining(), "nothing drains before it is told to");
        drain.abort();
        drain.begin();
        watch.draining().await;
        watch.aborting().await;
    }
}
