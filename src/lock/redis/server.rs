//! Which Redis server this process talks to. Another one may lack the last writes: one that has restarted from
//! a snapshot, or a replica that has become the master.
//!
//! Invariant: all connections of a process report their server here before their first command, so no reply of
//! another server is seen before the change is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::server_error;
use super::{reply, scripts};

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
    /// Asks a new connection, which has the scripts, for its server, and notes it. A server that does not tell its
    /// `run_id` counts as the same as before.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn note(
        &self,
        label: &str,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        let asked = scripts::SERVER.call([].into_iter(), 0);
        let reply = connection.send_packed_command(&asked).await;
        let error = match reply.and_then(Value::extract_error) {
            Ok(reply) => match reply::text(&reply) {
                Some(run_id) => {
                    self.set(run_id);
                    return Ok(());
                }
                None => "INFO has no run_id".to_owned(),
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
}
