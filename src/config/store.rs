//! `[store]`: where locks live.
//!
//! Invariant: a password is never shown. Options that are of no use with locks in memory are refused beside
//! them, and those of TLS beside a Redis without it. Connecting is left to `crate::lock`, which also says what
//! a URL of Redis means, and reads the files again for each connection, and `password_file` when it changes.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::ServerName;

use super::listen;
use super::option::{Options, options};
use super::reader::ConfigTable;
use super::upstream::TrustedCas;
use super::value_kind::{
    DurationIn, HOUR, IntegerIn, MS, Masked, Optional, PATH, SECOND, Text, ZeroOrDuration, text,
    word, words,
};
use crate::lock::{RedisTls, RedisUrl, RedisUrlError};
use crate::secret::SecretFile;

options! {
    /// Where locks live.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct StoreConfig in "store" {
        /// The store: `memory:` for the memory of this process, or Redis at
        /// `redis://[user[:password]@]host:port/database`, behind Sentinels at
        /// `redis-sentinel://[user[:password]@]host:port,host:port/MASTER/database`, as a cluster at
        /// `redis-cluster://[user[:password]@]host:port,host:port`, each of them with TLS as `rediss...`, or
        /// at a Unix socket at `unix://[user[:password]@]/run/redis.sock?db=database`.
        url: StoreAddress = StoreAddress::Memory, Masked(STORE_URL),
            example "\"redis://agent@redis.example:6379/1\"", Restart;
        /// A file that holds the password for Redis, in place of one in `url`. It is read again for each
        /// connection and when it changes, so a new password needs no restart.
        password_file: Option<SecretFile> = None, Optional(text("path", path)),
            unset "none", example "\"/run/secrets/redis\"", Restart;
        /// The user that logs in to the Sentinels with `sentinel_password_file`.
        sentinel_user: Option<Box<str>> = None, Optional(text("name", sentinel_user)),
            unset "`default`", example "\"agent\"", Restart;
        /// A file that holds the password for the Sentinels of `url`. The user and the password in `url` and
        /// `password_file` are for the servers that the Sentinels name, and never sent to a Sentinel. It is
        /// read again as `password_file` is.
        sentinel_password_file: Option<SecretFile> = None, Optional(text("path", path)),
            unset "no login to the Sentinels", example "\"/run/secrets/sentinel\"", Restart;
        /// A PEM file of certificate authorities that are trusted for Redis with TLS (`rediss...`), in addition
        /// to the public ones. This file and the next two are read again for each connection.
        ca_file: Option<TrustedCas> = None, Optional(text("path", TrustedCas::read)),
            unset "only the public ones", example "\"/etc/seriatim/redis-ca.pem\"", Restart;
        /// A PEM file with the certificate that Redis gets if it requires client certificates, followed
        /// by its intermediate certificates.
        cert_file: Option<PathBuf> = None, Optional(PATH),
            unset "no client certificate", example "\"/etc/seriatim/redis-cert.pem\"", Restart;
        /// A PEM file with the private key of `cert_file`.
        key_file: Option<PathBuf> = None, Optional(PATH),
            unset "no client certificate", example "\"/etc/seriatim/redis-key.pem\"", Restart;
        /// The name that the certificate of Redis has to be for, if it is not for the host in `url`.
        server_name: Option<ServerName<'static>> = None, Optional(SERVER_NAME),
            unset "the host in `url`", example "\"redis.example\"", Restart;
        /// The longest time for one command. While Redis doesn't answer, the end of a response is
        /// delayed by this time at most, and a short response as a whole.
        timeout: Duration = SECOND, DurationIn(MS..=SECOND * 60), example "\"250ms\"", Restart;
        /// What happens to a new turn while Redis doesn't answer: `reject` refuses it with 503;
        /// `allow` runs it without a lock; `local` runs it under a lock in this replica's memory. The
        /// log marks the turns of the last two.
        on_error: OnError = OnError::Reject, word(), example "\"local\"", Restart;
        /// How long the sessions of a crashed replica stay locked. At least three times `timeout`; 0:
        /// until their `lock_timeout` ends.
        crash_recovery: Option<Duration> = Some(SECOND * 30),
            ZeroOrDuration {
                range: SHORTEST_RECOVERY..=HOUR,
                why: "an instance stops its turns a little earlier",
            },
            example "\"1m\"", Restart;
        /// How long no turn begins after another Redis server has answered in place of the one before: after a
        /// failover or a restart. In this time, replicas stop turns whose locks the new server does not have.
        /// 0: turns begin at once, and may overlap with such turns.
        failover_grace: Duration = SECOND, DurationIn(Duration::ZERO..=SECOND * 60),
            example "\"3s\"", Restart;
        /// How many replicas of Redis must confirm a lock before its turn begins. If they don't within
        /// `timeout`, the turn is refused with 503.
        wait_replicas: u32 = 0, IntegerIn(0..=16), example "1", Restart;
        /// The name of this process. No two running processes may have the same name. A process with
        /// the name of an earlier one frees the locks that the earlier one held.
        instance: Option<Box<str>> = None, Optional(text("name", instance_name)),
            unset "host name and digits", example "\"agent-0\"", Restart;
        /// What the names of all keys and channels in Redis begin with, except for the locks
        /// themselves. Environments that share a Redis need different values.
        prefix: Option<Box<str>> = None, Optional(text("prefix", key_prefix)),
            unset "none", example "\"staging:\"", Restart;
        /// How long the store may fail until `/readyz` says that this replica is not ready. A process
        /// that has just started is not ready until it could take a lock. 0: at once. Only with
        /// `on_error = "reject"`.
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
    /// Redis at this URL.
    Redis(RedisUrl),
}

