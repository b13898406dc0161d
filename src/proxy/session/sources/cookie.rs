//! One cookie of a request, as every reader of cookies understands it.
//!
//! Readers differ on what divides cookies (some take spaces and commas), on quotes and backslashes, on
//! case, and on several lines. Invariant: where a value is given, all find this one, up to percent
//! escapes, which some decode. What stands in other cookies doesn't matter, unless some reader would
//! find the wanted one in it.

use std::borrow::Cow;

use http::header::COOKIE;
use http::request::Parts;
use percent_encoding::percent_decode;

use crate::http_syntax::is_token_byte;
use crate::proxy::session::form::decoded;
use crate::proxy::session::lookalike::{NameMatch, WantedName};

/// Readers would disagree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AmbiguousCookie;

/// Where a quoted string is open that reaches over a `;`, in the eyes of those for whom a backslash
/// keeps a quote from ending it, and of those for whom it doesn't.
#[derive(Default)]
struct OpenQuotes {
    escaping: bool,
    plain: bool,
}

/// The value of a cookie; `None`: there is none.
///
/// # Errors
/// When readers would disagree about it.
pub(super) fn value<'h>(
    head: &'h Parts,
    name: &str,
) -> Result<Option<Cow<'h, [u8]>>, AmbiguousCookie> {
    let lines = head.headers.get_all(COOKIE);
    let mut found = None;
    for line in lines.iter() {
        let line = line.as_bytes();
        if is_hidden(line, name) {
            return Err(AmbiguousCookie);
        }
        let mut quotes = OpenQuotes::default();
        for pair in line.split(|byte| *byte == b';') {
            let is_quoted = quotes.escaping || quotes.plain;
            quotes.pass(pair);
            // Without an `=` it is an empty one to most.
            let (written, value) = match pair.iter().position(|byte| *byte == b'=') {
                Some(equals) => (&pair[..equals], &pair[equals + 1..]),
                None => (pair, &[][..]),
            };
            let written = written.trim_ascii();
            if written == name.as_bytes() {
                // Of two the first counts, or the last.
                if is_quoted || found.replace(read(value)?).is_some() {
                    return Err(AmbiguousCookie);
                }
            } else if is_alike(written, name) {
                return Err(AmbiguousCookie);
            }
        }
    }
    let Some(found) = found else {
        return Ok(None);
    };
    // Of several lines some backends read the first, some join them with `;`, some with a comma. HTTP/2
    // splits them, but they have been joined before (RFC 9113 §8.2.3).
    if lines.iter().nth(1).is_some() {
        return Err(AmbiguousCookie);
    }
    Ok(Some(found))
}

/// Whether the name, or one that is alike, and a `=` stand anywhere but at the start of a pair, where
/// those would find them who divide cookies by something else than `;`.
fn is_hidden(line: &[u8], name: &str) -> bool {
    memchr::memchr_iter(b'=', line).any(|equals| {
        let end = line[..equals].iter().rposition(|byte| !is_space(byte));
        let end = end.map_or(0, |last| last + 1);
        let divides = |byte: &u8| !is_token_byte(*byte) && !matches!(byte, b'[' | b']');
        let start = line[..end].iter().rposition(divides);
        let (before, written) = line[..end].split_at(start.map_or(0, |last| last + 1));
        let is_first = before
            .trim_ascii_end()
            .last()
            .is_none_or(|last| *last == b';');
        // What is first is compared as a pair's name.
        (!is_first || end < equals) && is_alike(written, name)
    })
}

/// Whether some reader takes the name of a cookie for the wanted one: some decode names, and PHP reads
/// them as those of fields.
fn is_alike(written: &[u8], name: &str) -> bool {
    WantedName::Field(name).likeness(&decoded(unprefixed(written))) != NameMatch::Other
}

/// Whether some reader takes it for white space: in Latin-1, 0x85 and 0xa0 are.
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t') || !byte.is_ascii()
}

/// A cookie's name without what makes browsers guard it (RFC 6265bis §4.1.3). Sanic finds it under
/// either name.
fn unprefixed(name: &[u8]) -> &[u8] {
    let prefixes = [&b"__Host-"[..], b"__Secure-"];
    let mut rests = prefixes.iter().filter_map(|prefix| {
        let start = name.get(..prefix.len())?;
        start
            .eq_ignore_ascii_case(prefix)
            .then(|| &name[prefix.len()..])
    });
    rests.next().unwrap_or(name)
}

/// A value without the quotes that servers take off, percent-decoded: what it comes to is one session
/// more seldom than what it is spelt as, so at worst two share a lock. Of what two spellings have in
/// common for some reader only, one is refused: a space that is encoded (to Rack it is a `+`), a quote
/// that is encoded (PHP keeps those around a value), and what isn't UTF-8.
fn read(raw: &[u8]) -> Result<Cow<'_, [u8]>, AmbiguousCookie> {
    let value = raw
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
        .unwrap_or(raw);
    let is_odd = |byte: &u8| matches!(byte, b'\\' | b'"' | b',') || byte.is_ascii_whitespace();
    // White space beyond ASCII, in UTF-8 or Latin-1, is taken off the end by some.
    let ends_odd = matches!(value.last(), Some(0x85 | 0xa0))
        || str::from_utf8(value).is_ok_and(|text| text.trim() != text);
    // To Express, `j:` begins JSON.
    if value.iter().any(is_odd) || ends_odd || value.starts_with(b"j:") {
        return Err(AmbiguousCookie);
    }
    let escapes = value.split(|byte| *byte == b'%').skip(1);
    let is_whole =
        |rest: &[u8]| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    let (mut whole, mut broken) = (false, false);
    for rest in escapes {
        *if is_whole(rest) {
            &mut whole
        } else {
            &mut broken
        } = true;
    }
    match (whole, broken) {
        // Some then decode none of them, and some those that are whole.
        (true, true) => Err(AmbiguousCookie),
        (true, false) => {
            let decoded = Cow::from(percent_decode(value));
            let is_clear = |text: &str| !text.contains([' ', '"']) && !text.starts_with("j:");
            match str::from_utf8(&decoded).is_ok_and(is_clear) {
                true => Ok(decoded),
                false => Err(AmbiguousCookie),
            }
        }
        (false, _) => Ok(value.into()),
    }
}

// === impl Quotes ===

impl OpenQuotes {
    /// Goes on to the end of a pair.
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

/// Whether a quoted string ends in here.
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
    //! What of a cookie is read, and what isn't.

    use super::*;
    use http::Request;

    fn read_all(lines: &[&[u8]]) -> Result<Option<String>, AmbiguousCookie> {
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
            assert_eq!(read_all(&[line]), Err(AmbiguousCookie), "{shown}");
        }
        for lines in [
            [&b"sid=s1"[..], b"sid=s2"],
            [b"sid=s1", b"sid=s1"],
            [b"a=b", b"sid=s1"],
            [b"sid=s1", b"a=b"],
        ] {
            assert_eq!(
                read_all(&lines),
                Err(AmbiguousCookie),
                "which line is read differs"
            );
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
            assert_eq!(read_all(&[&line]), Err(AmbiguousCookie), "{shown}");
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
