//! The URL of a Redis: `redis://[user[:password]@]host[:port][/database]`, `rediss://` in the same form for
//! TLS, or `unix://[user[:password]@]/path[?db=database]` for a Unix socket.
//!
//! Invariant: there is one reading of such a URL. `seriatim check` and every connection use this one. Neither
//! an error nor `Debug` nor `Display` shows the password.

use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use thiserror::Error;
use tokio_rustls::rustls::pki_types::ServerName;

/// Where Redis is, and who logs in.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// The URL as written, with `***` in place of its password.
    shown: String,
    pub(super) topology: RedisTopology,
    pub(super) database: i64,
    /// `None`: the user `default`.
    pub(super) user: Option<String>,
    /// `None`: no password, or one that is elsewhere.
    pub(super) password: Option<String>,
}

/// How the servers of a Redis are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RedisTopology {
    /// One server.
    Single(RedisEndpoint),
    /// The master that these Sentinels name.
    Sentinel {
        sentinels: Vec<RedisEndpoint>,
        /// The name of the master in the Sentinels' configuration.
        master: String,
    },
    /// The nodes of a Redis Cluster, of which these are some.
    Cluster(Vec<RedisEndpoint>),
}

/// What a connection to Redis connects to. A host is a name or an address, without brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum RedisEndpoint {
    /// TCP without TLS.
    Tcp { host: String, port: u16 },
    /// TLS over TCP. `name` is the host as a certificate names it.
    Tls {
        host: String,
        port: u16,
        name: ServerName<'static>,
    },
    /// The path of a Unix socket.
    Socket(PathBuf),
}

/// Why a text is not the URL of a Redis. The message contains nothing of the text but its scheme and one
/// character.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RedisUrlError {
    /// The text is neither `memory:` nor the URL of a Redis.
    #[error(
        "write \"memory:\", \"redis://host:6379/0\", \"rediss://host:6379/0\" for TLS, or \
         \"unix:///run/redis.sock\"; other stores are not supported"
    )]
    Invalid,
    /// What follows the user and the password is not a host.
    #[error(
        "has no valid host: write a name or an address, as \"{0}host:6379/0\", and an IPv6 address in \
         brackets"
    )]
    Host(&'static str),
    /// What follows the host is not a port.
    #[error(
        "the port must be a number from 0 to 65535: write it after the host, as \"{0}host:6379/0\""
    )]
    Port(&'static str),
    /// What follows the slash is not the number of a database.
    #[error(
        "the database must be a number without a sign: write it after the slash, as \"{0}host:6379/0\""
    )]
    Database(&'static str),
    /// There are options behind the database.
    #[error(
        "can't have options: write the URL without the `{1}` and what follows, as \"{0}host:6379/0\""
    )]
    Options(&'static str, char),
    /// A `unix://` URL has no absolute path.
    #[error("write the absolute path of a socket, as \"unix:///run/redis.sock\"")]
    SocketPath,
    /// The path is longer than the address of a socket.
    #[error("the path of a socket has at most 107 bytes: write a shorter one")]
    LongPath,
    /// What follows the path of a Unix socket is not the number of a database.
    #[error(
        "only the database may follow the path of a socket, as \"unix:///run/redis.sock?db=1\"; write the \
         user and the password before it, as \"unix://user:password@/run/redis.sock\""
    )]
    SocketOptions,
    /// It has a control character, such as a line break.
    #[error("has a line break or another control character: write the URL in one line, without it")]
    Control,
    /// The user or the password has a character that would end the host in a URL (RFC 3986 §3.2).
    #[error(
        "the user or the password has the character `{character}`: write `{encoded}` in its place, or leave \
         the password out and set password_file"
    )]
    Reserved {
        /// The character.
        character: char,
        /// How to write it.
        encoded: &'static str,
    },
    /// The user or the password has percent-encoded bytes that are no text.
    #[error(
        "the user or the password is not UTF-8 when its percent-encoding is decoded: write it in UTF-8"
    )]
    NotText,
}

