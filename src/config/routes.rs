//! Reading of `[[routes]]`, and of `[lock]` and `[busy]`, which routes inherit and override.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::pattern::{HostPattern, PathPattern};
use super::reader::{ConfigTable, ConfigValue};
use super::{
    BusyConfig, BusyFormat, Condition, LockConfig, MS, OnDisconnect, OnLost, OnMalformed,
    OnMissing, Route, StoreConfig, TurnConfig, Upstream, WEEK,
};
use crate::key::{KeyTemplate, MAX_POINTERS, Source, Template, TemplateFields};

/// Shorter leases would be eaten up by their margin (see `lock::margin`) and a slow command.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_millis(200);

/// The keys of `[lock]`, which a route may override.
pub(super) const LOCK_KEYS: [&str; 13] = [
    "key",
    "lock_timeout",
    "blocking",
    "blocking_timeout",
    "extend_lock_interval",
    "interrupt",
    "max_waiters",
    "on_disconnect",
    "on_lost",
    "settle",
    "enforce",
    "on_missing",
    "on_malformed",
];

/// The longest line: one that is longer is a mistake, and each waiter costs the proxy memory.
pub(super) const LONGEST_LINE: u64 = 10_000;

/// The longest time to hold on after a turn: a process that stops has to wait for it, too.
pub(super) const LONGEST_SETTLING: Duration = Duration::from_secs(60);

// === impl Lock ===

impl Default for LockConfig {
    fn default() -> Self {
        Self {
            key: KeyTemplate::conventional(),
            lock_timeout: Duration::from_secs(300),
            extend_lock_interval: None,
            blocking: false,
            blocking_timeout: None,
            interrupt: false,
            max_waiters: 64,
            on_disconnect: OnDisconnect::Cancel,
            on_lost: OnLost::Abort,
            settle: Duration::ZERO,
            enforce: true,
            on_missing: OnMissing::Pass,
            on_malformed: OnMalformed::Reject,
        }
    }
}

impl LockConfig {
    /// These settings, with what the table says in place of them.
    pub(super) fn overlaid(self, table: &mut ConfigTable<'_>) -> Self {
        const ON_MISSING: [(&str, OnMissing); 2] =
            [("pass", OnMissing::Pass), ("reject", OnMissing::Reject)];
        Self {
            key: table.or("key", self.key, |entry| entry.parsed(KeyTemplate::parse)),
            lock_timeout: table.or("lock_timeout", self.lock_timeout, |entry| {
                entry.duration(SHORTEST_LEASE..=WEEK)
            }),
            extend_lock_interval: table
                .take("extend_lock_interval")
                .and_then(|entry| entry.duration(MS * 50..=WEEK))
                .or(self.extend_lock_interval),
            blocking: table.or("blocking", self.blocking, ConfigValue::boolean),
            blocking_timeout: table
                .take("blocking_timeout")
                .and_then(|entry| entry.duration(MS * 10..=WEEK))
                .or(self.blocking_timeout),
            interrupt: table.or("interrupt", self.interrupt, ConfigValue::boolean),
            max_waiters: table.or("max_waiters", self.max_waiters, |entry| {
                u32::try_from(entry.integer(1..=LONGEST_LINE)?).ok()
            }),
            on_disconnect: table.or("on_disconnect", self.on_disconnect, |entry| {
                entry.one_of(&[
                    ("cancel", OnDisconnect::Cancel),
                    ("continue", OnDisconnect::Continue),
                ])
            }),
            on_lost: table.or("on_lost", self.on_lost, |entry| {
                entry.one_of(&[("abort", OnLost::Abort), ("continue", OnLost::Continue)])
            }),
            settle: table.or("settle", self.settle, |entry| {
                entry.duration(Duration::ZERO..=LONGEST_SETTLING)
            }),
            enforce: table.or("enforce", self.enforce, ConfigValue::boolean),
            on_missing: table.or("on_missing", self.on_missing, |entry| {
                entry.one_of(&ON_MISSING)
            }),
            on_malformed: table.or("on_malformed", self.on_malformed, |entry| {
                entry.one_of(&[
                    ("pass", OnMalformed::Pass),
                    ("pass_non_json", OnMalformed::PassNonJson),
                    ("reject", OnMalformed::Reject),
                ])
            }),
        }
    }

