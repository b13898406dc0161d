//! What an operator does with locks: lists them, shows one, releases one, interrupts a turn, takes a waiter out of
//! a queue.
//!
//! Invariants: only the holder that the operator saw loses its lock, never a later one. Every attempt to change a
//! lock or a queue is logged with who asked for it.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use thiserror::Error;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::stop_request::StopRequest;
use super::{
    Fence, HolderDetails, HolderTurn, LockHolder, LockInfo, Message, Operated, OperatorAction,
    ScanCursor, Store, StoreError,
};
use crate::key::{Keyspace, SessionKey};
use audit::AuditRecord;

mod audit;
mod dequeue;
mod report;
mod request;
mod stop;

pub use dequeue::DequeueResult;
pub use report::{HolderInfo, LockDetail, LockPage, LockRow};
pub use request::{LockTarget, OperatorRequest};

/// Operates the locks of one store.
pub struct Operator {
    store: LazyLock<Arc<dyn Store>, ConnectStore>,
    key_space: Box<dyn Fn() -> Keyspace + Send + Sync>,
    /// The `store.prefix` whose instances get the messages of this operator; empty for none.
    prefix: Box<str>,
}

/// Connects to the store when an operator first asks for something.
type ConnectStore = Box<dyn FnOnce() -> Arc<dyn Store> + Send>;

/// The result of [`Operator::force_release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcedRelease {
    /// The session whose lock was released.
    pub key: SessionKey,
    /// The fence after the release; `None`: nobody held the lock.
    pub fence: Option<u64>,
}

/// The result of an interruption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterruptResult {
    /// The session whose turn was interrupted.
    pub key: SessionKey,
    /// Whether the turn released its lock within [`INTERRUPT_TIMEOUT`].
    pub released: bool,
}

/// Why an operator's request was not carried out.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target is not the key of a lock.
    #[error("{0:?} is not the key of a lock: the lock.key of no route makes such a key")]
    InvalidKey(String),
    /// The session holds several locks.
    #[error("the session holds several locks, because routes have different lock.key; name one of them with `key`: {}", list(.0))]
    AmbiguousKey(Vec<SessionKey>),
    /// Another turn than the expected one holds the lock.
    #[error("{} is held by another turn now", .0.as_str())]
    HolderChanged(SessionKey),
    /// Another program holds the lock, and its value can't be shown.
    #[error("{} is not a string, or its value is not text, so another program made it: delete the key in Redis", .0.as_str())]
    UnreadableHolder(SessionKey),
    /// Nobody holds the lock.
    #[error("{} is not locked", .0.as_str())]
    NotLocked(SessionKey),
    /// The request is in no queue that this operator sees.
    #[error("no turn of request {request:?} waits for {key}: {}", why_not_waiting(*.has_lock), key = .key.as_str())]
    NotWaiting {
        /// The session of the queue.
        key: SessionKey,
        /// The id of the request.
        request: Box<str>,
        /// Whether a turn of the request has the lock.
        has_lock: bool,
    },
    /// The holder can't receive a message.
    #[error("the holder of {key} can't be interrupted: {1}", key = .0.as_str())]
    NotInterruptible(SessionKey, &'static str),
    /// The process that serves the holder is gone.
    #[error("the replica {replica:?} that holds {key} is gone, so there is no turn to interrupt: {}; or release the lock", recovers(.recovery.as_ref()), key = .key.as_str())]
    ReplicaGone {
        /// The session of the lock.
        key: SessionKey,
        /// The name of the process.
        replica: Box<str>,
        /// After how long its locks may be taken over; `None`: now.
        recovery: Option<Duration>,
    },
}

/// How long an operator waits until an interrupted turn has released its lock: several times what a
/// turn needs for it, and no longer than a person waits.
pub const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a lock is checked for its release after an interruption.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// How often the message is sent, because messages may get lost.
const RESEND_INTERVAL: Duration = Duration::from_millis(500);

/// By how much an instance that is gone may seem to have renewed its heartbeat: the time of two commands.
const RENEWAL_SLACK: Duration = Duration::from_millis(500);