/// How the URL of a Redis without TLS begins.
const TCP: &str = "redis://";

/// How the URL of a Redis with TLS begins.
const TLS: &str = "rediss://";

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, one of them for the zero at the end.
const LONGEST_PATH: usize = 107;

/// The port of a URL that names none.
const PORT: u16 = 6379;

/// The characters that end the host of a URL, and their percent-encoding.
const RESERVED: [(char, &str); 3] = [('/', "%2F"), ('?', "%3F"), ('#', "%23")];

// === impl RedisUrl ===

impl RedisUrl {
    /// Reads a URL. Everything before the last `@` of a URL with a host, and before the last `@/` of a socket's
    /// URL, is the user and the password, which may be percent-encoded.
    ///
    /// # Errors
    /// When the text can't be read as the URL of a Redis. The error doesn't contain the password.
    pub fn parse(text: &str) -> Result<Self, RedisUrlError> {
        if text.contains(char::is_control) {
            return Err(RedisUrlError::Control);
        }
        if let Some(rest) = text.strip_prefix("unix:") {
            return Self::socket(rest);
        }
        let scheme = [TCP, TLS].into_iter().find(|one| text.starts_with(one));
        let scheme = scheme.ok_or(RedisUrlError::Invalid)?;
        let rest = &text[scheme.len()..];
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, rest),
        };
        if let Some(options) = address.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(RedisUrlError::Options(scheme, options));
        }
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let (host, port) = host_and_port(authority, scheme)?;
        let endpoint = match scheme {
            TLS => RedisEndpoint::Tls {
                name: ServerName::try_from(host.clone())
                    .map_err(|_| RedisUrlError::Host(scheme))?,
                host,
                port,
            },
            _ => RedisEndpoint::Tcp { host, port },
        };
        let database = match database {
            "" => 0,
            number => digits(number).ok_or(RedisUrlError::Database(scheme))?,
        };
        Self::new(scheme, credentials, address, endpoint, database)
    }

    /// Reads what follows `unix:`.
    fn socket(rest: &str) -> Result<Self, RedisUrlError> {
        let (credentials, address) = match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => (None, path),
            Some(rest) => {
                let at = rest.rfind("@/").ok_or(RedisUrlError::SocketPath)?;
                (Some(&rest[..at]), &rest[at + 1..])
            }
            None => (None, rest),
        };
        if address.contains('#') {
            return Err(RedisUrlError::SocketOptions);
        }
        let (path, database) = match address.split_once('?') {
            None => (address, 0),
            Some((path, options)) => {
                let number = options.strip_prefix("db=").and_then(digits);
                (path, number.ok_or(RedisUrlError::SocketOptions)?)
            }
        };
        let path: Vec<u8> = percent_decode_str(path).collect();
        if !path.starts_with(b"/") || path.ends_with(b"/") {
            return Err(RedisUrlError::SocketPath);
        }
        if path.len() > LONGEST_PATH {
            return Err(RedisUrlError::LongPath);
        }
        if path.iter().any(u8::is_ascii_control) {
            return Err(RedisUrlError::Control);
        }
        let endpoint = RedisEndpoint::Socket(OsString::from_vec(path).into());
        Self::new("unix://", credentials, address, endpoint, database)
    }

    /// A URL from its parts as written. `credentials` are the user and the password.
    fn new(
        scheme: &str,
        credentials: Option<&str>,
        address: &str,
        endpoint: RedisEndpoint,
        database: i64,
    ) -> Result<Self, RedisUrlError> {
        let login = credentials.unwrap_or_default();
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let mask = if login.contains(':') { ":***" } else { "" };
        let shown = credentials.map(|_| format!("{user}{mask}@"));
        Ok(Self {
            user: decoded(user)?,
            password: decoded(password)?,
            shown: format!("{scheme}{}{address}", shown.unwrap_or_default()),
            topology: RedisTopology::Single(endpoint),
            database,
        })
    }

    /// Whether connections use TLS.
    pub fn has_tls(&self) -> bool {
        match &self.topology {
            RedisTopology::Single(endpoint) => endpoint.has_tls(),
            RedisTopology::Sentinel { sentinels, .. } => {
                sentinels.iter().any(RedisEndpoint::has_tls)
            }
            RedisTopology::Cluster(nodes) => nodes.iter().any(RedisEndpoint::has_tls),
        }
    }

    /// The server and the database, without the user and the password, for the log. The label of a Redis without
    /// TLS has no scheme.
    pub(super) fn label(&self) -> String {
        match &self.topology {
            RedisTopology::Single(endpoint) => endpoint.label(self.database),
            RedisTopology::Sentinel { .. } | RedisTopology::Cluster(_) => self.shown.clone(),
        }
    }

    /// Whether the URL has a password.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

