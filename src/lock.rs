//! The lock of a session: at most one turn holds it, on any replica.
//!
//! [`Locks::acquire`] waits for the lock and gives a [`LockGuard`]. [`LockGuard::release`] frees the
//! lock; dropping the guard frees it in the background. This module knows nothing about HTTP.
//!
//! # Words
//!
//! | word | meaning | in Redisson |
//! | --- | --- | --- |
//! | session key | the lock's name, `lock:session:{user_id}:{session_id}` | the name of an `RLock` |
//! | claim, token | one turn's attempt at a lock, and its unique value in the store | `uuid:threadId` |
//! | lease | for how long the store keeps a lock without an extension | `leaseTime` |
//! | extender | extends the leases of the locks that are held | the watchdog |
//! | fence | a number that rises with every acquisition of a session's lock | token of `RFencedLock` |
//! | holder, waiter, queue | who has the lock; who waits; the waiters in order of arrival | `RFairLock` |
//! | tag | made of a claim; the turn's backend passes it on in its calls | |
//! | offer | a lock that a release gave to the first waiter, until the waiter takes it | |
//! | instance, epoch | one running process; a random number that no other process has | the client's `uuid` |
//! | once id, repeat | what a route's `once` gives for a request; a request whose once id its session has seen | |
//! | heartbeat | one key per instance; without it, the instance counts as dead | |
//! | to withdraw | to take back a claim whose outcome in the store isn't known | |
//!
//! # Invariants
//!
//! - The token exists before the first command is sent. A command without a reply may have been
//!   executed, so whoever drops a claim that may be in the store gives it to the releaser.
//! - Only a command that names the token extends a lock, deletes it or hands it over. An operator's
//!   release names the token that the operator saw.
//! - A holder's own deadline ends before its lease in the store, and before other instances may
//!   count its instance as dead: see [`crate::deadline::margin`].
//! - A message between instances is a hint and may get lost. Replies from the store decide what a turn
//!   may do. The exception: a turn stops when a message tells it to.

use std::time::Duration;

mod acquire;
mod acquire_error;
mod background;
mod call_chain;
mod claim;
mod claim_id;
mod claim_state;
mod dispatcher;
mod extender;
mod format;
mod guard;
mod heartbeat;
mod holder;
mod in_use;
mod instance;
mod kept_answer;
mod liveness;
mod local_fallback;
mod lock_client;
mod locks;
pub mod memory;
mod message;
mod number_map;
mod once;
pub mod operator;
mod options;
mod queue;
pub mod redis;
mod registry;
mod releaser;
mod self_test;
mod stop_request;
mod store;
mod store_error;
mod store_future;
mod store_health;
mod store_lock;
mod wait_place;

pub use self::redis::{RedisTls, RedisUrl, RedisUrlError};
pub use crate::outcome::{LockLoss, UnprotectedReason};
pub use acquire_error::AcquireError;
pub use background::Unprotected;
pub use call_chain::{CallChain, TurnTag};
pub use claim::{Claim, ClaimIssuer, Token};
pub use claim_id::{ClaimId, Epoch, ForeignText};
pub use claim_state::INTERRUPT_GRACE;
pub use dispatcher::Dispatcher;
pub use guard::{LockGuard, LockRelease};
pub use holder::{HolderDetails, HolderTurn, LockHolder};
pub use instance::Instance;
pub use kept_answer::{AnswerEntry, AnswerLookup, AnswerWrite, EntryKind, EntryPlace};
pub use locks::{Fallback, LockRequest, Locks};
pub use message::{Message, MessageHandler, Operated, OperatorAction, StopSender};
pub use once::{Dismissal, OnceClaim, OnceTurn, SentFlag};
pub use operator::Operator;
pub use options::{LockOptions, OnLost};
pub use self_test::SelfTestError;
pub use store::{
    AcquireReply, AcquireRequest, BusySession, DeadHolder, Fence, HeartbeatReply, InstanceLiveness,
    LockInfo, OFFER_TTL, QUEUE_TTL, QueueOptions, QueueState, RepeatedState, RepeatedTurn,
    ScanCursor, ScanPage, Store, Ticket, WAITER_TIMEOUT, WatchedQueue, Withdrawal,
};
pub use store_error::StoreError;
pub use store_future::StoreFuture;
pub use store_health::{StoreHealth, StoreProblem, TestFailure};
pub use wait_place::WaitPlace;

/// A duration in whole milliseconds, the unit of the stores and of operators' output.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
