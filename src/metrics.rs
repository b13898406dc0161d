//! Counters behind verbs: what has happened, told where it happens, and read by Prometheus.
//!
//! One for the whole process, shared by all threads. Labels are words of the program's own, never of
//! a client's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

/// All counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Counters>);

struct Counters {
    registry: Registry,
    overlaps: Counter,
    takeovers: Counter,
    lost: Family<Lost, Counter>,
    unprotected: Family<Unprotected, Counter>,
    buffered: Arc<AtomicUsize>,
    connections: Gauge,
}

/// A count that others keep, of bytes.
#[derive(Debug)]
struct Buffered(Arc<AtomicUsize>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lost {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unprotected {
    why: &'static str,
}

/// A client's connection, while it is served.
#[derive(Debug)]
pub struct Connected(Gauge);

// === impl Connected ===

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Metrics ===

impl Metrics {
    /// All counters, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("seriatim");
        let (overlaps, takeovers) = (Counter::default(), Counter::default());
        let (lost, unprotected) = (Family::default(), Family::default());
        registry.register(
            "overlaps",
            "Turns that ran without the store's lock while another turn of their session held it",
            overlaps.clone(),
        );
        registry.register(
            "takeovers",
            "Holders found here whose instance was gone, so that their locks were taken over; \
             several instances may find the same one",
            takeovers.clone(),
        );
        registry.register(
            "locks_lost",
            "Locks that a running turn has lost: expired, taken (by force, or by a failover), interrupted",
            Family::clone(&lost),
        );
        registry.register(
            "unprotected_turns",
            "Turns that ran without the store's lock: allow or local (store.on_error), observe (enforce = false)",
            Family::clone(&unprotected),
        );
        let buffered = Arc::<AtomicUsize>::default();
        registry.register_collector(Box::new(Buffered(Arc::clone(&buffered))));
        let connections = Gauge::default();
        registry.register(
            "connections",
            "Connections of clients, served at the moment",
            connections.clone(),
        );
        Self(Arc::new(Counters {
            registry,
            buffered,
            overlaps,
            takeovers,
            lost,
            unprotected,
            connections,
        }))
    }

    /// A client's connection is taken, unless there are `most` already. It counts until what this
    /// gives is dropped.
    pub fn connected(&self, most: usize) -> Option<Connected> {
        let own = Connected(self.0.connections.clone());
        let before = own.0.inc();
        // Dropped, it counts itself out.
        usize::try_from(before)
            .is_ok_and(|before| before < most)
            .then_some(own)
    }

    /// A turn without the store's lock ran beside another one.
    pub fn overlapped(&self) {
        self.0.overlaps.inc();
    }

    /// A holder was found whose instance is gone.
    pub fn took_over(&self) {
        self.0.takeovers.inc();
    }

    /// A running turn has lost its lock.
    pub fn lost(&self, reason: &'static str) {
        self.0.lost.get_or_create(&Lost { reason }).inc();
    }

    /// A turn begins without the store's lock.
    pub fn unprotected(&self, why: &'static str) {
        let label = Unprotected { why };
        self.0.unprotected.get_or_create(&label).inc();
    }

    /// Where the bytes of requests' bodies are counted that the process holds on to.
    pub fn buffered(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.buffered)
    }

    /// Everything, in the text format of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }
}

impl Collector for Buffered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // As many bytes as that are no process'.
        let gauge = ConstGauge::new(self.0.load(Ordering::Relaxed) as i64);
        let help = "Bytes of requests' bodies that are held on to";
        let metric =
            encoder.encode_descriptor("buffered_bytes", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted_under_its_name() {
        let metrics = Metrics::new();
        metrics.overlapped();
        metrics.took_over();
        metrics.lost("expired");
        metrics.clone().lost("expired");
        metrics.unprotected("allow");
        metrics.buffered().store(7, Ordering::Relaxed);
        let text = metrics.text();
        for line in [
            "seriatim_overlaps_total 1",
            "seriatim_takeovers_total 1",
            "seriatim_buffered_bytes 7",
            "seriatim_locks_lost_total{reason=\"expired\"} 2",
            "seriatim_unprotected_turns_total{why=\"allow\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is in {text}");
        }
    }
}
