//! Matches a request's head with routes, apart from the path: host, method, headers, announced trailers.
//!
//! Invariant: where backends read a head in different ways, a route that locks matches if any reading does, and
//! a route that doesn't lock only if all readings do.

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, ORIGIN, TRAILER,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::{CONTROLS, percent_encode};

use crate::config::Route;
use crate::http_syntax::{METHOD_OVERRIDES, PATH_OVERRIDES, is_alike, is_head_only, list_items};
use crate::key::{Source, Template};

/// Whether a request is a CORS preflight (Fetch, "CORS-preflight request"). Some backends run their handlers for
/// `OPTIONS`, too; so a preflight must be one that a browser sends: without a body, cookies, credentials, a
/// header that replaces its method, or a header of `session_headers`.
pub(super) fn is_preflight(head: &Parts, has_body: bool, session_headers: &[HeaderName]) -> bool {
    let headers = &head.headers;
    let is_there = |name: &HeaderName| has_alike(headers, name.as_str().as_bytes());
    head.method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && !has_body
        && ![COOKIE, AUTHORIZATION, CONTENT_TYPE]
            .iter()
            .any(|name| headers.contains_key(name))
        && !session_headers.iter().any(is_there)
        && overrides(headers).next().is_none()
}

/// Whether a route takes the request that a preflight announces, by host and method. That request's headers
/// aren't known yet.
pub(super) fn takes_announced(route: &Route, head: &Parts) -> bool {
    let announced = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
    let is_method = announced.is_some_and(|method| is_for(route, method.as_bytes()));
    (route.methods.is_empty() || is_method) && has_host(route, head)
}

/// The paths that some backends use instead of the request's own: the path behind the prefix in the header
/// `SCRIPT_NAME` (gunicorn, for a peer on its machine), and headers that IIS and PHP frameworks read as the path
/// before a rewrite. Bytes that can't be in a path are percent-encoded.
pub(super) fn other_paths(head: &Parts) -> impl Iterator<Item = String> {
    head.headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().as_bytes();
        // The length first: it rules out nearly every header.
        let is_prefix = name.len() == 11 && is_alike(name, b"script-name");
        let is_whole = matches!(name.len(), 13 | 14)
            && PATH_OVERRIDES.iter().any(|known| is_alike(name, known));
        if !is_prefix && !is_whole {
            return None;
        }
        let encoded = |text| percent_encode(text, CONTROLS).to_string();
        let value = encoded(value.as_bytes());
        match is_prefix {
            // Some versions search for the prefix anywhere.
            true => {
                let own = encoded(head.uri.path().as_bytes());
                Some(own.split_once(&value)?.1.to_owned())
            }
            false => Some(path_of(&value).to_owned()),
        }
    })
}

/// The path of a URL that may be invalid.
fn path_of(url: &str) -> &str {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let rest = match url.split_once(':') {
        Some((scheme, rest)) if !scheme.contains('/') => rest,
        _ => return url,
    };
    match rest.strip_prefix("//") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => rest,
    }
}

/// Whether the request has a route's method, host and headers.
pub(super) fn takes(route: &Route, head: &Parts) -> bool {
    has_method(route, head) && has_host(route, head) && has_headers(route, &head.headers)
}

fn has_method(route: &Route, head: &Parts) -> bool {
    // A route that locks takes any method that a backend may read. The request's own comes first: nearly always it is one.
    if route.methods.is_empty() || route.turn.is_some() && route.methods.contains(&head.method) {
        return true;
    }
    let own = [head.method.as_str().as_bytes()];
    let mut methods = own.into_iter().chain(overrides(&head.headers));
    match route.turn {
        Some(_) => methods.any(|method| is_for(route, method)),
        None => methods.all(|method| is_for(route, method)),
    }
}

/// Whether a route is for a method. Methods are case-sensitive, but not for every backend. In most frameworks
/// HEAD runs the handler of GET.
fn is_for(route: &Route, method: &[u8]) -> bool {
    let is_named = |method: &[u8]| {
        let mut named = route.methods.iter().map(Method::as_str);
        named.any(|named| named.as_bytes().eq_ignore_ascii_case(method))
    };
    is_named(method)
        || route.turn.is_some() && method.eq_ignore_ascii_case(b"HEAD") && is_named(b"GET")
}

