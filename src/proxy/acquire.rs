//! How a turn gets its lock, and what happens to its body while it waits.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderMap;
use tokio::time::{Instant, sleep, sleep_until};

use super::body_timer::BodyLimits;
use super::forward::{OutgoingBody, ReadAheadLimit};
use super::keep_alive::{EarlyResponse, WaitingTurn};
use super::record::RequestRecord;
use super::refusal::{
    BusyNotice, BusyReason, ErrorFormat, Refusal, RepeatReason, SentenceLanguage,
};
use crate::budget::Budget;
use crate::config::{Config, NestedCalls, RetryAfter, TurnConfig};
use crate::drain::DrainWatch;
use crate::key::{OnceKey, SessionKey};
use crate::listen::ClientConnection;
use crate::lock::{
    AcquireError, BusySession, CallChain, ClaimId, LockGuard, LockLoss, LockRequest, Locks,
    RepeatedState, TurnTag, WaitPlace,
};
use crate::trace::{self, TurnTrace};

/// What a turn needs to get its lock.
pub(super) struct TurnLock<'t> {
    pub(super) client: &'t ClientConnection,
    pub(super) locks: &'t Arc<Locks>,
    pub(super) budget: &'t Budget,
    pub(super) config: &'t Config,
    pub(super) drain: &'t DrainWatch,
    /// The name of the turn's route.
    pub(super) route: &'t str,
    /// What the route says of its turns.
    pub(super) turn: &'t TurnConfig,
    /// The request's headers, which say in which language a refusal is written.
    pub(super) headers: &'t HeaderMap,
    /// The turns that wait for the request; `None`: no turn does.
    pub(super) callers: Option<&'t CallChain>,
    /// What tells whether the turn repeats another one; `None`: nothing does.
    pub(super) once: Option<&'t OnceKey>,
    /// Where the turn may ask for a response before its own; `None`: its client reads no event stream.
    pub(super) early: Option<EarlyClient<'t>>,
    /// The format and the language of an error.
    pub(super) format: &'t ErrorFormat,
    pub(super) language: SentenceLanguage,
}

/// A client that may get a response before that of its turn.
pub(super) struct EarlyClient<'t> {
    response: &'t EarlyResponse,
    /// The time after which it gets one, and between two comments.
    interval: Duration,
    /// The place of its turn in the queue.
    place: Arc<WaitPlace>,
    /// When the lock was asked for first.
    asked: OnceLock<Instant>,
}

/// Why a turn did not get its lock.
pub(super) struct RefusedLock {
    pub(super) refusal: Refusal,
    /// The turn that the request repeats; `None`: it repeats none.
    pub(super) repeats: Option<(ClaimId, RepeatedState)>,
}

/// After how long a turn counts as waiting, so that its body is read ahead or may be taken back. Taking
/// a free lock takes less.
const WAITS_AFTER: Duration = Duration::from_millis(100);

// === impl RefusedLock ===

impl From<Refusal> for RefusedLock {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            repeats: None,
        }
    }
}

// === impl EarlyClient ===

impl<'t> EarlyClient<'t> {
    pub(super) fn new(response: &'t EarlyResponse, interval: Duration) -> Self {
        Self {
            response,
            interval,
            place: Arc::default(),
            asked: OnceLock::new(),
        }
    }
}

// === impl TurnLock ===

