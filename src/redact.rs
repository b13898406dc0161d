//! Hiding user ids and session ids in the log and in spans (`log.ids = "hash"`).
//!
//! Invariant: while redaction is on, no text from here contains an id, and equal texts get equal hashes
//! on every replica. The switch is one for the whole process, because every log line has to obey it.
//! Redis, responses to clients and the admin interface are not redacted.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Switches redaction on or off for the whole process.
pub fn set_enabled(enabled: bool) {
    ENABLED.store(enabled, Ordering::Relaxed);
}

/// Whether ids are hidden in the log and in spans.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// A text that may contain an id, as the log may show it: unchanged, or its hash while redaction is on.
pub fn text(text: &str) -> Cow<'_, str> {
    match is_enabled() {
        false => text.into(),
        true => hashed(text).into(),
    }
}

/// A request's method, as the log may show it: while redaction is on, a method that a client has invented
/// is shown as [`OTHER_METHOD`].
pub fn method(method: &str) -> &str {
    match is_enabled() {
        false => method,
        true => known_method(method),
    }
}

/// The method if HTTP defines it (RFC 9110 §9.3, RFC 5789), otherwise [`OTHER_METHOD`].
pub fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method);
    known.unwrap_or(OTHER_METHOD)
}

/// OpenTelemetry's value of `http.request.method` for a method that isn't known.
pub const OTHER_METHOD: &str = "_OTHER";

/// `#` and the first 16 hex digits of the text's SHA-256. 64 bits are enough to tell the sessions of a
/// log apart; the `#` shows that this is a hash and not an id.
fn hashed(text: &str) -> String {
    use std::fmt::Write as _;
    const BYTES: usize = 8;
    let digest = Sha256::digest(text);
    let mut hash = String::with_capacity(1 + 2 * BYTES);
    hash.push('#');
    for byte in &digest[..BYTES] {
        // Writing into a string doesn't fail.
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_sha256sum_prints_for_the_key() {
        // printf %s lock:session:u1:s1 | sha256sum | cut -c1-16
        assert_eq!(
            hashed("lock:session:u1:s1"),
            "#6193102075c36b1a",
            "whoever knows a session's id can find its log lines"
        );
    }
}
