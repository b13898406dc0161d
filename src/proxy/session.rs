//! From a request to its route and its session key; reads the body only when an alternative asks for it.
//!
//! Invariant: the proxy never sees another session than the backend does. What two readers could
//! understand in two ways (a member that is there twice, or in another case; a header with two
//! values) is refused, not interpreted.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_ENCODING;
use http::request::Parts;
use http_body::Body;
use hyper::body::Incoming;
use thiserror::Error;

use super::route::Candidates;
use crate::config::{BusyFormat, Limits};
use crate::key::{Pointer, SessionKey};
use choice::Choice;
use content::Content;
use json::Member;

mod choice;
mod content;
mod form;
mod json;
mod sources;

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
    #[error(
        "{source_name} can be read in two ways: it is there more than once, or spelt in another way too"
    )]
    Ambiguous { source_name: String },
    #[error("the {id} can't be used: {why}")]
    BadId { id: &'static str, why: String },
    #[error("no {id} in any of the places where it is looked for: {places}")]
    Missing { id: &'static str, places: String },
}

/// What a request comes to.
#[derive(Debug)]
pub(super) struct Read {
    /// The index of the candidate that takes it; `None`: none does.
    pub(super) taken: Option<usize>,
    /// Its session; `None`: it passes without a lock.
    pub(super) key: Option<SessionKey>,
    pub(super) body: RequestBody,
}

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
    limits: &Limits,
    call: &mut Option<Box<str>>,
) -> Result<Read, (usize, SessionError)> {
    let names_calls = |index: usize| {
        let matched = candidates.iter().nth(index);
        let turn = matched.and_then(|matched| matched.route.turn.as_ref());
        turn.is_some_and(|turn| turn.busy.format == BusyFormat::JsonRpc)
    };
    let choose = |content: &Content<'_>| choice::choose(head, candidates, content, limits);
    let read = |choice, body| {
        let (taken, key) = match choice {
            Choice::Taken(index, key) => (Some(index), key),
            // Asked with all there is to know.
            Choice::Unmatched | Choice::NeedsBody => (None, None),
        };
        Read { taken, key, body }
    };
    match choose(&Content::Unread)? {
        Choice::NeedsBody => {}
        Choice::Taken(index, Some(_)) if names_calls(index) && !body.is_end_stream() => {}
        choice => return Ok(read(choice, RequestBody::Unread(body))),
    }
    if body.is_end_stream() {
        let choice = choose(&Content::Empty)?;
        return Ok(read(choice, RequestBody::Unread(body)));
    }
    if let Some(encoding) = encoding(head) {
        let choice = choose(&Content::Unreadable(SessionError::Encoding { encoding }))?;
        return Ok(read(choice, RequestBody::Unread(body)));
    }
    // At which of them it is too large can't be told: all that are left read it.
    let body = buffer(body, limits.max_body)
        .await
        .map_err(|error| (0, error))?;
    let chosen = choose(&Content::Text(&body));
    let (Ok(Choice::Taken(index, _)) | Err((index, _))) = &chosen else {
        return Ok(read(chosen?, RequestBody::Read(body)));
    };
    if names_calls(*index) {
        *call = call_id(&body);
    }
    let choice = chosen?;
    Ok(read(choice, RequestBody::Read(body)))
}

/// The text of a JSON-RPC request's id (JSON-RPC 2.0 §4), if there is one and no doubt about it.
fn call_id(body: &[u8]) -> Option<Box<str>> {
    let id = Pointer::parse("/id").ok()?;
    match json::pick(body, &[id]).ok()?.first()? {
        Member::Found(text) => Some((*text).into()),
        _ => None,
    }
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
    /// Whether it is the body as a whole that can't be read, and not an id in it.
    fn is_unreadable(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::Encoding { .. })
    }

    /// Two `host` headers (RFC 9112 §3.2).
    pub(super) fn two_hosts() -> Self {
        Self::Ambiguous {
            source_name: "{header:host}".into(),
        }
    }
}
