//! Which of the candidate routes takes a request, and under which session key: conditions, templates,
//! limits.
//!
//! Invariant: the only place where this is decided. [`decide`] reads nothing from the network and waits
//! for nothing. Where its result depends on the body, it asks for it, and is called again with it.

use std::borrow::Cow;

use http::request::Parts;

use super::content::{BodyContent, PickedFields, is_blank};
use super::error::SessionError;
use super::observer::{IdKind, Observer};
use super::sources::{Sources, TemplateValue};
use crate::config::{BusyFormat, Condition, Limits, OnMalformed, OnMissing, TurnConfig};
use crate::key::{OnceId, SessionKey, Template};
use crate::proxy::route::{Candidates, RouteMatch};

/// The result of [`decide`]. An index is the candidate's position among the candidates.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The candidate takes the request.
    Taken { index: usize, lock: NeededLock },
    /// The candidate takes the request and refers to the call id in its error responses. The id stands
    /// in the body, which isn't needed for anything else.
    NeedsCallId { index: usize, lock: NeededLock },
    /// The candidate can't decide before the body is read.
    NeedsBody { index: usize },
    /// The candidate refuses the request.
    Refused { index: usize, error: SessionError },
    /// No candidate takes the request.
    Unmatched,
}

/// The lock that a request needs.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NeededLock {
    /// The lock of this session. `once`: the id by which a repeat of the request is recognised; `None`: it has
    /// none.
    Session {
        key: SessionKey,
        once: Option<OnceId>,
    },
    /// None: its route doesn't lock, or no route takes it.
    Unneeded,
    /// One that nobody can name: its route locks, finds no session for this reason, and lets it pass.
    NoSession(SessionError),
}

/// One candidate, and the request that it is checked against.
struct Candidate<'r> {
    head: &'r Parts,
    content: &'r BodyContent,
    matched: &'r RouteMatch<'r>,
    candidates: &'r Candidates<'r>,
    limits: &'r Limits,
}

/// What one candidate makes of a request.
enum CandidateResult {
    /// It takes the request.
    Taken(NeededLock),
    /// One of its conditions doesn't hold.
    Declined,
    /// Its conditions can't be read, for this reason. It takes the request without a lock if no other
    /// candidate takes it.
    Passing(SessionError),
    /// Its conditions depend on the body.
    NeedsBodyToTake,
    /// Its conditions hold, and the session depends on the body.
    NeedsBodyForKey,
    /// Its conditions hold, this is its session, and the once id depends on the body.
    NeedsBodyForOnce(SessionKey),
}

/// The result of all templates for one id.
enum ResolvedId<'r> {
    Id(Cow<'r, str>),
    NeedsBody,
}

/// Decides about a request, as far as the content of the body is known. `asked` is the index of the candidate
/// that the body was loaded for; `None`: it wasn't.
///
/// With [`BodyContent::Unread`] the result may be [`Decision::NeedsBody`] or [`Decision::NeedsCallId`],
/// with any other content it never is.
pub(super) fn decide(
    head: &Parts,
    content: &BodyContent,
    asked: Option<usize>,
    candidates: &Candidates<'_>,
    limits: &Limits,
    observer: &mut impl Observer,
) -> Decision {
    observer.begin(content);
    let is_unread = matches!(content, BodyContent::Unread);
    let mut passing = None;
    for (index, matched) in candidates.iter().enumerate() {
        let candidate = Candidate {
            head,
            content,
            matched,
            candidates,
            limits,
        };
        match candidate.check(asked == Some(index), observer) {
            Ok(CandidateResult::Taken(lock @ NeededLock::Session { .. }))
                if is_unread && names_calls(matched) =>
            {
                return Decision::NeedsCallId { index, lock };
            }
            Ok(CandidateResult::Taken(lock)) => return Decision::Taken { index, lock },
            Ok(
                CandidateResult::NeedsBodyToTake
                | CandidateResult::NeedsBodyForKey
                | CandidateResult::NeedsBodyForOnce(_),
            ) if is_unread => return Decision::NeedsBody { index },
            Ok(CandidateResult::Passing(error)) => passing = passing.or(Some((index, error))),
            // With the body, a candidate has nothing left to ask for.
            Ok(
                CandidateResult::Declined
                | CandidateResult::NeedsBodyToTake
                | CandidateResult::NeedsBodyForKey
                | CandidateResult::NeedsBodyForOnce(_),
            ) => {}
            Err(error) => return Decision::Refused { index, error },
        }
    }
    passing.map_or(Decision::Unmatched, |(index, error)| Decision::Taken {
        index,
        lock: NeededLock::NoSession(error),
    })
}

