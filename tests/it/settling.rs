//! `lock.settle`: the lock is kept for this time after its turn, however the turn ends, and no longer.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use seriatim::lock::{LockGuard, LockLoss, LockOptions};
use tokio::time::{Instant, sleep};

use crate::support::app::CHAT;
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup, hold};
use crate::support::client::{begin_turn, turn};
use crate::support::faulty_store::{FaultyReplica, granted, wait_until_empty};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const SECOND: Duration = Duration::from_secs(1);

const SETTLE: Duration = Duration::from_secs(2);

/// A moment for a message and for timers, which count whole milliseconds.
const MOMENT: Duration = Duration::from_millis(20);

fn options(interrupt: bool) -> LockOptions {
    LockOptions {
        lock_timeout: Duration::from_secs(300),
        blocking: true,
        max_waiters: 100,
        settle: SETTLE,
        interrupt,
        ..LockOptions::default()
    }
}

/// How the turn that holds the lock ends.
#[derive(Clone, Copy, Debug)]
enum TurnEnd {
    /// Its response is complete.
    Completes,
    /// It is cut, or its client leaves while it runs.
    IsDropped,
    /// Its client leaves while it settles.
    IsDroppedWhileItSettles,
    /// Its backend breaks off, and its client waits for the release.
    IsReleasedAfterAFailure,
    /// A newer turn replaces it.
    IsInterrupted,
}

impl TurnEnd {
    const ALL: [Self; 5] = [
        Self::Completes,
        Self::IsDropped,
        Self::IsDroppedWhileItSettles,
        Self::IsReleasedAfterAFailure,
        Self::IsInterrupted,
    ];

