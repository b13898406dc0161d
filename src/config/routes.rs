//! `[[routes]]`: which requests a route takes, and how it locks their turns.
//!
//! Invariant: each route has its own name, and an option beside `lock = false` that needs a lock is
//! refused. Matching a request is left to `proxy::route`.

use http::{HeaderName, HeaderValue, Method};

use super::busy::BusyConfig;
use super::lock::{LockConfig, SessionAction};
use super::option::{Change, DefaultValue, Options, Setting, options};
use super::pattern::{HostPattern, PathPattern};
use super::presets::{RouteEntry, RouteTable};
use super::problem::nearest;
use super::reader::{ConfigTable, ConfigValue};
use super::store::StoreConfig;
use super::templates::{self, Condition, Conditions, Templates};
use super::upstream::{Upstream, UpstreamHost};
use super::value_kind::{
    AnyOf, Boolean, Kind, Optional, inline_table, quoted, quoted_list, text, word,
};
use crate::key::{MAX_POINTERS, Template, TemplateFields};

options! {
    /// A route: which requests it takes, its backend, and how it locks their turns.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Route in "routes" {
        /// The name of the route in logs and metrics, and beside its locks. Each route has its own.
        name: Box<str> = "".into(), text("text", route_name),
            unset "its number, as `route-0`", example "\"chat\"", Live;
        /// The hosts that the route takes, without ports. `*.example.com` is any host below the domain.
        host: Vec<HostPattern> = Vec::new(),
            AnyOf { what: "hosts", takes_one: true, parse: HostPattern::parse },
            unset "any", example "[\"agent.example.com\", \"*.example.com\"]", Live;
        /// The methods that the route takes. On a route that locks, `GET` includes `HEAD`, and the
        /// method in an override header counts, too.
        methods: Vec<Method> = Vec::new(),
            AnyOf { what: "methods", takes_one: false, parse: method },
            unset "any", example "[\"POST\"]", Live;
        /// The paths that the route takes: literals, `{name}` for one segment, and one `{*rest}` for any
        /// number of segments, or none. A route that locks takes every spelling: another case, encoding,
        /// dots, doubled slashes, a host in front (`//x/chat`), a format at the end (`/chat.json`).
        path: Option<PathPattern> = None, Optional(text("path pattern", PathPattern::parse)),
            unset "any", example "\"/threads/{thread}/runs/{*rest}\"", Live;
        /// The headers that a request must have, each with one of the values; `*` is any value.
        headers: Vec<(HeaderName, Vec<HeaderValue>)> = Vec::new(), Headers, unset "any",
            example "{ x-kind = \"chat\", x-other = [\"a\", \"b\"], x-any = \"*\" }", Live;
        /// The values that a request must have, from any source. All conditions have to match.
        when: Vec<Condition> = Vec::new(), Conditions, unset "nothing",
            example "{ \"{body:/method}\" = [\"message/send\", \"message/stream\"] }", Live;
        /// The backend of the route.
        upstream: Option<Upstream> = None, Optional(text("URL", Upstream::parse)),
            unset "`upstream` of the top level", example "\"http://127.0.0.1:8001\"", Live;
        /// The header `host` of the route's requests for the backend: `client` or `upstream`.
        upstream_host: Option<UpstreamHost> = None, Optional(word()),
            unset "`upstream_host` of the top level", example "\"upstream\"", Live;
    }
    beside {
        /// All fields of a body that `when` and the ids of the turn may need.
        wanted: TemplateFields = TemplateFields::default();
        /// How turns are locked; `None`: requests are forwarded without a lock.
        turn: Option<TurnConfig> = None;
    }
}

