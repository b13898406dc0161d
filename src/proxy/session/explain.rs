//! The road of [`super::read`] for a body that is there already, step by step the same, and what each
//! alternative comes to on it.

use http::request::Parts;

use super::choice::{self, Choice};
use super::content::{Content, Picked};
use super::encoding::{Decoding, Encoding};
use super::sources::{Sources, Value};
use super::{SessionError, content};
use crate::config::{Limits, Turn};
use crate::key::{Filter, SessionKey, Template};
use crate::proxy::route::{Candidates, Matched};

/// What a request comes to, and why.
pub(in crate::proxy) struct Explanation {
    /// The index of the candidate that takes it, and its session's key.
    pub(in crate::proxy) chosen: Result<(Option<usize>, Option<SessionKey>), (usize, SessionError)>,
    /// The alternatives of its route.
    pub(in crate::proxy) alternatives: Vec<Alternative>,
    /// The candidates before it, and what speaks against each.
    pub(in crate::proxy) declined: Vec<Declined>,
    /// How many bytes were decoded.
    pub(in crate::proxy) decoded: usize,
}

/// An alternative for an id.
pub(in crate::proxy) struct Alternative {
    /// The option that it stands in.
    pub(in crate::proxy) option: &'static str,
    /// Its text, and what it comes to.
    pub(in crate::proxy) template: String,
    pub(in crate::proxy) came_to: Result<Option<String>, String>,
    /// Which filter it may need.
    pub(in crate::proxy) hint: Option<String>,
}

/// A candidate of which a condition doesn't hold.
pub(in crate::proxy) struct Declined {
    pub(in crate::proxy) route: Box<str>,
    /// The condition's text, and what it may be.
    pub(in crate::proxy) template: String,
    pub(in crate::proxy) wanted: Vec<Box<str>>,
    pub(in crate::proxy) came_to: Result<Option<String>, String>,
}

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
    let before = candidates.iter().take(index.unwrap_or(usize::MAX));
    let are_forms_known = candidates.iter().any(Matched::knows_forms);
    let declined = before.filter_map(|matched| {
        let reads_nothing = are_forms_known && matched.finds_no_member(head);
        declined(head, matched, &content, reads_nothing)
    });
    Explanation {
        declined: declined.collect(),
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

/// What speaks against a candidate: the first of its conditions that doesn't hold, or can't be told.
fn declined(
    head: &Parts,
    matched: &Matched<'_>,
    content: &Result<Content<'_>, SessionError>,
    reads_nothing: bool,
) -> Option<Declined> {
    let picked = match content {
        _ if reads_nothing => Ok(Picked::nothing()),
        Ok(content) => content.pick(head, &matched.route.wanted),
        Err(error) => Err(error.clone()),
    };
    let (body, unreadable) = readable(picked, head, matched);
    let sources = Sources {
        head,
        matched,
        body,
    };
    let mut conditions = matched.route.when.iter();
    let condition = conditions.find(|condition| sources.holds(condition) != Ok(Some(true)))?;
    let value = sources.as_asked(&condition.template);
    Some(Declined {
        route: matched.route.name.clone(),
        template: condition.template.to_string(),
        wanted: condition.values.clone(),
        came_to: came_to(value, unreadable.as_ref()),
    })
}

/// What was picked of a body, or what the head says of it where that can't be read, and why not.
fn readable<'b>(
    picked: Result<Picked<'b>, SessionError>,
    head: &Parts,
    matched: &Matched<'_>,
) -> (Picked<'b>, Option<SessionError>) {
    match picked {
        Ok(picked) => (picked, None),
        Err(error) => (Picked::by_head(head, &matched.route.wanted), Some(error)),
    }
}

fn came_to(
    value: Result<Value<'_>, SessionError>,
    unreadable: Option<&SessionError>,
) -> Result<Option<String>, String> {
    match value {
        Ok(Value::Text(text)) => Ok(Some(text.into_owned())),
        Ok(Value::Missing) => Ok(None),
        Ok(Value::Unfit(why)) => Err(why),
        Ok(Value::NeedsBody) => Err(unreadable.map_or_else(String::new, ToString::to_string)),
        Err(error) => Err(error.to_string()),
    }
}

fn alternatives(
    head: &Parts,
    matched: &Matched<'_>,
    turn: &Turn,
    content: &Result<Content<'_>, SessionError>,
) -> Vec<Alternative> {
    let picked = match content {
        Ok(content) => content.pick(head, &matched.route.wanted),
        Err(error) => Err(error.clone()),
    };
    let (body, unreadable) = readable(picked, head, matched);
    let sources = Sources {
        head,
        matched,
        body,
    };
    let of = |option, templates: &[Template]| {
        let explained = templates.iter().map(|template| Alternative {
            option,
            template: template.to_string(),
            came_to: came_to(sources.as_id(template), unreadable.as_ref()),
            hint: hint(&sources, template),
        });
        explained.collect::<Vec<_>>()
    };
    let (session, user) = (
        of("session_id", &turn.session_id),
        of("user_id", &turn.user_id),
    );
    session.into_iter().chain(user).collect()
}

/// The filter that an id's look speaks for, where its placeholder has none.
fn hint(sources: &Sources<'_>, template: &Template) -> Option<String> {
    let mut plain = template.placeholders().filter(|one| one.is_plain());
    plain.find_map(|placeholder| match sources.part_of_id(placeholder) {
        Ok(Value::Text(id)) => Filter::suggested(&id).map(|filter| {
            let (what, word) = (filter.what(), filter.word());
            format!(
                "{{{placeholder}}} looks like a {what}: if the backend takes its other spellings for the \
                 same session, write {{{word}:{placeholder}}}"
            )
        }),
        _ => None,
    })
}
