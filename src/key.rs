//! Session keys, and the templates that say where their parts come from.
//!
//! A template is parsed once, when the configuration is read; here it is only taken apart, never
//! filled in (that is `proxy::session`). Invariant: two different pairs of ids never give one key,
//! because the bytes that have a meaning in a key are percent-encoded in an id.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use http::HeaderName;
use thiserror::Error;

pub use filter::{IdFilter, Placeholder};
pub use shown::{OTHER_METHOD, hide_ids, ids_are_hidden, known_method, shown, shown_method};
pub use space::{INSTANCE, Keyspace, SessionIds};

mod filter;
mod shown;
mod space;

/// The name of a session's lock in the store, as `lock:session:u1:s1`. Cheap to clone. It has no
/// `Display`: whoever writes it says whether it is for the log ([`SessionKey::shown`]) or for whom it
/// concerns ([`SessionKey::as_str`]).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionKey(Arc<str>);

/// Where one piece of an id comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A member of the JSON body: whichever of these is there, as the spellings of one field. Never
    /// empty.
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

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text that stands for itself.
    Literal(Box<str>),
    /// A source in braces.
    Placeholder(Placeholder),
}

/// Literal text and sources in braces, as `session_{hash:body:/input}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Box<[TemplatePart]>,
}

/// A JSON pointer (RFC 6901), taken apart and unescaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    tokens: Box<[Box<str>]>,
}

/// What of a request's body and query is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedFields {
    /// Members of a JSON body, each once: first those that are asked for, then those that have the name
    /// of a field, which a reader of JSON would find in its place.
    pub pointers: Vec<Pointer>,
    /// How many of the pointers are asked for.
    pub asked: usize,
    /// Fields of a form, each once.
    pub fields: Vec<Box<str>>,
    /// Fields of the query, each once.
    pub queries: Vec<Box<str>>,
}

/// How many pointers are followed at once in one body: a set of them is the bits of a `u64`.
pub const MAX_POINTERS: usize = u64::BITS as usize;

/// How a session key is built from a user id and a session id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTemplate {
    parts: Box<[KeyPart]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum KeyPart {
    Literal(Box<str>),
    User,
    Session,
}

/// Why a template can't be used. The text says what stands there and what to write.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// A `{` without its `}`.
    #[error("a `{{` is never closed: write `}}` behind the source")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("a `}}` stands without its `{{`: a source is written as {{header:x-session-id}}")]
    Stray,
    /// The word before the colon names no source.
    #[error("`{name}` is no source: write one of {}", WORDS.join(", "))]
    UnknownSource {
        /// What was written.
        name: String,
    },
    /// A filter where a source should be.
    #[error(
        "`{filter}` can't stand behind another filter: write one of uuid, int and lower right before the \
         source, and hash only before that"
    )]
    Misplaced {
        /// The filter's word.
        filter: String,
    },
    /// A source without the name of what it takes.
    #[error("`{{{kind}:}}` names nothing: write {example}")]
    Nameless {
        /// The kind of source.
        kind: &'static str,
        /// A source of this kind as it should be written.
        example: &'static str,
    },
    /// Not a JSON pointer.
    #[error("`{pointer}` is no JSON pointer: {why}")]
    Pointer {
        /// What was written.
        pointer: String,
        /// What is wrong with it, and what to write.
        why: &'static str,
    },
    /// Not the name of a header.
    #[error("`{name}` can't be the name of a header: write letters, digits and `-`")]
    Header {
        /// What was written.
        name: String,
    },
    /// A name that no request can have there.
    #[error("`{{{kind}:{name}}}` is never there: {why}")]
    Never {
        /// The kind of source.
        kind: &'static str,
        /// What was written.
        name: String,
        /// Why not, and what to write.
        why: &'static str,
    },
    /// Two ids without a boundary.
    #[error(
        "the key of two users' sessions could be the same: write `:` between {{user_id}} and {{session_id}}"
    )]
    NoBoundary,
    /// An empty template.
    #[error("an empty template never resolves: write a source, as {{header:x-session-id}}")]
    Empty,
    /// A key template names something else than the two ids.
    #[error("`{{{name}}}` has no place in a key: write {{user_id}} or {{session_id}}")]
    UnknownId {
        /// What was written.
        name: String,
    },
    /// A key that is the same for every session.
    #[error("the key must name the session: write {{session_id}} in it")]
    NoSession,
}

/// The kinds of source and the filters before them, as they are written.
const WORDS: [&str; 10] = [
    "body", "form", "header", "cookie", "query", "path", "hash", "uuid", "int", "lower",
];

// === impl SessionKey ===

