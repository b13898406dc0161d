//! When a holder stops: before its lock, or its instance's heartbeat, can be another's, however late the
//! answers of the store come.

use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{CallChain, Epoch, LockGuard, LockLoss, LockOptions, LockRequest, Store as _};
use tokio::time::{Instant, sleep};

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Replicas, Setup, hold};
use crate::support::client::begin_turn;
use crate::support::fault::Mode;
use crate::support::faulty_store::{Call, Fault, FaultyReplica, Granted};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const SECOND: Duration = Duration::from_secs(1);

/// What a lease, or a heartbeat, lasts in these tests.
const LEASE: Duration = Duration::from_secs(30);

/// 1 % of 30 s, and 10 ms.
const MARGIN: Duration = Duration::from_millis(310);

/// What tokio's clock may be late: timers count whole milliseconds.
const TICK: Duration = Duration::from_millis(2);

fn options(lease: Duration, interval: Option<Duration>) -> LockOptions {
    LockOptions {
        lock_timeout: lease,
        extend_lock_interval: interval,
        blocking: true,
        max_waiters: 100,
        ..LockOptions::default()
    }
}

/// When a turn stops because it lost its lock in this way. It keeps what it has, as if its instance had no
/// network.
async fn stopped(mut lock: LockGuard, expected: LockLoss) -> (LockGuard, Instant) {
    let loss = within_a_minute(lock.lost()).await;
    assert_eq!(loss, expected, "its time is over");
    (lock, Instant::now())
}

/// Waits for longer than the usual limit, which is shorter than a lease here. The time is paused.
async fn within_a_minute<T>(future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(SECOND * 60, future).await;
    waited.expect("it is over within a minute")
}

/// When the turn got its lock.
async fn granted(turn: Granted) -> (LockGuard, Instant) {
    let granted = within_a_minute(turn).await.expect("no panic");
    granted.expect("the turn gets its lock")
}

