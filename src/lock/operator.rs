//! What a person does about locks: lists them, looks at one, frees one by force, stops a turn.
//!
//! Invariants: only the holder that was looked at loses its lock, never one that came after it; and
//! whatever was tried to change a lock is told in the log, with who asked for it.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::{HolderDetails, LockHolder, LockInfo, Message, Store, StoreError, millis};
use crate::key::{Keyspace, SessionIds, SessionKey};
use audit::{AuditRecord, TOLD};

mod audit;

/// Whoever operates the locks of one store.
pub struct Operator {
    store: LazyLock<Arc<dyn Store>, ConnectStore>,
    space: Box<dyn Fn() -> Keyspace + Send + Sync>,
}

/// Makes the connection.
type ConnectStore = Box<dyn FnOnce() -> Arc<dyn Store> + Send>;

/// Which lock is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockTarget {
    /// That of a session, whichever of the templates has made its key.
    Session {
        /// The user's id, as the client has sent it.
        user: String,
        /// The session's id, likewise.
        session: String,
    },
    /// The one of this name.
    Key(String),
}

/// What is to be done about a lock, and by whom.
#[derive(Clone, Debug)]
pub struct OperatorRequest<'o> {
    /// Which lock.
    pub target: &'o LockTarget,
    /// Only if this request's turn holds it.
    pub request: Option<&'o str>,
    /// Who asks, for the log: an address, or a word.
    pub by: &'o str,
}

/// Some locks.
#[derive(Clone, Debug, Serialize)]
pub struct LockPage {
    /// The locks, in no order. Those of two pages may be the same.
    pub locks: Vec<LockRow>,
    /// Where the next page begins; `None`: there is none.
    #[serde(serialize_with = "as_text")]
    pub next: Option<u64>,
}

/// A lock that is held, as operators are shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LockRow {
    /// Its name.
    pub key: String,
    /// Whose it is; `None` where no template gives its key, or names no user.
    pub user_id: Option<String>,
    /// Likewise.
    pub session_id: Option<String>,
    /// Whether a turn of Seriatim's holds it: `seriatim`, or `other`.
    pub holder: &'static str,
    /// Where that runs.
    #[serde(flatten)]
    pub who: HolderInfo,
    /// The number of its acquisition.
    pub fence: Option<u64>,
    /// How long ago that was, in ms, by the store's clock.
    pub age_ms: Option<u64>,
    /// For how long the store promises it yet, in ms; `None`: it has no end.
    pub ttl_ms: Option<u64>,
    /// How many wait for it.
    pub waiters: usize,
}

/// Who wants a lock: its holder, or somebody in its line. All `None` if that isn't Seriatim's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HolderInfo {
    /// The instance that serves it.
    pub instance: Option<String>,
    /// Its route.
    pub route: Option<String>,
    /// Its request's id.
    pub request_id: Option<String>,
    /// When it came, by its own machine's clock.
    pub since: Option<String>,
}

/// How the lock of a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockDetail {
    /// It is held.
    Locked {
        /// By whom.
        lock: LockRow,
        /// Who waits for it, in order.
        line: Vec<HolderInfo>,
    },
    /// It isn't.
    Free {
        /// Its name.
        key: String,
        /// Whose it is, as [`LockRow`] has it.
        ids: Option<SessionIds>,
        /// How many wait for it: it is about to be handed over.
        waiters: usize,
    },
}

/// What has become of a lock that was to be freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedRelease {
    /// Its name.
    pub key: SessionKey,
    /// The number that its fence was raised to; `None`: nobody held it.
    pub fence: Option<u64>,
}

/// What has become of a turn that was told to make way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterruptResult {
    /// The lock's name.
    pub key: SessionKey,
    /// Whether it has let go of the lock within [`PATIENCE`].
    pub released: bool,
}

