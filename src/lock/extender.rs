//! Extends leases: one task extends all locks that are due at about the same time with one command.
//!
//! Leases with the same interval move together, because a command also extends what is due within
//! the next half of its interval. So many held locks cost one command per interval in all.
//!
//! If the store is another server, all locks are due at once, also those that are never extended: the store says
//! which of them it still has.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::claim_state::ClaimState;
use super::number_map::NumberMap;
use super::{Claim, Store};

/// Extends the leases that are added to it, and notices locks that the store has lost. Dropping it ends its task.
#[derive(Debug)]
pub(super) struct Extender {
    shared: Arc<ExtenderState>,
    /// `None`: the store is never another server.
    server_changes: Option<watch::Receiver<Option<Instant>>>,
    _task: AbortOnDropHandle<()>,
}

/// A lock in an [`Extender`]. Dropping it ends the extensions.
#[derive(Debug)]
pub(super) struct Extension {
    id: u64,
    shared: Arc<ExtenderState>,
}

#[derive(Debug, Default)]
struct ExtenderState {
    leases: Mutex<ExtendedLeases>,
    /// Notified when a lease is due earlier than the one that the task waits for.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct ExtendedLeases {
    by_id: NumberMap<ExtendedLease>,
    by_due: BTreeSet<(Instant, u64)>,
    last_id: u64,
}

#[derive(Clone, Debug)]
struct ExtendedLease {
    claim: Arc<Claim>,
    state: Arc<ClaimState>,
    /// `None`: the lease is never extended.
    interval: Option<Duration>,
    /// When the store is asked; `None`: when it is another server.
    due: Option<Instant>,
}

/// How many locks one command extends at most: about half a millisecond in which the store serves
/// nobody else.
const BATCH: usize = 200;

/// The pause after a command without a reply, unless the lease's interval is shorter.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

// === impl Extender ===

impl Extender {
    /// Starts the task on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let shared = Arc::new(ExtenderState::default());
        let server_changes = store.server_changes();
        let task = tokio::spawn(extend_due_leases(
            store,
            Arc::clone(&shared),
            server_changes.clone(),
        ));
        Self {
            shared,
            // Nobody is left who could send a change.
            server_changes: Some(server_changes).filter(|changes| changes.has_changed().is_ok()),
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Extends a lease at each `interval`; `None`: never. `sent` is when the command was sent that started the lease.
    pub(super) fn add(
        &self,
        claim: Arc<Claim>,
        state: Arc<ClaimState>,
        sent: Instant,
        interval: Option<Duration>,
    ) -> Extension {
        let mut leases = self.shared.leases.lock();
        // Behind the lock: a change that is not seen here makes this lease due, too.
        let changed = self.server_changes.as_ref();
        let changed = changed.and_then(|changed| *changed.borrow());
        let due = match changed.is_some_and(|changed| changed >= sent) {
            true => Some(sent),
            false => interval.map(|interval| sent + interval),
        };
        leases.last_id += 1;
        let id = leases.last_id;
        let first = leases.by_due.first().map(|(first, _)| *first);
        let is_first = due.is_some_and(|due| first.is_none_or(|first| due < first));
        let lease = ExtendedLease {
            claim,
            state,
            interval,
            due,
        };
        leases.insert(id, lease);
        drop(leases);
        if is_first {
            self.shared.earlier.notify_one();
        }
        Extension {
            id,
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.shared.leases.lock().remove(self.id);
    }
}

async fn extend_due_leases(
    store: Arc<dyn Store>,
    shared: Arc<ExtenderState>,
    mut server_changes: watch::Receiver<Option<Instant>>,
) {
    let mut is_failing = false;
    loop {
        let next = shared.leases.lock().by_due.first().map(|(due, _)| *due);
        let due = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = shared.earlier.notified() => continue,
            Ok(()) = server_changes.changed() => shared.leases.lock().make_all_due(Instant::now()),
        }
        let batch = shared.leases.lock().due(Instant::now());
        if batch.is_empty() {
            continue;
        }
        let claims: Vec<_> = batch
            .iter()
            .map(|(_, lease)| Arc::clone(&lease.claim))
            .collect();
        let sent = Instant::now();
        let extended = store.extend(&claims).await;
        let extended = extended.unwrap_or_else(|error| {
            // One warning per outage.
            if !std::mem::replace(&mut is_failing, true) {
                tracing::warn!(%error, locks = batch.len(), "leases not extended; trying again");
            }
            vec![None; batch.len()]
        });
        is_failing &= extended.iter().all(Option::is_none);
        let now = Instant::now();
        let mut leases = shared.leases.lock();
        for ((id, lease), is_held) in batch.iter().zip(extended) {
            match is_held {
                Some(true) => {
                    // A lease that is never extended ends when it would have ended.
                    if lease.interval.is_some() {
                        lease.state.extend(sent, lease.claim.lease);
                    }
                    leases.reschedule(*id, lease.interval.map(|interval| sent + interval));
                }
                // Not released in the meantime, if the lease is still here.
                Some(false) if leases.remove(*id).is_some() => {
                    tracing::warn!(key = %lease.claim.key.redacted(), "lock lost: the store no longer has it for this turn");
                    lease.state.lose();
                }
                Some(false) => {}
                None if lease.state.loss(now).is_none() => {
                    let pause = lease
                        .interval
                        .map_or(RETRY_PAUSE, |interval| interval.min(RETRY_PAUSE));
                    leases.reschedule(*id, Some(now + pause));
                }
                // After its deadline a lease can't be extended any more.
                None => {
                    leases.remove(*id);
                }
            }
        }
    }
}

// === impl ExtendedLeases ===

impl ExtendedLeases {
    fn insert(&mut self, id: u64, lease: ExtendedLease) {
        self.by_due.extend(lease.due.map(|due| (due, id)));
        self.by_id.insert(id, lease);
    }

