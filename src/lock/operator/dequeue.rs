//! How an operator takes waiting turns out of a queue.
//!
//! Invariant: a turn that gets the lock before it is taken out keeps it.

use super::audit::{self, AuditRecord};
use super::request::{LockTarget, OperatorRequest};
use super::{Operator, OperatorError, invalid_key, keys};
use crate::key::SessionKey;
use crate::lock::{LockHolder, OperatorAction};

/// The result of [`Operator::dequeue`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DequeueResult {
    /// The session in whose queue the request waited.
    pub key: SessionKey,
}

// === impl Operator ===

impl Operator {
    /// Takes the turns of a request out of the session's queue. Their clients get an error response. A turn that has
    /// got the lock keeps it.
    ///
    /// # Errors
    /// When the store fails, the target is not a lock, or no turn of the request waits for it.
    pub async fn dequeue(
        &self,
        target: &LockTarget,
        request_id: &str,
        by: &str,
    ) -> Result<DequeueResult, OperatorError> {
        let request = OperatorRequest {
            target,
            request: Some(request_id),
            by,
        };
        let mut record = AuditRecord::new("dequeue", &request);
        let dequeued = self.try_dequeue(target, request_id, by, &mut record).await;
        let is_found = record.holder.is_some();
        record.result = match &dequeued {
            Ok(_) => audit::DEQUEUED,
            // The command may have been executed.
            Err(OperatorError::Store(error)) if is_found && !error.was_not_executed() => "unknown",
            Err(error) => error.code(),
        };
        dequeued
    }

    async fn try_dequeue(
        &self,
        target: &LockTarget,
        request_id: &str,
        by: &str,
        record: &mut AuditRecord<'_>,
    ) -> Result<DequeueResult, OperatorError> {
        let keys = keys(&(self.key_space)(), target)?;
        if let [key] = &*keys {
            // Before the store is asked, so that the record names the key if the store fails.
            record.key = Some(key.clone());
        }
        let is_own = |turn: &LockHolder| {
            let details = turn.details();
            details.is_some_and(|details| details.request == request_id)
        };
        let infos = self.store.inspect(&keys, true).await?;
        let (mut first, mut has_lock) = (None, None);
        for (key, info) in keys.iter().zip(&infos) {
            if info.holder.as_ref().is_some_and(is_own) {
                has_lock = Some(key);
            }
            // A client may give several requests one id.
            for waiter in info.queue.iter().filter(|waiter| is_own(waiter)) {
                let Some(details) = waiter.details() else {
                    continue;
                };
                (record.key, record.holder) = (Some(key.clone()), Some(waiter.clone()));
                if self.store.dequeue(key, details.turn.id).await? {
                    // From now on the record says so, even if the caller leaves.
                    record.result = audit::DEQUEUED;
                    first.get_or_insert(key);
                    self.tell_holder(&details, OperatorAction::Dequeue, by, key)
                        .await;
                }
            }
        }
        if let Some(key) = first {
            return Ok(DequeueResult { key: key.clone() });
        }
        let key = has_lock.or_else(|| keys.first());
        Err(OperatorError::NotWaiting {
            key: key.ok_or_else(|| invalid_key(target))?.clone(),
            request: request_id.into(),
            has_lock: has_lock.is_some(),
        })
    }
}