/// Why nothing was done.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Not the name of a lock.
    #[error("{0:?} is no lock's name: no route's lock.key gives one like it")]
    NoKey(String),
    /// It is held under several names.
    #[error("the session has several locks, by the keys of several routes; name one: {}", list(.0))]
    Several(Vec<SessionKey>),
    /// Somebody else holds it than was meant.
    #[error("{} is held by another turn by now", .0.as_str())]
    Changed(SessionKey),
    /// Nobody holds it.
    #[error("{} is not locked", .0.as_str())]
    NotLocked(SessionKey),
    /// There is nobody who could be told.
    #[error("the holder of {key} can't be told to stop: {1}", key = .0.as_str())]
    NotInterruptible(SessionKey, &'static str),
}

/// For how long an operator waits for a turn to make way: several times what one takes that does, and
/// no longer than a person watches.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How soon it is looked again whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often it is told: messages may get lost.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// How many locks one command looks at: what that takes of Redis, where everybody else has to wait,
/// stays below a millisecond.
const BATCH: usize = 100;

/// How many keys one command goes through in search of locks, for the same reason.
const SCANNED: usize = 1000;

/// How long a page may be searched for in a store that holds little but other things: a page may be
/// empty, and then the next one goes on.
const SEARCH: Duration = Duration::from_millis(500);

// === impl Operator ===

impl Operator {
    /// Operates the locks of the store that `connect` gives, once somebody asks; `space` says each
    /// time which keys are locks.
    pub fn new(
        connect: impl FnOnce() -> Arc<dyn Store> + Send + 'static,
        space: impl Fn() -> Keyspace + Send + Sync + 'static,
    ) -> Self {
        Self {
            store: LazyLock::new(Box::new(connect)),
            space: Box::new(space),
        }
    }

    /// About `limit` of the locks that are held, from the cursor of an earlier page on. With `search`,
    /// only those whose user's or session's id has it in it, in any case; of a lock without ids, the
    /// key.
    ///
    /// # Errors
    /// When the store gives no answer.
    pub async fn list(
        &self,
        cursor: Option<u64>,
        limit: usize,
        search: Option<&str>,
    ) -> Result<LockPage, StoreError> {
        let (space, began) = ((self.space)(), Instant::now());
        let search = search.map(str::to_lowercase);
        let (mut locks, mut seen) = (Vec::new(), HashSet::new());
        let (mut next, mut about) = (cursor, limit.min(SCANNED));
        loop {
            let scanned = self.store.scan(&space, next, about).await?;
            next = scanned.next;
            let mut keys = scanned.keys;
            keys.retain(|key| {
                is_wanted(&space, key, search.as_deref()) && seen.insert(key.clone())
            });
            about = match keys.len() {
                0 => (about * 2).min(SCANNED),
                found => limit.saturating_sub(locks.len() + found).clamp(1, SCANNED),
            };
            for keys in keys.chunks(BATCH) {
                let looks = self.store.look(keys, false).await?;
                let looks = keys.iter().zip(looks);
                locks.extend(looks.filter_map(|(key, look)| LockRow::of(&space, key, &look)));
            }
            if next.is_none() || locks.len() >= limit || began.elapsed() > SEARCH {
                return Ok(LockPage { locks, next });
            }
            // A store in memory answers at once: who accepts connections on this thread has a turn, too.
            yield_now().await;
        }
    }

    /// How a lock stands. Of a session with several, the first that is held.
    ///
    /// # Errors
    /// When the store gives no answer, or the target is no lock.
    pub async fn show(&self, target: &LockTarget) -> Result<LockDetail, OperatorError> {
        let space = (self.space)();
        let keys = keys(&space, target)?;
        let looks = self.store.look(&keys, true).await?;
        let mut free = None;
        for (key, look) in keys.iter().zip(&looks) {
            if let Some(lock) = LockRow::of(&space, key, look) {
                let line = look.line.iter();
                let line = line.map(|waiter| HolderInfo::of(waiter.who().as_ref()));
                return Ok(LockDetail::Locked {
                    lock,
                    line: line.collect(),
                });
            }
            free.get_or_insert((key, look.waiters));
        }
        let (key, waiters) = free.ok_or_else(|| no_key(target))?;
        Ok(LockDetail::Free {
            key: key.as_str().to_owned(),
            ids: space.ids(key.as_str()),
            waiters,
        })
    }

