//! The configuration as the program uses it: read from the file and the environment, and validated.
//!
//! Invariant: a [`Config`] has no problem; all problems of a file are reported together ([`problem`]).
//! Each section has its own file, in which each option is defined once (`option`); this file reads
//! the sections and checks what concerns more than one of them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::key::KeyTemplate;
pub use admin::AdminConfig;
pub use busy::{BusyConfig, BusyFormat, RetryAfter};
pub use cors::{AllowedOrigin, CorsConfig};
pub use errors::{ErrorLanguage, ErrorsConfig, HelpUrl};
pub use limits::{Limits, Timeouts};
use listen::{ListenAddress, TlsConfig, TlsFiles};
pub use lock::{
    EventName, EventNameError, LockConfig, NestedCalls, OnDisconnect, OnMalformed, OnMissing,
    OnRepeat, SessionAction, StreamKind,
};
pub use log::{LogConfig, LogFormat, LogIds};
use option::{Options, options};
use problem::{Problem, Problems, path_in};
use reader::{ConfigTable, ConfigValue, Variables};
pub use replay::{OverLimit, ReplayConfig};
use routes::Inherited;
pub use routes::{Route, TurnConfig};
pub use store::{OnError, StoreAddress, StoreConfig};
pub use templates::Condition;
use trace::TracingConfig;
pub use upstream::Upstream;
use upstream::{TrustedCas, UpstreamHost, UpstreamProtocol};
use value_kind::{Optional, quoted, text, word, words};

pub mod admin;
mod attaching;
mod busy;
mod cors;
mod errors;
mod limits;
pub mod listen;
mod lock;
mod log;
mod option;
pub mod pattern;
pub mod presets;
pub mod problem;
pub mod reader;
pub mod reference;
mod replay;
mod route_order;
mod routes;
mod show;
mod store;
mod templates;
pub mod trace;
pub mod upstream;
mod value_kind;

options! {
    /// The validated configuration of a process.
    #[derive(Clone, Debug)]
    pub struct Config in "" {
        /// The address where clients connect, with HTTP/1.1 or HTTP/2.
        listen: ListenAddress = ListenAddress::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080))),
            text("address and port, or \"unix:/path\"", ListenAddress::parse),
            example "\"unix:/run/seriatim.sock\"", Restart;
        /// The backend: `http://host:port`, `https://host` (its certificate is verified),
        /// `h2c://host:port` (HTTP/2 without TLS, as gRPC uses it) or `unix:/run/agent.sock`. Not
        /// needed if each route has an `upstream` and `unmatched` is `reject`.
        upstream: Option<Upstream> = None, Optional(text("URL", Upstream::parse)),
            unset "required", example "\"h2c://agent.example:50051\"", Live;
        /// The header `host` of a request for a backend: `client` keeps the client's; `upstream` writes the
        /// host and port of `upstream`, as a backend needs that serves several hosts under one address.
        /// For a Unix socket, that is `localhost`. `x-forwarded-host` has the client's in any case.
        upstream_host: UpstreamHost = UpstreamHost::Client, word(), example "\"upstream\"", Live;
        /// A PEM file of certificate authorities that are trusted for backends with https, in addition
        /// to the public ones.
        upstream_ca_file: Option<TrustedCas> = None, Optional(text("path", TrustedCas::read)),
            unset "only the public ones", example "\"/etc/ssl/private-ca.pem\"", Live;
        /// What happens to the headers `x-forwarded-for`, `-proto`, `-host`, `-port` and `forwarded` of
        /// a client: `trust` keeps them and adds this hop, as behind an ingress; `replace` replaces them
        /// by what this proxy sees.
        forwarded: Forwarded = Forwarded::Trust, word(), example "\"replace\"", Live;
        /// What happens to a request that no route takes: `pass` forwards it without a lock; `reject`
        /// refuses it with 404.
        unmatched: Unmatched = Unmatched::Pass, word(), example "\"reject\"", Live;
    }
    beside {
        /// The certificate for clients; `None`: clients connect without TLS.
        tls: Option<TlsConfig> = None;
        /// Where locks live.
        store: StoreConfig = StoreConfig::default();
        /// The routes, in the order in which they are tried.
        routes: Vec<Route> = Vec::new();
        /// The language of error responses, and where their reader finds help.
        errors: ErrorsConfig = ErrorsConfig::default();
        /// Which pages of other origins may read error responses.
        cors: CorsConfig = CorsConfig::default();
        /// How much Seriatim takes from clients.
        limits: Limits = Limits::default();
        /// How long Seriatim waits for clients and backends.
        timeouts: Timeouts = Timeouts::default();
        /// How much of the answers of turns is kept.
        replay: ReplayConfig = ReplayConfig::default();
        /// The admin interface.
        admin: AdminConfig = AdminConfig::default();
        /// What Seriatim logs.
        log: LogConfig = LogConfig::default();
        /// Where spans are sent.
        tracing: TracingConfig = TracingConfig::default();
        /// Values in the file that are allowed, but perhaps not meant.
        warnings: Vec<Problem> = Vec::new();
    }
}