impl SessionKey {
    /// A key that is already written out, as it stands in the store.
    pub fn literal(key: &str) -> Self {
        Self(Arc::from(key))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As in the log, into which it may come as a part of something else.
impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

// === impl KeyTemplate ===

impl KeyTemplate {
    /// Parses `lock:session:{user_id}:{session_id}` and its like.
    ///
    /// # Errors
    /// When braces don't match, name something else than the two ids, or `{session_id}` is missing.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let parts = split(text)?
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Ok(KeyPart::Literal(text.into())),
                Piece::Braced("user_id") => Ok(KeyPart::User),
                Piece::Braced("session_id") => Ok(KeyPart::Session),
                Piece::Braced(name) => Err(TemplateError::UnknownId { name: name.into() }),
            })
            .collect::<Result<Box<[_]>, _>>()?;
        if !parts.contains(&KeyPart::Session) {
            return Err(TemplateError::NoSession);
        }
        let ids = parts.iter().enumerate();
        let ids = ids.filter(|(_, part)| !matches!(part, KeyPart::Literal(_)));
        let places: Vec<_> = ids.map(|(index, _)| index).collect();
        // A byte between them that can't stand in an id divides them; any other may be an id's. So may
        // `%`, with which what is encoded begins, unless what follows can't be.
        let begins_a_code =
            |behind: &str| behind.chars().next().is_none_or(|c| c.is_ascii_hexdigit());
        let divides = |part: &KeyPart| match part {
            KeyPart::Literal(text) => text.char_indices().any(|(at, character)| {
                is_encoded(character) && !(character == '%' && begins_a_code(&text[at + 1..]))
            }),
            KeyPart::User | KeyPart::Session => false,
        };
        let is_bounded = |pair: &[usize]| parts[pair[0]..pair[1]].iter().any(divides);
        if !places.windows(2).all(is_bounded) {
            return Err(TemplateError::NoBoundary);
        }
        Ok(Self { parts })
    }

    /// Whether the user's id is part of it.
    pub fn names_user(&self) -> bool {
        self.parts.contains(&KeyPart::User)
    }

    /// The key that Python code by this convention uses: `lock:session:{user_id}:{session_id}`.
    pub fn conventional() -> Self {
        let literal = |text: &str| KeyPart::Literal(text.into());
        Self {
            parts: [
                literal("lock:session:"),
                KeyPart::User,
                literal(":"),
                KeyPart::Session,
            ]
            .into(),
        }
    }

    /// The key of a session. Each id is percent-encoded where a byte of it has a meaning in keys.
    pub fn fill(&self, user: &str, session: &str) -> SessionKey {
        let mut key = String::with_capacity(32 + user.len() + session.len());
        for part in &self.parts {
            match part {
                KeyPart::Literal(text) => key.push_str(text),
                KeyPart::User => encode(user, &mut key),
                KeyPart::Session => encode(session, &mut key),
            }
        }
        SessionKey(key.into())
    }
}

impl fmt::Display for KeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                KeyPart::Literal(text) => f.write_str(text)?,
                KeyPart::User => f.write_str("{user_id}")?,
                KeyPart::Session => f.write_str("{session_id}")?,
            }
        }
        Ok(())
    }
}

// === impl Template ===

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// When braces don't match, or a source is unknown or incomplete.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let parts = split(text)?
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(text) => Ok(TemplatePart::Literal(text.into())),
                Piece::Braced(text) => Placeholder::parse(text).map(TemplatePart::Placeholder),
            })
            .collect::<Result<Box<[_]>, _>>()?;
        if parts.is_empty() {
            return Err(TemplateError::Empty);
        }
        Ok(Self { parts })
    }

    /// The pieces, in the order in which they stand.
    pub fn parts(&self) -> &[TemplatePart] {
        &self.parts
    }

    /// Whether it is one source, as it comes, and nothing else.
    pub fn is_bare(&self) -> bool {
        matches!(&*self.parts, [TemplatePart::Placeholder(placeholder)] if placeholder.is_plain())
    }

    /// The sources in braces, each behind its filters.
    pub fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.parts.iter().filter_map(|part| match part {
            TemplatePart::Literal(_) => None,
            TemplatePart::Placeholder(placeholder) => Some(placeholder),
        })
    }

    /// The sources, whatever is made of their values.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.placeholders().map(|placeholder| &placeholder.source)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                TemplatePart::Literal(text) => f.write_str(text)?,
                TemplatePart::Placeholder(placeholder) => write!(f, "{{{placeholder}}}")?,
            }
        }
        Ok(())
    }
}

// === impl Source ===

