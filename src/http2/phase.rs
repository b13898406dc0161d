//! What an HTTP/2 connection waits for, and how long.

use std::time::Duration;

use tokio::time::Instant;

/// What a connection waits for.
#[derive(Clone, Copy)]
pub(super) enum ConnectionPhase {
    /// The first request, until `due`.
    FirstRequest { due: Instant },
    /// Requests, or their end. `idle_since`: since when there is no request; `None`: there is one.
    Open { idle_since: Option<Instant> },
    /// The end of the connection, which takes no more requests. Without a request, it may be silent for
    /// `grace`.
    Closing {
        idle_since: Option<Instant>,
        grace: Duration,
    },
}

// === impl ConnectionPhase ===

impl ConnectionPhase {
    /// Notes that a request has arrived.
    pub(super) fn on_request(&mut self) {
        match self {
            Self::FirstRequest { .. } => *self = Self::Open { idle_since: None },
            Self::Open { idle_since } | Self::Closing { idle_since, .. } => *idle_since = None,
        }
    }

    /// Notes that no request is being answered.
    pub(super) fn on_idle(&mut self) {
        match self {
            Self::FirstRequest { .. } => {}
            Self::Open { idle_since } | Self::Closing { idle_since, .. } => {
                idle_since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Notes that the connection takes no more requests.
    pub(super) fn close(&mut self, grace: Duration) {
        *self = Self::Closing {
            idle_since: None,
            grace,
        };
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self, Self::Closing { .. })
    }

    /// When the phase is over; `None`: while a request is being answered. `idle` is the longest time
    /// without a request; `last_response` gives when a piece of a response was last written.
    pub(super) fn due(
        &self,
        idle: Duration,
        last_response: impl FnOnce() -> Instant,
    ) -> Option<Instant> {
        match *self {
            Self::FirstRequest { due } => Some(due),
            Self::Open { idle_since } => Some(idle_since? + idle),
            Self::Closing { idle_since, grace } => {
                // The rest of a response may be on its way. Or it may wait in h2 for a client that
                // never reads it, and sends pings meanwhile: hence the upper limit.
                let since = idle_since?;
                let silent = last_response() + grace;
                Some(silent.clamp(since + grace, since + idle.max(grace)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_connection_waits_while_a_response_is_written_and_no_longer_than_an_idle_one() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let (idle, grace) = (second * 300, second * 5);
        let closing = ConnectionPhase::Closing {
            idle_since: Some(start),
            grace,
        };
        for (written, due, case) in [
            (0, 5, "nothing is written"),
            (100, 105, "a response is being written"),
            (299, 300, "the response never ends"),
        ] {
            let due = Some(start + second * due);
            let due_at = closing.due(idle, || start + second * written);
            assert_eq!(due_at, due, "{case}");
        }
    }
}
