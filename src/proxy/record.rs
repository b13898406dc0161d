//! What is known of a request, and its end: one log event, one count, one trace on every path.
//!
//! Invariant: whoever begins a record ends it, by one of the `finish` methods, which consume it, or by
//! `Drop` where a request is dropped in the middle. [`RequestRecord::take`] moves the record of a turn
//! that goes on without its client.

use std::mem;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, Method};
use tokio::time::Instant;

use super::end::End;
use super::refusal::{Refusal, UnfitResponse};
use super::session::{NeededLock, SessionError};
use crate::config::{Route, Upstream};
use crate::journal::JournalEvent;
use crate::key::SessionKey;
use crate::listen::RejectedRequest;
use crate::lock::{ClaimId, Fence, LockGuard, LockLoss, Unprotected};
use crate::metrics::{ReplayKind, RequestTimes, ViewerGauge};
use crate::outcome::Outcome;
use crate::redact;
use crate::trace::{self, RequestTrace, TurnTrace};
use crate::wire::Bounds;
use hold_times::RouteHolds;

pub(super) use comments::CommentCounter;
pub use sinks::RecordSinks;
pub(super) use sinks::RouteSinks;

mod access_log;
mod comments;
mod early_response;
mod hold_times;
mod session_watch;
mod sinks;

/// What is known of a request so far.
pub(super) struct RequestRecord {
    /// When the request's head had arrived.
    begun: Instant,
    method: Method,
    /// The path of the request's target, copied: the target itself would keep the buffer in which its head was read.
    path: Box<str>,
    pub(super) request_id: String,
    /// The bounds of the client's connection, which know why it ended.
    pub(super) client: Bounds,
    /// The record is finished, or was taken along.
    is_finished: bool,
    sinks: Arc<RouteSinks>,
    /// The route that took the request; `None`: no route, or none yet.
    route: Option<Arc<Route>>,
    /// The index of that route in the configuration.
    route_index: Option<usize>,
    /// The request's session; `None`: it takes no lock.
    key: Option<SessionKey>,
    /// Why no session was found for a request whose route locks and lets it pass.
    no_session: Option<SessionError>,
    /// The status of the turn's own response; `None`: there was none.
    status: Option<u16>,
    /// Whether the client's response began while its turn waited.
    is_early: AtomicBool,
    /// The turn whose answer the request reads; `None`: it reads none.
    attached_to: Option<ClaimId>,
    /// Why the backend's response can't follow that head; `None`: it can, or there is none.
    unfit: Option<UnfitResponse>,
    /// The status of the error that is told behind that head; `None`: there is no error.
    event_status: Option<u16>,
    /// How many comments the client got; unset: none.
    comments: OnceLock<CommentCounter>,
    /// What went wrong, for the operator.
    error: Option<String>,
    /// How the lock was lost; `None`: it wasn't.
    loss: Option<LockLoss>,
    /// When the lock was granted.
    granted_at: Option<Instant>,
    /// For how long the lock was held, once it no longer is; `None`: until the record is finished.
    pub(super) hold: Option<Duration>,
    /// How the turn ended that went on without its client; `None`: it didn't go on.
    continued: Option<Outcome>,
    fence: Option<Fence>,
    /// Set when the turn ran without the store's lock.
    unprotected: Option<Arc<Unprotected>>,
    /// When the lock was asked for; `None` before that, and again once it was granted or refused.
    asked_at: Option<Instant>,
    /// For how long the lock was waited for.
    wait: Option<Duration>,
    /// From `begun` to the head of the backend's response.
    first_byte: Option<Duration>,
    /// What the request's spans are made of; `None`: it isn't traced.
    trace: Option<Box<RequestTrace>>,
    /// The trace that the turn begins for its backend, until the request is sent; `None`: it begins none.
    pub(super) turn_trace: Option<Box<TurnTrace>>,
}

// === impl RequestRecord ===

