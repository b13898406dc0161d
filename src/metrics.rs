//! What is counted, behind verbs; told in Prometheus' text formats.
//!
//! Invariant: counting never waits for anybody but a core that counts the same thing, and never
//! fails. A counter is one number for all threads. Labels are words of the program's own and the
//! names of routes, never of a client's.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::outcome::{LockLoss, UnprotectedReason};
use routes::RouteFamilies;

pub use routes::{RequestTimes, RouteMetrics, RouteMetricsTable};
pub use text::ExpositionFormat;

mod routes;
mod text;

/// All counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Counters>);

struct Counters {
    registry: Registry,
    families: Arc<RouteFamilies>,
    /// By name, as long as the process lives: a route that comes back goes on counting.
    routes: Mutex<HashMap<Box<str>, Arc<RouteMetrics>>>,
    overlaps: Counter,
    takeovers: Counter,
    lost: Family<LossLabels, Counter>,
    lost_in_all: AtomicU64,
    unprotected: Family<UnprotectedLabels, Counter>,
    held: Gauge,
    line: Arc<WaitersGauge>,
    buffered: Arc<AtomicUsize>,
    buffered_limit: Gauge,
    connections: Arc<AtomicUsize>,
    connections_limit: Gauge,
    store_commands: Family<CommandLabels, Histogram, fn() -> Histogram>,
    store_errors: Counter,
    store_up: Gauge,
    reloads: Family<ReloadLabels, Counter>,
    as_configured: Gauge,
    draining: Gauge,
}

/// A gauge whose value another module keeps.
#[derive(Debug)]
struct SharedGauge {
    name: &'static str,
    help: &'static str,
    value: Arc<AtomicUsize>,
}

/// Those who wait in the lines of sessions.
#[derive(Debug, Default)]
struct WaitersGauge {
    waiting: Gauge,
    /// How many have ever waited.
    begun: AtomicU64,
    /// The longest wait that has ended since it was asked for, in ms.
    longest: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnprotectedLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    command: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// A lock, while it is held.
#[derive(Debug)]
pub struct HeldGauge(Gauge);

/// Where times of one kind are noted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DurationRecorder(Histogram);

/// A turn, while it waits in line.
#[derive(Debug)]
pub struct WaitingGauge {
    line: Arc<WaitersGauge>,
    since: Instant,
}

/// What there was so far, all routes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Turns that have begun.
    pub turns: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Locks that were lost by running turns.
    pub lost: u64,
    /// Turns that have stood in line.
    pub waited: u64,
    /// Locks that are held now.
    pub held: i64,
    /// Turns that wait in line now.
    pub waiting: i64,
}

/// From a Redis next door to a command that takes all of `store.timeout`; in seconds.
const COMMANDS: [f64; 14] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];

/// What has become of a new configuration.
const APPLIED: &str = "applied";
const REFUSED: &str = "refused";

// === impl LossLabels ===

impl LossLabels {
    fn new(loss: LockLoss) -> Self {
        let reason = loss.as_str();
        Self { reason }
    }
}

// === impl UnprotectedLabels ===

impl UnprotectedLabels {
    fn new(reason: UnprotectedReason) -> Self {
        let reason = reason.as_str();
        Self { reason }
    }
}

// === impl Holding ===

impl Drop for HeldGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Seconds ===

