//! Asks the store on behalf of a turn that runs without its lock.
//!
//! A turn may run though the store gave no answer, or though it isn't to be obeyed. Its shadow goes
//! on asking for the lock in the background: so the turn is seen by others as soon as the store is
//! there again, and two turns at once are noticed, counted and logged rather than unseen.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::guard::StoreLock;
use super::{AcquireError, LockHolder, LockLoss, Locks, Terms};
use crate::key::SessionKey;

/// What asks for a turn that runs already. Dropping it lets go of whatever it got.
pub(super) struct BackgroundAcquire {
    mark: Arc<Unprotected>,
    stop: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
}

/// Resolves when a shadow has let go.
pub(super) struct BackgroundRelease(oneshot::Receiver<()>);

/// How a turn runs that the store doesn't protect.
#[derive(Debug)]
pub struct Unprotected {
    /// Why, in a word: `allow`, `local` or `observe`.
    pub why: &'static str,
    overlapped: AtomicBool,
    interrupted: AtomicBool,
    waker: AtomicWaker,
}

/// The store gave no answer, and the turn passes without.
pub(super) const ALLOW: &str = "allow";
/// The store gave no answer, and this replica's own lock has to do.
pub(super) const LOCAL: &str = "local";
/// Turns are watched only, and nothing is to wait for it.
pub(super) const OBSERVE: &str = "observe";

/// How soon a lock that was busy is asked for again, before it counts as an overlap: the release of
/// a turn that is over may be on its way.
const GRACE: Duration = Duration::from_millis(20);

/// How often it is asked for after that.
const AGAIN: Duration = Duration::from_millis(250);

// === impl Shadow ===

impl BackgroundAcquire {
    /// Begins to ask, in a task on the current runtime.
    pub(super) fn cast(
        locks: &Arc<Locks>,
        key: SessionKey,
        (route, request): (&str, &str),
        terms: Terms,
        why: &'static str,
    ) -> Self {
        let mark = Arc::new(Unprotected {
            why,
            overlapped: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let (stop, told) = oneshot::channel();
        let (stopping, stopped) = oneshot::channel();
        let asking = BackgroundTask {
            locks: Arc::clone(locks),
            mark: Arc::clone(&mark),
            key,
            route: route.into(),
            request: request.into(),
            terms,
        };
        locks.releaser().track(async move {
            asking.until(told).await;
            drop(stopping);
        });
        Self {
            mark,
            stop,
            stopped,
        }
    }

    pub(super) fn mark(&self) -> &Arc<Unprotected> {
        &self.mark
    }

    /// Lets go; `None` if nobody is to wait for it.
    pub(super) fn stop(self) -> Option<BackgroundRelease> {
        drop(self.stop);
        (self.mark.why != OBSERVE).then_some(BackgroundRelease(self.stopped))
    }
}

impl Future for BackgroundRelease {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(drop)
    }
}

// === impl Unprotected ===

impl Unprotected {
    /// Whether another turn of the session was seen to run beside this one.
    pub fn overlapped(&self) -> bool {
        self.overlapped.load(Ordering::Relaxed)
    }

    /// Whether the turn is to make way.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Acquire)
    }

    /// Has this task woken when that is so.
    pub(super) fn wake(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.waker.wake();
    }
}

// === the task ===

struct BackgroundTask {
    locks: Arc<Locks>,
    mark: Arc<Unprotected>,
    key: SessionKey,
    route: Box<str>,
    request: Box<str>,
    terms: Terms,
}

impl BackgroundTask {
    /// Asks for the lock and holds it, until the turn is over.
    async fn until(&self, mut over: oneshot::Receiver<()>) {
        // How often in a row it was busy.
        let mut refusals = 0_u32;
        loop {
            let asked = tokio::select! {
                biased;
                _ = &mut over => return,
                asked = self.ask() => asked,
            };
            let pause = match asked {
                Ok(mut hold) => {
                    if self.mark.why == LOCAL {
                        hold.uncount();
                    }
                    if self.keep(hold, &mut over).await {
                        return;
                    }
                    // Perhaps it can be had again, once what is left of it is out of the store.
                    refusals = 0;
                    GRACE
                }
                // Perhaps of this very turn, whose first answer got lost.
                Err(AcquireError::Busy(_, holder)) if self.locks.gave_up(&holder) => GRACE,
                Err(AcquireError::Busy(_, holder)) => {
                    refusals += 1;
                    if refusals == 2 && !self.mark.overlapped() {
                        self.overlap(&holder);
                    }
                    if refusals == 1 { GRACE } else { AGAIN }
                }
                // There is nobody to see it.
                Err(_) => {
                    refusals = 0;
                    AGAIN
                }
            };
            tokio::select! {
                biased;
                _ = &mut over => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Holds it until the turn is over; `false` if it was lost before, and may be asked for again.
    async fn keep(&self, hold: StoreLock, over: &mut oneshot::Receiver<()>) -> bool {
        let lost = tokio::select! {
            biased;
            _ = &mut *over => None,
            loss = hold.lost() => Some(loss),
        };
        match lost {
            // The turn makes way. One that is only watched can't be told, and is waited for.
            Some(LockLoss::Interrupted) => {
                if self.mark.why != OBSERVE {
                    self.mark.interrupt();
                }
                let _ = over.await;
            }
            // An operator has freed it: for others, and not for this turn to take it again.
            Some(_) if hold.was_forced() => {
                drop(hold);
                if self.mark.why != OBSERVE && self.terms.stop_when_lost {
                    self.mark.interrupt();
                }
                let _ = over.await;
                return true;
            }
            Some(_) => return false,
            None => {}
        }
        hold.release().await;
        true
    }

    async fn ask(&self) -> Result<StoreLock, AcquireError> {
        let who = (&*self.route, &*self.request);
        // Nobody is told how long: it doesn't wait.
        let waited = &mut false;
        self.locks
            .ask(self.key.clone(), who, &self.terms, waited)
            .await
    }

    fn overlap(&self, holder: &LockHolder) {
        self.mark.overlapped.store(true, Ordering::Relaxed);
        self.locks.metrics().overlapped();
        tracing::warn!(
            key = %self.key.redacted(),
            route = %self.route,
            request_id = %self.request,
            why = self.mark.why,
            beside = &*holder.redacted(),
            "two turns of one session run at once"
        );
    }
}
