//! The comments, or events in their place, that keep a client.
//!
//! Invariant: whoever sends one says so here, and nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RouteSinks;
use crate::wire::Bounds;

/// Counts the comments of one response. Clones share the count.
#[derive(Clone)]
pub(in crate::proxy) struct CommentCounter(Arc<CommentCount>);

struct CommentCount {
    count: AtomicU64,
    /// The bounds of the client's connection.
    client: Bounds,
    sinks: Arc<RouteSinks>,
    /// The index of the response's route.
    route: Option<usize>,
}

// === impl CommentCounter ===

impl CommentCounter {
    pub(super) fn new(client: Bounds, sinks: &Arc<RouteSinks>, route: Option<usize>) -> Self {
        Self(Arc::new(CommentCount {
            count: AtomicU64::new(0),
            client,
            sinks: Arc::clone(sinks),
            route,
        }))
    }

    /// Notes one that is sent now.
    pub(in crate::proxy) fn sent(&self) {
        self.0.client.on_comment();
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.sinks.routes.route(self.0.route).comment_sent();
    }

    /// How many were sent.
    pub(super) fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }
}
