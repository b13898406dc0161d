//! The vocabulary of the lock, and its invariants. No HTTP in here.
//!
//! - A [`Claim`] exists, with its token, before the first command about it is sent. A command
//!   whose answer did not come may have been executed, so whoever drops a claim that may be in the
//!   store hands it to the [`Releaser`], which takes it back out.
//! - A lock is deleted, extended or handed on only by whoever can name its token.
//! - A holder's own deadline ends before the store's lease can: see [`margin`].
//! - The fence rises with every acquisition of a session's lock.
//!
//! The stores ([`memory`], [`redis`]) know neither the line nor the lease; durations come as
//! arguments.

use std::fmt::{self, Write as _};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::json;
use thiserror::Error;

use crate::key::SessionKey;

pub mod extender;
pub mod held;
pub mod line;
pub mod memory;
pub mod redis;
pub mod releaser;

pub use extender::Extender;
pub use held::{Held, Loss, Releasing};
pub use line::{Locks, Refused, Terms};
pub use releaser::Releaser;

/// The value of a held lock: one line of JSON that tells a person who holds it. Nothing but
/// equality is ever asked of it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Arc<str>);

/// A number that rises with every acquisition of a session's lock: microseconds since 1970 by the
/// store's clock, or the last fence plus one, whichever is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// One turn's claim to one session's lock.
#[derive(Debug)]
pub struct Claim {
    /// The lock.
    pub key: SessionKey,
    /// Who claims it.
    pub token: Token,
    /// For how long the store promises it, from each acquisition or extension on.
    pub lease: Duration,
    /// The last moment at which an acquisition that was sent for it may be executed, by the store's
    /// clock and in its unit; 0 if none was sent. The store's own note.
    last_moment: AtomicU64,
}

/// What the store says to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is yours.
    Granted(Fence),
    /// Somebody else has it.
    Busy,
}

/// Whether a claim that was given up can still come into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It is out of the store, and no command of it can be executed any more.
    ForGood,
    /// It is out of the store, but a delayed acquisition may yet arrive there.
    ForNow,
}

/// Why the store gave no answer. Whether the command was executed is then not known, except where
/// it was never sent.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// There was no connection to send the command on.
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
    /// It answered, with an error.
    #[error("the store at {store} refuses: {reason}")]
    Refused {
        /// The store's address.
        store: Arc<str>,
        /// Its own words.
        reason: Arc<str>,
    },
}

/// A store's answer to come. It borrows nothing, so that it can be polled from a body.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Where locks live. Every operation is idempotent by its token, so it may be repeated when its
/// outcome is not known; dropping a [`Pending`] does not take the command back.
pub trait Store: Send + Sync + 'static {
    /// Takes the lock if it is free. A repetition by the same token is granted again.
    fn acquire(&self, claim: &Arc<Claim>) -> Pending<Answer>;

    /// Promises each lock for its whole lease anew; `false` where it isn't the claim's any more.
    fn extend(&self, claims: &[Arc<Claim>]) -> Pending<Vec<bool>>;

    /// Frees the lock; `false` if it wasn't the claim's any more.
    fn release(&self, claim: &Claim) -> Pending<bool>;

    /// Frees the lock of a claim whose acquisition may have been executed, or may yet be.
    fn withdraw(&self, claim: &Claim) -> Pending<Withdrawn>;
}

/// Who makes claims: this process, for the person who reads a token.
#[derive(Debug)]
pub struct Claimant {
    instance: Box<str>,
    /// What all its tokens have in common, on either side of their number.
    common: [Box<str>; 2],
    issued: AtomicU64,
}

/// How long before the store's lease ends its holder stops: one part in a hundred for clocks that
/// run apart (crystals stay below one in a thousand; a virtual machine's may be slewed by NTP), and
/// 10 ms for what is between looking at a clock and a byte leaving.
pub fn margin(lease: Duration) -> Duration {
    lease / 100 + Duration::from_millis(10)
}

// === impl Token ===

impl Token {
    /// The value as it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Claim ===

impl Claim {
    /// A claim about which no command has been sent.
    pub fn new(key: SessionKey, token: Token, lease: Duration) -> Self {
        Self {
            key,
            token,
            lease,
            last_moment: AtomicU64::new(0),
        }
    }

    /// Notes, before it is sent, until when an acquisition may be executed.
    fn may_be_executed_until(&self, moment: u64) {
        self.last_moment.fetch_max(moment, Ordering::Relaxed);
    }

    fn last_moment(&self) -> u64 {
        self.last_moment.load(Ordering::Relaxed)
    }
}

// === impl Fence ===

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Claimant ===

impl Claimant {
    /// A claimant for the instance of this name. `epoch` is a random number that tells this
    /// process from every other one that had the name.
    pub fn new(instance: &str, epoch: u64) -> Self {
        let common = [
            format!("{{\"token\":\"{epoch:016x}-").into(),
            format!("\",\"instance\":{}", json!(instance)).into(),
        ];
        Self {
            instance: instance.into(),
            common,
            issued: AtomicU64::new(0),
        }
    }

    /// The instance's name.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// A token that no other claim has ever had.
    pub fn token(&self, route: &str, request: &str) -> Token {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let [before, after] = &self.common;
        // By this machine's clock, which nothing is decided by.
        let since = humantime::format_rfc3339_millis(SystemTime::now());
        let mut value = String::with_capacity(224);
        value.push_str(before);
        // Writing to a string can't fail.
        let _ = write!(value, "{number:x}");
        value.push_str(after);
        push_member(&mut value, ",\"route\":", route);
        push_member(&mut value, ",\"request\":", request);
        let _ = write!(value, ",\"since\":\"{since}\"}}");
        Token(value.into())
    }
}

/// Appends a member to an object that has one already. `json!` alone would do; it takes several
/// times as long for text that needs no escape, which is nearly all there is.
fn push_member(object: &mut String, name: &str, text: &str) {
    object.push_str(name);
    if text
        .bytes()
        .all(|byte| (b' '..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\\'))
    {
        object.extend(["\"", text, "\""]);
    } else {
        object.push_str(&json!(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_a_person_who_holds_the_lock_and_is_never_given_twice() {
        let claimant = Claimant::new("pod-1", 0xabc);
        let (first, second) = (
            claimant.token("chat", "r\"1"),
            claimant.token("chat", "r\"1"),
        );
        assert_ne!(first, second, "no two claims share a token");
        let value: serde_json::Value = serde_json::from_str(first.as_str()).unwrap();
        assert_eq!(
            value["token"], "0000000000000abc-0",
            "epoch and number make it unique"
        );
        assert_eq!(value["instance"], "pod-1", "the value names the instance");
        assert_eq!(
            value["request"], "r\"1",
            "the value names the request, whatever is in its id"
        );
        assert!(!first.as_str().contains('\n'), "the value is one line");
    }
}
