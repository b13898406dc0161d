//! Finds the routes that may take a request, by the request's head.
//!
//! Invariant: no spelling of a path avoids its route. A path matches more loosely than any backend would read
//! it: percent-decoded, dot segments and doubled slashes resolved, path parameters (`;v=1`) and a format at the
//! end (`.json`) ignored, with or without a slash at the end, in any case. The backend gets the path as it was
//! sent. A path that can't be matched safely is refused. A look-up costs the same with one route and with a
//! thousand.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use http::request::Parts;

use crate::config::Route;
use crate::config::pattern::{PathPattern, PatternSegment, fold};
use crate::key::TemplateFields;
use crate::listen::BadRequest;
use path::PathSegments;

pub(super) use path::PathAmbiguity;

mod head;
mod path;

/// The configured routes, indexed for look-ups.
#[derive(Debug)]
pub(super) struct Router {
    /// The routes in the order of the configuration.
    routes: Vec<Arc<Route>>,
    /// Each route as it applies to a CORS preflight: by path, host and method alone, without a lock.
    preflights: Vec<Arc<Route>>,
    /// The headers that conditions and ids of routes are read from.
    pub(super) read_headers: Arc<[HeaderName]>,
    /// The headers that session ids are read from.
    session_headers: Vec<HeaderName>,
    /// The routes with a path, indexed by its segments.
    paths: SegmentPosition,
    /// The indices of the routes for any path.
    any_path: Vec<usize>,
}

/// A route that may take a request, and the path as it matched.
#[derive(Debug)]
pub(super) struct RouteMatch<'p> {
    pub(super) route: Arc<Route>,
    /// The route's position in the configuration.
    pub(super) index: usize,
    /// The path's segments, in the reading that matched.
    segments: PathSegments<'p>,
    /// Why backends may divide the path into different segments, and so find another id in it. `None`: all
    /// divide it alike.
    pub(super) ambiguity: Option<PathAmbiguity>,
}

/// The routes that may take a request, in the order in which they are checked. All but the last have further
/// conditions (`when`); the last may have some.
#[derive(Debug)]
pub(super) struct Candidates<'p> {
    first: Option<RouteMatch<'p>>,
    /// The candidates behind the first. Empty for most requests, and then without an allocation.
    others: Vec<RouteMatch<'p>>,
}

/// A node in the tree of the routes' paths: a position behind some segments. Segments behind a `{*name}` are a
/// tree of their own, which is read from the end of the path.
#[derive(Debug, Default)]
struct SegmentPosition {
    /// The positions behind a literal segment, in one case.
    literals: BTreeMap<Box<[u8]>, SegmentPosition>,
    /// The position behind a segment `{name}`.
    named: Option<Box<SegmentPosition>>,
    /// The routes whose path ends here; in a tree that is read from the end, those with `{*name}` here.
    ends: Vec<usize>,
    /// The tree of the routes whose path goes on here with `{*name}`, from their last segment to the first one
    /// behind `{*name}`.
    behind_rest: Option<Box<SegmentPosition>>,
    /// The routes that lock and whose path ends here, or here and with `{*name}`, if the path's last segment is
    /// a literal: a format may follow it (`(.:format)` in Rails).
    formats: Vec<usize>,
}

/// What is known of a format behind a path that is read from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormatAtEnd {
    /// The last segment, which may have one, is the next.
    Possible,
    /// The last segment was matched with all of its text.
    Absent,
    /// The last segment was matched without its format.
    Present,
}

const CONTROL: BadRequest = BadRequest::Malformed("a control character in the path");
const NOT_UTF8: BadRequest = BadRequest::Malformed(
    "a path that isn't UTF-8, and is a turn's path without the invalid bytes",
);
const OTHER_PATH: BadRequest =
    BadRequest::Malformed("a header that some backends read as another path, which is a turn's");
const TRAILER: BadRequest = BadRequest::Malformed("a trailer that must be a header");

