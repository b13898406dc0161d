//! The lock of one session: granted, extended, released, expired.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use seriatim::lock::{AcquireReply, AcquireRequest, BusySession, Fence, QueueOptions, Withdrawal};
use tokio::time::Instant;

use super::{KEY, LEASE, PATIENT, StoreSetup};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

store_contract!(
    a_free_lock_is_granted_and_a_held_one_is_not,
    a_released_lock_is_free_at_once,
    only_the_token_that_holds_a_lock_releases_it,
    a_repeated_acquisition_by_one_token_is_granted_again,
    the_fence_rises_with_every_acquisition,
    an_expired_lock_is_free_and_lost_to_its_holder,
    an_extended_lock_outlives_its_lease,
    an_extension_says_which_locks_are_lost,
    a_withdrawn_claim_leaves_nothing_behind,
    exactly_one_of_many_concurrent_claims_is_granted,
    a_refused_claim_is_told_when_the_lock_was_taken_and_how_many_wait,
);

async fn a_free_lock_is_granted_and_a_held_one_is_not(bench: StoreSetup) {
    let (first, second) = (bench.claim("k", LEASE), bench.claim("k", LEASE));
    bench.granted(&first).await;
    assert!(bench.is_busy(&second).await, "one holder at a time");
    bench.granted(&bench.claim("other", LEASE)).await;
}

/// What a refused claim is told of the session [`KEY`].
async fn refused(bench: &StoreSetup, queue: Option<QueueOptions>) -> BusySession {
    let request = AcquireRequest {
        take_over: None,
        queue,
    };
    match bench.ask(&bench.claim(KEY, LEASE), &request).await {
        AcquireReply::Busy(_, session) if queue.is_none() => session,
        AcquireReply::QueueFull(session) if queue.is_some() => session,
        other => panic!("the session is busy, and its queue is full: {other:?}"),
    }
}

async fn a_refused_claim_is_told_when_the_lock_was_taken_and_how_many_wait(bench: StoreSetup) {
    let holder = bench.claim(KEY, LEASE);
    let Fence(fence) = bench.granted(&holder).await;
    let since = UNIX_EPOCH + Duration::from_micros(fence);
    let passed = Duration::from_millis(20);
    bench.pass(passed, &[]).await;
    let full = QueueOptions {
        max_waiters: 0,
        ..PATIENT
    };
    let mut waiters = Vec::new();
    for waiting in 0..3 {
        for queue in [None, Some(full)] {
            let session = refused(&bench, queue).await;
            assert_eq!(
                (session.since, session.waiters),
                (Some(since), waiting),
                "the fence is the store's time, and every waiter counts: {queue:?}"
            );
            let age = session.age.expect("a held lock has an age");
            assert!(
                (passed..LEASE).contains(&age),
                "the age goes by the store's clock, too: {age:?}"
            );
        }
        waiters.push(bench.join(waiting % 2).await);
    }
    assert!(bench.release(&holder).await, "the lock is handed over");
    let session = refused(&bench, None).await;
    assert_eq!(
        (session.since, session.age, session.waiters),
        (None, None, 2),
        "nobody has taken a lock that is only offered, and its waiter waits no more"
    );
    let Fence(fence) = bench.take_up(&waiters[0]).await;
    let since = UNIX_EPOCH + Duration::from_micros(fence);
    assert_eq!(
        refused(&bench, None).await.since,
        Some(since),
        "it is taken now"
    );
}

async fn a_released_lock_is_free_at_once(bench: StoreSetup) {
    let first = bench.claim("k", LEASE);
    bench.granted(&first).await;
    assert!(bench.release(&first).await, "the holder releases its lock");
    bench.granted(&bench.claim("k", LEASE)).await;
}

async fn only_the_token_that_holds_a_lock_releases_it(bench: StoreSetup) {
    let (holder, other) = (bench.claim("k", LEASE), bench.claim("k", LEASE));
    bench.granted(&holder).await;
    assert!(
        !bench.release(&other).await,
        "another token releases nothing"
    );
    assert!(bench.is_busy(&other).await, "the lock is still held");
    assert!(bench.release(&holder).await, "the holder releases its lock");
    assert!(
        !bench.release(&holder).await,
        "a second release finds nothing"
    );
}

async fn a_repeated_acquisition_by_one_token_is_granted_again(bench: StoreSetup) {
    let claim = bench.claim("k", LEASE);
    let first = bench.granted(&claim).await;
    let second = bench.granted(&claim).await;
    assert!(
        second >= first,
        "a repeated command is granted, and the fence doesn't fall"
    );
    assert!(bench.release(&claim).await, "one release frees the lock");
    bench.granted(&bench.claim("k", LEASE)).await;
}

async fn the_fence_rises_with_every_acquisition(bench: StoreSetup) {
    let mut last = Fence(0);
    for _ in 0..50 {
        let claim = bench.claim("k", LEASE);
        let fence = bench.granted(&claim).await;
        assert!(fence > last, "{fence} must be larger than {last}");
        last = fence;
        bench.release(&claim).await;
    }
}