impl DurationRecorder {
    /// It took so long.
    pub fn note(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

// === impl Waiting ===

impl Drop for WaitingGauge {
    fn drop(&mut self) {
        self.line.waiting.dec();
        let waited = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.line.longest.fetch_max(waited, Ordering::Relaxed);
    }
}

// === impl Metrics ===

impl Metrics {
    /// All counters, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("seriatim");
        let it = &mut registry;
        let build: Family<BuildLabels, Gauge> = registered(
            it,
            "build_info",
            "Always 1; the version of this process is in its label",
        );
        let version = env!("CARGO_PKG_VERSION");
        build.get_or_create(&BuildLabels { version }).set(1);
        let families = RouteFamilies::register(it);
        let lost: Family<LossLabels, Counter> = registered(
            it,
            "locks_lost",
            "Locks that a running turn has lost: expired, taken (by force, or by a failover), interrupted",
        );
        for loss in LockLoss::ALL {
            drop(lost.get_or_create(&LossLabels::new(loss)));
        }
        let unprotected: Family<UnprotectedLabels, Counter> = registered(
            it,
            "unprotected_turns",
            "Turns that ran without the store's lock: allow or local (store.on_error), observe (enforce = false)",
        );
        for reason in UnprotectedReason::ALL {
            drop(unprotected.get_or_create(&UnprotectedLabels::new(reason)));
        }
        let reloads: Family<ReloadLabels, Counter> = registered(
            it,
            "config_reloads",
            "New configurations that were applied, or refused",
        );
        for result in [APPLIED, REFUSED] {
            drop(reloads.get_or_create(&ReloadLabels { result }));
        }
        let commands: fn() -> _ = || Histogram::new(COMMANDS);
        let store_commands = Family::new_with_constructor(commands);
        it.register(
            "store_command_seconds",
            "From sending a command to the store to its answer, or to giving up",
            Family::clone(&store_commands),
        );
        let buffered = shared_gauge(
            it,
            "buffered_bytes",
            "Bytes of requests' bodies that are held on to",
        );
        let connections = shared_gauge(
            it,
            "connections",
            "Connections of clients, served at the moment",
        );
        let waiting: Gauge = registered(
            it,
            "waiters",
            "Turns that wait in the line of their session, in this process",
        );
        let as_configured: Gauge = registered(
            it,
            "config_last_reload_successful",
            "1 while the configuration in force is the file's; 0 after one that was refused",
        );
        as_configured.set(1);
        let line = WaitersGauge {
            waiting,
            ..WaitersGauge::default()
        };
        let counters = Counters {
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
                "Holders found here whose instance was gone, so that their locks were taken over; \
                 several instances may find the same one",
            ),
            lost,
            lost_in_all: AtomicU64::new(0),
            unprotected,
            held: registered(it, "locks_held", "Locks that turns of this process hold"),
            line: Arc::new(line),
            buffered,
            buffered_limit: registered(
                it,
                "buffered_bytes_limit",
                "How many bytes of bodies may be held on to (limits.max_buffered)",
            ),
            connections,
            connections_limit: registered(
                it,
                "connections_limit",
                "How many connections may be served at once (limits.max_connections)",
            ),
            store_commands,
            store_errors: registered(
                it,
                "store_errors",
                "Commands to which the store gave an error or no answer, or which could not be sent",
            ),
            store_up: registered(
                it,
                "store_up",
                "1 if the store answers this instance, 0 if it doesn't; 1 for a store in memory",
            ),
            reloads,
            as_configured,
            draining: registered(it, "draining", "1 while this process is stopping"),
            registry,
        };
        Self(Arc::new(counters))
    }