    /// Notes settings of `table` about waiting where nobody waits, unless they are the defaults.
    pub(super) fn check_waiting(&self, table: &ConfigTable<'_>) {
        let default = Self::default();
        for (key, differs) in [
            (
                "blocking_timeout",
                self.blocking_timeout != default.blocking_timeout,
            ),
            ("interrupt", self.interrupt != default.interrupt),
            ("max_waiters", self.max_waiters != default.max_waiters),
        ] {
            if differs && table.wrote(key) {
                table.note(
                    key,
                    "is for turns that wait: write blocking = true too, or leave it out",
                );
            }
        }
    }

    /// Notes what contradicts itself.
    pub(super) fn check(&self, table: &ConfigTable<'_>, store: &StoreConfig) {
        let lease = self.lock_timeout;
        if self
            .extend_lock_interval
            .is_some_and(|interval| interval > lease / 2)
        {
            let why = format!(
                "must be at most half of lock_timeout, which is {lease:?}: an extension that fails needs time for another"
            );
            table.note("extend_lock_interval", why);
        }
        if store.timeout >= lease {
            let why = format!(
                "must be longer than store.timeout, which is {:?}: a lock could run out before it is known to be held",
                store.timeout
            );
            table.note("lock_timeout", why);
        }
        if self.settle >= lease {
            const KEY: &str = "settle";
            let (key, why) = match table.blamed(KEY, &["lock_timeout"]) {
                KEY => (
                    KEY,
                    format!(
                        "must be shorter than lock_timeout, which is {lease:?}: the lock runs out"
                    ),
                ),
                key => (
                    key,
                    format!(
                        "lock_timeout must be longer than settle, which the preset has as {:?}: the \
                         lock runs out",
                        self.settle
                    ),
                ),
            };
            table.note(key, why);
        }
        let interrupts = self.blocking && self.interrupt;
        if interrupts && self.on_disconnect == OnDisconnect::Continue {
            const KEY: &str = "on_disconnect";
            let (key, why) = match table.blamed(KEY, &["interrupt", "blocking"]) {
                KEY => (
                    KEY,
                    "contradicts interrupt = true: a turn is interrupted by leaving its backend, \
                     which then goes on working beside the next turn; leave one of them out",
                ),
                // The preset knows its backend.
                key => (
                    key,
                    "contradicts on_disconnect = \"continue\" of the preset: a turn is interrupted \
                     by leaving its backend, and this one then goes on working beside the next \
                     turn; write interrupt = false, or on_disconnect = \"cancel\" for one that \
                     doesn't",
                ),
            };
            table.note(key, why);
        }
    }
}

// === impl Busy ===

impl Default for BusyConfig {
    fn default() -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            format: BusyFormat::Json,
            error: BTreeMap::from([(String::new(), "AI 正在思考中，请稍后再试".into())]),
            retry_after: 1,
        }
    }
}

impl BusyConfig {
    pub(super) fn overlaid(self, table: &mut ConfigTable<'_>) -> Self {
        let format = table.or("format", self.format, |entry| {
            entry.one_of(&[
                ("json", BusyFormat::Json),
                ("json-rpc", BusyFormat::JsonRpc),
                ("openai", BusyFormat::OpenAi),
            ])
        });
        let may_be_ok = format == BusyFormat::JsonRpc;
        let status = table.or("status", self.status, |entry| {
            let status = match may_be_ok {
                // Clients that look into an answer for its error only if its status is good.
                true => entry.integer_where(
                    |status| status == 200 || (400..=599).contains(&status),
                    "write 200, or a whole number from 400 to 599",
                ),
                false => entry.integer(400..=599),
            };
            StatusCode::from_u16(u16::try_from(status?).ok()?).ok()
        });
        if status == StatusCode::OK && !may_be_ok {
            let why = "contradicts status = 200, which is for format = \"json-rpc\": write \
                       status = 429 beside it";
            table.note("format", why);
        }
        Self {
            status,
            format,
            error: table.or("error", self.error, |entry| {
                if entry.is_string() {
                    return Some(BTreeMap::from([(String::new(), entry.string()?)]));
                }
                let mut languages = entry.table()?;
                let texts = languages.drain().into_iter();
                let texts = texts
                    .map(|(language, entry)| match &*language {
                        "" => {
                            entry.wrong("this names no language: write en = \"...\"");
                            None
                        }
                        name => Some((name.to_lowercase(), entry.string()?)),
                    })
                    .collect::<Option<BTreeMap<_, _>>>()?;
                if texts.is_empty() {
                    languages.note(
                        "zh",
                        "an empty table says nothing: write { zh = \"...\", en = \"...\" }",
                    );
                    return None;
                }
                Some(texts)
            }),
            retry_after: table.or("retry_after", self.retry_after, |entry| {
                entry.integer(0..=86_400)
            }),
        }
    }
}

