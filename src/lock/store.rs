//! The [`Store`] trait: where locks live, what turns ask of a store, and what it replies.
//!
//! Invariant: every operation is idempotent for its token, so a caller may repeat it when the outcome
//! isn't known. A store knows neither the caller's timeouts nor the lease of a holder; durations come
//! as arguments.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    AnswerEntry, AnswerLookup, AnswerWrite, Claim, ClaimId, EntryPlace, Epoch, LockHolder, Message,
    StoreFuture,
};
use crate::key::{Keyspace, SessionKey};

/// A number that rises with every acquisition of a session's lock: microseconds since 1970 by the
/// store's clock, or the last fence plus one, whichever is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// A waiter's number in its session's queue: a later arrival has a larger one. A waiter that lost its
/// place gets it back with its ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A lock holder whose instance is dead, so that another turn may take its lock over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadHolder {
    /// The value of the lock. A lock with another value is not taken over.
    pub holder: LockHolder,
    /// The age that the lock must have; zero: any age. The store may have lost the heartbeat of a living
    /// instance; a turn that began after the loss is alive, and its instance's next heartbeat is near.
    pub min_age: Duration,
}

/// How a turn asks for its lock.
#[derive(Clone, Debug, Default)]
pub struct AcquireRequest {
    /// A dead holder whose lock the turn takes over, if that holder still has it.
    pub take_over: Option<DeadHolder>,
    /// How the turn waits if the lock is busy; `None`: it doesn't wait.
    pub queue: Option<QueueOptions>,
}

/// How a turn waits in its session's queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// The turn's place from an earlier reply; `None`: the turn is new.
    pub ticket: Option<Ticket>,
    /// How many waiters the queue may hold before a new turn is refused.
    pub max_waiters: u32,
    /// Whether the turn replaces all turns that came before it.
    pub interrupts: bool,
}

/// A store's reply to [`Store::acquire`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireReply {
    /// The claim holds the lock.
    Granted(Fence),
    /// This holder has the lock, and the claim didn't ask to wait.
    Busy(LockHolder, BusySession),
    /// This holder has the lock, and the claim has a place in the queue.
    Waiting(Ticket, LockHolder),
    /// The lock is busy, and the queue is full.
    QueueFull(BusySession),
    /// A newer turn has replaced the claim in the queue, or the turn that the claim repeats. In that case the claim keeps
    /// a place or an offer that it had.
    Superseded,
    /// An operator has taken the claim out of the queue, or the turn that the claim repeats: as with
    /// [`AcquireReply::Superseded`].
    Dequeued,
    /// The session has seen another turn with the claim's once id. The claim keeps a place or an offer that it had.
    Repeated(RepeatedTurn),
    /// As [`AcquireReply::Repeated`], but that turn was another request.
    KeyReused,
    /// The dead holder of the request has lost the lock just now, and this is the reply apart from that.
    TookOver(Box<AcquireReply>),
}

/// What a refused turn is told of its busy session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusySession {
    /// When the holder took the lock, by the store's clock; `None`: it isn't known, or the lock was handed over and
    /// isn't taken yet.
    pub since: Option<SystemTime>,
    /// How long ago that was, by the store's clock; `None`: it isn't known.
    pub age: Option<Duration>,
    /// How many turns wait for the lock. Some of them may be gone, and not be noticed yet.
    pub waiters: usize,
}

/// Another turn with the once id of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepeatedTurn {
    /// The id by which the turn is known.
    pub turn: ClaimId,
    /// What the store knows of it.
    pub state: RepeatedState,
    /// What the lock's value is while the turn holds it; `None`: the turn has ended.
    pub holder: Option<LockHolder>,
    /// How busy the session is.
    pub session: BusySession,
}

/// What a store knows of a turn that a request repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepeatedState {
    /// The turn waits for its lock, or is about to take it.
    Waits,
    /// The turn has its lock.
    Runs,
    /// The turn has ended, and its backend may have run it.
    Ended,
    /// The turn had its lock and doesn't have it any more, and nobody has said how it ended.
    InDoubt,
}

/// A queue in which turns of an instance wait.
#[derive(Clone, Debug)]
pub struct WatchedQueue {
    /// The session of the queue.
    pub key: SessionKey,
    /// A dead holder whose lock goes to the first waiter, if that holder still has it.
    pub take_over: Option<DeadHolder>,
    /// The claims of this instance that wait in the queue.
    pub waiters: Vec<ClaimId>,
    /// Whether the places of these claims are wanted.
    pub wants_places: bool,
}

/// What [`Store::watch`] found in one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The instance's waiters without a place in the queue, which have to ask again.
    pub missing: Vec<ClaimId>,
    /// Who holds the lock; `None`: nobody.
    pub holder: Option<LockHolder>,
    /// Whether the dead holder of the request has lost the lock just now.
    pub took_over: bool,
    /// For each of the instance's waiters its place among those that are alive, counted from 1; 0: not known. Empty
    /// unless the places were wanted.
    pub places: Vec<u32>,
}

