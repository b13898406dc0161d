//! Where the ends of requests are noted: what counts them, the journal, and what their spans are made of.
//!
//! Opened anew with each configuration, so that a request finds what counts its route without looking.

use http::HeaderMap;
use tokio::time::Instant;

use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::{Metrics, Routes};
use crate::trace::{Trace, Tracer};

/// What a process notes of its requests, whatever its configuration is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tally {
    /// What is counted.
    pub metrics: Metrics,
    /// What has happened lately.
    pub journal: Journal,
    /// Takes what spans are made of; `None`: there are none.
    pub tracer: Option<Tracer>,
}

/// The same by one configuration's routes.
pub(super) struct Books {
    pub(super) routes: Routes,
    pub(super) journal: Journal,
    tracer: Option<Tracer>,
}

// === impl Tally ===

impl Tally {
    pub(super) fn books(&self, config: &Config) -> Books {
        let limits = &config.limits;
        self.metrics
            .limited(limits.max_connections, limits.max_buffered);
        self.open(config.routes.iter().map(|route| &*route.name))
    }

    pub(super) fn open<'n>(&self, routes: impl Iterator<Item = &'n str>) -> Books {
        Books {
            routes: self.metrics.routes(routes),
            journal: self.journal.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

// === impl Books ===

impl Books {
    /// Begins to trace a request with these headers, if it is to be.
    pub(super) fn trace(&self, headers: &HeaderMap, begun: Instant) -> Option<Box<Trace>> {
        self.tracer.as_ref()?.begin(headers, begun)
    }
}