/// Whether the route's error responses refer to the id of the JSON-RPC call.
fn names_calls(matched: &RouteMatch<'_>) -> bool {
    let turn = matched.route.turn.as_ref();
    turn.is_some_and(|turn| turn.busy.format == BusyFormat::JsonRpc)
}

// === impl Decision ===

impl Decision {
    /// Whether error responses to the request refer to the id of its JSON-RPC call.
    pub(super) fn names_call(&self, candidates: &Candidates<'_>) -> bool {
        let index = match self {
            Self::Taken { index, .. }
            | Self::NeedsCallId { index, .. }
            | Self::NeedsBody { index }
            | Self::Refused { index, .. } => *index,
            Self::Unmatched => return false,
        };
        candidates.iter().nth(index).is_some_and(names_calls)
    }
}

// === impl NeededLock ===

impl NeededLock {
    /// The id by which a repeat of the request is recognised; `None`: it has none.
    pub(super) fn once(&self) -> Option<&OnceId> {
        match self {
            Self::Session { once, .. } => once.as_ref(),
            Self::Unneeded | Self::NoSession(_) => None,
        }
    }
}

// === impl Candidate ===

impl<'r> Candidate<'r> {
    /// Checks the candidate with what is known of the body. `is_asking`: the body was loaded because the candidate
    /// can't be checked without it.
    fn check(
        &self,
        is_asking: bool,
        observer: &mut impl Observer,
    ) -> Result<CandidateResult, SessionError> {
        let pick = || self.content.pick(&self.matched.route.wanted);
        let picked = is_asking.then(pick);
        if let Some(Ok(body)) = picked {
            return self.check_with(body, observer);
        }
        let needed = self.check_with(PickedFields::unknown(), observer)?;
        let needs_body = match &needed {
            CandidateResult::NeedsBodyToTake
            | CandidateResult::NeedsBodyForKey
            | CandidateResult::NeedsBodyForOnce(_) => true,
            CandidateResult::Taken(_) | CandidateResult::Declined | CandidateResult::Passing(_) => {
                false
            }
        };
        if !needs_body || matches!(self.content, BodyContent::Unread) {
            return Ok(needed);
        }
        let error = match picked.unwrap_or_else(pick) {
            Ok(body) => return self.check_with(body, observer),
            Err(error) => error,
        };
        observer.unreadable(self.matched.index, &error);
        match error.is_unreadable() {
            true => self.without_body(needed, error),
            false => Err(error),
        }
    }

    fn check_with(
        &self,
        body: PickedFields<'_>,
        observer: &mut impl Observer,
    ) -> Result<CandidateResult, SessionError> {
        let sources = Sources {
            head: self.head,
            matched: self.matched,
            candidates: self.candidates,
            body,
        };
        observer.candidate(&sources);
        match sources.all_hold(&self.matched.route.when, observer)? {
            Some(true) => {}
            Some(false) => return Ok(CandidateResult::Declined),
            None => return Ok(CandidateResult::NeedsBodyToTake),
        }
        match &self.matched.route.turn {
            None => Ok(CandidateResult::Taken(NeededLock::Unneeded)),
            Some(turn) => match sources.key(turn, self.limits, observer) {
                Err(error @ SessionError::Missing { .. })
                    if turn.lock.on_missing == OnMissing::Pass =>
                {
                    Ok(CandidateResult::Taken(NeededLock::NoSession(error)))
                }
                result => result,
            },
        }
    }

