//! The application under test, in this process, on a free port.

use std::net::SocketAddr;

use seriatim::app::{self, RunningApp};
use seriatim::config::Config;
use seriatim::metrics::Metrics;

use super::backend::Backend;
use super::client::{Client, turn};
use super::redis::Redis;
use super::wait_for_async;

/// A running replica. It stops with its runtime, or with [`App::stop`], which reports how.
pub(crate) struct App {
    running: RunningApp,
}

/// The route of the contract's example.
pub(crate) const CHAT: &str = r#"
[[routes]]
name = "chat"
path = "/chat"
methods = ["POST"]
session_id = ["{body:/session_id}", "session_{hash:body:/input}"]
user_id = ["{body:/user_id}", "unknown"]
"#;

/// The key of the lock that a turn of [`Request::turn`](super::client::Request::turn) takes for this
/// session.
pub(crate) fn key(session: &str) -> String {
    format!("lock:session:u1:{session}")
}

/// Waits until no lock is left, then until the session's next turn is served and no key is left, for turns
/// whose end the client did not see. Asserts that turns of the session never overlapped.
///
/// Nobody asks for the session before its lock is gone: see [`wait_until_unlocked`].
pub(crate) async fn wait_until_free(
    app: &App,
    backend: &Backend,
    redis: &Redis,
    session: &str,
    after: &str,
) {
    wait_until_unlocked(redis, after).await;
    let free = async || turn(app.addr(), session, "plain:next").await.status == 200;
    wait_for_async(free, &format!("the session is free after {after}")).await;
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, &format!("no key is left after {after}")).await;
    assert_eq!(
        backend.max_overlap(session),
        1,
        "turns never overlap: {after}"
    );
}

/// Waits until Redis has no lock; a queue and a fence may be left. To be called before anybody asks for a
/// session again: a process takes over a lock of its own that no turn of it has any more, so to whoever
/// asks that process a lock that is never released looks free.
pub(crate) async fn wait_until_unlocked(redis: &Redis, after: &str) {
    // The names of the other keys begin with a hash tag.
    let is_companion = |key: &String| key.starts_with('{');
    let unlocked = async || redis.keys().await.iter().all(is_companion);
    wait_for_async(unlocked, &format!("no lock is left after {after}")).await;
}

/// Waits until the store of this replica, of whatever kind, has so many locks. The list of locks takes
/// none over, unlike a turn; see [`wait_until_unlocked`].
pub(crate) async fn wait_for_locks(app: &App, count: usize, after: &str) {
    let reached = async || {
        let answer = Client::connect(app.admin()).await.get("/locks").await;
        answer.json()["locks"].as_array().map(Vec::len) == Some(count)
    };
    wait_for_async(reached, &format!("{count} locks are held after {after}")).await;
}

/// The number of turns in the session's queue in Redis.
pub(crate) async fn waiting(redis: &Redis, session: &str) -> usize {
    let queue = format!("{{{}}}:1:queue", key(session));
    let count = redis.command(&["ZCARD", &queue]).await;
    redis::from_redis_value(count).expect("a count")
}

/// Waits until the session's queue in Redis has this length.
pub(crate) async fn wait_for_queue_length(redis: &Redis, session: &str, count: usize) {
    let reached = async || waiting(redis, session).await == count;
    wait_for_async(reached, &format!("{count} turns wait for {session}")).await;
}

/// Waits until no key is left.
pub(crate) async fn wait_until_no_keys(redis: &Redis) {
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "no key is left at the end").await;
}

// === impl App ===

impl App {
    /// Starts a replica with the memory store.
    pub(crate) fn in_memory(backend: &Backend, config: &str) -> Self {
        Self::start(&backend.url(), "memory:", "", config)
    }

    /// Starts a replica on this Redis.
    pub(crate) fn on_redis(backend: &Backend, redis: &Redis, config: &str) -> Self {
        Self::start(&backend.url(), &redis.url(), "", config)
    }

    /// Starts a replica with this store; `store` has further options of `[store]`.
    pub(crate) fn start(upstream: &str, store_url: &str, store: &str, config: &str) -> Self {
        Self::start_guarded(upstream, store_url, store, "", config)
    }

    /// Starts a replica; `admin` has options of `[admin]` other than `listen`.
    pub(crate) fn start_guarded(
        upstream: &str,
        store_url: &str,
        store: &str,
        admin: &str,
        config: &str,
    ) -> Self {
        // `config` may begin with top-level keys, which must precede any table.
        let (top, tables) = config.split_at(config.find("\n[").map_or(config.len(), |at| at + 1));
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n{top}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{admin}\n\
             [store]\nurl = \"{store_url}\"\n{store}\n{tables}"
        );
        let config = match Config::read("test", &text, &Vec::new()) {
            Ok(config) => config,
            Err(problems) => panic!("{problems}\n{text}"),
        };
        let running = app::start(config).expect("a free port and a few threads");
        Self { running }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        let address = self.running.proxy_addr();
        address.tcp().expect("it listens on TCP")
    }

    /// The address of the admin listener.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.running.admin_addr()
    }

    /// The metrics, which stay readable after a stop.
    pub(crate) fn metrics(&self) -> Metrics {
        self.running.metrics()
    }

    /// The value of a metric without labels, as text.
    pub(crate) async fn metric(&self, name: &str) -> String {
        let answer = Client::connect(self.admin()).await.get("/metrics").await;
        let text = answer.text();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.expect("the metric exists").to_owned()
    }

    /// Waits until this many turns wait for their locks at this replica, and know it.
    pub(crate) async fn wait_for_waiters(&self, count: usize) {
        let count = count.to_string();
        let reached = async || self.metric("seriatim_waiters").await == count;
        wait_for_async(reached, &format!("{count} turns wait")).await;
    }

    /// Stops the replica as SIGTERM does.
    pub(crate) async fn stop(self) -> app::StopReport {
        self.running.stop().await
    }
}
