//! A turn's claim to a lock, and its token in the store. Its short id in messages is in `claim_id`.
//!
//! Invariant: no two claims of any two processes have the same token or id. A claim has both before
//! the first command about it is sent. What another holder's value says is in `holder`.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::format::INSTANCE_FORMAT;
use super::{ClaimId, Epoch, OnceClaim, OnceTurn};
use crate::key::SessionKey;
use crate::timestamp::{self, Precision};

/// The value of a held lock: one line of JSON that tells a reader who holds the lock. Scripts only
/// compare it for equality. Cheap to clone.
#[derive(Clone, Eq)]
pub struct Token(pub(super) Arc<str>);

/// One turn's claim to one session's lock.
#[derive(Debug)]
pub struct Claim {
    /// The session whose lock is claimed.
    pub key: SessionKey,
    /// The value that the lock has in the store while this claim holds it.
    pub token: Token,
    /// The claim's id in messages.
    pub id: ClaimId,
    /// The name of the instance that receives messages about the claim.
    pub instance: Arc<str>,
    /// How long the store keeps the lock after each acquisition or extension.
    pub lease: Duration,
    /// What the store remembers of the turn, so that it is executed once; `None`: nothing.
    pub once: Option<OnceClaim>,
    /// The last moment at which an acquisition by this claim may be executed, by the store's clock and
    /// in the store's unit; 0 if none was sent. Only the store uses it.
    not_after: AtomicU64,
    /// Whether an acquisition was sent and got no reply.
    is_in_doubt: AtomicBool,
}

/// Makes the claims of this process.
#[derive(Debug)]
pub struct ClaimIssuer {
    instance: Arc<str>,
    prefix: Box<str>,
    epoch: Epoch,
    /// The text of every token before the claim's number.
    token_prefix: Box<str>,
    /// The text of every token between the claim's number and its route.
    token_middle: Box<str>,
    issued: AtomicU64,
}

thread_local! {
    /// Where the text of a token is put together. It is then copied to a place of its exact size.
    static DRAFT: RefCell<String> = const { RefCell::new(String::new()) };
}

// === impl Token ===

impl Token {
    /// The token as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        // Nearly always both are clones of one token.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Claim ===

impl Claim {
    /// Lets the claim's turn be executed once.
    #[must_use]
    pub fn with_once(mut self, turn: Arc<OnceTurn>) -> Self {
        self.once = Some(OnceClaim::new(turn));
        self
    }

    /// Notes that an acquisition got no reply. It may be executed after every later command, so the
    /// claim has to be withdrawn until that is no longer possible.
    pub(super) fn mark_in_doubt(&self) {
        self.is_in_doubt.store(true, Ordering::Relaxed);
    }

    /// Whether an acquisition got no reply.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt.load(Ordering::Relaxed)
    }

    /// Notes, before an acquisition is sent, until when it may be executed.
    pub(super) fn raise_not_after(&self, moment: u64) {
        self.not_after.fetch_max(moment, Ordering::Relaxed);
    }

    /// The last moment at which an acquisition may be executed, in the store's unit; 0: none was sent.
    pub(super) fn not_after(&self) -> u64 {
        self.not_after.load(Ordering::Relaxed)
    }
}

// === impl ClaimIssuer ===

impl ClaimIssuer {
    /// An issuer for the instance of this name. `has_heartbeat` says whether the instance keeps a
    /// heartbeat in the store.
    pub fn new(instance: &str, epoch: Epoch, has_heartbeat: bool) -> Self {
        let heartbeat = if has_heartbeat {
            ",\"heartbeat\":true"
        } else {
            ""
        };
        Self {
            instance: instance.into(),
            prefix: Box::default(),
            epoch,
            token_prefix: format!("{{\"format\":{INSTANCE_FORMAT},\"claim\":\"{epoch}-").into(),
            token_middle: format!("\",\"instance\":{}{heartbeat}", json!(instance)).into(),
            issued: AtomicU64::new(0),
        }
    }