    /// What counts the requests of these routes.
    pub fn routes<'n>(&self, names: impl Iterator<Item = &'n str>) -> RouteMetricsTable {
        let mut known = self.0.known_routes();
        let mut of = |name: &str| {
            if let Some(route) = known.get(name) {
                return Arc::clone(route);
            }
            let route = Arc::new(RouteMetrics::new(&self.0.families, name));
            known.insert(name.into(), Arc::clone(&route));
            route
        };
        // No route has an empty name.
        let unrouted = of("");
        RouteMetricsTable::new(names.map(of).collect(), unrouted)
    }

    /// How many connections and how many bytes of bodies there may be.
    pub fn set_limits(&self, connections: usize, buffered: usize) {
        // More than that is no machine's.
        self.0.connections_limit.set(connections as i64);
        self.0.buffered_limit.set(buffered as i64);
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
    pub fn lost(&self, loss: LockLoss) {
        self.0.lost.get_or_create(&LossLabels::new(loss)).inc();
        self.0.lost_in_all.fetch_add(1, Ordering::Relaxed);
    }

    /// A turn begins without the store's lock.
    pub fn unprotected(&self, reason: UnprotectedReason) {
        let label = UnprotectedLabels::new(reason);
        self.0.unprotected.get_or_create(&label).inc();
    }

    /// A lock is held until what this gives is dropped.
    pub fn holding(&self) -> HeldGauge {
        let own = HeldGauge(self.0.held.clone());
        own.0.inc();
        own
    }

    /// A turn waits in line until what this gives is dropped.
    pub fn waiting(&self) -> WaitingGauge {
        let line = Arc::clone(&self.0.line);
        line.waiting.inc();
        line.begun.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        WaitingGauge { line, since }
    }

    /// The number of connections that are served; whoever limits them keeps it.
    pub fn connections(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.connections)
    }

    /// Where the bytes of requests' bodies are counted that the process holds on to.
    pub fn buffered(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.buffered)
    }

    /// Where the time is noted that the store takes for a command of this name.
    pub fn store_command(&self, command: &'static str) -> DurationRecorder {
        let label = CommandLabels { command };
        DurationRecorder(self.0.store_commands.get_or_create_owned(&label))
    }

    /// The store gave no answer, or an error, to a command.
    pub fn store_failed(&self) {
        self.0.store_errors.inc();
    }

    /// Whether the store answers this instance, as it looks since just now.
    pub fn store_is_up(&self, is_up: bool) {
        self.0.store_up.set(is_up.into());
    }

    /// A new configuration was put into force, or refused.
    pub fn reloaded(&self, in_force: bool) {
        let result = if in_force { APPLIED } else { REFUSED };
        self.0.reloads.get_or_create(&ReloadLabels { result }).inc();
        self.is_as_configured(in_force);
    }

    /// Whether what is in force is what the configuration file says.
    pub fn is_as_configured(&self, is_so: bool) {
        self.0.as_configured.set(is_so.into());
    }

    /// The process is stopping.
    pub fn draining(&self) {
        self.0.draining.set(1);
    }

    /// What there was so far.
    pub fn totals(&self) -> Totals {
        let routes = self.0.known_routes();
        Totals {
            turns: routes.values().map(|route| route.turns()).sum(),
            refused: routes.values().map(|route| route.refused()).sum(),
            lost: self.0.lost_in_all.load(Ordering::Relaxed),
            waited: self.0.line.begun.load(Ordering::Relaxed),
            held: self.0.held.get(),
            waiting: self.0.line.waiting.get(),
        }
    }

    /// The longest wait in line that has ended since this was asked last, in ms.
    pub fn take_longest_wait(&self) -> u64 {
        self.0.line.longest.swap(0, Ordering::Relaxed)
    }

    /// Everything, as text.
    pub fn text(&self, format: ExpositionFormat) -> String {
        format.text(&self.0.registry)
    }
}

impl Counters {
    fn known_routes(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<RouteMetrics>>> {
        // Nothing in here panics while holding it; a poisoned lock is as good as any.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric at zero, which is told of from now on.
fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a gauge whose value others keep, at zero.
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
    use crate::outcome::Outcome;

    #[test]
    fn what_happened_is_counted_under_its_name() {
        let metrics = Metrics::new();
        metrics.overlapped();
        metrics.took_over();
        metrics.lost(LockLoss::Expired);
        metrics.clone().lost(LockLoss::Expired);
        metrics.unprotected(UnprotectedReason::Allow);
        metrics.buffered().store(7, Ordering::Relaxed);
        let routes = metrics.routes(["chat"].into_iter());
        routes
            .route(Some(0))
            .request_ended(Outcome::Complete, RequestTimes::default());
        routes
            .route(None)
            .request_ended(Outcome::NoRoute, RequestTimes::default());
        // Another configuration, in which it stands elsewhere.
        let routes = metrics.routes(["new", "chat"].into_iter());
        let times = RequestTimes {
            wait: Some(Duration::from_millis(3)),
            first_byte: None,
            hold: Some(Duration::from_secs(90)),
        };
        routes
            .route(Some(1))
            .request_ended(Outcome::Complete, times);
        let text = metrics.text(ExpositionFormat::OpenMetrics);
        for line in [
            "seriatim_requests_total{route=\"chat\",outcome=\"complete\"} 2",
            "seriatim_lock_wait_seconds_bucket{le=\"0.0025\",route=\"chat\"} 0",
            "seriatim_lock_wait_seconds_bucket{le=\"0.005\",route=\"chat\"} 1",
            "seriatim_lock_hold_seconds_sum{route=\"chat\"} 90.0",
            "seriatim_requests_total{route=\"\",outcome=\"no_route\"} 1",
            "seriatim_overlaps_total 1",
            "seriatim_takeovers_total 1",
            "seriatim_buffered_bytes 7",
            "seriatim_locks_lost_total{reason=\"expired\"} 2",
            "seriatim_unprotected_turns_total{reason=\"allow\"} 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is in {text}");
        }
        assert!(
            !text.contains("time_to_first_byte_seconds_count"),
            "what has never happened isn't there: {text}"
        );
    }
}
