//! What a lock's value says about its holder, whoever wrote it.
//!
//! Invariant: a value that no instance of Seriatim wrote is no turn; it can't be interrupted, and its
//! instance never counts as dead. The same is true of a value of another format.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::Deserialize;

use super::format::INSTANCE_FORMAT;
use super::{ClaimId, ClaimIssuer, Token, TurnTag};
use crate::redact;

/// The value of a held lock: a [`Token`] of Seriatim, or any text that another program wrote.
#[derive(Clone)]
pub struct LockHolder {
    value: Arc<str>,
    /// What [`LockHolder::turn`] has read from the value. A turn that finds its session busy asks several times.
    turn: OnceLock<Option<Arc<HolderTurn>>>,
}

/// A lock holder that is a turn of Seriatim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderTurn {
    /// The name of the instance that serves the turn.
    pub instance: Arc<str>,
    /// The `store.prefix` of that instance; empty for none.
    pub prefix: Arc<str>,
    /// The turn's claim in that instance.
    pub id: ClaimId,
    /// The id by which the turn is known: that of its first claim, or one that was reserved for it.
    pub known_as: ClaimId,
    /// Whether the instance keeps a heartbeat in the store. Without one, it never counts as dead.
    pub has_heartbeat: bool,
    /// Whether the turn's answer is kept for other requests.
    pub is_kept: bool,
}

/// What a turn's token says to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderDetails {
    /// The turn's instance and claim.
    pub turn: HolderTurn,
    /// The name of the turn's route.
    pub route: String,
    /// The id of the turn's request.
    pub request: String,
    /// When the request arrived, in RFC 3339, by the clock of the instance's machine.
    pub since: String,
}

/// The holder of a lock whose value can't be shown: it isn't UTF-8, or the key isn't a string. Another program
/// made it.
pub(super) const UNKNOWN_HOLDER: &str = "?";

// === impl LockHolder ===

impl LockHolder {
    /// A holder from the lock's value in the store.
    pub fn new(value: &str) -> Self {
        Self::from_value(value.into())
    }

    fn from_value(value: Arc<str>) -> Self {
        Self {
            value,
            turn: OnceLock::new(),
        }
    }

    /// The lock's value in the store.
    pub fn as_str(&self) -> &str {
        &self.value
    }

    /// The value as the log may show it. A value of another program may contain an id, which is hidden
    /// if ids are.
    pub fn redacted(&self) -> Cow<'_, str> {
        match self.turn() {
            Some(_) => self.as_str().into(),
            None => redact::text(self.as_str()),
        }
    }

    /// Whether the lock's value can't be shown, and so not be named.
    pub(super) fn is_unknown(&self) -> bool {
        *self.value == *UNKNOWN_HOLDER
    }

    /// Whether the holder is the claim with this token.
    pub fn has_token(&self, token: &Token) -> bool {
        *self.value == *token.0
    }

    /// The turn that holds the lock; `None` for a holder that isn't Seriatim, or has another format.
    pub fn turn(&self) -> Option<&HolderTurn> {
        let read = || HolderTurn::from_value(&self.value).map(Arc::new);
        self.turn.get_or_init(read).as_deref()
    }

    /// Everything that the token says; `None` for a holder without a [`LockHolder::turn`].
    pub fn details(&self) -> Option<HolderDetails> {
        #[derive(Deserialize)]
        struct DetailsJson {
            route: String,
            request: String,
            since: String,
        }
        let turn = self.turn()?;
        let value: DetailsJson = serde_json::from_str(&self.value).ok()?;
        Some(HolderDetails {
            turn: turn.clone(),
            route: value.route,
            request: value.request,
            since: value.since,
        })
    }
}

// === impl HolderTurn ===

impl HolderTurn {
    /// Reads the turn from a lock's value; `None`: the value isn't Seriatim's, or has another format.
    fn from_value(value: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct TurnJson<'v> {
            format: u32,
            claim: &'v str,
            // An escaped name can't be borrowed.
            #[serde(borrow)]
            instance: Cow<'v, str>,
            #[serde(borrow, default)]
            prefix: Cow<'v, str>,
            #[serde(default)]
            heartbeat: bool,
            turn: Option<&'v str>,
            #[serde(default)]
            kept: bool,
        }
        let value: TurnJson<'_> = serde_json::from_str(value).ok()?;
        if value.format != INSTANCE_FORMAT {
            return None;
        }
        let id = value.claim.parse().ok()?;
        Some(Self {
            instance: value.instance.into(),
            prefix: value.prefix.into(),
            id,
            known_as: match value.turn {
                Some(turn) => turn.parse().ok()?,
                None => id,
            },
            has_heartbeat: value.heartbeat,
            is_kept: value.kept,
        })
    }

    /// The tag of the turn.
    pub(super) fn tag(&self) -> TurnTag {
        TurnTag::new(self.known_as)
    }

    /// Whether the turn's instance has the same prefix as the issuer's. The heartbeat of any other instance has a
    /// name that this one doesn't know, and so has the channel on which that instance gets messages.
    pub(super) fn shares_prefix(&self, issuer: &ClaimIssuer) -> bool {
        *self.prefix == *issuer.prefix()
    }
}

