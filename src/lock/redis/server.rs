//! Which Redis server this process talks to. Another one may lack the last writes: one that has restarted from
//! a snapshot, or a replica that has become the master.
//!
//! Invariant: all connections of a process report their server here before their first command, so no reply of
//! another server is seen before the change is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::server_error;
use super::{reply, scripts};

/// The servers behind the connections of one process. Clones share one value.
#[derive(Clone, Debug, Default)]
pub(super) struct RedisServer(Arc<ServerState>);

#[derive(Debug, Default)]
struct ServerState {
    /// The server at each place: a node of a cluster, or the only place.
    places: Mutex<HashMap<Box<str>, KnownServer>>,
    /// When a connection last found another server than the one before, at any place.
    changed: watch::Sender<Option<Instant>>,
    /// Whether it was logged that the server does not tell its `run_id`.
    is_warned: AtomicBool,
}

/// What is known of the server at one place.
#[derive(Debug, Default)]
struct KnownServer {
    /// The `run_id` of the server that answered last; `None`: none has answered yet.
    run_id: Option<Box<str>>,
    /// When it was found to be another server than the one before, which may lack the last writes; `None`: never.
    changed: Option<Instant>,
}

// === impl RedisServer ===

impl RedisServer {
    /// Asks a new connection, which has the scripts, for its server, and notes it. `label` is the place. A server
    /// that does not tell its `run_id` counts as the same as before.
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
                    self.set(label, run_id);
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

    fn set(&self, place: &str, run_id: &str) {
        let mut places = self.0.places.lock();
        let known = places.entry(place.into()).or_default();
        if known.run_id.as_deref() == Some(run_id) {
            return;
        }
        let is_first = known.run_id.replace(run_id.into()).is_none();
        drop(places);
        if !is_first {
            tracing::debug!(store = place, run_id, "the store is another server now");
            self.change(place);
        }
    }

    /// Notes that the server at this place may lack the last writes of the one that had its locks before.
    pub(super) fn change(&self, place: &str) {
        let now = Some(Instant::now());
        let mut places = self.0.places.lock();
        places.entry(place.into()).or_default().changed = now;
        drop(places);
        self.0.changed.send_replace(now);
    }

    /// When the server at this place was last found to be another one; `None`: never.
    pub(super) fn changed(&self, place: &str) -> Option<Instant> {
        self.0.places.lock().get(place)?.changed
    }

    /// When a connection last found another server than the one before, at any place; `None`: never.
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
        server.set("h", "a");
        assert_eq!(*changes.borrow(), None, "the first server is no change");
        server.set("h", "a");
        assert_eq!(*changes.borrow(), None, "the same one neither");
        server.set("h", "b");
        let first = *changes.borrow();
        assert!(first.is_some(), "another one is");
        server.set("h", "b");
        assert_eq!(*changes.borrow(), first, "once for all connections");
        server.set("h", "a");
        let second = *changes.borrow();
        assert!(second > first, "and back again");
        server.set("other", "c");
        assert_eq!(
            *changes.borrow(),
            second,
            "the first server at another place"
        );
        assert_eq!(server.changed("h"), second);
        assert_eq!(server.changed("other"), None, "each place for itself");
    }
}
