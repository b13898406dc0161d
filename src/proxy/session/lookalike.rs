//! Compares names of fields, cookies and headers as the loosest readers do.
//!
//! Invariant: a name that any known reader takes for the wanted name is never [`NameMatch::Other`]. Too many
//! names are [`NameMatch::Alike`], and never too few: a request with a name that is alike is refused, and other
//! names are ignored. Names of JSON members are left to `json::names`: readers fold only their case.

use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::ambiguity::Ambiguity;
use crate::http_syntax::is_alike;
use crate::key::Pointer;

/// How a name in a request compares with the wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameMatch {
    /// The name is the wanted name.
    Same,
    /// The name differs, and some readers take it for the wanted name.
    Alike,
    /// No reader takes the name for the wanted name.
    Other,
}

/// What a field is searched by.
#[derive(Clone, Copy, Debug)]
pub(super) enum WantedName<'n> {
    /// The name of a field, or of a cookie.
    Field(&'n str),
    /// The pointer to a JSON member: readers that make objects of forms put `a[b]` and `a.b` at `/a/b`.
    Member(&'n Pointer),
}

/// How a reader treats brackets and dots in a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Folding {
    /// Brackets are ordinary characters, and dots are `_`.
    Plain,
    /// Brackets end the name, and brackets in front are dropped. PHP, Rack, qs: `s[]`, `s[x]`, `[s]`, `[[s`.
    Brackets,
    /// Dots end the name as brackets do. qs with `allowDots`: `s.x`.
    Objects,
    /// A bracket is `_`, as a dot is. PHP, for a bracket that is never closed.
    Underscores,
}

// === impl WantedName ===

impl WantedName<'_> {
    /// The least length of a name that isn't [`NameMatch::Other`], in bytes: readers drop characters of a
    /// name, and add none.
    pub(super) fn min_len(self) -> usize {
        match self {
            Self::Field(wanted) => wanted.len(),
            // The last element of an array has any index, or none.
            Self::Member(pointer) => {
                let tokens = pointer.tokens().iter().filter(|token| !is_last(token));
                tokens.map(|token| token.len()).sum()
            }
        }
    }

    /// Compares a decoded name with the wanted name.
    pub(super) fn compare(self, name: &[u8]) -> NameMatch {
        match self {
            Self::Field(wanted) => compare(name, wanted),
            Self::Member(pointer) => match pointer.tokens() {
                [token] => compare(name, token),
                tokens => match leads_to(name, tokens) {
                    true => NameMatch::Alike,
                    false => NameMatch::Other,
                },
            },
        }
    }
}

fn compare(name: &[u8], wanted: &str) -> NameMatch {
    if name == wanted.as_bytes() {
        return NameMatch::Same;
    }
    // See `min_len`.
    if name.len() < wanted.len() {
        return NameMatch::Other;
    }
    let foldings: &[_] = match wanted.contains('[') {
        true => &[Folding::Plain],
        false => &[Folding::Brackets, Folding::Objects, Folding::Underscores],
    };
    // Some readers drop a byte order mark and bytes that aren't UTF-8, so only ASCII is compared with ASCII.
    let is_folded = |folding: &Folding| {
        folded(name, *folding)
            .filter(|byte| byte.is_ascii() || !wanted.is_ascii())
            .eq(folded(wanted.as_bytes(), Folding::Plain))
    };
    match foldings.iter().any(is_folded) {
        true => NameMatch::Alike,
        false => NameMatch::Other,
    }
}

/// Whether a field of this name, made an object, has a value at these tokens or on the path to them.
fn leads_to(name: &[u8], tokens: &[Box<str>]) -> bool {
    let divided_by = |divides: &dyn Fn(u8) -> bool| {
        let pieces = name.split(|byte| divides(*byte));
        let mut pieces = pieces.filter(|piece| !piece.is_empty()).peekable();
        tokens.iter().all(|token| {
            if is_last(token) {
                // `a[]`, `a[0]`: which element is the last, the other fields say.
                let is_index = |piece: &&[u8]| piece.iter().all(u8::is_ascii_digit);
                if pieces.next_if(is_index).is_some() || pieces.peek() != Some(&token.as_bytes()) {
                    return true;
                }
            }
            compare(pieces.next().unwrap_or_default(), token) != NameMatch::Other
        })
    };
    divided_by(&|byte| matches!(byte, b'[' | b']'))
        || divided_by(&|byte| matches!(byte, b'[' | b']' | b'.'))
}

/// Whether a token leads to an array's last element.
fn is_last(token: &str) -> bool {
    token == "-1"
}

/// The form in which names are equal that some reader takes for the same: PHP trims white space before a
/// name, ends it at a NUL, and puts `_` for dots and spaces; ASP.NET ignores case; `URLSearchParams` drops a
/// `?` in front; others drop control characters, and a `%` that begins no escape.
fn folded(name: &[u8], folding: Folding) -> impl Iterator<Item = u8> {
    let divides = move |byte: u8| match byte {
        b'[' | b']' => matches!(folding, Folding::Brackets | Folding::Objects),
        b'.' => folding == Folding::Objects,
        _ => false,
    };
    let is_before = |byte: u8| byte.is_ascii_whitespace() || byte == b'?' || divides(byte);
    let start = name.iter().position(|byte| !is_before(*byte));
    let name = name[start.unwrap_or(name.len())..].trim_ascii_end();
    let text = name.iter().copied();
    text.take_while(move |byte| *byte != 0 && !divides(*byte))
        .filter(|byte| !byte.is_ascii_control() && *byte != b'%')
        .map(move |byte| match byte {
            b'.' | b' ' => b'_',
            b'[' if folding == Folding::Underscores => b'_',
            other => other.to_ascii_lowercase(),
        })
}

