//! Traces: what is recorded of a request for its spans, and joined to its caller's trace.
//!
//! One span for each request, and below it one for its wait, one for its lock and one for its backend,
//! which is told to hang its own below that. They are made when the request is over, out of the
//! moments that were noted on its way, by a thread of their own (`export`). Invariant: a request never
//! waits for its spans; what can't be sent is dropped, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::config::upstream::UpstreamAddress;
use crate::config::{Route, Upstream};
use crate::key::SessionKey;
use context::TraceContext;

pub use export::ExporterHandle;

mod collector;
mod context;
mod export;
mod spans;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Where the records of requests go to become spans. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<SpanQueue>);

#[derive(Debug)]
struct SpanQueue {
    ended: mpsc::Sender<Box<TraceRecord>>,
    /// How many found no place in it.
    dropped: AtomicU64,
}

/// How many requests wait for their spans at most while the collector is slow or gone: some seconds of
/// a busy replica, and a few megabytes. None of them holds on to the head that it came with.
const QUEUE: usize = 4096;

/// How much of a path stands in a span, in characters: more than any that means something has.
pub const LONGEST_PATH: usize = 1024;

/// A request that is traced, on its way.
pub struct RequestTrace {
    tracer: Tracer,
    context: TraceContext,
    moments: RequestMoments,
}

/// When what happened to a request.
#[derive(Clone, Debug)]
struct RequestMoments {
    begun: Instant,
    /// The same by the clock that spans are told by.
    begun_at: SystemTime,
    /// Its lock was asked for.
    asked: Option<Instant>,
    /// It was granted, or refused.
    settled: Option<(Instant, bool)>,
    /// The request was sent to its backend.
    sent: Option<(Instant, UpstreamAddress)>,
    /// The head of the backend's answer was there.
    answered: bool,
}

/// What else there is to say of a request when it is over.
#[derive(Debug)]
pub struct RequestFacts {
    /// Its method, if it is one that everybody knows.
    pub method: &'static str,
    /// What was asked for, at most [`LONGEST_PATH`] of it, without the query.
    pub path: String,
    /// The route that took it.
    pub route: Option<Arc<Route>>,
    /// Its session.
    pub key: Option<SessionKey>,
    /// The number of its lock's acquisition.
    pub fence: Option<u64>,
    /// How it ended, in a word.
    pub outcome: &'static str,
    /// The status that it was answered with.
    pub status: Option<u16>,
    /// What the operator should know of a failure.
    pub error: Option<String>,
    /// How its lock was lost, in a word.
    pub lost: Option<&'static str>,
    /// For how long it had its lock when its backend was done.
    pub hold: Option<Duration>,
    /// Its id.
    pub request_id: String,
}

/// All that spans are made of.
#[derive(Debug)]
struct TraceRecord {
    context: TraceContext,
    moments: RequestMoments,
    ended: Instant,
    told: RequestFacts,
}

// === impl Tracer ===

impl Tracer {
    /// Begins to trace a request that has come at `begun`. `None`: its caller says that its trace isn't
    /// recorded, which holds for everybody on its way.
    pub fn begin(&self, headers: &HeaderMap, begun: Instant) -> Option<Box<RequestTrace>> {
        let ids = RandomIdGenerator::default();
        let context = TraceContext::of(headers, ids.new_trace_id(), ids.new_span_id())?;
        let moments = RequestMoments {
            begun,
            begun_at: SystemTime::now(),
            asked: None,
            settled: None,
            sent: None,
            answered: false,
        };
        Some(Box::new(RequestTrace {
            tracer: self.clone(),
            context,
            moments,
        }))
    }
}

// === impl Trace ===

impl RequestTrace {
    /// Its lock is asked for.
    pub fn asks(&mut self, at: Instant) {
        self.moments.asked = Some(at);
    }

    /// Its lock was granted, or refused.
    pub fn settled(&mut self, at: Instant, is_granted: bool) {
        self.moments.settled = Some((at, is_granted));
    }

    /// It is sent to its backend, which is told what to hang its own spans below.
    pub fn sends(&mut self, upstream: &Upstream, headers: &mut HeaderMap) {
        self.moments.sent = Some((Instant::now(), upstream.address.clone()));
        if self.context.is_new() {
            // It belongs to a trace that could not be read (Trace Context §3.4).
            headers.remove(TRACESTATE);
        }
        if let Ok(value) = HeaderValue::try_from(self.context.for_the_backend()) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// The head of the backend's answer is there.
    pub fn answered(&mut self) {
        self.moments.answered = true;
    }

    /// It is over.
    pub fn finish(self, ended: Instant, told: RequestFacts) {
        let Self {
            tracer,
            context,
            moments,
        } = self;
        let record = Box::new(TraceRecord {
            context,
            moments,
            ended,
            told,
        });
        if let Err(mpsc::error::TrySendError::Full(_)) = tracer.0.ended.try_send(record) {
            tracer.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Moments ===

impl RequestMoments {
    /// A moment by the clock that spans are told by.
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
            let told = RequestFacts {
                method: "POST",
                path: "/chat".to_owned(),
                route: None,
                key: None,
                fence: None,
                outcome: "complete",
                status: Some(200),
                error: None,
                lost: None,
                hold: None,
                request_id: "r1".to_owned(),
            };
            trace.finish(now, told);
        }
        assert!(
            ended.try_recv().is_ok() && ended.try_recv().is_ok(),
            "two have a place"
        );
        assert!(ended.try_recv().is_err(), "the others have none");
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3, "which is known");
    }
}
