//! Once ids: what tells that a request repeats another one of its session.
//!
//! Invariant: neither text holds anything that a client sent, so both may stand in a key of the store and in the
//! log. Where a once id is read in a request is left to `proxy::session`.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The once id of a request, hashed: 32 hex digits. Two requests of one session with the same id are one turn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OnceId(Box<str>);

/// What tells whether a request repeats another one of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnceKey {
    /// The once id, hashed: the first 32 hex digits of its SHA-256.
    pub id: Box<str>,
    /// The first 16 hex digits of the SHA-256 of method, path and query, and body. Another request with the same
    /// id has another one.
    pub fingerprint: Box<str>,
}

// === impl OnceId ===

impl OnceId {
    /// The once id of a request whose templates give this text.
    pub fn new(value: &str) -> Self {
        Self(hex_digits(Sha256::new_with_prefix(value), 32))
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This id with the fingerprint of its request. `target` is the request's path and query, and `body` its body,
    /// both as they were sent.
    pub fn with_request(self, method: &str, target: &str, body: &[u8]) -> OnceKey {
        let mut hash = Sha256::new();
        // Neither a method nor a path has such a byte, so nothing can be moved from one to the other.
        for part in [method, target] {
            hash.update(part);
            hash.update([0]);
        }
        hash.update(body);
        OnceKey {
            id: self.0,
            fingerprint: hex_digits(hash, 16),
        }
    }
}

/// The first hex digits of a hash.
fn hex_digits(hash: Sha256, count: usize) -> Box<str> {
    let mut digits = String::with_capacity(count);
    for byte in &hash.finalize()[..count / 2] {
        // Writing to a string can't fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_once_id_is_what_sha256sum_prints_for_it() {
        // printf %s k1 | sha256sum | cut -c1-32
        assert_eq!(
            OnceId::new("k1").as_str(),
            "6ab9f1eb8f7d3388f4f9d586f66e99fd"
        );
    }

    #[test]
    fn a_fingerprint_is_that_of_one_request() {
        let fingerprint = |method, target, body| {
            let key = OnceId::new("k1").with_request(method, target, body);
            assert_eq!(&*key.id, OnceId::new("k1").as_str(), "the id is the same");
            key.fingerprint
        };
        let one = fingerprint("POST", "/chat?a=1", b"x");
        // printf 'POST\0/chat?a=1\0x' | sha256sum | cut -c1-16
        assert_eq!(&*one, "0330c9069c1f22e8", "it is the same on every replica");
        for (method, target, body) in [
            ("PUT", "/chat?a=1", &b"x"[..]),
            ("POST", "/chat", b"x"),
            ("POST", "/chat?a=1", b""),
            ("POST", "/chat?a=1", b"x "),
            ("POST", "/chat?a=", b"1x"),
        ] {
            let other = fingerprint(method, target, body);
            assert_ne!(other, one, "{method} {target} {body:?} is another request");
        }
    }
}
