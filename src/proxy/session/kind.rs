//! What kind of body a request's head declares, decided once for a request.
//!
//! Owns the reading of `content-type`. Invariant: a kind that isn't [`BodyKind::Unclear`] is what every
//! reader takes the content type for. Which readers a kind has to reckon with, `content` says.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use memchr::memmem;

use super::described::{ValueWithParameters, is_ascii_like, is_utf8};
use super::error::SessionError;
use super::lookalike::has_twin;

/// What a request's body is declared as. What it is, only the body itself says: some backends read JSON
/// whatever it is declared as, and `curl -d` declares everything as a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// JSON, by the one name that no reader takes for something else (`application/json`).
    Json,
    /// `application/x-www-form-urlencoded` (WHATWG URL §5).
    Urlencoded,
    /// `multipart/form-data` (RFC 7578), and the text between its parts.
    Multipart { boundary: Box<[u8]> },
    /// Nothing, or something that is neither JSON nor a form to all. Some backends then read JSON all the
    /// same, and some a urlencoded form: Rack without a content type, Bottle also with `application/x+json`.
    Other {
        /// Whether it has the word JSON in it.
        names_json: bool,
    },
    /// Something that readers take for different things. It is refused wherever the body is asked for.
    Unclear {
        error: SessionError,
        /// Whether some reader may find JSON in bytes that don't look like it: it is declared so, or its
        /// charset makes JSON of them.
        may_hide_json: bool,
        /// Whether some reader may take it for a form, and others for another one.
        may_be_form: bool,
    },
}

/// How the characters of a body are declared to be encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// In UTF-8, or nothing is said.
    Utf8,
    /// In another charset, of which ASCII is a part.
    AsciiLike,
    /// In a charset that may have any bytes for a brace, as UTF-7 and UTF-16.
    Foreign,
}

const PLAIN_JSON: [&str; 3] = [
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=utf-8",
];

// === impl BodyKind ===

impl BodyKind {
    /// The kind that a request's head declares its body as.
    pub(super) fn new(head: &Parts) -> Self {
        let mut values = head.headers.get_all(CONTENT_TYPE).iter();
        let value = values.next();
        // Which of two counts, or whether they are joined, depends on the server.
        if values.next().is_some() || has_twin(head, &CONTENT_TYPE) {
            return Self::Unclear {
                error: SessionError::ambiguous_header("content-type"),
                may_hide_json: true,
                may_be_form: true,
            };
        }
        Self::declared_by(value.map_or(b"", |value| value.as_bytes()))
    }

    /// What a content type declares.
    fn declared_by(value: &[u8]) -> Self {
        // As nearly all clients write it, and then there is no more to look at.
        let is_plain = |plain: &&str| value.eq_ignore_ascii_case(plain.as_bytes());
        if PLAIN_JSON.iter().any(is_plain) {
            return Self::Json;
        }
        let lower = value.to_ascii_lowercase();
        // As the loosest readers look at it.
        let names = |word: &[u8]| memmem::find(&lower, word).is_some();
        let names_json = names(b"json");
        let names_form = names(b"urlencoded") || names(b"multipart");
        let charset = Charset::named_by(value);
        let unclear = |why: &str| Self::Unclear {
            error: SessionError::malformed(why),
            may_hide_json: names_json || charset == Charset::Foreign,
            may_be_form: names_form,
        };
        if charset != Charset::Utf8 {
            // JSON is UTF-8 (RFC 8259 §8.1), and some backends read it as what is declared.
            return unclear("its charset isn't UTF-8");
        }
        if names_form {
            return Self::form(value).unwrap_or_else(unclear);
        }
        let essence = value.split(|byte| *byte == b';').next();
        match essence.is_some_and(|name| name.eq_ignore_ascii_case(b"application/json")) {
            true => Self::Json,
            false => Self::Other { names_json },
        }
    }

    /// The form that a content type declares, to the letter.
    fn form(value: &[u8]) -> Result<Self, &'static str> {
        const ODD: &str = "its content type can be read in two ways";
        let described = ValueWithParameters::parse(value).ok_or(ODD)?;
        let is = |name: &str| described.first.eq_ignore_ascii_case(name.as_bytes());
        let (is_urlencoded, is_multipart) = (
            is("application/x-www-form-urlencoded"),
            is("multipart/form-data"),
        );
        if !is_urlencoded && !is_multipart {
            return Err("its content type is a kind of form that backends read in different ways");
        }
        let (mut boundary, mut charset) = (None, None);
        for (name, value) in described.parameters {
            let slot = match &*name.to_ascii_lowercase() {
                b"charset" => &mut charset,
                b"boundary" if is_multipart => &mut boundary,
                // Some look for the word `boundary` anywhere.
                _ => return Err(ODD),
            };
            if slot.replace(value).is_some() {
                return Err(ODD);
            }
        }
        if is_urlencoded {
            return Ok(Self::Urlencoded);
        }
        let boundary = boundary.ok_or("its content type names no boundary")?;
        // RFC 2046 §5.1.1.
        let may_stand = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
        if boundary.is_empty()
            || boundary.len() > 70
            || boundary.ends_with(b" ")
            || !boundary.iter().all(may_stand)
        {
            return Err("its boundary isn't 1 to 70 of the characters that may stand in one");
        }
        Ok(Self::Multipart {
            boundary: boundary.into_owned().into(),
        })
    }

    /// Whether it is declared as a form.
    pub(super) fn is_form(&self) -> bool {
        matches!(self, Self::Urlencoded | Self::Multipart { .. })
    }

    /// Whether some backend may read JSON from bytes that don't look like it.
    pub(super) fn may_hide_json(&self) -> bool {
        match self {
            Self::Json => true,
            Self::Urlencoded | Self::Multipart { .. } => false,
            Self::Other { names_json } => *names_json,
            Self::Unclear { may_hide_json, .. } => *may_hide_json,
        }
    }
}