impl RequestRecord {
    /// Begins the record of a request. Boxed, because it moves with the turn, from step to step.
    pub(super) fn begin(
        head: &Parts,
        request_id: String,
        client: Bounds,
        sinks: &Arc<RouteSinks>,
    ) -> Box<Self> {
        let record = Self::new(head.method.clone(), client, Arc::clone(sinks));
        let mut record = Box::new(record);
        record.path = head.uri.path().into();
        record.request_id = request_id;
        let tracer = sinks.tracer.as_ref();
        record.trace = tracer.and_then(|tracer| tracer.begin(&head.headers, record.begun));
        record
    }

    /// The record of a request of which nothing more is known.
    fn new(method: Method, client: Bounds, sinks: Arc<RouteSinks>) -> Self {
        Self {
            begun: Instant::now(),
            method,
            path: Box::default(),
            request_id: String::new(),
            client,
            is_finished: false,
            sinks,
            route: None,
            route_index: None,
            key: None,
            no_session: None,
            status: None,
            is_early: AtomicBool::new(false),
            attached_to: None,
            unfit: None,
            event_status: None,
            comments: OnceLock::new(),
            error: None,
            loss: None,
            granted_at: None,
            hold: None,
            continued: None,
            fence: None,
            unprotected: None,
            asked_at: None,
            wait: None,
            first_byte: None,
            trace: None,
            turn_trace: None,
        }
    }

    /// Moves the record to a turn that goes on without its client. The rest records nothing.
    pub(super) fn take(&mut self) -> Box<Self> {
        let (client, sinks) = (self.client.clone(), Arc::clone(&self.sinks));
        let mut rest = Self::new(self.method.clone(), client, sinks);
        rest.is_finished = true;
        Box::new(mem::replace(self, rest))
    }

    /// Notes the route that took the request, and its index in the configuration.
    pub(super) fn routed(&mut self, route: &Arc<Route>, index: usize) {
        self.route = Some(Arc::clone(route));
        self.route_index = Some(index);
    }

    /// The name of the route that took the request; `None`: no route, or none yet.
    pub(super) fn route_name(&self) -> Option<&str> {
        self.route.as_deref().map(|route| &*route.name)
    }

    /// The time of silence after which the client of the route gets a comment; `None`: never.
    pub(super) fn keep_alive(&self) -> Option<Duration> {
        self.route.as_deref()?.turn.as_ref()?.lock.keep_alive
    }

    /// After which time the busy session of the request is likely to be free, by how long the last turns of its
    /// route took: the running turn has held the lock for `age`, and there are so many waiters.
    pub(super) fn time_until_free(&self, age: Option<Duration>, waiters: usize) -> Duration {
        let holds = self.route_holds().map(Arc::as_ref);
        holds
            .unwrap_or(&RouteHolds::default())
            .time_until_free(age, waiters)
    }

    fn route_holds(&self) -> Option<&Arc<RouteHolds>> {
        self.sinks.holds.get(self.route_index?)
    }

    /// Notes which lock the request needs, and gives its session. A route whose requests name none is warned of.
    pub(super) fn needs_lock(&mut self, lock: NeededLock) -> Option<SessionKey> {
        let watched = self.route_index;
        let watched = watched.and_then(|index| self.sinks.sessions.get(index));
        match lock {
            NeededLock::Unneeded => {}
            NeededLock::Session { key, .. } => {
                if let Some(watched) = watched {
                    watched.named();
                }
                self.key = Some(key);
            }
            NeededLock::NoSession(error) => {
                let (name, reason) = (self.route_name().unwrap_or_default(), error.log_detail());
                if let Some(watched) = watched {
                    watched.unnamed(name, reason.as_deref());
                }
                self.no_session = Some(error);
            }
        }
        self.key.clone()
    }

    /// Notes that the lock is asked for.
    pub(super) fn lock_asked(&mut self) {
        let now = Instant::now();
        self.asked_at = Some(now);
        if let Some(trace) = &mut self.trace {
            trace.lock_asked(now);
        }
    }

    /// Notes that the lock was not granted, and is no longer asked for.
    pub(super) fn lock_refused(&mut self) {
        if self.asked_at.is_some() {
            self.lock_decided(Instant::now(), false);
        }
    }