const STORE_URL: Text<StoreAddress, RedisUrlError> = Text {
    what: "URL",
    parse: StoreAddress::parse,
    show: ToString::to_string,
};

const SERVER_NAME: Text<ServerName<'static>, &'static str> = Text {
    what: "name",
    parse: |name| {
        ServerName::try_from(name.to_owned())
            .map_err(|_| "write a name or an address as the certificate has it, without a port")
    },
    show: |name| name.to_str().into_owned(),
};

/// The options that only a Redis with TLS has a use for.
const FOR_TLS: [&str; 4] = ["ca_file", "cert_file", "key_file", "server_name"];

/// The options that only a Redis behind Sentinels has a use for.
const FOR_SENTINELS: [&str; 2] = ["sentinel_user", "sentinel_password_file"];

/// The shortest `crash_recovery`. With a shorter one, the margin (see `deadline::margin`) would leave an
/// instance little or no time, and its turns would wait for a heartbeat that lasts.
const SHORTEST_RECOVERY: Duration = Duration::from_millis(200);

/// The options that locks in memory have no use for.
const FOR_REDIS: [&str; 6] = [
    "on_error",
    "crash_recovery",
    "failover_grace",
    "wait_replicas",
    "prefix",
    "unready_after",
];

// === impl StoreConfig ===

impl StoreConfig {
    /// Reports what contradicts itself, and a password's file that can't be used.
    pub(super) fn check(&self, table: &ConfigTable<'_>) {
        // A wrong URL was not meant to be "memory:", so the rules of Redis hold for the other options.
        let is_memory = self.url == StoreAddress::Memory && !table.is_wrong("url");
        if let Some(file) = &self.password_file {
            self.check_password(file, table);
        }
        self.check_sentinels(table);
        self.check_tls(table);
        match self.crash_recovery {
            _ if is_memory => {
                let written = FOR_REDIS
                    .into_iter()
                    .filter(|key| self.differs_from_default(key));
                for key in written {
                    let why = format!(
                        "is used only with Redis, and locks are in memory: write url = \
                         \"redis://host:6379/0\" into [store], or leave {key} out"
                    );
                    table.note(key, why);
                }
            }
            Some(recovery) if recovery < self.timeout * 3 => {
                let why = format!(
                    "must be at least three times store.timeout, which is {:?}, or 0: an instance \
                     extends its key every third of crash_recovery, and a command may take store.timeout",
                    self.timeout
                );
                table.note("crash_recovery", why);
            }
            _ => {}
        }
        let key = "unready_after";
        if !is_memory && self.on_error != OnError::Reject && self.differs_from_default(key) {
            let why = "is used only with on_error = \"reject\": with another one, this replica is ready \
                       without Redis; leave it out";
            table.note(key, why);
        }
    }

