//! A client's request to stop a turn, while it waits to be told whether the turn stops.
//!
//! The instance of the turn replies, because only it knows whether the turn was still running. Invariant: a request is
//! known by an id that no claim has, and is forgotten when it is dropped.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{ClaimId, Message, StopSender};

/// The requests of this process that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct StopRequests(Arc<Mutex<HashMap<ClaimId, Option<bool>>>>);

/// One request. Dropping it forgets it.
pub(super) struct StopRequest {
    sender: StopSender,
    requests: StopRequests,
}

// === impl StopRequests ===

impl StopRequests {
    /// A request of this instance that is known by this id, which nobody else has.
    pub(super) fn begin(&self, id: ClaimId, instance: &str) -> StopRequest {
        self.0.lock().insert(id, None);
        StopRequest {
            sender: StopSender {
                id,
                instance: instance.into(),
            },
            requests: self.clone(),
        }
    }

    /// Notes whether the turn of this request stops. The first reply counts: a turn that has stopped says later that it
    /// is over.
    pub(super) fn reply(&self, id: ClaimId, stops: bool) {
        if let Some(reply) = self.0.lock().get_mut(&id) {
            reply.get_or_insert(stops);
        }
    }
}

// === impl StopRequest ===

impl StopRequest {
    /// The message that asks the instance of this turn.
    pub(super) fn message(&self, turn: ClaimId) -> Message {
        Message::Stop(turn, self.sender.clone())
    }

    /// Whether the turn stops; `None`: there is no reply yet.
    pub(super) fn reply(&self) -> Option<bool> {
        *self.requests.0.lock().get(&self.sender.id)?
    }
}

impl Drop for StopRequest {
    fn drop(&mut self) {
        self.requests.0.lock().remove(&self.sender.id);
    }
}