words! {
    /// What happens to the headers in which a client names the hops before this proxy.
    pub enum Forwarded {
        /// They are kept, and this hop is added.
        Trust = "trust",
        /// They are replaced by what this proxy sees.
        Replace = "replace",
    }
}

words! {
    /// What happens to a request that no route takes.
    pub enum Unmatched {
        /// The request is forwarded without a lock.
        Pass = "pass",
        /// The request is refused with 404.
        Reject = "reject",
    }
}

/// The port on which collectors take what Seriatim doesn't speak (OpenTelemetry Protocol, "OTLP/gRPC
/// Default Port").
const GRPC_PORT: u16 = 4317;

// === impl Config ===

impl Config {
    /// Reads the file and the environment variables of this process, which override it. Also returns
    /// the text of the file.
    ///
    /// # Errors
    /// When something is wrong, with all problems.
    pub fn load(path: &Path) -> Result<(Self, String), Problems> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| {
            let why = format!("the file can't be read: {error}; name another file with --config");
            Problems {
                file: file.clone(),
                problems: vec![Problem::new("", why)],
            }
        })?;
        let config = Self::read_over_environment(&file, &text)?;
        Ok((config, text))
    }

    /// Reads the text of a file and the environment variables of this process, which override it.
    ///
    /// # Errors
    /// When something is wrong, with all problems.
    pub fn read_over_environment(file: &str, text: &str) -> Result<Self, Problems> {
        Self::read(file, text, &reader::environment())
    }

    /// Reads the text of a file and `variables`, which override it.
    ///
    /// # Errors
    /// When something is wrong, with all problems.
    pub fn read(file: &str, text: &str, variables: &Variables) -> Result<Self, Problems> {
        let (mut report, entries) = reader::parse(file, text, variables)?;
        report.set_options(reference::paths());
        let mut config = Self::read_tables(report.root(entries));
        report.check_names(variables);
        config.warnings = report.finish()?;
        Ok(config)
    }

    /// The options that `new` would change and that can't change while the process runs: sockets are
    /// bound, locks are in the store, and the log has its format.
    pub fn fixed(&self, new: &Self) -> Vec<Problem> {
        fn changed<T: Options>(old: &T, new: &T) -> Vec<Problem> {
            let value = |options: &T, key| {
                let mut shown = options.show().into_iter();
                shown
                    .find(|(shown, _)| *shown == key)
                    .map(|(_, value)| value)
            };
            let problem = |key| {
                let before = value(old, key).map(|value| format!("write {value} again"));
                let before = before.unwrap_or_else(|| "leave it out".into());
                let why =
                    format!("can't be changed while the process runs: restart it, or {before}");
                Problem {
                    value: value(new, key),
                    ..Problem::new(path_in(T::TABLE, key), why)
                }
            };
            let keys = old.needing_restart(new).into_iter();
            keys.map(problem).collect()
        }
        // The files may change at any time, their paths may not.
        let files = |config: &Self| config.tls.clone().map(|tls| tls.files).unwrap_or_default();
        let changed = [
            changed(self, new),
            changed(&files(self), &files(new)),
            changed(&self.store, &new.store),
            changed(&self.limits, &new.limits),
            changed(&self.timeouts, &new.timeouts),
            changed(&self.admin, &new.admin),
            changed(&self.log, &new.log),
            changed(&self.tracing, &new.tracing),
        ];
        changed.concat()
    }

    /// The backend of the route with this name; for the empty name, that of requests that no route takes.
    /// `None`: there is none.
    pub fn backend_of(&self, route: &str) -> Option<&Upstream> {
        if route.is_empty() {
            return self.upstream.as_ref();
        }
        let route = self.routes.iter().find(|known| *known.name == *route)?;
        route.upstream.as_ref().or(self.upstream.as_ref())
    }

    /// The templates of the keys of all locks.
    pub fn lock_keys(&self) -> impl Iterator<Item = &KeyTemplate> {
        self.turns().map(|turn| &turn.lock.key)
    }

    /// Which requests may have clients that are kept while they wait: all, if a route says so, or those that ask
    /// for an event stream; `None`: none.
    pub fn keeps_clients(&self) -> Option<StreamKind> {
        let kept = self.turns().filter(|turn| turn.lock.keep_alive.is_some());
        let mut kinds = kept.map(|turn| turn.lock.stream).peekable();
        let first = kinds.peek().copied();
        kinds.find(|kind| *kind == StreamKind::Sse).or(first)
    }

    /// Whether a route keeps the answers of its turns.
    pub fn keeps_answers(&self) -> bool {
        self.turns().any(|turn| turn.lock.replay)
    }

    /// The longest time for which a route keeps a lock after its turn.
    pub fn longest_settling(&self) -> Duration {
        let options = self.turns().map(|turn| &turn.lock.options);
        let settle = options.map(|options| {
            options
                .settle
                .max(options.settle_cancelled.unwrap_or_default())
        });
        settle.max().unwrap_or_default()
    }

    /// Warnings about options that are allowed, but perhaps not meant.
    pub fn remarks(&self) -> Vec<Problem> {
        let mut remarks = Vec::new();
        if self.store.url == StoreAddress::Memory {
            remarks.push(match self.keeps_answers() {
                true => {
                    "locks and answers are in the memory of this process: its locks protect one replica only, and only \
                     this replica can send its answers again; for more replicas set store.url"
                }
                false => {
                    "locks are in the memory of this process and protect one replica only; for more replicas set \
                     store.url"
                }
            });
        }
        if self.admin.token_file.is_none() && !self.admin.listen.ip().to_canonical().is_loopback() {
            remarks.push("admin.listen can be reached from other machines and admin.token_file isn't set: only /livez, /readyz and /metrics are answered; set admin.token_file to see and release locks");
        }
        if !self.routes.iter().any(|route| route.turn.is_some()) {
            remarks.push("no route takes a lock: all requests are forwarded without one");
        }
        let collector = self.tracing.otlp.as_ref();
        if collector.is_some_and(|to| to.port == GRPC_PORT) {
            remarks.push("tracing.otlp uses HTTP, and 4317 is the usual port for gRPC; the port for HTTP is usually 4318");
        }
        let remarks = remarks.into_iter().map(|remark| Problem::new("", remark));
        let remarks = remarks.chain(self.observation_remark());
        let remarks = remarks.chain(self.attaching_remarks());
        self.warnings.iter().cloned().chain(remarks).collect()
    }

    /// Says which options for waiting turns have no effect, because the turns are only observed.
    fn observation_remark(&self) -> Option<Problem> {
        let observes = |turn: &TurnConfig| turn.lock.options.blocking && !turn.lock.options.enforce;
        let observing = self.routes.iter();
        let observing = observing.filter(|route| route.turn.as_ref().is_some_and(observes));
        let names: Vec<_> = observing.map(|route| quoted(&route.name)).collect();
        let remark = format!(
            "enforce = false on {}: no turn waits there, so blocking, interrupt and queue_events have no \
             effect until enforce is true",
            names.join(", ")
        );
        (!names.is_empty()).then(|| Problem::new("", remark))
    }
}