// === impl RedisEndpoint ===

impl RedisEndpoint {
    /// A server by its host, a name or an address without brackets; `None` if TLS can't verify such a name.
    pub(super) fn at(host: String, port: u16, has_tls: bool) -> Option<Self> {
        if !has_tls {
            return Some(Self::Tcp { host, port });
        }
        let name = ServerName::try_from(host.clone()).ok()?;
        Some(Self::Tls { host, port, name })
    }

    /// Whether connections use TLS.
    pub(super) fn has_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }

    /// How the URL of a Redis of this kind begins, which has servers like this one: `sentinel`, `cluster`, or
    /// nothing for a single server.
    pub(super) fn scheme(&self, kind: &str) -> String {
        let base = if self.has_tls() { "rediss" } else { "redis" };
        let dash = if kind.is_empty() { "" } else { "-" };
        format!("{base}{dash}{kind}://")
    }

    /// The host and the port, or the path, as a URL has them.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp { host, port } | Self::Tls { host, port, .. } if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            Self::Tcp { host, port } | Self::Tls { host, port, .. } => format!("{host}:{port}"),
            Self::Socket(path) => path.display().to_string(),
        }
    }

    /// The server and a database of it, for the log. The label of a Redis without TLS has no scheme.
    pub(super) fn label(&self, database: i64) -> String {
        match self {
            Self::Tcp { host, port } => format!("{host}:{port}/{database}"),
            Self::Tls { host, port, .. } => format!("{TLS}{host}:{port}/{database}"),
            Self::Socket(path) => format!("unix://{}?db={database}", path.display()),
        }
    }
}

/// `None` for an empty text.
fn decoded(text: &str) -> Result<Option<String>, RedisUrlError> {
    let mut reserved = RESERVED.into_iter();
    if let Some((character, encoded)) = reserved.find(|(character, _)| text.contains(*character)) {
        return Err(RedisUrlError::Reserved { character, encoded });
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| RedisUrlError::NotText)?;
    Ok((!decoded.is_empty()).then(|| decoded.into_owned()))
}

fn host_and_port(authority: &str, scheme: &'static str) -> Result<(String, u16), RedisUrlError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let (host, port, is_host) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(RedisUrlError::Host(scheme))?;
            (host, port, host.parse::<Ipv6Addr>().is_ok())
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at(end);
            (host, port, !host.is_empty() && host.bytes().all(is_name))
        }
    };
    if !is_host {
        return Err(RedisUrlError::Host(scheme));
    }
    let port = match port {
        "" => PORT,
        port => {
            let number = port.strip_prefix(':').and_then(digits);
            number.ok_or(RedisUrlError::Port(scheme))?
        }
    };
    Ok((host.into(), port))
}

/// A number without a sign.
fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

impl fmt::Display for RedisUrl {
    /// The URL, with `***` in place of its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host, port, database, user and password.
    fn read(url: &str) -> (String, u16, i64, Option<String>, Option<String>) {
        let url = RedisUrl::parse(url).expect("a URL");
        let RedisTopology::Single(RedisEndpoint::Tcp { host, port }) = url.topology else {
            panic!("not TCP: {url}");
        };
        (host, port, url.database, url.user, url.password)
    }

