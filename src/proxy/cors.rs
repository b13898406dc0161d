//! What error responses say to pages of other origins (Fetch, "CORS protocol").
//!
//! A browser shows a page a response from another origin only if the response allows the page's origin.
//! By default an error response allows what the backend's last responses to the same origin, on the same
//! route, have allowed. `[cors]` may say it instead.
//!
//! Invariants: an error response allows an origin no more than the configuration, or the backend, does. A
//! response of the backend is never changed. A request without the header `origin` is never looked at.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::RwLock;

use crate::config::Config;
use crate::http_syntax::list_items;

/// Decides who may read error responses, by one configuration.
pub(super) struct CorsPolicy {
    config: Arc<Config>,
    memory: CorsMemory,
}

/// What the backends have allowed to pages of other origins, by route. All workers share it, because the next
/// request of a page may come to another worker; only requests with the header `origin` touch it. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct CorsMemory(Arc<RwLock<RememberedGrants>>);

/// The origin of the page that sent a request.
pub(super) struct RequestOrigin {
    pub(super) value: HeaderValue,
    /// Whether the request is a preflight: it asks, for another request, what the backend allows.
    pub(super) is_preflight: bool,
}

#[derive(Debug, Default)]
struct RememberedGrants {
    /// The configuration that was adopted last; `None`: none was.
    config: Option<Arc<Config>>,
    /// By the name of the route, which is empty for requests that no route takes.
    routes: BTreeMap<Box<str>, RouteGrants>,
    /// How many origins are remembered, over all routes.
    origins: usize,
    /// How many responses were looked at: the clock of `last_used`.
    clock: AtomicU64,
}

/// What a route's backend has allowed.
#[derive(Debug, Default)]
struct RouteGrants {
    /// What was given to an origin that it doesn't name: `*`, or one origin whoever asks. To other origins
    /// it is worth as little as it is when the backend says it.
    constant: Option<CorsGrant>,
    /// What was given to origins by their names.
    named: HashMap<Box<[u8]>, NamedGrant>,
}

#[derive(Debug)]
struct NamedGrant {
    grant: CorsGrant,
    last_used: AtomicU64,
}

/// What a response allows to pages of another origin.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CorsGrant {
    /// The value of `access-control-allow-origin`.
    origin: HeaderValue,
    /// Whether requests with credentials are allowed, too.
    with_credentials: bool,
    /// The value of `access-control-expose-headers`; empty: there was none.
    exposed: Box<[u8]>,
}

/// The longest origin that is remembered, in bytes: a scheme, a name of 253 characters and a port, and some
/// room.
const LONGEST_ORIGIN: usize = 320;

/// The longest `access-control-expose-headers` that is remembered, in bytes.
const LONGEST_EXPOSED: usize = 1024;

/// How many origins are remembered at most, over all routes: with the lengths above, less than half a
/// megabyte. A backend that allows any origin by its name would otherwise let a client fill the memory.
const MOST_ORIGINS: usize = 256;

/// The headers of error responses that a page may read.
const EXPOSED: &str =
    "link, retry-after, retry-after-ms, x-seriatim-busy-since, x-seriatim-error, x-seriatim-queue";

// === impl RequestOrigin ===

impl RequestOrigin {
    /// The origin of a request; `None`: the request has none, or one that no browser sends.
    pub(super) fn from_head(method: &Method, headers: &HeaderMap) -> Option<Self> {
        let value = single(headers, &ORIGIN)?;
        let is_preflight =
            *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        (value.len() <= LONGEST_ORIGIN).then(|| Self {
            value: value.clone(),
            is_preflight,
        })
    }

    /// Whether this is the origin of a host, whatever its scheme: TLS may end before this proxy.
    fn is_at(&self, host: &HeaderValue) -> bool {
        let authority = self
            .value
            .to_str()
            .ok()
            .and_then(|origin| Some(origin.split_once("://")?.1));
        let host = host.to_str().ok();
        authority
            .zip(host)
            .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
    }
}

// === impl CorsPolicy ===