    /// Notes that the lock was granted.
    pub(super) fn lock_granted(&mut self, held: &LockGuard) {
        self.lock_decided(held.since(), true);
        held.follow(self.client.byte_clock());
        self.fence = held.fence();
        self.unprotected = held.unprotected().cloned();
        self.sinks.routes.route(self.route_index).turn_began();
    }

    fn lock_decided(&mut self, now: Instant, is_granted: bool) {
        let Some(asked_at) = self.asked_at.take() else {
            return;
        };
        self.wait = Some(now - asked_at);
        self.granted_at = is_granted.then_some(now);
        if let Some(trace) = &mut self.trace {
            trace.lock_decided(now, is_granted);
        }
    }

    /// Notes that the request is sent to this backend. The trace context is added to its headers.
    pub(super) fn sent_to(&mut self, upstream: &Upstream, headers: &mut HeaderMap) {
        match (&mut self.trace, self.turn_trace.take()) {
            (Some(trace), turn) => trace.sent_to(upstream, turn.as_deref(), headers),
            (None, Some(turn)) => turn.add_to(headers),
            (None, None) => {}
        }
    }

    /// Counts the comments that keep the client.
    pub(super) fn comments(&self) -> &CommentCounter {
        self.comments
            .get_or_init(|| CommentCounter::new(self.client.clone(), &self.sinks, self.route_index))
    }

    /// Notes that the head of the backend's response has arrived.
    pub(super) fn response_began(&mut self, status: u16) {
        self.status = Some(status);
        self.first_byte = Some(self.begun.elapsed());
    }

    /// Counts the request as a viewer, which reads the answer of a turn or waits for it, until the result is dropped.
    pub(super) fn viewing(&self) -> ViewerGauge {
        self.sinks.metrics.viewing()
    }

    /// Notes that the request reads the answer of this turn, which runs or has ended.
    pub(super) fn attached(&mut self, turn: ClaimId, has_ended: bool) {
        self.attached_to = Some(turn);
        let kind = match has_ended {
            true => ReplayKind::Kept,
            false => ReplayKind::Live,
        };
        self.sinks.routes.route(self.route_index).replayed(kind);
    }

    /// Finishes the record of a request that got an error response with this status and of this many bytes, or an event
    /// in its place.
    pub(super) fn finish_refused(mut self: Box<Self>, refusal: &Refusal, status: u16, bytes: u64) {
        match self.is_early() {
            true => self.event_status = Some(refusal.status().as_u16()),
            false => self.status = Some(status),
        }
        self.error = refusal.log_detail();
        if let Refusal::LockLost(loss) = refusal {
            self.loss = Some(*loss);
        }
        self.write(refusal.outcome(), bytes);
    }

    /// Notes, for the log, what is wrong with the response.
    pub(super) fn note_error(&mut self, reason: String) {
        self.error = Some(reason);
    }

    /// Finishes the record of a turn that held its lock for `hold` and handed `bytes` of the response's
    /// body to the client's connection.
    pub(super) fn finish_turn(mut self: Box<Self>, end: End, hold: Option<Duration>, bytes: u64) {
        self.hold = hold;
        let end = match end {
            End::Disconnected(None) => End::Disconnected(self.client.ended()),
            _ => end,
        };
        self.note_loss(end);
        let outcome = match self.outcome_told(end) {
            Outcome::Complete if self.no_session.is_some() => Outcome::NoSession,
            outcome => outcome,
        };
        self.write(outcome, bytes);
    }

    /// Finishes the record of a turn that went on without its client, and ended as `end` says. `has_all`: the
    /// client had got every byte of the body when it left, so it left at the end, as clients of MCP do.
    pub(super) fn finish_without_client(
        mut self: Box<Self>,
        end: End,
        hold: Option<Duration>,
        bytes: u64,
        has_all: bool,
    ) {
        self.continued = Some(end.outcome());
        self.note_loss(end);
        let end = match end {
            // Behind a response that can't be handed on, the client gets the error last.
            End::Complete
                if has_all && self.unfit.is_none() && !self.client.is_unacknowledged() =>
            {
                End::Complete
            }
            _ => End::Disconnected(None),
        };
        self.finish_turn(end, hold, bytes);
    }