    /// Ends the turn, and gives when it was over.
    async fn of(self, mut lock: LockGuard) -> Instant {
        let over = Instant::now();
        match self {
            Self::Completes => lock.release().await,
            Self::IsDropped => drop(lock),
            Self::IsReleasedAfterAFailure => lock.release_cancelled().await,
            Self::IsDroppedWhileItSettles => {
                let mut release = Box::pin(lock.release());
                let polled = poll_fn(|cx| Poll::Ready(release.as_mut().poll(cx))).await;
                assert!(polled.is_pending(), "it settles");
                sleep(SETTLE / 4).await;
            }
            Self::IsInterrupted => {
                assert_eq!(lock.lost().await, LockLoss::Interrupted, "it is replaced");
                let over = Instant::now();
                drop(lock);
                return over;
            }
        }
        over
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_turn_begins_when_the_one_before_it_has_settled() {
    for end in TurnEnd::ALL {
        let (memory, a, b) = FaultyReplica::two();
        let lock = a.hold(&options(false)).await;
        let is_interrupted = matches!(end, TurnEnd::IsInterrupted);
        let next = b.turn(&options(is_interrupted));
        let over = end.of(lock).await;
        let (next, begun) = granted(next).await;
        let after = begun - over;
        assert!(after >= SETTLE, "{end:?}: not before: {after:?}");
        assert!(after <= SETTLE + MOMENT, "{end:?}: at once then: {after:?}");
        next.release().await;
        wait_until_empty(&memory, &format!("a turn that ended so: {end:?}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_lock_of_a_turn_that_has_settled_is_gone_although_nobody_asks_for_it() {
    for end in [
        TurnEnd::Completes,
        TurnEnd::IsDropped,
        TurnEnd::IsDroppedWhileItSettles,
    ] {
        let (memory, a, _) = FaultyReplica::two();
        let lock = a.hold(&options(false)).await;
        let over = end.of(lock).await;
        wait_until_empty(&memory, &format!("a turn that ended so: {end:?}")).await;
        let after = over.elapsed();
        assert!(
            (SETTLE..=SETTLE + MOMENT).contains(&after),
            "{end:?}: it goes when the turn has settled: {after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_to_settle_of_its_own_follows_a_turn_that_does_not_complete() {
    let options = LockOptions {
        settle: SECOND,
        settle_cancelled: Some(SETTLE),
        ..options(false)
    };
    for (end, settles) in [
        (TurnEnd::Completes, SECOND),
        (TurnEnd::IsDropped, SETTLE),
        (TurnEnd::IsReleasedAfterAFailure, SETTLE),
    ] {
        let (_, a, b) = FaultyReplica::two();
        let lock = a.hold(&options).await;
        let next = b.turn(&options);
        let over = end.of(lock).await;
        let (next, begun) = granted(next).await;
        let after = begun - over;
        assert!(
            (settles..=settles + MOMENT).contains(&after),
            "{end:?}: the next turn begins after {settles:?}: {after:?}"
        );
        next.release().await;
    }
}

// === through the proxy ===

/// Two replicas whose turns settle for a second. `timeouts` and `lock` have further options.
async fn start(timeouts: &str, lock: &str) -> Bench<Redis> {
    let config = format!(
        "[timeouts]\n{timeouts}\n[lock]\nsettle = \"1s\"\nblocking = true\n\
         on_disconnect = \"cancel\"\n{lock}\n{CHAT}"
    );
    Setup::new(&config).replicas(2).on_redis().await
}

impl Bench<Redis> {
    /// Asserts that the session's second turn, which waits at the other replica, reached the backend a
    /// second after `cut` at the earliest.
    async fn begins_a_second_after(&self, cut: std::time::Instant, what: &str) {
        self.backend.ended("s1", 2).await;
        let begun = self.backend.turns("s1")[1].began.expect("it was read");
        let after = begun - cut;
        assert!(
            after >= SECOND,
            "{what}: the next turn began {after:?} after"
        );
        self.wait_until_free("s1", what).await;
    }
}

#[tokio::test]
async fn the_turn_behind_one_whose_client_left_begins_when_that_has_settled() {
    let bench = start("", "").await;
    let client = hold(bench.replica(0), "s1").await;
    let mut next = begin_turn(bench.replica(1), "s1", "plain:x").await;
    let before_cut = std::time::Instant::now();
    client.close();
    assert_eq!(next.answer().await.status, 200, "the next turn follows");
    bench
        .begins_a_second_after(before_cut, "a client left")
        .await;
}

#[tokio::test]
async fn a_complete_response_is_not_delayed_by_the_time_after_cancelled_requests() {
    let config = format!("[lock]\nsettle_cancelled = \"20s\"\n{CHAT}");
    let bench = Setup::new(&config).on_redis().await;
    for end in ["chunked:2:5", "plain:x"] {
        let mut complete = begin_turn(bench.replica(0), "s1", end).await;
        assert!(complete.answer().await.whole, "its end is not delayed");
        bench.wait_until_free("s1", end).await;
    }
    let broken = begin_turn(bench.replica(0), "s2", "break-chunked").await;
    bench.backend.ended("s2", 1).await;
    assert_eq!(
        turn(bench.replica(0), "s2", "plain:x").await.error(),
        (429, "session_busy"),
        "the session of a turn that broke off is kept"
    );
    drop(broken);
}

#[tokio::test]
async fn the_turn_behind_one_that_was_cut_begins_when_that_has_settled() {
    let bench = start("idle_stream = \"1200ms\"", "").await;
    let mut silent = begin_turn(bench.replica(0), "s1", "hang-middle").await;
    silent.read_until(&event(0)).await;
    let last_byte = bench.backend.turns("s1")[0].began.expect("it was read");
    let mut next = begin_turn(bench.replica(1), "s1", "plain:x").await;
    assert!(!silent.answer().await.whole, "it is cut after idle_stream");
    assert_eq!(next.answer().await.status, 200, "the next turn follows");
    // Its first event came after its begin, and idle_stream after that.
    let cut = last_byte + Duration::from_millis(1200);
    bench.begins_a_second_after(cut, "a turn was cut").await;
}

#[tokio::test]
async fn the_turn_that_replaces_another_begins_when_that_has_settled() {
    let bench = start("", "interrupt = true").await;
    let mut old = hold(bench.replica(0), "s1").await;
    let before_cut = std::time::Instant::now();
    let mut next = begin_turn(bench.replica(1), "s1", "plain:x").await;
    assert!(!old.answer().await.whole, "the old turn is cut");
    assert_eq!(next.answer().await.status, 200, "the new turn follows");
    bench
        .begins_a_second_after(before_cut, "a turn was replaced")
        .await;
}

#[tokio::test]
async fn the_lock_of_a_turn_whose_client_leaves_while_it_settles_is_gone_after_that() {
    let bench = start("", "").await;
    let client = hold(bench.replica(0), "s1").await;
    let before_end = std::time::Instant::now();
    bench.backend.open_gate("s1");
    bench.backend.ended("s1", 1).await;
    client.close();
    let quiet = async || bench.redis.keys().await.is_empty();
    wait_for_async(quiet, "the lock is gone, and nobody asked for it").await;
    let after = before_end.elapsed();
    assert!(after >= SECOND, "no sooner than it has settled: {after:?}");
}
