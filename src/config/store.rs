//! `[store]`: where locks live.
//!
//! Invariant: a password is never shown; the URL contains the one of `password_file`. Options that are
//! of no use with locks in memory are refused beside them. Connecting is left to `crate::lock`.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::Authority;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::option::{Options, options};
use super::reader::{ConfigTable, ConfigValue};
use super::value_kind::{
    DurationIn, HOUR, Kind, MS, Masked, Optional, SECOND, Text, text, word, words,
};
use crate::secret;

options! {
    /// Where locks live.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct StoreConfig in "store" {
        /// The store: `memory:` for the memory of this process, or Redis at
        /// `redis://[user[:password]@]host:port/database`.
        url: StoreAddress = StoreAddress::Memory, Masked(STORE_URL),
            example "\"redis://agent@redis.example:6379/1\"", Restart;
        /// A file that holds the password for Redis, in place of one in `url`.
        password_file: Option<Box<str>> = None, Optional(text("path", path)),
            unset "none", example "\"/run/secrets/redis\"", Restart;
        /// The longest time for one command. While Redis doesn't answer, the end of a response is
        /// delayed by this time at most.
        timeout: Duration = SECOND, DurationIn(MS..=SECOND * 60), example "\"250ms\"", Restart;
        /// What happens to a new turn while Redis doesn't answer: `reject` refuses it with 503;
        /// `allow` runs it without a lock; `local` runs it under a lock in this replica's memory. The
        /// log marks the turns of the last two.
        on_error: OnError = OnError::Reject, word(), example "\"local\"", Restart;
        /// How long the sessions of a crashed replica stay locked. At least three times `timeout`; 0:
        /// until their `lock_timeout` ends.
        crash_recovery: Option<Duration> = Some(SECOND * 30), ZeroOrDuration(Duration::ZERO..=HOUR),
            example "\"1m\"", Restart;
        /// The name of this process. No two running processes may have the same name. A process with
        /// the name of an earlier one frees the locks that the earlier one held.
        instance: Option<Box<str>> = None, Optional(text("name", instance_name)),
            unset "host name and digits", example "\"agent-0\"", Restart;
        /// What the names of all keys and channels in Redis begin with, except for the locks
        /// themselves. Environments that share a Redis need different values.
        prefix: Option<Box<str>> = None, Optional(text("prefix", key_prefix)),
            unset "none", example "\"staging:\"", Restart;
        /// How long the store may fail until `/readyz` says that this replica is not ready. A process
        /// that has just started is not ready until it could take a lock. 0: at once.
        unready_after: Duration = SECOND * 60, DurationIn(Duration::ZERO..=HOUR),
            example "\"10s\"", Restart;
    }
}

words! {
    /// What happens to a new turn while the store doesn't answer.
    pub enum OnError {
        /// The turn is refused with 503.
        Reject = "reject",
        /// The turn runs without a lock, and the log marks it.
        Allow = "allow",
        /// The turn runs under a lock in this replica's memory, and the log marks it.
        Local = "local",
    }
}

/// The kind of store, and its address.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// The memory of this process.
    Memory,
    /// Redis at this URL, which may hold a password.
    Redis(String),
}

/// A duration; 0 is `None`.
struct ZeroOrDuration(RangeInclusive<Duration>);

const STORE_URL: Text<StoreAddress, &'static str> = Text {
    what: "URL",
    parse: StoreAddress::parse,
    show: StoreAddress::masked,
};

/// The shortest `crash_recovery`. With a shorter one, the margin (see `deadline::margin`) would leave an
/// instance little or no time, and its turns would wait for a heartbeat that lasts.
const SHORTEST_RECOVERY: Duration = Duration::from_millis(200);

/// The options that locks in memory have no use for.
const FOR_REDIS: [&str; 4] = ["on_error", "crash_recovery", "prefix", "unready_after"];

impl Kind for ZeroOrDuration {
    type Value = Option<Duration>;

    fn read(&self, entry: ConfigValue<'_>) -> Option<Self::Value> {
        let duration = entry.duration(self.0.clone())?;
        Some((!duration.is_zero()).then_some(duration))
    }

    fn show(&self, value: &Self::Value) -> Option<String> {
        DurationIn(self.0.clone()).show(&value.unwrap_or_default())
    }

    fn describe(&self) -> String {
        DurationIn(self.0.clone()).describe()
    }
}

// === impl StoreConfig ===