/// The methods in headers that replace the request's own.
fn overrides(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let is_override = |name: &HeaderName| {
        let name = name.as_str().as_bytes();
        METHOD_OVERRIDES.iter().any(|known| is_alike(name, known))
    };
    headers
        .iter()
        .filter(move |(name, _)| is_override(name))
        .flat_map(|(_, value)| list_items(value.as_bytes()))
}

/// Whether the request has a header that some backend takes for the one of this name.
fn has_alike(headers: &HeaderMap, name: &[u8]) -> bool {
    let mut names = headers.keys().map(|other| other.as_str().as_bytes());
    names.any(|other| is_alike(other, name))
}

fn has_host(route: &Route, head: &Parts) -> bool {
    route.host.is_empty()
        || host(head).is_some_and(|host| route.host.iter().any(|pattern| pattern.matches(&host)))
}

/// The request's host in lower case, without a port. An absolute URI overrides the header (RFC 9112 §3.2.2).
fn host(head: &Parts) -> Option<String> {
    let named = || {
        let host = head.headers.get(HOST)?.to_str().ok()?;
        host.parse::<Authority>().ok()
    };
    let authority = head.uri.authority().cloned().or_else(named)?;
    Some(authority.host().trim_end_matches('.').to_lowercase())
}

fn has_headers(route: &Route, headers: &HeaderMap) -> bool {
    route.headers.iter().all(|(name, values)| {
        let is_alike =
            |other: &HeaderName| is_alike(other.as_str().as_bytes(), name.as_str().as_bytes());
        let alike = || headers.iter().filter(|(other, _)| is_alike(other));
        // Of several values, some backends use one and some use all as a list. A route that locks matches
        // each of them; a route that doesn't lock needs a single value.
        let may_mean = |meant: &HeaderValue| {
            list_items(meant.as_bytes()).all(|meant| {
                let mut sent = alike().flat_map(|(_, value)| list_items(value.as_bytes()));
                sent.any(|sent| bare(sent).eq_ignore_ascii_case(bare(meant)))
            })
        };
        match route.turn {
            _ if alike().next().is_none() => false,
            Some(_) => values.is_empty() || values.iter().any(may_mean),
            None if values.is_empty() => alike().all(|(other, _)| other == name),
            None => {
                let own = headers.get(name);
                alike().count() == 1 && own.is_some_and(|own| values.contains(own))
            }
        }
    })
}

/// A value without its parameters, and without what some backends trim: Sanic trims white space beyond ASCII,
/// which no configured value has.
fn bare(value: &[u8]) -> &[u8] {
    let name = value.split(|byte| *byte == b';').next();
    let name = name.unwrap_or(value);
    let start = name.iter().position(u8::is_ascii_graphic);
    let start = start.unwrap_or(name.len());
    let end = name.iter().rposition(u8::is_ascii_graphic);
    &name[start..end.map_or(start, |last| last + 1)]
}

// === trailers ===

/// The headers that conditions and ids of routes are read from.
pub(super) fn read_by(routes: &[Route]) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for route in routes {
        let turns = route.turn.iter();
        let ids = turns.flat_map(|turn| turn.user_id.iter().chain(&turn.once));
        let asked = route.when.iter().map(|condition| &condition.template);
        names.extend(route.headers.iter().map(|(name, _)| name.clone()));
        names.extend(ids.chain(asked).flat_map(header_sources));
    }
    names.extend(session_headers(routes));
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    names
}

/// The headers that session ids are read from.
pub(super) fn session_headers(routes: &[Route]) -> impl Iterator<Item = HeaderName> {
    let turns = routes.iter().filter_map(|route| route.turn.as_ref());
    turns.flat_map(|turn| turn.session_id.iter().flat_map(header_sources))
}

fn header_sources(template: &Template) -> impl Iterator<Item = HeaderName> {
    template.sources().filter_map(|source| match source {
        Source::Header(name) => Some(name.clone()),
        _ => None,
    })
}

/// Whether a request announces a trailer (RFC 9110 §6.6.2) that a backend could take for a header that matters:
/// one of `read`, which routes read, or one that matters to any backend.
pub(super) fn announces_header(head: &Parts, read: &[HeaderName]) -> bool {
    let announced = head.headers.get_all(TRAILER).iter();
    let mut names = announced.flat_map(|value| list_items(value.as_bytes()));
    names.any(|name| {
        let is_read = |read: &HeaderName| is_alike(name, read.as_str().as_bytes());
        is_head_only(name) || read.iter().any(is_read)
    })
}