// === reading ===

impl Config {
    fn turns(&self) -> impl Iterator<Item = &TurnConfig> {
        self.routes.iter().filter_map(|route| route.turn.as_ref())
    }

    /// Reads all sections. An option with a problem has its default.
    fn read_tables(mut root: ConfigTable<'_>) -> Self {
        let mut config = Self::default();
        config.read(&mut root);

        let mut files = TlsFiles::default();
        section(&mut root, &mut files, |files, table| {
            config.tls = TlsConfig::load(files.clone(), table);
        });
        section(&mut root, &mut config.store, |store, table| {
            store.check(table)
        });
        section(&mut root, &mut config.errors, |_, _| {});
        section(&mut root, &mut config.cors, |cors, table| cors.check(table));
        section(&mut root, &mut config.limits, |limits, table| {
            limits.check(table)
        });
        section(&mut root, &mut config.timeouts, |_, _| {});
        section(&mut root, &mut config.admin, |admin, table| {
            if config.listen.is(admin.listen) {
                let why = "is the address of `listen` too: write another address or port";
                table.note("listen", why);
            }
        });

        let mut log_table = root.table(LogConfig::TABLE);
        config.log.read(&mut log_table);

        section(&mut root, &mut config.tracing, |tracing, table| {
            tracing.check(table)
        });
        let mut replay_table = root.table(ReplayConfig::TABLE);
        config.replay.read(&mut replay_table);
        config.replay.check(&replay_table);
        config.replay.check_store(&config.store.url, &replay_table);
        let entries = config.read_routes(&mut root);
        if !config.keeps_answers() {
            config.replay.check_unused(&replay_table);
        }
        replay_table.finish();
        config.check_attaching(&root, &entries);
        config.log.check(&log_table, &config.routes);
        log_table.finish();
        config.check_timeouts(&root);
        config.check_upstreams(&root);
        config.check_loops(&root, &entries);
        config.check_order(&root, &entries);
        config.set_upstream_hosts();
        root.finish();
        config
    }

