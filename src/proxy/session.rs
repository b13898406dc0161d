//! From a request to its session key; reads the body only when an alternative asks for it.
//!
//! Invariant: the proxy never sees another session than the backend does. What two readers could
//! understand in two ways (a member that is there twice, or in another case; a header with two
//! values) is refused, not interpreted.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::HeaderName;
use http::header::{CONTENT_ENCODING, COOKIE};
use http::request::Parts;
use http_body::Body;
use hyper::body::Incoming;
use percent_encoding::percent_decode;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::route::Matched;
use crate::config::{Limits, OnMissing, Turn};
use crate::key::{Part, Pointer, SessionKey, Source, Template};
use json::{Id, Member};

mod json;

/// A request's body, read or not.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// Nobody has looked at it.
    Unread(Incoming),
    /// Read to its end.
    Read(Bytes),
}

/// Why a request's session can't be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum SessionError {
    #[error("the body is larger than {max} bytes, which is what is read to find its session")]
    TooLarge { max: usize },
    #[error("the body is encoded as {encoding}, which can't be read to find its session")]
    Encoding { encoding: String },
    #[error("the body can't be read to find its session: {why}")]
    Malformed { why: String },
    #[error("{source_name} is there more than once, or in another case too; send it once")]
    Ambiguous { source_name: String },
    #[error("the {id} can't be used: {why}")]
    BadId { id: &'static str, why: String },
    #[error("no {id} in any of the places where it is looked for: {places}")]
    Missing { id: &'static str, places: String },
}

/// What one alternative comes to.
enum Resolved<'r> {
    Id(Cow<'r, str>),
    Missing,
    /// It can't be said before the body is read.
    NeedsBody,
}

/// What all alternatives together come to.
enum Found {
    Key(SessionKey),
    /// There is no session, and the route lets such requests pass.
    Nothing,
    NeedsBody,
}

/// All that ids are taken from.
struct Sources<'r> {
    head: &'r Parts,
    matched: &'r Matched<'r>,
    turn: &'r Turn,
    /// What stands at each of the turn's pointers; `None` before the body is read.
    members: Option<Vec<Member<'r>>>,
}

/// The ids that a key is made of, as error texts name them.
const SESSION: &str = "session id";
const USER: &str = "user id";

/// Finds the session of a request. `None`: it has none, and the route lets such requests pass.
///
/// # Errors
/// When there is a session and it can't be told, or there is none and the route rejects that.
pub(super) async fn read(
    head: &Parts,
    body: Incoming,
    matched: &Matched<'_>,
    turn: &Turn,
    limits: &Limits,
) -> Result<(Option<SessionKey>, RequestBody), SessionError> {
    let sources = |members| Sources {
        head,
        matched,
        turn,
        members,
    };
    match sources(None).key(limits)? {
        Found::Key(key) => return Ok((Some(key), RequestBody::Unread(body))),
        Found::Nothing => return Ok((None, RequestBody::Unread(body))),
        Found::NeedsBody => {}
    }
    if body.is_end_stream() {
        // No body: each of its members is missing.
        let none = turn.pointers.iter().map(|_| Member::Missing).collect();
        return Ok((
            sources(Some(none)).key(limits)?.known(),
            RequestBody::Unread(body),
        ));
    }
    let may_pass = turn.lock.on_malformed == OnMissing::Pass;
    if let Some(encoding) = encoding(head) {
        return match may_pass {
            true => Ok((None, RequestBody::Unread(body))),
            false => Err(SessionError::Encoding { encoding }),
        };
    }
    let body = buffer(body, limits.max_body).await?;
    let key = match json::pick(&body, &turn.pointers) {
        Ok(members) => sources(Some(members)).key(limits)?.known(),
        Err(_) if may_pass => None,
        Err(malformed) => {
            return Err(SessionError::Malformed {
                why: malformed.to_string(),
            });
        }
    };
    Ok((key, RequestBody::Read(body)))
}

/// The encoding of the body, unless it is none.
fn encoding(head: &Parts) -> Option<String> {
    let encodings = head.headers.get_all(CONTENT_ENCODING).iter();
    let text = encodings
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect::<Vec<_>>();
    let text = text.join(", ");
    (!text.is_empty() && !text.eq_ignore_ascii_case("identity")).then_some(text)
}

