//! How a turn gets its lock from the store, and how it waits for the lock.
//!
//! Invariant: from the first command until there is a [`StoreLock`], a `PendingClaim` owns the claim.
//! Dropping it removes the claim from the store, whether it waits there or holds the lock.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::claim_state::ClaimState;
use super::liveness::Liveness;
use super::lock_client::{LockClient, Requester};
use super::queue::{self, QueuePlace};
use super::store_lock::{Grant, StoreLock};
use super::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, LockHolder, LockOptions, OnLost, QueueOptions,
    StoreError, Ticket, WAITER_TIMEOUT,
};
use crate::key::SessionKey;

/// Why a turn did not get its lock.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// Another turn of the session holds the lock, and this one doesn't wait.
    #[error("{0:?} is held by another turn")]
    Busy(SessionKey, LockHolder),
    /// The session's queue is full.
    #[error("too many turns wait for {0:?}")]
    QueueFull(SessionKey),
    /// The lock did not become free within `blocking_timeout`.
    #[error("{0:?} did not become free within {1:?}")]
    TimedOut(SessionKey, Duration),
    /// A newer turn replaced this one, or an operator stopped it.
    #[error("a newer turn of {0:?} replaced this one, or an operator stopped it")]
    Superseded(SessionKey),
    /// An operator took the lock away before the turn began.
    #[error("an operator released {0:?} before the turn began")]
    Taken(SessionKey),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A claim whose outcome isn't known yet.
struct PendingClaim<'c> {
    client: &'c LockClient,
    claim: Arc<Claim>,
    state: Arc<ClaimState>,
    request: AcquireRequest,
    /// The turn's place among the waiting turns of this instance; `None`: it doesn't wait.
    place: Option<QueuePlace>,
    /// Whether a command was sent whose reply isn't known.
    is_in_doubt: bool,
    /// Whether the claim has a place in the store's queue.
    is_queued: bool,
}

/// When a turn stops waiting.
#[derive(Clone, Copy)]
struct WaitLimit {
    end: Instant,
    limit: Duration,
}

/// The pause before a waiter asks again after a command without a reply.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

// === impl LockClient ===

impl LockClient {
    /// Takes the session's lock in the store, and waits for it if `options.blocking` is set. Sets
    /// `has_waited` if the turn had to wait, even if it got no lock.
    ///
    /// Cancel-safe: a dropped claim is withdrawn in the background.
    ///
    /// # Errors
    /// When the lock is refused, or the store fails.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        key: SessionKey,
        requester: Requester<'_>,
        options: &LockOptions,
        has_waited: &mut bool,
    ) -> Result<StoreLock, AcquireError> {
        let instance = &self.instance;
        instance.heartbeat.wait_until_alive().await?;
        let Requester { route, request } = requester;
        let claim = instance
            .issuer
            .issue(key, route, request, options.lock_timeout);
        let state = Arc::new(ClaimState::new(
            instance.heartbeat.deadline(),
            options.on_lost == OnLost::Abort,
        ));
        let registration = instance.registry.register(claim.id, &state);
        let queue = options.blocking.then_some(QueueOptions {
            ticket: None,
            max_waiters: options.max_waiters,
            interrupts: options.interrupt,
        });
        let mut pending = PendingClaim {
            client: self,
            claim: Arc::new(claim),
            state: Arc::clone(&state),
            request: AcquireRequest {
                take_over: None,
                queue,
            },
            place: None,
            is_in_doubt: false,
            is_queued: false,
        };
        let limit = options.blocking_timeout.filter(|_| options.blocking);
        let granted = pending.until_granted(limit).await;
        *has_waited |= pending.place.is_some();
        let (grant, claim) = (granted?, Arc::clone(&pending.claim));
        Ok(StoreLock::new(
            self,
            claim,
            grant,
            state,
            registration,
            options,
        ))
    }
}

// === impl PendingClaim ===

