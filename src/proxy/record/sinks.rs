//! Where finished requests are recorded: the metrics, the journal and the tracer. Also the watch over routes
//! whose requests name no session.
//!
//! [`RouteSinks`] is made anew for each configuration, so that a request finds the counters of its
//! route without a look-up.

use std::sync::Arc;

use super::hold_times::{HoldTimes, RouteHolds};
use super::session_watch::{RouteSessions, SessionWatch};
use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::{Metrics, RouteMetricsTable};
use crate::trace::Tracer;

/// Where a process records its requests, whatever its configuration is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecordSinks {
    /// Counts every request.
    metrics: Metrics,
    /// Keeps the last refusals and losses.
    pub journal: Journal,
    /// Takes what spans are made of; `None`: nothing is traced.
    tracer: Option<Tracer>,
    /// Warns of routes whose requests name no session.
    sessions: SessionWatch,
    /// Keeps how long the last turns of each route took.
    holds: HoldTimes,
}

/// Where requests of one configuration are recorded.
pub(in crate::proxy) struct RouteSinks {
    /// The counters of each route.
    pub(super) routes: RouteMetricsTable,
    /// The metrics that no route has.
    pub(super) metrics: Metrics,
    pub(super) journal: Journal,
    pub(super) tracer: Option<Tracer>,
    /// What is known of the sessions of each route, in the order of the configuration.
    pub(super) sessions: Box<[Arc<RouteSessions>]>,
    /// How long the last turns of each route took, in the order of the configuration.
    pub(super) holds: Box<[Arc<RouteHolds>]>,
}

// === impl RecordSinks ===

impl RecordSinks {
    /// Sinks of a process that has served no request yet. Without a tracer, nothing is traced.
    pub fn new(metrics: Metrics, journal: Journal, tracer: Option<Tracer>) -> Self {
        Self {
            metrics,
            journal,
            tracer,
            sessions: SessionWatch::default(),
            holds: HoldTimes::default(),
        }
    }

    /// The sinks for requests of `config`. Its limits are shown in the metrics.
    pub(in crate::proxy) fn for_config(&self, config: &Config) -> RouteSinks {
        let limits = &config.limits;
        self.metrics
            .set_limits(limits.max_connections, limits.max_buffered);
        RouteSinks {
            sessions: self.sessions.adopt(&config.routes),
            holds: self.holds.adopt(&config.routes),
            ..self.for_routes(config.routes.iter().map(|route| &*route.name))
        }
    }

    /// The sinks for requests of routes with these names.
    pub(in crate::proxy) fn for_routes<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
    ) -> RouteSinks {
        RouteSinks {
            routes: self.metrics.routes(names),
            metrics: self.metrics.clone(),
            journal: self.journal.clone(),
            tracer: self.tracer.clone(),
            sessions: Box::default(),
            holds: Box::default(),
        }
    }
}
