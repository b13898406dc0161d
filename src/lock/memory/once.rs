//! The records of turns that are executed once, in memory.
//!
//! Invariant: a record that has expired counts as none, and is removed by one of the next commands, whichever session
//! they are about. So nothing is left of sessions that nobody asks about again.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use crate::key::SessionKey;
use crate::lock::{Claim, ClaimId, Dismissal, OnceClaim, QUEUE_TTL, Token};

/// All records of a store.
#[derive(Debug, Default)]
pub(super) struct OnceRecords {
    records: HashMap<RecordKey, OnceRecord>,
    /// The keys of all records, by the moment at which the record expires.
    due: BTreeSet<(Instant, RecordKey)>,
}

/// A session, and the hashed once id of its turn.
type RecordKey = (SessionKey, Box<str>);

/// What the store keeps of one turn.
#[derive(Debug)]
pub(super) struct OnceRecord {
    pub(super) state: RecordedState,
    pub(super) fingerprint: Box<str>,
    pub(super) turn: ClaimId,
    pub(super) claim: ClaimId,
    pub(super) token: Token,
    expires: Instant,
}

/// What a turn last said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordedState {
    /// It waits.
    Waits,
    /// It was granted the lock.
    Granted,
    /// It has ended, and its backend may have run it.
    Ended,
    /// It is not to run, and its backend was sent nothing.
    Dismissed(Dismissal),
}

// === impl OnceRecords ===

impl OnceRecords {
    /// Notes the state of a claim's turn, if the turn is executed once.
    pub(super) fn note(&mut self, claim: &Claim, state: RecordedState, now: Instant) {
        let Some(once) = &claim.once else {
            return;
        };
        let keep = match state {
            RecordedState::Waits | RecordedState::Granted => once.record_ttl(claim.lease),
            RecordedState::Ended => once.turn.keep,
            RecordedState::Dismissed(_) => QUEUE_TTL,
        };
        let (key, expires) = (record_key(claim, once), now + keep);
        self.remove(&key);
        let record = OnceRecord {
            state,
            fingerprint: once.turn.key.fingerprint.clone(),
            turn: once.turn.turn,
            claim: claim.id,
            token: claim.token.clone(),
            expires,
        };
        self.due.insert((expires, key.clone()));
        self.records.insert(key, record);
    }

    /// Deletes the record of a claim's turn, whichever claim it names.
    pub(super) fn forget(&mut self, claim: &Claim) {
        if let Some(once) = &claim.once {
            self.remove(&record_key(claim, once));
        }
    }

    /// Renews the record of a claim that holds its lock.
    pub(super) fn extend(&mut self, claim: &Claim, now: Instant) {
        let Some(once) = &claim.once else {
            return;
        };
        let key = record_key(claim, once);
        if let Some(mut record) = self.remove(&key) {
            record.expires = now + once.record_ttl(claim.lease);
            self.due.insert((record.expires, key.clone()));
            self.records.insert(key, record);
        }
    }

    /// Notes that a claim is given up: its turn has ended, or is forgotten if its backend has not run it. `dismissal`
    /// says why the turn is out of the queue, if the store knows.
    pub(super) fn settle(&mut self, claim: &Claim, dismissal: Option<Dismissal>) {
        let Some(once) = &claim.once else {
            return;
        };
        let record = self.records.get(&record_key(claim, once));
        let state = record.map(|record| record.state);
        if state == Some(RecordedState::Ended) {
            return;
        }
        let (is_own, names_claim) = record.map_or((true, false), |record| {
            (record.turn == once.turn.turn, record.claim == claim.id)
        });
        match once.sent_flag().is_set() {
            true if is_own => self.note(claim, RecordedState::Ended, Instant::now()),
            false if names_claim => match once.dismissal().or(dismissal) {
                _ if matches!(state, Some(RecordedState::Dismissed(_))) => {}
                Some(why) => self.note(claim, RecordedState::Dismissed(why), Instant::now()),
                None => self.forget(claim),
            },
            _ => {}
        }
    }

    /// The record that the once id of this claim has from another turn; `None`: there is none.
    pub(super) fn of_other_turn(&self, claim: &Claim) -> Option<&OnceRecord> {
        let once = claim.once.as_ref()?;
        let record = self.records.get(&record_key(claim, once));
        record.filter(|record| record.turn != once.turn.turn)
    }

    /// Removes the records that have expired.
    pub(super) fn remove_expired(&mut self, now: Instant) {
        while let Some((expires, key)) = self.due.first()
            && *expires <= now
        {
            let key = key.clone();
            self.remove(&key);
        }
    }

    /// Whether no turn is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn remove(&mut self, key: &RecordKey) -> Option<OnceRecord> {
        let record = self.records.remove(key)?;
        self.due.remove(&(record.expires, key.clone()));
        Some(record)
    }
}

fn record_key(claim: &Claim, once: &OnceClaim) -> RecordKey {
    (claim.key.clone(), once.turn.key.id.clone())
}
