//! The waiting turns of this instance, and the task that watches the queues in which they wait.
//!
//! The queues themselves, and their order, are in the store. A release offers the lock to the first
//! waiter and sends its instance a message; the waiter then asks the store again. One task watches all
//! queues of the instance, with one command for many of them. It marks the instance's waiters as
//! alive, and finds locks whose message was lost, whose holder doesn't know queues, or whose holder's
//! instance is dead.
//!
//! Invariant: a turn that joins or leaves its queue looks at no other turn, so it costs the same in a long queue as in a
//! short one. Only the watch, at its interval, and a new connection to the store go through all of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::repeat;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::claim_state::ClaimState;
use super::heartbeat::Heartbeat;
use super::in_use::UseInquiry;
use super::liveness::Liveness;
use super::{
    Claim, ClaimId, ClaimIssuer, DeadHolder, LockHolder, Message, QueueState, Store, StoreFuture,
    WaitPlace, WatchedQueue,
};
use crate::key::SessionKey;

/// The waiting turns of this instance, by session. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitQueue(Arc<WaitQueueState>);

#[derive(Debug, Default)]
struct WaitQueueState {
    waiters: Mutex<HashMap<SessionKey, SessionWaiters>>,
    /// Notified when the first turn begins to wait.
    first_waiter: Notify,
}

/// The turns of this instance that wait for one session, by the numbers of their claims.
type SessionWaiters = BTreeMap<u64, LocalWaiter>;

#[derive(Debug)]
struct LocalWaiter {
    claim: Arc<Claim>,
    state: Arc<ClaimState>,
    /// The holder that this turn interrupts; `None`: it interrupts nobody.
    interrupts: Option<LockHolder>,
    /// Where the turn's place is noted; `None`: nobody wants to know it.
    place: Option<Arc<WaitPlace>>,
}

/// A waiting turn's place in a [`WaitQueue`]. Dropping it removes the turn.
pub(super) struct QueuePlace {
    claim: Arc<Claim>,
    queue: WaitQueue,
}

/// How often the queues are watched. A waiter learns that late of a lock whose release sent no message.
/// While turns of an instance wait, it costs the store two commands per second for each hundred queues, and one
/// question per second for each holder.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// For how long a place is told to its client: a few rounds. It is older if the store doesn't answer, or if the process
/// was stopped.
const PLACE_AGE: Duration = WATCH_INTERVAL.saturating_mul(4);

/// The shortest pause between two rounds.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How many queues one command watches: about half a millisecond in which the store serves nobody
/// else.
const BATCH: usize = 100;

// === impl WaitQueue ===

impl WaitQueue {
    /// Adds a turn that has a place in the store's queue. `interrupts` is the holder that the turn
    /// interrupts.
    pub(super) fn join(
        &self,
        claim: &Arc<Claim>,
        state: &Arc<ClaimState>,
        interrupts: Option<LockHolder>,
        place: Option<Arc<WaitPlace>>,
    ) -> QueuePlace {
        let mut waiters = self.0.waiters.lock();
        let was_empty = waiters.is_empty();
        let of_session = waiters.entry(claim.key.clone()).or_default();
        let waiter = LocalWaiter {
            claim: Arc::clone(claim),
            state: Arc::clone(state),
            interrupts,
            place,
        };
        of_session.insert(claim.id.number, waiter);
        drop(waiters);
        if was_empty {
            self.0.first_waiter.notify_one();
        }
        QueuePlace {
            claim: Arc::clone(claim),
            queue: self.clone(),
        }
    }

    /// Makes all waiting turns ask the store again, because messages may have been lost.
    pub(super) fn retry_all(&self) {
        let waiters = self.0.waiters.lock();
        let all = waiters.values().flat_map(BTreeMap::values);
        all.for_each(|waiter| waiter.state.request_retry());
    }

    /// Makes all turns that wait for this session ask the store again.
    fn retry_session(&self, key: &SessionKey) {
        self.with_session(key, |waiters| {
            waiters
                .values()
                .for_each(|waiter| waiter.state.request_retry());
        });
    }

