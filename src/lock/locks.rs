//! How a turn comes to its lock.
//!
//! Invariant: from the first command on until there is a [`LockGuard`], an `PendingClaim` owns the claim, and
//! dropping it takes the claim back out of the store, wherever it is in there: in the line, or
//! holding.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::background::{self, BackgroundAcquire};
use super::claim_state::ClaimState;
use super::guard::{StoreLock, SubstituteLock};
use super::heartbeat::Liveness;
use super::instance::Instance;
use super::queue::{self, QueuePlace};
use super::{
    AcquireReply, AcquireRequest, Claim, DeadHolder, Extender, LockGuard, LockHolder, LockLoss,
    QueueOptions, Releaser, STALE, Store, StoreError,
};
use crate::key::SessionKey;
use crate::metrics::Metrics;

/// Everything a turn needs to come to its lock and to keep it. One for each worker.
pub struct Locks {
    store: Arc<dyn Store>,
    releaser: Releaser,
    extender: Extender,
    instance: Arc<Instance>,
    fallback: Fallback,
}

/// What a turn does when the store gives no answer.
#[derive(Debug)]
pub enum Fallback {
    /// It is refused.
    Reject,
    /// It runs without a lock.
    Allow,
    /// It takes the lock in here, which all other turns of the process take, too.
    Local(Arc<Locks>),
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
    /// For how long the lock is held on to when the turn is over.
    pub settle: Duration,
    /// How it waits for a busy lock; `None`: it doesn't.
    pub patience: Option<Patience>,
    /// Whether it needs the lock at all; otherwise it is only watched.
    pub enforce: bool,
}

/// How a turn waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For how long; `None`: for ever.
    pub limit: Option<Duration>,
    /// How many may wait.
    pub max_waiters: u32,
    /// Whether it replaces the holder and everybody who waits.
    pub interrupts: bool,
}

/// Why a turn did not get its lock.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// Another turn of the session has it.
    #[error("{0:?} is held by another turn")]
    Busy(SessionKey, LockHolder),
    /// Too many wait for it already.
    #[error("too many turns wait for {0:?}")]
    Full(SessionKey),
    /// It did not become free in time.
    #[error("{0:?} did not become free in {1:?}")]
    TimedOut(SessionKey, Duration),
    /// A newer turn has come, or an operator has stopped this one.
    #[error("the turn has to make way for a newer one of {0:?}, or an operator")]
    Superseded(SessionKey),
    /// An operator has taken the lock away before the turn began.
    #[error("{0:?} was taken away")]
    Taken(SessionKey),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A claim whose outcome isn't known yet.
struct PendingClaim<'l> {
    locks: &'l Arc<Locks>,
    claim: Arc<Claim>,
    standing: Arc<ClaimState>,
    ask: AcquireRequest,
    /// Where this instance knows that it waits.
    seat: Option<QueuePlace>,
    /// A command is on its way whose answer isn't known.
    in_doubt: bool,
    /// It has a place in the line.
    in_line: bool,
}

/// How soon a waiter asks again whom the store gave no answer.
const RETRY: Duration = Duration::from_millis(250);

// === impl Locks ===