    /// Frees a lock by force: its holder has lost it, and is told so.
    ///
    /// # Errors
    /// When the store gives no answer, or it isn't clear which lock is meant, or whether it is the one
    /// that was meant.
    pub async fn release(
        &self,
        order: &OperatorRequest<'_>,
    ) -> Result<ForcedRelease, OperatorError> {
        let mut record = AuditRecord::of("force release", order);
        let released = self.try_release(order, &mut record).await;
        record.result = match &released {
            Ok(ForcedRelease { fence: Some(_), .. }) => "released",
            Ok(ForcedRelease { fence: None, .. }) => "not_locked",
            // The order itself may have been carried out.
            Err(OperatorError::Store(error))
                if record.holder.is_some() && !error.was_not_executed() =>
            {
                "unknown"
            }
            Err(thwarted) => thwarted.word(),
        };
        released
    }

    async fn try_release(
        &self,
        order: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<ForcedRelease, OperatorError> {
        let (key, holder) = self.meant(order, record).await?;
        let Some(holder) = holder else {
            return Ok(ForcedRelease { key, fence: None });
        };
        match self.store.force(&key, &holder).await? {
            Some(fence) => {
                let fence = Some(fence.0);
                Ok(ForcedRelease { key, fence })
            }
            None => Err(OperatorError::Changed(key)),
        }
    }

    /// Stops the turn that holds a lock, and waits until it has let go of it, for [`PATIENCE`] at
    /// most.
    ///
    /// # Errors
    /// When the store gives no answer, or there is no turn that could be told.
    pub async fn interrupt(
        &self,
        order: &OperatorRequest<'_>,
    ) -> Result<InterruptResult, OperatorError> {
        let mut record = AuditRecord::of("interrupt", order);
        let interrupted = self.try_interrupt(order, &mut record).await;
        record.result = match &interrupted {
            Ok(InterruptResult { released: true, .. }) => "released",
            Ok(InterruptResult {
                released: false, ..
            }) => TOLD,
            Err(thwarted) => thwarted.word(),
        };
        interrupted
    }

    async fn try_interrupt(
        &self,
        order: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<InterruptResult, OperatorError> {
        let (key, holder) = self.meant(order, record).await?;
        let Some(holder) = holder else {
            return Err(OperatorError::NotLocked(key));
        };
        let Some(turn) = holder.turn() else {
            let why = "it isn't a turn of Seriatim's";
            return Err(OperatorError::NotInterruptible(key, why));
        };
        if turn.has_pulse {
            let sign = self.store.sign_of(&turn.instance).await?;
            if sign.is_none_or(|sign| sign.epoch != turn.id.epoch) {
                return Err(OperatorError::NotInterruptible(key, "its instance is gone"));
            }
        }
        let message = Message::Interrupt(turn.id);
        self.store.tell(&turn.instance, message).await?;
        // From here on it has been told, whether or not anybody sees what came of it.
        record.result = TOLD;
        let give_up = Instant::now() + PATIENCE;
        let mut tell_at = Instant::now() + TELL_AGAIN;
        let made_way = async {
            loop {
                let looked = self.store.look(std::slice::from_ref(&key), false).await;
                let holds = |look: &LockInfo| look.holder.as_ref() == Some(&holder);
                if looked.is_ok_and(|looks| !looks.iter().any(holds)) {
                    return;
                }
                sleep(LOOK_AGAIN).await;
                if Instant::now() >= tell_at {
                    // An error is one more message that is lost.
                    let _ = self.store.tell(&turn.instance, message).await;
                    tell_at = Instant::now() + TELL_AGAIN;
                }
            }
        };
        let released = timeout_at(give_up, made_way).await.is_ok();
        Ok(InterruptResult { key, released })
    }

    /// The lock that is meant and its holder, if it has one.
    async fn meant(
        &self,
        order: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<(SessionKey, Option<LockHolder>), OperatorError> {
        let keys = keys(&(self.space)(), order.target)?;
        if let [key] = &*keys {
            // Also if the store says nothing of it.
            record.key = Some(key.clone());
        }
        let looks = self.store.look(&keys, false).await?;
        let held = keys.iter().zip(looks);
        let mut held: Vec<_> = held
            .filter_map(|(key, look)| Some((key.clone(), look.holder?)))
            .collect();
        let other = held.first().cloned();
        if let Some(wanted) = order.request {
            let is_meant =
                |holder: &LockHolder| holder.who().is_some_and(|who| who.request == wanted);
            held.retain(|(_, holder)| is_meant(holder));
        }
        if held.len() > 1 {
            let keys = held.into_iter().map(|(key, _)| key);
            return Err(OperatorError::Several(keys.collect()));
        }
        let is_other = held.is_empty() && other.is_some();
        let (key, holder) = match held.pop().or(other) {
            Some((key, holder)) => (key, Some(holder)),
            None => (
                keys.into_iter()
                    .next()
                    .ok_or_else(|| no_key(order.target))?,
                None,
            ),
        };
        record.key = Some(key.clone());
        record.holder = holder.clone();
        match is_other {
            true => Err(OperatorError::Changed(key)),
            false => Ok((key, holder)),
        }
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").finish_non_exhaustive()
    }
}

/// The keys that are meant. Any other key of the store is not an operator's to touch.
fn keys(space: &Keyspace, target: &LockTarget) -> Result<Vec<SessionKey>, OperatorError> {
    match target {
        LockTarget::Session { user, session } => Ok(space.keys(user, session)),
        LockTarget::Key(key) if space.contains(key) => Ok(vec![SessionKey::literal(key)]),
        LockTarget::Key(_) => Err(no_key(target)),
    }
}

fn no_key(target: &LockTarget) -> OperatorError {
    OperatorError::NoKey(match target {
        LockTarget::Session { user, session } => format!("{user} {session}"),
        LockTarget::Key(key) => key.clone(),
    })
}

fn is_wanted(space: &Keyspace, key: &SessionKey, search: Option<&str>) -> bool {
    let Some(search) = search else {
        return true;
    };
    let has = |text: &str| text.to_lowercase().contains(search);
    match space.ids(key.as_str()) {
        Some(ids) => ids.user.is_some_and(|user| has(&user)) || has(&ids.session),
        None => has(key.as_str()),
    }
}

fn list(keys: &[SessionKey]) -> String {
    let keys: Vec<_> = keys.iter().map(SessionKey::as_str).collect();
    keys.join(", ")
}

// === impl Shown ===

impl LockRow {
    /// A lock that is held; `None` if it isn't.
    fn of(space: &Keyspace, key: &SessionKey, look: &LockInfo) -> Option<Self> {
        let who = look.holder.as_ref()?.who();
        let ids = space.ids(key.as_str());
        let (user_id, session_id) = match ids {
            Some(ids) => (ids.user, Some(ids.session)),
            None => (None, None),
        };
        // What the fence says is of a turn, not of one who knows of none.
        let fence = look.fence.filter(|_| who.is_some());
        let age = look.age.filter(|_| who.is_some());
        Some(Self {
            key: key.as_str().to_owned(),
            user_id,
            session_id,
            holder: if who.is_some() { "seriatim" } else { "other" },
            fence: fence.map(|fence| fence.0),
            age_ms: age.map(millis),
            ttl_ms: look.left.map(millis),
            waiters: look.waiters,
            who: HolderInfo::of(who.as_ref()),
        })
    }
}

/// A number beyond what JavaScript counts to.
fn as_text<S: Serializer>(next: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    next.map(|next| next.to_string()).serialize(serializer)
}

// === impl Showing ===

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
            Self::Locked { lock, line } => Locked {
                locked: true,
                lock,
                queue: line,
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

// === impl Wanting ===

impl HolderInfo {
    fn of(who: Option<&HolderDetails>) -> Self {
        let Some(who) = who else {
            return Self::default();
        };
        Self {
            instance: Some(who.turn.instance.to_string()),
            route: Some(who.route.clone()),
            request_id: Some(who.request.clone()),
            since: Some(who.since.clone()),
        }
    }
}

// === impl Thwarted ===

impl OperatorError {
    /// The same in a word, for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Store(_) => "store_unavailable",
            Self::NoKey(_) => "invalid_key",
            Self::Several(_) => "ambiguous_key",
            Self::Changed(_) => "holder_changed",
            Self::NotLocked(_) => "not_locked",
            Self::NotInterruptible(..) => "not_interruptible",
        }
    }
}