async fn an_expired_lock_is_free_and_lost_to_its_holder(bench: StoreSetup) {
    let paused = bench.claim("k", Duration::from_millis(60));
    let first = bench.granted(&paused).await;
    let next = bench.claim("k", LEASE);
    let taken = async || !bench.is_busy(&next).await;
    wait_for_async(taken, "the lease expires").await;
    let second = bench.granted(&next).await;
    assert!(
        second > first,
        "the new holder's fence is larger than the old one's"
    );
    assert_eq!(
        bench.extend(&[Arc::clone(&paused)]).await,
        [false],
        "an expired lock can't be extended"
    );
    assert!(
        !bench.release(&paused).await,
        "an expired lock can't be released"
    );
    assert!(
        bench.is_busy(&paused).await,
        "the new holder keeps its lock"
    );
}

async fn an_extended_lock_outlives_its_lease(bench: StoreSetup) {
    let claim = bench.claim("k", Duration::from_millis(400));
    bench.granted(&claim).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(
            bench.extend(&[Arc::clone(&claim)]).await,
            [true],
            "the extended lock is still held"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let other = bench.claim("k", LEASE);
    assert!(
        bench.is_busy(&other).await,
        "the lock outlives its first lease"
    );
}

async fn an_extension_says_which_locks_are_lost(bench: StoreSetup) {
    let claims: Vec<_> = ["a", "b", "c"].map(|key| bench.claim(key, LEASE)).into();
    for claim in &claims {
        bench.granted(claim).await;
    }
    bench.release(&claims[1]).await;
    assert_eq!(
        bench.extend(&claims).await,
        [true, false, true],
        "each lock has its own result"
    );
    assert_eq!(
        bench.extend(&[]).await,
        [false; 0],
        "an empty request has an empty reply"
    );
}

async fn a_withdrawn_claim_leaves_nothing_behind(bench: StoreSetup) {
    let claim = bench.claim("k", LEASE);
    bench.granted(&claim).await;
    let withdraw = async || {
        bench
            .store(0)
            .withdraw(&claim)
            .await
            .expect("the store answers")
    };
    withdraw().await;
    bench.granted(&bench.claim("k", LEASE)).await;
    let done = async || withdraw().await == Withdrawal::ForGood;
    wait_for_async(done, "no acquisition of the claim can arrive any more").await;
}

async fn exactly_one_of_many_concurrent_claims_is_granted(bench: StoreSetup) {
    let claims: Vec<_> = (0..50).map(|_| bench.claim("k", LEASE)).collect();
    let asked: Vec<_> = claims
        .iter()
        .map(|claim| tokio::spawn(bench.store(0).acquire(claim, &AcquireRequest::default())))
        .collect();
    let mut granted = 0;
    for answer in asked {
        let answer = answer.await.expect("no panic").expect("the store answers");
        granted += usize::from(matches!(answer, AcquireReply::Granted(_)));
    }
    assert_eq!(granted, 1, "exactly one claim is granted");
}

#[tokio::test]
async fn the_lock_is_a_plain_string_key_with_the_token_as_python_expects() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let claim = bench.claim("lock:session:u:s", Duration::from_secs(300));
    bench.granted(&claim).await;
    let value = redis.get("lock:session:u:s").await;
    assert_eq!(
        value.as_deref(),
        Some(claim.token.as_str()),
        "the value is the token"
    );
    let left = redis.pttl("lock:session:u:s").await;
    assert!(
        (299_000..=300_000).contains(&left),
        "the TTL is the lease, in milliseconds: {left}"
    );
    bench.release(&claim).await;
    assert_eq!(redis.keys().await, [""; 0], "no key is left");
}

#[tokio::test]
async fn the_fence_rises_even_when_the_clock_is_set_back() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let ahead = "9000000000000000";
    redis
        .command(&["SET", "{k}:fence", ahead, "PX", "60000"])
        .await;
    let first = bench.claim("k", LEASE);
    assert_eq!(
        bench.granted(&first).await,
        Fence(9_000_000_000_000_001),
        "the fence is the last one plus one"
    );
    bench.release(&first).await;
    let fence = bench.granted(&bench.claim("k", LEASE)).await;
    assert_eq!(
        fence,
        Fence(9_000_000_000_000_002),
        "the fence rises across a release"
    );
}

#[tokio::test]
async fn scripts_that_redis_lost_are_loaded_again() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    bench.granted(&bench.claim("a", LEASE)).await;
    redis.command(&["SCRIPT", "FLUSH"]).await;
    bench.granted(&bench.claim("b", LEASE)).await;
}

#[tokio::test]
async fn a_key_of_another_type_does_not_affect_other_extensions() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    let claims: Vec<_> = ["a", "b", "c"].map(|key| bench.claim(key, LEASE)).into();
    for claim in &claims {
        bench.granted(claim).await;
    }
    redis.command(&["DEL", "b"]).await;
    redis.command(&["RPUSH", "b", "x"]).await;
    assert_eq!(
        bench.extend(&claims).await,
        [true, false, true],
        "each lock has its own result"
    );
    redis.command(&["DEL", "b", "{b}:fence"]).await;
}
