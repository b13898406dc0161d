//! The configuration as the program uses it: validated, parsed, no strings left to read.
//!
//! [`reader`] has what the user wrote; here it becomes values, and every problem is noted on the way
//! ([`problem`]), so that all of them are told at once.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::key::{KeyTemplate, Template, TemplateFields};
pub use admin::AdminConfig;
use listen::{ListenAddress, TlsConfig};
pub use log::{LogConfig, LogFormat, LogIds};
use pattern::{HostPattern, PathPattern};
use problem::{Problem, Problems};
use reader::{ConfigTable, ConfigValue, Variables};
use trace::TracingConfig;
use upstream::{TrustedCas, UpstreamAddress, UpstreamProtocol};

pub mod admin;
pub mod listen;
mod log;
pub mod pattern;
pub mod presets;
pub mod problem;
pub mod reader;
pub mod reference;
mod routes;
mod show;
mod store;
pub mod trace;
pub mod upstream;

/// Everything that a running process needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: ListenAddress,
    /// What they are shown if they are to speak TLS.
    pub tls: Option<TlsConfig>,
    /// The backend of what has no other; `None`: everything has.
    pub upstream: Option<Upstream>,
    /// Whom backends' certificates may come from, besides the public authorities.
    pub upstream_cas: Option<TrustedCas>,
    /// What is said of a request's way so far.
    pub forwarded: Forwarded,
    /// What happens to a request that no route takes.
    pub unmatched: Unmatched,
    /// Where locks live.
    pub store: StoreConfig,
    /// The routes, in the order in which they are tried.
    pub routes: Vec<Route>,
    /// How much is taken in.
    pub limits: Limits,
    /// How long is waited.
    pub timeouts: Timeouts,
    /// What operators ask.
    pub admin: AdminConfig,
    /// What is told.
    pub log: LogConfig,
    /// Where spans are sent.
    pub tracing: TracingConfig,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is.
    pub place: UpstreamAddress,
    /// What it speaks.
    pub protocol: UpstreamProtocol,
    /// Its host and port as written, for a request that names no host.
    pub authority: Authority,
}

/// What a client says of a request's way before this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// It is believed, and this hop added to it.
    Trust,
    /// It is replaced by what this proxy sees.
    Replace,
}

/// What happens to a request that no route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// It passes through, without a lock.
    Pass,
    /// It is answered 404.
    Reject,
}

/// Where locks live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The kind of store, and its address.
    pub place: StoreAddress,
    /// How long one command may take.
    pub timeout: Duration,
    /// What happens to a turn while the store gives no answer.
    pub on_error: OnError,
    /// How long a lost instance's sessions stay blocked; `None`: until their leases end.
    pub crash_recovery: Option<Duration>,
    /// The instance's name, which no two live processes share; `None`: one is made up.
    pub instance: Option<Box<str>>,
}

/// What happens to a turn while the store gives no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is refused (503).
    Reject,
    /// It passes without a lock, and is marked.
    Allow,
    /// It takes this replica's own lock, and is marked.
    Local,
}

/// The kinds of store.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// In this process.
    Memory,
    /// In Redis, at this URL, which may hold a password.
    Redis(String),
}

/// One entry of `[[routes]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, for logs and for the person who looks at a lock.
    pub name: Box<str>,
    /// The hosts it is for; empty: any.
    pub hosts: Vec<HostPattern>,
    /// The methods it is for; empty: any.
    pub methods: Vec<Method>,
    /// The path it is for; `None`: any.
    pub path: Option<PathPattern>,
    /// Headers that must be there, each with one of the values; no values: with any.
    pub headers: Vec<(HeaderName, Vec<HeaderValue>)>,
    /// What must be in the request besides, all of it.
    pub when: Vec<Condition>,
    /// All that `when` and the turn's alternatives may ask of the body.
    pub wanted: TemplateFields,
    /// Its backend; `None`: the one of all others.
    pub upstream: Option<Upstream>,
    /// How its turns are locked; `None`: they pass freely.
    pub turn: Option<TurnConfig>,
}

/// A value in the request that a route asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Where it stands.
    pub template: Template,
    /// What it may be. Never empty.
    pub values: Vec<Box<str>>,
}

/// How the turns of a route are locked.
#[derive(Clone, Debug)]
pub struct TurnConfig {
    /// Where the session's id comes from, in the order in which it is tried.
    pub session_id: Vec<Template>,
    /// Where the user's id comes from, likewise.
    pub user_id: Vec<Template>,
    /// The lock.
    pub lock: LockConfig,
    /// What a refused caller gets.
    pub busy: BusyConfig,
}