    /// Lets every token name the instance's `store.prefix`, without which nobody finds its heartbeat.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        if !prefix.is_empty() {
            let member = format!(",\"prefix\":{}", json!(prefix));
            self.token_middle = [&*self.token_middle, &*member].concat().into();
        }
        self.prefix = prefix.into();
        self
    }

    /// The `store.prefix` of the instance; empty for none.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The instance's name.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// The epoch of this process.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// An id that no claim has or gets, for a turn that runs without a claim of its own.
    pub fn reserve_id(&self) -> ClaimId {
        ClaimId {
            epoch: self.epoch,
            number: self.issued.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Makes a claim. `route` and `request` (its id) tell a reader of the lock's value who holds it.
    pub fn issue(&self, key: SessionKey, route: &str, request: &str, lease: Duration) -> Claim {
        self.issue_for(None, key, route, request, lease, false)
    }

    /// Makes a further claim of the turn that is known by the id `turn`; `None`: the claim's own id. `is_kept` says
    /// whether the turn's answer is kept for other requests.
    pub(super) fn issue_for(
        &self,
        turn: Option<ClaimId>,
        key: SessionKey,
        route: &str,
        request: &str,
        lease: Duration,
        is_kept: bool,
    ) -> Claim {
        let id = self.reserve_id();
        Claim {
            key,
            token: self.token(id, turn, route, request, is_kept),
            id,
            instance: Arc::clone(&self.instance),
            lease,
            once: None,
            not_after: AtomicU64::new(0),
            is_in_doubt: AtomicBool::new(false),
        }
    }

    /// The claim that this process made with this id, and of which only the value in the store is left. It can
    /// only be released.
    pub(super) fn reissue(&self, key: SessionKey, id: ClaimId, value: &str) -> Claim {
        Claim {
            key,
            token: Token(value.into()),
            id,
            instance: Arc::clone(&self.instance),
            lease: Duration::ZERO,
            once: None,
            not_after: AtomicU64::new(0),
            is_in_doubt: AtomicBool::new(false),
        }
    }

    fn token(
        &self,
        id: ClaimId,
        turn: Option<ClaimId>,
        route: &str,
        request: &str,
        is_kept: bool,
    ) -> Token {
        // By this machine's clock; nothing is decided by it.
        let since = SystemTime::now();
        DRAFT.with_borrow_mut(|value| {
            value.clear();
            value.push_str(&self.token_prefix);
            value.push_str(id.text().number());
            value.push_str(&self.token_middle);
            if let Some(turn) = turn {
                // Writing to a string can't fail.
                let _ = write!(value, ",\"turn\":\"{turn}\"");
            }
            if is_kept {
                value.push_str(",\"kept\":true");
            }
            push_member(value, ",\"route\":", route);
            push_member(value, ",\"request\":", request);
            value.push_str(",\"since\":\"");
            timestamp::push(value, since, Precision::Millis);
            value.push_str("\"}");
            Token(value.as_str().into())
        })
    }
}

/// Appends a member to an open JSON object. `json!` takes several times as long, so only text that
/// needs escapes goes through it; nearly none does.
fn push_member(object: &mut String, name: &str, text: &str) {
    object.push_str(name);
    let is_plain = |byte: u8| (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\');
    // All bytes, also behind one that isn't plain: without a branch the compiler looks at many at once.
    if text.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        object.push('"');
        object.push_str(text);
        object.push('"');
    } else {
        object.push_str(&json!(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_a_person_who_holds_the_lock_and_is_never_given_twice() {
        let issuer = ClaimIssuer::new("pod-1", Epoch(0xabc), true);
        let lease = Duration::from_secs(1);
        let claim = || issuer.issue(SessionKey::literal("k"), "chat", "r\"1", lease);
        let (first, second) = (claim().token, claim().token);
        assert_ne!(first, second, "no two claims share a token");
        let value: serde_json::Value = serde_json::from_str(first.as_str()).unwrap();
        assert_eq!(
            value["claim"], "0000000000000abc-0",
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
    fn whatever_a_member_says_is_read_as_it_was() {
        for text in [
            "",
            "plain",
            "\"",
            "\\",
            "\n",
            "\u{7f}",
            "\0",
            "思考中",
            "at the end\t",
        ] {
            let mut object = String::from("{\"a\":1");
            push_member(&mut object, ",\"b\":", text);
            object.push('}');
            let value: serde_json::Value = serde_json::from_str(&object).expect("JSON");
            assert_eq!(value["b"], text, "{object}");
        }
    }
}
