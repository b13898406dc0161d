//! Session keys: the names of locks in the store, and the templates from which they are made.
//!
//! A template is parsed once, when the configuration is read. Invariant: two different pairs of user id
//! and session id never give the same key, because characters with a meaning in keys are
//! percent-encoded in ids. This module doesn't read requests; `proxy::session` does.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::redact;
use template::{Piece, split};

pub use error::TemplateError;
pub use fields::TemplateFields;
pub use filter::{IdFilter, Placeholder};
pub use once::{OnceId, OnceKey};
pub use source::{MAX_POINTERS, Pointer, Source};
pub use space::{INSTANCE, Keyspace, SessionIds};
pub use template::{Template, TemplatePart};

mod error;
mod fields;
mod filter;
mod once;
mod source;
mod space;
mod template;

/// The name of a session's lock in the store, such as `lock:session:u1:s1`. Cheap to clone. It has no
/// `Display`, so that every writer chooses between the log ([`SessionKey::redacted`]) and readers who may
/// see ids ([`SessionKey::as_str`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(Arc<str>);

/// How a session key is made from a user id and a session id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    parts: Box<[KeyPart]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyPart {
    Literal(Box<str>),
    User,
    Session,
}

// === impl SessionKey ===

impl SessionKey {
    /// A key whose text is complete, as the store has it.
    pub fn literal(key: &str) -> Self {
        Self(Arc::from(key))
    }

    /// The key's text, which contains the ids.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as the log may show it: its text, or the text's hash while [`redact`] is on.
    pub fn redacted(&self) -> Cow<'_, str> {
        redact::text(self.as_str())
    }
}

/// Shows the key as the log may show it, because the key may be a part of something else that is logged.
impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

// === impl KeyTemplate ===

impl KeyTemplate {
    /// Parses a template such as `lock:session:{user_id}:{session_id}`.
    ///
    /// # Errors
    /// When braces don't match, braces contain something other than the two ids, `{session_id}` is
    /// missing, or nothing separates the two ids.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let parts = split(text)?
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Ok(KeyPart::Literal(text.into())),
                Piece::Braced("user_id") => Ok(KeyPart::User),
                Piece::Braced("session_id") => Ok(KeyPart::Session),
                Piece::Braced(name) => Err(TemplateError::UnknownId(name.into())),
            })
            .collect::<Result<Box<[_]>, _>>()?;
        if !parts.contains(&KeyPart::Session) {
            return Err(TemplateError::NoSession);
        }
        let is_id = |index: &usize| !matches!(parts[*index], KeyPart::Literal(_));
        let places: Vec<_> = (0..parts.len()).filter(is_id).collect();
        // A character separates two ids if no encoded id can contain it. `%` begins the code of an encoded
        // character, so it separates only where no hex digit follows.
        let begins_a_code =
            |after: &str| after.chars().next().is_none_or(|c| c.is_ascii_hexdigit());
        let separates = |part: &KeyPart| match part {
            KeyPart::Literal(text) => text.char_indices().any(|(at, character)| {
                is_encoded(character) && !(character == '%' && begins_a_code(&text[at + 1..]))
            }),
            KeyPart::User | KeyPart::Session => false,
        };
        let is_bounded = |pair: &[usize]| parts[pair[0]..pair[1]].iter().any(separates);
        if !places.windows(2).all(is_bounded) {
            return Err(TemplateError::NoBoundary);
        }
        Ok(Self { parts })
    }

    /// Whether keys contain the user's id.
    pub fn names_user(&self) -> bool {
        self.parts.contains(&KeyPart::User)
    }

    /// The default template, `lock:session:{user_id}:{session_id}`, which Python code that shares the Redis
    /// uses too.
    pub fn conventional() -> Self {
        let literal = |text: &str| KeyPart::Literal(text.into());
        let session = literal("lock:session:");
        let parts = [session, KeyPart::User, literal(":"), KeyPart::Session];
        Self {
            parts: parts.into(),
        }
    }

    /// The key of a session. Characters of the ids that have a meaning in keys are percent-encoded.
    pub fn fill(&self, user: &str, session: &str) -> SessionKey {
        let mut key = String::with_capacity(32 + user.len() + session.len());
        for part in &self.parts {
            match part {
                KeyPart::Literal(text) => key.push_str(text),
                KeyPart::User => encode(user, &mut key),
                KeyPart::Session => encode(session, &mut key),
            }
        }
        SessionKey(key.into())
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                KeyPart::Literal(text) => f.write_str(text)?,
                KeyPart::User => f.write_str("{user_id}")?,
                KeyPart::Session => f.write_str("{session_id}")?,
            }
        }
        Ok(())
    }
}

/// Whether a character of an id is percent-encoded in a key.
fn is_encoded(character: char) -> bool {
    matches!(character, ':' | '{' | '}' | '%' | ' ') || character.is_ascii_control()
}

/// Appends an id to a key, and percent-encodes the characters that have a meaning in keys: `:` separates
/// ids, braces make a Redis Cluster hash tag, `%` begins a code; spaces and control characters would
/// break logs and `redis-cli`. Other characters stay, so that Python code writes the same key.
fn encode(id: &str, key: &mut String) {
    // Nearly every id is plain. Without an exit in the loop, the compiler vectorizes it.
    let is_plain = |byte: u8| !is_encoded(char::from(byte));
    if id.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        return key.push_str(id);
    }
    for character in id.chars() {
        if is_encoded(character) {
            // Writing to a string can't fail.
            let _ = write!(key, "%{:02X}", u32::from(character));
        } else {
            key.push(character);
        }
    }
}

#[cfg(test)]
mod tests;
