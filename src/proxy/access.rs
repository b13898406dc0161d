//! The one event that is told of every request, whichever way it went.
//!
//! Whoever begins a record ends it: by [`RequestRecord::finish`], which consumes it, and by `Drop` where a
//! request is dropped in the middle. One that goes on then is taken along by [`RequestRecord::take`].

use std::borrow::Cow;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::request::Parts;
use http::{HeaderMap, Method, Uri};
use tokio::time::Instant;

use super::books::RouteSinks;
use crate::config::{Route, Upstream};
use crate::journal::JournalEvent;
use crate::key::{self, SessionKey};
use crate::listen::RejectedRequest;
use crate::lock::{Fence, LockGuard, LockLoss, Unprotected};
use crate::metrics::{Outcome, RequestTimes};
use crate::trace::{self, RequestTrace};
use crate::wire::{Bounds, Ended};

/// What is known of a request so far.
pub(super) struct RequestRecord {
    begun: Instant,
    method: Method,
    uri: Uri,
    request_id: String,
    /// Of the connection that it came over, which know why it was dropped.
    client: Bounds,
    told: bool,
    books: Arc<RouteSinks>,
    /// The route that took it, and its place in the configuration.
    pub(super) route: Option<(Arc<Route>, usize)>,
    /// Its session.
    pub(super) key: Option<SessionKey>,
    /// The status that it was answered with.
    pub(super) status: Option<u16>,
    /// What the operator should know of a failure.
    pub(super) error: Option<String>,
    /// How its lock was lost.
    lost: Option<LockLoss>,
    /// When it got its lock.
    granted: Option<Instant>,
    /// For how long it held its lock, once it doesn't any more; `None`: until it is told of.
    pub(super) hold: Option<Duration>,
    /// How the turn ended that went on without its client.
    continued: Option<&'static str>,
    fence: Option<Fence>,
    /// How it ran if the store did not protect it.
    unprotected: Option<Arc<Unprotected>>,
    /// When it asked for its lock; `None` when it doesn't any more.
    asked: Option<Instant>,
    wait: Option<Duration>,
    head: Option<Duration>,
    /// What its spans are made of; `None`: there are none of it.
    trace: Option<Box<RequestTrace>>,
}

// === impl Access ===

impl RequestRecord {
    /// Begins the record of a request.
    pub(super) fn begin(
        head: &Parts,
        request_id: String,
        client: Bounds,
        books: &Arc<RouteSinks>,
    ) -> Self {
        let (method, uri) = (head.method.clone(), head.uri.clone());
        let begun = Instant::now();
        let trace = books.trace(&head.headers, begun);
        let books = Arc::clone(books);
        let mut begun = Self::new(begun, (method, uri), request_id, client, books);
        begun.trace = trace;
        begun
    }

    /// The record of a request of which nothing more is known.
    fn new(
        begun: Instant,
        (method, uri): (Method, Uri),
        request_id: String,
        client: Bounds,
        books: Arc<RouteSinks>,
    ) -> Self {
        Self {
            begun,
            method,
            uri,
            request_id,
            client,
            told: false,
            books,
            route: None,
            key: None,
            status: None,
            error: None,
            lost: None,
            granted: None,
            hold: None,
            continued: None,
            fence: None,
            unprotected: None,
            asked: None,
            wait: None,
            head: None,
            trace: None,
        }
    }

    /// The request's id.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// It asks for its lock.
    pub(super) fn asks(&mut self) {
        let now = Instant::now();
        self.asked = Some(now);
        if let Some(trace) = &mut self.trace {
            trace.asks(now);
        }
    }

    /// It asks for its lock no longer.
    pub(super) fn waited(&mut self) {
        self.settled(false);
    }

