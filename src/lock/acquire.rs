//! How a turn gets its lock from the store, and how it waits for the lock.
//!
//! Invariant: from the first command until there is a [`StoreLock`], a `PendingClaim` owns the claim.
//! Dropping it removes the claim from the store, whether it waits there or holds the lock.

use std::future::poll_fn;
use std::mem;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::claim_state::ClaimState;
use super::liveness::Liveness;
use super::lock_client::{LockClient, Requester};
use super::queue::{self, QueuePlace};
use super::registry::ClaimRegistration;
use super::store_lock::{Grant, StoreLock};
use super::{
    AcquireError, AcquireReply, AcquireRequest, BusySession, Claim, DeadHolder, Dismissal,
    LockHolder, LockOptions, OnLost, QueueOptions, RepeatedState, StoreError, Ticket,
};
use crate::key::SessionKey;
use crate::metrics::WaitingGauge;

/// What a turn keeps from one acquisition to the next, when it has to begin again.
#[derive(Debug, Default)]
pub(super) struct AcquireProgress {
    /// Whether the turn had to wait.
    pub(super) has_waited: bool,
    /// The turn's ticket in the store's queue; `None`: it has none yet.
    pub(super) ticket: Option<Ticket>,
    /// Whether the turn begins only when it has this replica's own lock, too.
    pub(super) needs_local: bool,
}

/// A claim whose outcome isn't known yet.
struct PendingClaim<'c> {
    client: &'c LockClient,
    requester: Requester<'c>,
    options: &'c LockOptions,
    needs_local: bool,
    claim: Arc<Claim>,
    state: Arc<ClaimState>,
    request: AcquireRequest,
    /// How the turn is to wait once it is known that the holder doesn't wait for it; `None`: the request has
    /// it already, or the turn doesn't wait.
    queue_later: Option<QueueOptions>,
    /// The turn's place among the waiting turns of this instance; `None`: it has no place in the store's queue.
    place: Option<QueuePlace>,
    /// Counts the turn as waiting since it had its first place; `None`: it has had none.
    waiting: Option<WaitingGauge>,
    /// Whether a command was sent whose reply isn't known.
    is_in_doubt: bool,
    /// Whether the claim has a place in the store's queue.
    is_queued: bool,
    /// The claim's, which outlives this value: the claim is registered until the releaser has it.
    registration: &'c mut ClaimRegistration,
}

/// What one command of a [`PendingClaim`] came to.
enum AttemptResult {
    /// The claim holds the lock.
    Granted(Grant),
    /// The store has to be asked again at once.
    AskAgain,
    /// The turn waits until something changes.
    Waits,
}

/// The time since which the store has failed without a break.
struct Outage {
    since: Instant,
    /// The pause before the next attempt.
    pause: Duration,
}

/// When a turn stops waiting.
#[derive(Clone, Copy)]
struct WaitLimit {
    end: Instant,
    limit: Duration,
}

/// The pause before a waiter asks again after a command without a reply: short at first, then long enough that
/// many waiters are no load. A new connection of the instance ends it.
const RETRY_PAUSE: Range<Duration> = Duration::from_millis(250)..Duration::from_secs(1);

// === impl LockClient ===