/// `[lock]`, and what a route says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct LockConfig {
    /// The lock's name.
    pub key: KeyTemplate,
    /// The lease.
    pub lock_timeout: Duration,
    /// How often it is extended; `None`: never.
    pub extend_lock_interval: Option<Duration>,
    /// Whether a turn that finds its session busy waits in line.
    pub blocking: bool,
    /// How long it waits at most; `None`: as long as its client stays.
    pub blocking_timeout: Option<Duration>,
    /// Whether it replaces the running turn and all older waiters.
    pub interrupt: bool,
    /// How many may wait for one session.
    pub max_waiters: u32,
    /// What happens to the backend's request when the client is gone.
    pub on_disconnect: OnDisconnect,
    /// What happens to a turn whose lease is lost.
    pub on_lost: OnLost,
    /// How long the lock is held on to after the answer's end or its cancelling.
    pub settle: Duration,
    /// Whether turns are kept apart; otherwise overlaps are only counted and logged.
    pub enforce: bool,
    /// What happens to a request whose session is in none of the alternatives.
    pub on_missing: OnMissing,
    /// What happens to a body that should hold the session and can't be read.
    pub on_malformed: OnMalformed,
}

/// What happens to the backend's request when the client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is cancelled.
    Cancel,
    /// Its answer is read to the end.
    Continue,
}

/// What happens to a turn whose lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    /// It is aborted.
    Abort,
    /// It goes on, unprotected.
    Continue,
}

/// What happens to a request whose session can't be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// It passes through, without a lock.
    Pass,
    /// It is answered 400.
    Reject,
}

/// What happens to a body that should hold the session and can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMalformed {
    /// It passes through, without a lock.
    Pass,
    /// It does if it clearly isn't JSON. What begins as JSON, or can't be decoded, is answered 400:
    /// a backend could read it all the same.
    PassNonJson,
    /// It is answered 400.
    Reject,
}

/// What a refused caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyConfig {
    /// The status. 200 only with [`BusyFormat::JsonRpc`], and then for every refusal of the route.
    pub status: StatusCode,
    /// How the body is built, of every answer that the proxy makes up on the route.
    pub format: BusyFormat,
    /// The sentence for the user: one for each language, or a single one under `""`.
    pub error: BTreeMap<String, String>,
    /// When to come again, in seconds.
    pub retry_after: u64,
}

/// How the body of an answer is built that the proxy makes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BusyFormat {
    /// The contract's four members.
    #[default]
    Json,
    /// An error object with the request's id (JSON-RPC 2.0 §5).
    JsonRpc,
    /// An error object as OpenAI's API has it.
    OpenAi,
}

/// How much is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest body that is read for its session, in bytes.
    pub max_body: usize,
    /// How much of all bodies together is held on to, in bytes.
    pub max_buffered: usize,
    /// The largest announced body that is read before its turn asks for the lock, in bytes; 0: none is.
    pub read_before_lock: usize,
    /// The least rate of a body that takes memory or holds a lock, in bytes per second; 0: any.
    pub min_body_rate: usize,
    /// The longest id, in bytes.
    pub max_id_bytes: usize,
    /// Clients' connections, of all workers together.
    pub max_connections: usize,
}

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the head of a request to come.
    pub request_head: Duration,
    /// Without a byte of a request's body.
    pub request_body: Duration,
    /// For the whole body of a request that takes memory or holds a lock.
    pub request_body_total: Duration,
    /// For a connection to the backend.
    pub connect: Duration,
    /// For the head of its answer.
    pub response_head: Duration,
    /// While neither side moves a byte of an answer.
    pub idle_stream: Duration,
    /// For turns to end when the process is told to stop.
    pub drain: Duration,
}

/// Where collectors listen for what isn't spoken here (OpenTelemetry Protocol, "OTLP/gRPC Default Port").
const GRPC_PORT: u16 = 4317;
const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than any turn; what is meant to be longer is a mistake in the unit.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

// === impl Config ===

