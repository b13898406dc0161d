//! How many comments, or events in their place, a kept client got.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RouteSinks;

/// Counts the comments of one response. Clones share the count.
#[derive(Clone)]
pub(in crate::proxy) struct CommentCounter(Arc<CommentCount>);

struct CommentCount {
    count: AtomicU64,
    sinks: Arc<RouteSinks>,
    /// The index of the response's route.
    route: Option<usize>,
}

// === impl CommentCounter ===

impl CommentCounter {
    pub(super) fn new(sinks: &Arc<RouteSinks>, route: Option<usize>) -> Self {
        Self(Arc::new(CommentCount {
            count: AtomicU64::new(0),
            sinks: Arc::clone(sinks),
            route,
        }))
    }

    /// Counts one that is sent now.
    pub(in crate::proxy) fn sent(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.sinks.routes.route(self.0.route).comment_sent();
    }

    /// How many were sent.
    pub(super) fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }
}
