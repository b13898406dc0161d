//! The road of [`super::read`] for a body that is there already, step by step the same, and what each
//! alternative comes to on it.

use http::request::Parts;

use super::choice::{self, Choice};
use super::content::{Content, Picked};
use super::encoding::{Decoding, Encoding};
use super::sources::{Sources, Value};
use super::{SessionError, content, json};
use crate::config::{Limits, Turn};
use crate::key::{SessionKey, Template};
use crate::proxy::route::{Candidates, Matched};

/// What a request comes to, and why.
pub(in crate::proxy) struct Explanation {
    /// The index of the candidate that takes it, and its session's key.
    pub(in crate::proxy) chosen: Result<(Option<usize>, Option<SessionKey>), (usize, SessionError)>,
    /// The alternatives of its route.
    pub(in crate::proxy) alternatives: Vec<CameTo>,
    /// How many bytes were decoded.
    pub(in crate::proxy) decoded: usize,
}

/// An alternative: the option that it stands in, its text, and what it comes to.
pub(in crate::proxy) type CameTo = (&'static str, String, Result<Option<String>, String>);

/// Explains a request by its candidates; no byte of a body is none.
pub(in crate::proxy) fn explain(
    head: &Parts,
    body: &[u8],
    candidates: &Candidates<'_>,
    limits: &Limits,
) -> Explanation {
    let mut decoded = Vec::new();
    let content = content(head, body, limits, &mut decoded);
    let chosen = match choice::choose(head, candidates, &Content::Unread, limits) {
        Ok(Choice::NeedsBody) => match &content {
            Ok(content) => choice::choose(head, candidates, content, limits),
            Err(error) => Err((0, error.clone())),
        },
        chosen => chosen,
    };
    let chosen = chosen.map(|choice| match choice {
        Choice::Taken(index, key) => (Some(index), key),
        Choice::Unmatched | Choice::NeedsBody => (None, None),
    });
    let index = match &chosen {
        Ok((index, _)) => *index,
        Err((index, _)) => Some(*index),
    };
    let matched = index.and_then(|index| candidates.iter().nth(index));
    let turn = matched.and_then(|matched| Some((matched, matched.route.turn.as_ref()?)));
    let alternatives = turn.map(|(matched, turn)| alternatives(head, matched, turn, &content));
    Explanation {
        chosen,
        alternatives: alternatives.unwrap_or_default(),
        decoded: decoded.len(),
    }
}

/// What a body is to be read as.
fn content<'b>(
    head: &Parts,
    body: &'b [u8],
    limits: &Limits,
    decoded: &'b mut Vec<u8>,
) -> Result<Content<'b>, SessionError> {
    if body.is_empty() {
        return Ok(Content::Empty);
    }
    let encodings = match Encoding::all(head) {
        Ok(encodings) => encodings,
        Err(error) if error.is_unreadable() => return Ok(Content::Unreadable(error)),
        Err(error) => return Err(error),
    };
    let max = limits.max_body;
    if body.len() > max {
        return Err(SessionError::TooLarge { max });
    }
    if encodings.is_empty() {
        return Ok(Content::Text(body));
    }
    let decode = || {
        let mut decoding = Decoding::new(&encodings, body, max)?;
        while !decoding.step()?.1 {}
        Ok(decoding.finish())
    };
    match decode() {
        Ok(whole) => {
            *decoded = whole;
            Ok(match content::begins_as_json(body) {
                true => Content::Unreadable(super::two_readings()),
                false => Content::Decoded(decoded),
            })
        }
        Err(error) if SessionError::is_unreadable(&error) => Ok(Content::Unreadable(error)),
        Err(error) => Err(error),
    }
}

fn alternatives(
    head: &Parts,
    matched: &Matched<'_>,
    turn: &Turn,
    content: &Result<Content<'_>, SessionError>,
) -> Vec<CameTo> {
    let wanted = &matched.route.wanted;
    let picked = match content {
        Ok(content) => content.pick(head, wanted),
        Err(error) => Err(error.clone()),
    };
    let (body, unreadable) = match picked {
        Ok(picked) => (picked, None),
        Err(error) => (Picked::by_head(head, wanted), Some(error)),
    };
    let sources = Sources {
        head,
        matched,
        body,
    };
    let came_to = |template: &Template| match sources.template(template, json::id) {
        Ok(Value::Text(text)) => Ok(Some(text.into_owned())),
        Ok(Value::Missing) => Ok(None),
        Ok(Value::Unfit(why)) => Err(why),
        Ok(Value::NeedsBody) => Err(unreadable
            .as_ref()
            .map_or_else(String::new, ToString::to_string)),
        Err(error) => Err(error.to_string()),
    };
    let of = |id, templates: &[Template]| {
        let explained = templates
            .iter()
            .map(|template| (id, template.to_string(), came_to(template)));
        explained.collect::<Vec<_>>()
    };
    let (session, user) = (
        of("session_id", &turn.session_id),
        of("user_id", &turn.user_id),
    );
    session.into_iter().chain(user).collect()
}
