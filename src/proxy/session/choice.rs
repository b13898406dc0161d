//! Which of the candidates takes a request, and under which key: conditions, alternatives, limits.
//!
//! It asks for the body only when an answer depends on it, and is then asked again with it.

use super::SessionError;
use super::content::{BodyContent, PickedFields, is_blank};
use super::kind::BodyKind;
use super::sources::{Sources, TemplateValue};
use crate::config::{Condition, Limits, OnMalformed, OnMissing, TurnConfig};
use crate::key::{SessionKey, Template};
use crate::proxy::route::{Candidates, RouteMatch};
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
enum CandidateResult {
    Taken(Option<SessionKey>),
    /// Its conditions don't hold.
    Declined,
    /// It can't be read whether they hold: it passes, unless another one takes it, and perhaps locks it.
    Passing,
    /// Its conditions may hold.
    NeedsBodyToTake,
    /// They do, and the session isn't known.
    NeedsBodyForKey,
}

/// What becomes of a body that can't be read.
struct UnreadableBody {
    judged: CandidateResult,
    /// Unless a reader of forms finds in it what is wanted.
    looks_for_fields: bool,
}

/// What the alternatives for one id come to.
enum ResolvedId<'r> {
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
    kind: &BodyKind,
    candidates: &Candidates<'_>,
    content: &BodyContent<'_>,
    limits: &Limits,
) -> Result<Choice, (usize, SessionError)> {
    let mut passing = None;
    for (index, matched) in candidates.iter().enumerate() {
        let judge = |body| {
            let sources = Sources {
                head,
                matched,
                candidates,
                body,
            };
            sources.judge(limits)
        };
        let with_body = |is_to_take| match content.pick(kind, &matched.route.wanted) {
            Ok(body) => judge(body),
            Err(error) if !error.is_unreadable() => Err(error),
            Err(error) => {
                let fallback = fallback(matched, candidates, kind, content, is_to_take);
                let Some(fallback) = fallback else {
                    return Err(error);
                };
                // What isn't JSON may hold a session to a reader of forms.
                let of_form = || judge(content.pick_form(kind, &matched.route.wanted)?);
                match fallback.looks_for_fields.then(of_form) {
                    Some(Err(error)) if !matches!(error, SessionError::Missing { .. }) => {
                        Err(error)
                    }
                    _ => Ok(fallback.judged),
                }
            }
        };
        let judged = match judge(PickedFields::unknown()) {
            Ok(CandidateResult::NeedsBodyToTake | CandidateResult::NeedsBodyForKey)
                if matches!(content, BodyContent::Unread) =>
            {
                return Ok(Choice::NeedsBody);
            }
            Ok(CandidateResult::NeedsBodyToTake) => with_body(true),
            Ok(CandidateResult::NeedsBodyForKey) => with_body(false),
            judged => judged,
        };
        match judged.map_err(|error| (index, error))? {
            CandidateResult::Taken(key) => return Ok(Choice::Taken(index, key)),
            CandidateResult::Passing => passing = passing.or(Some(index)),
            // With the body, nothing is left to be asked for.
            CandidateResult::Declined
            | CandidateResult::NeedsBodyToTake
            | CandidateResult::NeedsBodyForKey => {}
        }
    }
    Ok(passing.map_or(Choice::Unmatched, |index| Choice::Taken(index, None)))
}

/// What one candidate makes of a body that isn't what it asks for; `None`: it refuses the request.
/// `is_to_take`: something in the body says whether it takes it.
fn fallback(
    matched: &RouteMatch<'_>,
    candidates: &Candidates<'_>,
    kind: &BodyKind,
    content: &BodyContent<'_>,
    is_to_take: bool,
) -> Option<UnreadableBody> {
    let declined = |looks_for_fields| {
        Some(UnreadableBody {
            judged: CandidateResult::Declined,
            looks_for_fields,
        })
    };
    let Some(turn) = &matched.route.turn else {
        // What can't be read frees nothing.
        return declined(false);
    };
    // Where forms are known of, one holds nothing for a route that asks for members of JSON: what
    // comes as either is told apart by two routes. Not for its session, though: to a backend that
    // reads JSON whatever it is declared as, that would still be there.
    let knows_forms = |matched: &RouteMatch<'_>| !matched.route.wanted.form_fields.is_empty();
    if is_to_take
        && content.is_form(kind)
        && !knows_forms(matched)
        && candidates.iter().any(knows_forms)
    {
        return declined(true);
    }
    let (passes, looks_for_fields) = match turn.lock.on_malformed {
        OnMalformed::Reject => (false, false),
        OnMalformed::PassNonJson => (!content.may_be_json(kind), true),
        OnMalformed::Pass => (true, false),
    };
    let judged = match is_to_take {
        true => CandidateResult::Passing,
        false => CandidateResult::Taken(None),
    };
    passes.then_some(UnreadableBody {
        judged,
        looks_for_fields,
    })
}

