//! What the client of a busy session is told beside the error: when to try again, since when the session is busy, and
//! how many turns wait for it.
//!
//! Invariant: what isn't known has no header, and is null in the body.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::BusyReason;
use super::format::BusyMembers;
use crate::lock::BusySession;
use crate::timestamp::{self, Precision};

/// What the client of a busy session is told beside the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct BusyNotice {
    /// After which time the client should try again.
    pub(in crate::proxy) retry_after: Duration,
    /// What the store told of the session; `None`: nothing.
    pub(in crate::proxy) session: Option<BusySession>,
}

/// `retry-after` in milliseconds, which the clients of OpenAI and Anthropic prefer to it.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The header that says when the running turn of a busy session took its lock.
const BUSY_SINCE: HeaderName = HeaderName::from_static("x-seriatim-busy-since");

/// The header that says how many turns wait for a busy session.
const QUEUE: HeaderName = HeaderName::from_static("x-seriatim-queue");

// === impl BusyReason ===

impl BusyReason {
    /// How many turns, beside the running one, have to end before a new attempt has a chance. A full queue has room again
    /// when the running turn ends.
    pub(in crate::proxy) fn turns_ahead(self, waiters: usize) -> usize {
        match self {
            Self::QueueFull => 0,
            Self::NoWaiting | Self::TimedOut => waiters,
        }
    }
}

// === impl BusyNotice ===

impl BusyNotice {
    /// Adds what the client is told to the headers of its error response.
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        let (millis, seconds) = (self.millis(), self.millis().div_ceil(1000));
        // Whole seconds, and none too few.
        headers.insert(RETRY_AFTER, number_value(seconds));
        headers.insert(RETRY_AFTER_MS, number_value(millis));
        let since = self.since().and_then(|since| since.parse().ok());
        if let Some(since) = since {
            headers.insert(BUSY_SINCE, since);
        }
        if let Some(session) = self.session {
            headers.insert(QUEUE, number_value(session.waiters as u64));
        }
    }

    /// After how many milliseconds the client should try again.
    pub(super) fn millis(self) -> u64 {
        u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX)
    }

    /// When the running turn took its lock, in RFC 3339.
    fn since(self) -> Option<String> {
        let since = self.session?.since?;
        let mut text = String::with_capacity("2025-12-11T05:48:20.123Z".len());
        timestamp::push(&mut text, since, Precision::Millis);
        Some(text)
    }
}

impl From<BusyNotice> for BusyMembers {
    fn from(notice: BusyNotice) -> Self {
        Self {
            busy_since: notice.since(),
            queue: notice.session.map(|session| session.waiters),
        }
    }
}

/// A number as a header has it. http's own conversion allocates twice.
pub(super) fn number_value(number: u64) -> HeaderValue {
    // Digits always are a valid value.
    HeaderValue::from_str(itoa::Buffer::new().format(number))
        .unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_turn_that_may_wait_needs_a_place_and_any_other_the_lock() {
        for (reason, turns, what) in [
            (
                BusyReason::QueueFull,
                0,
                "a place is free after the running turn",
            ),
            (
                BusyReason::NoWaiting,
                3,
                "the lock goes to the waiters first",
            ),
            (BusyReason::TimedOut, 3, "a place alone was not enough"),
        ] {
            assert_eq!(reason.turns_ahead(3), turns, "{what}");
        }
    }

    #[test]
    fn what_is_not_known_of_a_busy_session_is_left_out() {
        let nobody = BusySession {
            since: None,
            age: None,
            waiters: 0,
        };
        for (session, header, queue) in [
            (None, None, json!(null)),
            (Some(nobody), Some("0"), json!(0)),
        ] {
            let notice = BusyNotice {
                retry_after: Duration::ZERO,
                session,
            };
            let mut headers = HeaderMap::new();
            notice.add_to(&mut headers);
            let names = [
                "retry-after",
                "retry-after-ms",
                "x-seriatim-busy-since",
                "x-seriatim-queue",
            ];
            let told = names.map(|name| headers.get(name).map(|value| value.to_str().unwrap()));
            assert_eq!(
                told,
                [Some("0"), Some("0"), None, header],
                "when to try again is always known: {session:?}"
            );
            assert_eq!(
                json!(BusyMembers::from(notice)),
                json!({"busy_since": null, "queue": queue}),
                "a member whose value isn't known is null: {session:?}"
            );
        }
    }
}