// === impl Route ===

impl Route {
    pub(super) fn read(
        table: &mut ConfigTable<'_>,
        index: usize,
        store: &StoreConfig,
        lock: &LockConfig,
        busy: &BusyConfig,
    ) -> Self {
        let name = table.take("name").and_then(|entry| entry.parsed(name));
        let path = table
            .take("path")
            .and_then(|entry| entry.parsed(PathPattern::parse));
        let hosts = parsed_list(table.take("host"), HostPattern::parse);
        let methods = table
            .take("methods")
            .and_then(ConfigValue::any_of)
            .unwrap_or_default();
        let methods = methods
            .into_iter()
            .filter_map(|entry| entry.parsed(method))
            .collect();
        let headers = table
            .take("headers")
            .and_then(ConfigValue::table)
            .map(headers)
            .unwrap_or_default();
        let when = table.take("when").and_then(ConfigValue::table);
        let when = when.map(|when| conditions(when, path.as_ref()));
        let when = when.unwrap_or_default();
        let upstream = table
            .take("upstream")
            .and_then(|entry| entry.parsed(Upstream::parse));
        let locked = table.or("lock", true, ConfigValue::boolean);
        let turn = if locked {
            TurnConfig::read(table, path.as_ref(), store, lock, busy)
        } else {
            for key in ["session_id", "user_id"]
                .into_iter()
                .chain(LOCK_KEYS)
                .chain(["busy"])
            {
                if table.take(key).is_some() {
                    table.note(key, "contradicts `lock = false`: leave one of them out");
                }
            }
            None
        };
        let ids = turn
            .iter()
            .flat_map(|turn| turn.session_id.iter().chain(&turn.user_id));
        let asked = when.iter().map(|condition| &condition.template);
        let wanted = TemplateFields::from_templates(asked.chain(ids));
        if wanted.pointers.len() > MAX_POINTERS {
            let key = if locked { "session_id" } else { "when" };
            table.note(
                key,
                format!("more than {MAX_POINTERS} members of the body: use fewer"),
            );
        }
        let name = name.unwrap_or_else(|| format!("route-{index}")).into();
        Self {
            name,
            hosts,
            methods,
            path,
            headers,
            when,
            wanted,
            upstream,
            turn,
        }
    }
}

impl TurnConfig {
    fn read(
        table: &mut ConfigTable<'_>,
        path: Option<&PathPattern>,
        store: &StoreConfig,
        lock: &LockConfig,
        busy: &BusyConfig,
    ) -> Option<Self> {
        let session_id = templates(table, "session_id", path).unwrap_or_else(|| {
            table.note(
                "session_id",
                "missing: write where the session stands, as [\"{body:/session_id}\"], or `lock = false`",
            );
            Vec::new()
        });
        let user_id = templates(table, "user_id", path)
            .unwrap_or_else(|| Template::parse("unknown").into_iter().collect());
        let lock = lock.clone().overlaid(table);
        if LOCK_KEYS.iter().any(|key| table.wrote(key)) {
            lock.check(table, store);
        }
        if !lock.blocking {
            lock.check_waiting(table);
        }
        let busy = match table.take("busy").and_then(ConfigValue::table) {
            Some(mut own) => {
                let busy = busy.clone().overlaid(&mut own);
                own.finish();
                busy
            }
            None => busy.clone(),
        };
        Some(Self {
            session_id,
            user_id,
            lock,
            busy,
        })
    }
}

/// The alternatives under `key`; `None` if there is no such key.
fn templates(
    table: &mut ConfigTable<'_>,
    key: &'static str,
    path: Option<&PathPattern>,
) -> Option<Vec<Template>> {
    let Some(items) = table.take(key)?.list() else {
        return Some(Vec::new());
    };
    if items.is_empty() {
        table.note(
            key,
            "an empty list never resolves: write a source, as [\"{header:x-session-id}\"]",
        );
    }
    let last = items.len().saturating_sub(1);
    let parsed = items.into_iter().enumerate().filter_map(|(index, item)| {
        item.parsed(|text| match template(text, path) {
            Ok(constant) if index < last && constant.sources().next().is_none() => Err(
                "always resolves, so that nothing behind it is ever tried: write it last".into(),
            ),
            parsed => parsed,
        })
    });
    Some(parsed.collect())
}

