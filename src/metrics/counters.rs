//! The registered metrics: their names, help texts, labels and buckets.
//!
//! Invariant: each metric is registered once, when the process starts. Labels whose values are known
//! are there at zero from the start, so that the first increase is seen as one.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::lock_ages::LockAgeSources;
use super::routes::{RouteFamilies, RouteMetrics};
use crate::outcome::{LockLoss, UnprotectedReason};

/// All metrics of the process.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) registry: Registry,
    pub(super) families: Arc<RouteFamilies>,
    /// The metrics of routes by name. A route that a new configuration brings back goes on counting.
    pub(super) routes: Mutex<HashMap<Box<str>, Arc<RouteMetrics>>>,
    pub(super) overlaps: Counter,
    pub(super) takeovers: Counter,
    pub(super) lost: Family<ReasonLabels, Counter>,
    /// The sum of `lost` over its labels.
    pub(super) lost_total: AtomicU64,
    pub(super) unprotected: Family<ReasonLabels, Counter>,
    pub(super) held: Gauge,
    pub(super) lock_ages: LockAgeSources,
    pub(super) waiters: Arc<WaitersGauge>,
    pub(super) answers: AnswerCounters,
    pub(super) buffered: Arc<AtomicUsize>,
    pub(super) buffered_limit: Gauge,
    pub(super) connections: Arc<AtomicUsize>,
    pub(super) connections_limit: Gauge,
    pub(super) store_commands: Family<CommandLabels, Histogram, fn() -> Histogram>,
    pub(super) store_errors: Counter,
    pub(super) store_up: Gauge,
    pub(super) reloads: Family<ReloadLabels, Counter>,
    pub(super) is_as_configured: Gauge,
    pub(super) draining: Gauge,
}

/// The kept answers of turns.
#[derive(Debug)]
pub(super) struct AnswerCounters {
    pub(super) viewers: Gauge,
    pub(super) kept: Arc<AtomicUsize>,
    pub(super) kept_bytes: Arc<AtomicUsize>,
    pub(super) too_long: Counter,
}

/// The turns that wait in the queues of their sessions.
#[derive(Debug, Default)]
pub(super) struct WaitersGauge {
    pub(super) waiting: Gauge,
    /// How many turns have ever waited.
    pub(super) begun: AtomicU64,
    /// The longest wait that ended since this was last read, in milliseconds.
    pub(super) longest: AtomicU64,
}

/// A gauge whose value another module keeps.
#[derive(Debug)]
struct SharedGauge {
    name: &'static str,
    help: &'static str,
    value: Arc<AtomicUsize>,
}

/// Why a lock was lost, or why a turn ran unprotected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub(super) reason: &'static str,
}

/// The name of a command of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CommandLabels {
    pub(super) command: &'static str,
}

/// [`APPLIED`] or [`REFUSED`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReloadLabels {
    pub(super) result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// The label of a new configuration that is in force.
pub(super) const APPLIED: &str = "applied";

/// The label of a new configuration that has problems.
pub(super) const REFUSED: &str = "refused";

/// Buckets from a Redis on the same machine to a command that takes all of `store.timeout`, in seconds.
const COMMANDS: [f64; 14] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

// === impl Counters ===

