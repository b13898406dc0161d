//! Which Redis server this process talks to. Another one may lack the last writes: one that has restarted from
//! a snapshot, or a replica that has become the master.
//!
//! Invariant: all connections of a process report their server here before their first command, so no reply of
//! another server is seen before the change is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::server_error;

/// The server behind the connections of one process. Clones share one value.
#[derive(Clone, Debug, Default)]
pub(super) struct RedisServer(Arc<ServerState>);

#[derive(Debug, Default)]
struct ServerState {
    /// The `run_id` of the server that answered last; `None`: not known yet.
    run_id: Mutex<Option<Box<str>>>,
    /// When a connection last found another server than the one before.
    changed: watch::Sender<Option<Instant>>,
    /// Whether it was logged that the server does not tell its `run_id`.
    is_warned: AtomicBool,
}

// === impl RedisServer ===

impl RedisServer {
    /// Asks a new connection for its server, and notes it. A server that does not tell its `run_id` counts as the
    /// same as before.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn note(
        &self,
        label: &str,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let error = match info.query_async::<String>(connection).await {
            Ok(info) => match run_id(&info) {
                Some(run_id) => {
                    self.set(run_id);
                    return Ok(());
                }
                None => "the reply has no run_id".to_owned(),
            },
            Err(error) => server_error(&error).ok_or(error)?,
        };
        if !self.0.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                store = label,
                %error,
                "the store does not answer INFO server: a restart from an older snapshot is noticed late"
            );
        }
        Ok(())
    }

    fn set(&self, run_id: &str) {
        let mut known = self.0.run_id.lock();
        if known.as_deref() == Some(run_id) {
            return;
        }
        let is_first = known.replace(run_id.into()).is_none();
        if !is_first {
            tracing::debug!(run_id, "the store is another server now");
            self.0.changed.send_replace(Some(Instant::now()));
        }
    }

    /// When a connection last found another server than the one before; `None`: never.
    pub(super) fn changes(&self) -> watch::Receiver<Option<Instant>> {
        self.0.changed.subscribe()
    }
}

/// The `run_id` in a reply to INFO.
fn run_id(info: &str) -> Option<&str> {
    let mut lines = info.lines();
    let id = lines.find_map(|line| line.strip_prefix("run_id:"))?.trim();
    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_when_another_server_answers() {
        let server = RedisServer::default();
        let changes = server.changes();
        server.set("a");
        assert_eq!(*changes.borrow(), None, "the first server is no change");
        server.set("a");
        assert_eq!(*changes.borrow(), None, "the same one neither");
        server.set("b");
        let first = *changes.borrow();
        assert!(first.is_some(), "another one is");
        server.set("b");
        assert_eq!(*changes.borrow(), first, "once for all connections");
        server.set("a");
        assert!(*changes.borrow() > first, "and back again");
    }

    #[test]
    fn the_run_id_is_found_in_the_reply() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:4c0ffee\r\ntcp_port:1\r\n";
        assert_eq!(run_id(info), Some("4c0ffee"), "its line");
        assert_eq!(run_id("# Server\r\nrun_id:\r\n"), None, "an empty one");
        assert_eq!(run_id(""), None, "none");
    }
}
