//! Reads a request body once and picks the raw JSON text of a few members by RFC 6901 pointers.
//!
//! Owns the proxy's whole notion of JSON: which bodies it takes for JSON ([`pick`]), when a pointer
//! has one clear answer ([`JsonMember`]), and which values can be a session or user id ([`id`]).
//!
//! The invariant: where [`pick`] says [`Member::Found`], every JSON reader that a backend may use
//! finds this very text there. Readers differ on a name that stands twice (the first or the last
//! one wins) and on names that differ in case only (Go's `encoding/json` takes `SESSION_ID` for
//! `session_id`), so either makes the pointer [`Member::Ambiguous`], never a guess. They differ on
//! what they let pass, too, so a body that is not JSON to the letter of RFC 8259 is refused whole:
//! members that nobody asked for are checked as strictly as the others.
//!
//! It leaves out: building values, which pointers to ask for, and what to do about an ambiguous or
//! malformed body. Objects on no pointer's path may repeat names, as nobody reads an id there.

use std::borrow::Cow;
use std::fmt;

use crate::key::{MAX_POINTERS, Pointer};
use names::{LoneSurrogate, Unescaped};
use scanner::{MAX_DEPTH, Scanner};

mod bytes;
mod names;
mod scanner;

/// What stands at a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonMember<'b> {
    /// Nothing: a name or an element on the way isn't there, or a scalar is in the way.
    Missing,
    /// Readers would disagree: on the way a name stands twice, or one that differs in case only.
    Ambiguous,
    /// The member's raw JSON text, without white space around it.
    Found(&'b str),
}

/// Why a body is not JSON that the proxy reads. `at` counts bytes from the body's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonError {
    /// The bytes from `at` on are not UTF-8.
    NotUtf8 { at: usize },
    /// Something other than `expected` stands at `at`.
    Syntax { at: usize, expected: &'static str },
    /// The body ends at `at`, where `expected` should follow.
    Cut { at: usize, expected: &'static str },
    /// The array or object that opens at `at` is nested deeper than [`MAX_DEPTH`].
    TooDeep { at: usize },
}

/// What a JSON text comes to as a session or user id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonId<'b> {
    /// A value that says there is none: `null`, `false`, `""`, `0`, `-0`.
    Missing,
    /// The characters of a string, or the digits of an integer as they were written.
    Text(Cow<'b, str>),
    /// A value that is no id, and what it is instead, in words.
    Unfit(&'static str),
}

/// Picks what stands at each of the pointers, in their order.
///
/// At most 64 pointers can be followed. Any further one is answered [`Member::Ambiguous`], so that
/// this mistake can't pass for a missing id.
pub(super) fn pick<'b>(
    body: &'b [u8],
    pointers: &[Pointer],
) -> Result<Vec<JsonMember<'b>>, JsonError> {
    debug_assert!(pointers.len() <= MAX_POINTERS, "too many pointers");
    // Of the whole body, and with vector instructions: the standard library needs ten times as long
    // for 256 KiB of Chinese as all the rest of this takes.
    let body = simdutf8::compat::from_utf8(body).map_err(|error| JsonError::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let mut scanner = Scanner::new(body, pointers);
    let all = (0..pointers.len().min(MAX_POINTERS)).fold(0, |set, i| set | 1 << i);
    scanner.document(all)?;

    let (mut members, ambiguous) = scanner.found();
    for i in bytes::ones(ambiguous).chain(MAX_POINTERS..pointers.len()) {
        members[i] = JsonMember::Ambiguous;
    }
    Ok(members)
}

/// The value at the start of a text, whatever follows it.
pub(super) fn first_value(text: &str) -> Result<&str, JsonError> {
    Scanner::new(text, &[]).first_value()
}

/// Reads the text of a [`Member::Found`] as a session or user id.
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

/// Reads the text of a [`Member::Found`] as a value to be compared with. What is true or zero is a
/// value here. A number counts as its digits, and one that is whole as such, however it is written:
/// `1.0` and `1e0` are `1` to whoever compares them.
pub(super) fn scalar(text: &str) -> JsonId<'_> {
    /// Up to here every whole number is a double of its own.
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

/// Reads the text of a [`Member::Found`] as itself, whatever it is.
pub(super) fn raw(text: &str) -> JsonId<'_> {
    match is_missing(text) {
        true => JsonId::Missing,
        false => JsonId::Text(Cow::Borrowed(text)),
    }
}

/// Whether a [`Member::Found`] text counts as if nothing stood there. These are the values that
/// backends in scripting languages test as false and then make up an id of their own.
fn is_missing(text: &str) -> bool {
    matches!(text, "null" | "false" | "\"\"" | "0" | "-0")
}

// === impl Malformed ===

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JsonError::NotUtf8 { at } => write!(
                f,
                "the body is not UTF-8: no character starts with what stands at byte {at}"
            ),
            JsonError::Syntax { at, expected } => write!(
                f,
                "the body is not JSON: at byte {at} there should be {expected}"
            ),
            JsonError::Cut { at, expected } => write!(
                f,
                "the body ends after {at} bytes, before its JSON does: {expected} should follow"
            ),
            JsonError::TooDeep { at } => write!(
                f,
                "the body nests arrays and objects more than {MAX_DEPTH} deep at byte {at}"
            ),
        }
    }
}

impl std::error::Error for JsonError {}

#[cfg(test)]
mod tests;