impl Counters {
    /// Registers all metrics, at zero.
    pub(super) fn register() -> Self {
        let mut registry = Registry::with_prefix("seriatim");
        let it = &mut registry;
        register_build_info(it);
        let families = RouteFamilies::register(it);
        let reasons = LockLoss::ALL.map(LockLoss::as_str);
        let lost = counters_at_zero(
            it,
            "locks_lost",
            "Locks that running turns lost: expired, no_heartbeat (its own key could not be renewed), taken (by an \
             operator or a failover), name_taken (by another process with the same store.instance), interrupted",
            reasons.map(|reason| ReasonLabels { reason }),
        );
        let reasons = UnprotectedReason::ALL.map(UnprotectedReason::as_str);
        let unprotected = counters_at_zero(
            it,
            "unprotected_turns",
            "Turns that ran without the store's lock: allow or local (store.on_error), observe (enforce = false)",
            reasons.map(|reason| ReasonLabels { reason }),
        );
        let reloads = counters_at_zero(
            it,
            "config_reloads",
            "New configurations that were applied or refused",
            [APPLIED, REFUSED].map(|result| ReloadLabels { result }),
        );
        let store_commands = register_store_commands(it);
        let buffered = shared_gauge(
            it,
            "buffered_bytes",
            "Bytes of request bodies that are buffered",
        );
        let connections = shared_gauge(it, "connections", "Client connections that are open");
        let waiting: Gauge = registered(
            it,
            "waiters",
            "Turns that wait in the queue of their session, in this process",
        );
        let is_as_configured: Gauge = registered(
            it,
            "config_last_reload_successful",
            "1 while the configuration in force is the file's; 0 after one that was refused",
        );
        is_as_configured.set(1);
        let waiters = WaitersGauge {
            waiting,
            ..WaitersGauge::default()
        };
        Self {
            families,
            routes: Mutex::default(),
            overlaps: registered(
                it,
                "overlaps",
                "Turns that ran without the store's lock while another turn of their session held it",
            ),
            takeovers: registered(
                it,
                "takeovers",
                "Locks that were taken over from an instance that was gone, \
                 each counted once, by the instance that took it over",
            ),
            lost,
            lost_total: AtomicU64::new(0),
            unprotected,
            held: registered(it, "locks_held", "Locks that turns of this process hold"),
            lock_ages: LockAgeSources::register(it),
            waiters: Arc::new(waiters),
            answers: AnswerCounters::register(it),
            buffered,
            buffered_limit: registered(
                it,
                "buffered_bytes_limit",
                "How many bytes of request bodies may be buffered (limits.max_buffered)",
            ),
            connections,
            connections_limit: registered(
                it,
                "connections_limit",
                "How many client connections may be open (limits.max_connections)",
            ),
            store_commands,
            store_errors: registered(
                it,
                "store_errors",
                "Commands that failed: the store replied with an error or not at all, or they could not be sent",
            ),
            store_up: registered(
                it,
                "store_up",
                "1 if the store answers this instance, 0 if it doesn't; always 1 for a store in memory",
            ),
            reloads,
            is_as_configured,
            draining: registered(it, "draining", "1 while this process is stopping"),
            registry,
        }
    }
}

impl AnswerCounters {
    fn register(registry: &mut Registry) -> Self {
        Self {
            viewers: registered(
                registry,
                "viewers",
                "Requests that read the answer of another request's turn at the moment, or wait for its head",
            ),
            kept: shared_gauge(
                registry,
                "kept_answers",
                "Answers of turns that are kept, those of running turns included",
            ),
            kept_bytes: shared_gauge(
                registry,
                "kept_answer_bytes",
                "Bytes of the answers that are kept or still read",
            ),
            too_long: registered(
                registry,
                "long_answers",
                "Answers that aren't kept whole, because they are over replay.max_turn or replay.max_total is reached",
            ),
        }
    }
}

/// Registers the version of this process.
fn register_build_info(registry: &mut Registry) {
    let build: Family<BuildLabels, Gauge> = registered(
        registry,
        "build_info",
        "Always 1; the version of this process is in its label",
    );
    let version = env!("CARGO_PKG_VERSION");
    build.get_or_create(&BuildLabels { version }).set(1);
}

/// Registers how long commands of the store take.
fn register_store_commands(
    registry: &mut Registry,
) -> Family<CommandLabels, Histogram, fn() -> Histogram> {
    let commands: fn() -> _ = || Histogram::new(COMMANDS);
    let store_commands = Family::new_with_constructor(commands);
    registry.register(
        "store_command_seconds",
        "From sending a command to the store to its reply, or to giving up",
        Family::clone(&store_commands),
    );
    store_commands
}

/// Registers a metric at zero.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a family of counters that has these labels from the start.
fn counters_at_zero<L, const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: [L; N],
) -> Family<L, Counter>
where
    L: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static,
{
    let family: Family<L, Counter> = registered(registry, name, help);
    for label in &labels {
        drop(family.get_or_create(label));
    }
    family
}

/// Registers a gauge at zero, and gives its value for another module to keep.
fn shared_gauge(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
) -> Arc<AtomicUsize> {
    let value = Arc::<AtomicUsize>::default();
    let gauge = SharedGauge {
        name,
        help,
        value: Arc::clone(&value),
    };
    registry.register_collector(Box::new(gauge));
    value
}

impl Collector for SharedGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // No process has more than `i64::MAX` of anything.
        let gauge = ConstGauge::new(self.value.load(Ordering::Relaxed) as i64);
        let metric = encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_help_of_a_metric_names_every_reason() {
        let counters = Counters::register();
        let mut text = String::new();
        encode(&mut text, &counters.registry).expect("text");
        let losses = LockLoss::ALL.map(LockLoss::as_str);
        let unprotected = UnprotectedReason::ALL.map(UnprotectedReason::as_str);
        for (name, reasons) in [
            ("locks_lost", &losses[..]),
            ("unprotected_turns", &unprotected),
        ] {
            let help = format!("# HELP seriatim_{name} ");
            let help = text.lines().find(|line| line.starts_with(&help));
            let help = help.expect("it has a help");
            for reason in reasons {
                assert!(help.contains(reason), "{reason} is explained: {help}");
            }
        }
    }
}