/// Reads a body to its end, up to `max` bytes.
async fn buffer(mut body: Incoming, max: usize) -> Result<Bytes, SessionError> {
    let too_large = SessionError::TooLarge { max };
    let announced = body.size_hint().lower();
    // Refused before it is sent, where the client waits to be asked for it.
    if announced > max as u64 {
        return Err(too_large);
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| SessionError::Malformed {
            why: error.to_string(),
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.is_empty() && body.is_end_stream() {
            // It came in one piece, and stays where it is.
            return if data.len() > max {
                Err(too_large)
            } else {
                Ok(data)
            };
        }
        if whole.len() + data.len() > max {
            return Err(too_large);
        }
        if whole.is_empty() {
            // What was announced is within the limit, and the limit is what the user can afford.
            whole.reserve(usize::try_from(announced).unwrap_or(0).max(data.len()));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

// === impl SessionError ===

impl SessionError {
    /// Two `host` headers (RFC 9112 §3.2).
    pub(super) fn two_hosts() -> Self {
        Self::Ambiguous {
            source_name: "{header:host}".into(),
        }
    }
}

// === impl Found ===

impl Found {
    /// The key, now that nothing is left to be read.
    fn known(self) -> Option<SessionKey> {
        match self {
            Self::Key(key) => Some(key),
            Self::Nothing | Self::NeedsBody => None,
        }
    }
}

// === impl Sources ===

impl Sources<'_> {
    fn key(&self, limits: &Limits) -> Result<Found, SessionError> {
        let session = match self.id(SESSION, &self.turn.session_id, limits)? {
            Resolved::Id(session) => session,
            Resolved::Missing => return Ok(Found::Nothing),
            Resolved::NeedsBody => return Ok(Found::NeedsBody),
        };
        Ok(match self.id(USER, &self.turn.user_id, limits)? {
            Resolved::Id(user) => Found::Key(self.turn.lock.key.fill(&user, &session)),
            Resolved::Missing => Found::Nothing,
            Resolved::NeedsBody => Found::NeedsBody,
        })
    }

    /// An id within its limits; missing only where the route lets that pass.
    fn id<'s>(
        &'s self,
        id: &'static str,
        alternatives: &'s [Template],
        limits: &Limits,
    ) -> Result<Resolved<'s>, SessionError> {
        let (resolved, max) = (self.first(id, alternatives)?, limits.max_id_bytes);
        match &resolved {
            Resolved::Id(value) if value.len() > max => {
                let why = format!("it has {} bytes, and {max} are allowed", value.len());
                Err(SessionError::BadId { id, why })
            }
            Resolved::Missing if self.turn.lock.on_missing == OnMissing::Reject => {
                let places: Vec<_> = alternatives.iter().map(Template::to_string).collect();
                Err(SessionError::Missing {
                    id,
                    places: places.join(", "),
                })
            }
            _ => Ok(resolved),
        }
    }

    /// The first alternative that resolves.
    fn first<'s>(
        &'s self,
        id: &'static str,
        all: &'s [Template],
    ) -> Result<Resolved<'s>, SessionError> {
        for template in all {
            match self.template(id, template)? {
                Resolved::Missing => {}
                resolved => return Ok(resolved),
            }
        }
        Ok(Resolved::Missing)
    }

    fn template<'s>(
        &'s self,
        id: &'static str,
        template: &'s Template,
    ) -> Result<Resolved<'s>, SessionError> {
        // A template that is one source and nothing else is its value: the common case.
        if let [Part::Source(source)] = template.parts() {
            return self.source(id, source);
        }
        let mut text = String::new();
        for part in template.parts() {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Source(source) => match self.source(id, source)? {
                    Resolved::Id(value) => text.push_str(&value),
                    unresolved => return Ok(unresolved),
                },
            }
        }
        Ok(Resolved::Id(text.into()))
    }

    fn source<'s>(
        &'s self,
        id: &'static str,
        source: &'s Source,
    ) -> Result<Resolved<'s>, SessionError> {
        match source {
            Source::Body(pointer) => {
                let Some(text) = self.member(source, pointer)? else {
                    return Ok(Resolved::NeedsBody);
                };
                match text.map_or(Id::Missing, json::id) {
                    Id::Missing => Ok(Resolved::Missing),
                    Id::Text(value) => Ok(Resolved::Id(value)),
                    Id::Unfit(what) => {
                        let why =
                            format!("{{{source}}} is {what}; it takes text or a whole number");
                        Err(SessionError::BadId { id, why })
                    }
                }
            }
            Source::Hash(inner) => self.hash(inner),
            plain => Ok(match self.bytes(plain)? {
                None => Resolved::Missing,
                Some(bytes) => Resolved::Id(text(bytes).ok_or_else(|| SessionError::BadId {
                    id,
                    why: format!("{{{plain}}} is not UTF-8"),
                })?),
            }),
        }
    }

    /// The raw text at a pointer; the outer `None` if the body wasn't read yet.
    fn member(&self, source: &Source, at: &Pointer) -> Result<Option<Option<&str>>, SessionError> {
        let Some(members) = &self.members else {
            return Ok(None);
        };
        let index = self.turn.pointers.iter().position(|pointer| pointer == at);
        match index.and_then(|index| members.get(index)) {
            None | Some(Member::Missing) => Ok(Some(None)),
            Some(Member::Found(text)) => Ok(Some(Some(text))),
            Some(Member::Ambiguous) => Err(ambiguous(source)),
        }
    }

    fn hash(&self, source: &Source) -> Result<Resolved<'_>, SessionError> {
        let hashed = match source {
            Source::Body(pointer) => match self.member(source, pointer)? {
                None => return Ok(Resolved::NeedsBody),
                Some(text) => text
                    .filter(|text| !json::is_missing(text))
                    .map(|text| first_digits(text.as_bytes())),
            },
            Source::Hash(inner) => match self.hash(inner)? {
                Resolved::Id(digits) => Some(first_digits(digits.as_bytes())),
                unresolved => return Ok(unresolved),
            },
            plain => self.bytes(plain)?.map(|bytes| first_digits(&bytes)),
        };
        Ok(hashed.map_or(Resolved::Missing, |digits| Resolved::Id(digits.into())))
    }

    /// What a source outside of the body gives; `None` if it is missing or empty.
    fn bytes<'s>(&'s self, source: &'s Source) -> Result<Option<Cow<'s, [u8]>>, SessionError> {
        let mut values: Box<dyn Iterator<Item = Cow<'s, [u8]>> + 's> = match source {
            Source::Header(name) => {
                if has_twin(self.head, name) {
                    return Err(ambiguous(source));
                }
                let values = self.head.headers.get_all(name).iter();
                Box::new(values.map(|value| value.as_bytes().into()))
            }
            Source::Cookie(name) => Box::new(cookies(self.head, name)),
            Source::Query(name) => Box::new(query(self.head.uri.query().unwrap_or_default(), name)),
            Source::Path(_) if self.matched.is_ambiguous() => return Err(ambiguous(source)),
            Source::Path(name) => Box::new(self.matched.segment(name).into_iter()),
            Source::Body(_) | Source::Hash(_) => Box::new(std::iter::empty()),
        };
        let first = values.next();
        // Twice the same is one value; of two, the backend may take the other one.
        if values.any(|other| Some(other) != first) {
            return Err(ambiguous(source));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }
}

