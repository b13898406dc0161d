//! The closed vocabulary of what becomes of a request: how it ended, how its lock was lost, and why it
//! ran without the store's lock. The log, the metrics, the journal, the spans and the `x-seriatim-error`
//! header all use these types and their words.
//!
//! Invariant: each list is closed. Nothing that a client sent becomes a word. This module uses no other
//! module of the crate.

use std::fmt;

use http::StatusCode;

/// The classes of [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeClass {
    /// The client got a whole response of the backend, whatever its status.
    Complete,
    /// The client left before the end.
    ClientGone,
    /// The response was cut off, by the backend, by a timeout or by the end of the process.
    Aborted,
    /// The turn lost its lock.
    LockLost,
    /// The turn made way for a newer one, or an operator stopped it.
    Superseded,
    /// The proxy refused the request with an error response.
    Refused,
}

macro_rules! outcomes {
    ($(#[doc = $about:literal] $name:ident: $class:ident = $word:literal,)*) => {
        /// How a request ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Outcome {
            $(#[doc = $about] $name,)*
        }

        impl Outcome {
            /// All outcomes, each at the index that is its number (`outcome as usize`).
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for this outcome, in `snake_case`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            /// This outcome in a sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$name => $about.trim_ascii(),)*
                }
            }

            /// The class of this outcome.
            pub fn class(self) -> OutcomeClass {
                match self {
                    $(Self::$name => OutcomeClass::$class,)*
                }
            }
        }
    };
}

// The first line of each is also what `seriatim errors` prints.
outcomes! {
    /// The response went out whole.
    Complete: Complete = "complete",
    /// The response went out whole, and its request passed a route that locks without naming a session.
    NoSession: Complete = "no_session",
    /// The backend broke off in the middle of its response.
    UpstreamAborted: Aborted = "upstream_aborted",
    /// The client left before the end.
    ClientGone: ClientGone = "client_gone",
    /// No byte moved for `timeouts.idle_stream`.
    IdleTimeout: Aborted = "idle_timeout",
    /// The process stopped before the turn's end.
    DrainAborted: Aborted = "drain_aborted",
    /// The lock was lost, before the response began or in the middle of it.
    LockLost: LockLost = "lock_lost",
    /// A newer turn of the session took this one's place, or a client or an operator stopped it.
    Superseded: Superseded = "superseded",
    /// Another turn of the session runs, and this one doesn't wait.
    SessionBusy: Refused = "session_busy",
    /// The session's queue is full.
    QueueFull: Refused = "queue_full",
    /// The turn waited for `blocking_timeout` and got no lock.
    WaitTimeout: Refused = "wait_timeout",
    /// An operator took the waiting turn out of the queue.
    Dequeued: Refused = "dequeued",
    /// The request repeats a turn of its session that waits or runs.
    DuplicateTurn: Refused = "duplicate_turn",
    /// The request repeats a turn of its session that has ended.
    AlreadyAnswered: Refused = "already_answered",
    /// The request repeats a turn of its session of which nobody knows how it ended.
    InDoubt: Refused = "in_doubt",
    /// The request has the once id of another request of its session.
    KeyReused: Refused = "key_reused",
    /// The turn that holds the lock waits for this request, because its backend sent it.
    WouldDeadlock: Refused = "would_deadlock",
    /// The body holds the session's id and can't be parsed.
    MalformedBody: Refused = "malformed_body",
    /// The session can be read from the request in two ways.
    AmbiguousKey: Refused = "ambiguous_key",
    /// The request has an id that can't be part of a session key.
    BadSessionId: Refused = "bad_session_id",
    /// The request names no session.
    MissingSession: Refused = "missing_session",
    /// The beginning of the answer to which the request attaches isn't kept.
    AnswerTooLong: Refused = "answer_too_long",
    /// No route takes the request.
    NoRoute: Refused = "no_route",
    /// The body is larger than `limits.max_body`.
    BodyTooLarge: Refused = "body_too_large",
    /// The body has a `content-encoding` that can't be decoded.
    UnsupportedEncoding: Refused = "unsupported_encoding",
    /// The request's head or body did not arrive in time.
    RequestTimeout: Refused = "request_timeout",
    /// The backend took no connection, or broke off before its response.
    UpstreamUnreachable: Refused = "upstream_unreachable",
    /// The backend's response isn't valid HTTP, or could be read in two ways.
    UpstreamMalformed: Refused = "upstream_malformed",
    /// The backend's response was no event stream, after the client had received the head of one.
    NotAnEventStream: Refused = "not_an_event_stream",
    /// The backend's response did not begin in time.
    UpstreamTimeout: Refused = "upstream_timeout",
    /// The store gave no reply, or an error.
    StoreUnavailable: Refused = "store_unavailable",
    /// The limit on connections or on buffered bytes is reached.
    Overloaded: Refused = "overloaded",
    /// The process is stopping and takes no new request.
    Draining: Refused = "draining",
    /// The bytes are no HTTP, or could be read in two ways.
    BadRequest: Refused = "bad_request",
    /// The request's target is too long.
    UriTooLong: Refused = "uri_too_long",
    /// The request's head is too large.
    HeadTooLarge: Refused = "head_too_large",
    /// The body has a transfer coding other than `chunked`.
    UnsupportedTransferCoding: Refused = "unsupported_transfer_coding",
    /// The request has an HTTP version that isn't supported.
    UnsupportedHttpVersion: Refused = "unsupported_http_version",
}

/// The code of an error response (`x-seriatim-error`), or of an error inside an event stream (`reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode {
    /// The word, in `snake_case`.
    pub word: &'static str,
    /// The status of the error, unless `busy.status` sets another one; `None`: it is the backend's.
    pub status: Option<StatusCode>,
    /// What the code means, in a sentence.
    pub about: &'static str,
}

