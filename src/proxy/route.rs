//! From the head of a request to the first route that takes it.
//!
//! A path is matched more loosely than any backend would read it, so that no spelling of it slips
//! past its route: percent-decoded, dot segments and doubled slashes resolved, path parameters
//! (`;v=1`) ignored, with or without a slash at the end, whatever the case. The backend gets the
//! path as it was sent. Looking a path up costs the same with one route and with a thousand.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method};
use percent_encoding::percent_decode;

use crate::config::Route;
use crate::config::pattern::{PathPattern, Segment};

/// The routes, ready to be looked up.
#[derive(Debug)]
pub(super) struct Router {
    routes: Vec<Arc<Route>>,
    paths: Node,
    /// Routes for any path.
    anywhere: Vec<usize>,
}

/// A route that takes a request, and the path as it took it.
#[derive(Debug)]
pub(super) struct Matched<'p> {
    pub(super) route: Arc<Route>,
    /// Its place in the configuration.
    pub(super) index: usize,
    segments: Segments<'p>,
    /// Whether backends may read the path's segments in different ways.
    is_ambiguous: bool,
}

/// The routes that may take a request, in the order in which they are asked: all but the last want
/// something of it besides (`when`), and perhaps the last too.
#[derive(Debug)]
pub(super) struct Candidates<'p> {
    first: Option<Matched<'p>>,
    /// Empty for most requests, and then without an allocation.
    others: Vec<Matched<'p>>,
}

/// Where a walk along the segments of a path may stand.
#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    named: Option<Box<Node>>,
    /// Routes whose path ends here.
    ends: Vec<usize>,
    /// Routes that take whatever follows here.
    rests: Vec<usize>,
}

/// A path's segments, decoded and resolved.
type Segments<'p> = Vec<Cow<'p, [u8]>>;

// === impl Router ===

impl Router {
    pub(super) fn new(routes: &[Route]) -> Self {
        let (mut paths, mut anywhere) = (Node::default(), Vec::new());
        for (index, route) in routes.iter().enumerate() {
            match &route.path {
                Some(pattern) => paths.add(pattern, index),
                None => anywhere.push(index),
            }
        }
        Self {
            routes: routes.iter().cloned().map(Arc::new).collect(),
            paths,
            anywhere,
        }
    }

    /// The first route that takes the request, as far as path, host, method and headers go; and, if
    /// that one has more conditions, those behind it. One that doesn't lock takes only what is spelt
    /// as its pattern is, unless no other route would: a spelling may lock a request, and not free it.
    pub(super) fn route<'p>(&self, head: &'p Parts) -> Candidates<'p> {
        let path = head.uri.path();
        let is_ambiguous = is_ambiguous(path);
        let rank = |segments: &Segments<'p>, index: usize| {
            let route = &self.routes[index];
            let is_spelt_alike = !is_ambiguous && !path.ends_with("/") && route.spells(segments);
            (route.turn.is_none() && !is_spelt_alike, index)
        };
        let taking = |segments: &Segments<'p>| {
            let mut indices = self.candidates(segments);
            indices.retain(|index| takes(&self.routes[*index], head));
            indices
        };
        let matched = |index: usize, segments| Matched {
            route: Arc::clone(&self.routes[index]),
            index,
            segments,
            is_ambiguous,
        };
        let asks_for_more = |index: &usize| !self.routes[*index].when.is_empty();
        let sent = as_sent(path);
        let indices = taking(&sent);
        if !is_ambiguous && !indices.iter().any(asks_for_more) {
            let first = indices.into_iter().min_by_key(|index| rank(&sent, *index));
            return Candidates {
                first: first.map(|index| matched(index, sent)),
                others: Vec::new(),
            };
        }
        // By rank; of one route that takes several readings of the path, the first.
        let mut ranked: Vec<_> = indices
            .into_iter()
            .map(|index| (rank(&sent, index), 0))
            .collect();
        let mut readings = vec![sent];
        if is_ambiguous {
            let likely = hides_slashes(path).then(|| (decoded_first(path), true));
            let unlikely = unlikely(path).into_iter().map(|segments| (segments, false));
            for (segments, may_free) in likely.into_iter().chain(unlikely) {
                if readings.contains(&segments) {
                    continue;
                }
                let mut indices = taking(&segments);
                // What few backends make of a path locks it, and doesn't open a way past the lock.
                indices.retain(|index| may_free || self.routes[*index].turn.is_some());
                let reading = readings.len();
                let found = indices.into_iter();
                ranked.extend(found.map(|index| (rank(&segments, index), reading)));
                readings.push(segments);
            }
        }
        ranked.sort_unstable();
        ranked.dedup_by_key(|((_, index), _)| *index);
        let last = ranked
            .iter()
            .position(|((_, index), _)| !asks_for_more(index));
        if let Some(last) = last {
            ranked.truncate(last + 1);
        }
        let mut found = ranked
            .into_iter()
            .map(|((_, index), reading)| matched(index, readings[reading].clone()));
        Candidates {
            first: found.next(),
            others: found.collect(),
        }
    }

    /// The indices of the routes that take this path, in no order.
    fn candidates(&self, segments: &Segments<'_>) -> Vec<usize> {
        let mut candidates = self.anywhere.clone();
        self.paths.collect(segments, &mut candidates);
        candidates
    }
}

