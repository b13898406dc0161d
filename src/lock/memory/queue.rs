//! The queue of one session in memory: who waits, in which order, and who is out of it.
//!
//! Invariant: a session has a queue only once somebody waits for it, so a turn that meets nobody costs none. What was
//! noted of claims that are out of the queue stays as long as the session. Each waiter has one ticket, and `tickets` has
//! it, so that what a turn does to the queue takes the same time in a long queue as in a short one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::lock::number_map::ClaimMap;
use crate::lock::{Claim, ClaimId, Dismissal, Ticket, Token, WAITER_TIMEOUT};

/// The waiters of one session, and the claims that have been one.
#[derive(Debug, Default)]
pub(super) struct SessionQueue {
    waiters: BTreeMap<Ticket, QueuedWaiter>,
    /// The ticket of each waiter.
    tickets: ClaimMap<Ticket>,
    /// When each instance last watched the queue: at least those that have waiters.
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
        let waiters = self.waiters.iter();
        #[cfg(test)]
        let waiters = waiters.inspect(|_| tests::count_visit());
        waiters.map(|(ticket, waiter)| (*ticket, waiter))
    }

    /// The ticket of a claim; `None` if it isn't in the queue.
    pub(super) fn ticket(&self, id: ClaimId) -> Option<Ticket> {
        self.tickets.get(&id).copied()
    }

    /// Adds a claim, or moves it to this ticket.
    pub(super) fn join(&mut self, ticket: Ticket, claim: &Claim) {
        let waiter = QueuedWaiter {
            id: claim.id,
            token: claim.token.clone(),
            instance: Arc::clone(&claim.instance),
        };
        let earlier = self.tickets.insert(claim.id, ticket);
        if let Some(earlier) = earlier.filter(|earlier| *earlier != ticket) {
            self.waiters.remove(&earlier);
        }
        if let Some(other) = self.waiters.insert(ticket, waiter)
            && other.id != claim.id
        {
            self.tickets.remove(&other.id);
        }
    }

    /// Removes a waiter, and gives it; `None` if it isn't there.
    pub(super) fn leave(&mut self, id: ClaimId) -> Option<QueuedWaiter> {
        let ticket = self.tickets.remove(&id)?;
        self.waiters.remove(&ticket)
    }

    /// Removes the waiter with this ticket, and gives it; `None` if it isn't there.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<QueuedWaiter> {
        let waiter = self.waiters.remove(&ticket)?;
        self.tickets.remove(&waiter.id);
        Some(waiter)
    }

    /// Removes all waiters that are older than this ticket, because a newer turn replaces them, and gives them.
    pub(super) fn supersede(
        &mut self,
        newest: Ticket,
    ) -> impl Iterator<Item = QueuedWaiter> + use<> {
        let newer = self.waiters.split_off(&newest);
        let older = std::mem::replace(&mut self.waiters, newer);
        for waiter in older.values() {
            self.tickets.remove(&waiter.id);
            self.superseded.insert(waiter.id);
        }
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
        let own = self
            .iter()
            .find(|(_, waiter)| *waiter.instance == *instance);
        if let Some(own) = own.map(|(_, own)| Arc::clone(&own.instance)) {
            self.watched.insert(own, now);
        }
    }

    /// Forgets who watches the queue.
    pub(super) fn forget_watched(&mut self) {
        self.watched.clear();
    }

    /// For each of these claims its place among the waiters that are alive, counted from 1; 0: it has none. Walks through
    /// the whole queue, once.
    pub(super) fn places(&self, ids: &[ClaimId], now: Instant) -> Vec<u32> {
        let alive = self.iter().filter(|(_, waiter)| self.is_alive(waiter, now));
        let places: ClaimMap<_> = alive.map(|(_, waiter)| waiter.id).zip(1..).collect();
        let place = |id| places.get(id).copied().unwrap_or_default();
        ids.iter().map(place).collect()
    }

    /// Whether a claim is in the queue and its instance is alive.
    pub(super) fn is_waiting(&self, id: ClaimId, now: Instant) -> bool {
        let ticket = self.tickets.get(&id);
        let waiter = ticket.and_then(|ticket| self.waiters.get(ticket));
        waiter.is_some_and(|waiter| self.is_alive(waiter, now))
    }

    /// Whether a waiter's instance has watched the queue in time.
    pub(super) fn is_alive(&self, waiter: &QueuedWaiter, now: Instant) -> bool {
        let watched = self.watched.get(&waiter.instance);
        watched.is_some_and(|watched| now < *watched + WAITER_TIMEOUT)
    }

    /// Removes all waiters whose instances have not watched the queue in time.
    pub(super) fn remove_timed_out(&mut self, now: Instant) {
        let is_timely = |watched: &Instant| now < *watched + WAITER_TIMEOUT;
        // Usually all are, so a full queue is no reason to walk through it.
        if self.watched.values().all(is_timely) {
            return;
        }
        let timed_out = self
            .iter()
            .filter(|(_, waiter)| !self.is_alive(waiter, now));
        self.remove(timed_out.map(|(ticket, _)| ticket).collect());
        self.watched.retain(|_, watched| is_timely(watched));
    }

    /// Removes these waiters, whose instances count as gone.
    pub(super) fn remove(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            self.take(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;
    use crate::key::SessionKey;
    use crate::lock::memory::MemoryStore;
    use crate::lock::{
        AcquireReply, AcquireRequest, ClaimIssuer, Epoch, Message, MessageHandler, QueueOptions,
        Store, WatchedQueue,
    };

    thread_local! {
        static VISITS: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts a waiter that somebody looked at while walking through a queue.
    pub(super) fn count_visit() {
        VISITS.set(VISITS.get() + 1);
    }

    #[derive(Debug)]
    struct Ignored;

    impl MessageHandler for Ignored {
        fn on_message(&self, _: Message) {}
        fn on_reconnect(&self) {}
    }

    /// How many waiters are looked at when a turn finds the queue full, one turn of a session ends, its first waiter begins,
    /// a new turn joins, and the last but one leaves; and when the queue, of this many waiters, is watched.
    async fn visits(waiters: u32) -> (usize, usize) {
        const HOUR: Duration = Duration::from_secs(3600);
        let (store, key) = (MemoryStore::new(), SessionKey::literal("k"));
        let issuer = ClaimIssuer::new("pod-1", Epoch(1), false);
        store.listen(issuer.instance(), Arc::new(Ignored));
        let acquire = async |claim: &Arc<Claim>, ticket| {
            let queue = QueueOptions {
                ticket,
                max_waiters: waiters,
                interrupts: false,
            };
            let request = AcquireRequest {
                take_over: None,
                queue: Some(queue),
            };
            let reply = store.acquire(claim, &request).await;
            reply.expect("the process has memory")
        };
        let (mut claims, mut tickets) = (Vec::new(), Vec::new());
        for _ in 0..=waiters {
            let claim = Arc::new(issuer.issue(key.clone(), "chat", "r", HOUR));
            if let AcquireReply::Waiting(ticket, _) = acquire(&claim, None).await {
                tickets.push(ticket);
            }
            claims.push(claim);
        }
        assert_eq!(tickets.len(), waiters as usize, "one turn has the lock");
        let release = async |claim: &Claim| {
            let released = store.release(claim).await;
            released.expect("the process has memory")
        };

        let before = VISITS.get();
        let refused = Arc::new(issuer.issue(key.clone(), "chat", "r", HOUR));
        let refused = acquire(&refused, None).await;
        assert!(matches!(refused, AcquireReply::QueueFull(_)), "{refused:?}");
        assert!(release(&claims[0]).await, "the turn had the lock");
        let next = acquire(&claims[1], Some(tickets[0])).await;
        assert!(matches!(next, AcquireReply::Granted(_)), "{next:?}");
        let new = Arc::new(issuer.issue(key.clone(), "chat", "r", HOUR));
        let joined = acquire(&new, None).await;
        assert!(matches!(joined, AcquireReply::Waiting(..)), "{joined:?}");
        assert!(!release(&claims[waiters as usize]).await, "it only waited");
        let of_turn = VISITS.get() - before;

        let before = VISITS.get();
        let watched = WatchedQueue {
            key,
            take_over: None,
            waiters: claims.iter().skip(2).map(|claim| claim.id).collect(),
            wants_places: true,
        };
        let found = store.watch("pod-1", &[watched]).await;
        let found = found.expect("the process has memory").remove(0);
        let found = found.expect("it is the only server");
        let last = claims[waiters as usize].id;
        assert_eq!(found.missing, [last], "the others have their places");
        let places: Vec<_> = (1..waiters - 1).chain([0]).collect();
        assert_eq!(found.places, places, "in order");
        (of_turn, VISITS.get() - before)
    }

    #[tokio::test]
    async fn a_turn_looks_at_no_more_waiters_in_a_long_queue_and_a_watch_walks_through_it_once() {
        crate::time_limit::limit_this_test();
        let (short, long) = (visits(4).await, visits(400).await);
        assert_eq!(short.0, long.0, "a turn costs the same in a long queue");
        assert!(short.0 <= 1, "only the first waiter matters: {}", short.0);
        assert!(long.1 <= 400 + 1, "once: {} of 400", long.1);
    }
}