options! {
    /// How the turns of a route are locked.
    #[derive(Clone, Debug, PartialEq)]
    pub struct TurnConfig in "routes" {
        /// Where the session's id comes from: the first template with a value is used. A filter gives
        /// all spellings of an id one lock, as `{uuid:path:thread}`.
        session_id: Vec<Template> = Vec::new(), Templates, unset "required with a lock",
            example "[\"{body:/session_id}\", \"session_{hash:body:/input}\"]", Live;
        /// Where the user's id comes from: the first template with a value is used. By default all
        /// users are the user `unknown`.
        user_id: Vec<Template> = Template::parse("unknown").into_iter().collect(), Templates,
            example "[\"{header:x-user}\", \"unknown\"]", Live;
        /// Whether the requests of the route read the answer of their session's turn: the one that runs, from its
        /// first byte and then live, or the last that is kept; 204 if there is none. They take no lock, and no
        /// backend gets them. The session's turns need a route with `replay = true`.
        attach: bool = false, Boolean, example "true", Live;
        /// Whether requests that attach also get an answer that has ended, for as long as it is kept. With false,
        /// they get 204 then: for a client that reads a session's history before it attaches. Used with `attach`.
        attach_ended: bool = true, Boolean, example "false", Live;
        /// Whether the requests of the route stop the turn that runs in their session, on any replica. The turn's
        /// request to its backend is cancelled. They take no lock, and no backend gets them.
        stop: bool = false, Boolean, example "true", Live;
        /// Where the id comes from by which a repeat of a turn is recognised, so that the backend runs the turn once:
        /// the first template with a value is used. A turn without a value is never a repeat. The body is read
        /// before the lock is taken.
        once: Vec<Template> = Vec::new(), Templates, unset "no turn is recognised",
            example "[\"{header:idempotency-key}\"]", Live;
    }
    beside {
        /// The route's options of `[lock]`.
        lock: LockConfig = LockConfig::default();
        /// The response to a request whose session is busy.
        busy: BusyConfig = BusyConfig::default();
    }
}

/// What a route takes from other sections.
pub(super) struct Inherited<'c> {
    /// The options of `[store]`.
    pub(super) store: &'c StoreConfig,
    /// The options of `[lock]`, which a route may override.
    pub(super) lock: &'c LockConfig,
    /// The options of `[busy]`, which a route may override.
    pub(super) busy: &'c BusyConfig,
}

/// A table of headers and their values.
struct Headers;

/// The methods that a misspelt one may be meant for.
const USUAL_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Other methods that are in use (IANA, "HTTP Method Registry"), and one of caches.
const OTHER_METHODS: [&str; 34] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "PRI",
];

/// The descriptions of all options of `[[routes]]` but those that override `[lock]`.
pub(super) fn settings() -> Vec<Setting> {
    let mut settings = Route::settings();
    let entry = RouteEntry::settings();
    let (preset, lock) = entry.split_at(2);
    settings.splice(1..1, preset.iter().cloned());
    settings.extend_from_slice(lock);
    settings.extend(TurnConfig::settings());
    settings.push(Setting {
        key: "busy",
        value: "table of the options of `busy`".into(),
        default: DefaultValue::Text("those of `busy`"),
        example: "{ status = 409 }",
        change: Change::Live,
        what: "The response to a request whose session is busy. Its options override those of `busy`.",
    });
    settings
}

// === impl Route ===

impl Route {
    /// Reads a route. `index` is the number of its entry, for a route without a name.
    pub(super) fn read_from(
        entry: &mut RouteTable<'_>,
        index: usize,
        from: &Inherited<'_>,
    ) -> Self {
        let mut route = Self::default();
        route.read(&mut entry.table);
        if route.name.is_empty() {
            route.name = format!("route-{index}").into();
        }
        warn_of_methods(&entry.table, &route.methods);
        if entry.locks {
            route.turn = Some(TurnConfig::read_from(entry, from));
        } else {
            refuse_lock_options(&mut entry.table);
        }
        let table = &entry.table;
        let turn = route.turn.as_ref();
        if entry.is_complete && !table.is_wrong("path") {
            let path = route.path.as_ref();
            templates::check_conditions(table, &route.when, path);
            if let Some(turn) = turn {
                templates::check_segments(table, "session_id", &turn.session_id, path);
                templates::check_segments(table, "user_id", &turn.user_id, path);
                templates::check_segments(table, "once", &turn.once, path);
            }
        }
        let ids = turn.into_iter();
        let ids = ids.flat_map(|turn| {
            turn.session_id
                .iter()
                .chain(&turn.user_id)
                .chain(&turn.once)
        });
        let conditions = route.when.iter().map(|condition| &condition.template);
        route.wanted = TemplateFields::from_templates(conditions.chain(ids));
        if route.wanted.pointers.len() > MAX_POINTERS {
            let key = if entry.locks { "session_id" } else { "when" };
            let why =
                format!("the route needs more than {MAX_POINTERS} members of the body: use fewer");
            table.note(key, why);
        }
        route
    }
}

