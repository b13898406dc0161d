//! The locks of a turn with `on_error = "local"`: the store's and this replica's own, or the latter alone.
//!
//! Invariant: a turn waits for the local lock while it holds the store's, and never the other way round. So no
//! two turns wait for each other. A turn begins under the local lock alone only if the store failed just now, and
//! never because another process has the instance's name: the store works then.
//!
//! What is lost: a turn that gives the local lock back, because the store is back and another turn has its lock,
//! joins the store's queue by the time of its arrival. That time is exact only if the turn had a place there
//! before the outage.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::acquire::AcquireProgress;
use super::lock_client::{LockClient, Requester};
use super::store_lock::{SettleTimes, StoreLock};
use super::{AcquireError, ClaimId, LockLoss, LockOptions};
use crate::key::SessionKey;

/// A turn that takes the local lock, and the store's if the store works.
pub(super) struct LocalFallback<'t> {
    /// The store.
    pub(super) client: &'t Arc<LockClient>,
    /// The locks of this replica.
    pub(super) local: &'t Arc<LockClient>,
    pub(super) key: &'t SessionKey,
    pub(super) requester: Requester<'t>,
    pub(super) options: &'t LockOptions,
    /// When the turn arrived.
    pub(super) began: Instant,
}

/// The locks that a turn got.
pub(super) struct LocalLocks {
    /// The id by which the turn is known: of the claim that got its first lock.
    pub(super) turn: ClaimId,
    /// This replica's own lock.
    pub(super) local: StoreLock,
    /// The store's lock; `None`: the store failed.
    pub(super) lock: Option<StoreLock>,
}

// === impl LocalFallback ===

impl LocalFallback<'_> {
    /// Takes the local lock, and the store's lock unless the store fails. Cancel-safe.
    ///
    /// # Errors
    /// When a lock is refused.
    pub(super) async fn acquire(
        &self,
        progress: &mut AcquireProgress,
    ) -> Result<LocalLocks, AcquireError> {
        progress.needs_local = true;
        loop {
            let acquired = self
                .ask(self.client, None, &self.remaining(), progress)
                .await;
            let error = match acquired {
                Ok(lock) => {
                    let turn = self.requester.turn.unwrap_or(lock.id());
                    match self.join_local(lock, progress).await {
                        Ok((lock, local)) => {
                            let lock = Some(lock);
                            return Ok(LocalLocks { turn, local, lock });
                        }
                        // The store lost the lock before the turn began, so the turn has lost nothing.
                        Err(AcquireError::Store(error)) if error.allows_fallback() => continue,
                        Err(error) => return Err(error),
                    }
                }
                Err(AcquireError::Store(error)) if error.allows_fallback() => error,
                Err(error) => return Err(error),
            };
            tracing::debug!(key = %self.key.redacted(), %error, "turn asks for this replica's lock alone");
            if progress.ticket.is_none() && self.options.blocking {
                progress.ticket = self.client.store.ticket_at(self.key, self.began);
            }
            let mut waiting = AcquireProgress::default();
            let mut local = self
                .ask(self.local, None, &self.remaining(), &mut waiting)
                .await?;
            let turn = self.requester.turn.unwrap_or(local.id());
            progress.has_waited |= waiting.has_waited;
            if !waiting.has_waited {
                let lock = None;
                return Ok(LocalLocks { turn, local, lock });
            }
            // The store may be back since the turn began to wait. It is asked without waiting, because turns that
            // have its lock wait for the local one.
            let at_once = LockOptions {
                blocking: false,
                ..*self.options
            };
            let mut asking = AcquireProgress {
                needs_local: true,
                ..AcquireProgress::default()
            };
            let asked = self.ask(self.client, Some(turn), &at_once, &mut asking);
            // The turn hasn't begun, so nothing has to settle if it doesn't.
            let settle = local.set_settle(SettleTimes::default());
            let lock = match self.unless_lost(&local, asked).await? {
                Ok(lock) => Some(lock),
                Err(AcquireError::Store(error)) if error.allows_fallback() => None,
                Err(AcquireError::Busy(..)) => {
                    local.release().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            local.set_settle(settle);
            if let Some(lock) = &lock {
                lock.state().begin();
                local.uncount();
            }
            return Ok(LocalLocks { turn, local, lock });
        }
    }

    /// Waits for the local lock with the store's in hand, so that this turn and one that runs under the local lock
    /// alone exclude each other.
    async fn join_local(
        &self,
        mut lock: StoreLock,
        progress: &mut AcquireProgress,
    ) -> Result<(StoreLock, StoreLock), AcquireError> {
        // The turn hasn't begun, so nothing has to settle if it doesn't.
        let settle = lock.set_settle(SettleTimes::default());
        let mut waiting = AcquireProgress::default();
        let options = self.remaining();
        let asked = self.ask(self.local, Some(lock.id()), &options, &mut waiting);
        let local = self.unless_lost(&lock, asked).await;
        progress.has_waited |= waiting.has_waited;
        let mut local = local??;
        local.uncount();
        lock.state().begin();
        lock.set_settle(settle);
        Ok((lock, local))
    }

    /// Asks for the lock of `client`. `turn` is the id by which the turn is known; `None`: it has no lock yet.
    async fn ask(
        &self,
        client: &Arc<LockClient>,
        turn: Option<ClaimId>,
        options: &LockOptions,
        progress: &mut AcquireProgress,
    ) -> Result<StoreLock, AcquireError> {
        let key = self.key.clone();
        let requester = Requester {
            // A turn that is executed once has an id before its first lock, and the local store knows no other turns
            // than this replica's.
            turn: self.requester.turn.or(turn),
            once: self
                .requester
                .once
                .filter(|_| !Arc::ptr_eq(client, self.local)),
            ..self.requester
        };
        let acquired = client.acquire(key, requester, options, progress).await;
        acquired.map_err(|error| match (error, self.options.blocking_timeout) {
            (AcquireError::TimedOut(key, _, session), Some(limit)) => {
                AcquireError::TimedOut(key, limit, session)
            }
            (error, _) => error,
        })
    }

    /// Waits for `other`, unless the turn loses this lock before.
    async fn unless_lost<T>(
        &self,
        lock: &StoreLock,
        other: impl Future<Output = T>,
    ) -> Result<T, AcquireError> {
        let key = self.key;
        tokio::select! {
            biased;
            loss = lock.lost() => Err(match loss {
                LockLoss::Interrupted => AcquireError::Superseded(key.clone()),
                LockLoss::Expired | LockLoss::NoHeartbeat | LockLoss::Taken | LockLoss::NameTaken => {
                    AcquireError::lock_lost(key, lock.state())
                }
            }),
            other = other => Ok(other),
        }
    }

    /// The options with the rest of the time for which the turn may wait.
    fn remaining(&self) -> LockOptions {
        let left = |limit: Duration| limit.saturating_sub(self.began.elapsed());
        LockOptions {
            blocking_timeout: self.options.blocking_timeout.map(left),
            ..*self.options
        }
    }
}
