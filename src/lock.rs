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

use std::fmt::{self, Write as _};
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use crate::key::SessionKey;

pub mod extender;
pub mod held;
pub mod instance;
mod line;
pub mod locks;
pub mod memory;
mod pulse;
pub mod redis;
pub mod releaser;
mod roll;
mod shadow;
mod standing;

pub use extender::Extender;
pub use held::{Held, Releasing};
pub use instance::{Instance, Switchboard};
pub use locks::{Fallback, Locks, Patience, Refused, Terms};
pub use releaser::Releaser;
pub use shadow::Unprotected;
pub use standing::Loss;

/// The value of a held lock: one line of JSON that tells a person who holds it. Nothing but
/// equality is ever asked of it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Arc<str>);

/// A number that rises with every acquisition of a session's lock: microseconds since 1970 by the
/// store's clock, or the last fence plus one, whichever is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// A claim's own name, by which messages call it: unique among all claims of all instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClaimId {
    /// Of the process that made it.
    pub epoch: Epoch,
    /// Its number there.
    pub number: u64,
}

/// A random number that tells one process from every other, also from one of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

/// One turn's claim to one session's lock.
#[derive(Debug)]
pub struct Claim {
    /// The lock.
    pub key: SessionKey,
    /// Who claims it.
    pub token: Token,
    /// The same, for messages.
    pub id: ClaimId,
    /// The instance that is to be told about it.
    pub instance: Arc<str>,
    /// For how long the store promises it, from each acquisition or extension on.
    pub lease: Duration,
    /// The last moment at which an acquisition that was sent for it may be executed, by the store's
    /// clock and in its unit; 0 if none was sent. The store's own note.
    last_moment: AtomicU64,
}

/// What a lock's value says, whoever wrote it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Holder(Arc<str>);

/// A holder that is a turn of Seriatim's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The instance that serves it.
    pub instance: Arc<str>,
    /// Its claim there.
    pub id: ClaimId,
    /// Whether its instance keeps a key of its own alive, so that it can be known to be gone.
    pub has_pulse: bool,
}

/// A number that rises with each arrival at a session's line. A place in it can be taken up again
/// with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How a turn asks for its lock.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The holder that is known to be dead: if it still holds, the lock is taken over.
    pub dead: Option<Holder>,
    /// Where to wait if the lock is busy; `None`: nowhere.
    pub wait: Option<Place>,
}

/// How a turn stands in line.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The place that it had before; `None`: it is new.
    pub ticket: Option<Ticket>,
    /// How many may be there before it.
    pub max_waiters: u32,
    /// Whether it replaces everybody before it.
    pub interrupts: bool,
}

/// What the store says to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is yours.
    Granted(Fence),
    /// Somebody else has it.
    Busy(Holder),
    /// Somebody else has it, and you are in the line.
    Waiting(Ticket, Holder),
    /// Somebody else has it, and the line is full.
    Full,
    /// Somebody newer has taken your place.
    Superseded,
}

/// What there is to say about a line to an instance that waits in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// This is who holds the lock.
    Held(Holder),
    /// Nobody does, and nobody waits.
    Free,
    /// The line is not known, or not that the instance waits in it: its waiters have to ask again.
    Unknown,
}

/// What one instance tells another about a claim of the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The lock was handed over to it.
    Granted(ClaimId),
    /// A newer turn has replaced it in the line.
    Superseded(ClaimId),
    /// A newer turn is to have its lock.
    Interrupt(ClaimId),
}

/// Who is told what comes for an instance.
pub trait Ears: Send + Sync {
    /// A message has come.
    fn hear(&self, message: Message);

    /// Messages may have been lost.
    fn was_deaf(&self);
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
    /// It was not asked: it doesn't know this instance to be alive.
    #[error("this instance has no sign of life in the store: {reason}")]
    NoSign {
        /// Why there is none.
        reason: Arc<str>,
    },
}