// === impl Router ===

impl Router {
    /// Indexes the configured routes.
    pub(super) fn new(routes: &[Route]) -> Self {
        let (mut paths, mut any_path) = (SegmentPosition::default(), Vec::new());
        for (index, route) in routes.iter().enumerate() {
            match &route.path {
                Some(pattern) => paths.add(pattern, index, route.turn.is_some()),
                None => any_path.push(index),
            }
        }
        let preflight = |route: &Route| Route {
            headers: Vec::new(),
            when: Vec::new(),
            wanted: TemplateFields::default(),
            turn: None,
            ..route.clone()
        };
        Self {
            routes: routes.iter().cloned().map(Arc::new).collect(),
            preflights: routes.iter().map(preflight).map(Arc::new).collect(),
            read_headers: head::read_by(routes).into(),
            session_headers: head::session_headers(routes).collect(),
            paths,
            any_path,
        }
    }

    /// The first route that takes the request by path, host, method and headers; if that route has more
    /// conditions, also the routes behind it. A route that doesn't lock comes behind the routes that lock,
    /// unless the path is spelled exactly as its pattern: no spelling avoids a lock.
    ///
    /// # Errors
    /// When a backend could take the request for another one, for which a lock would be of no use.
    pub(super) fn route<'p>(
        &self,
        head: &'p Parts,
        has_body: bool,
    ) -> Result<Candidates<'p>, BadRequest> {
        let path = head.uri.path();
        let is_plain = path::is_plain(path);
        if !is_plain && path::has_control(path) {
            return Err(CONTROL);
        }
        if head::announces_header(head, &self.read_headers) {
            return Err(TRAILER);
        }
        let is_preflight = head::is_preflight(head, has_body, &self.session_headers);
        // Some backends drop bytes that aren't UTF-8, as Bottle does.
        if !is_plain && let Some(path) = path::without_invalid(path) {
            let (sent, ambiguity) = (path::as_sent(&path), path::ambiguity(&path));
            let candidates = self.candidates(&path, sent, ambiguity, head, is_preflight);
            if candidates.iter().any(RouteMatch::is_turn_by_path) {
                return Err(NOT_UTF8);
            }
        }
        let (sent, ambiguity) = match is_plain {
            true => (path::of_plain(path), None),
            false => (path::as_sent(path), path::ambiguity(path)),
        };
        let candidates = self.candidates(path, sent, ambiguity, head, is_preflight);
        for path in head::other_paths(head) {
            if path::has_control(&path) {
                return Err(CONTROL);
            }
            let valid = path::without_invalid(&path);
            for path in [Some(path), valid].iter().flatten() {
                let (sent, ambiguity) = (path::as_sent(path), path::ambiguity(path));
                let others = self.candidates(path, sent, ambiguity, head, is_preflight);
                let mut turns = others.iter().filter(|other| other.is_turn_by_path());
                if !turns.all(|turn| candidates.iter().any(|known| known.is_same(turn))) {
                    return Err(OTHER_PATH);
                }
            }
        }
        Ok(candidates)
    }

    /// The routes that take the request that a preflight announces, by path, host and method. The request's
    /// headers and body, which may decide between them, aren't known yet.
    pub(super) fn announced_to(&self, head: &Parts) -> Vec<Arc<Route>> {
        let mut indices = self.any_path.clone();
        self.paths
            .collect(&path::as_sent(head.uri.path()), &mut indices);
        let routes = indices.into_iter().map(|index| &self.routes[index]);
        let taking = routes.filter(|route| head::takes_announced(route, head));
        taking.cloned().collect()
    }

    /// The routes that may take a request for this path, which has the segments `sent` as it was sent.
    fn candidates<'p>(
        &self,
        path: &'p str,
        sent: PathSegments<'p>,
        ambiguity: Option<PathAmbiguity>,
        head: &Parts,
        is_preflight: bool,
    ) -> Candidates<'p> {
        let is_ambiguous = ambiguity.is_some();
        let (given, takes): (_, fn(&Route, &Parts) -> bool) = match is_preflight {
            true => (&self.preflights, head::takes_announced),
            false => (&self.routes, head::takes),
        };
        let rank = |segments: &PathSegments<'p>, index: usize| {
            let route = &self.routes[index];
            let is_exact = || !is_ambiguous && !path.ends_with("/") && route.spells(segments);
            (route.turn.is_none() && !is_exact(), index)
        };
        let taking = |segments: &PathSegments<'p>| {
            let mut indices = Vec::with_capacity(self.any_path.len() + 2);
            indices.extend(&self.any_path);
            self.paths.collect(segments, &mut indices);
            indices.retain(|index| takes(&self.routes[*index], head));
            indices
        };
        let matched = |index: usize, segments| RouteMatch {
            route: Arc::clone(&given[index]),
            index,
            segments,
            ambiguity,
        };
        let asks_for_more = |index: &usize| !given[*index].when.is_empty();
        let indices = taking(&sent);
        if !is_ambiguous && !indices.iter().any(asks_for_more) {
            let first = indices.into_iter().min_by_key(|index| rank(&sent, *index));
            return Candidates {
                first: first.map(|index| matched(index, sent)),
                others: Vec::new(),
            };
        }
        // By rank; of a route that takes several readings of the path, the first reading.
        let mut ranked: Vec<_> = indices
            .into_iter()
            .map(|index| (rank(&sent, index), 0))
            .collect();
        let mut readings = vec![sent];
        if is_ambiguous {
            let likely = path::hides_slashes(path).then(|| (path::decoded_first(path), true));
            let unlikely = path::unlikely(path).into_iter();
            let unlikely = unlikely.map(|segments| (segments, false));
            for (segments, may_free) in likely.into_iter().chain(unlikely) {
                if readings.contains(&segments) {
                    continue;
                }
                let mut indices = taking(&segments);
                // A reading of few backends may add a lock, and never avoids one.
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
}

impl Route {
    /// Whether the segments have each literal of the route's path in its exact spelling.
    fn spells(&self, segments: &PathSegments<'_>) -> bool {
        let Some(pattern) = &self.path else {
            return true;
        };
        let mut aligned = pattern.align(segments);
        aligned.all(|(pattern, segment)| match pattern {
            PatternSegment::Literal(text) => text.as_bytes() == &**segment,
            PatternSegment::Name(_) | PatternSegment::Rest(_) => true,
        })
    }
}

// === impl Candidates ===

impl<'p> Candidates<'p> {
    /// The candidates in the order in which they are checked.
    pub(super) fn iter(&self) -> impl Iterator<Item = &RouteMatch<'p>> {
        self.first.iter().chain(&self.others)
    }

    /// A copy that doesn't borrow the request, for another thread.
    pub(super) fn to_static(&self) -> Candidates<'static> {
        Candidates {
            first: self.first.as_ref().map(RouteMatch::to_static),
            others: self.others.iter().map(RouteMatch::to_static).collect(),
        }
    }
}

