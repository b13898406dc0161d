//! What an operator sees of locks, in the form of the admin interface's JSON.
//!
//! Invariant: member names are part of the admin interface (`docs/admin.md`); ids are never hidden here.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::dequeue::DequeueResult;
use super::{ForcedRelease, InterruptResult};
use crate::key::{Keyspace, SessionIds, SessionKey};
use crate::lock::{HolderDetails, LockInfo, ScanCursor, millis};

/// One page of locks.
#[derive(Clone, Debug, Serialize)]
pub struct LockPage {
    /// The locks, in no order. Two pages may contain the same lock.
    pub locks: Vec<LockRow>,
    /// The cursor of the next page; `None`: this is the last page.
    #[serde(serialize_with = "as_text")]
    pub next: Option<ScanCursor>,
}

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockRow {
    /// The lock's key.
    pub key: String,
    /// The user's id; `None`: no `lock.key` makes this key, or it contains no user.
    pub user_id: Option<String>,
    /// The session's id; `None`: no `lock.key` makes this key.
    pub session_id: Option<String>,
    /// `seriatim` if a turn of Seriatim holds the lock, otherwise `other`.
    pub holder: &'static str,
    /// What the holder says about itself.
    #[serde(flatten)]
    pub who: HolderInfo,
    /// The number of this acquisition; `None`: not known, or the holder isn't Seriatim.
    pub fence: Option<u64>,
    /// How long ago the lock was acquired, in ms by the store's clock; `None`: not known.
    pub age_ms: Option<u64>,
    /// The rest of the lease in ms; `None`: the lock has no lease.
    pub ttl_ms: Option<u64>,
    /// How many turns wait for the lock.
    pub waiters: usize,
}

/// What a holder or a waiter says about itself. All `None` if it isn't Seriatim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HolderInfo {
    /// The instance that serves the turn.
    pub instance: Option<String>,
    /// The name of the turn's route.
    pub route: Option<String>,
    /// The id of the turn's request.
    pub request_id: Option<String>,
    /// When the request arrived, in RFC 3339, by the clock of the instance's machine.
    pub since: Option<String>,
}

/// One lock in detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockDetail {
    /// The lock is held.
    Locked {
        /// The lock and its holder.
        lock: LockRow,
        /// The waiters in order.
        queue: Vec<HolderInfo>,
    },
    /// The lock is free.
    Free {
        /// The lock's key.
        key: String,
        /// The user's and the session's id; `None`: no `lock.key` makes this key.
        ids: Option<SessionIds>,
        /// How many turns wait for the lock, which is about to be offered to one of them.
        waiters: usize,
    },
}

// === impl ForcedRelease ===

impl Serialize for ForcedRelease {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("released", &self.fence.is_some())?;
        members.serialize_entry("key", self.key.as_str())?;
        if let Some(fence) = self.fence {
            members.serialize_entry("fence", &fence)?;
        }
        members.end()
    }
}

// === impl InterruptResult ===

impl Serialize for InterruptResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("interrupted", &true)?;
        members.serialize_entry("released", &self.released)?;
        members.serialize_entry("key", self.key.as_str())?;
        members.end()
    }
}

// === impl DequeueResult ===

impl Serialize for DequeueResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        members.serialize_entry("dequeued", &true)?;
        members.serialize_entry("key", self.key.as_str())?;
        members.end()
    }
}

// === impl LockPage ===

/// Serializes a cursor as text, because it may be larger than a JavaScript number can be.
fn as_text<S: Serializer>(next: &Option<ScanCursor>, serializer: S) -> Result<S::Ok, S::Error> {
    next.map(|next| next.to_string()).serialize(serializer)
}

// === impl LockRow ===

impl LockRow {
    /// A row for a lock; `None` if nobody holds it, or only a self-test.
    pub(super) fn new(space: &Keyspace, key: &SessionKey, info: &LockInfo) -> Option<Self> {
        let details = info.holder.as_ref()?.details();
        if details.as_ref().is_some_and(HolderDetails::is_self_test) {
            return None;
        }
        let (user_id, session_id) = match space.ids(key.as_str()) {
            Some(ids) => (ids.user, Some(ids.session)),
            None => (None, None),
        };
        // A fence belongs to a turn of Seriatim; another holder has none.
        let fence = info.fence.filter(|_| details.is_some());
        let age = info.age.filter(|_| details.is_some());
        let holder = match details {
            Some(_) => "seriatim",
            None => "other",
        };
        Some(Self {
            key: key.as_str().to_owned(),
            user_id,
            session_id,
            holder,
            who: HolderInfo::new(details.as_ref()),
            fence: fence.map(|fence| fence.0),
            age_ms: age.map(millis),
            ttl_ms: info.ttl.map(millis),
            waiters: info.waiters,
        })
    }
}

// === impl HolderInfo ===

impl HolderInfo {
    /// What a token says; `None`: it isn't a token of Seriatim.
    pub(super) fn new(details: Option<&HolderDetails>) -> Self {
        let Some(details) = details else {
            return Self::default();
        };
        Self {
            instance: Some(details.turn.instance.to_string()),
            route: Some(details.route.clone()),
            request_id: Some(details.request.clone()),
            since: Some(details.since.clone()),
        }
    }
}

// === impl LockDetail ===

impl Serialize for LockDetail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Locked<'s> {
            locked: bool,
            #[serde(flatten)]
            lock: &'s LockRow,
            queue: &'s [HolderInfo],
        }
        #[derive(Serialize)]
        struct Free<'s> {
            locked: bool,
            key: &'s str,
            user_id: Option<&'s str>,
            session_id: Option<&'s str>,
            waiters: usize,
        }
        match self {
            Self::Locked { lock, queue } => Locked {
                locked: true,
                lock,
                queue,
            }
            .serialize(serializer),
            Self::Free { key, ids, waiters } => Free {
                locked: false,
                key,
                user_id: ids.as_ref().and_then(|ids| ids.user.as_deref()),
                session_id: ids.as_ref().map(|ids| &*ids.session),
                waiters: *waiters,
            }
            .serialize(serializer),
        }
    }
}