impl Config {
    /// Reads the file, and this process' environment over it. Gives the file's text, too.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn load(path: &Path) -> Result<(Self, String), Problems> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| Problems {
            file: file.clone(),
            problems: vec![Problem {
                key: String::new(),
                value: None,
                place: None,
                why: format!("can't be read: {error}; name another file with --config"),
            }],
        })?;
        let config = Self::read_over_environment(&file, &text)?;
        Ok((config, text))
    }

    /// Reads the text of a file, and this process' environment over it.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn read_over_environment(file: &str, text: &str) -> Result<Self, Problems> {
        Self::read(file, text, &reader::environment())
    }

    /// Reads the text of a file, and `variables` over it.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn read(file: &str, text: &str, variables: &Variables) -> Result<Self, Problems> {
        let (report, entries) = reader::parse(file, text, variables)?;
        let config = read(report.root(entries));
        match report.problems() {
            None => Ok(config),
            Some(problems) => Err(problems),
        }
    }

    /// The options that `new` would change and a running process can't: sockets are bound, locks
    /// are in the store, and the log has its form.
    pub fn fixed(&self, new: &Self) -> Vec<Problem> {
        // What stands in them may change at any time.
        let files = |config: &Self| {
            let tls = config.tls.as_ref();
            tls.map(|tls| (tls.cert_file.clone(), tls.key_file.clone()))
        };
        let changed = [
            ("listen", self.listen != new.listen),
            ("tls", files(self) != files(new)),
            (
                "limits.max_connections",
                self.limits.max_connections != new.limits.max_connections,
            ),
            (
                "timeouts.request_head",
                self.timeouts.request_head != new.timeouts.request_head,
            ),
            ("store", self.store != new.store),
            ("admin", self.admin != new.admin),
            ("log.format", self.log.format != new.log.format),
            ("tracing", self.tracing != new.tracing),
        ];
        let changed = changed.into_iter().filter(|(_, is_changed)| *is_changed);
        let problems = changed.map(|(key, _)| Problem {
            key: key.to_owned(),
            value: None,
            place: None,
            why: "can't be changed while the process runs: restart it".to_owned(),
        });
        problems.collect()
    }

    /// How the keys of all locks are made.
    pub fn lock_keys(&self) -> impl Iterator<Item = &KeyTemplate> {
        let turns = self.routes.iter().filter_map(|route| route.turn.as_ref());
        turns.map(|turn| &turn.lock.key)
    }

    /// The longest time for which a lock is held on to when its turn is over.
    pub fn longest_settling(&self) -> Duration {
        let turns = self.routes.iter().filter_map(|route| route.turn.as_ref());
        turns.map(|turn| turn.lock.settle).max().unwrap_or_default()
    }

    /// Remarks on what is allowed and perhaps not meant.
    pub fn remarks(&self) -> Vec<&'static str> {
        let mut remarks = Vec::new();
        if self.store.place == StoreAddress::Memory {
            remarks.push("locks are in this process' memory: they protect one replica only; set store.url for more");
        }
        if self.admin.token_file.is_none() && !self.admin.listen.ip().to_canonical().is_loopback() {
            remarks.push("admin.listen can be reached from elsewhere and admin.token_file isn't set: only /livez, /readyz and /metrics are answered; set admin.token_file to see locks and to release them");
        }
        if !self.routes.iter().any(|route| route.turn.is_some()) {
            remarks.push("no route takes a lock: everything passes through");
        }
        if self
            .tracing
            .otlp
            .as_ref()
            .is_some_and(|to| to.port == GRPC_PORT)
        {
            remarks.push("tracing.otlp is spoken to in HTTP, and 4317 is the usual port of OTLP over gRPC: is it 4318?");
        }
        remarks
    }
}

