//! What an operator sees and does.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use super::{MemoryClock, MemoryState, Notifications, SessionState};
use crate::key::{Keyspace, SessionKey};
use crate::lock::{Fence, LockHolder, LockInfo, Message, ScanPage};

// === impl Sessions ===

impl MemoryState {
    /// All keys of the space.
    pub(super) fn keys(&self, space: &Keyspace) -> Vec<SessionKey> {
        let keys = self.by_key.keys();
        let keys = keys.filter(|key| space.contains(key.as_str()));
        keys.cloned().collect()
    }

    /// How a lock stands.
    pub(super) fn look(&self, key: &SessionKey, lines: bool, now: Instant) -> LockInfo {
        let session = self.by_key.get(key);
        let lock = session.and_then(|session| session.lock.as_ref());
        let lock = lock.filter(|lock| now < lock.expires);
        let waiting = session.filter(|_| lines).into_iter();
        let waiting = waiting.flat_map(|session| session.line.values());
        LockInfo {
            holder: lock.map(|lock| LockHolder::from(&lock.token)),
            fence: lock.and_then(|lock| lock.fence),
            age: lock.and_then(|lock| lock.since).map(|since| now - since),
            left: lock.map(|lock| lock.expires - now),
            waiters: session.map_or(0, |session| session.line.len()),
            line: waiting
                .map(|waiter| LockHolder::from(&waiter.token))
                .collect(),
        }
    }
}

/// Some of these keys: those behind `from`, in an order that doesn't change while keys come and go.
pub(super) fn scanned(keys: Vec<SessionKey>, from: Option<u64>, about: usize) -> ScanPage {
    let place = |key: &SessionKey| {
        // With the same secret in each process, or rather with none.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    };
    let placed = keys.into_iter().map(|key| (place(&key), key));
    let mut placed: Vec<_> = placed.filter(|(place, _)| Some(*place) > from).collect();
    placed.sort_unstable_by_key(|(place, _)| *place);
    let last = about.max(1).min(placed.len()).checked_sub(1);
    let last = last.map(|last| placed[last].0);
    // All of one place together, so that none is passed over.
    let count = placed.partition_point(|(place, _)| Some(*place) <= last);
    let next = last.filter(|_| count < placed.len());
    placed.truncate(count);
    ScanPage {
        keys: placed.into_iter().map(|(_, key)| key).collect(),
        next,
    }
}

// === impl Session ===

impl SessionState {
    /// Takes the lock away from this holder, if it is still this one's.
    pub(super) fn force(
        &mut self,
        holder: &LockHolder,
        clock: &mut MemoryClock<'_>,
        told: &mut Notifications<'_>,
    ) -> Option<Fence> {
        let own = |token: &_| holder.is(token);
        self.holder(None, clock.now)
            .as_ref()
            .filter(|token| own(token))?;
        self.lock = None;
        if let Some(turn) = holder.turn() {
            told.tell(&turn.instance, Message::Taken(turn.id));
        }
        let fence = Fence(clock.next());
        self.hand_over(None, clock.now, told);
        Some(fence)
    }
}
