//! The queue of one session in memory: who waits, in which order, and who is out of it.
//!
//! Invariant: a session has a queue only once somebody waits for it, so a turn that meets nobody costs none. What was
//! noted of claims that are out of the queue stays as long as the session.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::lock::{Claim, ClaimId, Dismissal, Ticket, Token, WAITER_TIMEOUT};

/// The waiters of one session, and the claims that have been one.
#[derive(Debug, Default)]
pub(super) struct SessionQueue {
    waiters: BTreeMap<Ticket, QueuedWaiter>,
    /// When each instance with waiters last watched the queue.
    watched: HashMap<Arc<str>, Instant>,
    /// The newest turn that replaced all older ones.
    pub(super) newest_interrupt: Option<Ticket>,
    /// The claims that an operator has taken out of the queue.
    dequeued: HashSet<ClaimId>,
    /// The claims that a newer turn has replaced in the queue, and that haven't been given up yet.
    superseded: HashSet<ClaimId>,
}

/// A claim in the queue of a session.
#[derive(Debug)]
pub(super) struct QueuedWaiter {
    pub(super) id: ClaimId,
    pub(super) token: Token,
    pub(super) instance: Arc<str>,
}

// === impl SessionQueue ===

impl SessionQueue {
    /// How many claims are in the queue.
    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether no claim is in the queue.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// The waiters in order, with their tickets.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &QueuedWaiter)> + Clone {
        self.waiters
            .iter()
            .map(|(ticket, waiter)| (*ticket, waiter))
    }

    /// The ticket of a claim; `None` if it isn't in the queue.
    pub(super) fn ticket(&self, id: ClaimId) -> Option<Ticket> {
        let place = self.iter().find(|(_, waiter)| waiter.id == id);
        place.map(|(ticket, _)| ticket)
    }

    /// Adds a claim.
    pub(super) fn join(&mut self, ticket: Ticket, claim: &Claim) {
        let waiter = QueuedWaiter {
            id: claim.id,
            token: claim.token.clone(),
            instance: Arc::clone(&claim.instance),
        };
        self.waiters.insert(ticket, waiter);
    }

    /// Removes a waiter, and gives it; `None` if it isn't there.
    pub(super) fn leave(&mut self, id: ClaimId) -> Option<QueuedWaiter> {
        let ticket = self.ticket(id)?;
        self.waiters.remove(&ticket)
    }

    /// Removes the waiter with this ticket, and gives it; `None` if it isn't there.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<QueuedWaiter> {
        self.waiters.remove(&ticket)
    }

    /// Removes all waiters that are older than this ticket, because a newer turn replaces them, and gives them.
    pub(super) fn supersede(
        &mut self,
        newest: Ticket,
    ) -> impl Iterator<Item = QueuedWaiter> + use<> {
        let newer = self.waiters.split_off(&newest);
        let older = std::mem::replace(&mut self.waiters, newer);
        self.superseded
            .extend(older.values().map(|waiter| waiter.id));
        older.into_values()
    }

    /// Notes that a claim was given up: nobody has to know any more that a newer turn has replaced it.
    pub(super) fn forget_superseded(&mut self, id: ClaimId) {
        self.superseded.remove(&id);
    }

    /// Removes a waiter for good, and gives it; `None` if it isn't there.
    pub(super) fn dequeue(&mut self, id: ClaimId) -> Option<QueuedWaiter> {
        let waiter = self.leave(id)?;
        self.dequeued.insert(id);
        Some(waiter)
    }

    /// Whether an operator has taken this claim out of the queue.
    pub(super) fn is_dequeued(&self, id: ClaimId) -> bool {
        self.dequeued.contains(&id)
    }

    /// Why a claim that isn't in the queue any more is not to run; `None`: it has just left.
    pub(super) fn dismissal(&self, id: ClaimId) -> Option<Dismissal> {
        if self.is_dequeued(id) {
            return Some(Dismissal::Dequeued);
        }
        let is_superseded = self.superseded.contains(&id);
        is_superseded.then_some(Dismissal::Superseded)
    }

    /// Notes that an instance watches the queue.
    pub(super) fn note_watched(&mut self, instance: &Arc<str>, now: Instant) {
        self.watched.insert(Arc::clone(instance), now);
    }

    /// Notes that the instance of this name watches the queue, if it has a waiter there.
    pub(super) fn note_watched_by(&mut self, instance: &str, now: Instant) {
        let mut waiters = self.waiters.values();
        let own = waiters.find(|waiter| *waiter.instance == *instance);
        if let Some(own) = own.map(|own| Arc::clone(&own.instance)) {
            self.watched.insert(own, now);
        }
    }

    /// Forgets who watches the queue.
    pub(super) fn forget_watched(&mut self) {
        self.watched.clear();
    }

    /// The place of a claim among the waiters that are alive, counted from 1; 0: it has none.
    pub(super) fn place(&self, id: ClaimId, now: Instant) -> u32 {
        let is_alive = |waiter: &&QueuedWaiter| self.is_alive(waiter, now);
        let mut alive = self.waiters.values().filter(is_alive);
        let at = alive.position(|waiter| waiter.id == id);
        at.and_then(|at| u32::try_from(at + 1).ok())
            .unwrap_or_default()
    }

    /// Whether a claim is in the queue and its instance is alive.
    pub(super) fn is_waiting(&self, id: ClaimId, now: Instant) -> bool {
        let mut waiters = self.waiters.values();
        let waiter = waiters.find(|waiter| waiter.id == id);
        waiter.is_some_and(|waiter| self.is_alive(waiter, now))
    }

    /// Whether a waiter's instance has watched the queue in time.
    pub(super) fn is_alive(&self, waiter: &QueuedWaiter, now: Instant) -> bool {
        let watched = self.watched.get(&waiter.instance);
        watched.is_some_and(|watched| now < *watched + WAITER_TIMEOUT)
    }

    /// Removes all waiters whose instances have not watched the queue in time.
    pub(super) fn remove_timed_out(&mut self, now: Instant) {
        let timed_out = self
            .iter()
            .filter(|(_, waiter)| !self.is_alive(waiter, now));
        self.remove(timed_out.map(|(ticket, _)| ticket).collect());
    }

    /// Removes these waiters, whose instances count as gone.
    pub(super) fn remove(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            if let Some(waiter) = self.waiters.remove(&ticket) {
                self.watched.remove(&waiter.instance);
            }
        }
    }
}
