//! Reads queries and `application/x-www-form-urlencoded` bodies: pairs of names and values, decoded once.

use std::borrow::Cow;
use std::iter;

use memchr::memmem;
use percent_encoding::percent_decode;

use super::Fields;
use crate::proxy::session::ambiguity::Ambiguity;

/// Adds every field of a urlencoded text to `fields`.
pub(super) fn read<'b>(text: &'b [u8], fields: &mut Fields<'_, 'b>) {
    // Most fields are shorter than the wanted name, and need no comparison.
    let shortest = fields.names.iter().map(|name| name.min_len()).min();
    let shortest = shortest.unwrap_or(usize::MAX);
    let (mut from, mut is_odd) = (0, false);
    for end in memchr::memchr2_iter(b'&', b';', text).chain(iter::once(text.len())) {
        // For some readers `;` divides fields as `&` does (HTML 4).
        let ends_odd = text.get(end) == Some(&b';');
        if end - from >= shortest {
            add(&text[from..end], is_odd || ends_odd, fields);
        }
        is_odd = ends_odd;
        from = end + 1;
    }
}

/// Adds one field. `is_odd`: some readers would not find it.
fn add<'b>(pair: &'b [u8], is_odd: bool, fields: &mut Fields<'_, 'b>) {
    let (name, value) = match memchr::memchr(b'=', pair) {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[][..]),
    };
    // Readers differ on bytes beyond ASCII that aren't percent-encoded. For qs, a name ends at `]=`.
    fields.add(&decoded(name), || {
        if is_odd {
            return Err(Ambiguity::FieldSemicolon);
        }
        if !pair.is_ascii() {
            return Err(Ambiguity::FieldNotAscii);
        }
        if !has_whole_escapes(pair) {
            return Err(Ambiguity::FieldEscape);
        }
        match memmem::find(value, b"]=") {
            Some(_) => Err(Ambiguity::FieldBracket),
            None => Ok(decoded(value)),
        }
    });
}

/// Whether two hexadecimal digits follow each `%`. Of other escapes some readers keep the text, some drop
/// it, and some drop the whole field.
fn has_whole_escapes(text: &[u8]) -> bool {
    let mut behind = text.split(|byte| *byte == b'%').skip(1);
    behind.all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// Percent-decodes a text once, with `+` as a space (WHATWG URL, urlencoded parsing).
pub(in crate::proxy::session) fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let space = |byte: &u8| if *byte == b'+' { b' ' } else { *byte };
    let spaced: Vec<u8> = text.iter().map(space).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}