    #[test]
    fn a_url_with_tls_is_read_as_one_without() {
        for url in ["redis://h", "redis://a:p@s@h_1.x:7/3", "redis://[::1]:7"] {
            let plain = RedisUrl::parse(url).expect("a URL");
            let tls = RedisUrl::parse(&url.replace("redis:", "rediss:")).expect("a URL with TLS");
            assert!(tls.has_tls() && !plain.has_tls(), "{url}");
            let RedisTopology::Single(RedisEndpoint::Tls { host, port, name }) = &tls.topology
            else {
                panic!("no TLS: {tls}");
            };
            let (host, port) = (host.clone(), *port);
            assert_eq!(name.to_str(), *host, "the certificate is for the host");
            let label = format!("rediss://{host}:{port}/{}", tls.database);
            assert_eq!(tls.label(), label, "the label has the scheme");
            let expected = RedisTopology::Single(RedisEndpoint::Tcp { host, port });
            assert_eq!(expected, plain.topology, "{url}");
            let login = |url: RedisUrl| (url.database, url.user, url.password);
            assert_eq!(login(tls), login(plain), "{url}");
        }
    }

    #[test]
    fn the_url_of_a_socket_has_its_path_and_what_other_clients_write_around_it() {
        let long = format!("/{}", "x".repeat(LONGEST_PATH - 1));
        for (url, path, database, user, password) in [
            ("unix:///run/redis.sock", "/run/redis.sock", 0, "", ""),
            ("unix:/run/redis.sock", "/run/redis.sock", 0, "", ""),
            (
                "unix:///run/redis.sock?db=15",
                "/run/redis.sock",
                15,
                "",
                "",
            ),
            ("unix:///run/a@b:c.sock", "/run/a@b:c.sock", 0, "", ""),
            ("unix:///run/a%20%3fb", "/run/a ?b", 0, "", ""),
            ("unix://agent@/run/r", "/run/r", 0, "agent", ""),
            ("unix://agent:p@s:s%2F@/r?db=1", "/r", 1, "agent", "p@s:s/"),
            ("unix://:p@/r", "/r", 0, "", "p"),
            (&format!("unix://{long}"), &long, 0, "", ""),
        ] {
            let read = RedisUrl::parse(url).expect("a URL");
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let expected = RedisTopology::Single(RedisEndpoint::Socket(path.into()));
            assert_eq!(read.topology, expected, "{url}");
            assert_eq!(read.label(), format!("unix://{path}?db={database}"));
            assert_eq!(read.database, database, "{url}");
            assert_eq!((read.user, read.password), (text(user), text(password)));
        }
    }