impl LockClient {
    /// Takes the session's lock in the store, and waits for it if `options.blocking` is set. `progress` is what
    /// the turn has from earlier acquisitions, and is updated, even if the turn gets no lock.
    ///
    /// Cancel-safe: a dropped claim is withdrawn in the background.
    ///
    /// # Errors
    /// When the lock is refused, or the store fails. A turn that waits puts up with a store that fails for
    /// `outage_limit`, or until it has waited for `options.blocking_timeout`.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        key: SessionKey,
        requester: Requester<'_>,
        options: &LockOptions,
        progress: &mut AcquireProgress,
    ) -> Result<StoreLock, AcquireError> {
        // Before the claim: the time in the queue is counted from when turns may begin.
        if !self.is_ready(&key, Instant::now()) {
            self.wait_until_ready(&key).await?;
        }
        let needs_local = progress.needs_local;
        let (claim, state, mut registration) = self.new_claim(key, requester, options, needs_local);
        let queue = options.blocking.then_some(QueueOptions {
            ticket: progress.ticket,
            max_waiters: options.max_waiters,
            interrupts: options.interrupt,
        });
        // A call of another turn's backend asks first who holds the lock: joining the queue with `interrupt`
        // would already remove all other waiters.
        let (queue, queue_later) = match requester.callers.is_empty() {
            true => (queue, None),
            false => (None, queue),
        };
        let mut pending = PendingClaim {
            client: self,
            requester,
            options,
            needs_local,
            claim,
            state,
            request: AcquireRequest {
                take_over: None,
                queue,
            },
            queue_later,
            place: None,
            waiting: None,
            is_in_doubt: false,
            is_queued: false,
            registration: &mut registration,
        };
        let mut granted = pending.until_granted().await;
        if let Err(AcquireError::TimedOut(_, _, session)) = &mut granted {
            *session = pending.look().await;
        }
        progress.has_waited |= pending.waiting.is_some();
        let queue = pending.request.queue.or(pending.queue_later);
        progress.ticket = queue.and_then(|queue| queue.ticket);
        let grant = granted?;
        let (claim, state) = (Arc::clone(&pending.claim), Arc::clone(&pending.state));
        drop(pending);
        Ok(StoreLock::new(
            self,
            claim,
            grant,
            state,
            registration,
            options,
        ))
    }

    /// A new claim, which is registered.
    fn new_claim(
        &self,
        key: SessionKey,
        requester: Requester<'_>,
        options: &LockOptions,
        needs_local: bool,
    ) -> (Arc<Claim>, Arc<ClaimState>, ClaimRegistration) {
        let instance = &self.instance;
        let Requester {
            turn,
            route,
            request,
            once,
            is_kept,
            ..
        } = requester;
        let lease = options.lock_timeout;
        let issuer = &instance.issuer;
        let mut claim = issuer.issue_for(turn, key, route, request, lease, is_kept);
        if let Some(once) = once {
            claim = claim.with_once(Arc::clone(once));
        }
        let stops = options.on_lost == OnLost::Abort;
        let state = ClaimState::new(instance.heartbeat.deadline(), stops);
        let state = state.with_local_lock(needs_local);
        let state = Arc::new(state.observed(!options.enforce));
        let registration = instance.registry.register(claim.id, &claim.key, &state);
        (Arc::new(claim), state, registration)
    }
}

// === impl PendingClaim ===

