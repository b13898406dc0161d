//! Time: a shared deadline, a shared moment, when a byte last moved, and a timer that follows a moment that
//! moves.
//!
//! A lease has one [`Deadline`]: the response's body, the client's connection and the backend's
//! connection all stop at it, and an extension moves it for all of them at once.
//!
//! Everything here uses tokio's clock, so tests can pause it. Wall-clock time is left out.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A moment on the monotonic clock after which work must stop. Clones share the moment.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<DeadlineState>);

#[derive(Debug)]
struct DeadlineState {
    at: AtomicInstant,
    /// A deadline that also ends this one; `None`: there is none.
    outer: Option<Deadline>,
}

/// A moment on the monotonic clock, or none, that threads share without a lock.
#[derive(Debug)]
pub struct AtomicInstant {
    /// Nanoseconds after [`BASE`]; [`UNSET`] for no moment.
    offset: AtomicU64,
}

/// A timer for a moment that may move. It allocates only when there is a moment to wait for, and
/// re-arms only when it fires or when the moment comes nearer: a turn that ends before its lease
/// costs no timer at all.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

/// Knows when a byte of a request or its response last moved.
pub trait ByteClock: fmt::Debug + Send + Sync {
    /// When a byte last moved; `None`: not known.
    fn last_byte_at(&self) -> Option<Instant>;
}

const UNSET: u64 = u64::MAX;

/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;

/// The moment from which all moments are counted: a day before the first use, so that no moment of this process is
/// earlier. (A clock that can't go back so far begins now; earlier moments then count as this one.) By the real clock, because each test may pause a clock of its own.
static BASE: LazyLock<Instant> = LazyLock::new(|| {
    let now = std::time::Instant::now();
    let base = now.checked_sub(Duration::from_secs(86_400));
    base.unwrap_or(now).into()
});

/// How long before the end of its lease a holder stops: 1 % of the lease for clocks that run at
/// different speeds (quartz stays below 0.1 %, NTP may slew a virtual machine's clock by more), and
/// 10 ms between reading the clock and the last byte on the wire.
pub fn margin(lease: Duration) -> Duration {
    lease / 100 + Duration::from_millis(10)
}

// === impl Deadline ===

impl Deadline {
    /// A deadline at `at`.
    pub fn at(at: Instant) -> Self {
        Self::new(AtomicInstant::new(at), None)
    }

    /// A deadline without a moment of its own yet. It passes with `outer` at the latest.
    pub fn within(outer: Option<&Self>) -> Self {
        Self::new(AtomicInstant::unset(), outer.cloned())
    }

    fn new(at: AtomicInstant, outer: Option<Self>) -> Self {
        Self(Arc::new(DeadlineState { at, outer }))
    }

    /// Moves the deadline to `at`.
    pub fn move_to(&self, at: Instant) {
        self.0.at.store(at);
    }

    /// Moves the deadline to `at`, unless it passes before.
    pub fn bring_forward(&self, at: Instant) {
        self.0.at.bring_forward(at);
    }

    /// When the deadline passes; `None`: never.
    pub fn get(&self) -> Option<Instant> {
        let outer = self.0.outer.as_ref().and_then(Self::get);
        self.0.at.load().into_iter().chain(outer).min()
    }

    /// Whether the deadline within which this one was made passes first.
    pub fn ends_with_outer(&self) -> bool {
        let outer = self.0.outer.as_ref().and_then(Self::get);
        let own = self.0.at.load();
        outer.is_some_and(|outer| own.is_none_or(|own| outer <= own))
    }

    /// Resolves when the deadline has passed, also if it moves meanwhile. A deadline that has no
    /// moment when this is called never resolves. Cancel-safe.
    pub async fn reached(&self) {
        while let Some(at) = self.get() {
            if Instant::now() >= at {
                return;
            }
            sleep_until(at).await;
        }
        std::future::pending().await
    }

    /// Whether the deadline has passed at `now`.
    pub fn passed(&self, now: Instant) -> bool {
        self.passed_offset(offset_of(now))
    }

    fn passed_offset(&self, now: u64) -> bool {
        let outer = self.0.outer.as_ref();
        self.0.at.passed_offset(now) || outer.is_some_and(|outer| outer.passed_offset(now))
    }
}

// === impl AtomicInstant ===

impl AtomicInstant {
    /// The moment `at`.
    pub fn new(at: Instant) -> Self {
        Self {
            offset: AtomicU64::new(offset_of(at)),
        }
    }

    /// No moment yet.
    pub const fn unset() -> Self {
        Self {
            offset: AtomicU64::new(UNSET),
        }
    }

    /// The moment; `None`: none is set.
    pub fn load(&self) -> Option<Instant> {
        match self.offset.load(Ordering::Acquire) {
            UNSET => None,
            offset => Some(*BASE + Duration::from_nanos(offset)),
        }
    }

    /// Sets the moment to `at`.
    pub fn store(&self, at: Instant) {
        self.offset.store(offset_of(at), Ordering::Release);
    }

    /// Sets the moment to `at`, unless there is one.
    pub fn store_first(&self, at: Instant) {
        let (new, order) = (offset_of(at), Ordering::AcqRel);
        // Whoever was faster has set it.
        let _ = self
            .offset
            .compare_exchange(UNSET, new, order, Ordering::Acquire);
    }

