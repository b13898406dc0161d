//! How operators are answered: JSON, and what is wrong in the four members that the proxy's own
//! answers have.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// An answer to an operator.
pub(super) type AdminResponse = Response<Full<Bytes>>;

/// What is wrong with a call.
#[derive(Debug)]
pub(super) struct AdminError {
    pub(super) status: StatusCode,
    /// In a word, for programs.
    pub(super) reason: &'static str,
    /// In a sentence, for people.
    pub(super) error: &'static str,
    /// What it is about here, and what to do.
    pub(super) detail: String,
}

#[derive(Serialize)]
struct ErrorBody<'f> {
    success: bool,
    error: &'f str,
    detail: &'f str,
    status_code: u16,
}

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

/// The reason, in a word, for programs.
const REASON: HeaderName = HeaderName::from_static("x-seriatim-error");

/// Any text.
pub(super) fn text(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> AdminResponse {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// A value as JSON. It is of this moment, and nobody else's to keep.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    // Strings, numbers and lists of them: nothing in it can fail to become JSON.
    written(status, serde_json::to_vec(value).unwrap_or_default())
}

/// What is JSON already.
pub(super) fn written(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    let mut answer = text(status, JSON, body);
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    answer
}

// === impl Fault ===

impl AdminError {
    pub(super) fn answer(&self) -> AdminResponse {
        let said = ErrorBody {
            success: false,
            error: self.error,
            detail: &self.detail,
            status_code: self.status.as_u16(),
        };
        let mut answer = json(self.status, &said);
        let reason = HeaderValue::from_static(self.reason);
        answer.headers_mut().insert(REASON, reason);
        answer
    }
}
