//! Whether the store answers this process, by the last heartbeat or connection.
//!
//! The connections to the store and the heartbeat write it; `/readyz` and `/status` read it. The metric
//! follows it, and nothing reads the metric.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::metrics::Metrics;

/// Whether the store answers this process. Clones share one value.
#[derive(Clone, Debug)]
pub struct StoreHealth(Arc<HealthState>);

#[derive(Debug)]
struct HealthState {
    is_up: AtomicBool,
    metrics: Metrics,
}

// === impl StoreHealth ===

impl StoreHealth {
    /// The health of a store that is up or not to begin with. Each change is counted in `metrics`.
    pub fn new(is_up: bool, metrics: &Metrics) -> Self {
        let health = Self(Arc::new(HealthState {
            is_up: AtomicBool::default(),
            metrics: metrics.clone(),
        }));
        health.set(is_up);
        health
    }

    /// Notes whether the store has just answered.
    pub fn set(&self, is_up: bool) {
        self.0.is_up.store(is_up, Ordering::Relaxed);
        self.0.metrics.store_is_up(is_up);
    }

    /// Whether the store answered when it was last asked.
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Relaxed)
    }
}