    /// What the names of keys and channels begin with; empty for no prefix.
    pub fn key_prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or_default()
    }

    fn check_password(&self, file: &SecretFile, table: &ConfigTable<'_>) {
        if let Err(error) = file.read_password() {
            return table.note("password_file", error.to_string());
        }
        match &self.url {
            _ if !table.wrote("url") => {
                let why = "is used only with url: write url = \"redis://host:6379/0\" too";
                table.note("password_file", why);
            }
            _ if table.is_wrong("url") => {}
            StoreAddress::Memory => {
                let why = "\"memory:\" takes no password: leave password_file out";
                table.note("url", why);
            }
            StoreAddress::Redis(url) if url.has_password() => {
                let why = "the password is in the URL and in password_file: leave one of them out";
                table.note("url", why);
            }
            StoreAddress::Redis(_) => {}
        }
    }

    fn check_sentinels(&self, table: &ConfigTable<'_>) {
        if let Some(Err(error)) = self
            .sentinel_password_file
            .as_ref()
            .map(SecretFile::read_password)
        {
            table.note("sentinel_password_file", error.to_string());
        }
        let has_sentinels = matches!(&self.url, StoreAddress::Redis(url) if url.has_sentinels());
        if !has_sentinels && !table.is_wrong("url") {
            for key in FOR_SENTINELS.into_iter().filter(|key| table.wrote(key)) {
                let why = format!(
                    "is used only with Sentinels: write url = \"redis-sentinel://host:26379/MASTER\" into [store], \
                     or leave {key} out"
                );
                table.note(key, why);
            }
        } else if table.wrote("sentinel_user") && !table.wrote("sentinel_password_file") {
            let why = "is used only with sentinel_password_file: write the file with the password of this user, or \
                       leave sentinel_user out";
            table.note("sentinel_user", why);
        }
    }

    fn check_tls(&self, table: &ConfigTable<'_>) {
        let has_tls = matches!(&self.url, StoreAddress::Redis(url) if url.has_tls());
        if !has_tls && !table.is_wrong("url") {
            for key in FOR_TLS.into_iter().filter(|key| table.wrote(key)) {
                let why = format!(
                    "is used only with a Redis that has TLS: write url = \"rediss://host:6379/0\" into \
                     [store], or leave {key} out"
                );
                table.note(key, why);
            }
            return;
        }
        let (cert, key) = (self.cert_file.as_deref(), self.key_file.as_deref());
        // Each connection reads the files again.
        let _ = listen::certificate(cert, key, table);
    }

    /// What connections to Redis with TLS trust and present.
    pub fn tls(&self) -> RedisTls {
        RedisTls {
            ca_file: self.ca_file.as_ref().map(|cas| PathBuf::from(&*cas.file)),
            certificate: self.cert_file.clone().zip(self.key_file.clone()),
            server_name: self.server_name.clone(),
        }
    }

    /// The options and their values as TOML, without those that have no use.
    pub(super) fn show_used(&self) -> Vec<(&'static str, String)> {
        let mut shown = self.show();
        if self.url == StoreAddress::Memory {
            shown.retain(|(key, _)| !FOR_REDIS.contains(key));
        }
        if self.on_error != OnError::Reject {
            shown.retain(|(key, _)| *key != "unready_after");
        }
        shown
    }
}

fn path(text: &str) -> Result<SecretFile, std::convert::Infallible> {
    Ok(SecretFile::new(text))
}

/// The name of a user of a Sentinel's ACL.
fn sentinel_user(name: &str) -> Result<Box<str>, &'static str> {
    match !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        true => Ok(name.into()),
        false => Err("write the name of a user without white space, or leave it out for `default`"),
    }
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
        false => Err(
            "write a prefix of 1 to 100 letters, digits, `-`, `.`, `_` and `:`, or leave it out for no prefix",
        ),
    }
}

// === impl StoreAddress ===

impl StoreAddress {
    fn parse(url: &str) -> Result<Self, RedisUrlError> {
        match url {
            "memory:" => Ok(Self::Memory),
            url => RedisUrl::parse(url).map(Self::Redis),
        }
    }
}

impl fmt::Display for StoreAddress {
    /// The URL, with `***` in place of its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
