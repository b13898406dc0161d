//! The vocabulary of the lock, and its invariants. No HTTP in here.
//!
//! - A [`Claim`] exists, with its token, before the first command about it is sent. A command
//!   whose answer did not come may have been executed, so whoever drops a claim that may be in the
//!   store hands it to the [`Releaser`], which takes it back out.
//! - A lock is deleted, extended or handed on only by whoever can name its token.
//! - A holder's own deadline ends before the store's lease can, and before its instance can be
//!   taken for dead: see [`margin`].
//! - The fence rises with every acquisition of a session's lock.
//! - A message is a hint. What a turn may do is in the answers to its own commands, except that it
//!   stops when it is told to.
//!
//! The stores ([`memory`], [`redis`]) know neither who waits for an answer nor the lease of one who
//! holds; durations come as arguments.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::key::{Keyspace, SessionKey};

mod background;
pub mod claim;
mod claim_state;
pub mod extender;
pub mod guard;
mod heartbeat;
pub mod instance;
pub mod locks;
pub mod memory;
pub mod operator;
mod options;
mod queue;
pub mod redis;
mod registry;
pub mod releaser;

pub use background::Unprotected;
pub use claim::{
    Claim, ClaimId, ClaimIssuer, Epoch, HolderDetails, HolderTurn, LockHolder, Message, Token,
};
pub use claim_state::LockLoss;
pub use extender::Extender;
pub use guard::{LockGuard, LockRelease};
pub use instance::{Dispatcher, Instance};
pub use locks::{AcquireError, Fallback, Locks, Patience, Terms};
pub use operator::Operator;
pub use options::{LockOptions, OnLost};
pub use releaser::Releaser;

/// A number that rises with every acquisition of a session's lock: microseconds since 1970 by the
/// store's clock, or the last fence plus one, whichever is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// A number that rises with each arrival at a session's line. A place in it can be taken up again
/// with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A holder that is nobody any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadHolder {
    /// What the lock's value says.
    pub holder: LockHolder,
    /// For how long it must have held the lock to be taken for dead. A sign of life may have been lost
    /// in the store; then a turn that begins after that is alive, and its instance's next sign comes.
    pub after: Duration,
}

/// How a turn asks for its lock.
#[derive(Clone, Debug, Default)]
pub struct AcquireRequest {
    /// The holder that is known to be dead: if it still holds, the lock is taken over.
    pub dead: Option<DeadHolder>,
    /// Where to wait if the lock is busy; `None`: nowhere.
    pub wait: Option<QueueOptions>,
}

/// How a turn stands in line.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// The place that it had before; `None`: it is new.
    pub ticket: Option<Ticket>,
    /// How many may be there before it.
    pub max_waiters: u32,
    /// Whether it replaces everybody before it.
    pub interrupts: bool,
}

/// What the store says to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcquireReply {
    /// It is yours.
    Granted(Fence),
    /// Somebody else has it.
    Busy(LockHolder),
    /// Somebody else has it, and you are in the line.
    Waiting(Ticket, LockHolder),
    /// Somebody else has it, and the line is full.
    Full,
    /// Somebody newer has taken your place.
    Superseded,
}

/// A line in which an instance waits.
#[derive(Clone, Debug)]
pub struct WatchedQueue {
    /// The session.
    pub key: SessionKey,
    /// The holder that is known to be dead: if it still holds, the lock is taken over.
    pub dead: Option<DeadHolder>,
    /// Who of the instance waits.
    pub waiters: Vec<ClaimId>,
}

/// How a line was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// How many of those who wait have a place in it: the others have to ask again.
    pub present: usize,
    /// Who holds the lock.
    pub holder: Option<LockHolder>,
}

/// An instance's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLiveness {
    /// Of the process that gave it.
    pub epoch: Epoch,
    /// For how long it holds yet.
    pub lasts: Duration,
}

/// What has become of a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatReply {
    /// The instance was alive, and is.
    Kept,
    /// It is alive from now on; whoever has asked before took it for dead.
    Begun,
    /// It isn't: the name is another epoch's.
    Refused,
}

/// Some of the keys that may be locks'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// The keys. One that is there all the while is in one of the answers at least, and perhaps in
    /// several.
    pub keys: Vec<SessionKey>,
    /// Where to go on; `None`: these were the last.
    pub next: Option<u64>,
}

/// How a lock stands, for the person who looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// Who holds it; `None`: nobody.
    pub holder: Option<LockHolder>,
    /// The last acquisition's number, if the store has it.
    pub fence: Option<Fence>,
    /// How long ago that was, by the store's clock.
    pub age: Option<Duration>,
    /// For how long the store promises it yet; `None`: it has no end.
    pub left: Option<Duration>,
    /// How many wait for it.
    pub waiters: usize,
    /// Who does, in order, as what the lock's value would be; empty if it wasn't asked for.
    pub line: Vec<LockHolder>,
}

/// Who is told what comes for an instance.
pub trait MessageHandler: Send + Sync {
    /// A message has come.
    fn hear(&self, message: Message);

    /// Messages may have been lost.
    fn was_deaf(&self);
}

/// Whether a claim that was given up can still come into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// It is out of the store, and no command of it can be executed any more.
    ForGood,
    /// It is out of the store, but a delayed acquisition may yet arrive there.
    ForNow,
}