    /// Sets the moment to `at`, unless there is an earlier one.
    pub fn bring_forward(&self, at: Instant) {
        // No moment is the largest offset.
        self.offset.fetch_min(offset_of(at), Ordering::AcqRel);
    }

    /// Whether there is a moment at or before `now`, which is an offset, too.
    fn passed_offset(&self, now: u64) -> bool {
        // An unset moment has the largest offset, so it has never passed.
        self.offset.load(Ordering::Acquire) <= now
    }

    /// Leaves no moment.
    pub fn clear(&self) {
        self.offset.store(UNSET, Ordering::Release);
    }
}

/// The nanoseconds from [`BASE`] to a moment; always less than [`UNSET`].
fn offset_of(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*BASE);
    // 584 years, the most that fit, are as good as for ever.
    let seconds = since.as_secs().min(UNSET / NANOS - 1);
    seconds * NANOS + u64::from(since.subsec_nanos())
}

// === impl Alarm ===

impl Alarm {
    /// Ready once the moment that `due` gives has passed. `due` gives `None` while there is nothing
    /// to wait for; then the alarm wakes no task, and the caller polls again when there is a moment.
    /// A moment that `due` computes from the current time never passes: it is only asked for again then.
    pub fn poll(&mut self, cx: &mut Context<'_>, due: impl Fn() -> Option<Instant>) -> Poll<()> {
        loop {
            let Some(at) = due() else {
                return Poll::Pending;
            };
            let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if at < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if due().is_some_and(|at| Instant::now() >= at) {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_one_per_cent_of_the_lease_and_ten_milliseconds() {
        for (lease, expected) in [(200, 12), (30_000, 310), (300_000, 3_010)] {
            let margin = margin(Duration::from_millis(lease));
            assert_eq!(margin, Duration::from_millis(expected), "of {lease} ms");
        }
    }

    #[test]
    fn bringing_a_deadline_forward_never_moves_it_back() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let deadline = Deadline::within(None);
        for (wanted, expected) in [
            (second * 2, second * 2),
            (second, second),
            (second * 3, second),
        ] {
            deadline.bring_forward(start + wanted);
            assert_eq!(deadline.get(), Some(start + expected), "after {wanted:?}");
        }
    }

    #[test]
    fn every_clone_sees_it_move() {
        let start = Instant::now();
        let deadline = Deadline::at(start);
        let clone = deadline.clone();
        assert!(
            clone.passed(start),
            "a deadline passes at its moment, not after it"
        );
        deadline.move_to(start + Duration::from_secs(1));
        assert!(!clone.passed(start), "an extension is seen by every clone");
        assert!(
            clone.passed(start + Duration::from_secs(1)),
            "and so is its end"
        );
        deadline.move_to(start);
        assert!(clone.passed(start), "a loss moves it back");
    }

    #[test]
    fn the_outer_deadline_ends_the_inner_one() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let outer = Deadline::at(start + second);
        let inner = Deadline::within(Some(&outer));
        assert_eq!(
            inner.get(),
            outer.get(),
            "one without a moment has the outer one's"
        );
        inner.move_to(start + second * 2);
        assert_eq!(inner.get(), outer.get(), "the earlier of the two counts");
        outer.move_to(start + second * 3);
        assert_eq!(
            inner.get(),
            Some(start + second * 2),
            "and an extension of the outer one is seen"
        );
        assert_eq!(
            Deadline::within(None).get(),
            None,
            "without either it never passes"
        );
    }

    #[test]
    fn an_atomic_instant_keeps_the_moment_that_was_stored_last() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let moment = AtomicInstant::unset();
        assert_eq!(moment.load(), None, "no moment is set at first");
        for at in [start + second * 2, start + second] {
            moment.store(at);
            assert_eq!(moment.load(), Some(at), "a moment may move either way");
        }
        moment.clear();
        assert_eq!(moment.load(), None, "a moment can be taken away");
        moment.store_first(start);
        moment.store_first(start + second);
        assert_eq!(moment.load(), Some(start), "the first one may be kept");
        let past = AtomicInstant::new(start);
        assert_eq!(past.load(), Some(start), "a past moment is kept");
        past.store(start - second);
        assert_eq!(
            past.load(),
            Some(start - second),
            "also one of before this value was made"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_follows_a_moment_that_moves() {
        crate::time_limit::limit_this_test();
        let second = Duration::from_secs(1);
        let (start, moment) = (Instant::now(), AtomicInstant::unset());
        let mut alarm = Alarm::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let unarmed = alarm.poll(&mut cx, || moment.load());
        assert!(unarmed.is_pending(), "there is nothing to wait for");
        assert!(alarm.0.is_none(), "so there is no timer");
        moment.store(start + second * 2);
        assert!(alarm.poll(&mut cx, || moment.load()).is_pending());
        moment.store(start + second * 5);
        let fired = tokio::time::timeout(
            second * 10,
            std::future::poll_fn(|cx| alarm.poll(cx, || moment.load())),
        );
        fired.await.expect("the moment passes");
        assert_eq!(start.elapsed(), second * 5, "a later moment is waited for");
        moment.store(start + second * 9);
        assert!(alarm.poll(&mut cx, || moment.load()).is_pending());
        moment.store(start + second * 7);
        std::future::poll_fn(|cx| alarm.poll(cx, || moment.load())).await;
        assert_eq!(start.elapsed(), second * 7, "a nearer moment comes first");
    }
}
