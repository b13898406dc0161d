//! Reads a JSON body once, and picks the JSON text of a few members by pointers (RFC 6901).
//!
//! Invariant: where [`pick`] says [`JsonMember::Found`], every JSON reader that a backend may use finds this
//! text there. Readers differ on a name that is there twice (the first or the last counts) and on names that
//! differ only in case (Go's `encoding/json` takes `SESSION_ID` for `session_id`), so both make the pointer
//! [`JsonMember::Ambiguous`]. Readers also differ on what they accept, so a body that isn't strictly JSON
//! (RFC 8259) is refused. An object on no pointer's path may repeat names, because no id is read from it.

use std::borrow::Cow;

use thiserror::Error;

use super::ambiguity::Ambiguity;
use crate::key::{MAX_POINTERS, Pointer};
use names::{LoneSurrogate, Unescaped};
use scanner::{MAX_DEPTH, Scanner};

mod bytes;
mod names;
mod scanner;

/// The member at a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonMember<'b> {
    /// There is no member: the path to it ends before.
    Missing,
    /// Readers would disagree: a name on the path is there twice, or in another case, or the body is a batch.
    Ambiguous(Ambiguity),
    /// The member's JSON text, without white space around it.
    Found(&'b str),
}

/// Why a body is not JSON that the proxy reads. `at` counts bytes from the body's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum JsonError {
    #[error("the body isn't UTF-8 at byte {at}")]
    NotUtf8 { at: usize },
    #[error("the body isn't JSON: byte {at} should be {expected}")]
    Syntax { at: usize, expected: &'static str },
    #[error("the body isn't JSON: it ends after {at} bytes, where {expected} should follow")]
    Cut { at: usize, expected: &'static str },
    #[error(
        "the body nests arrays and objects more than {max} deep at byte {at}",
        max = MAX_DEPTH
    )]
    TooDeep { at: usize },
}

/// A JSON text as a session or user id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonId<'b> {
    /// A value that says there is none: `null`, `false`, `""`, `0`, `-0`.
    Missing,
    /// The characters of a string, or the digits of an integer as they were written.
    Text(Cow<'b, str>),
    /// A value that can't be an id, in words.
    Unfit(&'static str),
}

/// Picks the member at each of the pointers, in their order.
///
/// At most 64 pointers can be followed. Any further one is [`JsonMember::Ambiguous`], so that the mistake
/// doesn't look like a missing id.
///
/// # Errors
/// When the body isn't strictly JSON, or nests too deep.
pub(super) fn pick<'b>(
    body: &'b [u8],
    pointers: &[Pointer],
) -> Result<Vec<JsonMember<'b>>, JsonError> {
    debug_assert!(pointers.len() <= MAX_POINTERS, "too many pointers");
    // With vector instructions: for 256 KiB of Chinese, the standard library takes ten times as long as all
    // the rest of this function.
    let body = simdutf8::compat::from_utf8(body).map_err(|error| JsonError::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let mut scanner = Scanner::new(body, pointers);
    scanner.document(all_of(pointers))?;

    let mut members = std::mem::take(scanner.found());
    for further in members.iter_mut().skip(MAX_POINTERS) {
        *further = JsonMember::Ambiguous(Ambiguity::TooManyMembers);
    }
    Ok(members)
}

/// Picks the member at each of the pointers in each object of a list of objects, and gives them to `see`.
/// Returns whether `see` returned true for all of them, and stops at the first for which it didn't. `None`:
/// the body isn't such a list.
pub(super) fn in_each_request(
    body: &[u8],
    pointers: &[Pointer],
    see: impl FnMut(&[JsonMember<'_>]) -> bool,
) -> Option<bool> {
    let text = simdutf8::basic::from_utf8(body).ok()?;
    let mut scanner = Scanner::new(text, pointers);
    scanner.requests(all_of(pointers), see).ok()
}

/// Whether a pointer leads to an element, in a body that is a list.
pub(super) fn leads_to_element(pointer: &Pointer) -> bool {
    let first = pointer.tokens().first();
    first.is_some_and(|token| names::is_of_element(token))
}

/// The set of all pointers that can be followed.
fn all_of(pointers: &[Pointer]) -> u64 {
    (0..pointers.len().min(MAX_POINTERS)).fold(0, |set, i| set | 1 << i)
}

/// The value at the start of a text; anything may follow it.
///
/// # Errors
/// When the text doesn't begin with a value.
pub(super) fn first_value(text: &str) -> Result<&str, JsonError> {
    Scanner::new(text, &[]).first_value()
}

/// Reads the text of a [`JsonMember::Found`] as a session or user id.
pub(super) fn id(text: &str) -> JsonId<'_> {
    if is_missing(text) {
        return JsonId::Missing;
    }
    match text.as_bytes() {
        [b'"', .., b'"'] => {
            let raw = &text[1..text.len() - 1];
            if !raw.contains('\\') {
                return JsonId::Text(Cow::Borrowed(raw));
            }
            match Unescaped(raw.chars()).collect::<Result<String, LoneSurrogate>>() {
                Ok(characters) => JsonId::Text(Cow::Owned(characters)),
                Err(LoneSurrogate) => JsonId::Unfit("a lone surrogate"),
            }
        }
        // To some readers 1000.0 and 1e3 are 1000, to others they are three different texts.
        [b'-' | b'0'..=b'9', ..] if text.contains('.') => JsonId::Unfit("a fraction"),
        [b'-' | b'0'..=b'9', ..] if text.contains(['e', 'E']) => {
            JsonId::Unfit("a number with an exponent")
        }
        [b'-' | b'0'..=b'9', ..] => JsonId::Text(Cow::Borrowed(text)),
        [b't', ..] => JsonId::Unfit("true"),
        [b'{', ..] => JsonId::Unfit("an object"),
        [b'[', ..] => JsonId::Unfit("an array"),
        _ => JsonId::Unfit("no JSON value"),
    }
}

/// Reads the text of a [`JsonMember::Found`] as a value that a condition is compared with: `true`, `false`
/// and zero are values here, and a whole number is the same in each of its spellings (`1.0` and `1e0` are
/// `1`).
pub(super) fn scalar(text: &str) -> JsonId<'_> {
    /// Up to here a double holds every whole number exactly.
    const EXACT: f64 = (1_u64 << 53) as f64;
    match text.as_bytes() {
        b"null" | b"\"\"" => JsonId::Missing,
        b"true" | b"false" => JsonId::Text(Cow::Borrowed(text)),
        [b'-' | b'0'..=b'9', ..] => match text.parse::<f64>() {
            Ok(number) if number.fract() == 0.0 && number.abs() < EXACT => {
                // The cast is exact, and takes the sign from `-0`.
                JsonId::Text(Cow::Owned((number as i64).to_string()))
            }
            _ => JsonId::Text(Cow::Borrowed(text)),
        },
        _ => id(text),
    }
}

/// Takes the text of a [`JsonMember::Found`] as it is.
pub(super) fn raw(text: &str) -> JsonId<'_> {
    match is_missing(text) {
        true => JsonId::Missing,
        false => JsonId::Text(Cow::Borrowed(text)),
    }
}

/// Whether the text of a [`JsonMember::Found`] counts as missing. Backends in scripting languages test these
/// values as false, and then make up an id.
fn is_missing(text: &str) -> bool {
    matches!(text, "null" | "false" | "\"\"" | "0" | "-0")
}

#[cfg(test)]
mod tests;
