//! What is shown of a session's key and of a path where people read: in the log and in spans.
//!
//! Invariant: while ids are hidden, no user's and no session's id is in what comes out of here, and
//! equal texts look equal on every replica. It is set once for the whole process, as the log's level
//! is, because whatever tells anything has to obey it. What goes to the store, to the client and to
//! operators who ask for it is left as it is.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::SessionKey;

static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Hides ids from now on, or doesn't any more.
pub fn hide_ids(hidden: bool) {
    HIDDEN.store(hidden, Ordering::Relaxed);
}

/// Whether ids are hidden.
pub fn ids_are_hidden() -> bool {
    HIDDEN.load(Ordering::Relaxed)
}

/// What is shown of a text that may have an id in it.
pub fn shown(text: &str) -> Cow<'_, str> {
    match ids_are_hidden() {
        false => text.into(),
        true => hashed(text).into(),
    }
}

/// What is shown of a request's method: while ids are hidden, none that somebody has made up.
pub fn shown_method(method: &str) -> &str {
    match ids_are_hidden() {
        false => method,
        true => known_method(method),
    }
}

/// The method, if it is one that everybody knows; otherwise OpenTelemetry's word for one that isn't.
pub fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    let known = KNOWN.into_iter().find(|known| *known == method);
    known.unwrap_or(OTHER_METHOD)
}

/// See [`known_method`].
pub const OTHER_METHOD: &str = "_OTHER";

/// `#` and the first 16 hex digits of the SHA-256: 64 bits tell all sessions of a log apart, and the
/// sign says that it is no id itself.
fn hashed(text: &str) -> String {
    use std::fmt::Write as _;
    const BYTES: usize = 8;
    let digest = Sha256::digest(text);
    let mut shown = String::with_capacity(1 + 2 * BYTES);
    shown.push('#');
    for byte in &digest[..BYTES] {
        // Writing into a string doesn't fail.
        let _ = write!(shown, "{byte:02x}");
    }
    shown
}

// === impl SessionKey ===

impl SessionKey {
    /// The key as it may stand in the log: its text, or `#` and the first 16 hex digits of the text's
    /// SHA-256 while ids are hidden.
    pub fn shown(&self) -> Cow<'_, str> {
        shown(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_key_is_what_sha256sum_says_of_it() {
        // printf %s lock:session:u1:s1 | sha256sum | cut -c1-16
        assert_eq!(
            hashed("lock:session:u1:s1"),
            "#6193102075c36b1a",
            "whoever knows a session's id can find its lines"
        );
    }
}
