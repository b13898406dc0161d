//! One server of a Redis, and which kind of server has to answer there.

use std::sync::Arc;

use redis::Value;

use super::reply::pairs;
use super::url::RedisEndpoint;

/// A server to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RedisNode {
    pub(super) endpoint: RedisEndpoint,
    /// The server and the database, for the log.
    pub(super) label: Arc<str>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeRole {
    /// The only server of a `redis://`, `rediss://` or `unix://` URL.
    Single,
    /// The master that Sentinels named.
    Master,
    /// A node of a cluster.
    ClusterNode,
    /// A Sentinel, which has no locks.
    Sentinel,
}

/// What a server says of itself in the reply of HELLO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerHello {
    /// `standalone`, `cluster` or `sentinel`; empty if not known.
    mode: String,
    /// `master`, `replica` or `sentinel`; empty if not known.
    role: String,
}

// === impl RedisNode ===

impl RedisNode {
    pub(super) fn new(endpoint: RedisEndpoint, database: i64) -> Self {
        Self {
            label: endpoint.label(database).into(),
            endpoint,
        }
    }
}

// === impl ServerHello ===

impl ServerHello {
    /// Reads the reply of HELLO. What a server leaves out is not known.
    pub(super) fn from_reply(reply: &Value) -> Self {
        let mut hello = Self::default();
        for (name, value) in pairs(reply) {
            match name {
                "mode" => hello.mode = value.into(),
                "role" => hello.role = value.into(),
                _ => {}
            }
        }
        hello
    }

    /// Whether this server can be used in this role.
    ///
    /// # Errors
    /// When it can't. The text says what to do.
    pub(super) fn check(&self, role: NodeRole, node: &RedisNode) -> Result<(), String> {
        use NodeRole::{ClusterNode, Master, Sentinel, Single};
        let address = node.endpoint.address();
        match (role, &*self.mode) {
            (Sentinel, "sentinel") | (ClusterNode, "cluster") => Ok(()),
            (ClusterNode | Sentinel, "") => Ok(()),
            (Single | Master | Sentinel, "cluster") => Err(format!(
                "it is a node of a Redis Cluster: write {}{address} in store.url",
                node.endpoint.scheme("cluster"),
            )),
            (Single | Master | ClusterNode, "sentinel") => Err(format!(
                "it is a Sentinel: write {}{address}/NAME in store.url, with the name of the master that it \
                 watches",
                node.endpoint.scheme("sentinel"),
            )),
            (ClusterNode, _) => Err(format!(
                "it is not a node of a Redis Cluster: write {}{address}/0 in store.url",
                node.endpoint.scheme(""),
            )),
            (Sentinel, _) => Err(format!(
                "it is not a Sentinel: write the addresses of the Sentinels, or {}{address}/0, in store.url",
                node.endpoint.scheme(""),
            )),
            (Single | Master, _) => self.check_master(role),
        }
    }

    fn check_master(&self, role: NodeRole) -> Result<(), String> {
        match (&*self.role, role) {
            ("replica" | "slave", NodeRole::Single) => Err(
                "it is a replica, which accepts no writes: write the address of the master in store.url".into(),
            ),
            ("replica" | "slave", _) => Err("it is a replica now: the Sentinels have yet to name the master".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(mode: &str, role: &str) -> ServerHello {
        let text = |text: &str| Value::BulkString(text.into());
        let entries = [("server", "redis"), ("mode", mode), ("role", role)];
        let entries = entries.map(|(name, value)| (text(name), text(value)));
        ServerHello::from_reply(&Value::Map(entries.into()))
    }

    #[test]
    fn a_server_of_another_kind_is_refused_with_the_url_to_write() {
        use NodeRole::{ClusterNode, Master, Sentinel, Single};
        let endpoint = |has_tls| RedisEndpoint::at("::1".into(), 7, has_tls).expect("an endpoint");
        let (plain, tls) = (
            RedisNode::new(endpoint(false), 0),
            RedisNode::new(endpoint(true), 0),
        );
        for (mode, its_role, role, told) in [
            ("standalone", "master", Single, ""),
            ("standalone", "master", Master, ""),
            ("cluster", "master", ClusterNode, ""),
            ("sentinel", "sentinel", Sentinel, ""),
            ("", "", Single, ""),
            ("", "", ClusterNode, ""),
            ("cluster", "master", Single, "write S-cluster://[::1]:7 in"),
            ("cluster", "master", Master, "write S-cluster://[::1]:7 in"),
            (
                "sentinel",
                "sentinel",
                Single,
                "write S-sentinel://[::1]:7/NAME in",
            ),
            (
                "sentinel",
                "sentinel",
                ClusterNode,
                "write S-sentinel://[::1]:7/NAME in",
            ),
            (
                "standalone",
                "master",
                ClusterNode,
                "write S://[::1]:7/0 in",
            ),
            ("standalone", "master", Sentinel, "or S://[::1]:7/0, in"),
            ("standalone", "replica", Single, "the address of the master"),
            (
                "standalone",
                "slave",
                Master,
                "the Sentinels have yet to name",
            ),
        ] {
            for (node, scheme) in [(&plain, "redis"), (&tls, "rediss")] {
                let reason = hello(mode, its_role)
                    .check(role, node)
                    .err()
                    .unwrap_or_default();
                let told = told
                    .replace('S', scheme)
                    .replace("Sentinels".replace('S', scheme).as_str(), "Sentinels");
                assert_eq!(
                    reason.is_empty(),
                    told.is_empty(),
                    "{mode} as {role:?}: {reason}"
                );
                assert!(reason.contains(&told), "{mode} as {role:?}: {reason}");
            }
        }
    }
}