    fn remove(&mut self, id: u64) -> Option<ExtendedLease> {
        let lease = self.by_id.remove(&id)?;
        if let Some(due) = lease.due {
            self.by_due.remove(&(due, id));
        }
        Some(lease)
    }

    /// Changes when a lease is due; does nothing for one that was removed because its turn is over.
    fn reschedule(&mut self, id: u64, due: Option<Instant>) {
        if let Some(lease) = self.remove(id) {
            self.insert(id, ExtendedLease { due, ..lease });
        }
    }

    /// Makes every lease due at `now`.
    fn make_all_due(&mut self, now: Instant) {
        self.by_due = self.by_id.keys().map(|id| (now, *id)).collect();
        for lease in self.by_id.values_mut() {
            lease.due = Some(now);
        }
    }

    /// The leases to extend at `now`: those that are due, and those that will be within half of their
    /// interval. Empty if none is due yet.
    fn due(&self, now: Instant) -> Vec<(u64, ExtendedLease)> {
        let is_any_due = self.by_due.first().is_some_and(|(first, _)| *first <= now);
        let leases = self
            .by_due
            .iter()
            .map(|(due, id)| (due, id, &self.by_id[id]));
        leases
            .take_while(|(due, _, lease)| {
                is_any_due && **due <= now + lease.interval.unwrap_or_default() / 2
            })
            .take(BATCH)
            .map(|(_, id, lease)| (*id, lease.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SessionKey;
    use crate::lock::memory::MemoryStore;
    use crate::lock::{ClaimIssuer, Epoch};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_lock_is_due_after_its_interval_and_forgotten_with_its_extension() {
        crate::time_limit::limit_this_test();
        let extender = Extender::new(Arc::new(MemoryStore::new()));
        let issuer = ClaimIssuer::new("pod-1", Epoch(1), true);
        let claim = Arc::new(issuer.issue(SessionKey::literal("k"), "chat", "r", HOUR));
        let sent = Instant::now();
        for (interval, due) in [(Some(HOUR), Some(sent + HOUR)), (None, None)] {
            let state = Arc::new(ClaimState::new(None, true));
            let extension = extender.add(Arc::clone(&claim), state, sent, interval);
            let known = || {
                let leases = extender.shared.leases.lock();
                let dues: Vec<_> = leases.by_due.iter().map(|(due, _)| *due).collect();
                (leases.by_id.len(), dues)
            };
            let expected = (1, due.into_iter().collect());
            assert_eq!(known(), expected, "not before its interval: {interval:?}");
            drop(extension);
            assert_eq!(known(), (0, vec![]), "nothing is left: {interval:?}");
        }
    }

    #[tokio::test]
    async fn a_lock_is_due_at_once_if_the_server_has_changed_since_it_was_asked_for() {
        crate::time_limit::limit_this_test();
        let (change, server_changes) = watch::channel(None);
        let extender = Extender {
            shared: Arc::default(),
            server_changes: Some(server_changes),
            // The task has handled the change already.
            _task: AbortOnDropHandle::new(tokio::spawn(pending())),
        };
        let issuer = ClaimIssuer::new("pod-1", Epoch(1), true);
        let claim = Arc::new(issuer.issue(SessionKey::literal("k"), "chat", "r", HOUR));
        let due = |sent, interval| {
            let state = Arc::new(ClaimState::new(None, true));
            let _extension = extender.add(Arc::clone(&claim), state, sent, interval);
            let leases = extender.shared.leases.lock();
            leases.by_due.first().map(|(due, _)| *due)
        };
        let sent = Instant::now();
        change.send_replace(Some(sent));
        for interval in [Some(HOUR), None] {
            assert_eq!(due(sent, interval), Some(sent), "{interval:?}");
            let later = sent + Duration::from_nanos(1);
            let expected = interval.map(|interval| later + interval);
            assert_eq!(due(later, interval), expected, "asked for after the change");
        }
    }
}
