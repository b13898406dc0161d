//! The store in the process itself: one replica only, and the reference semantics for any other.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::{
    AcquireReply, AcquireRequest, Claim, ClaimId, DeadHolder, Epoch, Fence, HeartbeatReply,
    InstanceLiveness, LockHolder, LockInfo, Message, MessageHandler, OFFER, QueueOptions,
    QueueState, STALE, ScanPage, Store, StoreFuture, Ticket, Token, WatchedQueue, Withdrawal,
};
use crate::key::{Keyspace, SessionKey};

mod inspect;

/// Locks and lines in a map. Expiry is by the monotonic clock, looked at when somebody asks.
#[derive(Default)]
pub struct MemoryStore {
    sessions: Mutex<MemoryState>,
    ears: Mutex<HashMap<Arc<str>, Arc<dyn MessageHandler>>>,
}

#[derive(Default)]
struct MemoryState {
    by_key: HashMap<SessionKey, SessionState>,
    instances: HashMap<Box<str>, LiveInstance>,
    last: u64,
}

/// One session: gone when it has neither holder nor line.
#[derive(Debug, Default)]
struct SessionState {
    lock: Option<HeldLock>,
    line: BTreeMap<Ticket, QueuedWaiter>,
    /// When each instance with somebody in the line was last heard of.
    seen: HashMap<Arc<str>, Instant>,
    /// The newest turn that replaced all older ones.
    newest: Option<Ticket>,
}

#[derive(Debug)]
struct HeldLock {
    token: Token,
    expires: Instant,
    /// When it was granted; `None` for an offer that nobody has taken up.
    since: Option<Instant>,
    fence: Option<Fence>,
}

#[derive(Debug)]
struct QueuedWaiter {
    id: ClaimId,
    token: Token,
    instance: Arc<str>,
}

/// An instance that has given a sign of life.
struct LiveInstance {
    epoch: Epoch,
    expires: Instant,
}

/// What is to be told once nothing is locked any more, and who can be told anything.
struct Notifications<'e> {
    ears: &'e HashMap<Arc<str>, Arc<dyn MessageHandler>>,
    messages: Vec<(Arc<dyn MessageHandler>, Message)>,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells what comes for this instance to `ears` from now on.
    pub fn listen(&self, instance: &Arc<str>, ears: Arc<dyn MessageHandler>) {
        self.ears().insert(Arc::clone(instance), ears);
    }

    /// Whether nobody holds or waits for anything. What ran out and wasn't asked for since counts as
    /// being there.
    pub fn is_empty(&self) -> bool {
        self.lock().by_key.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, MemoryState> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ears(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<dyn MessageHandler>>> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to a session, forgets it if nothing is left of it, and tells who is concerned.
    fn with<T>(
        &self,
        key: &SessionKey,
        act: impl FnOnce(&mut SessionState, &mut MemoryClock<'_>, &mut Notifications<'_>) -> T,
    ) -> T {
        let ears = self.ears();
        let mut told = Notifications {
            ears: &ears,
            messages: Vec::new(),
        };
        let mut sessions = self.lock();
        let sessions_ = &mut *sessions;
        let mut clock = MemoryClock {
            now: Instant::now(),
            last: &mut sessions_.last,
        };
        let session = match sessions_.by_key.get_mut(key) {
            Some(session) => session,
            None => sessions_.by_key.entry(key.clone()).or_default(),
        };
        let result = act(session, &mut clock, &mut told);
        if session.is_over(clock.now) {
            sessions_.by_key.remove(key);
        }
        drop(sessions);
        let messages = told.messages;
        drop(ears);
        for (ears, message) in messages {
            ears.hear(message);
        }
        result
    }
}

fn answer<T: Send + 'static>(answer: T) -> StoreFuture<T> {
    Box::pin(ready(Ok(answer)))
}

