//! The line in the log that says what was tried to change a lock, by whom, and what came of it.
//!
//! It is told when the record is dropped: also when whoever asked has left before.

use super::{LockTarget, OperatorRequest};
use crate::key::SessionKey;
use crate::lock::LockHolder;

/// What was tried to change a lock.
pub(super) struct AuditRecord<'o> {
    what: &'static str,
    by: &'o str,
    pub(super) key: Option<SessionKey>,
    pub(super) holder: Option<LockHolder>,
    /// What came of it, in a word.
    pub(super) result: &'static str,
}

/// What has come of an order that a turn has, and that it has not obeyed yet.
pub(super) const TOLD: &str = "told";

// === impl Record ===

impl<'o> AuditRecord<'o> {
    pub(super) fn of(what: &'static str, order: &OperatorRequest<'o>) -> Self {
        Self {
            what,
            by: order.by,
            key: match order.target {
                LockTarget::Key(key) => Some(SessionKey::literal(key)),
                LockTarget::Session { .. } => None,
            },
            holder: None,
            result: "left",
        }
    }
}

impl Drop for AuditRecord<'_> {
    fn drop(&mut self) {
        let (what, holder) = (self.what, self.holder.as_ref());
        let who = holder.and_then(LockHolder::who);
        tracing::info!(
            target: "seriatim::audit",
            by = self.by,
            key = self.key.as_ref().map(SessionKey::redacted).as_deref(),
            holder = holder.map(|_| if who.is_some() { "seriatim" } else { "other" }),
            instance = who.as_ref().map(|who| &*who.turn.instance),
            request_id = who.as_ref().map(|who| &*who.request),
            result = self.result,
            "{what}"
        );
    }
}