/// Lets the command's answers be late by nearly its interval of 10 s, and then lets no command arrive.
/// Asserts that the turn of `a` stops before the store can give its lock to a turn of `b`.
async fn stops_before_another_is_granted(
    call: Call,
    options: &LockOptions,
    crash_recovery: Option<Duration>,
) {
    let memory = Arc::new(MemoryStore::new());
    let [a, b] = ["a", "b"].map(|name| FaultyReplica::start(&memory, name, crash_recovery));
    let begin = Instant::now();
    let lock = a.hold(options).await;
    let before = a.store.calls(call);
    a.store
        .fail(call, Fault::LateReply(SECOND * 10 - SECOND / 10));
    let next = b.turn(options);
    // The second one is executed after 10 s; its answer comes almost 10 s later.
    sleep(SECOND * 15).await;
    assert_eq!(a.store.calls(call), before + 1, "one was sent: {call:?}");
    a.store.fail(call, Fault::Lost);
    let loss = match call {
        Call::Heartbeat => LockLoss::NoHeartbeat,
        _ => LockLoss::Expired,
    };
    let ((_lock, stopped), (_next, granted)) = tokio::join!(stopped(lock, loss), granted(next));
    let (stopped, granted) = (stopped - begin, granted - begin);
    let lost = SECOND * 10 + LEASE;
    assert!(
        granted >= lost,
        "{call:?}: the store keeps the lock until {lost:?}: {granted:?}"
    );
    assert!(
        stopped <= lost - MARGIN + TICK,
        "{call:?}: the turn stops before {lost:?}, at {stopped:?}"
    );
    assert!(
        stopped + TICK >= lost - MARGIN,
        "{call:?}: and no earlier than it must, at {stopped:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_extensions_are_answered_late_stops_before_another_is_granted() {
    let extended = options(LEASE, Some(SECOND * 10));
    stops_before_another_is_granted(Call::Extend, &extended, None).await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_heartbeats_are_answered_late_stops_before_its_lock_is_taken_over() {
    let long = options(SECOND * 300, None);
    stops_before_another_is_granted(Call::Heartbeat, &long, Some(LEASE)).await;
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_grant_is_answered_late_stops_before_another_is_granted() {
    let (_memory, a, b) = FaultyReplica::two();
    let begin = Instant::now();
    a.store.fail(Call::Acquire, Fault::LateReply(SECOND * 9));
    let lock = a.hold(&options(LEASE, None)).await;
    let next = b.turn(&options(LEASE, None));
    let (_lock, stopped) = stopped(lock, LockLoss::Expired).await;
    assert!(
        stopped - begin <= LEASE - MARGIN + TICK,
        "the lease counts from the sending of the command: {:?}",
        stopped - begin
    );
    let (_next, granted) = granted(next).await;
    assert!(
        granted - begin >= LEASE,
        "and in the store from its execution"
    );
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_failed_is_tried_again_until_the_lease_ends() {
    for fault in [Fault::NotSent, Fault::Lost] {
        let (_memory, a, _) = FaultyReplica::two();
        let mut lock = a.hold(&options(LEASE, Some(SECOND * 10))).await;
        a.store.fail(Call::Extend, fault);
        sleep(SECOND * 25).await;
        assert!(
            a.store.calls(Call::Extend) > 2,
            "{fault:?}: it is tried again"
        );
        a.store.heal();
        sleep(SECOND * 100).await;
        assert_eq!(lock.must_stop(), None, "{fault:?}: the turn goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_due_sooner_does_not_wait_for_one_that_is_due_later() {
    let (_memory, a, _) = FaultyReplica::two();
    let _later = a.hold(&options(SECOND * 300, Some(SECOND * 100))).await;
    // The extender waits for the first one by now.
    sleep(SECOND).await;
    let sooner = options(LEASE, Some(SECOND * 10));
    let other = SessionKey::literal("another session");
    let nobody = CallChain::default();
    let request = LockRequest::new("route", "request", &nobody);
    let acquired = a.locks.acquire(other, request, &sooner).await;
    let mut lock = acquired.expect("it is free");
    sleep(SECOND * 60).await;
    assert_eq!(lock.must_stop(), None, "it was extended in time");
}

#[tokio::test(start_paused = true)]
async fn holders_and_waiters_of_an_instance_whose_name_is_taken_stop() {
    let memory = Arc::new(MemoryStore::new());
    let [a, b] = ["a", "b"].map(|name| FaultyReplica::start(&memory, name, Some(LEASE)));
    let long = options(SECOND * 300, None);
    let _held = b.hold(&long).await;
    let waiting = a.turn(&long);
    let other = SessionKey::literal("another session");
    let nobody = CallChain::default();
    let request = LockRequest::new("route", "request", &nobody);
    let acquired = a.locks.acquire(other, request, &long).await;
    let mut lock = acquired.expect("it is free");
    // A younger process with the same name: from now on everybody may take over what `a` has.
    let taken = memory.heartbeat("a", Epoch(1), LEASE, true).await;
    taken.expect("the memory answers");
    let loss = within_a_minute(lock.lost()).await;
    assert_eq!(loss, LockLoss::NameTaken, "the holder stops");
    let refused = within_a_minute(waiting).await.expect("no panic");
    assert!(refused.is_err(), "the waiter is refused, and doesn't begin");
}

// === in Redis ===

#[tokio::test]
async fn a_turn_goes_on_after_redis_was_away_for_less_than_its_lease() {
    const LONG: Duration = Duration::from_secs(8);
    let lock = "[lock]\nlock_timeout = \"8s\"\nextend_lock_interval = \"500ms\"\n";
    let config = format!("{lock}{CHAT}");
    let bench = Setup::new(&config).on_faulty_network().await;
    bench.redis.is_connected().await;
    let mut turn = hold(bench.app.addr(), "s1").await;
    let begin = Instant::now();
    bench.network.set(Mode::Blackhole).await;
    bench.network.bitten().await;
    // The extension that is held back fails with its connection.
    bench.network.set(Mode::Reset).await;
    bench.network.set(Mode::Pass).await;
    let is_over = async || begin.elapsed() > LONG + LONG / 2;
    wait_for_async(is_over, "the lease of the grant to be over").await;
    assert_eq!(bench.backend.running("s1"), 1, "the turn still runs");
    bench.backend.open_gate("s1");
    assert!(turn.answer().await.whole, "the turn comes to its end");
    bench.wait_until_free("s1", "an outage").await;
}

/// The name of the fence's key.
fn fence(session: &str) -> String {
    format!("{{{}}}:fence", key(session))
}

/// Shortens what is left of the fence and its lock, and waits until the lock is extended.
async fn is_extended_after(redis: &Redis, session: &str, left: Duration) {
    let left = left.as_millis().to_string();
    // The lock is last: the extension that is seen comes after both.
    for key in [fence(session), key(session)] {
        redis.command(&["PEXPIRE", &key, &left]).await;
    }
    let is_extended = async || redis.pttl(&key(session)).await > 100_000;
    wait_for_async(is_extended, "the lock is extended").await;
}

#[tokio::test]
async fn the_fence_of_an_extended_turn_lives_as_long_as_its_lock() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let lock = "[lock]\nextend_lock_interval = \"300ms\"\n";
    let app = App::on_redis(&backend, &redis, &format!("{lock}{CHAT}"));
    let _turn = hold(app.addr(), "s1").await;
    is_extended_after(&redis, "s1", Duration::from_secs(20)).await;
    let left = redis.pttl(&fence("s1")).await;
    assert!(left > 100_000, "the fence is extended, too: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_turn_of_a_killed_replica_is_taken_over() {
    let store = "crash_recovery = \"4s\"";
    let lock = "[lock]\nextend_lock_interval = \"300ms\"\nblocking = true\n";
    let bench = Replicas::on_redis().await;
    let victim = bench.process(store, lock);
    let other = bench.replica(store, lock);
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    // Whatever isn't extended with the lock is gone after two seconds.
    let begin = Instant::now();
    is_extended_after(&bench.redis, "s1", SECOND * 2).await;
    let is_gone = async || begin.elapsed() > SECOND * 2 + SECOND / 2;
    wait_for_async(is_gone, "what was not extended to be gone").await;
    victim.signal("KILL");
    let mut next = begin_turn(other.addr(), "s1", "plain:x").await;
    let answer = next.answer().await;
    assert_eq!(answer.status, 200, "long before the lease of 300 s ends");
    bench.wait_until_no_keys().await;
}
