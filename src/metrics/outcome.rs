//! How a request ended, in one word of the program's own: in the log, in `x-seriatim-error`, and as
//! the label of `seriatim_requests_total`.
//!
//! Invariant: there are as many words as there are here. Nothing that a client sent becomes one.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer went out whole.
    Complete,
    /// The backend broke off in the middle of its answer.
    UpstreamAborted,
    /// The client left before the end.
    ClientGone,
    /// Neither side moved a byte for too long.
    Idle,
    /// The process stopped before the turn's end.
    DrainAborted,
    /// The lock was lost, before the answer began or in the middle of it.
    LockLost,
    /// A newer turn of the session took its place.
    Superseded,
    /// The session has a turn, and this one doesn't wait.
    SessionBusy,
    /// Too many wait for the session.
    QueueFull,
    /// The session did not become free in time.
    WaitTimeout,
    /// A body that should hold the key can't be read.
    MalformedBody,
    /// The session can be read in two ways.
    AmbiguousKey,
    /// An id can't be used.
    BadSessionId,
    /// The request names no session.
    MissingSession,
    /// No route takes it.
    NoRoute,
    /// Its body is larger than `limits.max_body`.
    BodyTooLarge,
    /// Its body's encoding can't be read.
    UnsupportedEncoding,
    /// It did not come in time.
    RequestTimeout,
    /// The backend can't be reached, or gave no answer.
    UpstreamUnreachable,
    /// The backend's answer did not begin in time.
    UpstreamTimeout,
    /// The store gave no answer.
    StoreUnavailable,
    /// There are too many connections, or too many bytes of bodies.
    Overloaded,
    /// The process is stopping.
    Draining,
    /// It isn't HTTP, or could be read in two ways.
    BadRequest,
    /// Its target is too long.
    UriTooLong,
    /// Its head is too large.
    HeadTooLarge,
    /// Its body is in a transfer coding other than `chunked`.
    TransferCoding,
    /// Its version of HTTP isn't spoken.
    HttpVersion,
}

// === impl Outcome ===

impl Outcome {
    /// How many there are.
    pub(super) const COUNT: usize = Self::HttpVersion as usize + 1;

    /// All of them, each at the place that it has as a number.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Complete,
        Self::UpstreamAborted,
        Self::ClientGone,
        Self::Idle,
        Self::DrainAborted,
        Self::LockLost,
        Self::Superseded,
        Self::SessionBusy,
        Self::QueueFull,
        Self::WaitTimeout,
        Self::MalformedBody,
        Self::AmbiguousKey,
        Self::BadSessionId,
        Self::MissingSession,
        Self::NoRoute,
        Self::BodyTooLarge,
        Self::UnsupportedEncoding,
        Self::RequestTimeout,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::Draining,
        Self::BadRequest,
        Self::UriTooLong,
        Self::HeadTooLarge,
        Self::TransferCoding,
        Self::HttpVersion,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::UpstreamAborted => "upstream_aborted",
            Self::ClientGone => "client_gone",
            Self::Idle => "idle_timeout",
            Self::DrainAborted => "drain_aborted",
            Self::LockLost => "lock_lost",
            Self::Superseded => "superseded",
            Self::SessionBusy => "session_busy",
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::MalformedBody => "malformed_body",
            Self::AmbiguousKey => "ambiguous_key",
            Self::BadSessionId => "bad_session_id",
            Self::MissingSession => "missing_session",
            Self::NoRoute => "no_route",
            Self::BodyTooLarge => "body_too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::RequestTimeout => "request_timeout",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::StoreUnavailable => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::BadRequest => "bad_request",
            Self::UriTooLong => "uri_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::TransferCoding => "unsupported_transfer_coding",
            Self::HttpVersion => "unsupported_http_version",
        }
    }

    /// Whether the request was refused, or lost its lock: what an operator is asked about.
    pub fn is_refusal_or_loss(self) -> bool {
        !matches!(
            self,
            Self::Complete
                | Self::UpstreamAborted
                | Self::ClientGone
                | Self::Idle
                | Self::DrainAborted
        )
    }

    /// Whether a turn that ended so may have had its lock and lost it.
    pub(super) fn is_loss(self) -> bool {
        matches!(self, Self::LockLost | Self::Superseded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_at_its_own_number_and_has_a_word_of_its_own() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{outcome:?} counts under its own");
        }
        let words: std::collections::HashSet<_> =
            Outcome::ALL.into_iter().map(Outcome::as_str).collect();
        assert_eq!(words.len(), Outcome::COUNT, "no two share a word");
    }
}
