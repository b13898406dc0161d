//! The metrics of each route.
//!
//! Invariant: a request finds its metrics by the index of its route, so that it costs an addition and no
//! look-up. A route that the next configuration has, too, goes on with its counts. A series appears when
//! it is counted for the first time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::outcome::Outcome;

/// The metrics of one configuration's routes.
#[derive(Debug)]
pub struct RouteMetricsTable {
    /// In the order of the configuration.
    routes: Box<[Arc<RouteMetrics>]>,
    /// The metrics of requests that no route takes.
    unrouted: Arc<RouteMetrics>,
}

/// The metrics of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    families: Arc<RouteFamilies>,
    name: Arc<str>,
    requests: [OnceLock<Counter>; Outcome::COUNT],
    wait: OnceLock<Histogram>,
    hold: OnceLock<Histogram>,
    first_byte: OnceLock<Histogram>,
    early: OnceLock<Counter>,
    replays: [OnceLock<Counter>; ReplayKind::ALL.len()],
    comments: OnceLock<Counter>,
    turns: AtomicU64,
}

/// What a request gets that reads the answer of another request's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayKind {
    /// The answer of a turn that runs.
    Live,
    /// An answer that has ended.
    Kept,
}

/// How long the parts of a request took; `None` for a part that it did not reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestTimes {
    /// From asking for the lock to getting it, or to giving up.
    pub wait: Option<Duration>,
    /// From the arrival of the request's head to the head of the backend's response.
    pub first_byte: Option<Duration>,
    /// For how long the lock was held.
    pub hold: Option<Duration>,
}

/// The registered metrics that have a `route` label.
#[derive(Debug)]
pub(super) struct RouteFamilies {
    requests: Family<RequestLabels, Counter>,
    wait: Family<RouteLabels, Histogram, fn() -> Histogram>,
    hold: Family<RouteLabels, Histogram, fn() -> Histogram>,
    first_byte: Family<RouteLabels, Histogram, fn() -> Histogram>,
    early: Family<RouteLabels, Counter>,
    replays: Family<ReplayLabels, Counter>,
    comments: Family<RouteLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplayLabels {
    route: Arc<str>,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: Arc<str>,
}

/// Buckets from a free lock (a round trip to the store) to a queue of several turns, in seconds.
const WAITS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Buckets from a short response to an agent that works for half an hour, in seconds.
const HOLDS: [f64; 15] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0,
];

/// Buckets from a backend that answers from memory to `timeouts.response_head`, in seconds.
const FIRST_BYTES: [f64; 15] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

// === impl ReplayKind ===

impl ReplayKind {
    const ALL: [Self; 2] = [Self::Live, Self::Kept];

    fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Kept => "kept",
        }
    }
}

// === impl RouteMetricsTable ===

impl RouteMetricsTable {
    pub(super) fn new(routes: Box<[Arc<RouteMetrics>]>, unrouted: Arc<RouteMetrics>) -> Self {
        Self { routes, unrouted }
    }

    /// The metrics of the route at this index; `None`: of requests that no route takes.
    pub fn route(&self, index: Option<usize>) -> &RouteMetrics {
        let route = index.and_then(|index| self.routes.get(index));
        route.unwrap_or(&self.unrouted)
    }
}

// === impl RouteMetrics ===

impl RouteMetrics {
    pub(super) fn new(families: &Arc<RouteFamilies>, name: &str) -> Self {
        Self {
            families: Arc::clone(families),
            name: name.into(),
            requests: [const { OnceLock::new() }; Outcome::COUNT],
            wait: OnceLock::new(),
            hold: OnceLock::new(),
            first_byte: OnceLock::new(),
            early: OnceLock::new(),
            replays: [const { OnceLock::new() }; ReplayKind::ALL.len()],
            comments: OnceLock::new(),
            turns: AtomicU64::new(0),
        }
    }

