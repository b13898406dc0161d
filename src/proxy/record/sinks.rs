//! Where finished requests are recorded: the metrics, the journal and the tracer.
//!
//! [`RouteSinks`] is made anew for each configuration, so that a request finds the counters of its
//! route without a look-up.

use http::HeaderMap;
use tokio::time::Instant;

use crate::config::{Config, Limits};
use crate::journal::Journal;
use crate::metrics::{Metrics, RouteMetrics, RouteMetricsTable};
use crate::trace::{RequestTrace, Tracer};

/// Where a process records its requests, whatever its configuration is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecordSinks {
    /// Counts every request.
    pub metrics: Metrics,
    /// Keeps the last refusals and losses.
    pub journal: Journal,
    /// Takes what spans are made of; `None`: nothing is traced.
    pub tracer: Option<Tracer>,
}

/// Where requests of one configuration are recorded.
pub(in crate::proxy) struct RouteSinks {
    routes: RouteMetricsTable,
    pub(super) journal: Journal,
    tracer: Option<Tracer>,
}

// === impl RecordSinks ===

impl RecordSinks {
    /// The sinks for requests of `config`. Its limits are shown in the metrics.
    pub(in crate::proxy) fn for_config(&self, config: &Config) -> RouteSinks {
        let Limits {
            max_connections,
            max_buffered,
            ..
        } = config.limits;
        self.metrics.set_limits(max_connections, max_buffered);
        self.for_routes(config.routes.iter().map(|route| &*route.name))
    }

    /// The sinks for requests of routes with these names.
    pub(in crate::proxy) fn for_routes<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
    ) -> RouteSinks {
        RouteSinks {
            routes: self.metrics.routes(names),
            journal: self.journal.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

// === impl RouteSinks ===

impl RouteSinks {
    /// Begins to trace a request with these headers; `None`: it isn't traced.
    pub(super) fn trace(&self, headers: &HeaderMap, begun: Instant) -> Option<Box<RequestTrace>> {
        self.tracer.as_ref()?.begin(headers, begun)
    }

    /// The counters of the route at this index of the configuration; `None`: of requests that no route
    /// took.
    pub(super) fn route(&self, index: Option<usize>) -> &RouteMetrics {
        self.routes.route(index)
    }
}
