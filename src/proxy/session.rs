//! From a request to its route and its session key; reads the body only when an alternative asks for
//! it.
//!
//! Invariant: the proxy never sees another session than the backend does. What two readers could
//! understand in two ways (a member that is there twice, or in another case; a header with two
//! values; a body that is JSON and a form) is refused, not interpreted.
//!
//! What its parts decide, from the ground up: `lookalike` compares names, `described` takes header
//! values apart; `kind` says what a body is declared as, `json` and `form` what is in it, `content` which
//! of them reads it; `sources` what a template comes to, `choice` which route takes the request.

use bytes::Bytes;
use http::request::Parts;
use http_body::Body;
use hyper::body::Incoming;
use thiserror::Error;
use tokio::task::yield_now;

use super::body_timer::{BodyLimits, BodyReadError, BodyTimeout, BodyTimer};
use super::route::Candidates;
use crate::budget::{Budget, Reservation, ReservedBytes};
use crate::config::{BusyFormat, Limits};
use crate::key::{Pointer, SessionKey};
use choice::Choice;
use content::BodyContent;
use encoding::{Decoding, Encoding};
use json::JsonMember;
use kind::BodyKind;
use large::BodySize;

pub(super) use explain::{DeclinedCandidate, TriedTemplate, explain};

mod choice;
mod content;
mod described;
mod encoding;
mod explain;
mod form;
mod json;
mod kind;
mod large;
mod lookalike;
mod sources;

/// Why a header can be read in two ways.
const TWO_HEADERS: &str =
    "the header is there more than once, or beside another one that some servers take for it";

/// A request's body, read or not.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// Nobody has looked at it.
    Unread(Incoming),
    /// Read to its end.
    Read(ReservedBytes),
}

/// Within which bounds a body is read.
pub(super) struct ReadBounds<'c> {
    pub(super) limits: &'c Limits,
    /// How long it may take.
    pub(super) body: BodyLimits,
    /// How much there is of all of them.
    pub(super) budget: &'c Budget,
}