impl Source {
    fn parse(text: &str) -> Result<Self, TemplateError> {
        let unknown = |name: &str| TemplateError::UnknownSource { name: name.into() };
        let (kind, name) = text.split_once(':').ok_or_else(|| unknown(text))?;
        let named = |kind, example| match name {
            "" => Err(TemplateError::Nameless { kind, example }),
            name if name.contains('|') => Err(TemplateError::Never {
                kind,
                name: name.into(),
                why: "`|` is for the spellings of a member, as in {body:/a|/b}; write each as a template of its own",
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
                        why: "headers in the proxy's own name are taken out of every request; take another one",
                    });
                }
                HeaderName::try_from(&*name)
                    .map(Self::Header)
                    .map_err(|_| TemplateError::Header { name: name.into() })
            }
            "cookie" => named("cookie", "{cookie:sid}").map(Self::Cookie),
            "query" => named("query", "{query:session}").map(Self::Query),
            "path" => named("path", "{path:thread}").map(Self::Path),
            filter if WORDS.contains(&filter) => Err(TemplateError::Misplaced {
                filter: filter.into(),
            }),
            _ => Err(unknown(kind)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(pointers) => {
                f.write_str("body:")?;
                pointers
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, pointer)| {
                        f.write_str(if index > 0 { "|" } else { "" })?;
                        pointer.fmt(f)
                    })
            }
            Self::Form(name) => write!(f, "form:{name}"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Path(name) => write!(f, "path:{name}"),
        }
    }
}

// === impl Wanted ===

impl WantedFields {
    /// All that these templates ask for.
    pub fn by<'t>(templates: impl IntoIterator<Item = &'t Template>) -> Self {
        let mut wanted = Self::default();
        for source in templates.into_iter().flat_map(Template::sources) {
            match source {
                Source::Body(pointers) => {
                    for pointer in pointers {
                        if !wanted.pointers.contains(pointer) {
                            wanted.pointers.push(pointer.clone());
                        }
                    }
                }
                Source::Form(name) if !wanted.fields.contains(name) => {
                    wanted.fields.push(name.clone());
                }
                Source::Query(name) if !wanted.queries.contains(name) => {
                    wanted.queries.push(name.clone());
                }
                _ => {}
            }
        }
        wanted.asked = wanted.pointers.len();
        for name in &wanted.fields {
            let pointer = Pointer::to_member(name);
            if !wanted.pointers.contains(&pointer) {
                wanted.pointers.push(pointer);
            }
        }
        wanted
    }

    /// The members that are asked for.
    pub fn asked_pointers(&self) -> &[Pointer] {
        &self.pointers[..self.asked]
    }

    /// Whether nothing of a body is asked for.
    pub fn is_nothing(&self) -> bool {
        self.pointers.is_empty()
    }
}

// === impl Pointer ===

impl Pointer {
    /// Parses a pointer of at least one token, as `/session_id`. In a template, a `|` never comes
    /// here: it stands between two of them.
    ///
    /// # Errors
    /// When it doesn't start with `/`, or a `~` is neither `~0` nor `~1` (RFC 6901 §3).
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let wrong = |why| TemplateError::Pointer {
            pointer: text.into(),
            why,
        };
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| wrong("it starts with `/`, as in {body:/session_id}"))?;
        let tokens = rest
            .split('/')
            .map(|token| {
                let escapes_end_well = token
                    .split('~')
                    .skip(1)
                    .all(|after| after.starts_with(['0', '1']));
                if !escapes_end_well {
                    return Err(wrong("behind `~` stands 0 (for `~`) or 1 (for `/`)"));
                }
                // In this order, so that `~01` comes to `~1` and not to `/` (RFC 6901 §4).
                Ok(token.replace("~1", "/").replace("~0", "~").into())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { tokens })
    }

    /// Leads to the member of an object that has this name.
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

/// Whether it never stands in an id as part of a key.
fn is_encoded(character: char) -> bool {
    matches!(
        character,
        ':' | '{' | '}' | '%' | ' ' | '\0'..='\x1f' | '\x7f'
    )
}

/// Appends an id to a key. Encoded are the bytes that would have a meaning there: `:` separates
/// ids, braces make a Redis Cluster hash tag, `%` is the encoding itself; spaces and control
/// characters would break logs and `redis-cli`. All else stays, so that the key is the one that
/// Python code writes.
fn encode(id: &str, key: &mut String) {
    for character in id.chars() {
        if is_encoded(character) {
            // Writing to a string can't fail.
            let _ = write!(key, "%{:02X}", u32::from(character));
        } else {
            key.push(character);
        }
    }
}

// === pieces ===

enum Piece<'t> {
    Literal(&'t str),
    Braced(&'t str),
}

fn split(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(['{', '}']) else {
            pieces.push(Piece::Literal(rest));
            break;
        };
        if rest.as_bytes()[at] == b'}' {
            return Err(TemplateError::Stray);
        }
        if at > 0 {
            pieces.push(Piece::Literal(&rest[..at]));
        }
        let end = rest[at..].find('}').ok_or(TemplateError::Unclosed)? + at;
        pieces.push(Piece::Braced(&rest[at + 1..end]));
        rest = &rest[end + 1..];
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests;