/// The heartbeat of an instance, as another instance finds it in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLiveness {
    /// The epoch of the process that sent the heartbeat.
    pub epoch: Epoch,
    /// How long the heartbeat is still valid.
    pub ttl: Duration,
}

/// A store's reply to [`Store::heartbeat`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatReply {
    /// The instance was alive before, and still is.
    Renewed,
    /// The instance is alive from now on. Whoever asked earlier counted it as dead.
    Registered,
    /// Another process has the instance's name.
    NameTaken,
}

/// A place in a scan of all keys: which server, and the position there. Zeros: the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanCursor {
    /// The index of the server.
    pub server: usize,
    /// The server's own cursor.
    pub position: u64,
}

/// One page of session keys in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// Keys that may be locks. A key that exists during the whole scan is on at least one page, and may
    /// be on several.
    pub keys: Vec<SessionKey>,
    /// The cursor of the next page; `None`: this is the last page.
    pub next: Option<ScanCursor>,
}

/// One lock as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// Who holds the lock; `None`: nobody.
    pub holder: Option<LockHolder>,
    /// The fence of the last acquisition; `None`: the store doesn't have it.
    pub fence: Option<Fence>,
    /// How long ago the lock was acquired, by the store's clock; `None`: not known.
    pub age: Option<Duration>,
    /// The rest of the lease; `None`: the lock has no lease.
    pub ttl: Option<Duration>,
    /// How many turns wait for the lock.
    pub waiters: usize,
    /// The waiters in order; empty unless the caller asked for them.
    pub queue: Vec<LockHolder>,
}

/// Whether a claim that was given up can still take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The claim is out of the store, and none of its commands can be executed any more.
    ForGood,
    /// The claim is out of the store, but a delayed acquisition may still arrive there.
    ForNow,
}