// === headers ===

/// The value of a header; `None`: there is none.
///
/// # Errors
/// When the header is there twice, or another one that some backend takes for it.
pub(super) fn header<'h>(
    head: &'h Parts,
    name: &HeaderName,
) -> Result<Option<&'h HeaderValue>, Ambiguity> {
    let (mut found, mut has_twin) = (None, false);
    for (other, value) in alike(head, name) {
        if other != name {
            has_twin = true;
        } else if found.replace(value).is_some() {
            return Err(Ambiguity::HeaderTwice);
        }
    }
    match has_twin {
        true => Err(Ambiguity::HeaderAlike),
        false => Ok(found),
    }
}

/// The headers that some backend takes for this one, and the header itself: each line with its value.
pub(super) fn alike<'h>(
    head: &'h Parts,
    name: &HeaderName,
) -> impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)> {
    let is_meant = move |other: &HeaderName| {
        other == name || is_alike(other.as_str().as_bytes(), name.as_str().as_bytes())
    };
    head.headers
        .iter()
        .filter(move |(other, _)| is_meant(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(name: &str) -> NameMatch {
        WantedName::Field("session_id").compare(name.as_bytes())
    }

    #[test]
    fn what_some_reader_folds_into_a_name_is_alike() {
        assert_eq!(compared("session_id"), NameMatch::Same, "the name itself");
        for name in [
            "session_id[]",
            "session_id[0]",
            "session_id[x][y]",
            "[session_id]",
            "[[session_id",
            "]session_id",
            "session_id]",
            "session[id",
            "session.id",
            "session_id.x",
            ".session_id",
            "?session_id",
            "session id",
            " \t session_id",
            "session_id ",
            "SESSION_ID",
            "Session.Id[]",
            "session_id\0x",
            "session_id\u{1}",
            "session_id%",
            "%session_id",
            "\u{feff}session_id",
        ] {
            assert_eq!(compared(name), NameMatch::Alike, "{name:?}");
        }
        let broken = WantedName::Field("session_id").compare(b"session\xff_id");
        assert_eq!(broken, NameMatch::Alike, "some drop other bytes");
    }

    #[test]
    fn other_names_are_other_names() {
        for name in [
            "",
            "session",
            "session_ids",
            "xsession_id",
            "session-id",
            "session[id]",
            "x[session_id]",
            "x.session_id",
            "sessionid",
            "session_i",
        ] {
            assert_eq!(compared(name), NameMatch::Other, "{name:?}");
        }
        let bracketed = WantedName::Field("u[id]");
        for (name, likeness) in [
            ("u[id]", NameMatch::Same),
            ("U[ID]", NameMatch::Alike),
            ("u", NameMatch::Other),
            ("u[name]", NameMatch::Other),
        ] {
            let found = bracketed.compare(name.as_bytes());
            assert_eq!(found, likeness, "{name}: a wanted name may have brackets");
        }
        let found = WantedName::Field("用户").compare("用户".as_bytes());
        assert_eq!(found, NameMatch::Same, "and any characters");
    }

    #[test]
    fn a_field_stands_where_a_pointer_leads() {
        let pointer = Pointer::parse("/meta/session_id").expect("a pointer");
        for (name, likeness) in [
            ("meta[session_id]", NameMatch::Alike),
            ("meta.session_id", NameMatch::Alike),
            ("Meta[Session_Id][]", NameMatch::Alike),
            ("meta[session.id]", NameMatch::Alike),
            ("[meta][session_id]", NameMatch::Alike),
            ("meta", NameMatch::Other),
            ("session_id", NameMatch::Other),
            ("meta[user]", NameMatch::Other),
            ("x[meta][session_id]", NameMatch::Other),
        ] {
            let found = WantedName::Member(&pointer).compare(name.as_bytes());
            assert_eq!(found, likeness, "{name}");
        }
        let pointer = Pointer::parse("/messages/-1/id").expect("a pointer");
        for (name, likeness) in [
            ("messages[0][id]", NameMatch::Alike),
            ("messages[][id]", NameMatch::Alike),
            ("messages.17.id", NameMatch::Alike),
            ("Messages[-1][id]", NameMatch::Alike),
            ("messages[0][role]", NameMatch::Other),
            ("messages[0]", NameMatch::Other),
            ("messages", NameMatch::Other),
        ] {
            let found = WantedName::Member(&pointer).compare(name.as_bytes());
            assert_eq!(found, likeness, "{name}: any element may be the last");
            let min_len = WantedName::Member(&pointer).min_len();
            assert!(
                likeness == NameMatch::Other || name.len() >= min_len,
                "{name} is long enough"
            );
        }
        let pointer = Pointer::parse("/session_id").expect("a pointer");
        let found = WantedName::Member(&pointer).compare(b"session_id");
        assert_eq!(
            found,
            NameMatch::Same,
            "a pointer of one token is a field's name"
        );
    }
}