    /// Makes the waiting turn that already holds the lock ask the store again; `false` if no turn of this
    /// instance is the holder.
    fn retry_holder(&self, key: &SessionKey, holder: &LockHolder) -> bool {
        self.with_session(key, |waiters| {
            let mut waiters = waiters.values();
            let own = waiters.find(|waiter| holder.has_token(&waiter.claim.token));
            own.inspect(|own| own.state.request_retry()).is_some()
        })
    }

    /// Makes those of these claims that still wait for this session ask the store again.
    fn retry_claims(&self, key: &SessionKey, claims: &[ClaimId]) {
        self.with_session(key, |waiters| {
            let waiting = claims.iter().filter_map(|id| waiters.get(&id.number));
            waiting.for_each(|waiter| waiter.state.request_retry());
        });
    }

    /// Whether a turn of this instance interrupts this holder.
    fn interrupts(&self, key: &SessionKey, holder: &LockHolder) -> bool {
        self.with_session(key, |waiters| {
            let mut waiters = waiters.values();
            waiters.any(|waiter| waiter.interrupts.as_ref() == Some(holder))
        })
    }

    /// Notes the places of turns of this session: for each of these claims its place, or 0.
    fn note_places(&self, key: &SessionKey, claims: &[ClaimId], places: &[u32]) {
        let until = Instant::now() + PLACE_AGE;
        self.with_session(key, |waiters| {
            let places = places.iter().chain(repeat(&0));
            for (claim, known) in claims.iter().zip(places) {
                let waiter = waiters.get(&claim.number);
                if let Some(place) = waiter.and_then(|waiter| waiter.place.as_ref()) {
                    place.set(Some(*known).filter(|known| *known > 0), until);
                }
            }
        });
    }

    fn with_session<T>(&self, key: &SessionKey, act: impl FnOnce(&SessionWaiters) -> T) -> T {
        static NOBODY: SessionWaiters = BTreeMap::new();
        act(self.0.waiters.lock().get(key).unwrap_or(&NOBODY))
    }

    /// The queues to watch; `dead` has the holders that are known to be dead.
    fn to_watch(&self, dead: &HashMap<SessionKey, DeadHolder>) -> Vec<WatchedQueue> {
        let waiters = self.0.waiters.lock();
        let queues = waiters.iter().map(|(key, waiters)| WatchedQueue {
            key: key.clone(),
            take_over: dead.get(key).cloned(),
            waiters: waiters.values().map(|waiter| waiter.claim.id).collect(),
            wants_places: waiters.values().any(|waiter| waiter.place.is_some()),
        });
        queues.collect()
    }