// === impl RouteMatch ===

impl RouteMatch<'_> {
    fn to_static(&self) -> RouteMatch<'static> {
        let own = |segment: &Cow<'_, [u8]>| Cow::Owned(segment.clone().into_owned());
        RouteMatch {
            route: Arc::clone(&self.route),
            index: self.index,
            segments: self.segments.iter().map(own).collect(),
            ambiguity: self.ambiguity,
        }
    }

    /// Whether the route locks and has a path. A route for any path takes the request in each reading.
    fn is_turn_by_path(&self) -> bool {
        self.route.turn.is_some() && self.route.path.is_some()
    }

    /// Whether both are the same route and the same segments.
    fn is_same(&self, other: &RouteMatch<'_>) -> bool {
        self.index == other.index && self.segments == other.segments
    }

    /// The value of `{name}` or `{*name}` in the route's path.
    pub(super) fn segment(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pattern = self.route.path.as_ref()?;
        let range = pattern.find(name, self.segments.len())?;
        Some(match self.segments.get(range)? {
            [segment] => Cow::Borrowed(&**segment),
            segments => Cow::Owned(segments.join(&b'/')),
        })
    }
}

// === impl SegmentPosition ===

impl SegmentPosition {
    /// Adds a route with this path.
    fn add(&mut self, pattern: &PathPattern, index: usize, locks: bool) {
        let (before, behind) = pattern.around_rest();
        let mut node = self.descend(before);
        let mut last = before.last();
        if let Some(behind) = behind {
            // A format behind `/x/{*rest}` is one behind `/x`, too.
            if behind.is_empty() && locks && is_literal(last) {
                node.formats.push(index);
            }
            node = node.behind_rest.get_or_insert_default();
            node = node.descend(behind.iter().rev());
            last = behind.last();
        }
        node.ends.push(index);
        if locks && is_literal(last) {
            node.formats.push(index);
        }
    }

