//! Sources, `body:/session_id`: where in a request one part of an id is read.

use std::fmt;

use http::HeaderName;

use super::error::{TemplateError, WORDS};

/// Where in a request one part of an id is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member of the JSON body. Several pointers are the spellings of one field, of which a request
    /// has one. Never empty.
    Body(Box<[Pointer]>),
    /// A field of a urlencoded or multipart body.
    Form(Box<str>),
    /// A request header.
    Header(HeaderName),
    /// A cookie.
    Cookie(Box<str>),
    /// A field of the query string.
    Query(Box<str>),
    /// A `{name}` of the route's path.
    Path(Box<str>),
}

/// A JSON pointer (RFC 6901), split into tokens and unescaped. Beyond the standard, the token `-1` is the last
/// element of an array. In an object it is the member of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Box<[Box<str>]>,
}

/// The largest number of pointers that are looked up in one body: a set of pointers is the bits of a
/// `u64`.
pub const MAX_POINTERS: usize = u64::BITS as usize;

// === impl Source ===

impl Source {
    /// Parses the text after the filters, `header:x-session-id`.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let unknown = |name: &str| TemplateError::UnknownSource(name.into());
        let (kind, name) = text.split_once(':').ok_or_else(|| unknown(text))?;
        let named = |kind, example| match name {
            "" => Err(TemplateError::Nameless { kind, example }),
            name if name.contains('|') => Err(TemplateError::Never {
                kind,
                name: name.into(),
                reason: "`|` separates the spellings of a body field, as in {body:/a|/b}; write one template for each name",
            }),
            name => Ok(Box::<str>::from(name)),
        };
        match kind {
            "body" => name
                .split('|')
                .map(Pointer::parse)
                .collect::<Result<_, _>>()
                .map(Self::Body),
            "form" => named("form", "{form:session_id}").map(Self::Form),
            "header" => {
                let name = named("header", "{header:x-session-id}")?;
                if name.to_ascii_lowercase().starts_with("x-seriatim-") {
                    return Err(TemplateError::Never {
                        kind: "header",
                        name: name.into(),
                        reason: "the proxy removes x-seriatim-* headers from every request; use another header",
                    });
                }
                HeaderName::try_from(&*name)
                    .map(Self::Header)
                    .map_err(|_| TemplateError::Header(name.into()))
            }
            "cookie" => named("cookie", "{cookie:sid}").map(Self::Cookie),
            "query" => named("query", "{query:session}").map(Self::Query),
            "path" => named("path", "{path:thread}").map(Self::Path),
            filter if WORDS.contains(&filter) => Err(TemplateError::Misplaced(filter.into())),
            _ => Err(unknown(kind)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(pointers) => {
                f.write_str("body:")?;
                for (index, pointer) in pointers.iter().enumerate() {
                    write!(f, "{}{pointer}", if index > 0 { "|" } else { "" })?;
                }
                Ok(())
            }
            Self::Form(name) => write!(f, "form:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Path(name) => write!(f, "path:{name}"),
        }
    }
}

// === impl Pointer ===

impl Pointer {
    /// Parses a pointer with at least one token, such as `/session_id`.
    ///
    /// # Errors
    /// When the text doesn't start with `/`, a `~` is neither `~0` nor `~1` (RFC 6901 §3), or a token counts from
    /// an array's end and isn't `-1`.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |reason| TemplateError::Pointer {
            pointer: text.into(),
            reason,
        };
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| wrong("it must start with `/`, as in {body:/session_id}"))?;
        let tokens = rest
            .split('/')
            .map(|token| {
                let from_end = token.strip_prefix('-').filter(|digits| *digits != "1");
                if from_end.is_some_and(|digits| digits.parse::<u64>().is_ok()) {
                    return Err(wrong(
                        "from the end of a list, only its last element can be named, as -1",
                    ));
                }
                let mut escapes = token.split('~').skip(1);
                if !escapes.all(|after| after.starts_with(['0', '1'])) {
                    return Err(wrong("write 0 (for `~`) or 1 (for `/`) after `~`"));
                }
                // In this order, so that `~01` gives `~1` and not `/` (RFC 6901 §4).
                Ok(token.replace("~1", "/").replace("~0", "~").into())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tokens })
    }

    /// The pointer to the member with this name in the outermost object.
    pub fn to_member(name: &str) -> Self {
        Self {
            tokens: [name.into()].into(),
        }
    }

    /// The reference tokens, unescaped. Never empty.
    pub fn tokens(&self) -> &[Box<str>] {
        &self.tokens
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tokens
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}
