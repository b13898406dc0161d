//! Responses to operators: text, JSON, and errors in the form that the proxy's error responses have.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// A response to an operator.
pub(super) type AdminResponse = Response<Full<Bytes>>;

/// Why a call to the admin interface failed.
#[derive(Debug)]
pub(super) struct AdminError {
    pub(super) status: StatusCode,
    /// The error code for programs, sent in the header `x-seriatim-error`.
    pub(super) code: &'static str,
    /// What went wrong, in a few words for people.
    pub(super) error: &'static str,
    /// What exactly went wrong in this call, and what to do.
    pub(super) detail: String,
}

#[derive(Serialize)]
struct ErrorBody<'f> {
    success: bool,
    error: &'f str,
    detail: &'f str,
    status_code: u16,
}

/// The content type of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

/// The header that carries an error's code.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-seriatim-error");

/// A response with this body and content type.
pub(super) fn text(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> AdminResponse {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// A response with a value as JSON, which must not be cached.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> AdminResponse {
    // Strings, numbers and lists of them: they can always be written as JSON.
    json_text(status, serde_json::to_vec(value).unwrap_or_default())
}

/// A response whose body is JSON text already, which must not be cached.
pub(super) fn json_text(status: StatusCode, body: impl Into<Bytes>) -> AdminResponse {
    let mut response = text(status, JSON, body);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

// === impl AdminError ===

impl AdminError {
    /// The error as a response.
    pub(super) fn response(&self) -> AdminResponse {
        let body = ErrorBody {
            success: false,
            error: self.error,
            detail: &self.detail,
            status_code: self.status.as_u16(),
        };
        let mut response = json(self.status, &body);
        let code = HeaderValue::from_static(self.code);
        response.headers_mut().insert(ERROR_CODE, code);
        response
    }
}