    fn settled(&mut self, is_granted: bool) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        let now = Instant::now();
        self.wait = Some(now - asked);
        self.granted = is_granted.then_some(now);
        if let Some(trace) = &mut self.trace {
            trace.settled(now, is_granted);
        }
    }

    /// It got its lock.
    pub(super) fn granted(&mut self, held: &LockGuard) {
        self.settled(true);
        self.fence = held.fence();
        self.unprotected = held.unprotected().cloned();
        self.counts().began();
    }

    /// It is sent to this backend, with these headers.
    pub(super) fn sends(&mut self, upstream: &Upstream, headers: &mut HeaderMap) {
        if let Some(trace) = &mut self.trace {
            trace.sends(upstream, headers);
        }
    }

    /// Its lock was lost.
    pub(super) fn lost(&mut self, loss: LockLoss) {
        self.lost = Some(loss);
        self.error = Some(loss.to_string());
    }

    /// The head of the backend's answer is there.
    pub(super) fn answered(&mut self, status: u16) {
        self.status = Some(status);
        self.head = Some(self.begun.elapsed());
        if let Some(trace) = &mut self.trace {
            trace.answered();
        }
    }

    /// Tells of it.
    pub(super) fn finish(mut self, outcome: Outcome, bytes: u64) {
        self.tell(outcome, bytes);
    }

    /// Tells of a turn that went on without its client, and of how that ended.
    pub(super) fn finish_without_client(mut self, continued: &'static str, bytes: u64) {
        self.continued = Some(continued);
        let outcome = dropped(self.client.ended());
        self.finish(outcome, bytes);
    }

    /// Takes the record along; what stays behind tells of nothing.
    pub(super) fn take(&mut self) -> Self {
        let what = (self.method.clone(), Uri::default());
        let (client, books) = (self.client.clone(), Arc::clone(&self.books));
        let mut behind = Self::new(self.begun, what, String::new(), client, books);
        behind.told = true;
        mem::replace(self, behind)
    }

    /// What counts it.
    fn counts(&self) -> &crate::metrics::RouteMetrics {
        let index = self.route.as_ref().map(|(_, index)| *index);
        self.books.routes.of(index)
    }

    fn tell(&mut self, outcome: Outcome, bytes: u64) {
        self.told = true;
        // It has left in the middle.
        self.waited();
        let ended = Instant::now();
        let hold = self.hold.or(self.granted.map(|granted| ended - granted));
        let times = RequestTimes {
            wait: self.wait,
            first_byte: self.head,
            hold,
        };
        self.counts().ended(outcome, times);
        let micros = |duration: Option<Duration>| duration.map(|d| d.as_micros() as u64);
        let key = self.key.as_ref().map(SessionKey::shown);
        tracing::info!(
            target: "seriatim::access",
            outcome = outcome.as_str(),
            continued = self.continued,
            status = self.status,
            method = key::shown_method(self.method.as_str()),
            path = &*path(self.uri.path(), self.route.as_ref().map(|(route, _)| &**route)),
            route = self.route.as_ref().map(|(route, _)| &*route.name),
            key = key.as_deref(),
            fence = self.fence.map(|fence| fence.0),
            unprotected = self.unprotected.as_ref().map(|how| how.reason.as_str()),
            overlap = self.unprotected.as_ref().map(|how| how.has_overlapped()),
            request_id = &*self.request_id,
            bytes,
            wait_us = micros(self.wait),
            hold_us = micros(hold),
            head_us = micros(self.head),
            total_us = micros(Some(ended - self.begun)),
            error = self.error.as_deref(),
        );
        if outcome.is_refusal_or_loss() {
            self.books.journal.note(JournalEvent {
                at: SystemTime::now(),
                outcome: outcome.as_str(),
                status: self.status,
                route: self.route.as_ref().map(|(route, _)| route.name.clone()),
                key: self.key.clone(),
                request_id: self.request_id.clone(),
                wait: self.wait,
                error: self.error.clone(),
            });
        }
        drop(key);
        if let Some(trace) = self.trace.take() {
            let path = self.uri.path().chars().take(trace::LONGEST_PATH);
            let told = trace::RequestFacts {
                method: key::known_method(self.method.as_str()),
                path: path.collect(),
                route: self.route.take().map(|(route, _)| route),
                key: self.key.take(),
                fence: self.fence.map(|fence| fence.0),
                outcome: outcome.as_str(),
                status: self.status,
                error: self.error.take(),
                lost: self.lost.map(LockLoss::as_str),
                hold,
                request_id: mem::take(&mut self.request_id),
            };
            trace.finish(ended, told);
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.told {
            self.tell(dropped(self.client.ended()), 0);
        }
    }
}

/// What is shown of a path: not the query, which may hold what is nobody's business; and while ids are
/// hidden, which may stand in any part of it, what its route says of it.
fn path<'p>(path: &'p str, route: Option<&Route>) -> Cow<'p, str> {
    match route.and_then(|route| route.path.as_ref()) {
        Some(pattern) if key::ids_are_hidden() => pattern.to_string().into(),
        _ => key::shown(path),
    }
}

/// The outcome of a turn whose lock was lost.
pub(super) fn lost(loss: LockLoss) -> Outcome {
    match loss {
        LockLoss::Interrupted => Outcome::Superseded,
        LockLoss::Expired | LockLoss::Taken => Outcome::LockLost,
    }
}

/// Tells of what a client sent and is not served: of a request, as much as could be read of it.
pub(super) fn refused(
    books: &RouteSinks,
    outcome: Outcome,
    status: u16,
    refused: &RejectedRequest,
    bytes: u64,
) {
    books
        .routes
        .of(None)
        .ended(outcome, RequestTimes::default());
    books.journal.note(JournalEvent {
        at: SystemTime::now(),
        outcome: outcome.as_str(),
        status: Some(status),
        route: None,
        key: None,
        request_id: String::new(),
        wait: None,
        error: Some(refused.reason.to_string()),
    });
    let line = refused.line.as_ref();
    let path = line.and_then(|line| Some(path(line.target.split('?').next()?, None)));
    tracing::info!(
        target: "seriatim::access",
        outcome = outcome.as_str(),
        status,
        method = line.map(|line| key::shown_method(&line.method)),
        path = path.as_deref(),
        bytes,
        error = %refused.reason,
    );
}

/// The outcome of a request that was dropped in the middle, with its connection.
pub(super) fn dropped(why: Option<Ended>) -> Outcome {
    match why {
        None | Some(Ended::PeerGone) => Outcome::ClientGone,
        Some(Ended::DeadlinePassed) => Outcome::LockLost,
        Some(Ended::Silent) => Outcome::Idle,
        Some(Ended::Aborted) => Outcome::DrainAborted,
    }
}