// === impl HolderDetails ===

impl HolderDetails {
    /// Whether the holder is the self-test of an instance. No route has an empty name.
    pub(super) fn is_self_test(&self) -> bool {
        self.route.is_empty()
    }
}

impl From<&Token> for LockHolder {
    fn from(token: &Token) -> Self {
        Self::from_value(Arc::clone(&token.0))
    }
}

impl PartialEq for LockHolder {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for LockHolder {}

impl fmt::Debug for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::key::SessionKey;
    use crate::lock::{Claim, Epoch};

    const LEASE: Duration = Duration::from_secs(1);

    #[test]
    fn a_holder_is_known_by_its_value_and_nobody_else_is_taken_for_one() {
        let issuer = ClaimIssuer::new("pod-1", Epoch(0xabc), true);
        let claim = issuer.issue(SessionKey::literal("k"), "chat", "r", LEASE);
        let holder = LockHolder::from(&claim.token);
        assert!(
            holder.has_token(&claim.token),
            "a holder is known by its token"
        );
        let turn = holder.turn().expect("a turn of Seriatim");
        assert_eq!(
            (&*turn.instance, turn.id, turn.has_heartbeat),
            ("pod-1", claim.id, true),
            "the turn names its instance, its claim and whether it has a heartbeat"
        );
        let details = holder.details().expect("its token says more");
        assert_eq!(
            (details.turn, &*details.route, &*details.request),
            (turn.clone(), "chat", "r"),
            "the details name the turn, the route and the request"
        );
        assert!(
            details.since.ends_with('Z'),
            "since when: {}",
            details.since
        );
        let silent = ClaimIssuer::new("pod-1", Epoch(0xabc), false);
        let claim = silent.issue(SessionKey::literal("k"), "chat", "r", LEASE);
        let holder = LockHolder::from(&claim.token);
        let turn = holder.turn().expect("a turn of Seriatim");
        assert!(
            !turn.has_heartbeat,
            "an instance without a heartbeat says so"
        );
        let key = || SessionKey::literal("k");
        let again = issuer.issue_for(Some(turn.id), key(), "chat", "r", LEASE, true);
        let is_kept = |claim: &Claim| {
            LockHolder::from(&claim.token)
                .turn()
                .map(|turn| turn.is_kept)
        };
        assert_eq!(
            (is_kept(&claim), is_kept(&again)),
            (Some(false), Some(true)),
            "a turn whose answer is kept says so"
        );
        let tag = |claim: &Claim| LockHolder::from(&claim.token).turn().map(|turn| turn.tag());
        assert_eq!(
            (tag(&claim), tag(&again)),
            (Some(TurnTag::new(claim.id)), Some(TurnTag::new(turn.id))),
            "a further claim of a turn has the turn's tag"
        );
        let issuer = ClaimIssuer::new("pod-1", Epoch(0xabc), true).with_prefix("staging:");
        let claim = issuer.issue(SessionKey::literal("k"), "chat", "r", LEASE);
        let holder = LockHolder::from(&claim.token);
        let turn = holder.turn().expect("a turn of Seriatim");
        assert_eq!(
            (&*turn.prefix, &*turn.instance, turn.has_heartbeat),
            ("staging:", "pod-1", true),
            "the turn names the prefix of its heartbeat"
        );
        for foreign in [
            "",
            "0b7e",
            "{}",
            r#"{"format":1,"claim":"x","instance":"pod-1"}"#,
            r#"{"claim":"1-1","instance":"pod-1","heartbeat":true}"#,
            r#"{"format":2,"claim":"1-1","instance":"pod-1","heartbeat":true}"#,
            "[1]",
        ] {
            assert_eq!(
                LockHolder::new(foreign).turn(),
                None,
                "{foreign:?} is no turn"
            );
        }
    }
}
