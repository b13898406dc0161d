//! The application under test, in this process, on a free port.

use std::net::SocketAddr;

use seriatim::app::{self, RunningApp};
use seriatim::config::Config;
use seriatim::metrics::Metrics;

use super::backend::Backend;
use super::client::turn;
use super::redis::Redis;
use super::wait_for_async;

/// One running replica. Stops when its runtime does; [`App::stop`] for those that look at how.
pub(crate) struct App {
    running: RunningApp,
}

/// The usual route: the one of the contract's example.
pub(crate) const CHAT: &str = r#"
[[routes]]
name = "chat"
path = "/chat"
methods = ["POST"]
session_id = ["{body:/session_id}", "session_{hash:body:/input}"]
user_id = ["{body:/user_id}", "unknown"]
"#;

/// The key of a turn that [`Request::turn`](super::client::Request::turn) sends for this session.
pub(crate) fn key(session: &str) -> String {
    format!("lock:session:u1:{session}")
}

/// Waits until a turn of the session is served, though nobody saw the end of the one before, and no
/// key is left; the backend must not have seen two of its turns at once.
pub(crate) async fn becomes_free(
    app: &App,
    backend: &Backend,
    redis: &Redis,
    session: &str,
    after: &str,
) {
    let free = async || turn(app.addr(), session, "plain:next").await.status == 200;
    wait_for_async(free, &format!("the session is free after {after}")).await;
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, &format!("no key is left after {after}")).await;
    assert_eq!(
        backend.max_overlap(session),
        1,
        "turns never overlapped: {after}"
    );
}

/// How many wait for the session.
pub(crate) async fn waiting(redis: &Redis, session: &str) -> usize {
    let line = format!("{{{}}}:queue", key(session));
    let count = redis.command(&["ZCARD", &line]).await;
    redis::from_redis_value(count).expect("a count")
}

/// Waits until so many wait for the session.
pub(crate) async fn is_waiting(redis: &Redis, session: &str, count: usize) {
    let there = async || waiting(redis, session).await == count;
    wait_for_async(there, &format!("{count} turns wait for {session}")).await;
}

/// Waits until no key is left.
pub(crate) async fn is_quiet(redis: &Redis) {
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "no key is left when all is quiet").await;
}

// === impl App ===

impl App {
    /// A replica with its locks in memory, and whatever `config` says.
    pub(crate) fn in_memory(backend: &Backend, config: &str) -> Self {
        Self::start(&backend.url(), "memory:", "", config)
    }

    /// A replica with its locks in Redis, and whatever `config` says.
    pub(crate) fn on_redis(backend: &Backend, redis: &Redis, config: &str) -> Self {
        Self::start(&backend.url(), &redis.url(), "", config)
    }

    /// A replica with its locks at `store_url`; `store` is what else `[store]` says.
    pub(crate) fn start(upstream: &str, store_url: &str, store: &str, config: &str) -> Self {
        Self::start_guarded(upstream, store_url, store, "", config)
    }

    /// The same; `admin` is what `[admin]` says besides where it listens.
    pub(crate) fn start_guarded(
        upstream: &str,
        store_url: &str,
        store: &str,
        admin: &str,
        config: &str,
    ) -> Self {
        // What `config` says may begin with keys of the top level, which stand before any table.
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

    /// Where it answers operators.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.running.admin_addr()
    }

    /// What it has counted; also when it has stopped.
    pub(crate) fn metrics(&self) -> Metrics {
        self.running.metrics()
    }

    /// Stops as SIGTERM does.
    pub(crate) async fn stop(self) -> app::StopReport {
        self.running.stop().await
    }
}