    /// What the candidate makes of a request whose body it can't read. `needed`: what of its decision depends on
    /// the body.
    fn without_body(
        &self,
        needed: CandidateResult,
        error: SessionError,
    ) -> Result<CandidateResult, SessionError> {
        let Some(turn) = &self.matched.route.turn else {
            // An unreadable body never lets a request pass without a lock.
            return Ok(CandidateResult::Declined);
        };
        // Where a candidate reads forms, a form holds nothing for a condition on members of JSON: two
        // routes tell the two kinds of bodies apart. This isn't so for the session: a backend that reads
        // JSON whatever the body is declared as would still find one.
        let is_to_take = matches!(needed, CandidateResult::NeedsBodyToTake);
        let reads_forms = |matched: &RouteMatch<'_>| !matched.route.wanted.form_fields.is_empty();
        if is_to_take
            && self.content.is_form()
            && !reads_forms(self.matched)
            && self.candidates.iter().any(reads_forms)
        {
            self.check_as_form()?;
            return Ok(CandidateResult::Declined);
        }
        match turn.lock.on_malformed {
            OnMalformed::Pass => {}
            OnMalformed::PassNonJson if !self.content.may_be_json() => self.check_as_form()?,
            OnMalformed::PassNonJson | OnMalformed::Reject => return Err(error),
        }
        Ok(match needed {
            CandidateResult::NeedsBodyToTake => CandidateResult::Passing(error),
            // The session is known, so the turn is locked. A repeat of it isn't recognised.
            CandidateResult::NeedsBodyForOnce(key) => {
                CandidateResult::Taken(NeededLock::Session { key, once: None })
            }
            _ => CandidateResult::Taken(NeededLock::NoSession(error)),
        })
    }

