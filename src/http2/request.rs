//! Validates a request over HTTP/2 where h2 doesn't: what a backend that speaks HTTP/1 could read in two
//! ways. The rules for header fields are those of HTTP/1.

use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request};

use crate::http1::validate::{HeaderFields, MAX_TARGET};
use crate::service::{
    BadRequest, HEAD_BUDGET_EXCEEDED, HeadReservation, RejectedRequest, RequestLine,
};

/// Validates a request, and joins its cookies in one header. Reserves its memory in `memory`; the
/// `is_first` request of a connection needs memory only for a large head.
///
/// # Errors
/// If the request is malformed or too large, or if there isn't enough memory.
pub(super) fn validate<B>(
    mut request: Request<B>,
    memory: &mut HeadReservation,
    is_first: bool,
) -> Result<Request<B>, RejectedRequest> {
    let checked = check_values(request.headers())
        .and_then(|()| {
            join_cookies(request.headers_mut());
            check(&request)
        })
        .and_then(|()| {
            let head = head_length(&request);
            let fits = match is_first {
                true => memory.reserve_head(head),
                false => memory.reserve_request(head),
            };
            fits.then_some(()).ok_or(HEAD_BUDGET_EXCEEDED)
        });
    let Err(reason) = checked else {
        return Ok(request);
    };
    let line = (reason != BadRequest::TargetTooLong).then(|| RequestLine {
        method: request.method().as_str().into(),
        target: target(&request).into(),
    });
    Err(RejectedRequest {
        line,
        ..reason.into()
    })
}

/// About how long the head would be in HTTP/1, in bytes.
fn head_length<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len());
    target(request).len() + fields.sum::<usize>()
}

fn target<B>(request: &Request<B>) -> &str {
    let target = request.uri().path_and_query();
    target.map_or("", |target| target.as_str())
}

/// Refuses values with white space around them: HTTP/1 would trim it, and the backend would see another
/// value.
fn check_values(headers: &HeaderMap) -> Result<(), BadRequest> {
    let is_padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
    };
    match headers.values().any(is_padded) {
        true => Err(BadRequest::Malformed(
            "white space around a header value (RFC 9113 §8.2.1)",
        )),
        false => Ok(()),
    }
}

fn check<B>(request: &Request<B>) -> Result<(), BadRequest> {
    let (uri, headers) = (request.uri(), request.headers());
    let path = uri.path();
    let is_asterisk = request.method() == Method::OPTIONS && path == "*";
    if request.method() != Method::CONNECT && !path.starts_with('/') && !is_asterisk {
        return Err(BadRequest::Malformed("an invalid target"));
    }
    if target(request).len() > MAX_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    if uri
        .scheme_str()
        .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
    {
        return Err(BadRequest::Malformed("a scheme other than http and https"));
    }
    let mut fields = HeaderFields::default();
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str().as_bytes();
        fields.add_host(authority)?;
        let mut hosts = headers.get_all(HOST).iter();
        if hosts.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority)) {
            return Err(BadRequest::Malformed(
                "a host that differs from :authority (RFC 9113 §8.3.1)",
            ));
        }
    }
    for (name, value) in headers {
        fields.add(name.as_str().as_bytes(), value.as_bytes())?;
    }
    fields.framing()?;
    Ok(())
}

/// Joins the `cookie` headers, which HTTP/2 may split, in one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Can't fail: the bytes are those of header values.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
