//! `application/x-www-form-urlencoded`: pairs of names and values, decoded once.

use std::borrow::Cow;
use std::iter::once;
use std::mem::replace;

use memchr::{memchr, memchr2_iter};
use percent_encoding::percent_decode;

use super::{Fields, MOST_FIELDS, TOO_MANY};

/// Notes every field of such a body.
pub(super) fn read<'b>(body: &'b [u8], fields: &mut Fields<'_, 'b>) -> Result<(), &'static str> {
    // Some backends read JSON whatever it is declared as, and `curl -d` declares this by default. In
    // a form, a brace is encoded.
    if let Some(b'{' | b'[') = body.trim_ascii_start().first() {
        return Err("it is declared as a form, and looks like JSON");
    }
    let (mut from, mut is_odd) = (0, false);
    let ends = memchr2_iter(b'&', b';', body).chain(once(body.len()));
    for (count, end) in ends.enumerate() {
        if count == MOST_FIELDS {
            return Err(TOO_MANY);
        }
        // Once, `;` was to divide as `&` does, and for some readers it still is.
        let was_odd = replace(&mut is_odd, body.get(end) == Some(&b';'));
        note(&body[from..end], was_odd || is_odd, fields);
        from = end + 1;
    }
    Ok(())
}

/// Notes one field. `is_odd`: some readers would not see it.
fn note<'b>(pair: &'b [u8], is_odd: bool, fields: &mut Fields<'_, 'b>) {
    let (name, value) = match memchr(b'=', pair) {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[][..]),
    };
    // Bytes that aren't ASCII are encoded; readers differ on what they are if they aren't.
    let is_clear = || !is_odd && pair.is_ascii() && has_whole_escapes(pair);
    fields.note(&decoded(name), || is_clear().then(|| decoded(value)));
}

/// Whether two hexadecimal digits follow each `%`: where they don't, some readers keep the text as
/// it is, some drop it, and some drop all of it.
fn has_whole_escapes(text: &[u8]) -> bool {
    let mut behind = text.split(|byte| *byte == b'%').skip(1);
    behind.all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// Percent-decoded once, `+` being a space.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced = text
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte });
    Cow::Owned(percent_decode(&spaced.collect::<Vec<_>>()).collect())
}
