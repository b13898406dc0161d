//! The value of one cookie of a request.
//!
//! Readers differ on what divides cookies (some accept spaces and commas), on quotes and backslashes, on
//! case, and on several `cookie` headers. Invariant: every reader finds the value that [`value`] returns, up
//! to percent escapes, which some decode. The text of other cookies doesn't matter, unless some reader would
//! find the wanted cookie in it.

use std::borrow::Cow;

use http::header::COOKIE;
use http::request::Parts;
use percent_encoding::percent_decode;

use crate::http_syntax::is_token_byte;
use crate::proxy::session::ambiguity::Ambiguity;
use crate::proxy::session::form::decoded;
use crate::proxy::session::lookalike::{NameMatch, WantedName};

/// Whether a quoted string that contains a `;` is still open: for readers with and without escapes.
#[derive(Default)]
struct OpenQuotes {
    /// For readers that take a backslash and a quote for a quote inside the string.
    escaping: bool,
    /// For readers that know no escapes.
    plain: bool,
}

/// The value of a cookie; `None`: the request has no such cookie.
///
/// # Errors
/// When readers would disagree about the value.
pub(super) fn value<'h>(head: &'h Parts, name: &str) -> Result<Option<Cow<'h, [u8]>>, Ambiguity> {
    let lines = head.headers.get_all(COOKIE);
    let mut found = None;
    for line in lines.iter() {
        let line = line.as_bytes();
        not_hidden(line, name)?;
        let mut quotes = OpenQuotes::default();
        for pair in line.split(|byte| *byte == b';') {
            let is_quoted = quotes.escaping || quotes.plain;
            quotes.pass(pair);
            // Most readers take a cookie without `=` for an empty one.
            let (written, value) = match pair.iter().position(|byte| *byte == b'=') {
                Some(equals) => (&pair[..equals], &pair[equals + 1..]),
                None => (pair, &[][..]),
            };
            let written = written.trim_ascii();
            if written == name.as_bytes() {
                // Some readers take the first of two, and some the last.
                if is_quoted {
                    return Err(Ambiguity::CookieQuoted);
                }
                if found.replace(read(value)?).is_some() {
                    return Err(Ambiguity::CookieTwice);
                }
            } else if is_alike(written, name) {
                return Err(Ambiguity::CookieAlike);
            }
        }
    }
    let Some(found) = found else {
        return Ok(None);
    };
    // Of several headers some backends read the first, some join them with `;`, some with a comma. The
    // fields that HTTP/2 splits have been joined before (RFC 9113 §8.2.3).
    if lines.iter().nth(1).is_some() {
        return Err(Ambiguity::CookieLines);
    }
    Ok(Some(found))
}

/// Checks that the name, or one that some readers take for it, and a `=` are nowhere but at the start of a
/// pair: readers that don't divide cookies at `;` alone would find the cookie there.
fn not_hidden(line: &[u8], name: &str) -> Result<(), Ambiguity> {
    for equals in memchr::memchr_iter(b'=', line) {
        let end = line[..equals].iter().rposition(|byte| !is_space(byte));
        let end = end.map_or(0, |last| last + 1);
        let divides = |byte: &u8| !is_token_byte(*byte) && !matches!(byte, b'[' | b']');
        let start = line[..end].iter().rposition(divides);
        let (before, written) = line[..end].split_at(start.map_or(0, |last| last + 1));
        let is_first = matches!(before.trim_ascii_end().last(), None | Some(b';'));
        // The name at the start of a pair is compared in `value`.
        let ambiguity = match (is_first, end < equals) {
            (false, _) => Ambiguity::CookieInside,
            (true, true) => Ambiguity::CookieSpaced,
            (true, false) => continue,
        };
        if is_alike(written, name) {
            return Err(ambiguity);
        }
    }
    Ok(())
}

/// Whether some reader takes the name of a cookie for the wanted name: some decode names, and PHP folds
/// them like names of form fields.
fn is_alike(written: &[u8], name: &str) -> bool {
    WantedName::Field(name).compare(&decoded(unprefixed(written))) != NameMatch::Other
}

/// Whether some reader takes a byte for white space: in Latin-1, 0x85 and 0xa0 are.
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t') || !byte.is_ascii()
}