impl TurnConfig {
    /// What the requests of the route do.
    pub fn action(&self) -> SessionAction {
        match (self.attach, self.stop) {
            (true, _) => SessionAction::Attach,
            (false, true) => SessionAction::Stop,
            (false, false) => SessionAction::Turn,
        }
    }

    fn read_from(entry: &mut RouteTable<'_>, from: &Inherited<'_>) -> Self {
        let mut turn = Self::default();
        let table = &mut entry.table;
        turn.read(table);
        if entry.is_complete && !table.wrote("session_id") {
            table.note(
                "session_id",
                "missing: write the source of the session's id, as [\"{body:/session_id}\"], or \
                 `lock = false`",
            );
        }
        turn.lock = from.lock.clone().overlaid(table);
        if LockConfig::keys().iter().any(|key| table.wrote(key)) {
            turn.lock.check(table, from.store.timeout);
        }
        if !turn.lock.options.blocking {
            turn.lock.check_waiting(table);
        }
        turn.lock.check_queue_events(table);
        turn.check_ids(table);
        turn.check_action(table);
        turn.check_once(table);
        turn.busy = from.busy.clone();
        if let Some(mut busy) = table.take("busy").and_then(ConfigValue::table) {
            turn.busy.read(&mut busy);
            turn.busy.check(&busy);
            busy.finish();
        }
        turn
    }

    /// Whether the route uses this option of `[lock]`.
    pub(super) fn uses(&self, key: &str) -> bool {
        self.action().uses(key)
    }

    /// Reports options of turns on a route whose requests are none.
    fn check_action(&mut self, table: &ConfigTable<'_>) {
        if !self.attach && table.wrote("attach_ended") && !self.attach_ended {
            let why = "is used only with attach = true: write attach = true too, or leave it out";
            table.note("attach_ended", why);
        }
        let own = match self.action() {
            SessionAction::Turn => return,
            SessionAction::Attach => "attach = true",
            SessionAction::Stop => "stop = true",
        };
        if self.attach && self.stop {
            let why = "contradicts attach = true: write two routes, one for each";
            table.note("stop", why);
        }
        for key in LockConfig::keys() {
            if table.wrote(key) && !self.uses(key) {
                let why = format!(
                    "contradicts {own}, whose requests take no lock: leave one of them out"
                );
                table.note(key, why);
            }
        }
        // What `[lock]` says of turns doesn't concern them.
        self.lock.replay = false;
        if !self.attach {
            self.lock.keep_alive = None;
        }
    }

    /// Reports users that the lock's key leaves out, and warns about a session that is the same for all.
    fn check_ids(&self, table: &ConfigTable<'_>) {
        let key = &self.lock.key;
        // A preset's user is used with another key, and its user can't edit it.
        let is_own = table.wrote("user_id") && table.blamed("user_id", &[]) == "user_id";
        if is_own && !key.names_user() && self.differs_from_default("user_id") {
            let why = format!(
                "is used only with {{user_id}} in key, which is {}: write {{user_id}} into key too, or \
                 leave user_id out",
                quoted(key)
            );
            table.note("user_id", why);
        }
        let is_per_user = key.names_user() && !self.user_id.iter().all(templates::is_constant);
        let index = self.session_id.len().wrapping_sub(1);
        let last = self.session_id.last();
        if is_per_user || !last.is_some_and(templates::is_constant) || table.is_wrong("session_id")
        {
            return;
        }
        let why = match index {
            0 => {
                "is the same for every request, so all requests of the route share one lock: write where \
                 the id comes from, as \"{body:/session_id}\", unless that is what you want"
            }
            _ => {
                "is the same for all requests without an id, so they share one lock: leave it out, and \
                 on_missing says what happens to them, unless that is what you want"
            }
        };
        table.warn_item("session_id", index, why);
    }

