//! The registry of this process's claims, in which a message finds the state of its claim.
//!
//! Invariant: a claim is registered before its first command is sent, and until its release has a
//! reply or goes on in the background. A claim of this process that is not registered has no turn.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use tokio::time::Instant;

use super::claim_state::ClaimState;
use super::number_map::NumberMap;
use super::{ClaimId, Epoch, LockHolder};
use crate::key::SessionKey;
use crate::metrics::LockAges;

/// All claims that this process has made and not abandoned. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct ClaimRegistry(Arc<RegistryState>);

#[derive(Debug)]
struct RegistryState {
    epoch: Epoch,
    /// Claims by number, spread over several mutexes so that threads seldom wait for each other.
    shards: [Mutex<RegisteredClaims>; SHARDS],
}

/// A claim's entry in the registry. Dropping it removes the entry.
pub(super) struct ClaimRegistration {
    number: u64,
    registry: ClaimRegistry,
}

/// Claims by number; `None` while a turn that is over waits for the reply to its release.
type RegisteredClaims = NumberMap<Option<RegisteredClaim>>;

#[derive(Debug)]
struct RegisteredClaim {
    key: SessionKey,
    state: Arc<ClaimState>,
}

const SHARDS: usize = 16;

// === impl ClaimRegistry ===

impl ClaimRegistry {
    /// An empty registry for the process with this epoch.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self(Arc::new(RegistryState {
            epoch,
            shards: Default::default(),
        }))
    }

    /// Registers a claim to this session. Must be called before its first command is sent.
    pub(super) fn register(
        &self,
        id: ClaimId,
        key: &SessionKey,
        state: &Arc<ClaimState>,
    ) -> ClaimRegistration {
        let claim = RegisteredClaim {
            key: key.clone(),
            state: Arc::clone(state),
        };
        self.shard(id.number).insert(id.number, Some(claim));
        ClaimRegistration {
            number: id.number,
            registry: self.clone(),
        }
    }

    /// The state of a claim; `None` if another process made it, or its turn is over.
    pub(super) fn find(&self, id: ClaimId) -> Option<Arc<ClaimState>> {
        if id.epoch != self.0.epoch {
            return None;
        }
        let shard = self.shard(id.number);
        let claim = shard.get(&id.number)?.as_ref()?;
        Some(Arc::clone(&claim.state))
    }

    /// The claims that have got the lock of this session, and whose turns run. A turn that goes on without its
    /// lock counts until the lock is lost. Looks at every claim.
    pub(super) fn running(&self, key: &SessionKey) -> Vec<Arc<ClaimState>> {
        let now = Instant::now();
        let is_running = |state: &ClaimState| {
            let keeps_on = state.stops_when_lost() || state.loss(now).is_none();
            state.held_since().is_some() && keeps_on
        };
        let mut running = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.lock();
            let claims = shard.values().flatten();
            let of_session = claims.filter(|claim| claim.key == *key && is_running(&claim.state));
            running.extend(of_session.map(|claim| Arc::clone(&claim.state)));
        }
        running
    }

    /// Whether this process made the claim.
    pub(super) fn is_own(&self, id: ClaimId) -> bool {
        id.epoch == self.0.epoch
    }

    /// Whether this process made the claim and abandoned it: the store may still have it, but no turn
    /// runs under it.
    pub(super) fn is_abandoned(&self, id: ClaimId) -> bool {
        id.epoch == self.0.epoch && !self.shard(id.number).contains_key(&id.number)
    }

    /// Whether the holder is a claim of this process without a turn: its release is on its way, or the store has
    /// the lock again after it.
    pub(super) fn has_abandoned(&self, holder: &LockHolder) -> bool {
        let turn = holder.turn();
        turn.is_some_and(|turn| self.is_abandoned(turn.id))
    }

    /// Whether this process made the claim, and its turn is over.
    pub(super) fn is_over(&self, id: ClaimId) -> bool {
        id.epoch == self.0.epoch && self.find(id).is_none_or(|state| state.is_settling())
    }

    /// Calls `act` for the state of every claim, without holding a mutex.
    pub(super) fn for_each(&self, act: impl Fn(&ClaimState)) {
        for shard in &self.0.shards {
            let states = |shard: &RegisteredClaims| -> Vec<_> {
                let claims = shard.values().flatten();
                claims.map(|claim| Arc::clone(&claim.state)).collect()
            };
            let states = states(&shard.lock());
            states.iter().for_each(|state| act(state));
        }
    }

    /// The age of the oldest lock that a claim holds, and the longest silence of a turn that holds one.
    pub(super) fn ages(&self) -> LockAges {
        let (now, mut ages) = (Instant::now(), LockAges::default());
        for shard in &self.0.shards {
            for RegisteredClaim { state, .. } in shard.lock().values().flatten() {
                let Some(since) = state.held_since() else {
                    continue;
                };
                ages.oldest = ages.oldest.max(now.saturating_duration_since(since));
                if let Some(last) = state.last_byte_at() {
                    // The wait for the lock is no silence of the turn.
                    let silence = now.saturating_duration_since(last.max(since));
                    ages.quietest = ages.quietest.max(silence);
                }
            }
        }
        ages
    }

    fn shard(&self, number: u64) -> MutexGuard<'_, RegisteredClaims> {
        self.0.shards[number as usize % SHARDS].lock()
    }
}

// === impl ClaimRegistration ===

impl ClaimRegistration {
    /// Notes that the turn is over. From now on no message reaches it. Until the registration is
    /// dropped, no turn of this process takes over what the store still has of the claim.
    pub(super) fn retire(&self) {
        if let Some(claim) = self.registry.shard(self.number).get_mut(&self.number) {
            *claim = None;
        }
    }
}

impl Drop for ClaimRegistration {
    fn drop(&mut self) {
        self.registry.shard(self.number).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::deadline::{AtomicInstant, ByteClock};

    const SECOND: Duration = Duration::from_secs(1);

    impl ByteClock for AtomicInstant {
        fn last_byte_at(&self) -> Option<Instant> {
            self.load()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_lock_and_the_quietest_turn_are_those_of_locks_that_are_held() {
        crate::time_limit::limit_this_test();
        let registry = ClaimRegistry::new(Epoch(7));
        let state = || Arc::new(ClaimState::new(None, true));
        let id = |number| ClaimId {
            epoch: Epoch(7),
            number,
        };
        let ages = |oldest, quietest| LockAges {
            oldest: SECOND * oldest,
            quietest: SECOND * quietest,
        };
        let (first, second, waiter) = (state(), state(), state());
        let clock = Arc::new(AtomicInstant::new(Instant::now()));
        let key = SessionKey::literal("k");
        let _waiting = registry.register(id(1), &key, &waiter);
        let over = registry.register(id(2), &key, &first);
        tokio::time::advance(SECOND * 10).await;
        assert_eq!(registry.ages(), ages(0, 0), "who waits holds nothing");
        first.extend(Instant::now(), SECOND * 60);
        first.follow(Arc::clone(&clock) as _);
        tokio::time::advance(SECOND).await;
        assert_eq!(registry.ages(), ages(1, 1), "the wait counts for neither");
        let _held = registry.register(id(17), &key, &second);
        second.extend(Instant::now(), SECOND * 60);
        clock.store(Instant::now());
        tokio::time::advance(SECOND).await;
        first.extend(Instant::now(), SECOND * 60);
        assert_eq!(
            registry.ages(),
            ages(2, 1),
            "an extension makes no lock younger, and a byte ends the silence"
        );
        over.retire();
        assert_eq!(
            registry.ages(),
            ages(1, 0),
            "a turn that is over counts no more"
        );
    }
}