impl CorsPolicy {
    /// The policy of a configuration. Without `[cors]`, it learns what the backends allow, and keeps it in
    /// `memory`.
    pub(super) fn new(config: Arc<Config>, memory: CorsMemory) -> Self {
        memory.adopt(&config);
        Self { config, memory }
    }

    /// Remembers what a response of the backend allows to the origin. `routes` are the names of the routes
    /// that the response speaks for; an empty name is for requests that no route takes.
    pub(super) fn learn<'r>(
        &self,
        origin: &RequestOrigin,
        routes: impl Iterator<Item = &'r str>,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        if self.config.cors.allow_origins.is_empty() {
            for route in routes {
                let config = &self.config;
                self.memory.learn(config, origin, route, status, headers);
            }
        }
    }

    /// Adds to an error response what lets a page of the origin read it. `route` is the name of the request's
    /// route; `None`: no route is known, and what any route's backend allows counts.
    pub(super) fn add_to(
        &self,
        headers: &mut HeaderMap,
        origin: &RequestOrigin,
        route: Option<&str>,
    ) {
        // Another origin gets another response (Fetch, "CORS protocol and HTTP caches").
        headers.append(VARY, HeaderValue::from_static("origin"));
        let grant = self.grant(origin, route);
        let Some(grant) = grant else { return };
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, grant.exposing_errors());
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, grant.origin);
        if grant.with_credentials {
            let allowed = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, allowed);
        }
    }

    /// Whether a page with this request can read the proxy's response: from its own origin (Fetch Metadata), or allowed.
    pub(super) fn can_read(
        &self,
        origin: &RequestOrigin,
        headers: &HeaderMap,
        route: &str,
    ) -> bool {
        let is_same = match headers.get("sec-fetch-site") {
            Some(site) => site == "same-origin",
            None => single(headers, &HOST).is_some_and(|host| origin.is_at(host)),
        };
        is_same || self.grant(origin, Some(route)).is_some()
    }

    /// What is allowed to the origin; `None`: nothing, or it isn't known.
    fn grant(&self, origin: &RequestOrigin, route: Option<&str>) -> Option<CorsGrant> {
        match self.config.cors.allow_origins.is_empty() {
            true => self.memory.find(origin, route),
            false => self.configured(origin),
        }
    }

    /// What `[cors]` allows to the origin.
    fn configured(&self, origin: &RequestOrigin) -> Option<CorsGrant> {
        let mut allowed = self.config.cors.allow_origins.iter();
        let allowed =
            allowed.find(|allowed| allowed.is_any() || origin.value == *allowed.as_str())?;
        Some(CorsGrant {
            origin: match allowed.is_any() {
                true => HeaderValue::from_static("*"),
                false => origin.value.clone(),
            },
            with_credentials: self.config.cors.allow_credentials,
            exposed: Box::default(),
        })
    }
}

// === impl CorsMemory ===

impl CorsMemory {
    /// Takes over a configuration, and forgets the routes that have another backend in it: another backend
    /// may allow other origins.
    fn adopt(&self, config: &Arc<Config>) {
        let mut grants = self.0.write();
        let Some(old) = grants.config.replace(Arc::clone(config)) else {
            return;
        };
        if !Arc::ptr_eq(&old, config) {
            let is_kept = |route: &str| old.backend_of(route) == config.backend_of(route);
            grants.routes.retain(|name, _| is_kept(name));
            grants.origins = grants.routes.values().map(|route| route.named.len()).sum();
        }
    }

    /// Remembers a response to a request that was served by `config`.
    fn learn(
        &self,
        config: &Arc<Config>,
        origin: &RequestOrigin,
        route: &str,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        let given = CorsGrant::from_response(headers);
        if given.is_none() && !status.is_success() {
            // Many frameworks leave the headers out of errors, also for an origin that is allowed.
            return;
        }
        let grants = self.0.read();
        if grants.has(origin, route, given.as_ref()) {
            return;
        }
        drop(grants);
        let mut grants = self.0.write();
        if !grants.is_current(config, route) {
            return;
        }
        match given {
            Some(grant) => grants.remember(origin, route, grant),
            None => grants.forget(origin, route),
        }
    }