    /// Reads `[lock]`, `[busy]` and the routes, which override them. Returns the number of each route's entry.
    fn read_routes(&mut self, root: &mut ConfigTable<'_>) -> Vec<usize> {
        let mut numbers = Vec::new();
        let mut lock_table = root.table(LockConfig::TABLE);
        let lock = LockConfig::default().overlaid(&mut lock_table);
        lock.check(&lock_table, self.store.timeout);

        let mut busy = BusyConfig::in_language(self.errors.language);
        section(root, &mut busy, |busy, table| busy.check(table));

        let inherited = Inherited {
            store: &self.store,
            lock: &lock,
            busy: &busy,
        };
        let entries = root.take(Route::TABLE).and_then(ConfigValue::list);
        for (index, entry) in entries.unwrap_or_default().into_iter().enumerate() {
            let tables = entry.table().map(presets::expand).unwrap_or_default();
            for mut entry in tables {
                let route = Route::read_from(&mut entry, index, &inherited);
                let has_name = |earlier: &Route| earlier.name == route.name;
                if self.routes.iter().any(has_name) {
                    let name = &route.name;
                    let why =
                        format!("another route has the name {name:?} too: write another name");
                    entry.table.note("name", why);
                }
                entry.table.finish();
                self.routes.push(route);
                numbers.push(index);
            }
        }
        // A route that waits uses the defaults for waiters.
        let waits = |turn: &TurnConfig| turn.lock.options.blocking;
        if !lock.options.blocking && !self.turns().any(waits) {
            lock.check_waiting(&lock_table);
        }
        if !self.turns().any(|turn| turn.lock.keeps_waiting_clients()) {
            lock.check_queue_events(&lock_table);
        }
        if self.turns().all(|turn| turn.once.is_empty()) {
            lock.check_once_for(&lock_table);
        }
        if !self.turns().any(TurnConfig::may_join) {
            lock.check_on_repeat(&lock_table);
        }
        lock_table.finish();
        numbers
    }

    /// Reports backends at which requests would come back to this process.
    fn check_loops(&self, root: &ConfigTable<'_>, entries: &[usize]) {
        let own = entries.iter().zip(&self.routes);
        let own = own.map(|(entry, route)| (format!("routes[{entry}].upstream"), &route.upstream));
        let all = own.chain([("upstream".into(), &self.upstream)]);
        for (key, upstream) in all {
            let upstream = upstream.as_ref().filter(|_| !root.is_wrong("listen"));
            if let Some(upstream) = upstream.filter(|to| self.listen.is_reached_at(&to.address)) {
                let why = format!(
                    "is where Seriatim itself listens, since listen is {}: write the address of the \
                     backend, or another port into listen",
                    quoted(&self.listen)
                );
                root.note_as(&key, quoted(upstream), why);
            }
        }
    }

