//! Commands whose answers are lost, which come late, or which fail: what they leave in the store goes away
//! by itself, and nobody has to ask for the session.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireError, AcquireRequest, ClaimIssuer, Epoch, LockGuard, LockOptions, Store, Withdrawal,
};
use tokio::time::{Instant, sleep};

use crate::support::app::{CHAT, key};
use crate::support::backend::event;
use crate::support::bench::Setup;
use crate::support::client::begin_turn;
use crate::support::fault::{FaultProxy, Mode};
use crate::support::faulty_store::{
    Call, Fault, FaultyReplica, NOT_AFTER, NoReply, TIMEOUT, granted, wait_until_empty,
};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async, within};

/// A lease that ends long after every wait of a test.
const OPTIONS: fn() -> LockOptions = || LockOptions {
    lock_timeout: Duration::from_secs(300),
    blocking: true,
    max_waiters: 100,
    ..LockOptions::default()
};

// === acquisitions ===

#[tokio::test(start_paused = true)]
async fn a_lock_whose_grant_got_lost_is_given_back_although_nobody_asks_for_it() {
    for instead in [
        NoReply::TimedOut,
        NoReply::ConnectionBroke,
        NoReply::Unreadable,
    ] {
        let (memory, a, _) = FaultyReplica::two();
        a.store.fail(Call::Acquire, Fault::NoReply(instead));
        let refused = within("the turn's refusal", a.turn(&OPTIONS())).await;
        let refused = refused.expect("no panic").map(|_| "a lock");
        assert!(
            matches!(refused, Err(AcquireError::Store(_))),
            "{instead:?}: without a reply the turn has no lock: {refused:?}"
        );
        wait_until_empty(&memory, &format!("a lost grant: {instead:?}")).await;
    }
}

#[tokio::test]
async fn a_grant_that_a_broken_connection_or_a_timeout_lost_is_given_back() {
    for is_broken in [true, false] {
        // Without the break the command runs into this.
        let timeout = if is_broken { "60s" } else { "300ms" };
        let store = format!("timeout = \"{timeout}\"\ncrash_recovery = 0");
        let setup = Setup::new(CHAT).store(&store);
        let bench = setup.on_faulty_network().await;
        bench.redis.is_connected().await;
        bench.network.set(Mode::DropReplies).await;
        let mut client = begin_turn(bench.app.addr(), "s1", "plain:x").await;
        let is_taken = async || bench.redis.get(&key("s1")).await.is_some();
        wait_for_async(is_taken, "Redis executes the acquisition").await;
        if is_broken {
            bench.network.set(Mode::Reset).await;
        }
        let answer = client.answer().await;
        assert_eq!(answer.status, 503, "without a reply the turn has no lock");
        // A connection that lost a reply can't go on.
        bench.network.set(Mode::Reset).await;
        bench.network.set(Mode::Pass).await;
        bench.wait_until_no_keys().await;
    }
}

/// A turn of `a` whose offer it takes up with a command that comes late, and once more in time.
async fn granted_by_the_second_of_two(a: &FaultyReplica, b: &FaultyReplica) -> LockGuard {
    let held = b.hold(&OPTIONS()).await;
    let waiting = a.turn(&OPTIONS());
    let calls = || a.store.calls(Call::Acquire);
    wait_for(|| calls() == 1, "the turn to wait").await;
    // It arrives within its time, and behind the second one.
    let late = NOT_AFTER - Duration::from_millis(100);
    a.store.fail(Call::Acquire, Fault::LateCommand(late));
    held.release().await;
    wait_for(|| calls() == 2, "the turn to take up its offer").await;
    a.store.heal();
    granted(waiting).await.0
}