/// Why a request's session can't be told.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum SessionError {
    #[error("the body is larger than {max} bytes, which is what is read to find its session")]
    TooLarge { max: usize },
    #[error(
        "the body is more than {} times as long when it is decoded, which has to be done to find its session",
        encoding::MOST_RATIO
    )]
    TooDense,
    #[error("the body is encoded as {encoding}, which can't be read to find its session")]
    Encoding { encoding: String },
    #[error(transparent)]
    Late(#[from] BodyTimeout),
    #[error("too many bodies are read at the moment")]
    Overloaded,
    #[error("the body can't be read to find its session: {why}")]
    Malformed { why: String },
    #[error("{source_name} can be read in two ways: {why}")]
    Ambiguous {
        source_name: String,
        why: &'static str,
    },
    #[error("the {id} can't be used: {why}")]
    BadId { id: &'static str, why: String },
    #[error("no {id} in any of the places where it is looked for: {places}")]
    Missing { id: &'static str, places: String },
}

/// What a request comes to.
#[derive(Debug)]
pub(super) struct SessionLookup {
    /// The index of the candidate that takes it; `None`: none does.
    pub(super) taken: Option<usize>,
    /// Its session; `None`: it passes without a lock.
    pub(super) key: Option<SessionKey>,
    pub(super) body: RequestBody,
}

/// The text of a body, or why it can't be read.
enum BodyText {
    /// As it came.
    Plain(Bytes),
    Decoded(Bytes),
    Unreadable(SessionError),
}

/// What a body comes to, and the id of the call in it, if refusals name that.
type Chosen = (Result<Choice, (usize, SessionError)>, Option<Box<str>>);

/// Finds the route of a request among the candidates, and its session. Where its route's refusals
/// name the call that they answer, the text of its id is left in `call`, also when there is an error.
///
/// # Errors
/// When there is a session and it can't be told, or there is none and the route rejects that; with
/// the index of the candidate at which it came to that.
pub(super) async fn read(
    head: &Parts,
    body: Incoming,
    candidates: &Candidates<'_>,
    bounds: &ReadBounds<'_>,
    call: &mut Option<Box<str>>,
) -> Result<SessionLookup, (usize, SessionError)> {
    let choose = |content: &BodyContent<'_>| {
        let kind = &BodyKind::OF_NO_TEXT;
        choice::choose(head, kind, candidates, content, bounds.limits)
    };
    let read = |choice, body| {
        let (taken, key) = match choice {
            Choice::Taken(index, key) => (Some(index), key),
            // Asked with all there is to know.
            Choice::Unmatched | Choice::NeedsBody => (None, None),
        };
        SessionLookup { taken, key, body }
    };
    let choice = choose(&BodyContent::Unread)?;
    match choice {
        Choice::NeedsBody => {}
        Choice::Taken(index, Some(_)) if names_calls(candidates, index) => {
            let (body, id) = bounds
                .call(head, body)
                .await
                .map_err(|error| (index, error))?;
            *call = id;
            return Ok(read(choice, body));
        }
        _ => return Ok(read(choice, RequestBody::Unread(body))),
    }
    if body.is_end_stream() {
        let choice = choose(&BodyContent::Empty)?;
        return Ok(read(choice, RequestBody::Unread(body)));
    }
    // Before it is sent, where the client waits to be asked for it.
    let encodings = match Encoding::all(head) {
        Ok(encodings) => encodings,
        Err(error) if error.is_unreadable() => {
            let choice = choose(&BodyContent::Unreadable(error))?;
            return Ok(read(choice, RequestBody::Unread(body)));
        }
        Err(error) => return Err((0, error)),
    };
    // At which of the candidates it is too large can't be told: all that are left read it.
    let first = |error| (0, error);
    let whole = bounds.buffer(body).await.map_err(first)?;
    let text = bounds.text(&encodings, whole.body()).await;
    let text = text.map_err(first)?;
    let kind = BodyKind::of(head);
    let (chosen, whole) = match text.size() {
        BodySize::Small => (text.choose(head, &kind, candidates, bounds.limits), whole),
        size => {
            let (head, limits) = (head.clone(), *bounds.limits);
            let candidates = candidates.to_static();
            // The body is counted for as long as it is read, whoever has left.
            let choosing = move || (text.choose(&head, &kind, &candidates, &limits), whole);
            size.apart(choosing).await.map_err(first)?
        }
    };
    *call = chosen.1;
    Ok(read(chosen.0?, RequestBody::Read(whole)))
}

/// Whether refusals of the route at this index name the call that they answer.
fn names_calls(candidates: &Candidates<'_>, index: usize) -> bool {
    let matched = candidates.iter().nth(index);
    let turn = matched.and_then(|matched| matched.route.turn.as_ref());
    turn.is_some_and(|turn| turn.busy.format == BusyFormat::JsonRpc)
}

/// Of a body that is JSON before it is decoded, too.
fn two_readings() -> SessionError {
    SessionError::Malformed {
        why: "it is encoded, and JSON all the same".into(),
    }
}

/// Appends to a body that will not be longer than `longest`. Room is made for as much again as has
/// come: a client that announces much and sends little takes little.
fn append(whole: &mut Vec<u8>, data: &[u8], longest: usize) {
    let needed = whole.len() + data.len();
    if needed > whole.capacity() {
        let room = (2 * whole.len()).min(longest).max(needed);
        whole.reserve_exact(room - whole.len());
    }
    whole.extend_from_slice(data);
}

// === impl Text ===

impl BodyText {
    /// How much work it is.
    fn size(&self) -> BodySize {
        BodySize::of(match self {
            Self::Plain(text) | Self::Decoded(text) => text.len(),
            Self::Unreadable(_) => 0,
        })
    }

    /// Chooses among the candidates by it.
    fn choose(
        &self,
        head: &Parts,
        kind: &BodyKind,
        candidates: &Candidates<'_>,
        limits: &Limits,
    ) -> Chosen {
        let content = match self {
            Self::Plain(text) => BodyContent::Text(text),
            Self::Decoded(text) => BodyContent::Decoded(text),
            Self::Unreadable(error) => BodyContent::Unreadable(error.clone()),
        };
        let choice = choice::choose(head, kind, candidates, &content, limits);
        let call = match &choice {
            Ok(Choice::Taken(index, _)) | Err((index, _)) if names_calls(candidates, *index) => {
                self.call()
            }
            _ => None,
        };
        (choice, call)
    }

    /// The text of a JSON-RPC request's id (JSON-RPC 2.0 §4), if there is one and no doubt about it.
    fn call(&self) -> Option<Box<str>> {
        let (Self::Plain(text) | Self::Decoded(text)) = self else {
            return None;
        };
        let id = Pointer::parse("/id").ok()?;
        match json::pick(text, &[id]).ok()?.first()? {
            JsonMember::Found(text) => Some((*text).into()),
            _ => None,
        }
    }
}

// === impl Bounds ===

impl ReadBounds<'_> {
    /// The text of the id of the call in a body whose session is known. A body is read for it only if its
    /// length says that there is room: it isn't refused for what is wanted for a refusal's text.
    ///
    /// # Errors
    /// When the body doesn't come.
    async fn call(
        &self,
        head: &Parts,
        body: Incoming,
    ) -> Result<(RequestBody, Option<Box<str>>), SessionError> {
        let announced = body.size_hint().exact().map(usize::try_from);
        let mut reserved = self.budget.reserve();
        let has_room = match announced {
            Some(Ok(length)) if length > 0 && length <= self.limits.max_body => {
                reserved.grow(length, self.limits.max_buffered)
            }
            _ => false,
        };
        if !has_room {
            return Ok((RequestBody::Unread(body), None));
        }
        drop(reserved);
        let body = self.buffer(body).await?;
        let text = match Encoding::all(head) {
            Ok(encodings) => self.text(&encodings, body.body()).await.ok(),
            Err(_) => None,
        };
        let call = match text.map(|text| (text.size(), text)) {
            None => None,
            Some((BodySize::Small, text)) => text.call(),
            Some((size, text)) => size.apart(move || text.call()).await.ok().flatten(),
        };
        Ok((RequestBody::Read(body), call))
    }

    /// The text of a body that has been read.
    ///
    /// # Errors
    /// When there is no room for it, or it is too long.
    async fn text(&self, encodings: &[Encoding], body: &Bytes) -> Result<BodyText, SessionError> {
        if encodings.is_empty() {
            return Ok(BodyText::Plain(body.clone()));
        }
        match self.decode(encodings, body).await {
            // Decoded it says one thing, and as it came perhaps another.
            Ok(_) if content::is_json_encoded(body) => Ok(BodyText::Unreadable(two_readings())),
            Ok(decoded) => Ok(BodyText::Decoded(decoded)),
            Err(error) if error.is_unreadable() => Ok(BodyText::Unreadable(error)),
            Err(error) => Err(error),
        }
    }

    /// Reads a body to its end.
    async fn buffer(&self, mut body: Incoming) -> Result<ReservedBytes, SessionError> {
        let max = self.limits.max_body;
        let announced = body.size_hint().exact().map(usize::try_from);
        // Refused before it is sent, where the client waits to be asked for it.
        let longest = match announced {
            None => max,
            Some(Ok(length)) if length <= max => length,
            Some(_) => return Err(SessionError::TooLarge { max }),
        };
        let mut reserved = self.budget.reserve();
        let mut whole = Vec::new();
        let mut timer = BodyTimer::new(self.body);
        loop {
            let frame = reserved.reclaimable_until(timer.frame(&mut body)).await;
            let Some(frame) = frame.ok_or(BodyReadError::TakenBack)?? else {
                return Ok(reserved.with(whole.into()));
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if whole.len() + data.len() > max {
                return Err(SessionError::TooLarge { max });
            }
            self.take(&mut reserved, data.len())?;
            if whole.is_empty() && body.is_end_stream() {
                // It came in one piece, and stays where it is.
                return Ok(reserved.with(data));
            }
            append(&mut whole, &data, longest);
        }
    }

    /// Decodes a body, and lets other turns go on meanwhile.
    async fn decode(&self, encodings: &[Encoding], body: &[u8]) -> Result<Bytes, SessionError> {
        let mut decoding = Decoding::new(encodings, body, self.limits.max_body)?;
        let mut reserved = self.budget.reserve();
        // Each stage keeps a window of what came out of it.
        let copies = 1 + encodings.len();
        let (mut size, mut place) = (BodySize::Small, None);
        let mut before = 0;
        loop {
            let (now, is_all) = decoding.step()?;
            self.take(&mut reserved, copies * (now - before))?;
            if is_all {
                reserved.shrink(encodings.len() * now);
                return Ok(reserved.with(decoding.finish().into()).into_bytes());
            }
            if size != BodySize::of(now) {
                size = BodySize::of(now);
                drop(place);
                place = size.place().await?;
            }
            before = now;
            yield_now().await;
        }
    }

    fn take(&self, reserved: &mut Reservation, bytes: usize) -> Result<(), SessionError> {
        match reserved.grow(bytes, self.limits.max_buffered) {
            true => Ok(()),
            false => Err(SessionError::Overloaded),
        }
    }
}

// === impl SessionError ===

impl SessionError {
    /// Whether it is the body as a whole that can't be read, and not an id in it.
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::Encoding { .. })
    }

    /// Two `host` headers (RFC 9112 §3.2).
    pub(super) fn two_hosts() -> Self {
        Self::ambiguous_header("host")
    }

    /// A header that says something to the proxy itself.
    fn ambiguous_header(name: &str) -> Self {
        Self::Ambiguous {
            source_name: format!("{{header:{name}}}"),
            why: TWO_HEADERS,
        }
    }
}

impl From<BodyReadError> for SessionError {
    fn from(unread: BodyReadError) -> Self {
        match unread {
            BodyReadError::Late(limit) => Self::Late(limit),
            BodyReadError::TakenBack => Self::Overloaded,
            BodyReadError::Broken(error) => Self::Malformed {
                why: error.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_takes_room_for_what_has_come_of_it() {
        const LONGEST: usize = 10 << 20;
        let mut whole = Vec::new();
        append(&mut whole, b"x", LONGEST);
        assert_eq!(whole.capacity(), 1, "a byte, whatever is announced");
        let mut moves = 0;
        while whole.len() < LONGEST {
            let (before, capacity) = (whole.len(), whole.capacity());
            let data = vec![b'x'; (8 << 10).min(LONGEST - before)];
            append(&mut whole, &data, LONGEST);
            moves += usize::from(whole.capacity() > capacity);
            assert!(
                whole.capacity() <= whole.len().max(2 * before),
                "never more than twice what came before"
            );
        }
        assert_eq!(whole.capacity(), LONGEST, "nor more than was announced");
        assert!(
            moves < 20,
            "and yet it isn't copied again and again: {moves}"
        );
    }
}