/// How a turn lost its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockLoss {
    /// The lease ran out, or the store could not be reached to extend it.
    Expired,
    /// The instance could not renew its heartbeat in the store, so others may take over its locks.
    NoHeartbeat,
    /// The store says that the lock is no longer this turn's.
    Taken,
    /// Another process has taken the name of this one, `store.instance`, and so its locks.
    NameTaken,
    /// A newer turn of the session is to run instead, or an operator stopped this one.
    Interrupted,
}

/// Why a turn runs without the store's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnprotectedReason {
    /// The store failed, and `store.on_error` is `allow`.
    Allow,
    /// The store failed, and `store.on_error` is `local`: the turn has a lock of this process only.
    Local,
    /// The route only observes (`enforce = false`).
    Observe,
}

// === impl Outcome ===

impl Outcome {
    /// How many outcomes there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The status of an error response or an error event for this outcome, unless `busy.status` sets another one;
    /// `None`: no error has this outcome.
    pub fn error_status(self) -> Option<StatusCode> {
        let status = match self {
            Self::Complete | Self::NoSession | Self::ClientGone | Self::DrainAborted => {
                return None;
            }
            Self::MalformedBody
            | Self::AmbiguousKey
            | Self::BadSessionId
            | Self::MissingSession
            | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::WouldDeadlock
            | Self::Superseded
            | Self::Dequeued
            | Self::AnswerTooLong
            | Self::DuplicateTurn
            | Self::AlreadyAnswered
            | Self::InDoubt => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            // With 409 above, those of the IETF's draft on the header `idempotency-key`.
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::SessionBusy | Self::QueueFull | Self::WaitTimeout => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedTransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::UpstreamUnreachable
            | Self::UpstreamMalformed
            | Self::UpstreamAborted
            | Self::NotAnEventStream => StatusCode::BAD_GATEWAY,
            Self::StoreUnavailable | Self::Overloaded | Self::Draining | Self::LockLost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::UpstreamTimeout | Self::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::UnsupportedHttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
        };
        Some(status)
    }

    /// Whether the request was refused without ever having had a lock to lose.
    pub fn is_refusal(self) -> bool {
        self.class() == OutcomeClass::Refused
    }

    /// Whether an operator may ask about this request: it was refused, or lost its lock.
    pub fn is_refusal_or_loss(self) -> bool {
        matches!(
            self.class(),
            OutcomeClass::Refused | OutcomeClass::LockLost | OutcomeClass::Superseded
        )
    }

    /// Whether the request is an error in its trace; `status` is the status of its response, if it got
    /// one. A busy session, a turn that makes way and a client that leaves are no errors.
    pub fn is_failure(self, status: Option<u16>) -> bool {
        match self.class() {
            OutcomeClass::Aborted | OutcomeClass::LockLost => true,
            OutcomeClass::ClientGone | OutcomeClass::Superseded => false,
            OutcomeClass::Complete | OutcomeClass::Refused => {
                status.is_some_and(|status| status >= 500)
            }
        }
    }
}

impl From<LockLoss> for Outcome {
    fn from(loss: LockLoss) -> Self {
        match loss {
            LockLoss::Interrupted => Self::Superseded,
            LockLoss::Expired | LockLoss::NoHeartbeat | LockLoss::Taken | LockLoss::NameTaken => {
                Self::LockLost
            }
        }
    }
}

// === impl ErrorCode ===

impl ErrorCode {
    /// The code of an error that the backend itself gave, behind the head of an event stream. No outcome has this word: such a
    /// turn ends as complete.
    pub const UPSTREAM_ERROR: Self = Self {
        word: "upstream_error",
        status: None,
        about: "The backend answered with an error after the client had received the head of an event stream.",
    };

    /// All codes.
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |outcome: &Outcome| {
            Some(Self {
                word: outcome.as_str(),
                status: Some(outcome.error_status()?),
                about: outcome.about(),
            })
        };
        let own = Outcome::ALL.iter().filter_map(of);
        own.chain([Self::UPSTREAM_ERROR])
    }
}

// === impl LockLoss ===

impl LockLoss {
    /// All ways to lose a lock.
    pub const ALL: [Self; 5] = [
        Self::Expired,
        Self::NoHeartbeat,
        Self::Taken,
        Self::NameTaken,
        Self::Interrupted,
    ];

    /// The word for this loss, as in the `reason` label of `seriatim_locks_lost_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NoHeartbeat => "no_heartbeat",
            Self::Taken => "taken",
            Self::NameTaken => "name_taken",
            Self::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for LockLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its lease ran out",
            Self::NoHeartbeat => "its instance could not renew its heartbeat in the store",
            Self::Taken => "its lock was taken away",
            Self::NameTaken => "another process uses the store.instance of this one",
            Self::Interrupted => "it was interrupted",
        })
    }
}

// === impl UnprotectedReason ===

impl UnprotectedReason {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Local, Self::Observe];

    /// The word for this reason, as in the `reason` label of `seriatim_unprotected_turns_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Local => "local",
            Self::Observe => "observe",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_at_its_own_number_and_has_a_word_of_its_own() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "{outcome:?} has its own counter");
        }
        let words: std::collections::HashSet<_> = Outcome::ALL
            .iter()
            .map(|outcome| outcome.as_str())
            .collect();
        assert_eq!(words.len(), Outcome::COUNT, "no two outcomes share a word");
    }

    #[test]
    fn every_refusal_and_loss_has_the_status_of_its_error() {
        for outcome in Outcome::ALL {
            let status = outcome.error_status();
            assert!(
                status.is_some() || !outcome.is_refusal_or_loss(),
                "the error response for {outcome:?} has a status"
            );
        }
    }
}
