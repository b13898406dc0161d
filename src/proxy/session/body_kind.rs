//! The kind of body that a request's head declares (`content-type`). It is read once for each body.
//!
//! Invariant: a kind that isn't [`BodyKind::Unclear`] is what every reader takes the content type for. Which
//! readers may read a body of each kind is left to `content`.

use http::header::CONTENT_TYPE;
use http::request::Parts;
use memchr::memmem;

use super::error::SessionError;
use super::lookalike::header;
use super::parameters::{ValueWithParameters, is_ascii_like, is_utf8};

/// The kind that a body is declared as. The body itself may be of another kind: some backends read JSON
/// whatever is declared, and `curl -d` declares everything as a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// `application/json`, the only name of JSON that no reader takes for something else.
    Json,
    /// `application/x-www-form-urlencoded` (WHATWG URL §5).
    Urlencoded,
    /// `multipart/form-data` (RFC 7578).
    Multipart {
        /// The text that divides the parts.
        boundary: Box<[u8]>,
    },
    /// No content type, or one that not every reader takes for JSON or for a form. Some backends read JSON
    /// all the same, and some a urlencoded form: Rack without a content type, Bottle with `application/x+json`.
    Other {
        /// Whether the content type has the word JSON in it.
        names_json: bool,
    },
    /// A content type that readers understand differently. A request whose body is needed is refused.
    Unclear {
        /// Why the request is refused.
        error: SessionError,
        /// Whether some reader may find JSON in bytes that don't look like it: the content type names JSON, or
        /// a charset that makes JSON of them.
        may_hide_json: bool,
        /// Whether readers may take the body for different forms.
        may_be_form: bool,
    },
}

/// The charset that a content type names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// UTF-8, or none is named.
    Utf8,
    /// Another charset that contains ASCII.
    AsciiLike,
    /// A charset that may encode a brace as any bytes, for example UTF-7 or UTF-16.
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
        match header(head, &CONTENT_TYPE) {
            Ok(value) => Self::declared_by(value.map_or(b"", |value| value.as_bytes())),
            // It depends on the server which of two counts, or whether they are joined.
            Err(ambiguity) => Self::Unclear {
                error: SessionError::ambiguous_header("content-type", ambiguity),
                may_hide_json: true,
                may_be_form: true,
            },
        }
    }

    /// The kind that a content type declares.
    fn declared_by(value: &[u8]) -> Self {
        // Nearly all clients write it like this.
        let is_plain = |plain: &&str| value.eq_ignore_ascii_case(plain.as_bytes());
        if PLAIN_JSON.iter().any(is_plain) {
            return Self::Json;
        }
        let lower = value.to_ascii_lowercase();
        // The loosest readers search the whole value.
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
            // JSON is UTF-8 (RFC 8259 §8.1), but some backends decode it by the declared charset.
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

    /// The form that a content type declares, if it is written strictly.
    fn form(value: &[u8]) -> Result<Self, &'static str> {
        const ODD: &str = "its content type can be read in two ways";
        let described = ValueWithParameters::parse(value).ok_or(ODD)?;
        let is = |name: &str| described.first.eq_ignore_ascii_case(name.as_bytes());
        let is_urlencoded = is("application/x-www-form-urlencoded");
        let is_multipart = is("multipart/form-data");
        if !is_urlencoded && !is_multipart {
            return Err("its content type is a form that backends read in different ways");
        }
        let (mut boundary, mut charset) = (None, None);
        for (name, value) in described.parameters {
            let slot = match &*name.to_ascii_lowercase() {
                b"charset" => &mut charset,
                b"boundary" if is_multipart => &mut boundary,
                // Some readers search for the word `boundary` anywhere.
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
        let has_length = (1..=70).contains(&boundary.len());
        if !has_length || boundary.ends_with(b" ") || !boundary.iter().all(may_stand) {
            return Err("its boundary isn't 1 to 70 of the characters that RFC 2046 allows");
        }
        Ok(Self::Multipart {
            boundary: boundary.into_owned().into(),
        })
    }

    /// Whether the body is declared as a form.
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