impl Locks {
    /// Locks in `store`, claimed by the turns of `instance`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>, instance: Arc<Instance>, fallback: Fallback) -> Self {
        Self {
            releaser: Releaser::new(Arc::clone(&store)),
            extender: Extender::new(Arc::clone(&store)),
            store,
            instance,
            fallback,
        }
    }

    /// Takes the session's lock, on these terms. `route` and `request` are for the person who looks
    /// at the lock.
    ///
    /// Cancel-safe: a claim that was dropped on its way is taken back in the background.
    ///
    /// # Errors
    /// When another turn holds the lock for too long, or the store gives no answer.
    pub async fn acquire(
        self: &Arc<Self>,
        key: SessionKey,
        route: &str,
        request: &str,
        terms: &Terms,
    ) -> Result<LockGuard, AcquireError> {
        let who = (route, request);
        if !terms.enforce {
            let beside = self.shadow(&key, who, terms, background::OBSERVE);
            return Ok(LockGuard::new(key, None, None, Some(Box::new(beside))));
        }
        let asked = Instant::now();
        let mut waited = false;
        let answer = self.ask(key.clone(), who, terms, &mut waited).await;
        let (hold, beside) = match (answer, &self.fallback) {
            (Ok(mut hold), Fallback::Local(local)) => {
                // So that one which runs under the local lock is never passed unseen.
                let settle = hold.set_settle(Duration::ZERO);
                let beside = tokio::select! {
                    biased;
                    loss = hold.lost() => return Err(match loss {
                        LockLoss::Interrupted => AcquireError::Superseded(key),
                        LockLoss::Taken if hold.was_forced() => AcquireError::Taken(key),
                        LockLoss::Expired | LockLoss::Taken => lost_while_waiting(),
                    }),
                    local = local.ask(key.clone(), who, terms, &mut waited) => local?,
                };
                hold.set_settle(settle);
                (Some(hold), Some(SubstituteLock::local(beside)))
            }
            (Ok(hold), Fallback::Reject | Fallback::Allow) => (Some(hold), None),
            (Err(AcquireError::Store(error)), Fallback::Allow) => {
                tracing::debug!(key = %key.redacted(), %error, "turn runs without a lock");
                (None, Some(self.shadow(&key, who, terms, background::ALLOW)))
            }
            (Err(AcquireError::Store(error)), Fallback::Local(local)) => {
                tracing::debug!(key = %key.redacted(), %error, "turn runs under this replica's lock");
                let hold = local.ask(key.clone(), who, terms, &mut waited).await?;
                let beside = self.shadow(&key, who, terms, background::LOCAL);
                (Some(hold), Some(beside))
            }
            (Err(refused), _) => return Err(refused),
        };
        let waited = waited.then(|| asked.elapsed());
        Ok(LockGuard::new(key, waited, hold, beside.map(Box::new)))
    }

    /// What goes on asking for a turn that the store doesn't protect.
    fn shadow(
        self: &Arc<Self>,
        key: &SessionKey,
        who: (&str, &str),
        terms: &Terms,
        why: &'static str,
    ) -> SubstituteLock {
        self.metrics().unprotected(why);
        let terms = Terms {
            patience: None,
            ..*terms
        };
        SubstituteLock::shadow(BackgroundAcquire::cast(self, key.clone(), who, terms, why))
    }

    /// Asks the store for a lock, and waits for it if the terms say so; then `waited` is set, also
    /// when it was in vain.
    pub(super) async fn ask(
        self: &Arc<Self>,
        key: SessionKey,
        (route, request): (&str, &str),
        terms: &Terms,
        waited: &mut bool,
    ) -> Result<StoreLock, AcquireError> {
        let instance = &self.instance;
        instance.pulse.is_felt().await?;
        let claim = instance.claimant.claim(key, route, request, terms.lease);
        let standing = Arc::new(ClaimState::new(
            instance.pulse.deadline(),
            terms.stop_when_lost,
        ));
        let entry = instance.roll.enter(claim.id, &standing);
        let wait = terms.patience.map(|patience| QueueOptions {
            ticket: None,
            max_waiters: patience.max_waiters,
            interrupts: patience.interrupts,
        });
        let mut asking = PendingClaim {
            locks: self,
            claim: Arc::new(claim),
            standing: Arc::clone(&standing),
            ask: AcquireRequest { dead: None, wait },
            seat: None,
            in_doubt: false,
            in_line: false,
        };
        let limit = terms.patience.and_then(|patience| patience.limit);
        let granted = asking.until_granted(limit).await;
        *waited |= asking.seat.is_some();
        let (granted, claim) = (granted?, Arc::clone(&asking.claim));
        Ok(StoreLock::granted(
            self,
            claim,
            granted,
            (standing, entry),
            terms,
        ))
    }

    /// Resolves when everything that was dropped is out of the store, or `longest` has passed;
    /// `false` if something was left to the end of its lease.
    pub async fn flush(&self, longest: Duration) -> bool {
        // What is in this process needs no flushing.
        self.releaser.flush(longest).await
    }

    /// Whether this holder is a claim of this process' that is on its way out of the store.
    pub(super) fn gave_up(&self, holder: &LockHolder) -> bool {
        let turn = holder.turn();
        turn.is_some_and(|turn| self.instance.roll.gave_up(turn.id))
    }

    pub(super) fn releaser(&self) -> &Releaser {
        &self.releaser
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.instance.metrics
    }

    pub(super) fn extender(&self) -> &Extender {
        &self.extender
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

// === impl Asking ===

impl PendingClaim<'_> {
    /// Asks until the lock is granted or refused; gives the fence, and when the command was sent
    /// that was granted.
    async fn until_granted(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<(super::Fence, Instant), AcquireError> {
        let give_up = limit.map(|limit| (Instant::now() + limit, limit));
        let mut failing = None;
        loop {
            let sent = Instant::now();
            let was_in_doubt = std::mem::replace(&mut self.in_doubt, true);
            let answer = match self.locks.store.acquire(&self.claim, &self.ask).await {
                Ok(answer) => answer,
                Err(error) => {
                    if error.was_not_executed() {
                        self.in_doubt = was_in_doubt;
                    } else {
                        self.claim.doubt();
                    }
                    // Who has waited so far can wait a little more: others may be in between, too.
                    let since = *failing.get_or_insert(sent);
                    if self.seat.is_none() || since.elapsed() > STALE {
                        return Err(error.into());
                    }
                    self.called(give_up, Some(sent + RETRY)).await?;
                    continue;
                }
            };
            failing = None;
            let holder = match answer {
                AcquireReply::Granted(fence) => {
                    self.took_over(None);
                    // Others may have been told meanwhile that this instance is dead, and take over
                    // whatever it has claimed before.
                    if self.standing.is_lost() {
                        return Err(self.lost());
                    }
                    (self.in_doubt, self.in_line) = (false, false);
                    return Ok((fence, sent));
                }
                AcquireReply::Full => return Err(AcquireError::Full(self.leave())),
                AcquireReply::Superseded => return Err(AcquireError::Superseded(self.leave())),
                AcquireReply::Busy(holder) => {
                    if self.found_dead(&holder).await {
                        continue;
                    }
                    return Err(AcquireError::Busy(self.leave(), holder));
                }
                AcquireReply::Waiting(ticket, holder) => {
                    self.took_over(Some(&holder));
                    let is_new = self.seat.is_none();
                    self.waits(ticket, &holder);
                    // Not a later one: that may be newer than this turn, which may have lost its
                    // place in between.
                    if is_new && self.ask.wait.is_some_and(|place| place.interrupts) {
                        queue::interrupt(&*self.locks.store, &holder).await;
                    }
                    holder
                }
            };
            if !self.found_dead(&holder).await {
                self.called(give_up, None).await?;
            }
        }
    }

    /// It has a place in the line, behind this holder.
    fn waits(&mut self, ticket: super::Ticket, holder: &LockHolder) {
        let Some(place) = &mut self.ask.wait else {
            return;
        };
        place.ticket = Some(ticket);
        (self.in_doubt, self.in_line) = (false, true);
        let replaces = place.interrupts.then(|| holder.clone());
        let Instance { board, metrics, .. } = &*self.locks.instance;
        self.seat.get_or_insert_with(|| {
            board.join(&self.claim, &self.standing, replaces, metrics.waiting())
        });
    }

    /// Whether the holder is nobody any more; the next command then takes its lock over.
    async fn found_dead(&mut self, holder: &LockHolder) -> bool {
        let is_known = |dead: &DeadHolder| dead.holder == *holder;
        if self.ask.dead.as_ref().is_some_and(is_known) {
            return false;
        }
        let after = if self.locks.gave_up(holder) {
            // A turn of this very process that is over, and whose release is on its way.
            Duration::ZERO
        } else {
            match self.locks.instance.pulse.look_for(holder).await {
                Liveness::Gone(after) => after,
                Liveness::Alive(_) => return false,
            }
        };
        self.ask.dead = Some(DeadHolder {
            holder: holder.clone(),
            after,
        });
        true
    }

    /// What the store says of the holder that was to be taken over from.
    fn took_over(&mut self, holder: Option<&LockHolder>) {
        let dead = self.ask.dead.take_if(|dead| Some(&dead.holder) != holder);
        if let Some(dead) = dead.filter(|dead| !self.locks.gave_up(&dead.holder)) {
            self.locks.instance.pulse.took_over(&dead.holder);
        }
    }

    /// Resolves when it is time to ask again: when it was called, or at `again`.
    async fn called(
        &self,
        give_up: Option<(Instant, Duration)>,
        again: Option<Instant>,
    ) -> Result<(), AcquireError> {
        let called = poll_fn(|cx| {
            self.standing.wake(cx);
            // Of one whom the lock was just handed over, it is taken again.
            if self.standing.is_superseded() || self.standing.is_interrupted() {
                Poll::Ready(Err(AcquireError::Superseded(self.claim.key.clone())))
            } else if self.standing.is_lost() {
                Poll::Ready(Err(self.lost()))
            } else if self.standing.take_call() {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        });
        let called = pin!(called);
        let at = give_up.map(|(at, _)| at).into_iter().chain(again).min();
        let Some(at) = at else {
            return called.await;
        };
        tokio::select! {
            biased;
            called = called => called,
            () = sleep_until(at) => match give_up {
                Some((end, limit)) if Instant::now() >= end => {
                    Err(AcquireError::TimedOut(self.claim.key.clone(), limit))
                }
                _ => Ok(()),
            }
        }
    }

    /// Why what it has claimed is lost.
    fn lost(&self) -> AcquireError {
        match self.standing.is_forced() {
            true => AcquireError::Taken(self.claim.key.clone()),
            false => lost_while_waiting(),
        }
    }

    /// The store has nothing of it any more, unless a command is still on its way there.
    fn leave(&mut self) -> SessionKey {
        (self.in_doubt, self.in_line) = (self.claim.is_in_doubt(), false);
        self.claim.key.clone()
    }
}

/// What this instance has claimed, others may take over.
fn lost_while_waiting() -> AcquireError {
    let reason = "it was taken for dead in between".into();
    StoreError::NoSign { reason }.into()
}

impl Drop for PendingClaim<'_> {
    fn drop(&mut self) {
        let claim = Arc::clone(&self.claim);
        if self.in_doubt {
            claim.doubt();
            self.locks.releaser.withdraw(claim);
        } else if self.in_line {
            self.locks.releaser.release(claim);
        }
    }
}