impl StoreConfig {
    /// Adds the password to the URL, and reports what contradicts itself.
    pub(super) fn check(&mut self, table: &ConfigTable<'_>) {
        if let Some(path) = self.password_file.clone() {
            self.add_password(&path, table);
        }
        if table.is_wrong("url") {
            // Whether the other options suit the store is unknown.
            return;
        }
        match (&self.url, self.crash_recovery) {
            (StoreAddress::Memory, _) => {
                let why = "is used only with Redis: locks in memory are always there, and end with the \
                           process; set store.url, or leave it out";
                let written = FOR_REDIS
                    .into_iter()
                    .filter(|key| self.differs_from_default(key));
                written.for_each(|key| table.note(key, why));
            }
            (StoreAddress::Redis(_), Some(recovery)) if recovery < self.timeout * 3 => {
                let why = format!(
                    "must be at least three times store.timeout, which is {:?}, or 0: an instance \
                     extends its key every third of crash_recovery, and a command may take store.timeout",
                    self.timeout
                );
                table.note("crash_recovery", why);
            }
            (StoreAddress::Redis(_), Some(recovery)) if recovery < SHORTEST_RECOVERY => {
                let why = format!(
                    "must be at least {SHORTEST_RECOVERY:?}, or 0: an instance stops its turns a little \
                     earlier"
                );
                table.note("crash_recovery", why);
            }
            (StoreAddress::Redis(_), _) => {}
        }
    }

    /// What the names of keys and channels begin with; empty for no prefix.
    pub fn key_prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or_default()
    }

    fn add_password(&mut self, path: &str, table: &ConfigTable<'_>) {
        let password = match secret::read_file(path.as_ref()).map(String::from_utf8) {
            Ok(Ok(password)) => password,
            Ok(Err(_)) => return table.note("password_file", "the file is not UTF-8"),
            Err(error) => return table.note("password_file", error.to_string()),
        };
        // An editor ends a file with a line break; no password ends with one.
        let password = password.trim_end_matches(['\r', '\n']);
        if !table.wrote("url") {
            let why = "is used only with url: write url = \"redis://host:6379/0\" too";
            table.note("password_file", why);
        } else if !table.is_wrong("url") {
            match self.url.with_password(password) {
                Ok(url) => self.url = url,
                Err(why) => table.note("url", why),
            }
        }
    }

    /// The options and their values as TOML, without those that have no use.
    pub(super) fn show_used(&self) -> Vec<(&'static str, String)> {
        let mut shown = self.show();
        // The password is in the URL.
        shown.retain(|(key, _)| *key != "password_file");
        if self.url == StoreAddress::Memory {
            shown.retain(|(key, _)| !FOR_REDIS.contains(key));
        }
        shown
    }
}

fn path(text: &str) -> Result<Box<str>, std::convert::Infallible> {
    Ok(text.into())
}

/// A name that can be part of a Redis key and of a channel, as the name of a Kubernetes object.
fn instance_name(name: &str) -> Result<Box<str>, &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match (1..=253).contains(&name.len()) && name.bytes().all(fits) {
        true => Ok(name.into()),
        false => Err("write a name of at most 253 letters, digits, `-`, `.` and `_`"),
    }
}

/// What keys may begin with. Braces would make another hash tag of the key, and `*` or `?` another
/// pattern of an ACL rule.
fn key_prefix(prefix: &str) -> Result<Box<str>, &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    match (1..=100).contains(&prefix.len()) && prefix.bytes().all(fits) {
        true => Ok(prefix.into()),
        false => Err("write a prefix of at most 100 letters, digits, `-`, `.`, `_` and `:`"),
    }
}

// === impl StoreAddress ===

impl StoreAddress {
    fn parse(url: &str) -> Result<Self, &'static str> {
        const WANTED: &str =
            "write \"memory:\" or \"redis://host:6379/0\"; other stores are not supported";
        if url == "memory:" {
            return Ok(Self::Memory);
        }
        let rest = url.strip_prefix("redis://").ok_or(WANTED)?;
        let (_, address) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (host, database) = address.split_once('/').unwrap_or((address, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let authority = host.parse::<Authority>();
        let is_host = authority.is_ok_and(|host| !host.host().is_empty());
        let port = host.rsplit_once(':').map(|(_, port)| port);
        let is_port = port.is_none_or(|port| port.ends_with(']') || port.parse::<u16>().is_ok());
        if !is_host || !is_port || !is_number(database) {
            return Err(WANTED);
        }
        Ok(Self::Redis(url.into()))
    }

    /// The address with this password in its URL.
    fn with_password(&self, password: &str) -> Result<Self, &'static str> {
        let Self::Redis(url) = self else {
            return Err("\"memory:\" takes no password: leave password_file out");
        };
        let rest = url.strip_prefix("redis://").unwrap_or(url);
        let (credentials, address) = rest.rsplit_once('@').unwrap_or(("", rest));
        if credentials.contains(':') {
            return Err("the password is in the URL and in password_file: leave one of them out");
        }
        let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
        Ok(Self::Redis(format!(
            "redis://{credentials}:{password}@{address}"
        )))
    }

    /// The URL, with `***` in place of its password.
    pub fn masked(&self) -> String {
        let Self::Redis(url) = self else {
            return "memory:".into();
        };
        let masked = url.rsplit_once('@').and_then(|(credentials, rest)| {
            let (user, _) = credentials.strip_prefix("redis://")?.split_once(':')?;
            Some(format!("redis://{user}:***@{rest}"))
        });
        masked.unwrap_or_else(|| url.clone())
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}