/// Whether there is a header that a backend behind WSGI or CGI takes for this one: spelt with `_`
/// in place of `-`, or the other way round.
fn has_twin(head: &Parts, name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let alike = |(a, b): (&u8, &u8)| a == b || matches!((a, b), (b'-', b'_') | (b'_', b'-'));
    head.headers
        .keys()
        .map(|other| other.as_str().as_bytes())
        .any(|other| {
            other.len() == name.len() && other != name && other.iter().zip(name).all(alike)
        })
}

fn ambiguous(source: &Source) -> SessionError {
    SessionError::Ambiguous {
        source_name: format!("{{{source}}}"),
    }
}

/// The first 32 hex digits of the SHA-256.
fn first_digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16]
        .iter()
        .fold(String::with_capacity(32), |mut digits, byte| {
            // Writing to a string can't fail.
            let _ = write!(digits, "{byte:02x}");
            digits
        })
}

fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// The values of a cookie (RFC 6265 §4.2.1), without the quotes that servers take off.
fn cookies<'h>(head: &'h Parts, name: &'h str) -> impl Iterator<Item = Cow<'h, [u8]>> {
    let headers = head.headers.get_all(COOKIE).iter();
    let pairs = headers.flat_map(|header| header.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        let unquoted = value
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""));
        (found == name.as_bytes()).then_some(unquoted.unwrap_or(value).into())
    })
}

/// The values of a query's field, decoded once.
fn query<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = Cow<'q, [u8]>> {
    query.split('&').filter_map(move |pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(found) == name.as_bytes()).then(|| decoded(value))
    })
}

/// Percent-decoded once, `+` being a space (WHATWG URL, urlencoded parsing).
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).into();
    }
    Cow::Owned(percent_decode(text.replace('+', " ").as_bytes()).collect())
}
