//! One session in memory: its lock and its queue, and what a command does to them.
//!
//! Invariant: a free lock with a waiter that is alive is offered to the first such waiter before
//! anybody else gets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::once::{OnceRecord, OnceRecords, RecordedState};
use super::queue::SessionQueue;
use crate::lock::{
    AcquireReply, AcquireRequest, BusySession, Claim, ClaimId, DeadHolder, Dismissal, Fence,
    LockHolder, Message, MessageHandler, OFFER_TTL, OnceClaim, QueueOptions, QueueState,
    RepeatedState, RepeatedTurn, Ticket, Token, WatchedQueue,
};

/// Who receives the messages for each instance.
pub(super) type Handlers = HashMap<Arc<str>, Arc<dyn MessageHandler>>;

/// The state of one session. It is removed when it has neither holder nor waiters.
#[derive(Debug, Default)]
pub(super) struct SessionState {
    pub(super) lock: Option<HeldLock>,
    /// `None`: nobody has waited.
    pub(super) queue: Option<Box<SessionQueue>>,
}

/// The lock of a session, held or offered.
#[derive(Debug)]
pub(super) struct HeldLock {
    pub(super) token: Token,
    /// When the lease, or the offer, ends.
    pub(super) expires: Instant,
    /// When the lock was granted; `None` for an offer.
    pub(super) since: Option<Instant>,
    /// The number of the acquisition; `None` for an offer.
    pub(super) fence: Option<Fence>,
}

/// One command: its time, its source of fences and tickets, and the messages that it sends when the
/// mutex is free.
pub(super) struct MemoryCommand<'c> {
    pub(super) now: Instant,
    pub(super) messages: Vec<(Arc<dyn MessageHandler>, Message)>,
    handlers: &'c Handlers,
    last_number: &'c mut u64,
    pub(super) records: &'c mut OnceRecords,
}

// === impl SessionState ===

impl SessionState {
    /// Grants the lock, or adds the claim to the queue.
    pub(super) fn acquire(
        &mut self,
        claim: &Claim,
        request: &AcquireRequest,
        command: &mut MemoryCommand<'_>,
    ) -> AcquireReply {
        if let Some(refusal) = self.repeated(claim, request.take_over.as_ref(), command) {
            return refusal;
        }
        let mut took_over = false;
        let reply = self.grant_or_enqueue(claim, request, command, &mut took_over);
        match took_over {
            true => AcquireReply::TookOver(Box::new(reply)),
            false => reply,
        }
    }

    /// The reply to a claim with the record of another turn that isn't gone; `None`: there is none.
    fn repeated(
        &mut self,
        claim: &Claim,
        dead: Option<&DeadHolder>,
        command: &MemoryCommand<'_>,
    ) -> Option<AcquireReply> {
        let own = claim.once.as_ref()?;
        let record = command.records.of_other_turn(claim)?;
        let holds = self.holder(command.now) == Some(&record.token);
        let is_dead = dead.is_some_and(|dead| self.is_held_by(dead, command.now));
        let state = match record.state {
            RecordedState::Waits if holds || self.is_waiting(record.claim, command.now) => {
                RepeatedState::Waits
            }
            RecordedState::Waits => {
                let why = self.dismissal(record.claim)?;
                return Some(dismissed(why, record, own));
            }
            RecordedState::Granted if holds && !is_dead => RepeatedState::Runs,
            RecordedState::Granted => RepeatedState::InDoubt,
            RecordedState::Ended => RepeatedState::Ended,
            RecordedState::Dismissed(why) => return Some(dismissed(why, record, own)),
        };
        if record.fingerprint != own.turn.key.fingerprint {
            return Some(AcquireReply::KeyReused);
        }
        let has_ended = state == RepeatedState::Ended;
        Some(AcquireReply::Repeated(RepeatedTurn {
            turn: record.turn,
            state,
            holder: (!has_ended).then(|| LockHolder::from(&record.token)),
            session: self.busy(command.now),
        }))
    }

