//! What a decision reports while it is made: `explain` records it, the proxy ignores it.

use super::content::BodyContent;
use super::error::SessionError;
use super::sources::{Sources, TemplateValue};
use crate::config::{Condition, TurnConfig};
use crate::key::Template;

/// Sees the steps of a decision. Every method does nothing by default; `()` ignores all steps and costs
/// nothing.
pub(in crate::proxy) trait Observer: Default + Send + 'static {
    /// A decision begins, with this content of the body. What an earlier one reported is outdated.
    fn begin(&mut self, _content: &BodyContent) {}

    /// A candidate is checked. What was reported about it before is outdated.
    fn candidate(&mut self, _sources: &Sources<'_>) {}

    /// A condition of the candidate doesn't hold (`Ok(Some(false))`), or it can't be said whether it
    /// holds: without the body (`Ok(None)`), or at all.
    fn unmet(
        &mut self,
        _sources: &Sources<'_>,
        _condition: &Condition,
        _holds: &Result<Option<bool>, SessionError>,
    ) {
    }

    /// A template of the candidate's `session_id`, `user_id` or `once` was tried.
    fn tried(
        &mut self,
        _sources: &Sources<'_>,
        _id: IdKind,
        _template: &Template,
        _value: &Result<TemplateValue<'_>, SessionError>,
    ) {
    }

    /// The candidate at this place in the configuration needs the body, which can't be read.
    fn unreadable(&mut self, _route: usize, _error: &SessionError) {}
}

/// An id that templates of a route give: one of the two that a session key is made of, or the once id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum IdKind {
    Session,
    User,
    Once,
}

impl Observer for () {}

// === impl IdKind ===

impl IdKind {
    /// The id's name in an error text.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Session => "session id",
            Self::User => "user id",
            Self::Once => "once id",
        }
    }

    /// The option that has the id's templates.
    pub(in crate::proxy) fn option(self) -> &'static str {
        match self {
            Self::Session => "session_id",
            Self::User => "user_id",
            Self::Once => "once",
        }
    }

    /// The id's templates, in their order.
    pub(in crate::proxy) fn templates(self, turn: &TurnConfig) -> &[Template] {
        match self {
            Self::Session => &turn.session_id,
            Self::User => &turn.user_id,
            Self::Once => &turn.once,
        }
    }
}
