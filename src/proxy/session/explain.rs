//! The road of [`super::read`] for a body that is there already, step by step the same, and what each
//! alternative comes to on it.

use http::request::Parts;

use super::choice::{self, Choice};
use super::content::{BodyContent, PickedFields};
use super::encoding::{Decoding, Encoding};
use super::kind::BodyKind;
use super::sources::{Sources, TemplateValue};
use super::{SessionError, content};
use crate::config::{Limits, TurnConfig};
use crate::key::{IdFilter, SessionKey, Template};
use crate::proxy::route::{Candidates, RouteMatch};

/// What a request comes to, and why.
pub(in crate::proxy) struct Explanation {
    /// The index of the candidate that takes it, and its session's key.
    pub(in crate::proxy) chosen: Result<(Option<usize>, Option<SessionKey>), (usize, SessionError)>,
    /// The alternatives of its route.
    pub(in crate::proxy) alternatives: Vec<TriedTemplate>,
    /// The candidates before it, and what speaks against each.
    pub(in crate::proxy) declined: Vec<DeclinedCandidate>,
    /// How many bytes were decoded.
    pub(in crate::proxy) decoded: usize,
}

/// An alternative for an id.
pub(in crate::proxy) struct TriedTemplate {
    /// The option that it stands in.
    pub(in crate::proxy) option: &'static str,
    /// Its text, and what it comes to.
    pub(in crate::proxy) template: String,
    pub(in crate::proxy) came_to: Result<Option<String>, String>,
    /// Which filter it may need.
    pub(in crate::proxy) hint: Option<String>,
}

/// A candidate of which a condition doesn't hold.
pub(in crate::proxy) struct DeclinedCandidate {
    pub(in crate::proxy) route: Box<str>,
    /// The condition's text, and what it may be.
    pub(in crate::proxy) template: String,
    pub(in crate::proxy) wanted: Vec<Box<str>>,
    pub(in crate::proxy) came_to: Result<Option<String>, String>,
}

/// Explains a request by its candidates; no byte of a body is none.
pub(in crate::proxy) fn explain<'c>(
    head: &'c Parts,
    body: &[u8],
    candidates: &'c Candidates<'c>,
    limits: &Limits,
) -> Explanation {
    let mut decoded = Vec::new();
    let kind = &BodyKind::of(head);
    let content = content(head, body, limits, &mut decoded);
    let choose =
        |content: &BodyContent<'_>| choice::choose(head, kind, candidates, content, limits);
    let chosen = match choose(&BodyContent::Unread) {
        Ok(Choice::NeedsBody) => match &content {
            Ok(content) => choose(content),
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
    let sources = |matched: &'c RouteMatch<'c>| {
        let picked = match &content {
            Ok(content) => content.pick(kind, &matched.route.wanted),
            Err(error) => Err(error.clone()),
        };
        let (body, unreadable) = match picked {
            Ok(picked) => (picked, None),
            Err(error) => (PickedFields::unknown(), Some(error)),
        };
        let sources = Sources {
            head,
            matched,
            candidates,
            body,
        };
        (sources, unreadable)
    };
    let matched = index.and_then(|index| candidates.iter().nth(index));
    let turn = matched.and_then(|matched| Some((matched, matched.route.turn.as_ref()?)));
    let alternatives = turn.map(|(matched, turn)| {
        let (sources, unreadable) = sources(matched);
        alternatives(&sources, turn, unreadable.as_ref())
    });
    let before = candidates.iter().take(index.unwrap_or(usize::MAX));
    let declined = before.filter_map(|matched| {
        let (sources, unreadable) = sources(matched);
        declined(&sources, unreadable.as_ref())
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
) -> Result<BodyContent<'b>, SessionError> {
    if body.is_empty() {
        return Ok(BodyContent::Empty);
    }
    let encodings = match Encoding::all(head) {
        Ok(encodings) => encodings,
        Err(error) if error.is_unreadable() => return Ok(BodyContent::Unreadable(error)),
        Err(error) => return Err(error),
    };
    let max = limits.max_body;
    if body.len() > max {
        return Err(SessionError::TooLarge { max });
    }
    if encodings.is_empty() {
        return Ok(BodyContent::Text(body));
    }
    let decode = || {
        let mut decoding = Decoding::new(&encodings, body, max)?;
        while !decoding.step()?.1 {}
        Ok(decoding.finish())
    };
    match decode() {
        Ok(whole) => {
            *decoded = whole;
            Ok(match content::is_json_encoded(body) {
                true => BodyContent::Unreadable(super::two_readings()),
                false => BodyContent::Decoded(decoded),
            })
        }
        Err(error) if SessionError::is_unreadable(&error) => Ok(BodyContent::Unreadable(error)),
        Err(error) => Err(error),
    }
}

/// What speaks against a candidate: the first of its conditions that doesn't hold, or can't be told.
fn declined(sources: &Sources<'_>, unreadable: Option<&SessionError>) -> Option<DeclinedCandidate> {
    let route = &sources.matched.route;
    let mut conditions = route.when.iter();
    let condition = conditions.find(|condition| sources.holds(condition) != Ok(Some(true)))?;
    let value = sources.as_asked(&condition.template);
    Some(DeclinedCandidate {
        route: route.name.clone(),
        template: condition.template.to_string(),
        wanted: condition.values.clone(),
        came_to: came_to(value, unreadable),
    })
}

fn came_to(
    value: Result<TemplateValue<'_>, SessionError>,
    unreadable: Option<&SessionError>,
) -> Result<Option<String>, String> {
    match value {
        Ok(TemplateValue::Text(text)) => Ok(Some(text.into_owned())),
        Ok(TemplateValue::Missing) => Ok(None),
        Ok(TemplateValue::Unfit(why)) => Err(why),
        Ok(TemplateValue::NeedsBody) => {
            Err(unreadable.map_or_else(String::new, ToString::to_string))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn alternatives(
    sources: &Sources<'_>,
    turn: &TurnConfig,
    unreadable: Option<&SessionError>,
) -> Vec<TriedTemplate> {
    let of = |option, templates: &[Template]| {
        let explained = templates.iter().map(|template| TriedTemplate {
            option,
            template: template.to_string(),
            came_to: came_to(sources.alternative(template), unreadable),
            hint: hint(option, sources, template),
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
fn hint(option: &str, sources: &Sources<'_>, template: &Template) -> Option<String> {
    let whose = option.trim_end_matches("_id");
    let mut plain = template.placeholders().filter(|one| one.is_plain());
    plain.find_map(|placeholder| match sources.part_of_id(placeholder) {
        Ok(TemplateValue::Text(id)) => IdFilter::suggested(&id).map(|filter| {
            let (what, word) = (filter.what(), filter.word());
            format!(
                "{{{placeholder}}} looks like a {what}: if the backend takes its other spellings for the \
                 same {whose}, write {{{word}:{placeholder}}}"
            )
        }),
        _ => None,
    })
}
