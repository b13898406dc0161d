//! What an HTTP/2 connection waits for, and how long.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::frame_watcher::FrameTimes;
use crate::deadline::Alarm;

/// Times the phases of a connection, and the head that is being received.
pub(super) struct ConnectionTimer {
    phase: ConnectionPhase,
    /// Since when no request is being answered; `None`: one is.
    idle_since: Option<Instant>,
    limits: PhaseLimits,
    times: FrameTimes,
    alarm: Alarm,
}

/// How long parts of a connection may take.
#[derive(Clone, Copy)]
pub(super) struct PhaseLimits {
    /// How long a request head may take, from its first byte.
    pub(super) request_head: Duration,
    /// The longest time without a request.
    pub(super) idle: Duration,
}

/// What has taken too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpiredPhase {
    /// There was no request for too long: the connection takes no more requests.
    Open,
    /// A head is late, or the connection's end: nothing is waited for any more.
    Connection,
}

/// What a connection waits for.
#[derive(Clone, Copy)]
enum ConnectionPhase {
    /// The first request, until `due`.
    FirstRequest { due: Instant },
    /// Requests, or their end.
    Open,
    /// The end of the connection, which takes no more requests. Without a request, it may be silent for
    /// `grace`.
    Closing { grace: Duration },
}

// === impl ConnectionTimer ===

impl ConnectionTimer {
    /// A timer for a new connection, whose first head must be complete at `first_head_due`.
    pub(super) fn new(first_head_due: Instant, limits: PhaseLimits, times: FrameTimes) -> Self {
        Self {
            phase: ConnectionPhase::FirstRequest {
                due: first_head_due,
            },
            idle_since: None,
            limits,
            times,
            alarm: Alarm::default(),
        }
    }

    /// Notes that a request has arrived.
    pub(super) fn on_request(&mut self) {
        if let ConnectionPhase::FirstRequest { .. } = self.phase {
            self.phase = ConnectionPhase::Open;
        }
        self.idle_since = None;
    }

    /// Notes that no request is being answered.
    pub(super) fn on_idle(&mut self) {
        self.idle_since.get_or_insert_with(Instant::now);
    }

    /// Notes that the connection takes no more requests. Without a request, it may be silent for
    /// `grace`.
    pub(super) fn close(&mut self, grace: Duration) {
        self.phase = ConnectionPhase::Closing { grace };
        self.idle_since = None;
    }

    /// Ready when something has taken too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ExpiredPhase> {
        let (phase, idle_since) = (self.phase, self.idle_since);
        let (limits, times) = (self.limits, &self.times);
        let head_due = || Some(times.head_since()? + limits.request_head);
        ready!(self.alarm.poll(cx, || match (phase, head_due()) {
            // A head that has begun has its own limit.
            (ConnectionPhase::Open, Some(due)) => Some(due),
            (phase, head_due) => {
                let phase_due = phase.due(idle_since, limits.idle, || times.response_at());
                phase_due.into_iter().chain(head_due).min()
            }
        }));
        let is_head_late = head_due().is_some_and(|due| Instant::now() >= due);
        let is_closing = matches!(phase, ConnectionPhase::Closing { .. });
        Poll::Ready(match is_head_late || is_closing {
            true => ExpiredPhase::Connection,
            false => ExpiredPhase::Open,
        })
    }
}

// === impl ConnectionPhase ===

impl ConnectionPhase {
    /// When the phase is over; `None`: while a request is being answered. `idle_since` says since when
    /// none is, `idle` is the longest time without a request, and `last_response` returns when a piece
    /// of a response was last written.
    fn due(
        self,
        idle_since: Option<Instant>,
        idle: Duration,
        last_response: impl FnOnce() -> Instant,
    ) -> Option<Instant> {
        match self {
            Self::FirstRequest { due } => Some(due),
            Self::Open => Some(idle_since? + idle),
            Self::Closing { grace } => {
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
        let closing = ConnectionPhase::Closing { grace };
        for (written, due, case) in [
            (0, 5, "nothing is written"),
            (100, 105, "a response is being written"),
            (299, 300, "the response never ends"),
        ] {
            let due = Some(start + second * due);
            let due_at = closing.due(Some(start), idle, || start + second * written);
            assert_eq!(due_at, due, "{case}");
        }
    }
}