impl TurnLock<'_> {
    /// Takes the lock of `key`, or waits for it as the route says.
    ///
    /// Cancel-safe: the claim is taken back in the background.
    ///
    /// # Errors
    /// When the lock is not granted, when the process begins to stop, or when the body breaks off or
    /// is too slow.
    pub(super) async fn acquire(
        &self,
        key: SessionKey,
        body: &mut OutgoingBody,
        record: &mut RequestRecord,
    ) -> Result<LockGuard, RefusedLock> {
        let (limits, lock) = (&self.config.limits, &self.turn.lock);
        let read_ahead = ReadAheadLimit {
            budget: self.budget,
            // The other half is left to bodies that are read for their session, which can't stream.
            most: limits.max_buffered / 2,
        };
        // A turn that is only observed is never delayed.
        if lock.options.enforce {
            let holder = BodyLimits::for_holder(&self.config.timeouts, limits);
            let small = limits.read_before_lock;
            let read = body.read_if_small(small, read_ahead, holder).await;
            read.map_err(|error| Refusal::Session(error.into()))?;
        }
        record.lock_asked();
        let (locks, request_id) = (self.locks, &record.request_id);
        let callers = self.callers();
        if let Some(early) = &self.early {
            early.asked.get_or_init(Instant::now);
        }
        let asked = LockRequest {
            route: self.route,
            request: request_id,
            callers: &callers,
            place: self.early.as_ref().map(|early| &early.place),
            once: self.once.map(|once| (once, lock.once_for)),
            is_kept: lock.replay,
        };
        let acquired = {
            // Pinned here, because it is large to move.
            let acquiring = pin!(locks.acquire(key, asked, &lock.options));
            if lock.options.blocking {
                let keeping = self.keep_client(true, record);
                // A turn whose lock is free needs no watch of its own.
                let draining = async { self.drain.clone().draining().await };
                let waiting = async {
                    sleep(WAITS_AFTER).await;
                    body.wait(limits.max_body, read_ahead).await
                };
                tokio::select! {
                    biased;
                    acquired = acquiring => acquired.map_err(|error| self.refused(error, record)),
                    // Another replica has the time to wait. Dropping the future leaves the queue.
                    () = draining => Err(Refusal::Draining.into()),
                    // The client has left, or others need the memory that the body takes.
                    error = waiting => Err(Refusal::Session(error.into()).into()),
                    never = keeping => match never {},
                }
            } else {
                acquiring.await.map_err(|error| self.refused(error, record))
            }
        };
        match acquired {
            Ok(held) => {
                self.wait_ended();
                record.lock_granted(&held);
                if lock.nested_calls == NestedCalls::Traceparent {
                    record.turn_trace = Some(self.turn_trace(held.tag()));
                }
                Ok(held)
            }
            Err(refusal) => {
                record.lock_refused();
                Err(refusal)
            }
        }
    }

    /// Asks for an early response when the turn has waited for long enough, unless the client has got one. `waits`: the turn
    /// waits; otherwise, it or the turn that it repeats runs. Never ends.
    pub(super) async fn keep_client(&self, waits: bool, record: &RequestRecord) -> Infallible {
        if let Some(early) = self.early.as_ref().filter(|_| !record.is_early()) {
            let interval = early.interval;
            let since = *early.asked.get_or_init(Instant::now);
            sleep_until(since + interval).await;
            // A client that has not sent its body yet may keep it when the response begins.
            while self.client.withholds_body() {
                sleep(interval).await;
            }
            record.response_began_early(self.config.timeouts.idle_stream);
            let turn = WaitingTurn {
                comments: record.comments().clone(),
                interval,
                event: self.turn.lock.queue_events.clone(),
                place: Arc::clone(&early.place),
                since,
                route: self.route.into(),
                format: self.format.clone(),
                language: self.language,
            };
            early.response.want(turn, waits);
        }
        pending().await
    }

    /// Notes that nothing keeps the turn from its answer but the backend: its client is told that the turn runs.
    pub(super) fn wait_ended(&self) {
        if let Some(early) = &self.early {
            early.response.wait_ended();
        }
    }

    /// The turns that wait for the request. The id of its trace may be one of them, or that of any other trace.
    fn callers(&self) -> CallChain {
        let callers = self.callers.cloned().unwrap_or_default();
        if self.turn.lock.nested_calls == NestedCalls::Traceparent
            && let Some(id) = trace::trace_id(self.headers)
        {
            return callers.called_by(TurnTag::from(id));
        }
        callers
    }

    /// The trace that the turn with this tag begins.
    fn turn_trace(&self, tag: TurnTag) -> Box<TurnTrace> {
        let callers = self.callers.cloned().unwrap_or_default();
        let tags = callers.called_by(tag).join("-");
        Box::new(TurnTrace::new(tag.as_u128(), tags))
    }

    fn refused(&self, error: AcquireError, record: &RequestRecord) -> RefusedLock {
        let repeats = match &error {
            AcquireError::Repeated(_, first) => Some((first.turn, first.state)),
            _ => None,
        };
        RefusedLock {
            refusal: self.refusal(error, record),
            repeats,
        }
    }

    fn refusal(&self, error: AcquireError, record: &RequestRecord) -> Refusal {
        let busy = |why, key, session| {
            let notice = self.notice(why, session, record);
            Refusal::busy(why, key, notice, &self.turn.busy, self.headers)
        };
        match error {
            AcquireError::Busy(key, _, session) => busy(BusyReason::NoWaiting, key, Some(session)),
            AcquireError::WouldDeadlock(key) => Refusal::WouldDeadlock(key),
            AcquireError::QueueFull(key, session) => {
                busy(BusyReason::QueueFull, key, Some(session))
            }
            AcquireError::TimedOut(key, _, session) => busy(BusyReason::TimedOut, key, session),
            AcquireError::Superseded(_) => Refusal::Superseded,
            AcquireError::Dequeued(_) => Refusal::Dequeued,
            AcquireError::Repeated(key, first) => {
                // While the first turn waits, those before it may be all that wait.
                let why = match first.state {
                    RepeatedState::Waits => BusyReason::NoWaiting,
                    _ => BusyReason::QueueFull,
                };
                let notice = self.notice(why, Some(first.session), record);
                Refusal::Repeat(key, RepeatReason::new(&first, notice))
            }
            AcquireError::KeyReused(key) => Refusal::Repeat(key, RepeatReason::KeyReused),
            AcquireError::Taken(_) => Refusal::LockLost(LockLoss::Taken),
            AcquireError::Store(error) => Refusal::Store(error),
        }
    }

    /// What the client of a busy session is told.
    fn notice(
        &self,
        why: BusyReason,
        session: Option<BusySession>,
        record: &RequestRecord,
    ) -> BusyNotice {
        let retry_after = match self.turn.busy.retry_after {
            RetryAfter::Seconds(seconds) => Duration::from_secs(seconds),
            RetryAfter::Auto => {
                let age = session.and_then(|session| session.age);
                let waiters = session.map_or(0, |session| session.waiters);
                record.time_until_free(age, why.turns_ahead(waiters))
            }
        };
        BusyNotice {
            retry_after,
            session,
        }
    }
}