/// A template whose sources are all to be had on the route's path.
fn template(text: &str, path: Option<&PathPattern>) -> Result<Template, String> {
    let template = Template::parse(text).map_err(|error| error.to_string())?;
    let unknown = template
        .sources()
        .find_map(|source| unknown_segment(source, path));
    if let Some(name) = unknown {
        return Err(match filtered(name) {
            Some(moved) => {
                format!("in `{{path:{name}}}` the filter stands behind the source: write {moved}")
            }
            None => format!(
                "`{{path:{name}}}` is no segment of the route's path: write `{{{name}}}` in it"
            ),
        });
    }
    Ok(template)
}

/// A segment's name with a filter in it, as `uuid:thread`, written as it should be: `{uuid:path:thread}`.
fn filtered(name: &str) -> Option<String> {
    let (filter, name) = name.rsplit_once(':')?;
    let moved = format!("{{{filter}:path:{name}}}");
    let template = Template::parse(&moved).ok()?;
    let is_path = template
        .sources()
        .any(|source| matches!(source, Source::Path(_)));
    is_path.then_some(moved)
}

/// What `when` asks for.
fn conditions(mut table: ConfigTable<'_>, path: Option<&PathPattern>) -> Vec<Condition> {
    let entries = table.drain();
    if entries.is_empty() {
        table.note_whole("an empty table asks for nothing: leave it out");
    }
    let mut conditions = Vec::new();
    for (key, entry) in entries {
        let template = template(&key, path).and_then(comparing);
        let template = template.map_err(|why| table.note(&key, why)).ok();
        let items = entry.one_or_any_of().unwrap_or_default().into_iter();
        let values: Vec<_> = items.filter_map(value).collect();
        if let Some(template) = template {
            conditions.push(Condition { template, values });
        }
    }
    conditions
}

/// A template that can be compared with a condition's values: it gives what is there, as it is.
fn comparing(template: Template) -> Result<Template, String> {
    if template.sources().next().is_none() {
        return Err("names no source: write one, as \"{body:/method}\"".into());
    }
    let filtered = template.placeholders().find(|one| !one.is_plain());
    let filtered = filtered.map(|one| one.source.to_string());
    filtered.map_or(Ok(template), |source| {
        Err(format!(
            "filters are for ids, and a condition compares what is there: write {{{source}}}"
        ))
    })
}

/// What a condition's value may be.
fn value(entry: ConfigValue<'_>) -> Option<Box<str>> {
    let text = entry.scalar()?;
    if text.is_empty() {
        entry.wrong("what is empty counts as missing, and never matches: write a value");
        return None;
    }
    Some(text.into())
}

/// A route's name. What no route takes is counted under an empty one.
fn name(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("a name that is empty: write one, or leave it out"),
        text => Ok(text.to_owned()),
    }
}

/// The name of a path segment that the route's path doesn't have.
fn unknown_segment<'s>(source: &'s Source, path: Option<&PathPattern>) -> Option<&'s str> {
    match source {
        Source::Path(name) => {
            let known = path.is_some_and(|path| path.names().any(|known| known == &**name));
            (!known).then_some(name)
        }
        _ => None,
    }
}

fn parsed_list<T, E: ToString>(
    entry: Option<ConfigValue<'_>>,
    parse: fn(&str) -> Result<T, E>,
) -> Vec<T> {
    let items = entry
        .and_then(ConfigValue::one_or_any_of)
        .unwrap_or_default();
    items
        .into_iter()
        .filter_map(|item| item.parsed(parse))
        .collect()
}

fn method(text: &str) -> Result<Method, &'static str> {
    const WANTED: &str = "write a method in capital letters, as \"POST\"";
    match Method::from_bytes(text.as_bytes()) {
        // Methods are case-sensitive (RFC 9110 §9.1): `post` would never match.
        Ok(method) if !text.bytes().any(|byte| byte.is_ascii_lowercase()) => Ok(method),
        _ => Err(WANTED),
    }
}

fn headers(mut table: ConfigTable<'_>) -> Vec<(HeaderName, Vec<HeaderValue>)> {
    let mut headers = Vec::new();
    for (name, entry) in table.drain() {
        let Ok(header) = HeaderName::try_from(&name) else {
            table.note(
                &name,
                "this can't be the name of a header: write letters, digits and `-`",
            );
            continue;
        };
        let values = parsed_list(Some(entry), |value| {
            HeaderValue::from_str(value).map_err(|_| "this can't stand in a header")
        });
        // `*` is any value, as long as the header is there.
        let any = values.iter().any(|value| value == "*");
        headers.push((header, if any { Vec::new() } else { values }));
    }
    // By name as it counts, whatever the case in which it was written.
    headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
    headers
}
