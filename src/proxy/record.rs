//! Told at the end of a turn, whichever way it ended: over HTTP, in a tunnel, or without its client.
//!
//! Joins what the others know of an end to the one event of the request; decides nothing but whether
//! a turn may go on whose client is gone.

use std::sync::Arc;
use std::time::Duration;

use super::access::{self, RequestRecord};
use super::forward::BackendBody;
use super::orphan::{self, Orphans};
use super::stream::{OnStreamEnd, RemainingStream, StreamEnd, StreamSummary};
use super::tunnel;
use crate::outcome::Outcome;
use crate::wire::Bounds;

/// Closes the record of a request when its answer has ended.
pub(super) struct EndRecorder {
    pub(super) access: RequestRecord,
    pub(super) client: Bounds,
    /// Where the turn goes on when its client is gone; `None`: it is cancelled.
    pub(super) orphans: Option<Arc<Orphans>>,
}

/// Tells of a turn that went on.
pub(super) fn tell_of(
    mut access: RequestRecord,
    bytes: u64,
) -> impl FnOnce(orphan::OrphanEnd, Duration) {
    move |end, hold| {
        access.hold = Some(hold);
        if let orphan::OrphanEnd::LockLost(loss) = end {
            access.lost(loss);
        }
        access.finish_without_client(end.outcome(), bytes);
    }
}

/// Tells of a turn that left HTTP.
pub(super) fn tell_of_tunnel(mut access: RequestRecord) -> impl FnOnce(tunnel::TunnelSummary) {
    move |tunnel::TunnelSummary { end, bytes, hold }| {
        access.hold = hold;
        if let tunnel::TunnelEnd::LockLost(loss) = end {
            access.lost(loss);
        }
        let outcome = match end {
            tunnel::TunnelEnd::Complete => Outcome::Complete,
            tunnel::TunnelEnd::UpstreamAborted => Outcome::UpstreamAborted,
            tunnel::TunnelEnd::ClientGone => access::dropped(None),
            tunnel::TunnelEnd::LockLost(loss) => access::lost(loss),
            tunnel::TunnelEnd::Ended(why) => access::dropped(Some(why)),
        };
        access.finish(outcome, bytes);
    }
}

// === impl Record ===

impl OnStreamEnd<BackendBody> for EndRecorder {
    fn tell(mut self, ending: StreamSummary) {
        let outcome = match (ending.end, self.client.ended()) {
            (StreamEnd::Complete, _) => Outcome::Complete,
            (StreamEnd::UpstreamAborted, _) => Outcome::UpstreamAborted,
            (StreamEnd::LockLost(loss), _) => {
                self.access.lost(loss);
                access::lost(loss)
            }
            (StreamEnd::Dropped, why) => access::dropped(why),
        };
        // The connection may serve another request. What hyper still holds of this answer must be
        // taken by a client that goes on reading, as before; of one that was cut, nothing is to be.
        match ending.end {
            StreamEnd::Complete => self.client.lift_deadline(),
            StreamEnd::UpstreamAborted | StreamEnd::LockLost(_) | StreamEnd::Dropped => {
                self.client.retire_deadline()
            }
        }
        self.access.hold = ending.hold;
        self.access.finish(outcome, ending.bytes);
    }

    fn outlives_client(&self) -> bool {
        self.orphans.is_some()
    }

    fn go_on(self, rest: RemainingStream<BackendBody>) {
        let RemainingStream {
            backend,
            held,
            bytes,
            silent_since,
        } = rest;
        match &self.orphans {
            Some(orphans) if orphans.may_adopt(silent_since) => {
                // Over HTTP/2 the client may be there, with other requests: this one's deadline is
                // no longer theirs.
                self.client.retire_deadline();
                let tell = tell_of(self.access, bytes);
                orphans.adopt_answer(backend, silent_since, held, tell);
            }
            _ => {
                let hold = Some(held.age());
                drop(backend);
                drop(held);
                let end = StreamEnd::Dropped;
                self.tell(StreamSummary { end, bytes, hold });
            }
        }
    }
}
