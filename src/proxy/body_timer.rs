//! The time limits of a request's body: the longest silence, the least rate, and the longest time for the
//! whole body.
//!
//! Invariant: time counts only while somebody waits for more of the body. A backend that reads slowly
//! costs the client no time.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use crate::config::{Limits, Timeouts};

/// The limits that a client has to keep while it sends a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BodyLimits {
    /// The longest time without a byte.
    pub(super) silence: Duration,
    /// The least rate, in bytes per second; 0: there is none.
    pub(super) rate: u64,
    /// The longest time for the whole body.
    pub(super) total: Duration,
}

/// How long a body was waited for, and how long it may still take.
///
/// It is a token bucket of time: waiting takes time out, and each byte puts in the time that it may take
/// at the least rate. It never has more than the longest silence.
#[derive(Debug)]
pub(super) struct BodyTimer {
    limits: BodyLimits,
    /// For how long the body may still be waited for before it is too slow.
    credit: Duration,
    /// For how long the whole body may still be waited for.
    left: Duration,
    /// Since when somebody waits for more; `None`: nobody does.
    waiting: Option<Instant>,
}

/// The limit that a body has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum BodyTimeout {
    #[error("no byte of the request's body arrived within {0:?} (timeouts.request_body)")]
    Silent(Duration),
    #[error(
        "the request's body arrived at less than {0} bytes per second for too long (limits.min_body_rate)"
    )]
    Slow(u64),
    #[error("the request's body took longer than {0:?} (timeouts.request_body_total)")]
    Long(Duration),
}

/// Why a body can't be read.
#[derive(Debug, Error)]
pub(super) enum BodyReadError {
    #[error(transparent)]
    Late(#[from] BodyTimeout),
    /// The client broke off, or the body is malformed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    #[error("other bodies need the memory that it took")]
    TakenBack,
}

// === impl BodyLimits ===

impl BodyLimits {
    /// The limits of a body that is streamed, and for which nobody else has to wait.
    pub(super) fn for_stream(timeouts: &Timeouts) -> Self {
        Self {
            silence: timeouts.request_body,
            rate: 0,
            total: Duration::MAX,
        }
    }

    /// The limits of a body that takes memory, or whose turn has its session's lock.
    pub(super) fn for_holder(timeouts: &Timeouts, limits: &Limits) -> Self {
        Self {
            silence: timeouts.request_body,
            rate: limits.min_body_rate as u64,
            total: timeouts.request_body_total,
        }
    }
}

// === impl BodyTimer ===

impl BodyTimer {
    /// The timer of a body for which nobody has waited yet.
    pub(super) fn new(limits: BodyLimits) -> Self {
        Self {
            limits,
            credit: limits.silence,
            left: limits.total,
            waiting: None,
        }
    }

    /// Notes that somebody waits for more of the body.
    pub(super) fn wait(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// Notes that bytes arrived, or the end.
    pub(super) fn came(&mut self, bytes: usize, now: Instant) {
        let since = self.waiting.take();
        self.earn(bytes, since.map_or(Duration::ZERO, |since| now - since));
    }

    /// Adds the time that these bytes are worth, and takes out the time for which they were waited for.
    fn earn(&mut self, bytes: usize, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
        let nanos = (bytes as u64).saturating_mul(1_000_000_000);
        let earned = match nanos.checked_div(self.limits.rate) {
            Some(earned) => Duration::from_nanos(earned),
            None => self.limits.silence,
        };
        let credit = self.credit.saturating_sub(waited) + earned;
        self.credit = credit.min(self.limits.silence);
    }

    /// When the body passes a limit if nothing arrives until then; `None`: nobody waits for it.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.map(|since| since + self.patience())
    }

    /// For how long the body may be waited for, from the moment when that begins.
    pub(super) fn patience(&self) -> Duration {
        self.credit.min(self.left)
    }

    /// The limit that the body has passed at `now`; `None`: none.
    pub(super) fn overdue(&self, now: Instant) -> Option<BodyTimeout> {
        let is_overdue = self.due().is_some_and(|due| due <= now);
        is_overdue.then(|| self.next_limit())
    }

    /// The limit that passes first if nothing arrives.
    fn next_limit(&self) -> BodyTimeout {
        let limits = self.limits;
        if self.left <= self.credit {
            BodyTimeout::Long(limits.total)
        } else if self.credit == limits.silence {
            BodyTimeout::Silent(limits.silence)
        } else {
            BodyTimeout::Slow(limits.rate)
        }
    }