/// How many locks one command reads: less than a millisecond in which Redis serves nobody else.
const INSPECT_BATCH: usize = 100;

/// How many keys one command scans at most, for the same reason.
const SCAN_BATCH: usize = 1000;

/// How long one page may take in a store that contains few locks among many other keys. After that the
/// page ends, even if it is empty.
const PAGE_TIMEOUT: Duration = Duration::from_millis(500);

// === impl Operator ===

impl Operator {
    /// An operator for the store that `connect` gives. `key_space` says, for each request, which keys are
    /// locks.
    pub fn new(
        connect: impl FnOnce() -> Arc<dyn Store> + Send + 'static,
        key_space: impl Fn() -> Keyspace + Send + Sync + 'static,
    ) -> Self {
        Self {
            store: LazyLock::new(Box::new(connect)),
            key_space: Box::new(key_space),
            prefix: Box::default(),
        }
    }

    /// The operator of the environment with this `store.prefix`.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
            ..self
        }
    }

    /// Lists about `limit` locks that are held, from the cursor of an earlier page on. With `search`, only
    /// locks whose user id or session id contains the text in any case, or whose key does if it has no ids.
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(
        &self,
        cursor: Option<ScanCursor>,
        limit: usize,
        search: Option<&str>,
    ) -> Result<LockPage, StoreError> {
        let (space, began) = ((self.key_space)(), Instant::now());
        let search = search.map(str::to_lowercase);
        let (mut locks, mut seen) = (Vec::new(), HashSet::new());
        let (mut next, mut count) = (cursor, limit.min(SCAN_BATCH));
        loop {
            let page = self.store.scan(&space, next, count).await?;
            next = page.next;
            let mut keys = page.keys;
            keys.retain(|key| matches(&space, key, search.as_deref()) && seen.insert(key.clone()));
            count = match keys.len() {
                0 => (count * 2).min(SCAN_BATCH),
                found => limit
                    .saturating_sub(locks.len() + found)
                    .clamp(1, SCAN_BATCH),
            };
            for keys in keys.chunks(INSPECT_BATCH) {
                let infos = self.store.inspect(keys, false).await?;
                let infos = keys.iter().zip(infos);
                locks.extend(infos.filter_map(|(key, info)| LockRow::new(&space, key, &info)));
            }
            if next.is_none() || locks.len() >= limit || began.elapsed() > PAGE_TIMEOUT {
                return Ok(LockPage { locks, next });
            }
            // A store in memory never waits, so other tasks of this thread need a chance to run.
            yield_now().await;
        }
    }

    /// Shows one lock. If the session has several keys, shows the first lock that is held. Cancel-safe.
    ///
    /// # Errors
    /// When the store fails, or the target is not a lock.
    pub async fn show(&self, target: &LockTarget) -> Result<LockDetail, OperatorError> {
        let space = (self.key_space)();
        let keys = keys(&space, target)?;
        let infos = self.store.inspect(&keys, true).await?;
        let mut free = None;
        for (key, info) in keys.iter().zip(&infos) {
            if let Some(lock) = LockRow::new(&space, key, info) {
                let queue = info.queue.iter();
                let queue = queue.map(|waiter| HolderInfo::new(waiter.details().as_ref()));
                return Ok(LockDetail::Locked {
                    lock,
                    queue: queue.collect(),
                });
            }
            free.get_or_insert((key, info.waiters));
        }
        let (key, waiters) = free.ok_or_else(|| invalid_key(target))?;
        Ok(LockDetail::Free {
            key: key.as_str().to_owned(),
            ids: space.ids(key.as_str()),
            waiters,
        })
    }

    /// Whether a key is that of another session than these ids name. A key that isn't a lock's is nobody's.
    pub fn is_of_others(&self, key: &str, user: Option<&str>, session: Option<&str>) -> bool {
        let space = (self.key_space)();
        space.contains(key) && !space.fits(key, user, session)
    }

    /// Takes a lock away from its holder. The holder loses the lock, and its instance gets a message.
    ///
    /// # Errors
    /// When the store fails, the target is not one lock, or another turn than the expected one holds it.
    pub async fn force_release(
        &self,
        request: &OperatorRequest<'_>,
    ) -> Result<ForcedRelease, OperatorError> {
        let mut record = AuditRecord::new("force release", request);
        let released = self.try_force_release(request, &mut record).await;
        let has_holder = record.holder.is_some();
        record.result = match &released {
            Ok(ForcedRelease { fence: Some(_), .. }) => audit::RELEASED,
            Ok(ForcedRelease { fence: None, .. }) => "not_locked",
            // The command may have been executed.
            Err(OperatorError::Store(error)) if has_holder && !error.was_not_executed() => {
                "unknown"
            }
            Err(error) => error.code(),
        };
        released
    }

    async fn try_force_release(
        &self,
        request: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<ForcedRelease, OperatorError> {
        let (key, holder) = self.find(request, record).await?;
        let Some(holder) = holder else {
            return Ok(ForcedRelease { key, fence: None });
        };
        match self.store.force_release(&key, &holder).await? {
            Some(Fence(fence)) => {
                // From now on the record says so, even if the caller leaves.
                record.result = audit::RELEASED;
                if let Some(details) = holder.details() {
                    self.tell_holder(&details, OperatorAction::ForceRelease, request.by, &key)
                        .await;
                }
                Ok(ForcedRelease {
                    key,
                    fence: Some(fence),
                })
            }
            None if holder.is_unknown() => Err(OperatorError::UnreadableHolder(key)),
            None => Err(OperatorError::HolderChanged(key)),
        }
    }

    /// Interrupts the turn that holds a lock, and waits until the turn has released the lock, for
    /// [`INTERRUPT_TIMEOUT`] at most.
    ///
    /// # Errors
    /// When the store fails, the target is not one lock, or its holder can't receive a message.
    pub async fn interrupt(
        &self,
        request: &OperatorRequest<'_>,
    ) -> Result<InterruptResult, OperatorError> {
        let mut record = AuditRecord::new("interrupt", request);
        let interrupted = self.try_interrupt(request, &mut record).await;
        record.result = match &interrupted {
            Ok(InterruptResult { released: true, .. }) => audit::RELEASED,
            Ok(_) => audit::INTERRUPT_SENT,
            Err(error) => error.code(),
        };
        interrupted
    }

    async fn try_interrupt(
        &self,
        request: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<InterruptResult, OperatorError> {
        let (key, holder) = self.find(request, record).await?;
        let Some(holder) = holder else {
            return Err(OperatorError::NotLocked(key));
        };
        self.interrupt_holder(key, holder, request.by, None, record)
            .await
    }

    /// Interrupts the turn of a holder, as [`Self::interrupt`] does. With `stop`, the turn counts as released only if its
    /// instance says that it stops.
    async fn interrupt_holder(
        &self,
        key: SessionKey,
        holder: LockHolder,
        by: &str,
        stop: Option<&StopRequest>,
        record: &mut AuditRecord<'_>,
    ) -> Result<InterruptResult, OperatorError> {
        let Some(details) = holder.details() else {
            let reason = "it is not a turn of Seriatim";
            return Err(OperatorError::NotInterruptible(key, reason));
        };
        let turn = &details.turn;
        // Its heartbeat and its channel have other names, which this user may not be allowed to use.
        if *turn.prefix != *self.prefix {
            let reason = "its instance has another store.prefix";
            return Err(OperatorError::NotInterruptible(key, reason));
        }
        let asked = Instant::now();
        let mut expires = None;
        if turn.has_heartbeat {
            let liveness = self.store.liveness(&turn.instance).await?;
            let Some(liveness) = liveness.filter(|liveness| liveness.epoch == turn.id.epoch) else {
                return Err(OperatorError::gone(key, turn, None));
            };
            expires = Some(asked + liveness.ttl);
        }
        let message = stop.map(|stop| stop.message(turn.id));
        let message = message.unwrap_or(Message::Interrupt(turn.id));
        let mut is_received = self.store.send_message(&turn.instance, message).await?;
        // From now on the record says so, even if the caller leaves.
        record.result = audit::INTERRUPT_SENT;
        if stop.is_none() {
            self.tell_holder(&details, OperatorAction::Interrupt, by, &key)
                .await;
        }
        let released = self.wait_for_release(&key, &holder, turn, stop, &mut is_received);
        let released = match timeout(INTERRUPT_TIMEOUT, released).await {
            Ok(true) => {
                if stop.is_some() {
                    self.tell_holder(&details, OperatorAction::Interrupt, by, &key)
                        .await;
                }
                true
            }
            Ok(false) => {
                let reason = "it is over, or is only observed";
                return Err(OperatorError::NotInterruptible(key, reason));
            }
            Err(_) => false,
        };
        if let Some(expires) = expires.filter(|_| !released && !is_received)
            && let Ok(left) = self.store.liveness(&turn.instance).await
        {
            // It may have crashed a moment ago. Redis keeps its heartbeat until it expires. An instance that has
            // renewed it is there, and only its channel isn't.
            let left = left.filter(|left| left.epoch == turn.id.epoch);
            let recovery = left.map(|left| left.ttl);
            if recovery.is_none_or(|ttl| Instant::now() + ttl < expires + RENEWAL_SLACK) {
                return Err(OperatorError::gone(key, turn, recovery));
            }
        }
        Ok(InterruptResult { key, released })
    }

    /// Waits until the holder no longer has the lock, and repeats the interruption. Never ends otherwise; with `stop`
    /// it waits for the reply, too, and gives `false` if the turn doesn't stop. Sets `is_received` once the holder's instance was there to receive it.
    async fn wait_for_release(
        &self,
        key: &SessionKey,
        holder: &LockHolder,
        turn: &HolderTurn,
        stop: Option<&StopRequest>,
        is_received: &mut bool,
    ) -> bool {
        let mut resend_at = Instant::now() + RESEND_INTERVAL;
        loop {
            let infos = self.store.inspect(std::slice::from_ref(key), false).await;
            let is_held = |info: &LockInfo| info.holder.as_ref() == Some(holder);
            let is_free = infos.is_ok_and(|infos| !infos.iter().any(is_held));
            match stop.map_or(Some(true), StopRequest::reply) {
                Some(true) if is_free => return true,
                Some(false) => return false,
                _ => {}
            }
            sleep(CHECK_INTERVAL).await;
            if Instant::now() >= resend_at {
                let repeated = stop.map(|stop| stop.message(turn.id));
                // An instance of an older version doesn't understand the other message.
                for message in repeated.into_iter().chain([Message::Interrupt(turn.id)]) {
                    // After an error the next repetition follows.
                    let sent = self.store.send_message(&turn.instance, message).await;
                    *is_received |= sent.unwrap_or(true);
                }
                resend_at = Instant::now() + RESEND_INTERVAL;
            }
        }
    }

    /// Says in the log of the instance of a holder or a waiter who has acted. The message may get lost; and an instance with
    /// another prefix can't be told.
    async fn tell_holder(
        &self,
        details: &HolderDetails,
        action: OperatorAction,
        by: &str,
        key: &SessionKey,
    ) {
        let turn = &details.turn;
        if *turn.prefix != *self.prefix {
            return;
        }
        let one_word = |text: &str| text.replace(char::is_whitespace, "_").into();
        let operated = Operated {
            by: one_word(by),
            request: one_word(&details.request),
            key: key.clone(),
        };
        let message = Message::Operated(turn.id, action, operated);
        if let Err(error) = self.store.send_message(&turn.instance, message).await {
            tracing::debug!(%error, "the holder's instance isn't told who acted");
        }
    }

    /// Finds the lock that a request is about, and its holder if it has one. Notes both in the record.
    async fn find(
        &self,
        request: &OperatorRequest<'_>,
        record: &mut AuditRecord<'_>,
    ) -> Result<(SessionKey, Option<LockHolder>), OperatorError> {
        let keys = keys(&(self.key_space)(), request.target)?;
        if let [key] = &*keys {
            // Before the store is asked, so that the record names the key if the store fails.
            record.key = Some(key.clone());
        }
        let infos = self.store.inspect(&keys, false).await?;
        let held = keys.iter().zip(infos);
        let mut held: Vec<_> = held
            .filter_map(|(key, info)| Some((key.clone(), info.holder?)))
            .collect();
        let first = held.first().cloned();
        if let Some(expected) = request.request {
            held.retain(|(_, holder)| {
                let details = holder.details();
                details.is_some_and(|details| details.request == expected)
            });
        }
        if held.len() > 1 {
            let keys = held.into_iter().map(|(key, _)| key);
            return Err(OperatorError::AmbiguousKey(keys.collect()));
        }
        let is_other = held.is_empty() && first.is_some();
        let (key, holder) = match held.pop().or(first) {
            Some((key, holder)) => (key, Some(holder)),
            None => {
                let key = keys.into_iter().next();
                (key.ok_or_else(|| invalid_key(request.target))?, None)
            }
        };
        record.key = Some(key.clone());
        record.holder = holder.clone();
        match is_other {
            true => Err(OperatorError::HolderChanged(key)),
            false => Ok((key, holder)),
        }
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").finish_non_exhaustive()
    }
}

/// The keys of a target. An operator may not touch any other key of the store.
fn keys(space: &Keyspace, target: &LockTarget) -> Result<Vec<SessionKey>, OperatorError> {
    match target {
        LockTarget::Session { user, session } => Ok(space.keys(user, session)),
        LockTarget::Key(key) if space.contains(key) => Ok(vec![SessionKey::literal(key)]),
        LockTarget::Key(_) => Err(invalid_key(target)),
    }
}

fn invalid_key(target: &LockTarget) -> OperatorError {
    OperatorError::InvalidKey(match target {
        LockTarget::Session { user, session } => format!("{user} {session}"),
        LockTarget::Key(key) => key.clone(),
    })
}

fn matches(space: &Keyspace, key: &SessionKey, search: Option<&str>) -> bool {
    let Some(search) = search else {
        return true;
    };
    let has = |text: &str| text.to_lowercase().contains(search);
    match space.ids(key.as_str()) {
        Some(ids) => ids.user.is_some_and(|user| has(&user)) || has(&ids.session),
        None => has(key.as_str()),
    }
}

/// Why a request isn't in the queue, as far as that is known.
fn why_not_waiting(has_lock: bool) -> &'static str {
    match has_lock {
        true => "it has the lock now; `seriatim locks interrupt` stops it",
        false => "it is over, has just got the lock, or waits under another store.prefix",
    }
}