/// A cookie's name without the prefixes that browsers enforce rules for (RFC 6265bis §4.1.3). Sanic finds
/// the cookie under either name.
fn unprefixed(name: &[u8]) -> &[u8] {
    let prefixes = [&b"__Host-"[..], b"__Secure-"];
    let mut rests = prefixes.iter().filter_map(|prefix| {
        let (start, rest) = name.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then_some(rest)
    });
    rests.next().unwrap_or(name)
}

/// A value without the quotes that servers take off, percent-decoded. Two spellings of one value share a
/// lock, even if a backend that doesn't decode has two sessions. Refused is what only some readers decode to
/// the same text: an encoded space (Rack reads `+` for it), an encoded quote (PHP keeps quotes around a
/// value), and bytes that aren't UTF-8.
fn read(raw: &[u8]) -> Result<Cow<'_, [u8]>, Ambiguity> {
    let unquoted = raw.strip_prefix(b"\"");
    let unquoted = unquoted.and_then(|rest| rest.strip_suffix(b"\""));
    let value = unquoted.unwrap_or(raw);
    let is_odd = |byte: &u8| matches!(byte, b'\\' | b'"' | b',') || byte.is_ascii_whitespace();
    // White space beyond ASCII, in UTF-8 or Latin-1, is taken off the end by some.
    let ends_odd = matches!(value.last(), Some(0x85 | 0xa0))
        || str::from_utf8(value).is_ok_and(|text| text.trim() != text);
    if value.iter().any(is_odd) {
        return Err(Ambiguity::CookieCharacter);
    }
    if ends_odd {
        return Err(Ambiguity::CookieEnd);
    }
    // Express reads JSON after `j:`.
    if value.starts_with(b"j:") {
        return Err(Ambiguity::CookieJson);
    }
    let escapes = value.split(|byte| *byte == b'%').skip(1);
    let is_whole =
        |rest: &[u8]| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    let (mut whole, mut broken) = (false, false);
    for rest in escapes {
        whole |= is_whole(rest);
        broken |= !is_whole(rest);
    }
    match (whole, broken) {
        // Some readers then decode no escape, and some decode the whole ones.
        (true, true) => Err(Ambiguity::CookieEscape),
        (true, false) => {
            let decoded = Cow::from(percent_decode(value));
            match str::from_utf8(&decoded) {
                Err(_) => Err(Ambiguity::CookieNotUtf8),
                Ok(text) if text.contains([' ', '"']) => Err(Ambiguity::CookieEncoded),
                Ok(text) if text.starts_with("j:") => Err(Ambiguity::CookieJson),
                Ok(_) => Ok(decoded),
            }
        }
        (false, _) => Ok(value.into()),
    }
}

// === impl OpenQuotes ===

impl OpenQuotes {
    /// Moves on to the end of a pair.
    fn pass(&mut self, pair: &[u8]) {
        let value = pair.iter().position(|byte| *byte == b'=');
        let value = value.map_or(&[][..], |equals| pair[equals + 1..].trim_ascii_start());
        let opened = value.strip_prefix(b"\"");
        let after = |is_open: bool, escapes: bool| {
            let inside = if is_open { Some(pair) } else { opened };
            inside.is_some_and(|inside| !has_end(inside, escapes))
        };
        self.escaping = after(self.escaping, true);
        self.plain = after(self.plain, false);
    }
}