    /// Counts a turn that begins, with its lock or without one.
    pub fn turn_began(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a response that begins while its turn waits.
    pub fn response_began_early(&self) {
        self.count(&self.early, &self.families.early);
    }

    /// Counts a comment that keeps a client, or an event in its place.
    pub fn comment_sent(&self) {
        self.count(&self.comments, &self.families.comments);
    }

    fn count(&self, counter: &OnceLock<Counter>, family: &Family<RouteLabels, Counter>) {
        let counter = counter.get_or_init(|| {
            family.get_or_create_owned(&RouteLabels {
                route: Arc::clone(&self.name),
            })
        });
        counter.inc();
    }

    /// Counts a request that reads the answer of another request's turn.
    pub fn replayed(&self, kind: ReplayKind) {
        let counter = self.replays[kind as usize].get_or_init(|| {
            let label = ReplayLabels {
                route: Arc::clone(&self.name),
                kind: kind.as_str(),
            };
            self.families.replays.get_or_create_owned(&label)
        });
        counter.inc();
    }

    /// Counts a request that has ended.
    pub fn request_ended(&self, outcome: Outcome, times: RequestTimes) {
        let counter = self.requests[outcome as usize].get_or_init(|| {
            let label = RequestLabels {
                route: Arc::clone(&self.name),
                outcome: outcome.as_str(),
            };
            self.families.requests.get_or_create_owned(&label)
        });
        counter.inc();
        let families = &self.families;
        for (time, histogram, family) in [
            (times.wait, &self.wait, &families.wait),
            (times.hold, &self.hold, &families.hold),
            (times.first_byte, &self.first_byte, &families.first_byte),
        ] {
            if let Some(time) = time {
                let histogram = histogram.get_or_init(|| {
                    family.get_or_create_owned(&RouteLabels {
                        route: Arc::clone(&self.name),
                    })
                });
                histogram.observe(time.as_secs_f64());
            }
        }
    }

    /// How many turns have begun.
    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How many requests passed without naming a session, although the route locks.
    pub(super) fn no_session(&self) -> u64 {
        self.ended(Outcome::NoSession)
    }

    /// How many requests were refused.
    pub(super) fn refused(&self) -> u64 {
        let refused = Outcome::ALL.iter().filter(|outcome| outcome.is_refusal());
        refused.map(|outcome| self.ended(*outcome)).sum()
    }

    fn ended(&self, outcome: Outcome) -> u64 {
        let counter = self.requests[outcome as usize].get();
        counter.map(Counter::get).unwrap_or_default()
    }
}

// === impl RouteFamilies ===

impl RouteFamilies {
    pub(super) fn register(registry: &mut Registry) -> Arc<Self> {
        let waits: fn() -> _ = || Histogram::new(WAITS);
        let holds: fn() -> _ = || Histogram::new(HOLDS);
        let first_bytes: fn() -> _ = || Histogram::new(FIRST_BYTES);
        let families = Self {
            requests: Family::default(),
            wait: Family::new_with_constructor(waits),
            hold: Family::new_with_constructor(holds),
            first_byte: Family::new_with_constructor(first_bytes),
            early: Family::default(),
            replays: Family::default(),
            comments: Family::default(),
        };
        registry.register(
            "requests",
            "Requests that have ended, by outcome; route is empty for requests that no route took",
            Family::clone(&families.requests),
        );
        registry.register(
            "lock_wait_seconds",
            "From asking for a session's lock to getting it, being refused, or leaving",
            Family::clone(&families.wait),
        );
        registry.register(
            "lock_hold_seconds",
            "From getting a session's lock to the end of the turn",
            Family::clone(&families.hold),
        );
        registry.register(
            "time_to_first_byte_seconds",
            "From a request's arrival to the head of the backend's response, the wait included",
            Family::clone(&families.first_byte),
        );
        registry.register(
            "early_responses",
            "Responses that began while their turns waited in the queue",
            Family::clone(&families.early),
        );
        registry.register(
            "replays",
            "Requests that read the answer of another request's turn: live (it runs), kept (it has ended)",
            Family::clone(&families.replays),
        );
        registry.register(
            "keep_alive_comments",
            "Comments, and events in their place, that kept clients while nothing else was sent",
            Family::clone(&families.comments),
        );
        Arc::new(families)
    }
}
