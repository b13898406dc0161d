//! Distributed tracing: what is recorded of a request for its spans, as part of its caller's trace.
//!
//! A request has one span, with children for the wait, for the lock and for the backend. The backend gets
//! a `traceparent`, so that its own spans are children of the latter. A thread (`export`) makes the spans
//! when the request is over. Invariant: a request never waits for its spans. Spans that can't be sent are
//! dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::upstream::UpstreamAddress;
use crate::config::{Route, Upstream};
use crate::key::SessionKey;
use crate::outcome::{LockLoss, Outcome};
use context::TraceContext;

pub use context::{TurnTrace, callers, trace_id};

pub use export::ExporterHandle;

mod collector;
mod context;
mod export;
mod spans;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Takes the records of requests, and turns them into spans. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<SpanQueue>);

/// Records on their way to the exporter.
#[derive(Debug)]
struct SpanQueue {
    ended: mpsc::Sender<Box<TraceRecord>>,
    /// How many records did not fit into the queue.
    dropped: AtomicU64,
}

/// How many records wait at most while the collector is slow or gone: some seconds of a busy replica, and
/// a few megabytes. A record keeps no buffer of its request alive.
const QUEUE: usize = 4096;

/// How much of a path a span contains, in characters: more than any real path has.
pub const LONGEST_PATH: usize = 1024;

/// What is recorded of a traced request until it is over.
pub struct RequestTrace {
    tracer: Tracer,
    context: TraceContext,
    moments: RequestMoments,
}

/// The moments of a request.
#[derive(Clone, Debug)]
struct RequestMoments {
    begun: Instant,
    /// `begun` by the wall clock, which spans use.
    begun_at: SystemTime,
    /// When the lock was asked for; `None`: it wasn't.
    asked: Option<Instant>,
    /// When the lock was granted or refused; `None`: neither.
    decided: Option<LockDecision>,
    /// When and where the request was sent; `None`: it wasn't.
    sent: Option<SentRequest>,
}

/// Whether a lock was granted, and when that was decided.
#[derive(Clone, Copy, Debug)]
struct LockDecision {
    at: Instant,
    is_granted: bool,
}

/// When a request was sent to its backend, and where that is.
#[derive(Clone, Debug)]
struct SentRequest {
    at: Instant,
    upstream: UpstreamAddress,
}

/// What is known of a request when it is over.
#[derive(Debug)]
pub struct RequestFacts {
    /// The method, if it is a standard one.
    pub method: &'static str,
    /// The path without the query, at most [`LONGEST_PATH`] characters of it.
    pub path: String,
    /// The route; `None`: no route took the request.
    pub route: Option<Arc<Route>>,
    /// The session; `None`: the request takes no lock.
    pub key: Option<SessionKey>,
    /// The fence of the lock; `None`: the turn had no lock in the store.
    pub fence: Option<u64>,
    /// How the request ended.
    pub outcome: Outcome,
    /// The status that the client was told; `None`: none.
    pub status: Option<u16>,
    /// The status of the backend's response; `None`: it gave none.
    pub backend_status: Option<u16>,
    /// What went wrong; `None`: the outcome says it all.
    pub error: Option<String>,
    /// How the lock was lost; `None`: it wasn't.
    pub loss: Option<LockLoss>,
    /// For how long the lock was held; `None`: it wasn't.
    pub hold: Option<Duration>,
    /// The request's id.
    pub request_id: String,
}

/// A finished request, of which spans are made.
#[derive(Debug)]
struct TraceRecord {
    context: TraceContext,
    moments: RequestMoments,
    ended: Instant,
    facts: RequestFacts,
}

// === impl Tracer ===

impl Tracer {
    /// Begins to trace a request that arrived at `begun`; `None`: its caller does not record the trace
    /// (the sampled flag of W3C Trace Context), which holds for all services.
    pub fn begin(&self, headers: &HeaderMap, begun: Instant) -> Option<Box<RequestTrace>> {
        let ids = RandomIdGenerator::default();
        let context = TraceContext::from_headers(headers, ids.new_trace_id(), ids.new_span_id())?;
        let moments = RequestMoments {
            begun,
            begun_at: SystemTime::now(),
            asked: None,
            decided: None,
            sent: None,
        };
        Some(Box::new(RequestTrace {
            tracer: self.clone(),
            context,
            moments,
        }))
    }
}

// === impl RequestTrace ===

impl RequestTrace {
    /// Notes that the lock is asked for.
    pub fn lock_asked(&mut self, at: Instant) {
        self.moments.asked = Some(at);
    }

    /// Notes that the lock was granted or refused.
    pub fn lock_decided(&mut self, at: Instant, is_granted: bool) {
        self.moments.decided = Some(LockDecision { at, is_granted });
    }

    /// Notes that the request is sent to its backend, and adds the trace context to its headers. `turn` is the
    /// trace that the turn begins; `None`: it goes on with its caller's.
    pub fn sent_to(
        &mut self,
        upstream: &Upstream,
        turn: Option<&TurnTrace>,
        headers: &mut HeaderMap,
    ) {
        self.moments.sent = Some(SentRequest {
            at: Instant::now(),
            upstream: upstream.address.clone(),
        });
        if let Some(turn) = turn {
            self.context.restart(turn);
        }
        self.context.add_to(headers, turn);
    }

    /// Hands the finished request to the exporter.
    pub fn finish(self, ended: Instant, facts: RequestFacts) {
        let record = Box::new(TraceRecord {
            context: self.context,
            moments: self.moments,
            ended,
            facts,
        });
        let queue = &self.tracer.0;
        if let Err(mpsc::error::TrySendError::Full(_)) = queue.ended.try_send(record) {
            queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl RequestMoments ===

impl RequestMoments {
    /// A moment by the wall clock.
    fn at(&self, moment: Instant) -> SystemTime {
        self.begun_at + moment.saturating_duration_since(self.begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_place_in_the_queue_is_dropped_and_counted() {
        let (sender, mut ended) = mpsc::channel(2);
        let queue = Arc::new(SpanQueue {
            ended: sender,
            dropped: AtomicU64::new(0),
        });
        let tracer = Tracer(Arc::clone(&queue));
        for _ in 0..5 {
            let now = Instant::now();
            let trace = tracer.begin(&HeaderMap::new(), now).unwrap();
            let facts = RequestFacts {
                method: "POST",
                path: "/chat".to_owned(),
                route: None,
                key: None,
                fence: None,
                outcome: Outcome::Complete,
                status: Some(200),
                backend_status: Some(200),
                error: None,
                loss: None,
                hold: None,
                request_id: "r1".to_owned(),
            };
            trace.finish(now, facts);
        }
        assert!(
            ended.try_recv().is_ok() && ended.try_recv().is_ok(),
            "two have a place"
        );
        assert!(ended.try_recv().is_err(), "the others have none");
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3, "which is known");
    }
}
