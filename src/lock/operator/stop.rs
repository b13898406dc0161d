//! What a client does that stops its own session's turn.
//!
//! Invariant: as for an operator's requests, only the turn that held the lock when it was asked for is stopped, and
//! every attempt is logged with who asked.

use std::slice;

use super::audit::{self, AuditRecord};
use super::{LockTarget, Operator, OperatorError, OperatorRequest};
use crate::key::SessionKey;
use crate::lock::StoreError;
use crate::lock::stop_request::StopRequest;

impl Operator {
    /// Stops the turn that runs in a session, and waits until it has released its lock, as an interruption does.
    /// Returns whether it did because of that. A turn that is only observed, or that is over and only settles, goes on, and
    /// that of an instance that doesn't react is not known to have stopped. `by` says who asks, and `asked` is told by the
    /// turn's instance whether the turn stops.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::lock) async fn stop_turn(
        &self,
        key: &SessionKey,
        by: &str,
        asked: &StopRequest,
    ) -> Result<bool, StoreError> {
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
                self.interrupt_holder(key.clone(), holder, by, Some(asked), &mut record)
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
            Ok(result) => Ok(result.released),
            Err(OperatorError::Store(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }
}