    /// Does what [`SessionState::acquire`] does. Sets `took_over` if the dead holder lost the lock.
    fn grant_or_enqueue(
        &mut self,
        claim: &Claim,
        request: &AcquireRequest,
        command: &mut MemoryCommand<'_>,
        took_over: &mut bool,
    ) -> AcquireReply {
        let options = request.queue;
        let mut holder = self.holder(command.now).cloned();
        let mut queue = self.queue.as_deref_mut();
        let is_dequeued = |queue: &SessionQueue| queue.is_dequeued(claim.id);
        if options.is_some() && queue.as_deref().is_some_and(is_dequeued) {
            // The message about it got lost.
            let state = RecordedState::Dismissed(Dismissal::Dequeued);
            command.records.note(claim, state, command.now);
            return AcquireReply::Dequeued;
        }
        if let Some(ticket) = options.and_then(|options| options.ticket)
            && holder.as_ref() != Some(&claim.token)
        {
            if let Some(queue) = &mut queue
                && Some(ticket) < queue.newest_interrupt
            {
                // The message about it got lost.
                queue.leave(claim.id);
                let state = RecordedState::Dismissed(Dismissal::Superseded);
                command.records.note(claim, state, command.now);
                return AcquireReply::Superseded;
            }
            // First, so that a free lock isn't offered to a later waiter.
            self.join(ticket, claim, command);
        }
        if self.take_over(request.take_over.as_ref(), command.now) {
            (holder, *took_over) = (None, true);
        }
        let mut is_interrupting = false;
        if holder.is_none() {
            let new = options.filter(|options| options.ticket.is_none());
            is_interrupting = new.is_some_and(|new| new.interrupts) && self.has_waiters();
            holder = self.offer(Some(claim.id), command);
        }
        if let Some(token) = holder.filter(|token| *token != claim.token) {
            let holder = LockHolder::from(&token);
            return match options {
                Some(options) => self.enqueue(claim, options, holder, command),
                None => AcquireReply::Busy(holder, self.busy(command.now)),
            };
        }
        if is_interrupting {
            // All waiters that timed out on the way are older than this turn.
            self.queue_mut().newest_interrupt = Some(Ticket(command.next_number()));
        }
        if let Some(queue) = &mut self.queue {
            queue.leave(claim.id);
        }
        let fence = Fence(command.next_number());
        let now = command.now;
        command.records.note(claim, RecordedState::Granted, now);
        self.lock = Some(HeldLock {
            token: claim.token.clone(),
            expires: command.now + claim.lease,
            since: Some(command.now),
            fence: Some(fence),
        });
        AcquireReply::Granted(fence)
    }

    /// Adds the claim to the queue of a busy lock.
    fn enqueue(
        &mut self,
        claim: &Claim,
        options: QueueOptions,
        holder: LockHolder,
        command: &mut MemoryCommand<'_>,
    ) -> AcquireReply {
        let now = command.now;
        let queue = self.queue_mut();
        let ticket = match queue.ticket(claim.id) {
            Some(ticket) => {
                command.records.note(claim, RecordedState::Waits, now);
                ticket
            }
            None => {
                let max_waiters = options.max_waiters as usize;
                if !options.interrupts && queue.len() >= max_waiters {
                    queue.remove_timed_out(now);
                    if queue.len() >= max_waiters {
                        return AcquireReply::QueueFull(self.busy(now));
                    }
                }
                let ticket = Ticket(command.next_number());
                self.join(ticket, claim, command);
                ticket
            }
        };
        let queue = self.queue_mut();
        queue.note_watched(&claim.instance, now);
        if options.interrupts && queue.newest_interrupt < Some(ticket) {
            queue.newest_interrupt = Some(ticket);
            for older in queue.supersede(ticket) {
                command.send(&older.instance, Message::Superseded(older.id));
            }
        }
        AcquireReply::Waiting(ticket, holder)
    }