    fn leave(&self, claim: &Claim) {
        let mut waiters = self.0.waiters.lock();
        if let Some(of_session) = waiters.get_mut(&claim.key) {
            of_session.remove(&claim.id.number);
            if of_session.is_empty() {
                waiters.remove(&claim.key);
            }
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.queue.leave(&self.claim);
    }
}

// === the task ===

/// Watches the queues in which turns of the watcher's instance wait. Never ends.
pub(super) async fn watch_queues(mut watcher: QueueWatcher) {
    loop {
        let watched = watcher.queue.to_watch(&watcher.dead);
        if watched.is_empty() {
            watcher.dead.clear();
            watcher.queue.0.first_waiter.notified().await;
            sleep(WATCH_INTERVAL).await;
            continue;
        }
        let sessions: HashSet<_> = watched.iter().map(|watched| &watched.key).collect();
        watcher.dead.retain(|key, _| sessions.contains(key));
        // Earlier when a holder's instance may be dead, and at once when one was found dead.
        let mut next = Instant::now() + WATCH_INTERVAL;
        for batch in watched.chunks(BATCH) {
            let instance = watcher.issuer.instance();
            match watcher.store.watch(instance, batch).await {
                Ok(states) => {
                    let mut questions = Vec::new();
                    for (watched, state) in batch.iter().zip(states) {
                        let Some(state) = state else {
                            watcher.queue.retry_session(&watched.key);
                            continue;
                        };
                        let due = watcher.handle(watched, state, &mut questions).await;
                        next = due.map_or(next, |due| next.min(due));
                    }
                    // A question that isn't sent is asked again.
                    drop(join_all(questions).await);
                }
                Err(error) => {
                    tracing::debug!(%error, queues = batch.len(), "queues not watched");
                    // A turn that asks itself finds out for how long the store has not replied.
                    batch
                        .iter()
                        .for_each(|watched| watcher.queue.retry_session(&watched.key));
                }
            }
        }
        sleep_until(next.max(Instant::now() + MIN_INTERVAL)).await;
    }
}

/// The task that watches the queues of an instance.
pub(super) struct QueueWatcher {
    queue: WaitQueue,
    store: Arc<dyn Store>,
    issuer: Arc<ClaimIssuer>,
    heartbeat: Arc<Heartbeat>,
    inquiry: Arc<UseInquiry>,
    /// The holders that are known to be dead.
    dead: HashMap<SessionKey, DeadHolder>,
}

// === impl QueueWatcher ===

impl QueueWatcher {
    /// A watcher for the waiters in `queue`, which are turns of the issuer's instance.
    pub(super) fn new(
        queue: WaitQueue,
        store: Arc<dyn Store>,
        issuer: Arc<ClaimIssuer>,
        heartbeat: Arc<Heartbeat>,
        inquiry: Arc<UseInquiry>,
    ) -> Self {
        Self {
            queue,
            store,
            issuer,
            heartbeat,
            inquiry,
            dead: HashMap::new(),
        }
    }

    /// Handles what the store found in one queue. Gives when the queue has to be watched next; `None`: at the usual
    /// interval. Adds to `questions` what is to be sent to other instances.
    async fn handle(
        &mut self,
        watched: &WatchedQueue,
        state: QueueState,
        questions: &mut Vec<StoreFuture<bool>>,
    ) -> Option<Instant> {
        let key = &watched.key;
        if watched.wants_places {
            self.queue.note_places(key, &watched.waiters, &state.places);
        }
        let tried = watched.take_over.as_ref().map(|dead| &dead.holder);
        if let Some(tried) = tried.filter(|tried| state.holder.as_ref() != Some(tried)) {
            if state.took_over {
                self.heartbeat.record_takeover(key, tried);
            }
            self.dead.remove(key);
        }
        let Some(holder) = state.holder else {
            self.queue.retry_session(key);
            return None;
        };
        // A turn that was served since the watch was sent isn't among the waiters, so it doesn't ask.
        self.queue.retry_claims(key, &state.missing);
        if self.queue.retry_holder(key, &holder) {
            return None;
        }
        if self.queue.interrupts(key, &holder) {
            interrupt(&*self.store, &self.issuer, &holder).await;
        }
        if self.inquiry.is_doubtful(key, &holder) {
            self.dead.remove(key);
            return None;
        }
        match self.heartbeat.check_holder(&holder).await {
            Liveness::Dead { min_age } => {
                // A holder that was just tried has to get older first.
                let due = (tried != Some(&holder)).then(Instant::now);
                self.dead
                    .insert(key.clone(), DeadHolder { holder, min_age });
                due
            }
            Liveness::Alive { until } => {
                self.dead.remove(key);
                questions.extend(self.inquiry.ask(key, &holder));
                until
            }
        }
    }
}

/// Asks a holder to stop. A holder that isn't Seriatim, or whose instance has another prefix than the issuer's,
/// can't be asked. If the message gets lost, the next round sends another one.
pub(super) async fn interrupt(store: &dyn Store, issuer: &ClaimIssuer, holder: &LockHolder) {
    let turn = holder.turn().filter(|turn| turn.shares_prefix(issuer));
    if let Some(turn) = turn
        && let Err(error) = store
            .send_message(&turn.instance, Message::Interrupt(turn.id))
            .await
    {
        tracing::debug!(%error, holder = &*holder.redacted(), "interrupt not sent yet");
    }
}