    fn find(&self, origin: &RequestOrigin, route: Option<&str>) -> Option<CorsGrant> {
        let grants = self.0.read();
        match route {
            Some(route) => grants
                .routes
                .get(route)?
                .find(origin, grants.tick())
                .cloned(),
            None => {
                let mut routes = grants.routes.values();
                let named = routes.find_map(|route| route.named(origin, grants.tick()));
                let constant = || grants.routes.values().find_map(|it| it.constant.as_ref());
                named.or_else(constant).cloned()
            }
        }
    }
}

// === impl RememberedGrants ===

impl RememberedGrants {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the route has the same backend in `config` as in the current configuration. The backend of a
    /// request that began before a reload may be another one.
    fn is_current(&self, config: &Arc<Config>, route: &str) -> bool {
        self.config.as_ref().is_some_and(|current| {
            Arc::ptr_eq(current, config) || current.backend_of(route) == config.backend_of(route)
        })
    }

    /// Whether it is known already what the route's backend gives the origin.
    fn has(&self, origin: &RequestOrigin, route: &str, given: Option<&CorsGrant>) -> bool {
        let Some(known) = self.routes.get(route) else {
            return given.is_none();
        };
        let Some(given) = given else {
            let names = known.constant.as_ref().is_some_and(|it| it.names(origin));
            return !names && known.get(origin).is_none();
        };
        let named = known.named(origin, self.tick());
        let known = match given.names(origin) {
            true => named,
            false if named.is_none() || given.may_stand_for_a_name() => known.constant.as_ref(),
            false => None,
        };
        known.is_some_and(|known| *known == given.clone().keeping_exposed(known, origin))
    }

    fn remember(&mut self, origin: &RequestOrigin, route: &str, grant: CorsGrant) {
        let now = self.tick();
        if !self.routes.contains_key(route) {
            self.routes.insert(route.into(), RouteGrants::default());
        }
        let Some(known) = self.routes.get_mut(route) else {
            return;
        };
        let name = origin.value.as_bytes();
        if !grant.names(origin) {
            if !grant.may_stand_for_a_name() && known.named.remove(name).is_some() {
                self.origins -= 1;
            }
            let grant = match &known.constant {
                Some(old) => grant.keeping_exposed(old, origin),
                None => grant,
            };
            known.constant = Some(grant);
            return;
        }
        if let Some(old) = known.named.get_mut(name) {
            old.grant = grant.keeping_exposed(&old.grant, origin);
            return;
        }
        let new = NamedGrant {
            grant,
            last_used: AtomicU64::new(now),
        };
        known.named.insert(name.into(), new);
        self.origins += 1;
        if self.origins > MOST_ORIGINS {
            self.forget_oldest();
        }
    }

    /// Forgets what the route's backend gave the origin, because it gives it nothing any more. What it gives
    /// to others stays: it may have given this origin nothing before, either, and any client can name an
    /// origin.
    fn forget(&mut self, origin: &RequestOrigin, route: &str) {
        if let Some(known) = self.routes.get_mut(route) {
            known.constant.take_if(|constant| constant.names(origin));
            let was_there = known.named.remove(origin.value.as_bytes()).is_some();
            self.origins -= usize::from(was_there);
        }
    }

    /// Forgets the origin that was not seen for the longest time.
    fn forget_oldest(&mut self) {
        let all = self.routes.iter().flat_map(|(route, grants)| {
            let named = grants.named.iter();
            named.map(move |(name, grant)| (grant.last_used.load(Ordering::Relaxed), route, name))
        });
        if let Some((_, route, name)) = all.min() {
            let (route, name) = (route.clone(), name.clone());
            if let Some(grants) = self.routes.get_mut(&route) {
                grants.named.remove(&name);
                self.origins -= 1;
            }
        }
    }
}

// === impl RouteGrants ===

impl RouteGrants {
    fn find(&self, origin: &RequestOrigin, now: u64) -> Option<&CorsGrant> {
        self.named(origin, now).or(self.constant.as_ref())
    }

