//! How a turn comes to its [`LockGuard`]: the store's lock, or what the configuration says instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::acquire::AcquireProgress;
use super::background::BackgroundAcquire;
use super::guard::SubstituteLock;
use super::instance::Instance;
use super::local_fallback::{LocalFallback, LocalLocks};
use super::lock_client::{LockClient, Requester};
use super::store_lock::StoreLock;
use super::{
    AcquireError, CallChain, LockGuard, LockOptions, OnceTurn, Operator, Store, StoreError,
    UnprotectedReason, WAITER_TIMEOUT, WaitPlace,
};
use crate::key::{Keyspace, OnceKey, SessionKey};

/// Acquires locks for the turns of one worker.
#[derive(Debug)]
pub struct Locks {
    client: Arc<LockClient>,
    fallback: Fallback,
}

/// The turn that asks for its session's lock.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest<'r> {
    /// The name of the turn's route, which tells a reader of the lock's value who holds it.
    pub route: &'r str,
    /// The id of the turn's request, which tells the same.
    pub request: &'r str,
    /// The turns that wait for the request.
    pub callers: &'r CallChain,
    /// What is told the turn's place in the queue; `None`: nobody wants to know it.
    pub place: Option<&'r Arc<WaitPlace>>,
    /// What tells a repeat of the turn, and for how long after the turn the store recognises one; `None`: nothing does.
    /// It isn't looked at while the store fails and the turn runs all the same.
    pub once: Option<(&'r OnceKey, Duration)>,
    /// Whether the turn's answer is kept for other requests, which the lock's value tells them.
    pub is_kept: bool,
}

/// What a turn does when the store fails.
#[derive(Debug)]
pub enum Fallback {
    /// The turn is refused.
    Reject,
    /// The turn runs without a lock.
    Allow,
    /// The turn runs under a lock of this process. While the store works, every turn takes that lock as
    /// well, so that both kinds of turns exclude each other.
    Local(Arc<Locks>),
}

// === impl LockRequest ===

impl<'r> LockRequest<'r> {
    /// A request by a turn that isn't executed once, and whose place nobody wants to know.
    pub fn new(route: &'r str, request: &'r str, callers: &'r CallChain) -> Self {
        Self {
            route,
            request,
            callers,
            place: None,
            once: None,
            is_kept: false,
        }
    }
}

// === impl Locks ===

impl Locks {
    /// Locks in `store` for the turns of `instance`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>, instance: Arc<Instance>, fallback: Fallback) -> Self {
        Self {
            client: Arc::new(LockClient::new(store, instance, fallback.outage_limit())),
            fallback,
        }
    }

    /// Takes the session's lock as `options` say.
    ///
    /// Cancel-safe: a dropped claim is withdrawn in the background.
    ///
    /// # Errors
    /// When the turn doesn't get the lock in time, would wait for itself, repeats another turn, or the store fails and
    /// there is no fallback.
    pub async fn acquire(
        &self,
        key: SessionKey,
        asked: LockRequest<'_>,
        options: &LockOptions,
    ) -> Result<LockGuard, AcquireError> {
        let issuer = &self.client.instance.issuer;
        // An observed turn is never refused.
        let once = asked.once.filter(|_| options.enforce);
        let once = once.map(|(key, keep)| {
            Arc::new(OnceTurn {
                key: key.clone(),
                keep,
                turn: issuer.reserve_id(),
            })
        });
        let requester = Requester {
            route: asked.route,
            request: asked.request,
            turn: once.as_ref().map(|once| once.turn),
            callers: asked.callers,
            place: asked.place,
            once: once.as_ref(),
            is_kept: asked.is_kept,
        };
        let in_background = |key: &SessionKey, turn, reason, lock: Option<&StoreLock>| {
            let state = lock.map(StoreLock::state);
            let (client, key) = (&self.client, key.clone());
            let requester = Requester {
                turn: Some(turn),
                ..requester
            };
            SubstituteLock::Background(BackgroundAcquire::start(
                client, key, requester, options, reason, state,
            ))
        };
        if !options.enforce {
            let turn = issuer.reserve_id();
            let substitute = in_background(&key, turn, UnprotectedReason::Observe, None);
            return Ok(LockGuard::new(key, turn, None, None, Some(substitute)));
        }
        let began = Instant::now();
        let mut progress = AcquireProgress::default();
        let client = &self.client;
        let (turn, lock, substitute) = if let Fallback::Local(local) = &self.fallback {
            let turn = LocalFallback {
                client,
                local: &local.client,
                key: &key,
                requester,
                options,
                began,
            };
            // Boxed, because this future is larger and rarer than the other.
            let acquiring = Box::pin(turn.acquire(&mut progress));
            let LocalLocks { turn, local, lock } = acquiring.await?;
            match lock {
                None => {
                    let substitute =
                        in_background(&key, turn, UnprotectedReason::Local, Some(&local));
                    (turn, Some(local), Some(substitute))
                }
                Some(lock) => {
                    // A turn that has only the local lock interrupts by it.
                    local.state().follow_claim(lock.state());
                    (turn, Some(lock), Some(SubstituteLock::Local(local)))
                }
            }
        } else {
            let acquiring = client.acquire(key.clone(), requester, options, &mut progress);
            match acquiring.await {
                Ok(lock) => (requester.turn.unwrap_or(lock.id()), Some(lock), None),
                Err(AcquireError::Store(error))
                    if self.fallback.is_allow() && error.allows_fallback() =>
                {
                    tracing::debug!(key = %key.redacted(), %error, "turn runs without a lock");
                    let turn = requester.turn.unwrap_or_else(|| issuer.reserve_id());
                    let substitute = in_background(&key, turn, UnprotectedReason::Allow, None);
                    (turn, None, Some(substitute))
                }
                Err(error) => return Err(error),
            }
        };
        let waited = progress.has_waited.then(|| began.elapsed());
        Ok(LockGuard::new(key, turn, waited, lock, substitute))
    }

    /// Stops the turn that runs in a session, on whichever replica. Returns whether its lock is released because of
    /// that. `by` says who asks,
    /// for the audit log.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stop_turn(&self, key: &SessionKey, by: &str) -> Result<bool, StoreError> {
        let store = Arc::clone(&self.client.store);
        let operator = Operator::new(move || store, || Keyspace::new([]));
        let operator = operator.with_prefix(self.client.instance.issuer.prefix());
        let instance = &self.client.instance;
        let id = instance.issuer.reserve_id();
        let asked = instance.stops.begin(id, instance.name());
        operator.stop_turn(key, by, &asked).await
    }

    /// Waits until all dropped claims are out of the store, for `limit` at most. Gives `false` if some
    /// were left, so that their locks end with their leases. Cancel-safe.
    pub async fn flush(&self, limit: Duration) -> bool {
        // A local store ends with the process, and needs no flush.
        self.client.releaser.flush(limit).await
    }
}

// === impl Fallback ===

impl Fallback {
    /// For how long a turn that waits puts up with a store that fails; `None`: for as long as it may wait,
    /// because without the store it would only be refused.
    fn outage_limit(&self) -> Option<Duration> {
        match self {
            Self::Reject => None,
            Self::Allow | Self::Local(_) => Some(WAITER_TIMEOUT),
        }
    }

    fn is_allow(&self) -> bool {
        matches!(self, Self::Allow)
    }
}
