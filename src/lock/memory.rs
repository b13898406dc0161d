//! The store in the process itself: one replica only, and the reference semantics for any other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::{Answer, Claim, Fence, Pending, Store, Token, Withdrawn};
use crate::key::SessionKey;

/// Locks in a map. Expiry is by the monotonic clock, looked at when somebody asks.
#[derive(Debug, Default)]
pub struct MemoryStore {
    locks: Mutex<Locks>,
}

#[derive(Debug, Default)]
struct Locks {
    held: HashMap<SessionKey, Lock>,
    last_fence: u64,
}

#[derive(Debug)]
struct Lock {
    token: Token,
    fence: Fence,
    expires: Instant,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Locks> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn acquire(&self, claim: &Arc<Claim>) -> Pending<Answer> {
        let now = Instant::now();
        Box::pin(ready(Ok(self.lock().acquire(claim, now))))
    }

    fn extend(&self, claims: &[Arc<Claim>]) -> Pending<Vec<bool>> {
        let now = Instant::now();
        let mut locks = self.lock();
        let extended = claims
            .iter()
            .map(|claim| locks.extend(claim, now))
            .collect();
        Box::pin(ready(Ok(extended)))
    }

    fn release(&self, claim: &Claim) -> Pending<bool> {
        let now = Instant::now();
        Box::pin(ready(Ok(self.lock().release(claim, now))))
    }

    fn withdraw(&self, claim: &Claim) -> Pending<Withdrawn> {
        self.lock().release(claim, Instant::now());
        Box::pin(ready(Ok(Withdrawn::ForGood)))
    }
}

// === impl Locks ===

impl Locks {
    fn acquire(&mut self, claim: &Claim, now: Instant) -> Answer {
        let fence = Fence(micros_since_1970().max(self.last_fence + 1));
        let lock = Lock {
            token: claim.token.clone(),
            fence,
            expires: now + claim.lease,
        };
        match self.held.entry(claim.key.clone()) {
            Entry::Occupied(mut taken) if taken.get().expires > now => {
                if taken.get().token != claim.token {
                    return Answer::Busy;
                }
                taken.get_mut().expires = lock.expires;
                return Answer::Granted(taken.get().fence);
            }
            Entry::Occupied(mut expired) => {
                expired.insert(lock);
            }
            Entry::Vacant(free) => {
                free.insert(lock);
            }
        }
        self.last_fence = fence.0;
        Answer::Granted(fence)
    }

    fn extend(&mut self, claim: &Claim, now: Instant) -> bool {
        let own = self
            .held
            .get_mut(&claim.key)
            .filter(|lock| lock.is(claim, now));
        own.map(|lock| lock.expires = now + claim.lease).is_some()
    }

    fn release(&mut self, claim: &Claim, now: Instant) -> bool {
        match self.held.entry(claim.key.clone()) {
            Entry::Occupied(lock) if lock.get().token == claim.token => lock.remove().expires > now,
            _ => false,
        }
    }
}

// === impl Lock ===

impl Lock {
    fn is(&self, claim: &Claim, now: Instant) -> bool {
        self.token == claim.token && now < self.expires
    }
}

/// The wall clock, for fences that rise across restarts; [`Locks::last_fence`] keeps them rising
/// when it is set back.
fn micros_since_1970() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX - 1)
}