impl Route {
    /// Whether each literal of its path stands there to the letter.
    fn spells(&self, segments: &Segments<'_>) -> bool {
        let pattern = self.path.iter().flat_map(|pattern| &pattern.segments);
        pattern
            .zip(segments)
            .all(|(pattern, segment)| match pattern {
                Segment::Literal(text) => text.as_bytes() == &**segment,
                Segment::Name(_) | Segment::Rest(_) => true,
            })
    }
}

/// Whether all but the path of a route's conditions hold.
fn takes(route: &Route, head: &Parts) -> bool {
    let host = || host(head);
    // Methods are case-sensitive, but not to every backend.
    let asked_for = head.method.as_str();
    let is_asked_for = |method: &Method| method.as_str().eq_ignore_ascii_case(asked_for);
    (route.methods.is_empty() || route.methods.iter().any(is_asked_for))
        && (route.hosts.is_empty()
            || host().is_some_and(|host| route.hosts.iter().any(|pattern| pattern.matches(&host))))
        && route.headers.iter().all(|(name, values)| {
            let mut found = head.headers.get_all(name).iter().peekable();
            let is_meant = |value: &HeaderValue| values.is_empty() || values.contains(value);
            // Of two values, the backend may go by the other one: either locks, both free.
            found.peek().is_some()
                && match route.turn {
                    Some(_) => found.any(is_meant),
                    None => found.all(is_meant),
                }
        })
}

/// The host that is asked for, in lower case, without a port. An absolute URI overrides the header
/// (RFC 9112 §3.2.2).
fn host(head: &Parts) -> Option<String> {
    let named = || {
        head.headers
            .get(HOST)?
            .to_str()
            .ok()?
            .parse::<Authority>()
            .ok()
    };
    let authority = head.uri.authority().cloned().or_else(named)?;
    Some(authority.host().trim_end_matches('.').to_lowercase())
}

// === impl Candidates ===

impl<'p> Candidates<'p> {
    /// In their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Matched<'p>> {
        self.first.iter().chain(&self.others)
    }

    /// The same, for another thread.
    pub(super) fn to_static(&self) -> Candidates<'static> {
        Candidates {
            first: self.first.as_ref().map(Matched::to_static),
            others: self.others.iter().map(Matched::to_static).collect(),
        }
    }
}

// === impl Matched ===

impl Matched<'_> {
    fn to_static(&self) -> Matched<'static> {
        let own = |segment: &Cow<'_, [u8]>| Cow::Owned(segment.clone().into_owned());
        Matched {
            route: Arc::clone(&self.route),
            index: self.index,
            segments: self.segments.iter().map(own).collect(),
            is_ambiguous: self.is_ambiguous,
        }
    }

    /// Whether an id that is taken from the path could be another one to the backend.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }

    /// What the segment `{name}` of the route's path, or what follows it as `{*name}`, stands for.
    pub(super) fn segment(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pattern = &self.route.path.as_ref()?.segments;
        pattern
            .iter()
            .enumerate()
            .find_map(|(index, segment)| match segment {
                Segment::Name(known) if **known == *name => self
                    .segments
                    .get(index)
                    .map(|value| Cow::Borrowed(&**value)),
                Segment::Rest(known) if **known == *name => {
                    Some(Cow::Owned(self.segments.get(index..)?.join(&b'/')))
                }
                _ => None,
            })
    }
}

// === impl Node ===

impl Node {
    fn add(&mut self, pattern: &PathPattern, index: usize) {
        let mut node = self;
        for segment in &pattern.segments {
            node = match segment {
                Segment::Literal(text) => {
                    node.literals.entry(text.to_lowercase().into()).or_default()
                }
                Segment::Name(_) => node.named.get_or_insert_default(),
                Segment::Rest(_) => return node.rests.push(index),
            };
        }
        node.ends.push(index);
    }

