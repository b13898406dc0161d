//! How a turn comes to its [`LockGuard`]: the store's lock, or what the configuration says instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::background::BackgroundAcquire;
use super::guard::SubstituteLock;
use super::instance::Instance;
use super::lock_client::{LockClient, Requester};
use super::{AcquireError, LockGuard, LockLoss, LockOptions, Store, UnprotectedReason};
use crate::key::SessionKey;

/// Acquires locks for the turns of one worker.
#[derive(Debug)]
pub struct Locks {
    client: Arc<LockClient>,
    fallback: Fallback,
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

// === impl Locks ===

impl Locks {
    /// Locks in `store` for the turns of `instance`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>, instance: Arc<Instance>, fallback: Fallback) -> Self {
        Self {
            client: Arc::new(LockClient::new(store, instance)),
            fallback,
        }
    }

    /// Takes the session's lock as `options` say. `route` and `request` (its id) tell a reader of the
    /// lock's value who holds it.
    ///
    /// Cancel-safe: a dropped claim is withdrawn in the background.
    ///
    /// # Errors
    /// When the turn doesn't get the lock in time, or the store fails and there is no fallback.
    pub async fn acquire(
        &self,
        key: SessionKey,
        route: &str,
        request: &str,
        options: &LockOptions,
    ) -> Result<LockGuard, AcquireError> {
        let requester = Requester { route, request };
        let in_background = |key: &SessionKey, reason| {
            let client = &self.client;
            let key = key.clone();
            SubstituteLock::Background(BackgroundAcquire::start(
                client, key, requester, options, reason,
            ))
        };
        if !options.enforce {
            let substitute = in_background(&key, UnprotectedReason::Observe);
            return Ok(LockGuard::new(key, None, None, Some(substitute)));
        }
        let began = Instant::now();
        let mut has_waited = false;
        let acquired = self
            .client
            .acquire(key.clone(), requester, options, &mut has_waited)
            .await;
        let (lock, substitute) = match (acquired, &self.fallback) {
            (Ok(mut lock), Fallback::Local(local)) => {
                // So that this turn and one that runs under the local lock alone exclude each other.
                let settle = lock.set_settle(Duration::ZERO);
                let mut local = tokio::select! {
                    biased;
                    loss = lock.lost() => return Err(match loss {
                        LockLoss::Interrupted => AcquireError::Superseded(key),
                        LockLoss::Expired | LockLoss::Taken => AcquireError::lock_lost(&key, lock.state()),
                    }),
                    local = local.client.acquire(key.clone(), requester, options, &mut has_waited) => local?,
                };
                lock.set_settle(settle);
                local.uncount();
                (Some(lock), Some(SubstituteLock::Local(local)))
            }
            (Ok(lock), Fallback::Reject | Fallback::Allow) => (Some(lock), None),
            (Err(AcquireError::Store(error)), Fallback::Allow) => {
                tracing::debug!(key = %key.redacted(), %error, "turn runs without a lock");
                (None, Some(in_background(&key, UnprotectedReason::Allow)))
            }
            (Err(AcquireError::Store(error)), Fallback::Local(local)) => {
                tracing::debug!(key = %key.redacted(), %error, "turn runs under this replica's lock");
                let lock = local
                    .client
                    .acquire(key.clone(), requester, options, &mut has_waited)
                    .await?;
                let substitute = in_background(&key, UnprotectedReason::Local);
                (Some(lock), Some(substitute))
            }
            (Err(error), _) => return Err(error),
        };
        let waited = has_waited.then(|| began.elapsed());
        Ok(LockGuard::new(key, waited, lock, substitute))
    }

    /// Waits until all dropped claims are out of the store, for `limit` at most. Gives `false` if some
    /// were left, so that their locks end with their leases. Cancel-safe.
    pub async fn flush(&self, limit: Duration) -> bool {
        // A local store ends with the process, and needs no flush.
        self.client.releaser.flush(limit).await
    }
}