/// A store's answer to come. It borrows nothing, so that it can be polled from a body.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Where locks live. Every operation is idempotent by its token, so it may be repeated when its
/// outcome is not known; dropping a [`Pending`] does not take the command back.
pub trait Store: Send + Sync + 'static {
    /// Takes the lock if it is free and nobody waits for it; otherwise waits in line, or doesn't. A
    /// repetition by the same token is granted again, and keeps its place in the line.
    fn acquire(&self, claim: &Arc<Claim>, ask: &Ask) -> Pending<Answer>;

    /// Promises each lock for its whole lease anew; `false` where it isn't the claim's any more.
    fn extend(&self, claims: &[Arc<Claim>]) -> Pending<Vec<bool>>;

    /// Frees the lock, for the next in the line; `false` if it wasn't the claim's any more.
    fn release(&self, claim: &Claim) -> Pending<bool>;

    /// Takes a claim out of the line, and frees its lock if an acquisition was executed, or yet may
    /// be.
    fn withdraw(&self, claim: &Claim) -> Pending<Withdrawn>;

    /// Says of these lines that the instance's waiters in them are alive, and hands over what is
    /// free, as is the lock of a holder that is known to be dead.
    fn watch(
        &self,
        instance: &str,
        lines: &[(SessionKey, Option<Holder>)],
    ) -> Pending<Vec<Watched>>;

    /// Tells another instance something about a claim of its own. It may get lost.
    fn tell(&self, instance: &str, message: Message) -> Pending<()>;

    /// Says that an instance is alive, for so long. `false` if the name is another epoch's, unless
    /// it is to be `taken` over.
    fn beat(
        &self,
        instance: &str,
        epoch: Epoch,
        for_so_long: Duration,
        taken: bool,
    ) -> Pending<bool>;

    /// Says that an instance is gone, if the name is still this epoch's.
    fn stop(&self, instance: &str, epoch: Epoch) -> Pending<()>;

    /// The epoch of an instance that is alive.
    fn epoch_of(&self, instance: &str) -> Pending<Option<Epoch>>;
}

/// Who makes claims: this process, for the person who reads a token.
#[derive(Debug)]
pub struct Claimant {
    instance: Arc<str>,
    epoch: Epoch,
    /// What all its tokens have in common, on either side of their number.
    common: [Box<str>; 2],
    issued: AtomicU64,
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

// === impl ClaimId ===

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.epoch, self.number)
    }
}

impl FromStr for ClaimId {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let (epoch, number) = text.split_once('-').ok_or(NotOurs)?;
        let number = u64::from_str_radix(number, 16).map_err(|_| NotOurs)?;
        Ok(Self {
            epoch: epoch.parse()?,
            number,
        })
    }
}

/// A text that no instance of Seriatim has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not written by an instance of Seriatim")]
pub struct NotOurs;

// === impl Epoch ===

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        u64::from_str_radix(text, 16).map(Self).map_err(|_| NotOurs)
    }
}

// === impl Holder ===

impl Holder {
    /// The value of a lock as it stands in the store.
    pub fn new(value: &str) -> Self {
        Self(value.into())
    }

    /// The same as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the holder of this token.
    pub fn is(&self, token: &Token) -> bool {
        *self.0 == *token.0
    }

    /// The turn that it is; `None` for a holder that isn't Seriatim's.
    pub fn turn(&self) -> Option<Turn> {
        #[derive(Deserialize)]
        struct Value<'v> {
            token: &'v str,
            instance: String,
            #[serde(default)]
            pulse: bool,
        }
        let value: Value<'_> = serde_json::from_str(&self.0).ok()?;
        Some(Turn {
            instance: value.instance.into(),
            id: value.token.parse().ok()?,
            has_pulse: value.pulse,
        })
    }
}