    fn note_loss(&mut self, end: End) {
        if let End::LockLost(loss) = end {
            self.loss = Some(loss);
            self.error = Some(loss.to_string());
        }
    }

    /// Writes the record to the metrics, the log, the journal and the trace.
    fn write(&mut self, outcome: Outcome, bytes: u64) {
        self.is_finished = true;
        // A request that is dropped while it waits stops waiting here.
        self.lock_refused();
        let ended = Instant::now();
        let hold = self.hold.or(self.granted_at.map(|granted| ended - granted));
        let times = RequestTimes {
            wait: self.wait,
            first_byte: self.first_byte,
            hold,
        };
        let counters = self.sinks.routes.route(self.route_index);
        counters.request_ended(outcome, times);
        if let (Some(holds), Some(hold)) = (self.route_holds(), hold) {
            holds.note(hold);
        }
        self.log(outcome, times, ended - self.begun, bytes);
        if outcome.is_refusal_or_loss() {
            self.sinks.journal.note(JournalEvent {
                at: SystemTime::now(),
                outcome,
                status: self.told_status(),
                route: self.route.as_ref().map(|route| route.name.clone()),
                key: self.key.clone(),
                request_id: self.request_id.clone(),
                wait: self.wait,
                error: self.error.clone(),
            });
        }
        self.finish_trace(outcome, hold, ended);
    }

    fn finish_trace(&mut self, outcome: Outcome, hold: Option<Duration>, ended: Instant) {
        let Some(trace) = self.trace.take() else {
            return;
        };
        let path = self.path.chars().take(trace::LONGEST_PATH);
        let status = self.told_status();
        let facts = trace::RequestFacts {
            method: redact::known_method(self.method.as_str()),
            path: path.collect(),
            route: self.route.take(),
            key: self.key.take(),
            fence: self.fence.map(|fence| fence.0),
            outcome,
            status,
            // Otherwise it is that of an error response.
            backend_status: self.status.filter(|_| self.first_byte.is_some()),
            error: self.error.take(),
            loss: self.loss,
            hold,
            request_id: mem::take(&mut self.request_id),
        };
        trace.finish(ended, facts);
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.is_finished {
            self.write(End::Disconnected(self.client.ended()).outcome(), 0);
        }
    }
}

/// Records what a client sent that never became a request: as much as could be read of it.
pub(super) fn record_rejected(
    sinks: &RouteSinks,
    rejected: &RejectedRequest,
    outcome: Outcome,
    status: u16,
    bytes: u64,
) {
    let counters = sinks.routes.route(None);
    counters.request_ended(outcome, RequestTimes::default());
    sinks.journal.note(JournalEvent {
        at: SystemTime::now(),
        outcome,
        status: Some(status),
        route: None,
        key: None,
        request_id: String::new(),
        wait: None,
        error: Some(rejected.reason.to_string()),
    });
    access_log::rejected(rejected, outcome, status, bytes);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Uri};

    use super::*;
    use crate::config::Config;
    use crate::journal::Journal;
    use crate::metrics::Metrics;

    #[test]
    fn a_record_keeps_no_part_of_the_buffer_in_which_its_head_was_read() {
        let config = Config::read("test", "upstream = \"http://a\"", &Vec::new());
        let config = config.expect("it is valid");
        let sinks = RecordSinks::new(Metrics::new(), Journal::default(), None);
        let sinks = Arc::new(sinks.for_config(&config));
        let buffer = Bytes::from(b"/v1/chat?a=b".to_vec());
        let target = Uri::from_maybe_shared(buffer.clone()).expect("a target");
        let mut request = Request::new(());
        *request.uri_mut() = target;
        let (head, ()) = request.into_parts();
        let record = RequestRecord::begin(&head, String::new(), Bounds::default(), &sinks);
        drop(head);
        assert_eq!(&*record.path, "/v1/chat", "what is logged");
        assert!(buffer.is_unique(), "nobody else has it");
    }
}
