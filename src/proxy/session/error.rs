//! Why a request's session can't be found.
//!
//! Invariant: an error text says what is wrong, where, and which option sets the limit. Only
//! [`SessionError::Encoding`] repeats text that the client sent. Statuses and error codes are left to
//! `refusal`.

use thiserror::Error;

use super::ambiguity::Ambiguity;
use crate::key::Source;
use crate::proxy::body_timer::{BodyReadError, BodyTimeout};
use crate::redact;

/// Why a request's session can't be found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(in crate::proxy) enum SessionError {
    /// The body, as it came or decoded, has more than `max` bytes (`limits.max_body`).
    #[error(
        "the body has to be read before the lock is taken, and has more than {max} bytes (limits.max_body)"
    )]
    TooLarge { max: usize },
    /// The decoded body is more than `max_ratio` times as long as the body that came.
    #[error(
        "the body has to be decoded to find its session, and becomes more than {max_ratio} times as long"
    )]
    TooDense { max_ratio: usize },
    /// The content encoding isn't one that the proxy decodes.
    #[error(
        "the body has to be read to find its session, and its encoding isn't supported: {encoding}"
    )]
    Encoding { encoding: String },
    /// The body is a form, and has a content encoding.
    #[error("the body is a form with a content-encoding; only a form without one is read")]
    EncodedForm,
    /// The body came too late or too slowly.
    #[error(transparent)]
    Late(#[from] BodyTimeout),
    /// The process reads too many bodies, or holds too many bytes of them.
    #[error("too many bodies are being read at the moment")]
    Overloaded,
    /// The body isn't what its route reads.
    #[error("the body can't be read to find its session: {reason}")]
    Malformed { reason: String },
    /// Two readers of the request could find different values in this place.
    #[error("{place} is ambiguous: {reason}")]
    Ambiguous { place: String, reason: Ambiguity },
    /// The request has an id that can't be used as one.
    #[error("the {id} can't be used: {reason}")]
    BadId { id: &'static str, reason: String },
    /// The request has no id. `on_missing` says whether it is refused.
    #[error("the request has no {id}; it was looked for in {places}")]
    Missing { id: &'static str, places: String },
}

// === impl SessionError ===

impl SessionError {
    /// Whether the body as a whole can't be read, so that `on_malformed` decides about the request.
    pub(super) fn is_unreadable(&self) -> bool {
        matches!(
            self,
            Self::Malformed { .. } | Self::Encoding { .. } | Self::EncodedForm
        )
    }

    /// The error's text for the log; `None`: ids are hidden, and the text repeats what the client sent.
    pub(in crate::proxy) fn log_detail(&self) -> Option<String> {
        let hides = matches!(self, Self::Encoding { .. }) && redact::is_enabled();
        (!hides).then(|| self.to_string())
    }

    /// A request with two `host` headers (RFC 9112 §3.2).
    pub(in crate::proxy) fn two_hosts() -> Self {
        Self::ambiguous_header("host", Ambiguity::HeaderTwice)
    }

    /// A header that the proxy itself reads, and that is ambiguous.
    pub(super) fn ambiguous_header(name: &str, reason: Ambiguity) -> Self {
        Self::Ambiguous {
            place: format!("{{header:{name}}}"),
            reason,
        }
    }

    /// A source of a template that two readers could understand in two ways.
    pub(super) fn ambiguous(source: &Source, reason: Ambiguity) -> Self {
        Self::Ambiguous {
            place: format!("{{{source}}}"),
            reason,
        }
    }

    /// A body that can't be read for this reason.
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed {
            reason: reason.into(),
        }
    }
}

impl From<BodyReadError> for SessionError {
    fn from(error: BodyReadError) -> Self {
        match error {
            BodyReadError::Late(timeout) => Self::Late(timeout),
            BodyReadError::TakenBack => Self::Overloaded,
            BodyReadError::Broken(error) => Self::malformed(error.to_string()),
        }
    }
}
