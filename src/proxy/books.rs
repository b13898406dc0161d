//! Where the ends of requests are noted: what counts them, and the journal.
//!
//! Opened anew with each configuration, so that a request finds what counts its route without looking.

use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::{Metrics, Routes};

/// What a process notes of its requests, whatever its configuration is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tally {
    /// What is counted.
    pub metrics: Metrics,
    /// What has happened lately.
    pub journal: Journal,
}

/// The same by one configuration's routes.
pub(super) struct Books {
    pub(super) routes: Routes,
    pub(super) journal: Journal,
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
        }
    }
}
