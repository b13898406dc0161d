//! The record of a request whose client's response began while its turn waited: what the client was told behind that
//! head counts as the response's status.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::RequestRecord;
use crate::outcome::Outcome;
use crate::proxy::end::End;
use crate::proxy::refusal::{StreamError, UnfitResponse};

impl RequestRecord {
    /// Notes that the client's response begins while its turn waits. Its connection ends when no byte moves for
    /// `idle_stream`, as that of any other response.
    pub(in crate::proxy) fn response_began_early(&self, idle_stream: Duration) {
        self.is_early.store(true, Ordering::Relaxed);
        self.client.end_when_silent(idle_stream);
        self.sinks
            .routes
            .route(self.route_index)
            .response_began_early();
    }

    /// Whether the client's response began while its turn waited.
    pub(in crate::proxy) fn is_early(&self) -> bool {
        self.is_early.load(Ordering::Relaxed)
    }

    /// The status that the client was told, by the head of its response or by an event; `None`: it got none.
    pub(super) fn told_status(&self) -> Option<u16> {
        match self.is_early() {
            true => self.event_status.or(Some(StatusCode::OK.as_u16())),
            false => self.status,
        }
    }

    /// Notes that the backend's response with these headers can't follow the head that its client has got.
    pub(in crate::proxy) fn note_unfit(&mut self, unfit: UnfitResponse, headers: &HeaderMap) {
        self.unfit = Some(unfit);
        self.error = unfit.log_detail(headers);
    }

    /// The outcome of a turn that ended like this. Notes the error that the client is told, if its response can't be handed
    /// on.
    pub(super) fn outcome_told(&mut self, end: End) -> Outcome {
        let error = self.unfit.and_then(|unfit| match end {
            End::Complete => Some(StreamError::Unfit(unfit)),
            End::UpstreamAborted => Some(StreamError::BrokeOff),
            End::IdleTimeout => Some(StreamError::Silent),
            End::LockLost(loss) => Some(StreamError::LockLost(loss)),
            // The connection of its client is over.
            End::UpstreamTimeout | End::DrainAborted | End::Disconnected(_) => None,
        });
        self.event_status = error.map(|error| error.status().as_u16());
        error.map_or(end.outcome(), StreamError::outcome)
    }
}