/// Why the store did not do what it was asked for. [`StoreError::was_not_executed`] says whether that is
/// known, or only that no answer came.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// There was no connection to send the command on, or it arrived too late to be executed.
    #[error("the store at {store} can't be reached: {reason}")]
    NotSent {
        /// The store's address.
        store: Arc<str>,
        /// Why there is none.
        reason: Arc<str>,
    },
    /// The connection broke.
    #[error("the store at {store} can't be reached: {reason}")]
    Unreachable {
        /// The store's address.
        store: Arc<str>,
        /// What the connection said.
        reason: Arc<str>,
    },
    /// No answer within the time allowed.
    #[error("the store at {store} did not answer within {timeout:?}")]
    TimedOut {
        /// The store's address.
        store: Arc<str>,
        /// The time allowed for one command.
        timeout: Duration,
    },
    /// It answered with an error, and did nothing that the claim has to be taken back for.
    #[error("the store at {store} answered: {reason}")]
    Refused {
        /// The store's address.
        store: Arc<str>,
        /// Its own words, in one line: first the one for the kind of error.
        reason: Arc<str>,
    },
    /// It answered with what none of the commands gives.
    #[error("the store at {store} gave an answer that can't be read")]
    Unreadable {
        /// The store's address.
        store: Arc<str>,
    },
    /// It was not asked: it doesn't know this instance to be alive.
    #[error("this instance has no sign of life in the store: {reason}")]
    NoSign {
        /// Why there is none.
        reason: Arc<str>,
    },
}

/// A store's answer to come. It borrows nothing, so that it can be polled from a body.
pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Where locks live. Every operation is idempotent by its token, so it may be repeated when its
/// outcome is not known; dropping a [`StoreFuture`] does not take the command back.
pub trait Store: Send + Sync + 'static {
    /// Takes the lock if it is free and nobody waits for it; otherwise waits in line, or doesn't. A
    /// repetition by the same token is granted again, and keeps its place in the line.
    fn acquire(&self, claim: &Arc<Claim>, ask: &AcquireRequest) -> StoreFuture<AcquireReply>;

    /// Promises each lock for its whole lease anew; `false` where it isn't the claim's any more.
    fn extend(&self, claims: &[Arc<Claim>]) -> StoreFuture<Vec<bool>>;

    /// Frees the lock, for the next in the line; `false` if it wasn't the claim's any more.
    fn release(&self, claim: &Claim) -> StoreFuture<bool>;

    /// Takes a claim out of the line, and frees its lock if an acquisition was executed, or yet may
    /// be.
    fn withdraw(&self, claim: &Claim) -> StoreFuture<Withdrawal>;

    /// Says of these lines that the instance's waiters in them are alive, and hands over what is
    /// free, as is the lock of a holder that is known to be dead.
    fn watch(&self, instance: &str, lines: &[WatchedQueue]) -> StoreFuture<Vec<QueueState>>;

    /// Tells another instance something about a claim of its own. It may get lost.
    fn tell(&self, instance: &str, message: Message) -> StoreFuture<()>;

    /// Some of the keys that may be locks', from where an earlier answer has ended; about so many, if
    /// they are there. Changes nothing, and takes no lock from anybody.
    fn scan(&self, space: &Keyspace, from: Option<u64>, about: usize) -> StoreFuture<ScanPage>;

    /// How these locks stand, with their lines if `lines` says so. Changes nothing.
    fn look(&self, keys: &[SessionKey], lines: bool) -> StoreFuture<Vec<LockInfo>>;

    /// Takes the lock away from this holder, if it is still this one's: tells its instance, if it has
    /// one, and hands the lock over as its release would. Gives a number that is larger than any fence
    /// given so far, and smaller than any to come; `None`: it isn't this holder's.
    fn force(&self, key: &SessionKey, holder: &LockHolder) -> StoreFuture<Option<Fence>>;

    /// Says that an instance is alive, for so long. Refused if the name is another epoch's, unless
    /// it is to be `taken` over.
    fn beat(
        &self,
        instance: &str,
        epoch: Epoch,
        for_so_long: Duration,
        taken: bool,
    ) -> StoreFuture<HeartbeatReply>;

    /// Says that an instance is gone, if the name is still this epoch's.
    fn stop(&self, instance: &str, epoch: Epoch) -> StoreFuture<()>;

    /// The sign of life of an instance, if it is alive.
    fn sign_of(&self, instance: &str) -> StoreFuture<Option<InstanceLiveness>>;
}

/// An instance whose waiters were not heard of for so long is passed over, and has to join again:
/// six times as long as it takes to say so.
pub const STALE: Duration = Duration::from_secs(3);

/// For how long a lock that is handed over waits to be taken up: as long as its instance would be
/// taken for alive, which notices it at its next look at the line if the message gets lost.
pub const OFFER: Duration = Duration::from_secs(3);

/// For how long a line is kept without a word from anybody in it. By then all of them are stale.
pub const KEPT: Duration = Duration::from_secs(10);

/// How long before the store's lease ends its holder stops: one part in a hundred for clocks that
/// run apart (crystals stay below one in a thousand; a virtual machine's may be slewed by NTP), and
/// 10 ms for what is between looking at a clock and a byte leaving.
pub fn margin(lease: Duration) -> Duration {
    lease / 100 + Duration::from_millis(10)
}

/// A time in the unit of the stores, and of what operators are told.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// === impl StoreError ===

impl StoreError {
    /// Whether the command is known not to have been executed. Otherwise it may have been, or may yet be.
    pub fn was_not_executed(&self) -> bool {
        match self {
            Self::NotSent { .. } | Self::Refused { .. } | Self::NoSign { .. } => true,
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Unreadable { .. } => false,
        }
    }
}

// === impl Fence ===

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
