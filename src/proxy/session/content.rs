//! A request's body as what it says: members of JSON, or fields of a form, and never both.
//!
//! Which of the two, the content type says, and is asked only for a route that names a field of a
//! form. Any other route reads JSON, whatever it is called.

use http::header::CONTENT_TYPE;
use http::request::Parts;

use super::SessionError;
use super::form::{self, Field, Form};
use super::json::{self, Member};
use crate::key::Wanted;

/// The body of a request, as far as it is known.
#[derive(Debug)]
pub(super) enum Content<'b> {
    /// Nobody has looked at it.
    Unread,
    /// There is none.
    Empty,
    /// The whole of it, as it came.
    Text(&'b [u8]),
    /// The whole of it, decoded.
    Decoded(&'b [u8]),
    /// It is encoded in a way that can't be read, or the encoding is broken.
    Unreadable(SessionError),
}

/// What a route asks of a body, in the order of its [`Wanted`]; of what isn't there at all, the
/// list is empty.
#[derive(Debug)]
pub(super) struct Picked<'b> {
    /// `None`: that depends on the body.
    pub(super) members: Option<Vec<Member<'b>>>,
    /// `None`: that depends on the body.
    pub(super) fields: Option<Vec<Field<'b>>>,
}

// === impl Content ===

impl<'b> Content<'b> {
    /// Whether a backend might find JSON in it, though it can't be read here.
    pub(super) fn may_be_json(&self) -> bool {
        match self {
            Self::Unread | Self::Empty => false,
            Self::Text(text) | Self::Decoded(text) => may_be_json(text),
            // A backend that knows nothing of encodings reads it as it came.
            Self::Unreadable(_) => true,
        }
    }

    /// What is wanted of it.
    ///
    /// # Errors
    /// When it isn't what it should be.
    pub(super) fn pick(&self, head: &Parts, wanted: &Wanted) -> Result<Picked<'b>, SessionError> {
        let text = match self {
            Self::Unread => return Ok(Picked::by_head(head, wanted)),
            Self::Empty => return Ok(Picked::nothing()),
            Self::Unreadable(error) => return Err(error.clone()),
            Self::Text(text) | Self::Decoded(text) => *text,
        };
        let form = match wanted.fields.is_empty() {
            true => None,
            false => form::declared(head)?,
        };
        if form.is_some() && matches!(self, Self::Decoded(_)) {
            // A backend that doesn't decode finds other fields in the same bytes: what stands in a
            // gzip header is one to it.
            return Err(SessionError::Encoding {
                encoding: "something, and a form".into(),
            });
        }
        let mut picked = Picked::nothing();
        match form {
            Some(form) => picked.fields = Some(form.pick(text, &wanted.fields)?),
            None if wanted.pointers.is_empty() => {}
            None => {
                check_charset(head)?;
                let members = json::pick(text, &wanted.pointers);
                let members = members.map_err(|malformed| SessionError::Malformed {
                    why: malformed.to_string(),
                })?;
                picked.members = Some(members);
            }
        }
        Ok(picked)
    }
}

/// JSON is UTF-8 (RFC 8259 §8.1). Some backends read it by the charset that it is declared in.
fn check_charset(head: &Parts) -> Result<(), SessionError> {
    for value in head.headers.get_all(CONTENT_TYPE) {
        let names_one = |value: &[u8]| {
            let is_charset = |word: &[u8]| word.eq_ignore_ascii_case(b"charset");
            value.windows(b"charset".len()).any(is_charset)
        };
        if names_one(value.as_bytes()) && !form::is_in_utf8(value.as_bytes()) {
            return Err(SessionError::Malformed {
                why: "its charset isn't UTF-8".into(),
            });
        }
    }
    Ok(())
}

/// Whether an object or an array begins here.
pub(super) fn begins_as_json(text: &[u8]) -> bool {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_some_and(|first| matches!(first, b'{' | b'['))
}

/// Whether some reader may take it for JSON, whatever the characters are encoded in.
fn may_be_json(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    // UTF-16 and UTF-32 have a mark of their own, or zeros.
    let is_wide = text.starts_with(b"\xff\xfe")
        || text.starts_with(b"\xfe\xff")
        || text.iter().take(4).any(|byte| *byte == 0);
    is_wide || begins_as_json(text)
}

// === impl Picked ===

impl Picked<'_> {
    /// What can be said of a body by the request's head: a form has no members, and what is none
    /// has no fields.
    pub(super) fn by_head(head: &Parts, wanted: &Wanted) -> Self {
        let (mut members, mut fields) = (None, None);
        if !wanted.fields.is_empty() {
            match form::declared(head) {
                Ok(Some(Form::Multipart { .. } | Form::Urlencoded)) => members = Some(Vec::new()),
                Ok(None) => fields = Some(Vec::new()),
                // Nothing is known of it before it is refused.
                Err(_) => {}
            }
        }
        Self { members, fields }
    }

    /// Nothing of it.
    pub(super) fn nothing() -> Self {
        Self {
            members: Some(Vec::new()),
            fields: Some(Vec::new()),
        }
    }
}