    /// The next frame of `body`; `None`: its end. All of the time until it arrives counts. Cancel-safe.
    ///
    /// # Errors
    /// When the body passes a limit, or breaks off.
    pub(super) async fn frame<B: Body<Data = Bytes, Error = hyper::Error> + Unpin>(
        &mut self,
        body: &mut B,
    ) -> Result<Option<Frame<Bytes>>, BodyReadError> {
        let mut next = pin!(body.frame());
        // A frame that has arrived already needs no clock.
        if self.waiting.is_none()
            && let Poll::Ready(frame) = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await
        {
            let frame = frame.transpose()?;
            self.earn(frame.as_ref().map_or(0, length), Duration::ZERO);
            return Ok(frame);
        }
        let since = *self.waiting.get_or_insert_with(Instant::now);
        let frame = timeout_at(since + self.patience(), next).await;
        let frame = frame.map_err(|_| self.next_limit())?.transpose()?;
        if let Some(frame) = &frame
            && !is_empty(frame)
        {
            self.came(length(frame), Instant::now());
        }
        Ok(frame)
    }
}

/// How many bytes of a body this frame has.
pub(super) fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// Whether a frame has no byte. Such a frame restarts no timer.
pub(super) fn is_empty(frame: &Frame<Bytes>) -> bool {
    frame.data_ref().is_some_and(Bytes::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Ten seconds of silence, 100 bytes per second, a minute in all.
    const LIMITS: BodyLimits = BodyLimits {
        silence: Duration::from_secs(10),
        rate: 100,
        total: Duration::from_secs(60),
    };

    /// Sends pieces of so many bytes, each after so long; gives the limit that is passed, and after
    /// how long.
    fn send(limits: BodyLimits, bytes: usize, every: Duration) -> Option<(BodyTimeout, Duration)> {
        let (mut timer, begun) = (BodyTimer::new(limits), Instant::now());
        let mut now = begun;
        for _ in 0..1_000 {
            timer.wait(now);
            let due = timer.due().expect("it is waited for");
            let before = timer.overdue(due - SECOND / 1000);
            assert_eq!(before, None, "not a moment before");
            now += every;
            if due <= now {
                return Some((timer.overdue(due)?, due - begun));
            }
            assert_eq!(timer.overdue(now), None, "nor before it is due");
            timer.came(bytes, now);
        }
        None
    }

    #[test]
    fn a_body_has_to_keep_its_least_rate_and_its_time() {
        let endless = BodyLimits {
            total: Duration::MAX,
            ..LIMITS
        };
        let any_rate = BodyLimits { rate: 0, ..endless };
        assert_eq!(
            send(endless, 100, SECOND * 10),
            Some((BodyTimeout::Silent(SECOND * 10), SECOND * 10)),
            "silence is silence, whatever would follow"
        );
        let (why, after) = send(endless, 1, SECOND).expect("a drip is no upload");
        assert_eq!(why, BodyTimeout::Slow(100), "it is too slow");
        assert!(
            after > SECOND * 10 && after < SECOND * 11,
            "it has hardly longer than one that sends nothing: {after:?}"
        );
        let least = send(endless, 200, SECOND * 2);
        assert_eq!(least, None, "the least rate will do");
        let slow = send(any_rate, 1, SECOND * 9);
        assert_eq!(slow, None, "a byte in time is enough without one");
        assert_eq!(
            send(LIMITS, 1_000, SECOND * 7),
            Some((BodyTimeout::Long(SECOND * 60), SECOND * 60)),
            "all of it has its time"
        );
    }

    #[test]
    fn what_came_fast_buys_no_more_than_one_silence() {
        let (mut timer, begun) = (BodyTimer::new(LIMITS), Instant::now());
        timer.wait(begun);
        timer.came(1 << 20, begun + SECOND);
        timer.wait(begun + SECOND);
        let due = Some(begun + SECOND * 11);
        assert_eq!(timer.due(), due, "a megabyte is no account");
    }

    #[test]
    fn time_in_which_nobody_wants_more_is_not_the_clients() {
        let (mut timer, begun) = (BodyTimer::new(LIMITS), Instant::now());
        let much_later = begun + SECOND * 3_600;
        assert_eq!(timer.overdue(much_later), None, "nothing was asked for");
        assert_eq!(timer.due(), None, "so nothing is due");
        timer.wait(much_later);
        let due = Some(much_later + SECOND * 10);
        assert_eq!(
            timer.due(),
            due,
            "the client's time begins when it is asked"
        );
    }
}
