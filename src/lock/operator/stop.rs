//! What a client does that stops its own session's turn.
//!
//! Invariant: as for an operator's requests, only the turn that held the lock when it was asked for is stopped, and
//! every attempt is logged with who asked.

use std::slice;

use super::audit::{self, AuditRecord};
use super::{LockTarget, Operator, OperatorError, OperatorRequest};
use crate::key::SessionKey;
use crate::lock::StoreError;

impl Operator {
    /// Stops the turn that runs in a session, and waits until it has released its lock, as an interruption does.
    /// Returns whether there was one. `by` says who asks.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn stop_turn(&self, key: &SessionKey, by: &str) -> Result<bool, StoreError> {
        let target = LockTarget::Key(key.as_str().into());
        let request = OperatorRequest {
            target: &target,
            request: None,
            by,
        };
        let mut record = AuditRecord::new("stop", &request);
        let infos = self.store.inspect(slice::from_ref(key), false).await;
        let holder = infos.map(|infos| infos.into_iter().find_map(|info| info.holder));
        let stopped = match holder {
            Ok(Some(holder)) => {
                record.holder = Some(holder.clone());
                self.interrupt_holder(key.clone(), holder, by, &mut record)
                    .await
            }
            Ok(None) => Err(OperatorError::NotLocked(key.clone())),
            Err(error) => Err(error.into()),
        };
        record.result = match &stopped {
            Ok(result) if result.released => audit::RELEASED,
            Ok(_) => audit::INTERRUPT_SENT,
            Err(error) => error.code(),
        };
        match stopped {
            Ok(_) => Ok(true),
            Err(OperatorError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }
}