    /// What a refused turn is told of the session.
    fn busy(&self, now: Instant) -> BusySession {
        let lock = self.lock.as_ref();
        BusySession {
            since: lock.and_then(|lock| lock.fence?.time()),
            age: lock.and_then(|lock| Some(now - lock.since?)),
            waiters: self.queue.as_ref().map_or(0, |queue| queue.len()),
        }
    }

    /// Starts a new lease; `false` if the claim doesn't hold the lock.
    pub(super) fn extend(&mut self, claim: &Claim, now: Instant) -> bool {
        let lock = self.lock.as_mut().filter(|lock| now < lock.expires);
        let own = lock.filter(|lock| lock.token == claim.token);
        own.map(|lock| lock.expires = now + claim.lease).is_some()
    }

    /// Removes the claim from the queue, and frees the lock if the claim holds it.
    pub(super) fn release(&mut self, claim: &Claim, command: &mut MemoryCommand<'_>) -> bool {
        command.records.settle(claim, self.dismissal(claim.id));
        if let Some(queue) = &mut self.queue {
            queue.forget_superseded(claim.id);
            queue.leave(claim.id);
        }
        let is_held = self.holder(command.now) == Some(&claim.token);
        if is_held {
            self.lock = None;
            self.offer(None, command);
        }
        is_held
    }

    /// Why a claim that isn't in the queue any more is not to run; `None`: it has just left.
    fn dismissal(&self, id: ClaimId) -> Option<Dismissal> {
        self.queue.as_ref()?.dismissal(id)
    }

    /// Marks the instance's waiters as alive, and offers the lock if it is free.
    pub(super) fn watch(
        &mut self,
        instance: &str,
        watched: &WatchedQueue,
        command: &mut MemoryCommand<'_>,
    ) -> QueueState {
        let (now, ids) = (command.now, &watched.waiters);
        let mut missing = ids.clone();
        if let Some(queue) = self.queue.as_deref_mut() {
            queue.note_watched_by(instance, now);
            missing.retain(|id| queue.ticket(*id).is_none());
        }
        let took_over = self.take_over(watched.take_over.as_ref(), now);
        let holder = self.holder(now).cloned();
        let holder = holder.or_else(|| self.offer(None, command));
        let places = match &self.queue {
            _ if !watched.wants_places => Vec::new(),
            Some(queue) => queue.places(ids, now),
            None => vec![0; ids.len()],
        };
        QueueState {
            missing,
            holder: holder.as_ref().map(LockHolder::from),
            took_over,
            places,
        }
    }

    /// Who holds the lock. A lock that has expired is freed.
    pub(super) fn holder(&mut self, now: Instant) -> Option<&Token> {
        self.lock.take_if(|lock| lock.expires <= now);
        Some(&self.lock.as_ref()?.token)
    }

    /// Frees the lock if this dead holder has it; gives whether it had.
    fn take_over(&mut self, dead: Option<&DeadHolder>, now: Instant) -> bool {
        let is_dead = |lock: &HeldLock| dead.is_some_and(|dead| lock.is_held_by(dead, now));
        self.holder(now).is_some() && self.lock.take_if(|lock| is_dead(lock)).is_some()
    }

    /// Whether this dead holder has the lock.
    pub(super) fn is_held_by(&self, dead: &DeadHolder, now: Instant) -> bool {
        let lock = self.lock.as_ref();
        lock.is_some_and(|lock| lock.is_held_by(dead, now))
    }

    /// Whether a claim is in the queue and its instance is alive.
    pub(super) fn is_waiting(&self, id: ClaimId, now: Instant) -> bool {
        let queue = self.queue.as_ref();
        queue.is_some_and(|queue| queue.is_waiting(id, now))
    }