/// Reads everything; where a value can't be used, its default stands in until the problems are told.
fn read(mut root: ConfigTable<'_>) -> Config {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 8080));
    let listen = root.or("listen", ListenAddress::Tcp(everywhere), |entry| {
        entry.parsed(ListenAddress::parse)
    });
    let mut table = root.table("tls");
    let tls = TlsConfig::read(&mut table);
    table.finish();
    let wrote_upstream = root.take("upstream");
    let names_upstream = wrote_upstream.is_some();
    let upstream = wrote_upstream.and_then(|entry| entry.parsed(Upstream::parse));
    let upstream_cas = root
        .take("upstream_ca_file")
        .and_then(|entry| entry.parsed(TrustedCas::read));
    let forwarded = root.or("forwarded", Forwarded::Trust, |entry| {
        entry.one_of(&[("trust", Forwarded::Trust), ("replace", Forwarded::Replace)])
    });
    let unmatched = root.or("unmatched", Unmatched::Pass, |entry| {
        entry.one_of(&[("pass", Unmatched::Pass), ("reject", Unmatched::Reject)])
    });

    let mut table = root.table("store");
    let store = StoreConfig::read(&mut table);
    table.finish();

    let mut defaults = root.table("lock");
    let lock = LockConfig::default().overlaid(&mut defaults);
    lock.check(&defaults, &store);

    let mut table = root.table("busy");
    let busy = BusyConfig::default().overlaid(&mut table);
    table.finish();

    let mut table = root.table("limits");
    let limits = Limits {
        max_buffered: table.or("max_buffered", 256 << 20, ConfigValue::size),
        max_body: table.or("max_body", 10 << 20, ConfigValue::size),
        read_before_lock: table.or("read_before_lock", 64 << 10, ConfigValue::size_or_zero),
        min_body_rate: table.or("min_body_rate", 240, ConfigValue::size_or_zero),
        max_id_bytes: table.or("max_id_bytes", 512, ConfigValue::size),
        max_connections: table.or("max_connections", 10_000, |entry| {
            // A connection is a file, of which no system has more by default.
            let count = entry.integer(1..=1 << 20)?;
            usize::try_from(count).ok()
        }),
    };
    if limits.max_buffered < limits.max_body {
        let why = format!(
            "must be at least max_body, which is {} bytes: a single body could not be read",
            limits.max_body
        );
        table.note("max_buffered", why);
    }
    table.finish();

    let mut table = root.table("timeouts");
    let mut timeout = |key, default, most| {
        table.or(key, Duration::from_secs(default), |entry| {
            entry.duration(MS..=most)
        })
    };
    let timeouts = Timeouts {
        request_head: timeout("request_head", 10, HOUR),
        request_body: timeout("request_body", 30, HOUR),
        request_body_total: timeout("request_body_total", 300, WEEK),
        connect: timeout("connect", 5, HOUR),
        response_head: timeout("response_head", 300, WEEK),
        idle_stream: timeout("idle_stream", 300, WEEK),
        drain: timeout("drain", 30, HOUR),
    };
    table.finish();

    let mut table = root.table("admin");
    let admin = AdminConfig::read(&mut table);
    if listen.is(admin.listen) {
        table.note(
            "listen",
            "is the address of `listen` too: each needs its own",
        );
    }
    table.finish();

    let mut told = root.table("log");
    let log = LogConfig::read(&mut told);

    let mut table = root.table("tracing");
    let tracing = TracingConfig::read(&mut table);
    table.finish();

    let entries = root
        .take("routes")
        .and_then(ConfigValue::list)
        .unwrap_or_default();
    let mut routes = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let tables = entry.table().map(presets::expand).unwrap_or_default();
        for mut table in tables {
            let route = Route::read(&mut table, index, &store, &lock, &busy);
            if routes
                .iter()
                .any(|earlier: &Route| earlier.name == route.name)
            {
                table.note(
                    "name",
                    format!("another route is called {:?} too", route.name),
                );
            }
            table.finish();
            routes.push(route);
        }
    }
    log.check(&told, &routes);
    told.finish();
    let settles = routes.iter().filter_map(|route| route.turn.as_ref());
    let settles = settles.map(|turn| turn.lock.settle).max();
    if let Some(settle) = settles.filter(|settle| *settle >= timeouts.idle_stream) {
        root.note(
            "timeouts.idle_stream",
            format!("must be longer than settle, which is {settle:?}: an answer's end is held back for so long"),
        );
    }
    let needs_upstream = unmatched == Unmatched::Pass
        || routes.is_empty()
        || routes.iter().any(|route| route.upstream.is_none());
    if needs_upstream && !names_upstream {
        root.note(
            "upstream",
            "missing: write the backend's URL, as \"http://127.0.0.1:8000\"",
        );
    }
    let is_tls = |upstream: &Option<Upstream>| {
        let protocol = upstream.as_ref().map(|upstream| &upstream.protocol);
        matches!(protocol, Some(UpstreamProtocol::Https(_)))
    };
    let uses_tls = is_tls(&upstream) || routes.iter().any(|route| is_tls(&route.upstream));
    if root.wrote("upstream_ca_file") && !uses_tls {
        root.note(
            "upstream_ca_file",
            "is for backends with TLS: write upstream = \"https://...\" too, or leave it out",
        );
    }
    // Defaults of waiting are for the routes that do.
    let waits = |route: &Route| route.turn.as_ref().is_some_and(|turn| turn.lock.blocking);
    if !lock.blocking && !routes.iter().any(waits) {
        lock.check_waiting(&defaults);
    }
    defaults.finish();
    root.finish();

    Config {
        listen,
        tls,
        upstream,
        upstream_cas,
        forwarded,
        unmatched,
        store,
        routes,
        limits,
        timeouts,
        admin,
        log,
        tracing,
    }
}