    /// What was given to the origin by its name. It counts as used at `now`.
    fn named(&self, origin: &RequestOrigin, now: u64) -> Option<&CorsGrant> {
        let known = self.get(origin)?;
        known.last_used.fetch_max(now, Ordering::Relaxed);
        Some(&known.grant)
    }

    /// What is remembered of the origin by its name.
    fn get(&self, origin: &RequestOrigin) -> Option<&NamedGrant> {
        self.named.get(origin.value.as_bytes())
    }
}

// === impl CorsGrant ===

impl CorsGrant {
    /// What a response allows; `None`: nothing, or nothing that a browser accepts. The values are copied,
    /// because a header value keeps the buffer of the whole head alive.
    fn from_response(headers: &HeaderMap) -> Option<Self> {
        let origin = single(headers, &ACCESS_CONTROL_ALLOW_ORIGIN)?;
        if origin.len() > LONGEST_ORIGIN {
            return None;
        }
        let exposed = headers.get_all(ACCESS_CONTROL_EXPOSE_HEADERS).iter();
        let exposed = exposed.map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let exposed = exposed.join(&b", "[..]);
        let credentials = single(headers, &ACCESS_CONTROL_ALLOW_CREDENTIALS);
        Some(Self {
            origin: HeaderValue::from_bytes(origin.as_bytes()).ok()?,
            // In this case alone (Fetch, "CORS check").
            with_credentials: credentials.is_some_and(|value| value == "true"),
            exposed: match exposed.len() <= LONGEST_EXPOSED {
                true => exposed.into(),
                false => Box::default(),
            },
        })
    }

    /// Whether the grant is for this origin by its name.
    fn names(&self, origin: &RequestOrigin) -> bool {
        self.origin == origin.value
    }

    /// Whether a backend that gives this may still name the origin to another request. Starlette says `*`
    /// with credentials to a request without a cookie, and names the origin to one with a cookie.
    fn may_stand_for_a_name(&self) -> bool {
        self.origin == "*" && self.with_credentials
    }

    /// This grant with the exposed headers of an older one, if this one is a preflight's, which says nothing
    /// of them.
    fn keeping_exposed(mut self, older: &Self, origin: &RequestOrigin) -> Self {
        if origin.is_preflight {
            self.exposed.clone_from(&older.exposed);
        }
        self
    }

    /// The value of `access-control-expose-headers` in an error response: what the backend exposes, and the
    /// headers that tell of an error.
    fn exposing_errors(&self) -> HeaderValue {
        let names = list_items(&self.exposed).filter(|name| !name.is_empty());
        let mut names: Vec<_> = names.collect();
        for name in EXPOSED.split(", ").map(str::as_bytes) {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name);
            }
        }
        // They were valid in a header before.
        HeaderValue::from_bytes(&names.join(&b", "[..]))
            .unwrap_or(HeaderValue::from_static(EXPOSED))
    }
}