impl From<&Token> for Holder {
    fn from(token: &Token) -> Self {
        Self(Arc::clone(&token.0))
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Message ===

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(id) => write!(f, "granted {id}"),
            Self::Superseded(id) => write!(f, "superseded {id}"),
            Self::Interrupt(id) => write!(f, "interrupt {id}"),
        }
    }
}

impl FromStr for Message {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let (what, id) = text.split_once(' ').ok_or(NotOurs)?;
        let id = id.parse()?;
        match what {
            "granted" => Ok(Self::Granted(id)),
            "superseded" => Ok(Self::Superseded(id)),
            "interrupt" => Ok(Self::Interrupt(id)),
            _ => Err(NotOurs),
        }
    }
}

// === impl Claim ===

impl Claim {
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
    /// A claimant for the instance of this name, which keeps a key of its own alive or doesn't.
    pub fn new(instance: &str, epoch: Epoch, has_pulse: bool) -> Self {
        let pulse = if has_pulse { ",\"pulse\":true" } else { "" };
        let common = [
            format!("{{\"token\":\"{epoch}-").into(),
            format!("\",\"instance\":{}{pulse}", json!(instance)).into(),
        ];
        Self {
            instance: instance.into(),
            epoch,
            common,
            issued: AtomicU64::new(0),
        }
    }

    /// The instance's name.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// What tells this process from others of its name.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A claim about which no command has been sent. `route` and `request` are for the person who
    /// looks at the lock.
    pub fn claim(&self, key: SessionKey, route: &str, request: &str, lease: Duration) -> Claim {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        Claim {
            key,
            token: self.token(number, route, request),
            id: ClaimId {
                epoch: self.epoch,
                number,
            },
            instance: Arc::clone(&self.instance),
            lease,
            last_moment: AtomicU64::new(0),
        }
    }

    fn token(&self, number: u64, route: &str, request: &str) -> Token {
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

    const LEASE: Duration = Duration::from_secs(1);

    #[test]
    fn a_token_tells_a_person_who_holds_the_lock_and_is_never_given_twice() {
        let claimant = Claimant::new("pod-1", Epoch(0xabc), true);
        let claim = || claimant.claim(SessionKey::literal("k"), "chat", "r\"1", LEASE);
        let (first, second) = (claim().token, claim().token);
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

    #[test]
    fn a_holder_is_known_by_its_value_and_nobody_else_is_taken_for_one() {
        let claimant = Claimant::new("pod-1", Epoch(0xabc), true);
        let claim = claimant.claim(SessionKey::literal("k"), "chat", "r", LEASE);
        let holder = Holder::from(&claim.token);
        assert!(holder.is(&claim.token), "a holder is its token");
        let turn = holder.turn().expect("a turn of Seriatim's");
        assert_eq!(
            (&*turn.instance, turn.id, turn.has_pulse),
            ("pod-1", claim.id, true),
            "where it runs, which it is, and whether it can be known to be gone"
        );
        let silent = Claimant::new("pod-1", Epoch(0xabc), false);
        let claim = silent.claim(SessionKey::literal("k"), "chat", "r", LEASE);
        let turn = Holder::from(&claim.token).turn().expect("one, too");
        assert!(!turn.has_pulse, "an instance without a key can't be missed");
        for foreign in [
            "",
            "0b7e",
            "{}",
            r#"{"token":"x","instance":"pod-1"}"#,
            "[1]",
        ] {
            assert_eq!(Holder::new(foreign).turn(), None, "{foreign:?} is no turn");
        }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let id = ClaimId {
            epoch: Epoch(u64::MAX),
            number: 0x1f,
        };
        for message in [
            Message::Granted(id),
            Message::Superseded(id),
            Message::Interrupt(id),
        ] {
            assert_eq!(message.to_string().parse(), Ok(message), "there and back");
        }
        for odd in ["", "granted", "granted x-1", "granted 1", "sing 1-1"] {
            assert_eq!(odd.parse::<Message>(), Err(NotOurs), "{odd:?} is none");
        }
    }
}
