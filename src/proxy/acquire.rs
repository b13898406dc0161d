//! How a turn gets its lock, and what happens to its body while it waits.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::sleep;

use super::body_timer::BodyLimits;
use super::forward::{OutgoingBody, ReadAheadLimit};
use super::record::RequestRecord;
use super::refusal::{BusyNotice, BusyReason, Refusal};
use crate::budget::Budget;
use crate::config::{Config, NestedCalls, RetryAfter, TurnConfig};
use crate::drain::DrainWatch;
use crate::key::SessionKey;
use crate::lock::{AcquireError, BusySession, CallChain, LockGuard, LockLoss, Locks, TurnTag};
use crate::trace::{self, TurnTrace};

/// What a turn needs to get its lock.
pub(super) struct TurnLock<'t> {
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
}

/// After how long a turn counts as waiting, so that its body is read ahead or may be taken back. Taking
/// a free lock takes less.
const WAITS_AFTER: Duration = Duration::from_millis(100);

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
        self,
        key: SessionKey,
        body: &mut OutgoingBody,
        record: &mut RequestRecord,
    ) -> Result<LockGuard, Refusal> {
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
        let acquiring = locks.acquire(key, self.route, request_id, &callers, &lock.options);
        let acquired = if lock.options.blocking {
            let mut drain = self.drain.clone();
            let waiting = async {
                sleep(WAITS_AFTER).await;
                body.wait(limits.max_body, read_ahead).await
            };
            tokio::select! {
                biased;
                acquired = acquiring => acquired,
                // Another replica has the time to wait. Dropping the future leaves the queue.
                () = drain.draining() => return Err(Refusal::Draining),
                // The client has left, or others need the memory that the body takes.
                error = waiting => {
                    record.lock_refused();
                    return Err(Refusal::Session(error.into()));
                }
            }
        } else {
            acquiring.await
        };
        match acquired {
            Ok(held) => {
                record.lock_granted(&held);
                if lock.nested_calls == NestedCalls::Traceparent {
                    record.turn_trace = Some(self.turn_trace(held.tag()));
                }
                Ok(held)
            }
            Err(error) => {
                record.lock_refused();
                Err(self.refusal(error, record))
            }
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