impl PendingClaim<'_> {
    /// Asks the store until the lock is granted or refused.
    async fn until_granted(&mut self, limit: Option<Duration>) -> Result<Grant, AcquireError> {
        let limit = limit.map(|limit| WaitLimit {
            end: Instant::now() + limit,
            limit,
        });
        let mut failing_since = None;
        loop {
            let sent = Instant::now();
            let was_in_doubt = mem::replace(&mut self.is_in_doubt, true);
            let reply = match self.client.store.acquire(&self.claim, &self.request).await {
                Ok(reply) => reply,
                Err(error) => {
                    if error.was_not_executed() {
                        self.is_in_doubt = was_in_doubt;
                    } else {
                        self.claim.mark_in_doubt();
                    }
                    // A turn that waits already survives a short outage.
                    let since = *failing_since.get_or_insert(sent);
                    if self.place.is_none() || since.elapsed() > WAITER_TIMEOUT {
                        return Err(error.into());
                    }
                    self.wait_for_retry(limit, Some(sent + RETRY_PAUSE)).await?;
                    continue;
                }
            };
            failing_since = None;
            let holder = match reply {
                AcquireReply::Granted(fence) => {
                    self.record_takeover(None);
                    // Another instance may have counted this one as dead in the meantime. It may take over
                    // what this instance claimed before.
                    if self.state.is_lost() {
                        return Err(AcquireError::lock_lost(&self.claim.key, &self.state));
                    }
                    (self.is_in_doubt, self.is_queued) = (false, false);
                    return Ok(Grant { fence, sent });
                }
                AcquireReply::QueueFull => return Err(AcquireError::QueueFull(self.leave())),
                AcquireReply::Superseded => return Err(AcquireError::Superseded(self.leave())),
                AcquireReply::Busy(holder) => {
                    if self.is_found_dead(&holder).await {
                        continue;
                    }
                    return Err(AcquireError::Busy(self.leave(), holder));
                }
                AcquireReply::Waiting(ticket, holder) => {
                    self.record_takeover(Some(&holder));
                    let is_new = self.place.is_none();
                    self.join(ticket, &holder);
                    // Only the first holder: a later one may be newer than this turn, which may have lost
                    // its place in between.
                    if is_new && self.request.queue.is_some_and(|queue| queue.interrupts) {
                        queue::interrupt(&*self.client.store, &holder).await;
                    }
                    holder
                }
            };
            if !self.is_found_dead(&holder).await {
                self.wait_for_retry(limit, None).await?;
            }
        }
    }

    /// Notes that the claim has a place in the store's queue, behind this holder.
    fn join(&mut self, ticket: Ticket, holder: &LockHolder) {
        let Some(options) = &mut self.request.queue else {
            return;
        };
        options.ticket = Some(ticket);
        (self.is_in_doubt, self.is_queued) = (false, true);
        let interrupts = options.interrupts.then(|| holder.clone());
        let instance = &self.client.instance;
        self.place.get_or_insert_with(|| {
            let waiting = instance.metrics.waiting();
            instance
                .queue
                .join(&self.claim, &self.state, interrupts, waiting)
        });
    }

    /// Whether the holder was found dead just now. The next command then takes its lock over.
    async fn is_found_dead(&mut self, holder: &LockHolder) -> bool {
        let is_known = |dead: &DeadHolder| dead.holder == *holder;
        if self.request.take_over.as_ref().is_some_and(is_known) {
            return false;
        }
        let min_age = if self.client.is_abandoned(holder) {
            Duration::ZERO
        } else {
            match self.client.instance.heartbeat.liveness.check(holder).await {
                Liveness::Dead { min_age } => min_age,
                Liveness::Alive { .. } => return false,
            }
        };
        self.request.take_over = Some(DeadHolder {
            holder: holder.clone(),
            min_age,
        });
        true
    }

    /// Counts a take-over if the dead holder no longer has the lock. `holder` has it now.
    fn record_takeover(&mut self, holder: Option<&LockHolder>) {
        let dead = &mut self.request.take_over;
        let dead = dead.take_if(|dead| Some(&dead.holder) != holder);
        if let Some(dead) = dead.filter(|dead| !self.client.is_abandoned(&dead.holder)) {
            self.client.instance.heartbeat.record_takeover(&dead.holder);
        }
    }

    /// Waits until it is time to ask again: when a retry is requested, or at `at`.
    async fn wait_for_retry(
        &self,
        limit: Option<WaitLimit>,
        at: Option<Instant>,
    ) -> Result<(), AcquireError> {
        let requested = poll_fn(|cx| {
            self.state.register_waker(cx);
            // An offer that the turn already has is withdrawn with the claim.
            if self.state.is_superseded() || self.state.is_interrupted() {
                Poll::Ready(Err(AcquireError::Superseded(self.claim.key.clone())))
            } else if self.state.is_lost() {
                Poll::Ready(Err(AcquireError::lock_lost(&self.claim.key, &self.state)))
            } else if self.state.take_retry() {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        });
        let requested = pin!(requested);
        let end = limit.map(|limit| limit.end);
        let Some(at) = end.into_iter().chain(at).min() else {
            return requested.await;
        };
        tokio::select! {
            biased;
            requested = requested => requested,
            () = sleep_until(at) => match limit {
                Some(WaitLimit { end, limit }) if Instant::now() >= end => {
                    Err(AcquireError::TimedOut(self.claim.key.clone(), limit))
                }
                _ => Ok(()),
            }
        }
    }

    /// Notes that the store has nothing of the claim, unless a command is still on its way.
    fn leave(&mut self) -> SessionKey {
        (self.is_in_doubt, self.is_queued) = (self.claim.is_in_doubt(), false);
        self.claim.key.clone()
    }
}

impl Drop for PendingClaim<'_> {
    fn drop(&mut self) {
        let claim = Arc::clone(&self.claim);
        if self.is_in_doubt {
            claim.mark_in_doubt();
            self.client.releaser.withdraw(claim);
        } else if self.is_queued {
            self.client.releaser.release(claim);
        }
    }
}

// === impl AcquireError ===

impl AcquireError {
    /// The error for a claim that lost its lock: to an operator, or because its instance counted as dead.
    pub(super) fn lock_lost(key: &SessionKey, state: &ClaimState) -> Self {
        if state.is_force_released() {
            return Self::Taken(key.clone());
        }
        let reason = "it expired while the turn waited for its lock".into();
        StoreError::NoHeartbeat { reason }.into()
    }
}