// === impl Charset ===

impl Charset {
    /// The charset that a content type names.
    fn named_by(value: &[u8]) -> Self {
        const WORD: &[u8] = b"charset";
        let begins = |text: &[u8]| {
            let start = text.get(..WORD.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(WORD))
        };
        if !(0..value.len()).any(|at| begins(&value[at..])) {
            return Self::Utf8;
        }
        let Some(described) = ValueWithParameters::parse(value) else {
            return Self::Foreign;
        };
        let charsets = described.parameters.iter().map(|(name, charset)| {
            match name.len() == WORD.len() {
                _ if !begins(name) => Self::Utf8,
                true if is_utf8(charset) => Self::Utf8,
                true if is_ascii_like(charset) => Self::AsciiLike,
                // Another charset, or `charset*` (RFC 2231), which few readers know.
                _ => Self::Foreign,
            }
        });
        let others = charsets.filter(|charset| *charset != Self::Utf8);
        others
            .reduce(|first, other| if first == other { first } else { Self::Foreign })
            .unwrap_or(Self::Utf8)
    }
}

#[cfg(test)]
mod tests {
    //! What a content type declares.

    use super::*;

    fn kind(content_type: &str) -> BodyKind {
        BodyKind::declared_by(content_type.as_bytes())
    }

    #[test]
    fn a_content_type_is_one_kind_to_every_reader() {
        for text in [
            "application/json",
            "application/json; charset=UTF-8",
            "Application/JSON;charset=\"utf-8\"",
            "application/json; profile=x",
        ] {
            assert_eq!(kind(text), BodyKind::Json, "{text}");
        }
        for text in [
            "application/x-www-form-urlencoded",
            "Application/X-WWW-Form-Urlencoded ; charset=\"UTF-8\"",
            "application/x-www-form-urlencoded;charset=utf8;",
        ] {
            assert_eq!(kind(text), BodyKind::Urlencoded, "{text}");
        }
        for (text, expected) in [
            ("multipart/form-data; boundary=x", "x"),
            (
                "Multipart/Form-Data;charset=utf-8;Boundary=\"a b'()+_,-./:=?\"",
                "a b'()+_,-./:=?",
            ),
            (
                "multipart/form-data; boundary=----WebKitFormBoundary7MA4",
                "----WebKitFormBoundary7MA4",
            ),
        ] {
            let boundary = expected.as_bytes().into();
            assert_eq!(kind(text), BodyKind::Multipart { boundary }, "{text}");
        }
        for text in [
            "",
            "application/problem+json",
            "text/json",
            "application/json, text/plain",
            "text/plain",
            "text/plain;;",
            "text/plain; a",
            "image/png",
        ] {
            let names_json = text.contains("json");
            assert_eq!(
                kind(text),
                BodyKind::Other { names_json },
                "{text} is neither"
            );
        }
    }

    #[test]
    fn a_content_type_that_readers_take_for_different_things_is_unclear() {
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        for text in [
            "multipart/mixed; boundary=x",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"x \"",
            "multipart/form-data; boundary=\"x\\y\"",
            "multipart/form-data; boundary=x; boundary=y",
            "multipart/form-data; boundary=x; Boundary=x",
            "multipart/form-data; xboundary=y; boundary=x",
            "multipart/form-data; boundary=x y",
            "multipart/form-data; boundary=a:b",
            "multipart/form-data; boundary='x'",
            "multipart/form-data; boundary*=utf-8''x",
            "multipart/form-data; boundary=x; charset=utf-16",
            "multipart/form-data, application/json; boundary=x",
            "multipart/form-data; boundary=\"x",
            "text/plain; multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded, application/json",
            "application/json, application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded foo",
            "application/x-www-form-urlencoded; charset=iso-8859-1",
            "application/urlencoded",
            "application/json; charset=latin1",
            &long,
        ] {
            assert!(matches!(kind(text), BodyKind::Unclear { .. }), "{text}");
        }
    }

    #[test]
    fn json_may_be_hidden_where_it_is_declared_and_by_a_charset_that_is_not_known() {
        for charset in [
            "utf-7",
            "utf-16",
            "utf-32le",
            "utf-8-sig",
            "shift_jis",
            "cp037",
            "hz",
            "iso-2022-jp",
            "unicode_escape",
            "\"utf-7",
            "utf-8; charset=utf-7",
            "latin1; charset=utf-8; charset=cp500",
        ] {
            for kind_of in [
                "application/json",
                "text/plain",
                "application/x-www-form-urlencoded",
            ] {
                let text = format!("{kind_of}; charset={charset}");
                assert!(kind(&text).may_hide_json(), "{text}");
            }
        }
        for text in [
            "application/json; Charset*=utf-8''utf-7",
            "application/json charset=utf-7",
            "application/json; charset=latin1",
            "application/json",
            "application/problem+json",
            "text/JSON",
        ] {
            assert!(kind(text).may_hide_json(), "{text}");
        }
        for text in [
            "text/html; charset=ISO-8859-1",
            "multipart/mixed; boundary=x",
            "text/plain; charset=utf-8",
            "text/plain",
        ] {
            assert!(!kind(text).may_hide_json(), "{text}: ASCII is ASCII there");
        }
    }
}
