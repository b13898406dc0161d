//! The forms of the URLs of a Redis, and the form that stands for what other programs write.

/// A form of URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UrlForm {
    /// How the URL begins.
    pub(super) scheme: &'static str,
    pub(super) servers: UrlServers,
    pub(super) has_tls: bool,
    /// A whole URL, for errors.
    pub(super) example: &'static str,
}

/// What the hosts of a URL are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlServers {
    /// The host is the server.
    Single,
    /// The hosts are Sentinels.
    Sentinels,
    /// The hosts are nodes of a Redis Cluster.
    Nodes,
}

/// One server, without TLS and with it.
pub(super) const SINGLE: [UrlForm; 2] = [
    UrlForm {
        scheme: "redis://",
        servers: UrlServers::Single,
        has_tls: false,
        example: "redis://host:6379/0",
    },
    UrlForm {
        scheme: "rediss://",
        servers: UrlServers::Single,
        has_tls: true,
        example: "rediss://host:6379/0",
    },
];

/// Sentinels, without TLS and with it.
pub(super) const SENTINELS: [UrlForm; 2] = [
    UrlForm {
        scheme: "redis-sentinel://",
        servers: UrlServers::Sentinels,
        has_tls: false,
        example: "redis-sentinel://host1:26379,host2:26379/MASTER/0",
    },
    UrlForm {
        scheme: "rediss-sentinel://",
        servers: UrlServers::Sentinels,
        has_tls: true,
        example: "rediss-sentinel://host1:26379,host2:26379/MASTER/0",
    },
];

/// The nodes of a cluster, without TLS and with it.
pub(super) const NODES: [UrlForm; 2] = [
    UrlForm {
        scheme: "redis-cluster://",
        servers: UrlServers::Nodes,
        has_tls: false,
        example: "redis-cluster://host1:6379,host2:6379",
    },
    UrlForm {
        scheme: "rediss-cluster://",
        servers: UrlServers::Nodes,
        has_tls: true,
        example: "rediss-cluster://host1:6379,host2:6379",
    },
];

/// An example of the form with a Unix socket.
const SOCKET: &str = "unix:///run/redis.sock";

// === impl UrlForm ===

impl UrlForm {
    /// The form of a URL; `None`: it has another scheme.
    pub(super) fn find(url: &str) -> Option<Self> {
        let mut forms = [SINGLE, SENTINELS, NODES].into_iter().flatten();
        forms.find(|form| url.starts_with(form.scheme))
    }

    /// The same form of the others, with TLS if this one has it.
    pub(super) fn among(self, forms: [Self; 2]) -> Self {
        forms[usize::from(self.has_tls)]
    }

    /// The port of a host that names none.
    pub(super) fn port(self) -> u16 {
        match self.servers {
            UrlServers::Sentinels => 26379,
            UrlServers::Single | UrlServers::Nodes => 6379,
        }
    }
}

/// An example of the form that a URL of another program stands for, such as `redis+sentinel://`; `None`: it is no
/// URL of a Redis.
pub(super) fn example_for(url: &str) -> Option<&'static str> {
    const TLS: [&str; 5] = ["rediss", "valkeys", "sentinels", "tls", "ssl"];
    const OTHERS: [&str; 7] = [
        "redis", "valkey", "sentinel", "cluster", "tcp", "unix", "socket",
    ];
    let (scheme, _) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let words: Vec<_> = scheme.split(['+', '-', '.']).collect();
    let has = |some: &[&str]| words.iter().any(|word| some.contains(word));
    let are_known = words
        .iter()
        .all(|word| TLS.contains(word) || OTHERS.contains(word));
    let servers = if has(&["sentinel", "sentinels"]) {
        SENTINELS
    } else if has(&["cluster"]) {
        NODES
    } else {
        SINGLE
    };
    let is_redis = has(&["redis", "rediss", "valkey", "valkeys"]) || servers != SINGLE;
    if !are_known || !is_redis {
        return None;
    }
    Some(match has(&["unix", "socket"]) {
        true => SOCKET,
        false => servers[usize::from(has(&TLS))].example,
    })
}
