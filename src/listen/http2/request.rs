//! What is looked at in a request over HTTP/2 that h2 leaves alone, because it is a backend that
//! speaks HTTP/1 who could read it in two ways. Its fields are held to the rule that HTTP/1's are.

use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request};

use super::super::BadRequest;
use super::super::room::{FULL, HeadReservation};
use super::super::validate::{HeaderFields, MAX_TARGET};

/// The method and the target of a request.
type PseudoHeaders = (Box<str>, Box<str>);

/// The request, its cookies in one line; or why it isn't served, and of which one, unless that is
/// what is too long. What it needs is `taken`, unless it is `first`: that is a connection's own.
pub(super) fn checked<B>(
    mut request: Request<B>,
    taken: &mut HeadReservation,
    is_first: bool,
) -> Result<Request<B>, (Option<PseudoHeaders>, BadRequest)> {
    let mut checked = check_values(request.headers());
    if checked.is_ok() {
        join_cookies(request.headers_mut());
        checked = check(&request);
    }
    if checked.is_ok() {
        let head = length(&request);
        let fits = match is_first {
            true => taken.fits_head(head),
            false => taken.fits_request(head),
        };
        checked = if fits { Ok(()) } else { Err(FULL) };
    }
    match checked {
        Ok(()) => Ok(request),
        Err(BadRequest::TargetTooLong) => Err((None, BadRequest::TargetTooLong)),
        Err(why) => Err((
            Some((request.method().as_str().into(), target(&request).into())),
            why,
        )),
    }
}

/// How long its head would be in HTTP/1, roughly.
fn length<B>(request: &Request<B>) -> usize {
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len());
    target(request).len() + fields.sum::<usize>()
}

fn target<B>(request: &Request<B>) -> &str {
    let target = request.uri().path_and_query();
    target.map_or("", |target| target.as_str())
}

/// HTTP/1 would trim white space, and two sides would see two values.
fn check_values(headers: &HeaderMap) -> Result<(), BadRequest> {
    let is_padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
    };
    match headers.values().any(is_padded) {
        true => Err(BadRequest::Malformed(
            "whitespace around a field's value (RFC 9113 §8.2.1)",
        )),
        false => Ok(()),
    }
}

fn check<B>(request: &Request<B>) -> Result<(), BadRequest> {
    let (uri, headers) = (request.uri(), request.headers());
    let path = uri.path();
    let is_asterisk = request.method() == Method::OPTIONS && path == "*";
    if request.method() != Method::CONNECT && !path.starts_with('/') && !is_asterisk {
        return Err(BadRequest::Malformed("a target that is none"));
    }
    if target(request).len() > MAX_TARGET {
        return Err(BadRequest::TargetTooLong);
    }
    if uri
        .scheme_str()
        .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
    {
        return Err(BadRequest::Malformed("a scheme that isn't served"));
    }
    let mut fields = HeaderFields::default();
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str().as_bytes();
        fields.add_host(authority)?;
        let mut hosts = headers.get_all(HOST).iter();
        if hosts.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority)) {
            return Err(BadRequest::Malformed(
                "a host and another authority (RFC 9113 §8.3.1)",
            ));
        }
    }
    for (name, value) in headers {
        fields.add(name.as_str().as_bytes(), value.as_bytes())?;
    }
    fields.framing()?;
    Ok(())
}

/// One `cookie` line of those that HTTP/2 has split (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // Of bytes that could stand in headers before.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
