//! Keeps leases alive: one task that extends all locks which are due about now with one command.
//!
//! Leases of one interval drift together, because an extension takes along whatever is due within
//! the next half of its interval; so many held turns cost one command per interval, not one each.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::claim_state::ClaimState;
use super::{Claim, Store};

/// Extends the leases that it was told to watch. Its task ends when it is dropped.
#[derive(Debug)]
pub struct Extender {
    shared: Arc<ExtenderState>,
    task: AbortHandle,
}

/// A lease that is being extended, until this is dropped.
#[derive(Debug)]
pub(super) struct Extension {
    id: u64,
    shared: Arc<ExtenderState>,
}

#[derive(Debug, Default)]
struct ExtenderState {
    watched: Mutex<ExtendedLeases>,
    /// Something is due earlier than the task thinks.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct ExtendedLeases {
    entries: HashMap<u64, ExtendedLease>,
    by_due: BTreeSet<(Instant, u64)>,
    last_id: u64,
}

#[derive(Clone, Debug)]
struct ExtendedLease {
    claim: Arc<Claim>,
    standing: Arc<ClaimState>,
    every: Duration,
    due: Instant,
}

/// How many locks one command extends at most: about half a millisecond of the store's time, during
/// which it serves nobody else.
const BATCH: usize = 200;

/// When to try again after the store gave no answer; an interval shorter than that is kept.
const RETRY: Duration = Duration::from_millis(250);

// === impl Extender ===

impl Extender {
    /// Starts the task on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(store: Arc<dyn Store>) -> Self {
        let shared = Arc::new(ExtenderState::default());
        let task = tokio::spawn(extend_what_is_due(store, Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }

    /// Extends a lease, last promised by a command sent at `sent`, every so often.
    pub(super) fn watch(
        &self,
        claim: Arc<Claim>,
        standing: Arc<ClaimState>,
        sent: Instant,
        every: Duration,
    ) -> Extension {
        let entry = ExtendedLease {
            claim,
            standing,
            every,
            due: sent + every,
        };
        let mut watched = self.shared.lock();
        watched.last_id += 1;
        let id = watched.last_id;
        let earlier = watched
            .by_due
            .first()
            .is_none_or(|(first, _)| entry.due < *first);
        watched.insert(id, entry);
        drop(watched);
        if earlier {
            self.shared.earlier.notify_one();
        }
        Extension {
            id,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Extender {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.shared.lock().remove(self.id);
    }
}

async fn extend_what_is_due(store: Arc<dyn Store>, shared: Arc<ExtenderState>) {
    let mut failing = false;
    loop {
        let next = shared.lock().by_due.first().map(|(due, _)| *due);
        let due = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = shared.earlier.notified() => continue,
        }
        let batch = shared.lock().due(Instant::now());
        if batch.is_empty() {
            continue;
        }
        let claims: Vec<_> = batch
            .iter()
            .map(|(_, entry)| Arc::clone(&entry.claim))
            .collect();
        let sent = Instant::now();
        let extended = store.extend(&claims).await;
        let mut watched = shared.lock();
        match extended {
            Ok(extended) => {
                failing = false;
                for ((id, entry), still_held) in batch.iter().zip(extended) {
                    if still_held {
                        entry.standing.extend(sent, entry.claim.lease);
                        watched.reschedule(*id, sent + entry.every);
                    } else if watched.remove(*id).is_some() {
                        // Still watched, so it wasn't released in the meantime: it is a loss.
                        tracing::warn!(key = %entry.claim.key.redacted(), "lock was taken away");
                        entry.standing.lose();
                    }
                }
            }
            Err(error) => {
                // Once for each outage, and not four times a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, locks = batch.len(), "leases not extended; trying again");
                }
                let now = Instant::now();
                for (id, entry) in &batch {
                    // Past its deadline there is nothing left to extend, whether its holder stops
                    // or goes on without.
                    if entry.standing.loss(now).is_none() {
                        watched.reschedule(*id, now + RETRY.min(entry.every));
                    } else {
                        watched.remove(*id);
                    }
                }
            }
        }
    }
}

// === impl Shared ===

impl ExtenderState {
    fn lock(&self) -> MutexGuard<'_, ExtendedLeases> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Watched ===

impl ExtendedLeases {
    fn insert(&mut self, id: u64, entry: ExtendedLease) {
        self.by_due.insert((entry.due, id));
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: u64) -> Option<ExtendedLease> {
        let entry = self.entries.remove(&id)?;
        self.by_due.remove(&(entry.due, id));
        Some(entry)
    }

    /// Does nothing for an entry that was removed in the meantime: its turn is over.
    fn reschedule(&mut self, id: u64, due: Instant) {
        if let Some(entry) = self.remove(id) {
            self.insert(id, ExtendedLease { due, ..entry });
        }
    }

    /// What is due at `now`, and with it what will be within half of its interval. Empty if
    /// nothing is due yet.
    fn due(&self, now: Instant) -> Vec<(u64, ExtendedLease)> {
        let any = self.by_due.first().is_some_and(|(first, _)| *first <= now);
        let entries = self.by_due.iter().map(|(_, id)| (*id, &self.entries[id]));
        entries
            .take_while(|(_, entry)| any && entry.due <= now + entry.every / 2)
            .take(BATCH)
            .map(|(id, entry)| (id, entry.clone()))
            .collect()
    }
}
