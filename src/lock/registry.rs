//! The roll of this instance's claims: by which a message finds the turn that it is about.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::claim_state::ClaimState;
use super::{ClaimId, Epoch};

/// All claims that this process has made and not given up. Cheap to clone.
#[derive(Clone)]
pub(super) struct ClaimRegistry(Arc<RegistryState>);

struct RegistryState {
    epoch: Epoch,
    /// Several, so that threads seldom meet.
    shards: [Mutex<RegisteredClaims>; SHARDS],
}

/// An entry in the roll, until it is dropped.
pub(super) struct ClaimRegistration {
    number: u64,
    roll: ClaimRegistry,
}

/// Where each claim stands; `None`: its turn is over, and its release is waited for.
type RegisteredClaims = HashMap<u64, Option<Arc<ClaimState>>>;

const SHARDS: usize = 16;

// === impl Roll ===

impl ClaimRegistry {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self(Arc::new(RegistryState {
            epoch,
            shards: Default::default(),
        }))
    }

    /// Enters a claim, before the first command about it is sent.
    pub(super) fn enter(&self, id: ClaimId, standing: &Arc<ClaimState>) -> ClaimRegistration {
        self.0
            .shard(id.number)
            .insert(id.number, Some(Arc::clone(standing)));
        ClaimRegistration {
            number: id.number,
            roll: self.clone(),
        }
    }

    /// Where a claim stands; `None`: it isn't this process', or it is over.
    pub(super) fn find(&self, id: ClaimId) -> Option<Arc<ClaimState>> {
        if id.epoch != self.0.epoch {
            return None;
        }
        self.0.shard(id.number).get(&id.number).cloned().flatten()
    }

    /// Whether a claim is this process' and was given up: there may be something left of it in the
    /// store, but no turn runs under it.
    pub(super) fn gave_up(&self, id: ClaimId) -> bool {
        id.epoch == self.0.epoch && !self.0.shard(id.number).contains_key(&id.number)
    }

    /// Does something about every claim.
    pub(super) fn each(&self, act: impl Fn(&ClaimState)) {
        for shard in &self.0.shards {
            let claims: Vec<_> = lock(shard).values().flatten().cloned().collect();
            claims.iter().for_each(|standing| act(standing));
        }
    }
}

impl fmt::Debug for ClaimRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roll").finish_non_exhaustive()
    }
}

impl RegistryState {
    fn shard(&self, number: u64) -> MutexGuard<'_, RegisteredClaims> {
        lock(&self.shards[number as usize % SHARDS])
    }
}

fn lock(shard: &Mutex<RegisteredClaims>) -> MutexGuard<'_, RegisteredClaims> {
    // Nothing in here panics while holding it; a poisoned lock is as good as any.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClaimRegistration {
    /// The turn is over: from now on no message reaches it and no loss, but until this is dropped
    /// nobody takes over what is left of it in the store either.
    pub(super) fn retire(&self) {
        self.roll.0.shard(self.number).insert(self.number, None);
    }
}

impl Drop for ClaimRegistration {
    fn drop(&mut self) {
        self.roll.0.shard(self.number).remove(&self.number);
    }
}