    /// Reports routes that never take a request, because an earlier route takes all of them.
    fn check_order(&self, root: &ConfigTable<'_>, entries: &[usize]) {
        // An option with a problem is missing here, and the route seems to take more requests.
        let known = entries.iter().zip(&self.routes);
        let known = known.filter(|(entry, _)| !root.is_wrong(&format!("routes[{entry}]")));
        let known: Vec<_> = known.collect();
        for (index, (entry, route)) in known.iter().enumerate() {
            if let Some((segment, path)) = route.unmatchable_segment().zip(route.path.as_ref()) {
                let why = format!(
                    "no request has `{segment}`: a route that locks ignores a path's text behind a `;`, \
                     as some backends do; write the segment without it"
                );
                root.note_as(&format!("routes[{entry}].path"), quoted(path), why);
                continue;
            }
            let mut earlier = known[..index].iter();
            let Some((_, earlier)) = earlier.find(|(_, earlier)| earlier.hides(route)) else {
                continue;
            };
            let why = format!(
                "the route {:?} never takes a request, because the route {:?} before it takes all of \
                 them: write {0:?} before {1:?}, or leave it out",
                route.name, earlier.name
            );
            let (key, value) = match &route.path {
                Some(path) => ("path", quoted(path)),
                None => ("name", quoted(&route.name)),
            };
            root.note_as(&format!("routes[{entry}].{key}"), value, why);
        }
    }

    fn check_timeouts(&self, root: &ConfigTable<'_>) {
        let settle = self.turns().map(|turn| turn.lock.options.settle);
        let settle = settle.max().unwrap_or_default();
        if settle >= self.timeouts.idle_stream && !root.is_wrong("timeouts.idle_stream") {
            let why = format!(
                "must be longer than settle, which is {settle:?}: settle delays the end of a response"
            );
            root.note("timeouts.idle_stream", why);
        }
        let keep_alive = self.turns().filter_map(|turn| turn.lock.keep_alive);
        let keep_alive = keep_alive.max().unwrap_or_default();
        if keep_alive >= self.timeouts.idle_stream && !root.is_wrong("timeouts.idle_stream") {
            let why = format!(
                "must be longer than keep_alive, which is {keep_alive:?}: otherwise a response is aborted before \
                 its first comment"
            );
            root.note("timeouts.idle_stream", why);
        }
    }

    /// Sets which host the requests for each backend name. A route that differs from the top level in this has
    /// a backend of its own.
    fn set_upstream_hosts(&mut self) {
        let default = self.upstream_host;
        if let Some(upstream) = &mut self.upstream {
            upstream.host = default;
        }
        for route in &mut self.routes {
            let host = route.upstream_host.unwrap_or(default);
            if host != default && route.upstream.is_none() {
                route.upstream.clone_from(&self.upstream);
            }
            if let Some(upstream) = &mut route.upstream {
                upstream.host = host;
            }
        }
    }

    fn check_upstreams(&self, root: &ConfigTable<'_>) {
        let needs_upstream = self.unmatched == Unmatched::Pass
            || self.routes.is_empty()
            || self.routes.iter().any(|route| route.upstream.is_none());
        if needs_upstream && !root.wrote("upstream") {
            let why = "missing: write the URL of the backend, as \"http://127.0.0.1:8000\"";
            root.note("upstream", why);
        }
        let own = self.routes.iter().map(|route| &route.upstream);
        let mut upstreams = own.chain([&self.upstream]).flatten();
        let has_tls = |one: &Upstream| matches!(one.protocol, UpstreamProtocol::Https(_));
        if root.wrote("upstream_ca_file") && !upstreams.any(has_tls) {
            root.note(
                "upstream_ca_file",
                "is used only with backends that have TLS: write upstream = \"https://...\" too, or \
                 leave upstream_ca_file out",
            );
        }
    }
}

/// Reads a section from its table, and reports what `check` finds and what is unknown.
fn section<T: Options>(
    root: &mut ConfigTable<'_>,
    options: &mut T,
    check: impl FnOnce(&mut T, &ConfigTable<'_>),
) {
    let mut table = root.table(T::TABLE);
    options.read(&mut table);
    check(options, &table);
    table.finish();
}
