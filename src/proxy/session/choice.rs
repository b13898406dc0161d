//! Which of the candidates takes a request, and under which key: conditions, alternatives, limits.
//!
//! It asks for the body only when an answer depends on it, and is then asked again with it.

use super::SessionError;
use super::content::{Content, Picked};
use super::form;
use super::sources::{Sources, Value};
use crate::config::{Condition, Limits, OnMalformed, OnMissing, Turn};
use crate::key::{SessionKey, Template};
use crate::proxy::route::{Candidates, Matched};
use http::request::Parts;

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The candidate of this index takes it. `None`: it passes without a lock.
    Taken(usize, Option<SessionKey>),
    /// No candidate does.
    Unmatched,
    /// It can't be said before the body is read.
    NeedsBody,
}

/// What one candidate makes of a request.
enum Judged {
    Taken(Option<SessionKey>),
    /// Its conditions don't hold.
    Declined,
    /// Its conditions may hold.
    NeedsBodyToTake,
    /// They do, and the session isn't known.
    NeedsBodyForKey,
}

/// What the alternatives for one id come to.
enum Resolved<'r> {
    Id(std::borrow::Cow<'r, str>),
    Missing,
    NeedsBody,
}

/// The ids that a key is made of, as error texts name them.
const SESSION: &str = "session id";
const USER: &str = "user id";

/// Chooses among the candidates, as far as what is known of the body goes.
///
/// # Errors
/// With the index of the candidate that can't be decided about, or whose session can't be told.
pub(super) fn choose(
    head: &Parts,
    candidates: &Candidates<'_>,
    content: &Content<'_>,
    limits: &Limits,
) -> Result<Choice, (usize, SessionError)> {
    let mut passing = None;
    // Where forms are known of, one holds nothing for a route that asks for members of JSON: what
    // comes as either is told apart by two routes. Not for its session, though: to a backend that
    // reads JSON whatever it is declared as, that would still be there.
    let are_forms_known = candidates.iter().any(Matched::knows_forms);
    for (index, matched) in candidates.iter().enumerate() {
        let wanted = &matched.route.wanted;
        if are_forms_known && matched.finds_no_member(head) {
            let body = Picked::nothing();
            let holds = Sources {
                head,
                matched,
                body,
            }
            .all_hold(&matched.route.when);
            if holds.map_err(|error| (index, error))? != Some(true) {
                continue;
            }
        }
        let judge = |body| {
            let judged = Sources {
                head,
                matched,
                body,
            }
            .judge(limits);
            judged.map_err(|error| (index, error))
        };
        let mut judged = judge(Picked::by_head(head, wanted))?;
        let is_to_take = matches!(judged, Judged::NeedsBodyToTake);
        if is_to_take || matches!(judged, Judged::NeedsBodyForKey) {
            if matches!(content, Content::Unread) {
                return Ok(Choice::NeedsBody);
            }
            let turn = matched.route.turn.as_ref();
            judged = match content.pick(head, wanted) {
                Ok(body) => judge(body)?,
                Err(error) if !error.is_unreadable() => return Err((index, error)),
                Err(error) => match turn {
                    // What can't be read frees nothing.
                    None => Judged::Declined,
                    Some(turn) if refuses(turn, content) => return Err((index, error)),
                    // Unless another one takes it, and perhaps locks it, it passes here.
                    Some(_) if is_to_take => {
                        passing = passing.or(Some(index));
                        Judged::Declined
                    }
                    Some(_) => Judged::Taken(None),
                },
            };
        }
        if let Judged::Taken(key) = judged {
            return Ok(Choice::Taken(index, key));
        }
    }
    Ok(passing.map_or(Choice::Unmatched, |index| Choice::Taken(index, None)))
}

/// Whether a route refuses a body that can't be read.
fn refuses(turn: &Turn, content: &Content<'_>) -> bool {
    match turn.lock.on_malformed {
        OnMalformed::Reject => true,
        OnMalformed::PassNonJson => content.may_be_json(),
        OnMalformed::Pass => false,
    }
}

