//! Which Redis server this process talks to. Another one may lack the last writes: one that has restarted from
//! a snapshot, or a replica that has become the master.
//!
//! Invariant: all connections of a process that have commands about locks report their server here before the first
//! of them, so no reply of another server is seen before the change is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redis::RedisResult;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::server_error;
use super::node::RedisNode;
use super::pipelined::PipelinedConnection;
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
    /// The `run_id` of the server that answered last, or its address if it does not tell one; `None`: none has
    /// answered yet.
    run_id: Option<Box<str>>,
    /// When it was found to be another server than the one before, which may lack the last writes; `None`: never.
    changed: Option<Instant>,
}

// === impl RedisServer ===

impl RedisServer {
    /// Asks a new connection, which has the scripts, for its server, and notes it. `label` is the place. A server
    /// that does not tell its `run_id` counts as the same as before, unless its address is another one: behind
    /// Sentinels, the place of all masters is the same.
    ///
    /// Gives what identifies the server.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn note(
        &self,
        label: &str,
        node: &RedisNode,
        connection: &PipelinedConnection,
        give_up: Instant,
    ) -> RedisResult<Box<str>> {
        let asked = scripts::SERVER.call([].into_iter(), 0);
        let error = match connection.send(&asked, give_up).await {
            Ok(reply) => match reply::text(&reply) {
                Some(run_id) => {
                    self.set(label, run_id);
                    return Ok(run_id.into());
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
        self.set(label, &node.label);
        Ok((*node.label).into())
    }

    /// Waits until another server than this one has answered at the place. Cancel-safe.
    pub(super) async fn replaced(self, place: Box<str>, server: Box<str>) {
        let mut changes = self.changes();
        let is_another = |_: &Option<Instant>| {
            let places = self.0.places.lock();
            let known = places.get(&place).and_then(|known| known.run_id.as_deref());
            known.is_some_and(|known| *known != *server)
        };
        // The sender lives as long as `self`.
        let _ = changes.wait_for(is_another).await;
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

    /// Whether any server has answered yet.
    pub(super) fn has_answered(&self) -> bool {
        !self.0.places.lock().is_empty()
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

    #[tokio::test]
    async fn a_connection_hears_that_another_server_answers_at_its_place() {
        crate::time_limit::limit_this_test();
        let server = RedisServer::default();
        server.set("h", "a");
        server.set("other", "x");
        let replaced = tokio::spawn(server.clone().replaced("h".into(), "a".into()));
        server.set("other", "y");
        tokio::task::yield_now().await;
        assert!(!replaced.is_finished(), "another place does not matter");
        server.set("h", "b");
        replaced.await.expect("the connection is told");
        server.clone().replaced("h".into(), "a".into()).await;
    }

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
