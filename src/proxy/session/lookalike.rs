//! Names that some reader takes for another one: of fields in query and form, of cookies, of headers.
//!
//! Owns the whole decision whether a name is the wanted one. Invariant: a name that any known reader
//! folds into the wanted one is never [`Likeness::Other`]. Too many names are [`Likeness::Alike`], and
//! never too few: what is alike is refused, what is other is left aside.
//!
//! It leaves out: names of JSON members (`json::names`), which no reader folds but by case.

use http::HeaderName;
use http::request::Parts;

use crate::http_syntax::is_alike;
use crate::key::Pointer;

/// How a name in a request compares with a wanted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameMatch {
    /// It is the wanted name.
    Same,
    /// It is another name, and some readers take it for the wanted one.
    Alike,
    /// No reader takes it for the wanted name.
    Other,
}

/// What a field is looked for by.
#[derive(Clone, Copy, Debug)]
pub(super) enum WantedName<'n> {
    /// The name of a field, or of a cookie.
    Field(&'n str),
    /// The place of a JSON member: where forms become objects, `a[b]` and `a.b` stand at `/a/b`.
    Member(&'n Pointer),
}

/// What brackets and dots in a name are to a reader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Folding {
    /// Brackets are characters as any other, and dots are `_`.
    Plain,
    /// Brackets end the name; those in front are left out. PHP, Rack, qs: `s[]`, `s[x]`, `[s]`, `[[s`.
    Brackets,
    /// Dots end it as brackets do. qs, where it is told so: `s.x`.
    Objects,
    /// A bracket is `_`, as a dot is: to PHP, one that is never closed.
    Underscores,
}

// === impl Name ===

impl WantedName<'_> {
    /// How long a name is at least that isn't [`Likeness::Other`]: readers leave something out of a name,
    /// and put nothing in.
    pub(super) fn least_len(self) -> usize {
        match self {
            Self::Field(wanted) => wanted.len(),
            Self::Member(pointer) => pointer.tokens().iter().map(|token| token.len()).sum(),
        }
    }

    /// Compares a name, decoded, with the wanted one as the loosest readers do.
    pub(super) fn likeness(self, name: &[u8]) -> NameMatch {
        match self {
            Self::Field(wanted) => likeness(name, wanted),
            Self::Member(pointer) => match pointer.tokens() {
                [token] => likeness(name, token),
                tokens => match leads_to(name, tokens) {
                    true => NameMatch::Alike,
                    false => NameMatch::Other,
                },
            },
        }
    }
}

fn likeness(name: &[u8], wanted: &str) -> NameMatch {
    if name == wanted.as_bytes() {
        return NameMatch::Same;
    }
    // As [`WantedName::least_len`] has it.
    if name.len() < wanted.len() {
        return NameMatch::Other;
    }
    let foldings: &[_] = match wanted.contains('[') {
        true => &[Folding::Plain],
        false => &[Folding::Brackets, Folding::Objects, Folding::Underscores],
    };
    // Bytes that aren't UTF-8 are dropped by some, and so is a byte order mark: nothing but ASCII is left
    // of a name that is compared with ASCII.
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

/// Whether a field of this name, made an object, has a value on the way of these tokens or at its end.
fn leads_to(name: &[u8], tokens: &[Box<str>]) -> bool {
    let divided_by = |divides: &dyn Fn(u8) -> bool| {
        let mut pieces = name.split(|byte| divides(*byte));
        tokens.iter().all(|token| {
            let piece = pieces.find(|piece| !piece.is_empty()).unwrap_or_default();
            likeness(piece, token) != NameMatch::Other
        })
    };
    divided_by(&|byte| matches!(byte, b'[' | b']'))
        || divided_by(&|byte| matches!(byte, b'[' | b']' | b'.'))
}

/// What names have in common that some reader takes for one: PHP trims white space before a name, ends
/// it at a NUL, and has `_` in the place of dots and spaces; ASP.NET looks names up whatever their case;
/// `URLSearchParams` drops a `?` in front; others drop control characters, and a `%` that begins no
/// escape.
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

/// Whether there is another header that some backend takes for this one.
pub(super) fn has_twin(head: &Parts, name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let mut others = head.headers.keys().map(|other| other.as_str().as_bytes());
    others.any(|other| other != name && is_alike(other, name))
}

#[cfg(test)]
mod tests {
    //! Which names are taken for the wanted one, and which are others.

    use super::*;

    fn of_field(name: &str) -> NameMatch {
        WantedName::Field("session_id").likeness(name.as_bytes())
    }

    #[test]
    fn what_some_reader_folds_into_a_name_is_alike() {
        assert_eq!(of_field("session_id"), NameMatch::Same, "the name itself");
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
            assert_eq!(of_field(name), NameMatch::Alike, "{name:?}");
        }
        let broken = WantedName::Field("session_id").likeness(b"session\xff_id");
        assert_eq!(
            broken,
            NameMatch::Alike,
            "bytes that are no UTF-8 are dropped by some"
        );
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
            assert_eq!(of_field(name), NameMatch::Other, "{name:?}");
        }
        let bracketed = WantedName::Field("u[id]");
        for (name, likeness) in [
            ("u[id]", NameMatch::Same),
            ("U[ID]", NameMatch::Alike),
            ("u", NameMatch::Other),
            ("u[name]", NameMatch::Other),
        ] {
            assert_eq!(
                bracketed.likeness(name.as_bytes()),
                likeness,
                "{name}: a wanted name may have brackets"
            );
        }
        assert_eq!(
            WantedName::Field("用户").likeness("用户".as_bytes()),
            NameMatch::Same,
            "and any characters"
        );
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
            assert_eq!(
                WantedName::Member(&pointer).likeness(name.as_bytes()),
                likeness,
                "{name}"
            );
        }
        let pointer = Pointer::parse("/session_id").expect("a pointer");
        assert_eq!(
            WantedName::Member(&pointer).likeness(b"session_id"),
            NameMatch::Same,
            "a pointer of one token is a field's name"
        );
    }
}
