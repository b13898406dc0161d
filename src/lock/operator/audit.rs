//! The log event about an attempt to change a lock: who asked, for which lock, and with what result.
//!
//! Invariant: the event is logged when the record is dropped, so also if the caller has left before.

use super::request::{LockTarget, OperatorRequest};
use crate::key::SessionKey;
use crate::lock::LockHolder;

/// An attempt to change a lock. Logged when it is dropped.
pub(super) struct AuditRecord<'o> {
    /// The message of the event.
    action: &'static str,
    by: &'o str,
    /// The request that the operator named.
    named: Option<&'o str>,
    pub(super) key: Option<SessionKey>,
    /// The holder of the lock, or the waiter that the action is about.
    pub(super) holder: Option<LockHolder>,
    /// The result, as a word.
    pub(super) result: &'static str,
}

/// The result if the turn no longer has the lock.
pub(super) const RELEASED: &str = "released";

/// The result of an interruption that was sent, while the turn still has its lock.
pub(super) const INTERRUPT_SENT: &str = "interrupt_sent";

/// The result if the turn no longer waits.
pub(super) const DEQUEUED: &str = "dequeued";

/// The result if the caller left before there was another one.
const CANCELLED: &str = "cancelled";

// === impl AuditRecord ===

impl<'o> AuditRecord<'o> {
    pub(super) fn new(action: &'static str, request: &OperatorRequest<'o>) -> Self {
        Self {
            action,
            by: request.by,
            named: request.request,
            key: match request.target {
                LockTarget::Key(key) => Some(SessionKey::literal(key)),
                LockTarget::Session { .. } => None,
            },
            holder: None,
            result: CANCELLED,
        }
    }
}

impl Drop for AuditRecord<'_> {
    fn drop(&mut self) {
        let (action, holder) = (self.action, self.holder.as_ref());
        let details = holder.and_then(LockHolder::details);
        let own = details.as_ref().map(|details| &*details.request);
        // Without a turn, the event is about the request that was named.
        let named = self
            .named
            .filter(|named| own.is_some_and(|own| own != *named));
        tracing::info!(
            target: "seriatim::audit",
            by = self.by,
            key = self.key.as_ref().map(SessionKey::redacted).as_deref(),
            holder = holder.map(|_| if details.is_some() { "seriatim" } else { "other" }),
            instance = details.as_ref().map(|details| &*details.turn.instance),
            request_id = own.or(self.named),
            named_request_id = named,
            result = self.result,
            "{action}"
        );
    }
}