/// The value of a header that is there once. Browsers take several for one value that is not valid.
fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let first = headers.get(name)?;
    let mut all = headers.get_all(name).iter();
    all.nth(1).is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn origin(text: &str) -> RequestOrigin {
        RequestOrigin {
            value: text.parse().expect("a header value"),
            is_preflight: false,
        }
    }

    /// A response that allows this origin.
    fn allowing(text: &str) -> HeaderMap {
        let value = text.parse().expect("a header value");
        HeaderMap::from_iter([(ACCESS_CONTROL_ALLOW_ORIGIN, value)])
    }

    /// The policy of a configuration whose route `chat` has its backend on this port; 0: it has no such route.
    fn policy(port: u16, memory: &CorsMemory) -> CorsPolicy {
        let backend = format!("upstream = \"http://127.0.0.1:{port}\"");
        let route = format!("[[routes]]\nname = \"chat\"\nlock = false\n{backend}");
        let route = if port == 0 { "" } else { &*route };
        let text = format!("upstream = \"http://127.0.0.1:1\"\n{route}\n");
        let config = Config::read("test", &text, &Vec::new()).expect("it is valid");
        CorsPolicy::new(Arc::new(config), memory.clone())
    }

    impl CorsPolicy {
        fn knows(&self, text: &str) -> bool {
            self.memory.find(&origin(text), Some("chat")).is_some()
        }

        fn learn_of_chat(&self, text: &str, headers: &HeaderMap) {
            self.learn(&origin(text), iter::once("chat"), StatusCode::OK, headers);
        }

        /// As a backend that allows any origin by its name.
        fn echo(&self, text: &str) {
            self.learn_of_chat(text, &allowing(text));
        }
    }

    #[test]
    fn a_flood_of_origins_fills_no_memory_and_displaces_none_in_use() {
        let chat = policy(1, &CorsMemory::default());
        chat.echo("https://page.example");
        for number in 0..10 * MOST_ORIGINS {
            chat.echo(&format!("https://{number}.example"));
            assert!(
                chat.knows("https://page.example"),
                "an origin in use stays, after {number} others"
            );
        }
        let grants = chat.memory.0.read();
        assert_eq!(
            (grants.routes["chat"].named.len(), grants.origins),
            (MOST_ORIGINS, MOST_ORIGINS),
            "the others are forgotten, the oldest first"
        );
    }

    #[test]
    fn origins_that_are_not_allowed_by_name_take_no_memory() {
        let chat = policy(1, &CorsMemory::default());
        let nothing = HeaderMap::new();
        for number in 0..10 * MOST_ORIGINS {
            let origin = format!("https://{number}.example");
            for headers in [&nothing, &allowing("*"), &allowing("https://page.example")] {
                chat.learn_of_chat(&origin, headers);
            }
        }
        let grants = chat.memory.0.read();
        assert_eq!(
            (
                grants.routes.len(),
                grants.routes["chat"].named.len(),
                grants.origins
            ),
            (1, 0, 0),
            "only what the backend has named is remembered"
        );
    }

    #[test]
    fn nothing_that_is_too_long_is_remembered() {
        let chat = policy(1, &CorsMemory::default());
        let long = format!("https://{}.example", "a".repeat(LONGEST_ORIGIN));
        chat.learn_of_chat("https://page.example", &allowing(&long));
        assert!(!chat.knows("https://page.example"), "a long value");
        let mut headers = allowing("https://page.example");
        let exposed = "x,"
            .repeat(LONGEST_EXPOSED)
            .parse()
            .expect("a header value");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        chat.learn_of_chat("https://page.example", &headers);
        let grant = chat
            .memory
            .find(&origin("https://page.example"), Some("chat"));
        assert_eq!(
            grant.expect("the origin is allowed").exposing_errors(),
            EXPOSED,
            "a long list is left out"
        );
        let head = |value: &str| {
            let request = http::Request::get("/chat").header(ORIGIN, value);
            let request = request.body(()).expect("a request");
            RequestOrigin::from_head(request.method(), request.headers())
        };
        assert!(head(&long).is_none(), "a long origin is no browser's");
        assert!(head("https://page.example").is_some(), "a usual one is");
    }

    #[test]
    fn a_route_with_another_backend_is_forgotten_and_hears_no_more_of_the_old_one() {
        const PAGE: &str = "https://page.example";
        let memory = CorsMemory::default();
        let old = policy(1, &memory);
        old.echo(PAGE);
        let same = policy(1, &memory);
        assert!(same.knows(PAGE), "the backend is the same");
        old.learn_of_chat(PAGE, &HeaderMap::new());
        assert!(
            !same.knows(PAGE),
            "so what a request under way brings counts"
        );
        old.echo(PAGE);
        let other = policy(2, &memory);
        assert!(!other.knows(PAGE), "the backend is another one");
        assert_eq!(memory.0.read().origins, 0, "it no longer counts");
        old.echo(PAGE);
        assert!(
            !other.knows(PAGE),
            "a request under way brings the old one's"
        );
        other.echo(PAGE);
        assert!(other.knows(PAGE), "the new one's counts");
        let gone = policy(0, &memory);
        other.echo(PAGE);
        assert!(!gone.knows(PAGE), "the route is gone");
    }
}
