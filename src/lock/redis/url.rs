//! The URL of a Redis:
//!
//! - one server: `redis://[user[:password]@]host[:port][/database]`
//! - Sentinels: `redis-sentinel://[user[:password]@]host[:port][,host[:port]...]/master[/database]`
//! - a cluster: `redis-cluster://[user[:password]@]host[:port][,host[:port]...]`
//! - the same with TLS: `rediss://`, `rediss-sentinel://`, `rediss-cluster://`
//! - a Unix socket: `unix://[user[:password]@]/path[?db=database]`
//!
//! Invariant: there is one reading of such a URL. `seriatim check` and every connection use this one. Neither
//! an error nor `Debug` nor `Display` shows the password.

use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_rustls::rustls::pki_types::ServerName;

use form::{NODES, SENTINELS, UrlForm, UrlServers};

pub use error::RedisUrlError;

mod error;
mod form;
#[cfg(test)]
mod tests;

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

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, one of them for the zero at the end.
const LONGEST_PATH: usize = 107;

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
        let form = UrlForm::find(text).ok_or_else(|| match form::example_for(text) {
            Some(example) => RedisUrlError::Scheme(example),
            None => RedisUrlError::Invalid,
        })?;
        let rest = &text[form.scheme.len()..];
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, rest),
        };
        let is_list = form.servers != UrlServers::Single;
        if is_list && credentials.is_some_and(|login| login.contains(['@', ','])) {
            return Err(RedisUrlError::SeveralLogins);
        }
        if let Some(character) = address.chars().find(|c| matches!(c, '?' | '#')) {
            return Err(match (form.servers, character) {
                // Some clients write the name of the master there.
                (UrlServers::Sentinels, '#') => RedisUrlError::NoMaster(form.example),
                _ => RedisUrlError::Options {
                    example: form.example,
                    character,
                },
            });
        }
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        let (topology, database) = topology(form, authority, path)?;
        Self::new(form.scheme, credentials, address, topology, database)
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
        let topology = RedisTopology::Single(endpoint);
        Self::new("unix://", credentials, address, topology, database)
    }

    /// A URL from its parts as written. `credentials` are the user and the password.
    fn new(
        scheme: &str,
        credentials: Option<&str>,
        address: &str,
        topology: RedisTopology,
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
            topology,
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

    /// Whether the hosts of the URL are Sentinels.
    pub fn has_sentinels(&self) -> bool {
        matches!(self.topology, RedisTopology::Sentinel { .. })
    }

    /// The servers and the database, without the user and the password, for the log. The label of a single Redis
    /// without TLS has no scheme.
    pub(super) fn label(&self) -> String {
        let listed = |kind: &str, hosts: &[RedisEndpoint]| {
            let scheme = hosts.first().map(|host| host.scheme(kind));
            let hosts: Vec<_> = hosts.iter().map(RedisEndpoint::address).collect();
            format!("{}{}", scheme.unwrap_or_default(), hosts.join(","))
        };
        match &self.topology {
            RedisTopology::Single(endpoint) => endpoint.label(self.database),
            RedisTopology::Sentinel { sentinels, master } => {
                let sentinels = listed("sentinel", sentinels);
                format!("{sentinels}/{master}/{}", self.database)
            }
            RedisTopology::Cluster(nodes) => listed("cluster", nodes),
        }
    }

    /// How such a URL begins with TLS, and without.
    pub(super) fn schemes(&self) -> (String, String) {
        let kind = match self.topology {
            RedisTopology::Single(_) => "",
            RedisTopology::Sentinel { .. } => "-sentinel",
            RedisTopology::Cluster(_) => "-cluster",
        };
        (format!("rediss{kind}://"), format!("redis{kind}://"))
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
            Self::Tls { host, port, .. } => format!("rediss://{host}:{port}/{database}"),
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

/// The servers that a URL names, and the database. `path` follows the slash after the hosts.
fn topology(
    form: UrlForm,
    authority: &str,
    path: &str,
) -> Result<(RedisTopology, i64), RedisUrlError> {
    let database = |text: &str| match text {
        "" => Ok(0),
        number => digits(number).ok_or(RedisUrlError::Database(form.example)),
    };
    Ok(match form.servers {
        UrlServers::Single => {
            if authority.contains(',') {
                return Err(RedisUrlError::SeveralHosts {
                    sentinel: form.among(SENTINELS).example,
                    cluster: form.among(NODES).example,
                });
            }
            let server = endpoint(authority, form)?;
            (RedisTopology::Single(server), database(path)?)
        }
        UrlServers::Sentinels => {
            let sentinels = endpoints(authority, form)?;
            let (master, number) = path.split_once('/').unwrap_or((path, ""));
            // A number alone is the database, and not a name.
            let is_number = master.bytes().all(|byte| byte.is_ascii_digit());
            if master.is_empty() || is_number && number.is_empty() {
                return Err(RedisUrlError::NoMaster(form.example));
            }
            if !master.bytes().all(is_in_name) {
                return Err(RedisUrlError::Master(form.example));
            }
            let database = database(number)?;
            let master = master.to_owned();
            (RedisTopology::Sentinel { sentinels, master }, database)
        }
        UrlServers::Nodes => {
            let nodes = endpoints(authority, form)?;
            if database(path) != Ok(0) {
                return Err(RedisUrlError::ClusterDatabase(form.example));
            }
            (RedisTopology::Cluster(nodes), 0)
        }
    })
}

/// The hosts of a list, of which there is at least one.
fn endpoints(list: &str, form: UrlForm) -> Result<Vec<RedisEndpoint>, RedisUrlError> {
    let hosts = list.split(',').map(|one| endpoint(one, form));
    hosts
        .collect::<Result<_, _>>()
        .map_err(|error| match error {
            RedisUrlError::Host(example) => RedisUrlError::Hosts(example),
            error => error,
        })
}

fn endpoint(authority: &str, form: UrlForm) -> Result<RedisEndpoint, RedisUrlError> {
    let no_host = || RedisUrlError::Host(form.example);
    let (host, port, is_host) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(no_host)?;
            (host, port, host.parse::<Ipv6Addr>().is_ok())
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at(end);
            (host, port, !host.is_empty() && host.bytes().all(is_in_name))
        }
    };
    if !is_host {
        return Err(no_host());
    }
    let port = match port {
        "" => form.port(),
        port => {
            let number = port.strip_prefix(':').and_then(digits);
            number.ok_or(RedisUrlError::Port(form.example))?
        }
    };
    RedisEndpoint::at(host.into(), port, form.has_tls).ok_or_else(no_host)
}

/// Whether the name of a host or of a master may have this character. Sentinels refuse other names of masters.
fn is_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
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