// === impl Sources ===

impl Sources<'_> {
    fn judge(&self, limits: &Limits) -> Result<CandidateResult, SessionError> {
        let matched: &RouteMatch<'_> = self.matched;
        match self.all_hold(&matched.route.when)? {
            Some(true) => {}
            Some(false) => return Ok(CandidateResult::Declined),
            None => return Ok(CandidateResult::NeedsBodyToTake),
        }
        match &matched.route.turn {
            None => Ok(CandidateResult::Taken(None)),
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
        let is_value = |text: &[u8]| {
            let mut values = condition.values.iter();
            values.any(|value| value.as_bytes() == text)
        };
        // Some backends take blanks off the ends, and control characters for blanks (Tornado): such a
        // value locks, and frees nothing.
        let locks = self.matched.route.turn.is_some();
        let is_meant = |text: &[u8]| {
            let is_padded = |text: &str| is_value(text.trim_matches(is_blank).as_bytes());
            is_value(text) || locks && str::from_utf8(text).is_ok_and(is_padded)
        };
        let holds = match self.as_asked(&condition.template)? {
            TemplateValue::Text(text) => is_meant(text.as_bytes()),
            TemplateValue::Missing | TemplateValue::Unfit(_) => false,
            TemplateValue::NeedsBody => return Ok(None),
        };
        self.agrees_elsewhere(&condition.template, holds, is_meant)?;
        Ok(Some(holds))
    }

    /// What an alternative for an id comes to.
    pub(super) fn alternative<'s>(
        &'s self,
        template: &'s Template,
    ) -> Result<TemplateValue<'s>, SessionError> {
        self.only_here(template)?;
        self.as_id(template)
    }

    fn key(&self, turn: &TurnConfig, limits: &Limits) -> Result<CandidateResult, SessionError> {
        let session = match self.id(SESSION, &turn.session_id, turn, limits)? {
            ResolvedId::Id(session) => session,
            ResolvedId::Missing => return Ok(CandidateResult::Taken(None)),
            ResolvedId::NeedsBody => return Ok(CandidateResult::NeedsBodyForKey),
        };
        if !turn.lock.key.names_user() {
            return Ok(CandidateResult::Taken(Some(
                turn.lock.key.fill("", &session),
            )));
        }
        Ok(match self.id(USER, &turn.user_id, turn, limits)? {
            ResolvedId::Id(user) => {
                CandidateResult::Taken(Some(turn.lock.key.fill(&user, &session)))
            }
            ResolvedId::Missing => CandidateResult::Taken(None),
            ResolvedId::NeedsBody => CandidateResult::NeedsBodyForKey,
        })
    }

    /// An id within its limits; missing only where the route lets that pass.
    fn id<'s>(
        &'s self,
        id: &'static str,
        alternatives: &'s [Template],
        turn: &TurnConfig,
        limits: &Limits,
    ) -> Result<ResolvedId<'s>, SessionError> {
        for template in alternatives {
            match self.alternative(template)? {
                TemplateValue::Missing if id == SESSION => self.not_in_form(template)?,
                TemplateValue::Missing => {}
                TemplateValue::NeedsBody => return Ok(ResolvedId::NeedsBody),
                TemplateValue::Unfit(why) => return Err(SessionError::BadId { id, why }),
                TemplateValue::Text(value) if value.len() > limits.max_id_bytes => {
                    let (length, max) = (value.len(), limits.max_id_bytes);
                    let why = format!("it has {length} bytes, and {max} are allowed");
                    return Err(SessionError::BadId { id, why });
                }
                TemplateValue::Text(value) => return Ok(ResolvedId::Id(value)),
            }
        }
        if turn.lock.on_missing == OnMissing::Reject {
            let places: Vec<_> = alternatives.iter().map(Template::to_string).collect();
            return Err(SessionError::Missing {
                id,
                places: places.join(", "),
            });
        }
        Ok(ResolvedId::Missing)
    }
}
