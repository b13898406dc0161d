//! The metrics of the process, and their text formats for Prometheus.
//!
//! Invariant: counting never fails, never blocks on more than another core that counts the same thing,
//! and decides nothing: no other module acts on what is counted here. A label is a word of the program
//! or the name of a route, never text of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::outcome::{LockLoss, UnprotectedReason};
use counters::{
    APPLIED, CommandLabels, Counters, REFUSED, ReasonLabels, ReloadLabels, WaitersGauge,
};

pub use lock_ages::LockAges;
pub use routes::{ReplayKind, RequestTimes, RouteMetrics, RouteMetricsTable};
pub use text::ExpositionFormat;

mod counters;
mod lock_ages;
mod routes;
mod text;

/// The metrics of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Counters>);

/// Counts a lock as held until it is dropped.
#[derive(Debug)]
pub struct HeldGauge(Gauge);

/// Counts a request as a viewer until it is dropped.
#[derive(Debug)]
pub struct ViewerGauge(Gauge);

/// Records durations of one kind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DurationRecorder(Histogram);

/// Counts a turn as waiting until it is dropped.
#[derive(Debug)]
pub struct WaitingGauge {
    waiters: Arc<WaitersGauge>,
    since: Instant,
}

/// What was counted since the process began, over all routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Turns that began.
    pub turns: u64,
    /// Requests that passed a route that locks, and named no session.
    pub no_session: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Locks that running turns lost.
    pub lost: u64,
    /// Turns that waited in a queue.
    pub waited: u64,
    /// Locks that are held now.
    pub held: i64,
    /// Turns that wait now.
    pub waiting: i64,
}

// === impl Totals ===

impl Totals {
    /// What was counted since `before`, and what is held and waits now.
    pub fn since(self, before: Self) -> Self {
        Self {
            turns: self.turns.saturating_sub(before.turns),
            no_session: self.no_session.saturating_sub(before.no_session),
            refused: self.refused.saturating_sub(before.refused),
            lost: self.lost.saturating_sub(before.lost),
            waited: self.waited.saturating_sub(before.waited),
            ..self
        }
    }
}

// === impl HeldGauge ===

impl Drop for HeldGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl ViewerGauge ===

impl Drop for ViewerGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl DurationRecorder ===

impl DurationRecorder {
    /// Records one duration.
    pub fn note(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

// === impl WaitingGauge ===

impl Drop for WaitingGauge {
    fn drop(&mut self) {
        self.waiters.waiting.dec();
        let waited = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.waiters.longest.fetch_max(waited, Ordering::Relaxed);
    }
}

// === impl Metrics ===

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        Self(Arc::new(Counters::register()))
    }

