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
    segments: Segments<'p>,
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

    /// The first route that takes the request.
    pub(super) fn route<'p>(&self, head: &'p Parts) -> Option<Matched<'p>> {
        let path = head.uri.path();
        let as_sent = as_sent(path);
        let decoded = hides_slashes(path).then(|| decoded_first(path));
        [Some(as_sent), decoded]
            .into_iter()
            .flatten()
            .filter_map(|segments| Some((self.first(&segments, head)?, segments)))
            .min_by_key(|(index, _)| *index)
            .map(|(index, segments)| Matched {
                route: Arc::clone(&self.routes[index]),
                segments,
            })
    }

    /// The index of the first route that takes this path, and the rest of the head.
    fn first(&self, segments: &Segments<'_>, head: &Parts) -> Option<usize> {
        let mut candidates = self.anywhere.clone();
        self.paths.collect(segments, &mut candidates);
        candidates.sort_unstable();
        candidates
            .into_iter()
            .find(|index| takes(&self.routes[*index], head))
    }
}

/// Whether all but the path of a route's conditions hold.
fn takes(route: &Route, head: &Parts) -> bool {
    let host = || host(head);
    (route.methods.is_empty() || route.methods.contains(&head.method))
        && (route.hosts.is_empty()
            || host().is_some_and(|host| route.hosts.iter().any(|pattern| pattern.matches(&host))))
        && route.headers.iter().all(|(name, values)| {
            let mut found = head.headers.get_all(name).iter().peekable();
            found.peek().is_some()
                && (values.is_empty() || found.any(|value| values.contains(value)))
        })
}

/// The host that is asked for, in lower case, without a port. An absolute URI overrides the header
/// (RFC 9112 §3.2.2).
fn host(head: &Parts) -> Option<String> {
    let authority = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST)?.to_str().ok()?,
    };
    // The colons of an IPv6 address stand in brackets.
    let end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let port = authority[end..]
        .find(':')
        .map_or(authority.len(), |colon| end + colon);
    Some(authority[..port].trim_end_matches('.').to_lowercase())
}

// === impl Matched ===

impl Matched<'_> {
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
fn decoded_first(path: &str) -> Segments<'static> {
    let decoded: Vec<u8> = percent_decode(path.as_bytes()).collect();
    resolve(
        decoded
            .split(|byte| matches!(byte, b'/' | b'\\'))
            .map(|segment| segment.to_vec().into()),
    )
}

/// Whether a path reads differently when it is split after decoding.
fn hides_slashes(path: &str) -> bool {
    let encoded =
        |escape: &[u8]| escape.eq_ignore_ascii_case(b"%2f") || escape.eq_ignore_ascii_case(b"%5c");
    path.contains('\\') || path.contains('%') && path.as_bytes().windows(3).any(encoded)
}

/// Leaves out empty segments and `.`, and lets `..` take back the one before it.
fn resolve<'p>(segments: impl Iterator<Item = Cow<'p, [u8]>>) -> Segments<'p> {
    let mut resolved = Segments::with_capacity(8);
    for segment in segments {
        match &*segment {
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
mod tests {
    use super::*;
    use crate::config::Config;
    use http::Request;

    fn router(routes: &str) -> Router {
        let text = format!("upstream = \"http://127.0.0.1:1\"\n{routes}");
        Router::new(&Config::read("test", &text, &Vec::new()).unwrap().routes)
    }

    fn head(method: &str, uri: &str) -> Parts {
        let request = Request::builder().method(method).uri(uri);
        request
            .header("host", "Agent.Example:8080")
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    fn name(router: &Router, head: &Parts) -> Option<String> {
        router
            .route(head)
            .map(|matched| matched.route.name.to_string())
    }

    const ROUTES: &str = r#"
        [[routes]]
        name = "stop"
        path = "/chat/stop"
        lock = false
        [[routes]]
        name = "chat"
        path = "/chat"
        methods = ["POST"]
        session_id = ["{header:x}"]
        [[routes]]
        name = "run"
        path = "/Threads/{t}/runs/{*rest}"
        session_id = ["{path:t}"]
    "#;

    #[test]
    fn no_spelling_of_a_path_slips_past_its_route() {
        let router = router(ROUTES);
        for spelling in [
            "/chat",
            "/chat/",
            "//chat",
            "/CHAT",
            "/ch%61t",
            "/a/../chat",
            "/./chat",
            "/%2e/chat",
            "/a/%2e%2e/chat",
            "/chat;v=1",
            "/chat?x=1",
            "/%2Fchat",
            "/a%2f..%2fchat",
            "/chat%5c",
        ] {
            let found = name(&router, &head("POST", spelling));
            assert_eq!(
                found.as_deref(),
                Some("chat"),
                "{spelling} is /chat to some backend"
            );
        }
        for other in ["/chatter", "/chat/x", "/", "/chat%2500"] {
            assert_eq!(
                name(&router, &head("POST", other)),
                None,
                "{other} is not /chat to any"
            );
        }
    }

    #[test]
    fn the_first_route_whose_conditions_all_hold_takes_the_request() {
        let router = router(ROUTES);
        assert_eq!(
            name(&router, &head("GET", "/chat")),
            None,
            "the method must be named"
        );
        let stop = name(&router, &head("POST", "/chat/stop"));
        assert_eq!(
            stop.as_deref(),
            Some("stop"),
            "literals win by their order in the file"
        );
    }

    #[test]
    fn a_segment_is_decoded_once_and_keeps_its_case() {
        let router = router(ROUTES);
        let head = head("POST", "/threads/A%252Fb%20/runs/stream/now");
        let matched = router.route(&head).unwrap();
        let segment = |name| matched.segment(name).map(Cow::into_owned);
        assert_eq!(
            segment("t"),
            Some(b"A%2Fb ".to_vec()),
            "percent-decoded once"
        );
        assert_eq!(
            segment("rest"),
            Some(b"stream/now".to_vec()),
            "the rest is all that follows"
        );
        assert_eq!(
            segment("other"),
            None,
            "a name that isn't in the pattern is nothing"
        );
    }

    #[test]
    fn an_encoded_slash_is_matched_both_ways() {
        let router = router(ROUTES);
        let head = head("POST", "/threads/a%2Fb/runs/stream");
        let matched = router.route(&head).unwrap();
        let segment = matched.segment("t").map(Cow::into_owned);
        assert_eq!(
            segment,
            Some(b"a/b".to_vec()),
            "a backend that splits first sees one segment"
        );
    }

    #[test]
    fn host_and_headers_are_conditions() {
        let router = router(
            r#"
            [[routes]]
            name = "other"
            host = "other.example"
            lock = false
            [[routes]]
            name = "header"
            headers = { x-kind = ["a", "b"], x-any = "*" }
            lock = false
            [[routes]]
            name = "host"
            host = ["*.nowhere", "agent.example"]
            lock = false
            "#,
        );
        let mut head = head("GET", "/");
        assert_eq!(
            name(&router, &head).as_deref(),
            Some("host"),
            "case and port don't count"
        );
        head.headers.insert("x-kind", "b".parse().unwrap());
        assert_eq!(
            name(&router, &head).as_deref(),
            Some("host"),
            "every header must be there"
        );
        head.headers.insert("x-any", "".parse().unwrap());
        assert_eq!(
            name(&router, &head).as_deref(),
            Some("header"),
            "one of the values is enough"
        );
    }
}
