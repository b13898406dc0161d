//! Parses header values of the form `text; name=value; name="value"` (RFC 9110 §5.6.6), strictly.
//!
//! Invariant: a value that two readers could take apart differently isn't parsed at all.

use std::borrow::Cow;

use crate::http_syntax::{is_token_byte, trim};

/// A header value with its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ValueWithParameters<'t> {
    /// The text before the first `;`.
    pub(super) first: &'t [u8],
    /// The parameters' names as they are written, and their values without quotes.
    pub(super) parameters: Vec<(&'t [u8], Cow<'t, [u8]>)>,
}

/// Whether a charset is UTF-8 or a part of it, by its name.
pub(super) fn is_utf8(charset: &[u8]) -> bool {
    let is_it = |name: &&str| charset.eq_ignore_ascii_case(name.as_bytes());
    ["utf-8", "utf8", "us-ascii", "ascii"].iter().any(is_it)
}

/// Whether a charset contains ASCII, by its name. It knows those that HTTP libraries write by default.
pub(super) fn is_ascii_like(charset: &[u8]) -> bool {
    let is_it = |name: &&str| charset.eq_ignore_ascii_case(name.as_bytes());
    ["iso-8859-1", "latin1", "windows-1252"].iter().any(is_it)
}

// === impl ValueWithParameters ===

impl<'t> ValueWithParameters<'t> {
    /// Parses a header value. `None`: some readers may understand it differently.
    pub(super) fn parse(text: &'t [u8]) -> Option<Self> {
        let text = trim(text);
        let end = text.iter().position(|byte| *byte == b';');
        let (first, mut rest) = text.split_at(end.unwrap_or(text.len()));
        let first = trim(first);
        let may_stand = |byte: &u8| is_token_byte(*byte) || *byte == b'/';
        if first.is_empty() || !first.iter().all(may_stand) {
            return None;
        }
        let mut parameters = Vec::new();
        while let Some(behind) = rest.strip_prefix(b";") {
            let behind = trim(behind);
            // A `;` at the end begins no parameter.
            if behind.is_empty() {
                return Some(Self { first, parameters });
            }
            let (name, behind) = token(behind)?;
            let behind = behind.strip_prefix(b"=")?;
            let (value, behind) = match behind.strip_prefix(b"\"") {
                Some(quoted) => self::quoted(quoted)?,
                None => {
                    let (value, behind) = token(behind)?;
                    // PHP reads `'` as a quote.
                    if value.starts_with(b"'") {
                        return None;
                    }
                    (Cow::Borrowed(value), behind)
                }
            };
            parameters.push((name, value));
            rest = trim(behind);
        }
        rest.is_empty().then_some(Self { first, parameters })
    }
}

/// The token at the start of a text, and the rest.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| !is_token_byte(*byte));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    (!token.is_empty()).then_some((token, rest))
}

/// The text of a quoted string, and the rest behind its closing quote. `text` begins behind the opening
/// quote.
fn quoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut unescaped = Vec::new();
    let (mut at, mut from) = (0, 0);
    // For readers without escapes the string ends at `\"`, and a `;` after it begins a parameter.
    let mut may_have_ended = false;
    loop {
        match *text.get(at)? {
            b'"' => break,
            b'\\' => {
                let next = *text.get(at + 1)?;
                may_have_ended |= next == b'"';
                if next == b'"' || next == b'\\' {
                    unescaped.extend_from_slice(&text[from..at]);
                    from = at + 1;
                    at += 1;
                }
            }
            b';' if may_have_ended => return None,
            b'\t' => {}
            byte if byte.is_ascii_control() => return None,
            _ => {}
        }
        at += 1;
    }
    let (last, rest) = (&text[from..at], &text[at + 1..]);
    if from == 0 {
        return Some((Cow::Borrowed(last), rest));
    }
    unescaped.extend_from_slice(last);
    Some((Cow::Owned(unescaped), rest))
}