    /// The position behind these segments, which is added if there is none.
    fn descend<'s>(&mut self, segments: impl IntoIterator<Item = &'s PatternSegment>) -> &mut Self {
        segments
            .into_iter()
            .fold(self, |node, segment| match segment {
                PatternSegment::Literal(text) => {
                    let text = fold(text).into_owned().into_bytes();
                    node.literals.entry(text.into()).or_default()
                }
                PatternSegment::Name(_) | PatternSegment::Rest(_) => {
                    node.named.get_or_insert_default()
                }
            })
    }

    /// Adds the index of every route that takes the path to `found`.
    fn collect(&self, path: &[Cow<'_, [u8]>], found: &mut Vec<usize>) {
        if let Some(behind) = &self.behind_rest {
            behind.collect_from_end(path, FormatAtEnd::Possible, found);
        }
        let Some((segment, rest)) = path.split_first() else {
            return found.extend(&self.ends);
        };
        if !self.literals.is_empty()
            && let Some(literal) = path::folded(segment)
        {
            if let Some(next) = self.literals.get(&*literal) {
                next.collect(rest, found);
            }
            if rest.is_empty()
                && let Some(next) = self.without_format(&literal)
            {
                found.extend(&next.formats);
            }
        }
        if let Some(next) = &self.named {
            next.collect(rest, found);
        }
    }

    /// Adds the index of every route that takes the path to `found`, in a tree that is read from the end.
    fn collect_from_end(
        &self,
        path: &[Cow<'_, [u8]>],
        format: FormatAtEnd,
        found: &mut Vec<usize>,
    ) {
        found.extend(match format {
            FormatAtEnd::Present => &self.formats,
            FormatAtEnd::Possible | FormatAtEnd::Absent => &self.ends,
        });
        let Some((segment, rest)) = path.split_last() else {
            return;
        };
        let is_last = format == FormatAtEnd::Possible;
        let format = if is_last { FormatAtEnd::Absent } else { format };
        if !self.literals.is_empty()
            && let Some(literal) = path::folded(segment)
        {
            if let Some(next) = self.literals.get(&*literal) {
                next.collect_from_end(rest, format, found);
            }
            if is_last && let Some(next) = self.without_format(&literal) {
                next.collect_from_end(rest, FormatAtEnd::Present, found);
            }
        }
        if let Some(next) = &self.named {
            next.collect_from_end(rest, format, found);
        }
    }

    /// The position behind a path's last segment without its format: behind `chat` for `chat.json`.
    fn without_format(&self, literal: &[u8]) -> Option<&Self> {
        let dot = literal.iter().rposition(|byte| *byte == b'.')?;
        self.literals.get(&literal[..dot])
    }
}

fn is_literal(segment: Option<&PatternSegment>) -> bool {
    matches!(segment, Some(PatternSegment::Literal(_)))
}

#[cfg(test)]
mod tests;
