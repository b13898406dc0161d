//! Records the steps of a decision for `explain`.

use std::collections::HashMap;

use super::report::{ExplainedTemplate, TemplateResult, UnmetCondition};
use crate::config::{Condition, TurnConfig};
use crate::key::{IdFilter, Template};
use crate::proxy::session::{BodyContent, IdKind, Observer, SessionError, Sources, TemplateValue};

/// The steps of the decision about one request.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// How many bytes the body was decoded to.
    pub(super) decoded: usize,
    /// By the candidates' positions in the configuration.
    candidates: HashMap<usize, CandidateRecord>,
}

/// What was found out about one candidate.
#[derive(Debug, Default)]
pub(super) struct CandidateRecord {
    /// The condition that decides against the candidate, or couldn't be read.
    unmet: Option<RecordedCondition>,
    tried: Vec<RecordedTemplate>,
    /// Why the body that the candidate needs can't be read.
    pub(super) body_error: Option<String>,
}

/// A condition that doesn't hold, and the value that it was compared with.
#[derive(Debug)]
struct RecordedCondition {
    template: String,
    values: Vec<Box<str>>,
    /// `None`: the value depends on the body.
    result: Option<TemplateResult>,
    /// Whether the body is a batch, each request of which has its own value.
    is_in_batch: bool,
}

/// A template that was tried.
#[derive(Debug)]
struct RecordedTemplate {
    id: IdKind,
    template: String,
    /// `None`: the value depends on the body.
    result: Option<TemplateResult>,
    hint: Option<String>,
}

// === impl Recorder ===

impl Recorder {
    /// Takes out what was recorded about the candidate at this position in the configuration.
    pub(super) fn take(&mut self, route: usize) -> CandidateRecord {
        self.candidates.remove(&route).unwrap_or_default()
    }

    fn record(&mut self, route: usize) -> &mut CandidateRecord {
        self.candidates.entry(route).or_default()
    }
}

impl Observer for Recorder {
    fn begin(&mut self, content: &BodyContent) {
        self.candidates.clear();
        self.decoded = content.decoded_len();
    }

    fn candidate(&mut self, sources: &Sources<'_>) {
        *self.record(sources.matched.index) = CandidateRecord::default();
    }

    fn unmet(
        &mut self,
        sources: &Sources<'_>,
        condition: &Condition,
        holds: &Result<Option<bool>, SessionError>,
    ) {
        let unmet = &mut self.record(sources.matched.index).unmet;
        // The first that can't be read, unless a later one clearly doesn't hold.
        if unmet.is_none() || *holds == Ok(Some(false)) {
            let value = sources.condition_value(&condition.template);
            *unmet = Some(RecordedCondition {
                template: condition.template.to_string(),
                values: condition.values.clone(),
                result: result(&value),
                // Without one value, only a batch clearly doesn't fulfil a condition.
                is_in_batch: *holds == Ok(Some(false)) && value.is_err(),
            });
        }
    }

    fn tried(
        &mut self,
        sources: &Sources<'_>,
        id: IdKind,
        template: &Template,
        value: &Result<TemplateValue<'_>, SessionError>,
    ) {
        let result = result(value);
        let is_found = matches!(result, Some(TemplateResult::Found(_)));
        let hint = is_found.then(|| hint(id, sources, template)).flatten();
        self.record(sources.matched.index)
            .tried
            .push(RecordedTemplate {
                id,
                template: template.to_string(),
                result,
                hint,
            });
    }

    fn unreadable(&mut self, route: usize, error: &SessionError) {
        self.record(route).body_error = Some(error.to_string());
    }
}

// === impl CandidateRecord ===

impl CandidateRecord {
    /// The condition that decides against the candidate; `None`: all hold, or it was never checked.
    pub(super) fn unmet(self) -> Option<UnmetCondition> {
        let body_error = self.body_error;
        self.unmet.map(|unmet| match unmet.is_in_batch {
            true => UnmetCondition::WhenInBatch {
                template: unmet.template,
                values: unmet.values,
            },
            false => UnmetCondition::When {
                template: unmet.template,
                values: unmet.values,
                result: known(unmet.result, body_error.as_ref()),
            },
        })
    }

    /// All templates of a route, with what was recorded about those that were tried.
    pub(super) fn templates(self, turn: &TurnConfig) -> Vec<ExplainedTemplate> {
        let mut tried = self.tried;
        let mut explained = Vec::new();
        for id in [IdKind::Session, IdKind::User, IdKind::Once] {
            for template in id.templates(turn).iter().map(Template::to_string) {
                let is_it = |one: &RecordedTemplate| one.id == id && one.template == template;
                let recorded = tried.iter().position(is_it);
                let (result, hint) = match recorded.map(|position| tried.remove(position)) {
                    Some(one) => (known(one.result, self.body_error.as_ref()), one.hint),
                    None => (TemplateResult::NotTried, None),
                };
                explained.push(ExplainedTemplate {
                    option: id.option(),
                    template,
                    result,
                    hint,
                });
            }
        }
        explained
    }
}

/// A recorded result. One that depends on a body that can't be read is refused for the body's error.
fn known(result: Option<TemplateResult>, body_error: Option<&String>) -> TemplateResult {
    let unreadable = || TemplateResult::Refused(body_error.cloned().unwrap_or_default());
    result.unwrap_or_else(unreadable)
}

/// A template's value as it is shown; `None`: it depends on the body.
fn result(value: &Result<TemplateValue<'_>, SessionError>) -> Option<TemplateResult> {
    Some(match value {
        Ok(TemplateValue::Text(text)) => TemplateResult::Found(text.clone().into_owned()),
        Ok(TemplateValue::Missing) => TemplateResult::Missing,
        Ok(TemplateValue::NeedsBody) => return None,
        Ok(TemplateValue::Unfit(reason)) | Err(SessionError::BadId { reason, .. }) => {
            TemplateResult::Refused(reason.clone())
        }
        Err(error) => TemplateResult::Refused(error.to_string()),
    })
}

/// Names the filter that the form of an id suggests, where the id's placeholder has no filter.
fn hint(id: IdKind, sources: &Sources<'_>, template: &Template) -> Option<String> {
    let whose = match id {
        IdKind::Session => "session",
        IdKind::User => "user",
        // A client repeats a request as it was, so its once id has one spelling.
        IdKind::Once => return None,
    };
    let mut plain = template.placeholders().filter(|one| one.is_plain());
    plain.find_map(|placeholder| {
        let Ok(TemplateValue::Text(id)) = sources.placeholder_value(placeholder) else {
            return None;
        };
        let filter = IdFilter::suggested(&id)?;
        let (what, word) = (filter.what(), filter.word());
        Some(format!(
            "{{{placeholder}}} looks like a {what}: if the backend treats its other spellings as the same \
             {whose}, write {{{word}:{placeholder}}}"
        ))
    })
}