    /// Whether the route may give a repeat the answer of a turn that runs.
    pub(super) fn may_join(&self) -> bool {
        self.lock.replay && !self.once.is_empty()
    }

    /// Reports options for repeats that have no use, and repeats that can't be told from other turns.
    fn check_once(&mut self, table: &ConfigTable<'_>) {
        if !self.may_join() && self.action() == SessionAction::Turn {
            self.lock.check_on_repeat(table);
        }
        if self.once.is_empty() {
            if !table.wrote("once") {
                self.lock.check_once_for(table);
            }
            return;
        }
        let constant = self.once.iter().position(templates::is_constant);
        if let Some(index) = constant.filter(|_| !table.is_wrong("once")) {
            let why = "is the same for every request, so every turn of a session would be a repeat of its first: \
                       leave it out; a turn without a value is never a repeat";
            table.note_item("once", index, why);
        }
        if !self.lock.options.enforce {
            // A preset's user can't edit the preset's templates.
            if table.blamed("once", &[]) == "once" {
                let why = "contradicts enforce = false, with which no turn is refused: leave one of them out";
                table.note("once", why);
            }
            self.once.clear();
        }
    }
}

/// Warns about methods that nobody uses and that look like a misspelt one.
fn warn_of_methods(table: &ConfigTable<'_>, methods: &[Method]) {
    if table.is_wrong("methods") {
        return;
    }
    for (index, method) in methods.iter().enumerate() {
        let method = method.as_str();
        let is_known = USUAL_METHODS.contains(&method) || OTHER_METHODS.contains(&method);
        if !is_known && let Some(meant) = nearest(method, USUAL_METHODS) {
            let why = format!("is not a known method; did you mean {meant:?}?");
            table.warn_item("methods", index, why);
        }
    }
}

/// Reports the options that a route without a lock has no use for.
fn refuse_lock_options(table: &mut ConfigTable<'_>) {
    let own = TurnConfig::settings();
    let own = own.iter().map(|setting| setting.key);
    for key in own.chain(LockConfig::keys()).chain(["busy"]) {
        if table.take(key).is_some() {
            table.note(key, "contradicts `lock = false`: leave one of them out");
        }
    }
}

/// A route's name. Metrics count requests that no route takes under an empty name.
fn route_name(text: &str) -> Result<Box<str>, &'static str> {
    match text {
        "" => Err("the name is empty: write one, or leave it out"),
        text => Ok(text.into()),
    }
}

fn method(text: &str) -> Result<Method, &'static str> {
    const WANTED: &str = "write a method in capital letters, as \"POST\"";
    match Method::from_bytes(text.as_bytes()) {
        // Methods are case-sensitive (RFC 9110 §9.1): `post` would never match.
        Ok(method) if !text.bytes().any(|byte| byte.is_ascii_lowercase()) => Ok(method),
        _ => Err(WANTED),
    }
}

fn header_value(text: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_str(text)
        .map_err(|_| "can't be the value of a header: write text without control characters")
}

impl Kind for Headers {
    type Value = Vec<(HeaderName, Vec<HeaderValue>)>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value> {
        let mut headers = Vec::new();
        for (name, entry) in entry.table()?.drain() {
            let Ok(header) = HeaderName::try_from(&name) else {
                entry.wrong("is not a header name: write letters, digits and `-`");
                continue;
            };
            let values = entry.one_or_any_of().unwrap_or_default().into_iter();
            let values: Vec<_> = values
                .filter_map(|value| value.parsed(header_value))
                .collect();
            // `*` is any value, as long as the header is there.
            let any = values.iter().any(|value| value == "*");
            headers.push((header, if any { Vec::new() } else { values }));
        }
        // By the name in lower case, whatever the user wrote.
        headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Some(headers)
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        let one = |(name, values): &(HeaderName, Vec<HeaderValue>)| {
            let texts = values
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()));
            let values = match values.is_empty() {
                true => quoted("*"),
                false => quoted_list(texts),
            };
            (quoted(name), values)
        };
        (!value.is_empty()).then(|| inline_table(value.iter().map(one)))
    }

    fn describe(&self) -> String {
        "table of headers and their values".into()
    }
}