    /// Adds every route that takes the path to `found`.
    fn collect(&self, path: &[Cow<'_, [u8]>], found: &mut Vec<usize>) {
        found.extend(&self.rests);
        let Some((segment, rest)) = path.split_first() else {
            return found.extend(&self.ends);
        };
        if !self.literals.is_empty() {
            let next = folded(segment).and_then(|literal| self.literals.get(&*literal));
            if let Some(next) = next {
                next.collect(rest, found);
            }
        }
        if let Some(next) = &self.named {
            next.collect(rest, found);
        }
    }
}

/// A segment as literals are compared: in lower case, without its parameters.
fn folded(segment: &[u8]) -> Option<Cow<'_, str>> {
    let text = str::from_utf8(segment).ok()?;
    let name = text.split(';').next().unwrap_or(text);
    let is_folded = name
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    Some(if is_folded {
        name.into()
    } else {
        name.to_lowercase().into()
    })
}

// === paths ===

/// The path split where a slash was sent; an encoded one is part of its segment.
fn as_sent(path: &str) -> Segments<'_> {
    resolve(
        path.split('/')
            .map(|segment| Cow::from(percent_decode(segment.as_bytes()))),
    )
}

/// The path split after it was decoded, backslashes counting as slashes, as some backends do.
fn decoded_first(path: &str) -> Segments<'_> {
    resolve(split(path, true, true))
}

/// What fewer backends make of a path that isn't plain. Where slashes are hidden, only encoded ones
/// may divide it, or only backslashes. Dots may stay: `..` is an id then. And who reads the target as
/// a reference (WHATWG URL §4.4, `new URL` in Node) takes `//x` and `/\x` in front for a host.
fn unlikely(path: &str) -> Vec<Segments<'_>> {
    let splits: &[_] = match hides_slashes(path) {
        true => &[(false, false), (true, true), (true, false), (false, true)],
        false => &[(false, false)],
    };
    let behind_host = behind_host(path);
    let mut readings = Vec::new();
    for (decodes, by_backslash) in splits.iter().copied() {
        let segments = split(path, decodes, by_backslash);
        readings.push(resolve(segments.iter().cloned()));
        let kept = segments.into_iter().filter(|segment| !segment.is_empty());
        readings.push(kept.collect());
        readings.extend(behind_host.map(|path| resolve(split(path, decodes, by_backslash))));
    }
    readings
}

/// What follows the host of a path that begins as a reference to another one does.
fn behind_host(path: &str) -> Option<&str> {
    const SLASHES: [char; 2] = ['/', '\\'];
    let host = path.trim_start_matches(SLASHES);
    let is_reference = path.len() - host.len() > 1;
    is_reference.then(|| host.find(SLASHES).map_or("", |at| &host[at..]))
}

/// A path's segments before dots are resolved: split before or after it is decoded, at slashes alone
/// or at backslashes too.
fn split(path: &str, decodes: bool, by_backslash: bool) -> Segments<'_> {
    let divides = |byte: &u8| *byte == b'/' || by_backslash && *byte == b'\\';
    if !decodes {
        let segments = path.as_bytes().split(divides);
        return segments
            .map(|segment| percent_decode(segment).into())
            .collect();
    }
    let decoded: Vec<u8> = percent_decode(path.as_bytes()).collect();
    decoded
        .split(divides)
        .map(|segment| segment.to_vec().into())
        .collect()
}

/// Whether a path reads differently when it is split after decoding.
fn hides_slashes(path: &str) -> bool {
    let encoded =
        |escape: &[u8]| escape.eq_ignore_ascii_case(b"%2f") || escape.eq_ignore_ascii_case(b"%5c");
    path.contains('\\') || path.contains('%') && path.as_bytes().windows(3).any(encoded)
}

/// Whether backends read a path's segments in different ways: some split it before they decode it,
/// some resolve dots or doubled slashes, some cut parameters off.
fn is_ambiguous(path: &str) -> bool {
    let decoded: Cow<'_, [u8]> = percent_decode(path.as_bytes()).into();
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    let mut is_odd = hides_slashes(path);
    while let Some(segment) = segments.next() {
        // An empty segment is an end with a slash, or a doubled one.
        let is_doubled = segment.is_empty() && segments.peek().is_some();
        is_odd |= is_doubled || matches!(segment, b"." | b"..") || segment.contains(&b';');
    }
    is_odd
}

/// Leaves out empty segments and `.`, and lets `..` take back the one before it.
fn resolve<'p>(segments: impl IntoIterator<Item = Cow<'p, [u8]>>) -> Segments<'p> {
    let mut resolved = Segments::with_capacity(8);
    for segment in segments {
        // Servlet containers cut parameters off before they resolve dots.
        match segment
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
        {
            b"" | b"." => {}
            b".." => {
                resolved.pop();
            }
            _ => resolved.push(segment),
        }
    }
    resolved
}

#[cfg(test)]
mod tests;