fn is_form(head: &Parts) -> bool {
    matches!(form::declared(head), Ok(Some(_)))
}

impl Matched<'_> {
    /// Whether its route asks for fields of a form.
    pub(super) fn knows_forms(&self) -> bool {
        !self.route.wanted.fields.is_empty()
    }

    /// Whether the body is a form, of which its route asks nothing.
    pub(super) fn finds_no_member(&self, head: &Parts) -> bool {
        !self.knows_forms() && is_form(head)
    }
}

// === impl Sources ===

impl Sources<'_> {
    fn judge(&self, limits: &Limits) -> Result<Judged, SessionError> {
        let matched: &Matched<'_> = self.matched;
        match self.all_hold(&matched.route.when)? {
            Some(true) => {}
            Some(false) => return Ok(Judged::Declined),
            None => return Ok(Judged::NeedsBodyToTake),
        }
        match &matched.route.turn {
            None => Ok(Judged::Taken(None)),
            Some(turn) => self.key(turn, limits),
        }
    }

    /// Whether all conditions hold; `None`: that depends on the body. One that clearly doesn't
    /// hold decides, whatever is unclear about the others.
    fn all_hold(&self, conditions: &[Condition]) -> Result<Option<bool>, SessionError> {
        let mut all = Ok(Some(true));
        for condition in conditions {
            match (self.holds(condition), &all) {
                (Ok(Some(true)), _) => {}
                (Ok(Some(false)), _) => return Ok(Some(false)),
                (Ok(None), _) => all = Ok(None),
                (Err(error), Ok(Some(_))) => all = Err(error),
                (Err(_), _) => {}
            }
        }
        all
    }

    pub(super) fn holds(&self, condition: &Condition) -> Result<Option<bool>, SessionError> {
        Ok(match self.as_asked(&condition.template)? {
            Value::Text(text) => Some(condition.values.iter().any(|value| **value == *text)),
            Value::Missing | Value::Unfit(_) => Some(false),
            Value::NeedsBody => None,
        })
    }

    fn key(&self, turn: &Turn, limits: &Limits) -> Result<Judged, SessionError> {
        let session = match self.id(SESSION, &turn.session_id, turn, limits)? {
            Resolved::Id(session) => session,
            Resolved::Missing => return Ok(Judged::Taken(None)),
            Resolved::NeedsBody => return Ok(Judged::NeedsBodyForKey),
        };
        if !turn.lock.key.names_user() {
            return Ok(Judged::Taken(Some(turn.lock.key.fill("", &session))));
        }
        Ok(match self.id(USER, &turn.user_id, turn, limits)? {
            Resolved::Id(user) => Judged::Taken(Some(turn.lock.key.fill(&user, &session))),
            Resolved::Missing => Judged::Taken(None),
            Resolved::NeedsBody => Judged::NeedsBodyForKey,
        })
    }

    /// An id within its limits; missing only where the route lets that pass.
    fn id<'s>(
        &'s self,
        id: &'static str,
        alternatives: &'s [Template],
        turn: &Turn,
        limits: &Limits,
    ) -> Result<Resolved<'s>, SessionError> {
        for template in alternatives {
            match self.as_id(template)? {
                Value::Missing => {}
                Value::NeedsBody => return Ok(Resolved::NeedsBody),
                Value::Unfit(why) => return Err(SessionError::BadId { id, why }),
                Value::Text(value) if value.len() > limits.max_id_bytes => {
                    let (length, max) = (value.len(), limits.max_id_bytes);
                    let why = format!("it has {length} bytes, and {max} are allowed");
                    return Err(SessionError::BadId { id, why });
                }
                Value::Text(value) => return Ok(Resolved::Id(value)),
            }
        }
        if turn.lock.on_missing == OnMissing::Reject {
            let places: Vec<_> = alternatives.iter().map(Template::to_string).collect();
            return Err(SessionError::Missing {
                id,
                places: places.join(", "),
            });
        }
        Ok(Resolved::Missing)
    }
}
