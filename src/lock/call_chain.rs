//! Calls that a turn's own backend makes, and how such a call is known.
//!
//! A turn waits for its backend. If the backend calls the turn's own session, that call would wait for the
//! turn, and the turn for the call. So the backend gets a tag of its turn, and passes it on in its calls.
//!
//! Invariants: every replica makes the same tag of a lock's value, without asking anybody. Nobody can make a
//! tag without the epoch of the process, which only the store knows. A tag is a hint: whoever sends a tag that
//! isn't its own turn's is refused where it would have waited, and gets nothing by it.

use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::ClaimId;

/// What a turn's backend passes on, so that its calls are known: 128 bits, the SipHash-2-4 of the claim's number with
/// the epoch as the key. It is also a valid trace id (W3C Trace Context §3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnTag(u128);

/// The turns that wait for a request: the turn whose backend sends it, the turn whose backend made the call
/// before that, and so on. Empty for a request that comes from no turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallChain(Vec<TurnTag>);

/// How many callers of a request are read. A longer chain is a loop of another kind. With the turn's own tag they have
/// room in one value of `tracestate`, which has at most 256 characters (W3C Trace Context §3.3.1.3.2).
const LONGEST: usize = 6;

/// The other half of the key: the text `seriatim`.
const PURPOSE: u64 = u64::from_le_bytes(*b"seriatim");

/// The hex digits of a tag.
const DIGITS: usize = 32;

// === impl TurnTag ===

impl TurnTag {
    /// The tag of the turn with this claim.
    pub fn new(turn: ClaimId) -> Self {
        let mut hash = SipHasher24::new_with_keys(turn.epoch.0, PURPOSE);
        hash.write(&turn.number.to_le_bytes());
        Self(u128::from_be_bytes(hash.finish128().as_bytes()))
    }

    /// The tag in lower-case hex digits. By hand, because every turn needs them: formatting takes longer than the
    /// hash.
    pub fn digits(self) -> [u8; DIGITS] {
        let mut digits = [0; DIGITS];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 0xf)];
        }
        digits
    }

    /// The tag as a number, which is a trace id.
    pub fn as_u128(self) -> u128 {
        self.0
    }
}

impl From<u128> for TurnTag {
    fn from(tag: u128) -> Self {
        Self(tag)
    }
}

impl fmt::Display for TurnTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.digits()).unwrap_or_default())
    }
}

// === impl CallChain ===

impl CallChain {
    /// Adds the tags in a text. Any characters but hex digits separate two tags. A word that is not a tag is
    /// ignored, and so are tags for which the chain has no room.
    pub fn add_text(&mut self, text: &[u8]) {
        for digits in text.split(|byte| !byte.is_ascii_hexdigit()) {
            if digits.len() == DIGITS
                && let Ok(digits) = str::from_utf8(digits)
                && let Ok(tag) = u128::from_str_radix(digits, 16)
            {
                self.add(TurnTag(tag));
            }
        }
    }

    /// Adds a turn that waits for the others, unless the chain has it or is too long.
    pub fn add(&mut self, tag: TurnTag) {
        if self.0.len() < LONGEST && !self.0.contains(&tag) {
            self.0.push(tag);
        }
    }

    /// The chain of a call that the backend of `own` makes, if this is the chain of the turn's own request.
    pub fn called_by(&self, own: TurnTag) -> Self {
        let mut tags = Vec::with_capacity(1 + self.0.len());
        tags.push(own);
        tags.extend(&self.0);
        Self(tags)
    }

    /// Whether no turn waits for the request.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tags, with `separator` between them.
    pub fn join(&self, separator: &str) -> String {
        let tags: Vec<_> = self.0.iter().map(TurnTag::to_string).collect();
        tags.join(separator)
    }

    /// Whether this turn waits for the request.
    pub fn contains(&self, turn: TurnTag) -> bool {
        self.0.contains(&turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Epoch;

    fn tag(number: u64) -> TurnTag {
        TurnTag::new(ClaimId {
            epoch: Epoch(0xabc),
            number,
        })
    }

    fn chain(text: &str) -> CallChain {
        let mut chain = CallChain::default();
        chain.add_text(text.as_bytes());
        chain
    }

    #[test]
    fn a_tag_is_the_same_on_every_replica_and_another_for_every_claim() {
        // printf '\7\0\0\0\0\0\0\0' | openssl mac -macopt size:16 \
        //   -macopt hexkey:bc0a000000000000$(printf seriatim | xxd -p) SIPHASH
        assert_eq!(
            tag(7).to_string(),
            "a49cfb5e0477cdb75c24e330ec21c0f8",
            "replicas of other versions make the same tag"
        );
        assert_ne!(tag(7), tag(8), "another claim has another tag");
    }

    #[test]
    fn a_chain_is_read_from_a_header_however_it_is_written() {
        let (one, two) = (tag(1).to_string(), tag(2).to_string());
        let known = chain(&format!("{one}, {two}"));
        for text in [
            format!("{one},{two}"),
            format!("{one}-{two}"),
            format!(" {} ; x, {two},{one},", one.to_uppercase()),
        ] {
            assert_eq!(chain(&text), known, "the tags of {text:?}");
        }
        assert_eq!(known.join(", "), format!("{one}, {two}"), "in their order");
        for none in ["", "x", &one[1..], &format!("{one}0")] {
            assert!(chain(none).is_empty(), "{none:?} has no tag");
        }
    }

    #[test]
    fn a_chain_stays_short_and_keeps_who_is_nearest() {
        let many: Vec<_> = (0..50).map(|number| tag(number).to_string()).collect();
        let long = chain(&many.join(","));
        let next = long.called_by(tag(99));
        assert_eq!(
            next.join(","),
            [&[tag(99).to_string()], &many[..LONGEST]]
                .concat()
                .join(","),
            "the turn's own tag is first, and the farthest turn is left out"
        );
    }
}
