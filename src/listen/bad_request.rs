//! Why something that a client sent is not served. What it is answered is for whoever serves.

use std::fmt;

use http::StatusCode;

/// Why a connection is ended with an answer of this side's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// It isn't HTTP, or could be read in two ways; in words.
    Malformed(&'static str),
    /// The head of a request took too long to come.
    TooSlow,
    /// The request's target is too long.
    TargetTooLong,
    /// The head is too large, or has too many fields.
    HeadTooLarge,
    /// The body is in a transfer coding other than `chunked`.
    TransferCoding,
    /// A version of HTTP that nobody here speaks.
    Version,
    /// There is too much at once; of what, in words.
    Overloaded(&'static str),
}

/// What was refused, as far as it could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRequest {
    /// Why.
    pub why: BadRequest,
    /// The method and the target, if the head's first line was in order.
    pub line: Option<(Box<str>, Box<str>)>,
    /// It stood in the body of a request that is being served.
    pub in_body: bool,
}

// === impl Unfit ===

impl BadRequest {
    /// There are more connections than the configuration allows.
    pub const TOO_MANY_CONNECTIONS: Self =
        Self::Overloaded("there are too many connections (limits.max_connections)");

    /// What it is answered with.
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

impl std::error::Error for BadRequest {}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed(why) | Self::Overloaded(why) => why,
            Self::TooSlow => "the request's head did not come in time",
            Self::TargetTooLong => "the request's target is too long",
            Self::HeadTooLarge => "the request's head is too large, or has too many fields",
            Self::TransferCoding => "chunked is the only transfer coding that is read here",
            Self::Version => "this version of HTTP is not spoken here",
        })
    }
}

// === impl Refused ===

impl From<BadRequest> for RejectedRequest {
    fn from(why: BadRequest) -> Self {
        Self {
            why,
            line: None,
            in_body: false,
        }
    }
}