impl Store for MemoryStore {
    fn acquire(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> StoreFuture<AcquireReply> {
        answer(self.with(&claim.key, |session, clock, told| {
            session.acquire(claim, ask, clock, told)
        }))
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<bool>> {
        let now = Instant::now();
        let mut sessions = self.lock();
        let extended = claims.iter().map(|claim| {
            let session = sessions.by_key.get_mut(&claim.key);
            let own = session.and_then(|session| session.held_by(&claim.token, now));
            own.map(|lock| lock.expires = now + claim.lease).is_some()
        });
        answer(extended.collect())
    }

    fn release(&self, claim: &Claim) -> StoreFuture<bool> {
        answer(self.with(&claim.key, |session, clock, told| {
            session.leave(|waiter| waiter.id == claim.id);
            let freed = session.held_by(&claim.token, clock.now).is_some();
            if freed {
                session.lock = None;
                session.hand_over(None, clock.now, told);
            }
            freed
        }))
    }

    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal> {
        // It is done when this returns, and nothing can arrive late.
        drop(self.release(claim));
        answer(Withdrawal::ForGood)
    }

    fn watch(&self, instance: &str, lines: &[WatchedQueue]) -> StoreFuture<Vec<QueueState>> {
        let found = lines.iter().map(|line| {
            self.with(&line.key, |session, clock, told| {
                let mut waiting = session.line.values();
                let present = line
                    .waiters
                    .iter()
                    .filter(|id| waiting.clone().any(|waiter| waiter.id == **id))
                    .count();
                if let Some(own) = waiting.find(|waiter| *waiter.instance == *instance) {
                    session.seen.insert(Arc::clone(&own.instance), clock.now);
                }
                let holder = session
                    .holder(line.dead.as_ref(), clock.now)
                    .or_else(|| session.hand_over(None, clock.now, told));
                QueueState {
                    present,
                    holder: holder.as_ref().map(LockHolder::from),
                }
            })
        });
        answer(found.collect())
    }

    fn tell(&self, instance: &str, message: Message) -> StoreFuture<()> {
        let ears = self.ears().get(instance).cloned();
        if let Some(ears) = ears {
            ears.hear(message);
        }
        answer(())
    }

    fn scan(&self, space: &Keyspace, from: Option<u64>, about: usize) -> StoreFuture<ScanPage> {
        let keys = self.lock().keys(space);
        answer(inspect::scanned(keys, from, about))
    }

    fn look(&self, keys: &[SessionKey], lines: bool) -> StoreFuture<Vec<LockInfo>> {
        let (now, sessions) = (Instant::now(), self.lock());
        let looks = keys.iter().map(|key| sessions.look(key, lines, now));
        answer(looks.collect())
    }

    fn force(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>> {
        answer(self.with(key, |session, clock, told| {
            session.force(holder, clock, told)
        }))
    }

    fn beat(
        &self,
        instance: &str,
        epoch: Epoch,
        for_so_long: Duration,
        taken: bool,
    ) -> StoreFuture<HeartbeatReply> {
        let now = Instant::now();
        let mut sessions = self.lock();
        let known = sessions.instances.get(instance);
        let beat = match known.filter(|sign| now < sign.expires) {
            Some(sign) if sign.epoch == epoch => HeartbeatReply::Kept,
            Some(_) if !taken => return answer(HeartbeatReply::Refused),
            _ => HeartbeatReply::Begun,
        };
        let expires = now + for_so_long;
        sessions
            .instances
            .insert(instance.into(), LiveInstance { epoch, expires });
        answer(beat)
    }

    fn stop(&self, instance: &str, epoch: Epoch) -> StoreFuture<()> {
        let mut sessions = self.lock();
        if sessions
            .instances
            .get(instance)
            .is_some_and(|sign| sign.epoch == epoch)
        {
            sessions.instances.remove(instance);
        }
        answer(())
    }

    fn sign_of(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>> {
        let now = Instant::now();
        let sessions = self.lock();
        let living = sessions.instances.get(instance);
        let living = living.filter(|living| now < living.expires);
        answer(living.map(|living| InstanceLiveness {
            epoch: living.epoch,
            lasts: living.expires - now,
        }))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("sessions", &self.lock().by_key)
            .finish_non_exhaustive()
    }
}

// === impl Session ===

impl SessionState {
    fn acquire(
        &mut self,
        claim: &Claim,
        ask: &AcquireRequest,
        clock: &mut MemoryClock<'_>,
        told: &mut Notifications<'_>,
    ) -> AcquireReply {
        let mut holder = self.holder(None, clock.now);
        if let Some(ticket) = ask.wait.and_then(|place| place.ticket)
            && holder.as_ref() != Some(&claim.token)
        {
            if Some(ticket) < self.newest {
                // It has lost its place to a newer turn, and has not heard of it.
                self.leave(|waiter| waiter.id == claim.id);
                return AcquireReply::Superseded;
            }
            // Before the lock is handed over, perhaps to somebody who came later.
            self.join(ticket, claim);
        }
        if ask.dead.is_some() {
            holder = self.holder(ask.dead.as_ref(), clock.now);
        }
        let mut replaces = false;
        if holder.is_none() {
            let place = ask.wait.filter(|place| place.ticket.is_none());
            replaces = place.is_some_and(|place| place.interrupts) && !self.line.is_empty();
            holder = self.hand_over(Some(claim.id), clock.now, told);
        }
        match holder {
            Some(token) if token != claim.token => self.queue(claim, ask.wait, token, clock, told),
            _ => {
                if replaces {
                    // Whoever was dropped from the line on the way is older than this turn.
                    self.newest = Some(Ticket(clock.next()));
                }
                self.leave(|waiter| waiter.id == claim.id);
                let fence = Fence(clock.next());
                self.lock = Some(HeldLock {
                    token: claim.token.clone(),
                    expires: clock.now + claim.lease,
                    since: Some(clock.now),
                    fence: Some(fence),
                });
                AcquireReply::Granted(fence)
            }
        }
    }

    /// The lock is busy: joins the line, if the claim is to wait.
    fn queue(
        &mut self,
        claim: &Claim,
        place: Option<QueueOptions>,
        holder: Token,
        clock: &mut MemoryClock<'_>,
        told: &mut Notifications<'_>,
    ) -> AcquireReply {
        let holder = LockHolder::from(&holder);
        let Some(place) = place else {
            return AcquireReply::Busy(holder);
        };
        let standing = self
            .line
            .iter()
            .find_map(|(ticket, waiter)| (waiter.id == claim.id).then_some(*ticket));
        let ticket = match standing {
            Some(ticket) => ticket,
            None => {
                let most = place.max_waiters as usize;
                if !place.interrupts && self.line.len() >= most {
                    self.drop_stale(clock.now);
                    if self.line.len() >= most {
                        return AcquireReply::Full;
                    }
                }
                let ticket = Ticket(clock.next());
                self.join(ticket, claim);
                ticket
            }
        };
        self.seen.insert(Arc::clone(&claim.instance), clock.now);
        if place.interrupts && self.newest < Some(ticket) {
            self.newest = Some(ticket);
            let newer = self.line.split_off(&ticket);
            for (_, older) in std::mem::replace(&mut self.line, newer) {
                told.tell(&older.instance, Message::Superseded(older.id));
            }
        }
        AcquireReply::Waiting(ticket, holder)
    }

    /// Who holds the lock now, unless it is somebody dead: then it is free.
    fn holder(&mut self, dead: Option<&DeadHolder>, now: Instant) -> Option<Token> {
        let lock = self.lock.as_ref()?;
        if lock.expires <= now || dead.is_some_and(|dead| lock.is_of(dead, now)) {
            self.lock = None;
            return None;
        }
        Some(lock.token.clone())
    }

    fn held_by(&mut self, token: &Token, now: Instant) -> Option<&mut HeldLock> {
        let lock = self.lock.as_mut()?;
        (lock.token == *token && now < lock.expires).then_some(lock)
    }

    /// Gives the free lock to the first in line who is alive and can hear of it, or is asking right
    /// now, as an offer. If nobody can hear of it, the first gets it anyway.
    fn hand_over(
        &mut self,
        asking: Option<ClaimId>,
        now: Instant,
        told: &mut Notifications<'_>,
    ) -> Option<Token> {
        let (mut next, mut stale) = (None, Vec::new());
        for (ticket, waiter) in &self.line {
            if asking == Some(waiter.id) {
                next = Some(*ticket);
                break;
            }
            if !is_alive(&self.seen, &waiter.instance, now) {
                stale.push(*ticket);
            } else if told.tell(&waiter.instance, Message::Granted(waiter.id)) {
                next = Some(*ticket);
                break;
            } else {
                next = next.or(Some(*ticket));
            }
        }
        self.pass_over(stale);
        let next = self.line.remove(&next?)?;
        self.lock = Some(HeldLock {
            token: next.token.clone(),
            expires: now + OFFER,
            since: None,
            fence: None,
        });
        Some(next.token)
    }

    fn join(&mut self, ticket: Ticket, claim: &Claim) {
        let waiter = QueuedWaiter {
            id: claim.id,
            token: claim.token.clone(),
            instance: Arc::clone(&claim.instance),
        };
        self.line.insert(ticket, waiter);
    }

    fn leave(&mut self, is_it: impl Fn(&QueuedWaiter) -> bool) {
        self.line.retain(|_, waiter| !is_it(waiter));
    }

    /// Takes all out of the line whose instances weren't heard of lately.
    fn drop_stale(&mut self, now: Instant) {
        let stale = self.line.iter();
        let stale = stale.filter(|(_, waiter)| !is_alive(&self.seen, &waiter.instance, now));
        self.pass_over(stale.map(|(ticket, _)| *ticket).collect());
    }

    fn pass_over(&mut self, stale: Vec<Ticket>) {
        for ticket in stale {
            if let Some(waiter) = self.line.remove(&ticket) {
                self.seen.remove(&waiter.instance);
            }
        }
    }

    /// Whether nobody is left. The mark of a turn that replaced others stays as long as the session
    /// does, for who was replaced and doesn't know it yet.
    fn is_over(&mut self, now: Instant) -> bool {
        if self.line.is_empty() {
            self.seen.clear();
        }
        self.line.is_empty() && self.holder(None, now).is_none()
    }
}

impl HeldLock {
    fn is_of(&self, dead: &DeadHolder, now: Instant) -> bool {
        let held_long = self.since.is_some_and(|since| since + dead.after < now);
        dead.holder.is(&self.token) && (dead.after.is_zero() || held_long)
    }
}

fn is_alive(seen: &HashMap<Arc<str>, Instant>, instance: &str, now: Instant) -> bool {
    seen.get(instance).is_some_and(|seen| now < *seen + STALE)
}

// === impl Told ===

impl Notifications<'_> {
    /// Has it told to the instance; `false` if nobody there would hear it.
    fn tell(&mut self, instance: &str, message: Message) -> bool {
        let ears = self.ears.get(instance).cloned();
        ears.map(|ears| self.messages.push((ears, message)))
            .is_some()
    }
}

// === clock ===

/// Numbers that rise: the wall clock's microseconds, so that they rise across restarts, or the last
/// one plus one where it was set back.
struct MemoryClock<'l> {
    now: Instant,
    last: &'l mut u64,
}

impl MemoryClock<'_> {
    fn next(&mut self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX - 1);
        *self.last = micros.max(*self.last + 1);
        *self.last
    }
}
