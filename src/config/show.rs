//! A configuration as TOML again: what the file and the environment come to, secrets masked.

use std::fmt;
use std::time::Duration;

use super::{
    BusyFormat, Config, Forwarded, LockConfig, LogFormat, LogIds, OnDisconnect, OnError, OnLost,
    OnMalformed, OnMissing, Route, StoreAddress, TurnConfig, Unmatched,
};

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "listen = {}", quoted(&self.listen))?;
        if let Some(upstream) = &self.upstream {
            writeln!(f, "upstream = {}", quoted(upstream))?;
        }
        if let Some(cas) = &self.upstream_cas {
            writeln!(f, "upstream_ca_file = {}", quoted(&cas.file))?;
        }
        let forwarded = match self.forwarded {
            Forwarded::Trust => "trust",
            Forwarded::Replace => "replace",
        };
        writeln!(f, "forwarded = {}", quoted(forwarded))?;
        let unmatched = match self.unmatched {
            Unmatched::Pass => "pass",
            Unmatched::Reject => "reject",
        };
        writeln!(f, "unmatched = {}", quoted(unmatched))?;
        if let Some(tls) = &self.tls {
            writeln!(
                f,
                "\n[tls]\ncert_file = {}",
                quoted(tls.cert_file.display())
            )?;
            writeln!(f, "key_file = {}", quoted(tls.key_file.display()))?;
        }
        writeln!(f, "\n[store]\nurl = {}", quoted(self.store.place.masked()))?;
        writeln!(f, "timeout = {}", duration(self.store.timeout))?;
        if self.store.place != StoreAddress::Memory {
            let on_error = match self.store.on_error {
                OnError::Reject => "reject",
                OnError::Allow => "allow",
                OnError::Local => "local",
            };
            writeln!(f, "on_error = {}", quoted(on_error))?;
            let crash_recovery = self.store.crash_recovery.unwrap_or_default();
            writeln!(f, "crash_recovery = {}", duration(crash_recovery))?;
        }
        if let Some(instance) = &self.store.instance {
            writeln!(f, "instance = {}", quoted(instance))?;
        }
        writeln!(f, "\n[limits]\nmax_body = {}", self.limits.max_body)?;
        writeln!(f, "max_buffered = {}", self.limits.max_buffered)?;
        writeln!(f, "read_before_lock = {}", self.limits.read_before_lock)?;
        writeln!(f, "min_body_rate = {}", self.limits.min_body_rate)?;
        writeln!(f, "max_id_bytes = {}", self.limits.max_id_bytes)?;
        writeln!(f, "max_connections = {}", self.limits.max_connections)?;
        let request_head = duration(self.timeouts.request_head);
        writeln!(f, "\n[timeouts]\nrequest_head = {request_head}")?;
        let request_body = duration(self.timeouts.request_body);
        writeln!(f, "request_body = {request_body}")?;
        let request_body_total = duration(self.timeouts.request_body_total);
        writeln!(f, "request_body_total = {request_body_total}")?;
        writeln!(f, "connect = {}", duration(self.timeouts.connect))?;
        writeln!(
            f,
            "response_head = {}",
            duration(self.timeouts.response_head)
        )?;
        writeln!(f, "idle_stream = {}", duration(self.timeouts.idle_stream))?;
        writeln!(f, "drain = {}", duration(self.timeouts.drain))?;
        writeln!(f, "\n[admin]\nlisten = {}", quoted(self.admin.listen))?;
        if let Some(file) = &self.admin.token_file {
            writeln!(f, "token_file = {}", quoted(file.path().display()))?;
        }
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        writeln!(f, "\n[log]\nformat = {}", quoted(format))?;
        writeln!(
            f,
            "level = {}",
            quoted(self.log.level.to_string().to_lowercase())
        )?;
        let ids = match self.log.ids {
            LogIds::Plain => "plain",
            LogIds::Hash => "hash",
        };
        writeln!(f, "ids = {}", quoted(ids))?;
        if let Some(otlp) = &self.tracing.otlp {
            writeln!(f, "\n[tracing]\notlp = {}", quoted(otlp))?;
            if let Some(cas) = &self.tracing.cas {
                writeln!(f, "ca_file = {}", quoted(&cas.file))?;
            }
            writeln!(f, "service = {}", quoted(&self.tracing.service))?;
        }
        self.routes
            .iter()
            .try_for_each(|route| write!(f, "\n[[routes]]\n{route}"))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name = {}", quoted(&self.name))?;
        if !self.hosts.is_empty() {
            writeln!(f, "host = {}", list(&self.hosts))?;
        }
        if !self.methods.is_empty() {
            writeln!(f, "methods = {}", list(&self.methods))?;
        }
        if let Some(path) = &self.path {
            writeln!(f, "path = {}", quoted(path))?;
        }
        if !self.headers.is_empty() {
            let one = |(name, values): &(http::HeaderName, Vec<http::HeaderValue>)| {
                let values: Vec<_> = values
                    .iter()
                    .map(|value| String::from_utf8_lossy(value.as_bytes()))
                    .collect();
                let values = if values.is_empty() {
                    quoted("*")
                } else {
                    list(&values)
                };
                format!("{} = {values}", quoted(name))
            };
            let headers: Vec<_> = self.headers.iter().map(one).collect();
            writeln!(f, "headers = {{ {} }}", headers.join(", "))?;
        }
        if !self.when.is_empty() {
            let one = |condition: &super::Condition| {
                let (template, values) = (&condition.template, &condition.values);
                format!("{} = {}", quoted(template), list(values))
            };
            let when: Vec<_> = self.when.iter().map(one).collect();
            writeln!(f, "when = {{ {} }}", when.join(", "))?;
        }
        if let Some(upstream) = &self.upstream {
            writeln!(f, "upstream = {}", quoted(upstream))?;
        }
        match &self.turn {
            None => writeln!(f, "lock = false"),
            Some(turn) => turn.fmt(f),
        }
    }
}