    /// Checks that a reader of forms finds no ambiguous or unusable value in a body that isn't JSON.
    fn check_as_form(&self) -> Result<(), SessionError> {
        let form = self.content.pick_form(&self.matched.route.wanted)?;
        match self.check_with(form, &mut ()) {
            Err(SessionError::Missing { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

// === impl Sources ===

impl Sources<'_> {
    /// Whether all conditions hold; `None`: that depends on the body. A condition that doesn't hold
    /// decides, even if another one can't be read.
    fn all_hold(
        &self,
        conditions: &[Condition],
        observer: &mut impl Observer,
    ) -> Result<Option<bool>, SessionError> {
        let mut all = Ok(Some(true));
        for condition in conditions {
            let holds = self.holds(condition);
            if holds != Ok(Some(true)) {
                observer.unmet(self, condition, &holds);
            }
            match (holds, &all) {
                (Ok(Some(true)), _) => {}
                (Ok(Some(false)), _) => return Ok(Some(false)),
                (Ok(None), _) => all = Ok(None),
                (Err(error), Ok(Some(_))) => all = Err(error),
                (Err(_), _) => {}
            }
        }
        all
    }

    /// Whether a condition holds; `None`: that depends on the body.
    fn holds(&self, condition: &Condition) -> Result<Option<bool>, SessionError> {
        let is_value = |text: &[u8]| {
            let mut values = condition.values.iter();
            values.any(|value| value.as_bytes() == text)
        };
        // Some backends take blanks off the ends, and read control characters as blanks (Tornado). Such
        // a value counts for a route that locks, and not for a route that doesn't.
        let locks = self.matched.route.turn.is_some();
        let is_meant = |text: &[u8]| {
            let is_padded = |text: &str| is_value(text.trim_matches(is_blank).as_bytes());
            is_value(text) || locks && str::from_utf8(text).is_ok_and(is_padded)
        };
        let holds = match self.holds_in_batch(&condition.template, is_meant) {
            Some(holds) => holds?,
            None => match self.condition_value(&condition.template)? {
                TemplateValue::Text(text) => is_meant(text.as_bytes()),
                TemplateValue::Missing | TemplateValue::Unfit(_) => false,
                TemplateValue::NeedsBody => return Ok(None),
            },
        };
        self.agrees_elsewhere(&condition.template, holds, is_meant)?;
        Ok(Some(holds))
    }

    /// The key of the request's session, and its once id.
    fn key(
        &self,
        turn: &TurnConfig,
        limits: &Limits,
        observer: &mut impl Observer,
    ) -> Result<CandidateResult, SessionError> {
        let key = &turn.lock.key;
        let session = match self.id(IdKind::Session, turn, limits, observer)? {
            ResolvedId::Id(session) => session,
            ResolvedId::NeedsBody => return Ok(CandidateResult::NeedsBodyForKey),
        };
        let user = match key.names_user() {
            false => ResolvedId::Id("".into()),
            true => self.id(IdKind::User, turn, limits, observer)?,
        };
        let key = match user {
            ResolvedId::Id(user) => key.fill(&user, &session),
            ResolvedId::NeedsBody => return Ok(CandidateResult::NeedsBodyForKey),
        };
        let once = match self.first_id(IdKind::Once, &turn.once, limits, observer)? {
            Some(ResolvedId::Id(once)) => Some(OnceId::new(&once)),
            Some(ResolvedId::NeedsBody) => return Ok(CandidateResult::NeedsBodyForOnce(key)),
            None => None,
        };
        Ok(CandidateResult::Taken(NeededLock::Session { key, once }))
    }

    /// The session's or the user's id.
    ///
    /// # Errors
    /// When no template has a value ([`SessionError::Missing`]), and when one has a value that can't be used.
    fn id<'s>(
        &'s self,
        id: IdKind,
        turn: &'s TurnConfig,
        limits: &Limits,
        observer: &mut impl Observer,
    ) -> Result<ResolvedId<'s>, SessionError> {
        let templates = id.templates(turn);
        let found = self.first_id(id, templates, limits, observer)?;
        found.ok_or_else(|| {
            let places: Vec<_> = templates.iter().map(Template::to_string).collect();
            SessionError::Missing {
                id: id.name(),
                places: places.join(", "),
            }
        })
    }

    /// The value of the first template that has one; `None`: none has one.
    ///
    /// # Errors
    /// When one has a value that can't be used.
    fn first_id<'s>(
        &'s self,
        id: IdKind,
        templates: &'s [Template],
        limits: &Limits,
        observer: &mut impl Observer,
    ) -> Result<Option<ResolvedId<'s>>, SessionError> {
        for template in templates {
            let value = self.checked_id(id, template, limits);
            observer.tried(self, id, template, &value);
            match value? {
                TemplateValue::Text(value) => return Ok(Some(ResolvedId::Id(value))),
                TemplateValue::NeedsBody => return Ok(Some(ResolvedId::NeedsBody)),
                TemplateValue::Missing | TemplateValue::Unfit(_) => {}
            }
        }
        Ok(None)
    }

    /// The value of one template as an id, within its limits; never [`TemplateValue::Unfit`].
    fn checked_id<'s>(
        &'s self,
        id: IdKind,
        template: &'s Template,
        limits: &Limits,
    ) -> Result<TemplateValue<'s>, SessionError> {
        let bad = |reason| {
            let id = id.name();
            Err(SessionError::BadId { id, reason })
        };
        self.only_here(template)?;
        let value = self.id_value(template)?;
        match &value {
            TemplateValue::Missing if id == IdKind::Session => self.not_in_form(template)?,
            TemplateValue::Unfit(reason) => return bad(reason.clone()),
            TemplateValue::Text(text) if text.len() > limits.max_id_bytes => {
                let (length, max) = (text.len(), limits.max_id_bytes);
                return bad(format!(
                    "it has {length} bytes, and {max} are allowed (limits.max_id_bytes)"
                ));
            }
            TemplateValue::Missing | TemplateValue::Text(_) | TemplateValue::NeedsBody => {}
        }
        Ok(value)
    }
}