/// Where locks live. Every operation may be repeated when its outcome isn't known.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Takes the lock if it is free and nobody waits for it. Otherwise the claim joins the queue, if the
    /// request says so. A repetition with the same token is granted again, and keeps its place. A claim whose
    /// turn is executed once is refused if the session has seen another turn with its once id.
    fn acquire(&self, claim: &Arc<Claim>, request: &AcquireRequest) -> StoreFuture<AcquireReply>;

    /// The number of the current connection, or of the last one; 0 for a store that needs none. A store may have
    /// restarted without its data between two connections.
    fn connection(&self) -> u64 {
        0
    }

    /// When another server than before was last found to have this session's lock, which may lack the last writes;
    /// `None`: never.
    fn server_changed(&self, _key: &SessionKey) -> Option<Instant> {
        None
    }

    /// The last of all times that [`Store::server_changed`] gives for any session; `None`: never. A connection to
    /// another server changes the value before its first command.
    fn server_changes(&self) -> watch::Receiver<Option<Instant>> {
        watch::channel(None).1
    }

    /// The ticket that a turn which arrived at this moment would have got, as well as that can be told
    /// without asking; `None`: not at all.
    fn ticket_at(&self, _key: &SessionKey, _arrived: Instant) -> Option<Ticket> {
        None
    }

    /// Starts a new lease for each lock; `false` for a lock that the claim no longer holds, `None` if the server that
    /// has the lock did not answer. It is an error if none answered.
    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<Option<bool>>>;

    /// Frees the lock and offers it to the first waiter; `false` if the claim did not hold it. A turn that is executed
    /// once is remembered if its backend may have run it, and otherwise forgotten. One that was not sent because it was
    /// replaced or taken out of the queue is remembered as such for [`QUEUE_TTL`].
    fn release(&self, claim: &Claim) -> StoreFuture<bool>;

    /// Removes a claim from the queue, and frees its lock if the claim got it. The reply says whether an
    /// acquisition may still be executed.
    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal>;

    /// Marks the instance's waiters in these queues as alive, and offers each lock that is free, or
    /// whose holder is known to be dead, to the first waiter. `None` for a queue whose server did not answer; it is
    /// an error if none answered.
    fn watch(
        &self,
        instance: &str,
        queues: &[WatchedQueue],
    ) -> StoreFuture<Vec<Option<QueueState>>>;

    /// Sends another instance a message about one of its claims. The message may get lost. `false`: nobody was
    /// seen to receive it.
    fn send_message(&self, instance: &str, message: Message) -> StoreFuture<bool>;

    /// Lists about `count` keys that may be locks, from the cursor of an earlier page on. Changes
    /// nothing.
    fn scan(
        &self,
        space: &Keyspace,
        from: Option<ScanCursor>,
        count: usize,
    ) -> StoreFuture<ScanPage>;

    /// Reads these locks, and their waiters if `with_queue` is set. Changes nothing.
    fn inspect(&self, keys: &[SessionKey], with_queue: bool) -> StoreFuture<Vec<LockInfo>>;

    /// Takes the lock away from this holder, sends a message to the holder's instance, and offers the
    /// lock to the first waiter. Gives a fence between those given so far and those to come; `None` if
    /// this holder doesn't have the lock.
    fn force_release(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>>;

    /// Takes a waiter out of the queue, and sends a message to its instance; `false` if it isn't in the queue. Until
    /// the store forgets the queue, [`QUEUE_TTL`] after its last waiter, the reply to the claim is
    /// [`AcquireReply::Dequeued`].
    fn dequeue(&self, key: &SessionKey, waiter: ClaimId) -> StoreFuture<bool>;

    /// Keeps the instance alive for `ttl`. Refused if another epoch has the name, unless `take_name` is
    /// set.
    fn heartbeat(
        &self,
        instance: &str,
        epoch: Epoch,
        ttl: Duration,
        take_name: bool,
    ) -> StoreFuture<HeartbeatReply>;

    /// Deletes the instance's heartbeat, if it belongs to this epoch.
    fn unregister(&self, instance: &str, epoch: Epoch) -> StoreFuture<()>;

    /// Reads the heartbeat of an instance; `None` if the instance is not alive.
    fn liveness(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>>;

    /// Checks that this process may use every key and command that turns need, with a session that nobody
    /// uses. The error names what is denied. Changes nothing. Does nothing in a store without permissions.
    fn check_access(&self, _key: &SessionKey) -> StoreFuture<()> {
        StoreFuture::ready(Ok(()))
    }

    /// Whether the store keeps answers for other replicas. One that doesn't has none, and keeps none.
    fn keeps_answers(&self) -> bool {
        false
    }

    /// Adds to the answer that the store keeps of this turn; `false` if the store doesn't have what was written
    /// before. Then nothing is left of the answer.
    fn write_answer(
        &self,
        _key: &SessionKey,
        _turn: ClaimId,
        _write: &AnswerWrite,
    ) -> StoreFuture<bool> {
        StoreFuture::ready(Ok(false))
    }

    /// Finds out which answers the store has for a session, and who holds its lock. Changes nothing.
    fn find_answer(&self, _key: &SessionKey) -> StoreFuture<AnswerLookup> {
        StoreFuture::ready(Ok(AnswerLookup::default()))
    }

    /// Reads the entries of a kept answer behind the place `after`, `limit` of them at most; `None` if the store doesn't
    /// have the answer. Changes nothing.
    fn read_answer(
        &self,
        _key: &SessionKey,
        _turn: ClaimId,
        _after: EntryPlace,
        _limit: usize,
    ) -> StoreFuture<Option<Vec<AnswerEntry>>> {
        StoreFuture::ready(Ok(None))
    }

    /// Like [`Store::check_access`], for what kept answers need.
    fn check_answer_access(&self, _key: &SessionKey) -> StoreFuture<()> {
        StoreFuture::ready(Ok(()))
    }
}

/// A waiter loses its turn when its instance has not watched the queue for this long, and has to join
/// again: six times the interval at which instances watch their queues.
pub const WAITER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an offered lock waits for its waiter: as long as the waiter's instance counts as alive. If
/// the message gets lost, the instance finds the offer when it watches the queue next.
pub const OFFER_TTL: Duration = Duration::from_secs(3);

/// How long the store keeps a queue that no instance watches. By then all its waiters have timed out.
pub const QUEUE_TTL: Duration = Duration::from_secs(10);

/// No fence is as large: scripts can't count on from there. As a time it is in the year 2255.
const LAST_FENCE: u64 = 1 << 53;

// === impl ScanCursor ===

impl fmt::Display for ScanCursor {
    /// The position, behind the index of the server and a dot unless it is the first one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.server {
            0 => write!(f, "{}", self.position),
            server => write!(f, "{server}.{}", self.position),
        }
    }
}

impl FromStr for ScanCursor {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (server, position) = text.split_once('.').unwrap_or(("0", text));
        Ok(Self {
            server: server.parse()?,
            position: position.parse()?,
        })
    }
}

// === impl AcquireReply ===

impl AcquireReply {
    /// Whether the claim holds the lock.
    pub(super) fn is_granted(&self) -> bool {
        match self {
            Self::Granted(_) => true,
            Self::TookOver(reply) => reply.is_granted(),
            Self::Busy(..)
            | Self::Waiting(..)
            | Self::QueueFull(_)
            | Self::Superseded
            | Self::Dequeued
            | Self::Repeated(_)
            | Self::KeyReused => false,
        }
    }
}

// === impl LockInfo ===

impl LockInfo {
    /// What a refused turn is told of the session.
    pub(super) fn busy(&self) -> BusySession {
        BusySession {
            since: self.fence.and_then(Fence::time),
            age: self.age,
            waiters: self.waiters,
        }
    }
}

// === impl Fence ===

impl Fence {
    /// When the lock was taken, by the store's clock; `None` for a number that no clock gives.
    pub(super) fn time(self) -> Option<SystemTime> {
        let is_time = self.0 < LAST_FENCE;
        is_time.then(|| UNIX_EPOCH + Duration::from_micros(self.0))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