    /// Offers the free lock to the first waiter that is alive and gets the message, or that is asking
    /// right now. If no waiter gets the message, the first one gets the offer without it.
    pub(super) fn offer(
        &mut self,
        asking: Option<ClaimId>,
        command: &mut MemoryCommand<'_>,
    ) -> Option<Token> {
        let queue = self.queue.as_mut()?;
        let (mut next, mut timed_out) = (None, Vec::new());
        for (ticket, waiter) in queue.iter() {
            if asking == Some(waiter.id) {
                next = Some(ticket);
                break;
            }
            if !queue.is_alive(waiter, command.now) {
                timed_out.push(ticket);
            } else if command.send(&waiter.instance, Message::Granted(waiter.id)) {
                next = Some(ticket);
                break;
            } else {
                next = next.or(Some(ticket));
            }
        }
        queue.remove(timed_out);
        let next = queue.take(next?)?;
        self.lock = Some(HeldLock {
            token: next.token.clone(),
            expires: command.now + OFFER_TTL,
            since: None,
            fence: None,
        });
        Some(next.token)
    }

    fn join(&mut self, ticket: Ticket, claim: &Claim, command: &mut MemoryCommand<'_>) {
        let now = command.now;
        command.records.note(claim, RecordedState::Waits, now);
        self.queue_mut().join(ticket, claim);
    }

    fn has_waiters(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.is_empty())
    }

    fn queue_mut(&mut self) -> &mut SessionQueue {
        self.queue.get_or_insert_default()
    }

    /// Whether the session has neither holder nor waiters. What is known of claims that were replaced or taken out of
    /// the queue, and don't know it yet, stays until then.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let has_waiters = self.has_waiters();
        if let Some(queue) = self.queue.as_mut().filter(|_| !has_waiters) {
            queue.forget_watched();
        }
        !has_waiters && self.holder(now).is_none()
    }
}

/// The reply to a claim that repeats a turn which is not to run.
fn dismissed(why: Dismissal, record: &OnceRecord, own: &OnceClaim) -> AcquireReply {
    if record.fingerprint != own.turn.key.fingerprint {
        return AcquireReply::KeyReused;
    }
    match why {
        Dismissal::Superseded => AcquireReply::Superseded,
        Dismissal::Dequeued => AcquireReply::Dequeued,
    }
}

// === impl HeldLock ===

impl HeldLock {
    fn is_held_by(&self, dead: &DeadHolder, now: Instant) -> bool {
        let is_old = self.since.is_some_and(|since| since + dead.min_age < now);
        dead.holder.has_token(&self.token) && (dead.min_age.is_zero() || is_old)
    }
}

// === impl MemoryCommand ===

impl<'c> MemoryCommand<'c> {
    /// A command that runs now.
    pub(super) fn new(
        handlers: &'c Handlers,
        last_number: &'c mut u64,
        records: &'c mut OnceRecords,
    ) -> Self {
        Self {
            records,
            now: Instant::now(),
            messages: Vec::new(),
            handlers,
            last_number,
        }
    }

    /// Adds a message to an instance; `false` if the instance has no handler.
    pub(super) fn send(&mut self, instance: &str, message: Message) -> bool {
        let handler = self.handlers.get(instance).cloned();
        handler
            .map(|handler| self.messages.push((handler, message)))
            .is_some()
    }

    /// The next fence or ticket: microseconds by the wall clock, so that they rise across restarts, or the
    /// last number plus one if the clock was set back.
    pub(super) fn next_number(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.unwrap_or_default().as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX - 1);
        *self.last_number = micros.max(*self.last_number + 1);
        *self.last_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_in_one_microsecond_and_after_the_clock_was_set_back() {
        let handlers = Handlers::new();
        let ahead = u64::MAX / 2;
        for first in [0, ahead] {
            let mut last = first;
            let mut records = OnceRecords::default();
            let mut command = MemoryCommand::new(&handlers, &mut last, &mut records);
            // Far more of them than microseconds.
            let numbers: Vec<_> = (0..10_000).map(|_| command.next_number()).collect();
            assert!(first < numbers[0], "each is larger than the last one");
            let is_rising = numbers.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(is_rising, "each is larger than the one before");
        }
    }
}