    #[test]
    fn what_is_no_url_of_a_socket_is_refused_with_its_reason_and_without_the_password() {
        use RedisUrlError::{Control, LongPath, SocketOptions, SocketPath};
        let long = format!("unix:///{}", "x".repeat(LONGEST_PATH));
        let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
        for (url, why) in [
            ("unix:", SocketPath),
            ("unix://", SocketPath),
            ("unix:///", SocketPath),
            ("unix:run/redis.sock", SocketPath),
            ("unix://run/redis.sock", SocketPath),
            ("unix://:geheim@run/redis.sock", SocketPath),
            ("unix://:geheim", SocketPath),
            (&long, LongPath),
            ("unix:///r%00", Control),
            ("unix:///r?db=x", SocketOptions),
            ("unix:///r?db=-1", SocketOptions),
            ("unix:///r?db=1&pass=geheim", SocketOptions),
            ("unix:///r?pass=geheim", SocketOptions),
            ("unix:///r#1", SocketOptions),
            ("unix://:ge/heim@/r", reserved('/', "%2F")),
            ("unix://:ge?heim@/r", reserved('?', "%3F")),
        ] {
            let error = RedisUrl::parse(url).expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("heim"), "{error}");
        }
    }

    #[test]
    fn a_url_is_read_as_it_is_documented() {
        for (url, host, port, database, user, password) in [
            ("redis://h", "h", 6379, 0, "", ""),
            ("redis://h/", "h", 6379, 0, "", ""),
            (
                "redis://my_redis.svc-1:1/15",
                "my_redis.svc-1",
                1,
                15,
                "",
                "",
            ),
            ("redis://[::1]:7/1", "::1", 7, 1, "", ""),
            ("redis://[::1]", "::1", 6379, 0, "", ""),
            ("redis://agent@h", "h", 6379, 0, "agent", ""),
            ("redis://agent:@h", "h", 6379, 0, "agent", ""),
            ("redis://:p@h", "h", 6379, 0, "", "p"),
            ("redis://:p@s:s%@h", "h", 6379, 0, "", "p@s:s%"),
            (
                "redis://a%40b:%2F%3f%23%E4%B8%AD@h",
                "h",
                6379,
                0,
                "a@b",
                "/?#中",
            ),
            ("redis://:中 文@h", "h", 6379, 0, "", "中 文"),
        ] {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let expected = (host.into(), port, database, text(user), text(password));
            assert_eq!(read(url), expected, "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_with_its_reason_and_without_the_password() {
        use RedisUrlError::{Control, Database, Host, Invalid, NotText, Options, Port};
        let reserved = |character, encoded| RedisUrlError::Reserved { character, encoded };
        for (url, why) in [
            ("redisss://h", Invalid),
            ("http://h", Invalid),
            ("rediss://", Host(TLS)),
            ("rediss://a..b", Host(TLS)),
            ("rediss://h:x", Port(TLS)),
            ("rediss://h/x", Database(TLS)),
            ("rediss://h/0#insecure", Options(TLS, '#')),
            ("redis://", Host(TCP)),
            ("redis://:geheim@/0", Host(TCP)),
            ("redis://:geheim/0", Host(TCP)),
            ("redis://h:x", Port(TCP)),
            ("redis://h:", Port(TCP)),
            ("redis://h:+1", Port(TCP)),
            ("redis://h:65536", Port(TCP)),
            ("redis://h/16a", Database(TCP)),
            ("redis://h/-1", Database(TCP)),
            ("redis://h/99999999999999999999", Database(TCP)),
            ("redis://h/0?protocol=resp3", Options(TCP, '?')),
            ("redis://h?db=1", Options(TCP, '?')),
            ("redis://h/0#x", Options(TCP, '#')),
            ("redis://a b", Host(TCP)),
            ("redis://[::1", Host(TCP)),
            ("redis://[h]", Host(TCP)),
            ("redis://:geheim@h\n", Control),
            ("redis://:ge\theim@h", Control),
            ("redis://:geheim%ff@h", NotText),
            ("redis://:geheim#1@h", reserved('#', "%23")),
            ("redis://:geheim?1@h", reserved('?', "%3F")),
            ("redis://:geheim/1@h", reserved('/', "%2F")),
            ("redis://us/er:geheim@h", reserved('/', "%2F")),
        ] {
            let error = RedisUrl::parse(url).expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("geh"), "{error}");
        }
    }

    #[test]
    fn a_url_prints_without_its_password() {
        for (url, printed) in [
            ("redis://:ge@heim@h/1", "redis://:***@h/1"),
            ("redis://agent:geheim@h", "redis://agent:***@h"),
            ("redis://agent@h", "redis://agent@h"),
            ("redis://@h", "redis://@h"),
            ("rediss://agent:ge@heim@h", "rediss://agent:***@h"),
            ("unix:/r", "unix:///r"),
            ("unix:///a:b@c?db=1", "unix:///a:b@c?db=1"),
            ("unix://agent:geheim@/r?db=1", "unix://agent:***@/r?db=1"),
        ] {
            let url = RedisUrl::parse(url).expect("a URL");
            assert_eq!(format!("{url} {url:?}"), format!("{printed} {printed}"));
        }
    }
}
