//! Pairs of names and values, decoded once: queries, and `application/x-www-form-urlencoded` bodies.

use std::borrow::Cow;
use std::iter;

use memchr::memmem;
use percent_encoding::percent_decode;

use super::Fields;

/// Notes every field of such a text.
pub(super) fn read<'b>(text: &'b [u8], fields: &mut Fields<'_, 'b>) {
    // Most fields are sent away by their length: the wanted name alone is longer.
    let shortest = fields.names.iter().map(|name| name.least_len()).min();
    let shortest = shortest.unwrap_or(usize::MAX);
    let (mut from, mut is_odd) = (0, false);
    for end in memchr::memchr2_iter(b'&', b';', text).chain(iter::once(text.len())) {
        // Once, `;` was to divide as `&` does, and for some readers it still is.
        let ends_odd = text.get(end) == Some(&b';');
        if end - from >= shortest {
            note(&text[from..end], is_odd || ends_odd, fields);
        }
        is_odd = ends_odd;
        from = end + 1;
    }
}

/// Notes one field. `is_odd`: some readers would not see it.
fn note<'b>(pair: &'b [u8], is_odd: bool, fields: &mut Fields<'_, 'b>) {
    let (name, value) = match memchr::memchr(b'=', pair) {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[][..]),
    };
    // Bytes that aren't ASCII are encoded; readers differ on what they are if they aren't. To qs, a name
    // goes on to a `]=`.
    let is_clear = || {
        !is_odd
            && pair.is_ascii()
            && has_whole_escapes(pair)
            && memmem::find(value, b"]=").is_none()
    };
    fields.note(&decoded(name), || is_clear().then(|| decoded(value)));
}

/// Whether two hexadecimal digits follow each `%`: where they don't, some readers keep the text as
/// it is, some drop it, and some drop all of it.
fn has_whole_escapes(text: &[u8]) -> bool {
    let mut behind = text.split(|byte| *byte == b'%').skip(1);
    behind.all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// Percent-decoded once, `+` being a space (WHATWG URL, urlencoded parsing).
pub(in crate::proxy::session) fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced = text
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte });
    Cow::Owned(percent_decode(&spaced.collect::<Vec<_>>()).collect())
}
