//! How a turn comes to its lock.
//!
//! Invariant: from the first command on until there is a [`Held`], a `Waiting` owns the claim,
//! and dropping it takes the claim back out of the store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::{Answer, Claim, Claimant, Extender, Held, Releaser, Store, StoreError};
use crate::key::SessionKey;

/// Everything a turn needs to come to its lock and to keep it. One for each worker.
pub struct Locks {
    store: Arc<dyn Store>,
    releaser: Releaser,
    extender: Extender,
    claimant: Arc<Claimant>,
}

/// On which terms a turn holds its lock.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// For how long the store promises it.
    pub lease: Duration,
    /// How often the lease is extended; `None`: never.
    pub extend_every: Option<Duration>,
    /// Whether the turn stops when its lock is lost, or goes on without.
    pub stop_when_lost: bool,
}

/// Why a turn did not get its lock.
#[derive(Debug, Error)]
pub enum Refused {
    /// Another turn of the session has it.
    #[error("{0} is held by another turn")]
    Busy(SessionKey),
    /// The store gave no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A claim whose outcome isn't known yet.
struct Waiting<'l> {
    locks: &'l Locks,
    claim: Option<Arc<Claim>>,
}

// === impl Locks ===

impl Locks {
    /// Locks in `store`, claimed in the name of `claimant`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>, claimant: Arc<Claimant>) -> Self {
        Self {
            releaser: Releaser::new(Arc::clone(&store)),
            extender: Extender::new(Arc::clone(&store)),
            store,
            claimant,
        }
    }

    /// Takes the session's lock if it is free. `route` and `request` are for the person who looks
    /// at the lock.
    ///
    /// Cancel-safe: a claim that was dropped on its way is taken back in the background.
    ///
    /// # Errors
    /// When another turn holds the lock, or the store gives no answer.
    pub async fn acquire(
        self: &Arc<Self>,
        key: SessionKey,
        route: &str,
        request: &str,
        terms: &Terms,
    ) -> Result<Held, Refused> {
        let token = self.claimant.token(route, request);
        let sent = Instant::now();
        let claim = Arc::new(Claim::new(key, token, terms.lease));
        let mut waiting = Waiting {
            locks: self,
            claim: Some(Arc::clone(&claim)),
        };
        let answer = self.store.acquire(&claim).await;
        if let Err(StoreError::NotSent { .. }) = &answer {
            waiting.over();
        }
        match answer? {
            Answer::Granted(fence) => {
                waiting.over();
                Ok(Held::granted(Arc::clone(self), claim, fence, sent, terms))
            }
            Answer::Busy => {
                waiting.over();
                Err(Refused::Busy(claim.key.clone()))
            }
        }
    }

    /// What takes dropped claims out of the store.
    pub fn releaser(&self) -> &Releaser {
        &self.releaser
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn extender(&self) -> &Extender {
        &self.extender
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("instance", &self.claimant.instance())
            .finish_non_exhaustive()
    }
}

// === impl Waiting ===

impl Waiting<'_> {
    /// The store has answered: there is nothing in doubt any more.
    fn over(&mut self) {
        self.claim = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.locks.releaser.withdraw(claim);
        }
    }
}
