//! What an operator sees of the store in memory, and what an operator does to a lock and its queue.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use super::MemoryState;
use super::session::{MemoryCommand, SessionState};
use crate::key::{Keyspace, SessionKey};
use crate::lock::{ClaimId, Fence, LockHolder, LockInfo, Message, ScanCursor, ScanPage};

// === impl MemoryState ===

impl MemoryState {
    /// All keys that belong to the key space.
    pub(super) fn keys(&self, space: &Keyspace) -> Vec<SessionKey> {
        let keys = self.sessions.keys();
        let keys = keys.filter(|key| space.contains(key.as_str()));
        keys.cloned().collect()
    }

    /// Reads one lock, and its waiters if `with_queue` is set.
    pub(super) fn inspect(&self, key: &SessionKey, with_queue: bool, now: Instant) -> LockInfo {
        let session = self.sessions.get(key);
        let lock = session.and_then(|session| session.lock.as_ref());
        let lock = lock.filter(|lock| now < lock.expires);
        let queue = session.and_then(|session| session.queue.as_ref());
        let waiters = queue.filter(|_| with_queue).into_iter();
        let waiters = waiters.flat_map(|queue| queue.iter());
        LockInfo {
            holder: lock.map(|lock| LockHolder::from(&lock.token)),
            fence: lock.and_then(|lock| lock.fence),
            age: lock.and_then(|lock| lock.since).map(|since| now - since),
            ttl: lock.map(|lock| lock.expires - now),
            waiters: queue.map_or(0, |queue| queue.len()),
            queue: waiters
                .map(|(_, waiter)| LockHolder::from(&waiter.token))
                .collect(),
        }
    }
}

/// A page of about `count` keys after the cursor `from`, in an order that doesn't change while keys
/// come and go: the order of their hashes.
pub(super) fn page(keys: Vec<SessionKey>, from: Option<ScanCursor>, count: usize) -> ScanPage {
    let hash = |key: &SessionKey| {
        // Not a randomly seeded hasher: the order has to be the same for every page.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    };
    let from = from.map(|from| from.position);
    let hashed = keys.into_iter().map(|key| (hash(&key), key));
    let mut hashed: Vec<_> = hashed.filter(|(hash, _)| Some(*hash) > from).collect();
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    let last = count.max(1).min(hashed.len()).checked_sub(1);
    let last = last.map(|last| hashed[last].0);
    // All keys with the last hash, so that the next page misses none.
    let end = hashed.partition_point(|(hash, _)| Some(*hash) <= last);
    let next = last.filter(|_| end < hashed.len());
    hashed.truncate(end);
    ScanPage {
        keys: hashed.into_iter().map(|(_, key)| key).collect(),
        next: next.map(|position| ScanCursor {
            server: 0,
            position,
        }),
    }
}

// === impl SessionState ===

impl SessionState {
    /// Takes the lock away from this holder and offers it to the first waiter; `None` if the holder
    /// doesn't have it.
    pub(super) fn force_release(
        &mut self,
        holder: &LockHolder,
        command: &mut MemoryCommand<'_>,
    ) -> Option<Fence> {
        let current = self.holder(command.now);
        current.filter(|token| holder.has_token(token))?;
        self.lock = None;
        if let Some(turn) = holder.turn() {
            command.send(&turn.instance, Message::Taken(turn.id));
        }
        let fence = Fence(command.next_number());
        self.offer(None, command);
        Some(fence)
    }

    /// Takes a waiter out of the queue for good; `false` if it isn't in the queue.
    pub(super) fn dequeue(&mut self, id: ClaimId, command: &mut MemoryCommand<'_>) -> bool {
        let waiter = self.queue.as_mut().and_then(|queue| queue.dequeue(id));
        let Some(waiter) = waiter else {
            return false;
        };
        command.send(&waiter.instance, Message::Dequeued(id));
        true
    }
}
