//! Where the ends of requests are noted: what counts them, the journal, and what their spans are made of.
//!
//! Opened anew with each configuration, so that a request finds what counts its route without looking.

use http::HeaderMap;
use tokio::time::Instant;

use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::{Metrics, RouteMetricsTable};
use crate::trace::{RequestTrace, Tracer};

/// What a process notes of its requests, whatever its configuration is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecordSinks {
    /// What is counted.
    pub metrics: Metrics,
    /// What has happened lately.
    pub journal: Journal,
    /// Takes what spans are made of; `None`: there are none.
    pub tracer: Option<Tracer>,
}

/// The same by one configuration's routes.
pub(super) struct RouteSinks {
    pub(super) routes: RouteMetricsTable,
    pub(super) journal: Journal,
    tracer: Option<Tracer>,
}

// === impl Tally ===

impl RecordSinks {
    pub(super) fn books(&self, config: &Config) -> RouteSinks {
        let limits = &config.limits;
        self.metrics
            .limited(limits.max_connections, limits.max_buffered);
        self.open(config.routes.iter().map(|route| &*route.name))
    }

    pub(super) fn open<'n>(&self, routes: impl Iterator<Item = &'n str>) -> RouteSinks {
        RouteSinks {
            routes: self.metrics.routes(routes),
            journal: self.journal.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

// === impl Books ===

impl RouteSinks {
    /// Begins to trace a request with these headers, if it is to be.
    pub(super) fn trace(&self, headers: &HeaderMap, begun: Instant) -> Option<Box<RequestTrace>> {
        self.tracer.as_ref()?.begin(headers, begun)
    }
}
