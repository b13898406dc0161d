//! Who claims a lock: the value that stands in the store, the name that messages call it by, and
//! what can be read in the value of somebody else.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use crate::key::SessionKey;
use crate::redact;

/// The value of a held lock: one line of JSON that tells a person who holds it. Nothing but
/// equality is ever asked of it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Arc<str>);

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
    /// An acquisition was sent that has had no answer.
    in_doubt: AtomicBool,
}

/// What a lock's value says, whoever wrote it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LockHolder(Arc<str>);

/// A holder that is a turn of Seriatim's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderTurn {
    /// The instance that serves it.
    pub instance: Arc<str>,
    /// Its claim there.
    pub id: ClaimId,
    /// Whether its instance keeps a key of its own alive, so that it can be known to be gone.
    pub has_pulse: bool,
}

/// What a turn of Seriatim's says of itself, for the person who looks at its lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderDetails {
    /// Where it runs, and which it is.
    pub turn: HolderTurn,
    /// The route that has taken it.
    pub route: String,
    /// Its request's id.
    pub request: String,
    /// When it came, in RFC 3339, by its own machine's clock.
    pub since: String,
}

/// What one instance tells another about a claim of the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The lock was handed over to it.
    Granted(ClaimId),
    /// A newer turn has replaced it in the line.
    Superseded(ClaimId),
    /// It is to make way: for a newer turn, or because an operator says so.
    Interrupt(ClaimId),
    /// An operator has taken its lock away.
    Taken(ClaimId),
}

/// Who makes claims: this process, for the person who reads a token.
#[derive(Debug)]
pub struct ClaimIssuer {
    instance: Arc<str>,
    epoch: Epoch,
    /// What all its tokens have in common, on either side of their number.
    common: [Box<str>; 2],
    issued: AtomicU64,
}

/// A text that no instance of Seriatim has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not written by an instance of Seriatim")]
pub struct ForeignText;

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
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        let (epoch, number) = text.split_once('-').ok_or(ForeignText)?;
        let number = u64::from_str_radix(number, 16).map_err(|_| ForeignText)?;
        Ok(Self {
            epoch: epoch.parse()?,
            number,
        })
    }
}

// === impl Epoch ===

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| ForeignText)
    }
}

// === impl Holder ===

impl LockHolder {
    /// The value of a lock as it stands in the store.
    pub fn new(value: &str) -> Self {
        Self(value.into())
    }

    /// The same as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as it may stand in the log: what others than Seriatim write may be an id.
    pub fn redacted(&self) -> Cow<'_, str> {
        match self.turn() {
            Some(_) => self.as_str().into(),
            None => redact::text(self.as_str()),
        }
    }

    /// Whether it is the holder of this token.
    pub fn is(&self, token: &Token) -> bool {
        *self.0 == *token.0
    }

    /// The turn that it is; `None` for a holder that isn't Seriatim's.
    pub fn turn(&self) -> Option<HolderTurn> {
        #[derive(Deserialize)]
        struct Value<'v> {
            token: &'v str,
            instance: String,
            #[serde(default)]
            pulse: bool,
        }
        let value: Value<'_> = serde_json::from_str(&self.0).ok()?;
        Some(HolderTurn {
            instance: value.instance.into(),
            id: value.token.parse().ok()?,
            has_pulse: value.pulse,
        })
    }

    /// What it says of itself; `None` for a holder that isn't Seriatim's.
    pub fn who(&self) -> Option<HolderDetails> {
        #[derive(Deserialize)]
        struct Value {
            route: String,
            request: String,
            since: String,
        }
        let turn = self.turn()?;
        let value: Value = serde_json::from_str(&self.0).ok()?;
        Some(HolderDetails {
            turn,
            route: value.route,
            request: value.request,
            since: value.since,
        })
    }
}

impl From<&Token> for LockHolder {
    fn from(token: &Token) -> Self {
        Self(Arc::clone(&token.0))
    }
}

impl fmt::Debug for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

// === impl Message ===

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(id) => write!(f, "granted {id}"),
            Self::Superseded(id) => write!(f, "superseded {id}"),
            Self::Interrupt(id) => write!(f, "interrupt {id}"),
            Self::Taken(id) => write!(f, "taken {id}"),
        }
    }
}

impl FromStr for Message {
    type Err = ForeignText;

    fn from_str(text: &str) -> Result<Self, ForeignText> {
        let (what, id) = text.split_once(' ').ok_or(ForeignText)?;
        let id = id.parse()?;
        match what {
            "granted" => Ok(Self::Granted(id)),
            "superseded" => Ok(Self::Superseded(id)),
            "interrupt" => Ok(Self::Interrupt(id)),
            "taken" => Ok(Self::Taken(id)),
            _ => Err(ForeignText),
        }
    }
}

// === impl Claim ===

impl Claim {
    /// Notes that an acquisition has had no answer: it may be executed after everything else that
    /// is sent, so that the claim has to be taken back until that can't be any more.
    pub(super) fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }

    /// Notes, before it is sent, until when an acquisition may be executed.
    pub(super) fn may_be_executed_until(&self, moment: u64) {
        self.last_moment.fetch_max(moment, Ordering::Relaxed);
    }

    pub(super) fn last_moment(&self) -> u64 {
        self.last_moment.load(Ordering::Relaxed)
    }
}

// === impl Claimant ===

impl ClaimIssuer {
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
            in_doubt: AtomicBool::new(false),
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
        let claimant = ClaimIssuer::new("pod-1", Epoch(0xabc), true);
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
        let claimant = ClaimIssuer::new("pod-1", Epoch(0xabc), true);
        let claim = claimant.claim(SessionKey::literal("k"), "chat", "r", LEASE);
        let holder = LockHolder::from(&claim.token);
        assert!(holder.is(&claim.token), "a holder is its token");
        let turn = holder.turn().expect("a turn of Seriatim's");
        assert_eq!(
            (&*turn.instance, turn.id, turn.has_pulse),
            ("pod-1", claim.id, true),
            "where it runs, which it is, and whether it can be known to be gone"
        );
        let who = holder.who().expect("and says more of itself");
        assert_eq!(
            (who.turn, &*who.route, &*who.request),
            (turn, "chat", "r"),
            "for the person who looks at its lock"
        );
        assert!(who.since.ends_with('Z'), "since when: {}", who.since);
        let silent = ClaimIssuer::new("pod-1", Epoch(0xabc), false);
        let claim = silent.claim(SessionKey::literal("k"), "chat", "r", LEASE);
        let turn = LockHolder::from(&claim.token).turn().expect("one, too");
        assert!(!turn.has_pulse, "an instance without a key can't be missed");
        for foreign in [
            "",
            "0b7e",
            "{}",
            r#"{"token":"x","instance":"pod-1"}"#,
            "[1]",
        ] {
            assert_eq!(
                LockHolder::new(foreign).turn(),
                None,
                "{foreign:?} is no turn"
            );
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
            Message::Taken(id),
        ] {
            assert_eq!(message.to_string().parse(), Ok(message), "there and back");
        }
        for odd in ["", "granted", "granted x-1", "granted 1", "sing 1-1"] {
            assert_eq!(odd.parse::<Message>(), Err(ForeignText), "{odd:?} is none");
        }
    }
}