impl fmt::Display for TurnConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "session_id = {}", list(&self.session_id))?;
        writeln!(f, "user_id = {}", list(&self.user_id))?;
        self.lock.fmt(f)?;
        let error = match self.busy.error.get("") {
            Some(text) => quoted(text),
            None => {
                let texts = self.busy.error.iter();
                let texts: Vec<_> = texts
                    .map(|(language, text)| format!("{language} = {}", quoted(text)))
                    .collect();
                format!("{{ {} }}", texts.join(", "))
            }
        };
        let format = match self.busy.format {
            BusyFormat::Json => "json",
            BusyFormat::JsonRpc => "json-rpc",
            BusyFormat::OpenAi => "openai",
        };
        writeln!(
            f,
            "busy = {{ status = {}, format = {}, error = {error}, retry_after = {} }}",
            self.busy.status.as_u16(),
            quoted(format),
            self.busy.retry_after
        )
    }
}

impl fmt::Display for LockConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_missing = |policy| match policy {
            OnMissing::Pass => quoted("pass"),
            OnMissing::Reject => quoted("reject"),
        };
        writeln!(f, "key = {}", quoted(&self.key))?;
        writeln!(f, "lock_timeout = {}", duration(self.lock_timeout))?;
        writeln!(f, "blocking = {}", self.blocking)?;
        if self.blocking {
            if let Some(timeout) = self.blocking_timeout {
                writeln!(f, "blocking_timeout = {}", duration(timeout))?;
            }
            writeln!(f, "interrupt = {}", self.interrupt)?;
            writeln!(f, "max_waiters = {}", self.max_waiters)?;
        }
        if let Some(interval) = self.extend_lock_interval {
            writeln!(f, "extend_lock_interval = {}", duration(interval))?;
        }
        let on_lost = match self.on_lost {
            OnLost::Abort => "abort",
            OnLost::Continue => "continue",
        };
        let on_disconnect = match self.on_disconnect {
            OnDisconnect::Cancel => "cancel",
            OnDisconnect::Continue => "continue",
        };
        writeln!(f, "on_disconnect = {}", quoted(on_disconnect))?;
        writeln!(f, "on_lost = {}", quoted(on_lost))?;
        writeln!(f, "settle = {}", duration(self.settle))?;
        writeln!(f, "enforce = {}", self.enforce)?;
        writeln!(f, "on_missing = {}", on_missing(self.on_missing))?;
        let on_malformed = match self.on_malformed {
            OnMalformed::Pass => "pass",
            OnMalformed::PassNonJson => "pass_non_json",
            OnMalformed::Reject => "reject",
        };
        writeln!(f, "on_malformed = {}", quoted(on_malformed))
    }
}

impl StoreAddress {
    /// The URL, its password replaced by asterisks.
    pub fn masked(&self) -> String {
        match self {
            Self::Memory => "memory:".into(),
            Self::Redis(url) => match url.rsplit_once('@') {
                Some((credentials, rest)) => {
                    let own = credentials.strip_prefix("redis://").unwrap_or_default();
                    match own.split_once(':') {
                        Some((user, _)) => format!("redis://{user}:***@{rest}"),
                        None => url.clone(),
                    }
                }
                None => url.clone(),
            },
        }
    }
}

fn quoted(value: impl ToString) -> String {
    toml_edit::Value::from(value.to_string()).to_string()
}

fn list(values: &[impl ToString]) -> String {
    format!(
        "[{}]",
        values.iter().map(quoted_ref).collect::<Vec<_>>().join(", ")
    )
}

fn quoted_ref(value: &impl ToString) -> String {
    quoted(value.to_string())
}

fn duration(duration: Duration) -> String {
    quoted(humantime::format_duration(duration))
}
