//! Why a request, or what a client sent in place of one, is not served. The handler writes the error
//! response.

use http::StatusCode;
use thiserror::Error;

/// Why a request is refused before it reaches a handler.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadRequest {
    /// The bytes aren't HTTP, or can be read in two ways. The text names the defect.
    #[error("{0}")]
    Malformed(&'static str),
    /// The head of a request took too long to arrive.
    #[error("the request's head did not arrive in time (timeouts.request_head)")]
    TooSlow,
    /// The request's target is too long.
    #[error("the request's target is too long")]
    TargetTooLong,
    /// The head is too large, or has too many fields.
    #[error("the request's head is too large, or has too many fields")]
    HeadTooLarge,
    /// The body has a transfer coding other than `chunked`.
    #[error("the only supported transfer coding is chunked")]
    TransferCoding,
    /// The request has a version of HTTP that isn't supported.
    #[error("this version of HTTP is not supported")]
    Version,
    /// The process has reached a limit. The text names the limit.
    #[error("{0}")]
    Overloaded(&'static str),
}

/// A request that was refused before it reached a handler, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRequest {
    /// Why the request was refused.
    pub reason: BadRequest,
    /// The request's first line; `None`: it was malformed, or is not known.
    pub line: Option<RequestLine>,
    /// The defect is in the body of a request that a handler already serves.
    pub is_in_body: bool,
}

/// The method and the target of a request, as far as they could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLine {
    /// The method, as the client sent it.
    pub method: Box<str>,
    /// The target, as the client sent it (RFC 9112 §3.2).
    pub target: Box<str>,
}

// === impl BadRequest ===

impl BadRequest {
    /// The process has as many connections as the configuration allows.
    pub const TOO_MANY_CONNECTIONS: Self =
        Self::Overloaded("there are too many connections (limits.max_connections)");

    /// The status of the error response.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

// === impl RejectedRequest ===

impl From<BadRequest> for RejectedRequest {
    fn from(reason: BadRequest) -> Self {
        Self {
            reason,
            line: None,
            is_in_body: false,
        }
    }
}