    /// The metrics of routes with these names, in this order.
    pub fn routes<'n>(&self, names: impl Iterator<Item = &'n str>) -> RouteMetricsTable {
        let mut known = self.0.routes.lock();
        let mut route = |name: &str| {
            if let Some(route) = known.get(name) {
                return Arc::clone(route);
            }
            let route = Arc::new(RouteMetrics::new(&self.0.families, name));
            known.insert(name.into(), Arc::clone(&route));
            route
        };
        // No route has an empty name.
        let unrouted = route("");
        RouteMetricsTable::new(names.map(route).collect(), unrouted)
    }

    /// Sets the limits that the metrics show: of open connections, and of buffered bytes.
    pub fn set_limits(&self, connections: usize, buffered: usize) {
        // No limit in use is beyond `i64::MAX`.
        self.0.connections_limit.set(connections as i64);
        self.0.buffered_limit.set(buffered as i64);
    }

    /// Counts a turn that ran without the store's lock while another turn of its session held it.
    pub fn overlapped(&self) {
        self.0.overlaps.inc();
    }

    /// Counts a lock that was taken over from an instance that is gone.
    pub fn took_over(&self) {
        self.0.takeovers.inc();
    }

    /// Counts a lock that a running turn lost.
    pub fn lost(&self, loss: LockLoss) {
        let reason = loss.as_str();
        self.0.lost.get_or_create(&ReasonLabels { reason }).inc();
        self.0.lost_total.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a turn that begins without the store's lock.
    pub fn unprotected(&self, reason: UnprotectedReason) {
        let reason = reason.as_str();
        let label = ReasonLabels { reason };
        self.0.unprotected.get_or_create(&label).inc();
    }

    /// Counts a lock as held until the result is dropped.
    pub fn holding(&self) -> HeldGauge {
        let held = HeldGauge(self.0.held.clone());
        held.0.inc();
        held
    }

    /// Shows the ages of the locks that `source` knows, whenever somebody asks for the metrics.
    pub fn show_lock_ages(&self, source: impl Fn() -> LockAges + Send + Sync + 'static) {
        self.0.lock_ages.add(source);
    }

    /// Counts a turn as waiting until the result is dropped.
    pub fn waiting(&self) -> WaitingGauge {
        let waiters = Arc::clone(&self.0.waiters);
        waiters.waiting.inc();
        waiters.begun.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        WaitingGauge { waiters, since }
    }

    /// Counts a request that reads the answer of another request's turn, until the result is dropped.
    pub fn viewing(&self) -> ViewerGauge {
        let viewer = ViewerGauge(self.0.answers.viewers.clone());
        viewer.0.inc();
        viewer
    }

    /// The number of kept answers. Who keeps them counts them, and the metrics only show it.
    pub fn kept_answers(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.answers.kept)
    }

    /// The number of bytes of kept answers. Who keeps them counts them, and the metrics only show it.
    pub fn kept_answer_bytes(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.answers.kept_bytes)
    }

    /// Counts an answer that isn't kept whole.
    pub fn answer_too_long(&self) {
        self.0.answers.too_long.inc();
    }

    /// The number of open client connections. Their limit keeps it, and the metrics only show it.
    pub fn connections(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.connections)
    }

    /// The number of buffered bytes. The budget keeps it, and the metrics only show it.
    pub fn buffered(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0.buffered)
    }

    /// Records how long commands of this name take.
    pub fn store_command(&self, command: &'static str) -> DurationRecorder {
        let label = CommandLabels { command };
        DurationRecorder(self.0.store_commands.get_or_create_owned(&label))
    }

    /// Counts a command that failed.
    pub fn store_failed(&self) {
        self.0.store_errors.inc();
    }

    /// Shows whether the store answers this instance.
    pub fn store_is_up(&self, is_up: bool) {
        self.0.store_up.set(is_up.into());
    }

    /// Counts a new configuration, and shows whether it is in force.
    pub fn reloaded(&self, is_in_force: bool) {
        let result = if is_in_force { APPLIED } else { REFUSED };
        self.0.reloads.get_or_create(&ReloadLabels { result }).inc();
        self.is_as_configured(is_in_force);
    }

    /// Shows whether the configuration in force is the one in the file.
    pub fn is_as_configured(&self, is_so: bool) {
        self.0.is_as_configured.set(is_so.into());
    }

    /// Shows that the process is stopping.
    pub fn draining(&self) {
        self.0.draining.set(1);
    }

    /// The totals so far, over all routes.
    pub fn totals(&self) -> Totals {
        let routes = self.0.routes.lock();
        Totals {
            turns: routes.values().map(|route| route.turns()).sum(),
            no_session: routes.values().map(|route| route.no_session()).sum(),
            refused: routes.values().map(|route| route.refused()).sum(),
            lost: self.0.lost_total.load(Ordering::Relaxed),
            waited: self.0.waiters.begun.load(Ordering::Relaxed),
            held: self.0.held.get(),
            waiting: self.0.waiters.waiting.get(),
        }
    }

    /// The longest wait that ended since the last call, in milliseconds.
    pub fn take_longest_wait(&self) -> u64 {
        self.0.waiters.longest.swap(0, Ordering::Relaxed)
    }

    /// All metrics, in this format.
    pub fn text(&self, format: ExpositionFormat) -> String {
        format.text(&self.0.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
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