impl PendingClaim<'_> {
    /// Asks the store until the lock is granted or refused.
    async fn until_granted(&mut self) -> Result<Grant, AcquireError> {
        let limit = self.options.blocking_timeout;
        let limit = limit.filter(|_| self.options.blocking);
        let limit = limit.map(|limit| WaitLimit {
            end: Instant::now() + limit,
            limit,
        });
        let mut outage: Option<Outage> = None;
        loop {
            let began = Instant::now();
            let error = match self.attempt(began).await {
                Ok(AttemptResult::Granted(grant)) => return Ok(grant),
                Ok(AttemptResult::AskAgain) => {
                    outage = None;
                    continue;
                }
                Ok(AttemptResult::Waits) => {
                    outage = None;
                    self.wait_for_retry(limit, self.record_due()).await?;
                    continue;
                }
                Err(AcquireError::Store(error)) => error,
                Err(error) => return Err(error),
            };
            // A turn that waits has nothing to lose: it waits until the store is back. A name that another process
            // has doesn't come back.
            let is_hopeless = matches!(
                error,
                StoreError::NameTaken | StoreError::NoHeartbeat { .. }
            );
            if self.waiting.is_none() || is_hopeless {
                return Err(error.into());
            }
            // A store that grants the lock each time, and then fails, must not keep the turn for ever.
            if limit.is_some_and(|limit| Instant::now() >= limit.end) {
                return Err(error.into());
            }
            let outage = outage.get_or_insert(Outage {
                since: began,
                pause: RETRY_PAUSE.start,
            });
            let most = self.client.outage_limit;
            if most.is_some_and(|most| outage.since.elapsed() > most) {
                return Err(error.into());
            }
            let waited = self.wait_for_retry(limit, Some(began + outage.pause)).await;
            outage.pause = (outage.pause * 2).min(RETRY_PAUSE.end);
            match waited {
                // The turn has waited for the store in the end, and not for another turn.
                Err(AcquireError::TimedOut(..)) => return Err(error.into()),
                waited => waited?,
            }
        }
    }

    /// Waits until the claim may be sent, which is `now` if nothing is to be waited for. Replaces a claim that counts as
    /// lost. Returns the moment, and when the store last became another server.
    async fn until_ready(
        &mut self,
        now: Instant,
    ) -> Result<(Instant, Option<Instant>), AcquireError> {
        let mut ready = now;
        // What changes behind the last look at the server and the claim is noticed when the lock is granted.
        loop {
            let server = self.client.store.server_changed(&self.claim.key);
            let is_lost = self.state.is_lost();
            if !self.client.is_ready(&self.claim.key, ready) {
                // With the old claim: it has the place in the queue by which newer turns find this one.
                self.client.wait_until_ready(&self.claim.key).await?;
                ready = Instant::now();
            } else if is_lost {
                self.start_over()?;
            } else {
                return Ok((ready, server));
            }
        }
    }

    /// Asks the store once, at `now` if nothing is to be waited for.
    async fn attempt(&mut self, now: Instant) -> Result<AttemptResult, AcquireError> {
        // Each time: since the last attempt, the store may have become another server, or lost its data.
        let (sent, server) = self.until_ready(now).await?;
        let was_in_doubt = mem::replace(&mut self.is_in_doubt, true);
        let reply = match self.client.store.acquire(&self.claim, &self.request).await {
            Ok(AcquireReply::TookOver(reply)) => {
                self.record_takeover();
                *reply
            }
            Ok(reply) => reply,
            Err(error) => {
                self.note_error(&error, was_in_doubt);
                return Err(error.into());
            }
        };
        let holder = match reply {
            AcquireReply::Granted(fence) => {
                self.client.confirm_heartbeat().await?;
                // Another server granted the lock, or has taken the place of the one that did. It may lack the
                // lock of a turn that still runs, or this one.
                if self.client.store.server_changed(&self.claim.key) != server {
                    self.state.lose();
                }
                // Another instance may have counted this one as dead in the meantime. It may take over
                // what this instance claimed before.
                if self.state.is_lost() {
                    return Ok(AttemptResult::AskAgain);
                }
                (self.is_in_doubt, self.is_queued) = (false, false);
                return Ok(AttemptResult::Granted(Grant { fence, sent }));
            }
            AcquireReply::QueueFull(session) => {
                return Err(AcquireError::QueueFull(self.leave(), session));
            }
            AcquireReply::Superseded => return Err(self.refused(AcquireError::Superseded)),
            AcquireReply::Dequeued => return Err(self.refused(AcquireError::Dequeued)),
            AcquireReply::KeyReused => return Err(self.refused(AcquireError::KeyReused)),
            AcquireReply::Repeated(first) => {
                let runs = first.state == RepeatedState::Runs;
                if let Some(holder) = first.holder.as_ref().filter(|_| runs) {
                    // The store then says that the first turn is in doubt.
                    if self.is_found_dead(holder).await {
                        return Ok(AttemptResult::AskAgain);
                    }
                    if self.client.waits_for(holder, self.requester.callers) {
                        return Err(AcquireError::WouldDeadlock(self.yield_to_first()));
                    }
                    self.ask_about_use(holder).await;
                }
                return Err(AcquireError::Repeated(self.yield_to_first(), first));
            }
            AcquireReply::Busy(holder, session) => {
                if self.is_found_dead(&holder).await {
                    return Ok(AttemptResult::AskAgain);
                }
                let key = self.leave();
                if self.client.waits_for(&holder, self.requester.callers) {
                    return Err(AcquireError::WouldDeadlock(key));
                }
                if let Some(queue) = self.queue_later.take() {
                    self.request.queue = Some(queue);
                    return Ok(AttemptResult::AskAgain);
                }
                self.ask_about_use(&holder).await;
                return Err(AcquireError::Busy(key, holder, session));
            }
            AcquireReply::Waiting(ticket, holder) => {
                let is_new = self
                    .request
                    .queue
                    .is_some_and(|queue| queue.ticket.is_none());
                self.join(ticket, &holder, is_new);
                // Only the first holder: a later one may be newer than this turn, which may have lost
                // its place in between.
                if is_new && self.request.queue.is_some_and(|queue| queue.interrupts) {
                    let issuer = &self.client.instance.issuer;
                    queue::interrupt(&*self.client.store, issuer, &holder).await;
                }
                holder
            }
            // A store takes over once.
            AcquireReply::TookOver(_) => return Ok(AttemptResult::AskAgain),
        };
        if self.is_found_dead(&holder).await {
            return Ok(AttemptResult::AskAgain);
        }
        Ok(AttemptResult::Waits)
    }

    /// Notes a command that failed. `was_in_doubt`: there was a command without a known reply before it.
    fn note_error(&mut self, error: &StoreError, was_in_doubt: bool) {
        if error.was_answered() {
            self.client.instance.health.doubt();
        }
        if error.was_not_executed() {
            self.is_in_doubt = was_in_doubt;
        } else {
            self.claim.mark_in_doubt();
        }
    }

    /// Replaces a claim that counts as lost before its turn began. The turn keeps its ticket, and so its place in
    /// the order.
    ///
    /// # Errors
    /// When an operator took the claim's lock away or the turn out of the queue, or a newer turn has replaced this
    /// one.
    fn start_over(&mut self) -> Result<(), AcquireError> {
        self.give_back();
        self.place = None;
        (self.is_in_doubt, self.is_queued) = (false, false);
        self.request.take_over = None;
        let key = self.claim.key.clone();
        let (client, needs_local) = (self.client, self.needs_local);
        let (claim, new, registration) =
            client.new_claim(key, self.requester, self.options, needs_local);
        let state = mem::replace(&mut self.state, new);
        (self.claim, *self.registration) = (claim, registration);
        // Last: no message reaches the old state any more, and the new one knows none of its messages.
        if state.is_force_released() {
            return Err(AcquireError::Taken(self.claim.key.clone()));
        }
        if state.is_dequeued() {
            return Err(AcquireError::Dequeued(self.claim.key.clone()));
        }
        if state.is_superseded() || state.is_interrupted() {
            return Err(AcquireError::Superseded(self.claim.key.clone()));
        }
        Ok(())
    }

    /// Notes that the claim has a place in the store's queue, behind this holder. `is_new`: it is the turn's first
    /// place.
    fn join(&mut self, ticket: Ticket, holder: &LockHolder, is_new: bool) {
        let Some(options) = &mut self.request.queue else {
            return;
        };
        options.ticket = Some(ticket);
        (self.is_in_doubt, self.is_queued) = (false, true);
        let interrupts = (options.interrupts && is_new).then(|| holder.clone());
        let instance = &self.client.instance;
        self.waiting
            .get_or_insert_with(|| instance.metrics.waiting());
        let queue = &instance.queue;
        self.place.get_or_insert_with(|| {
            let place = self.requester.place.cloned();
            queue.join(&self.claim, &self.state, interrupts, place)
        });
        // The lock may have gone to somebody who is alive.
        let take_over = &mut self.request.take_over;
        take_over.take_if(|dead| dead.holder != *holder);
    }

    /// Whether the holder was found dead just now. The next command then takes its lock over.
    async fn is_found_dead(&mut self, holder: &LockHolder) -> bool {
        let is_known = |dead: &DeadHolder| dead.holder == *holder;
        if self.request.take_over.as_ref().is_some_and(is_known) {
            return false;
        }
        let instance = &self.client.instance;
        if instance.inquiry.is_doubtful(&self.claim.key, holder) {
            return false;
        }
        let liveness = instance.heartbeat.check_holder(holder).await;
        let Liveness::Dead { min_age } = liveness else {
            return false;
        };
        self.request.take_over = Some(DeadHolder {
            holder: holder.clone(),
            min_age,
        });
        true
    }

    /// Asks the holder's instance whether it still uses the lock.
    async fn ask_about_use(&self, holder: &LockHolder) {
        let inquiry = &self.client.instance.inquiry;
        if let Some(question) = inquiry.ask(&self.claim.key, holder) {
            // A question that isn't sent is asked again by the next turn.
            drop(question.await);
        }
    }

    /// Counts that the dead holder lost the lock.
    fn record_takeover(&mut self) {
        if let Some(dead) = self.request.take_over.take() {
            let heartbeat = &self.client.instance.heartbeat;
            heartbeat.record_takeover(&self.claim.key, &dead.holder);
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
            // An offer that the turn already has is withdrawn with the claim. First, because older versions understand
            // only the message that says superseded, so both are sent.
            if self.state.is_dequeued() {
                Poll::Ready(Err(AcquireError::Dequeued(self.claim.key.clone())))
            } else if self.state.is_superseded() || self.state.is_interrupted() {
                Poll::Ready(Err(AcquireError::Superseded(self.claim.key.clone())))
            } else if self.state.is_lost() || self.state.take_retry() {
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
                    Err(AcquireError::TimedOut(self.claim.key.clone(), limit, None))
                }
                _ => Ok(()),
            }
        }
    }

    /// How busy the session is, beside this turn; `None`: the store doesn't tell. Costs a command, which a turn that
    /// has waited for seconds can wait for, too.
    async fn look(&self) -> Option<BusySession> {
        let keys = [self.claim.key.clone()];
        let found = self.client.store.inspect(&keys, false).await.ok()?;
        let mut session = found.first()?.busy();
        // The claim has its place until it is dropped.
        let own = usize::from(self.is_queued);
        session.waiters = session.waiters.saturating_sub(own);
        Some(session)
    }

    /// Notes that the store has nothing of the claim, unless a command is still on its way.
    fn leave(&mut self) -> SessionKey {
        (self.is_in_doubt, self.is_queued) = (self.claim.is_in_doubt(), false);
        self.claim.key.clone()
    }

    /// Notes that the store refuses the claim for another turn. A place or an offer that the claim has is given back
    /// with it.
    fn yield_to_first(&mut self) -> SessionKey {
        self.is_in_doubt = self.claim.is_in_doubt();
        self.claim.key.clone()
    }

    /// The error for a claim that the store refuses for another turn, or because its own is not to run.
    fn refused(&mut self, error: fn(SessionKey) -> AcquireError) -> AcquireError {
        error(self.yield_to_first())
    }

    /// When a turn that waits has to ask again, so that its record stays; `None`: it needs no record.
    fn record_due(&self) -> Option<Instant> {
        let once = self.claim.once.as_ref()?;
        Some(Instant::now() + once.turn.keep / 2)
    }

    /// Gives what the store may have of the claim to the releaser.
    fn give_back(&self) {
        let claim = Arc::clone(&self.claim);
        if let Some(once) = &claim.once {
            if self.state.is_dequeued() {
                once.dismiss(Dismissal::Dequeued);
            } else if self.state.is_superseded() || self.state.is_interrupted() {
                once.dismiss(Dismissal::Superseded);
            }
        }
        if self.is_in_doubt {
            claim.mark_in_doubt();
            self.client.releaser.withdraw(claim);
        } else if self.is_queued {
            self.client.releaser.release(claim);
        }
    }
}

impl Drop for PendingClaim<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}