/// Whether a quoted string ends in this text.
fn has_end(text: &[u8], escapes: bool) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return true,
            b'\\' if escapes => {
                bytes.next();
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn read_all(lines: &[&[u8]]) -> Result<Option<String>, Ambiguity> {
        let request = Request::builder();
        let request = lines
            .iter()
            .fold(request, |request, line| request.header("cookie", *line));
        let head = request.body(()).unwrap().into_parts().0;
        let found = value(&head, "sid")?;
        Ok(found.map(|value| String::from_utf8(value.into_owned()).unwrap()))
    }

    #[test]
    fn what_stands_in_other_cookies_does_not_matter() {
        for line in [
            r#"a={"x":"y, z"}; sid=s1; b="q"#,
            r#"a="{\"x\": 1}"; sid=s1"#,
            r#"a="{\"x\"; 1}"; sid=s1"#,
            r#"a=it"s; sid=s1"#,
            "a=b c, d; sid=s1;",
            "xsid=1; a=x&sid=2; a.sid=3;\tsid=s1; side; sidx=2",
            "a=b; sid=\"s1\"",
            "a=b; sid=%73%31",
        ] {
            assert_eq!(
                read_all(&[line.as_bytes()]),
                Ok(Some("s1".to_owned())),
                "{line} has one sid to every reader"
            );
        }
        for line in ["", "s-id=s1; xsid=s2", "a=b, c=d", "a=sid"] {
            assert_eq!(read_all(&[line.as_bytes()]), Ok(None), "{line} has none");
        }
        for line in ["sid", "sid; a=b", "sid="] {
            let empty = Ok(Some(String::new()));
            assert_eq!(
                read_all(&[line.as_bytes()]),
                empty,
                "{line} has an empty one"
            );
        }
    }

    #[test]
    fn a_cookie_that_some_readers_would_find_elsewhere_is_ambiguous() {
        for line in [
            &b"x=y sid=s1"[..],
            b"x=y, sid=s1",
            b"x=y,sid=s1; sid=s1",
            b"x=\"sid=s1\"",
            b"sid=sid=s1",
            b"=sid=s1",
            b"a=b, SID=s1",
            b"a=b s%69d=s1",
            b"a=b,sid[]=s1",
            b"a=b, __Host-sid =s1",
            b"a=\"Sid=s1\"",
            b"sid =s1",
            b"sid\t=s1",
            b"sid\xa0=s1",
            b"x=y; \xa0sid=s1",
            b"a=\"x; sid=s1; y\"",
            b"a=\"x; sid=s1",
            b"a=\"x\\\"; sid=s1; y\"",
            b"a=\"x\\\"; b=\"; sid=s1; y\"",
            b"sid=s1; SID=s2",
            b"sid=s1; sid=s1",
            b"sid; sid=s1",
            b"sid=s1; sid",
            b"sid=s1; SID=s1",
            b"SID=s1",
            b"__Host-sid=s1",
            b"sid=s1; __Secure-sid=s2",
            b"sid[]=s1",
            b"[sid=s1",
            b"+sid=s1",
            b"sid%00x=s1",
            b"Sid=s2; sid=s1",
            b"sid=s1; s%69d=s2",
            b"%73id=s1",
        ] {
            let shown = line.escape_ascii();
            assert!(read_all(&[line]).is_err(), "{shown}");
        }
        for lines in [
            [&b"sid=s1"[..], b"sid=s2"],
            [b"sid=s1", b"sid=s1"],
            [b"a=b", b"sid=s1"],
            [b"sid=s1", b"a=b"],
        ] {
            assert!(read_all(&lines).is_err(), "which line is read differs");
        }
        assert_eq!(read_all(&[b"a=b", b"c=d"]), Ok(None), "no line has it");
    }

    #[test]
    fn a_value_that_some_readers_would_change_is_ambiguous() {
        for value in [
            &br#""\101AA""#[..],
            br#""A\,B""#,
            b"A\\B",
            b"\"A",
            b"A\"",
            b"\"",
            b"\"\"A\"\"",
            b"A\"B",
            b"A B",
            b"\"A B\"",
            b" A",
            b"\"A\" ",
            b"A,B",
            b"A\tB",
            b"A\xc2\xa0",
            b"A\xe3\x80\x80",
            b"A\xc3\x85",
            b"%41%zz",
            b"a%20b",
            b"%22a%22",
            b"a%ff",
            b"j:71",
            b"j%3A71",
            b"\"j:[71]\"",
        ] {
            let line = [b"sid=", value, b"; a=b"].concat();
            let shown = line.escape_ascii();
            assert!(read_all(&[&line]).is_err(), "{shown}");
        }
    }

    #[test]
    fn both_spellings_of_an_escape_are_one_value() {
        for (value, expected) in [
            ("a%3Ab", "a:b"),
            ("a:b", "a:b"),
            ("\"%61\"", "a"),
            ("%e7%94%a8", "用"),
            ("a%2541", "a%41"),
            ("a%2", "a%2"),
            ("100%", "100%"),
            ("100%25", "100%"),
            ("a+b", "a+b"),
        ] {
            let line = format!("sid={value}");
            assert_eq!(
                read_all(&[line.as_bytes()]),
                Ok(Some(expected.to_owned())),
                "{line}"
            );
        }
    }
}