#[tokio::test(start_paused = true)]
async fn an_acquisition_that_arrives_behind_the_release_of_its_repetition_leaves_no_lock() {
    for is_dropped in [false, true] {
        let (memory, a, b) = FaultyReplica::two();
        let begin = Instant::now();
        let lock = granted_by_the_second_of_two(&a, &b).await;
        match is_dropped {
            true => drop(lock),
            false => lock.release().await,
        }
        assert!(
            begin.elapsed() < NOT_AFTER,
            "the first one is still to come"
        );
        sleep(NOT_AFTER).await;
        wait_until_empty(&memory, "an acquisition behind its release").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_withdrawn_until_its_acquisition_can_not_be_executed_any_more() {
    let (memory, a, _) = FaultyReplica::two();
    // The caller has given up by then, and the claim was withdrawn more than once.
    let late = NOT_AFTER - Duration::from_millis(100);
    a.store.fail(Call::Acquire, Fault::LateCommand(late));
    let refused = within("the turn's refusal", a.turn(&OPTIONS())).await;
    assert!(refused.expect("no panic").is_err(), "there was no reply");
    a.store.heal();
    assert!(memory.is_empty(), "the acquisition is still to come");
    sleep(NOT_AFTER - TIMEOUT).await;
    wait_until_empty(&memory, "a late acquisition").await;
}

#[tokio::test]
async fn in_redis_a_withdrawal_is_for_good_when_no_acquisition_can_be_executed_any_more() {
    let redis = Redis::start().await;
    let network = FaultProxy::start(redis.addr()).await;
    let timeout = Duration::from_secs(3);
    let connect = |url: &str| {
        let address = RedisAddress::parse(url, timeout).expect("a URL");
        RedisStore::connect(address)
    };
    let far = connect(&format!("redis://{}/0", network.addr()));
    let near = connect(&redis.url());
    for store in [&far, &near] {
        store.liveness("nobody").await.expect("it is connected");
    }
    let issuer = ClaimIssuer::new("a", Epoch(1), false);
    let key = SessionKey::literal("k");
    let claim = Arc::new(issuer.issue(key, "route", "request", Duration::from_secs(300)));
    network.set(Mode::Blackhole).await;
    let sent = Instant::now();
    let acquiring = tokio::spawn(far.acquire(&claim, &AcquireRequest::default()));
    network.bitten().await;
    let withdraw = async || near.withdraw(&claim).await.expect("a reply");
    assert_eq!(
        withdraw().await,
        Withdrawal::ForNow,
        "the acquisition is on its way"
    );
    network.set(Mode::Pass).await;
    let is_taken = async || redis.get("k").await.is_some();
    wait_for_async(is_taken, "the acquisition arrives and is executed").await;
    let is_for_good = async || withdraw().await == Withdrawal::ForGood;
    wait_for_async(is_for_good, "the withdrawal is for good").await;
    assert!(
        sent.elapsed() > timeout,
        "as long as the caller waits the command may be executed"
    );
    assert_eq!(redis.keys().await, [""; 0], "nothing is left");
    drop(acquiring);
}

// === releases ===

#[tokio::test(start_paused = true)]
async fn a_release_that_failed_or_was_dropped_is_made_when_the_store_is_back() {
    for fault in [Fault::NotSent, Fault::Lost] {
        for is_dropped in [false, true] {
            let (memory, a, _) = FaultyReplica::two();
            let lock = a.hold(&OPTIONS()).await;
            a.store.fail(Call::Release, fault);
            let mut release = Box::pin(lock.release());
            match is_dropped {
                true => {
                    let polled = poll_fn(|cx| Poll::Ready(release.as_mut().poll(cx))).await;
                    let is_unanswered = matches!(fault, Fault::Lost);
                    assert_eq!(polled.is_pending(), is_unanswered, "{fault:?}");
                    drop(release);
                }
                false => release.await,
            }
            sleep(Duration::from_secs(5)).await;
            assert!(!memory.is_empty(), "{fault:?}: the store is still away");
            a.store.heal();
            wait_until_empty(&memory, &format!("{fault:?}, dropped: {is_dropped}")).await;
        }
    }
}

#[tokio::test]
async fn a_turn_that_ends_while_redis_is_away_frees_its_session_when_redis_is_back() {
    let setup = Setup::new(CHAT).store("timeout = \"300ms\"");
    let bench = setup.on_faulty_network().await;
    bench.redis.is_connected().await;
    for mode in [Mode::Reset, Mode::Blackhole] {
        let mut turn = begin_turn(bench.app.addr(), "s1", "gate").await;
        while turn.head().await.status != 200 {
            // Not every worker is connected again.
            turn = begin_turn(bench.app.addr(), "s1", "gate").await;
        }
        turn.read_until(&event(0)).await;
        bench.network.set(mode).await;
        bench.backend.open_gate("s1");
        assert!(turn.answer().await.whole, "{mode:?}: the turn is over");
        assert!(
            bench.redis.get(&key("s1")).await.is_some(),
            "{mode:?}: its release did not arrive"
        );
        bench.network.set(Mode::Pass).await;
        bench.wait_until_no_keys().await;
    }
}
