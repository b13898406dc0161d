//! What is looked at in a request over HTTP/2 that h2 leaves alone, because it is a backend that
//! speaks HTTP/1 who could read it in two ways.

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request};

use super::super::Unfit;
use super::super::room::Taken;
use super::super::screen::MAX_FIELDS;

/// The method and the target of a request.
type Line = (Box<str>, Box<str>);

/// The request, its cookies in one line; or why it isn't served. What it needs is `taken`, unless it is
/// `first`: that is a connection's own.
pub(super) fn checked<B>(
    mut request: Request<B>,
    taken: &mut Taken,
    is_first: bool,
) -> Result<Request<B>, (Line, Unfit)> {
    join_cookies(request.headers_mut());
    let head = length(&request);
    let why = match check(&request) {
        Err(why) => Unfit::Malformed(why),
        Ok(()) if request.headers().len() > MAX_FIELDS => Unfit::HeadTooLarge,
        Ok(()) if is_first && taken.fits_head(head) => return Ok(request),
        Ok(()) if !is_first && taken.fits_request(head) => return Ok(request),
        Ok(()) => Unfit::Overloaded,
    };
    let method = request.method().as_str().into();
    let target = request
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str());
    Err(((method, target.into()), why))
}

/// How long its head would be in HTTP/1, roughly.
fn length<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    let fields = request.headers().iter();
    let fields = fields.map(|(name, value)| name.as_str().len() + value.len());
    target + fields.sum::<usize>()
}

fn check<B>(request: &Request<B>) -> Result<(), &'static str> {
    let (uri, headers) = (request.uri(), request.headers());
    let path = uri.path();
    let is_asterisk = request.method() == Method::OPTIONS && path == "*";
    if request.method() != Method::CONNECT && !path.starts_with('/') && !is_asterisk {
        return Err("a target that is none");
    }
    if uri
        .scheme_str()
        .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
    {
        return Err("a scheme that isn't served");
    }
    let mut hosts = headers.get_all(HOST).iter();
    if let Some(authority) = uri.authority() {
        let authority = authority.as_str();
        if authority.contains('@') {
            return Err("a user in the authority (RFC 9113 §8.3.1)");
        }
        if hosts.any(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())) {
            return Err("a host and another authority (RFC 9113 §8.3.1)");
        }
    } else {
        match (hosts.next(), hosts.next()) {
            (Some(_), None) => {}
            (None, _) => return Err("neither an authority nor a host"),
            (Some(_), Some(_)) => return Err("more than one host"),
        }
    }
    if headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("more than one content-length");
    }
    if ["content_length", "transfer_encoding"]
        .iter()
        .any(|twin| headers.contains_key(*twin))
    {
        return Err("the name of a framing with an underscore");
    }
    // HTTP/1 would trim it, and two sides would see two values.
    let is_padded = |value: &HeaderValue| {
        let value = value.as_bytes();
        matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
    };
    if headers.values().any(is_padded) {
        return Err("whitespace around a field's value (RFC 9113 §8.2.1)");
    }
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