/// When the lock of a replica that is gone is free again.
fn recovers(recovery: Option<&Duration>) -> String {
    let wait = recovery.map(|rest| format!(" from {} s on", rest.as_secs() + 1));
    let wait = wait.unwrap_or_default();
    format!("the next turn of the session takes the lock over{wait} (store.crash_recovery)")
}

fn list(keys: &[SessionKey]) -> String {
    let keys: Vec<_> = keys.iter().map(SessionKey::as_str).collect();
    keys.join(", ")
}

// === impl OperatorError ===

impl OperatorError {
    /// The error code, as in `x-seriatim-error` and in the audit log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(_) => "store_unavailable",
            Self::InvalidKey(_) => "invalid_key",
            Self::AmbiguousKey(_) => "ambiguous_key",
            Self::HolderChanged(_) => "holder_changed",
            Self::UnreadableHolder(_) => "unreadable_holder",
            Self::NotLocked(_) => "not_locked",
            Self::NotWaiting { .. } => "not_waiting",
            Self::NotInterruptible(..) | Self::ReplicaGone { .. } => "not_interruptible",
        }
    }

    fn gone(key: SessionKey, turn: &HolderTurn, recovery: Option<Duration>) -> Self {
        Self::ReplicaGone {
            key,
            replica: (&*turn.instance).into(),
            recovery,
        }
    }
}
