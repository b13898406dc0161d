//! A Redis whose memory is full refuses only what is new: a lock and a place in a queue for a turn that has neither.

use std::sync::Arc;
use std::time::Duration;

use seriatim::lock::{AcquireReply, Claim, HeartbeatReply, LockHolder, StoreError};

use super::{KEY, LEASE, PATIENT, StoreSetup, Watched, held_by};
use crate::support::redis::Redis;

async fn start() -> (Arc<Redis>, StoreSetup) {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    (redis, bench)
}

async fn fill(redis: &Redis) {
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
}

/// Requests the lock for a new turn and asserts that Redis refuses.
async fn assert_refused(bench: &StoreSetup, claim: &Arc<Claim>, waits: bool) {
    let request = seriatim::lock::AcquireRequest {
        take_over: None,
        queue: waits.then_some(PATIENT),
    };
    let reply = bench.store(0).acquire(claim, &request).await;
    let is_refused =
        matches!(&reply, Err(StoreError::Refused { reason, .. }) if reason.starts_with("OOM"));
    assert!(is_refused, "a new turn is refused: {reply:?}");
}

#[tokio::test]
async fn a_new_turn_is_refused_and_leaves_nothing() {
    let (redis, bench) = start().await;
    fill(&redis).await;
    for waits in [false, true] {
        assert_refused(&bench, &bench.claim("other", LEASE), waits).await;
    }
    assert_eq!(redis.keys().await, [""; 0], "nothing is left of it");
}

#[tokio::test]
async fn a_busy_session_has_no_new_places() {
    let (redis, bench) = start().await;
    let holder = bench.holder(0).await;
    fill(&redis).await;
    let claim = bench.claim(KEY, LEASE);
    assert!(bench.is_busy(&claim).await, "who doesn't wait learns that");
    assert_refused(&bench, &claim, true).await;
    assert!(bench.release(&holder).await, "the lock is released");
    assert_eq!(redis.keys().await, [""; 0], "nothing is left");
}

#[tokio::test]
async fn a_watch_keeps_waiters_alive() {
    let (redis, bench) = start().await;
    let holder = bench.holder(0).await;
    let waiters = [bench.join(1).await, bench.join(1).await];
    fill(&redis).await;
    let last = async || redis.command(&["HVALS", "{k}:1:waiters"]).await;
    let before = last().await;
    assert_eq!(
        bench.watch(1).await,
        held_by(&holder),
        "both waiters are in the queue"
    );
    assert_ne!(last().await, before, "and have just been seen alive");
    bench.release(&holder).await;
    bench
        .are_served(&waiters, "the release offers the lock, in order")
        .await;
}

#[tokio::test]
async fn a_waiter_that_lost_its_place_gets_it_back() {
    let (redis, bench) = start().await;
    let holder = bench.holder(0).await;
    let waiters = [bench.join(1).await, bench.join(2).await];
    redis
        .command(&["DEL", "{k}:1:queue", "{k}:1:waiters"])
        .await;
    fill(&redis).await;
    assert_eq!(bench.watch(1).await, Watched::Unknown, "the place is gone");
    for waiter in waiters.iter().rev() {
        let reply = bench.ask_again(waiter).await;
        assert!(
            matches!(reply, AcquireReply::Waiting(ticket, _) if ticket == waiter.ticket),
            "the waiter has its place again: {reply:?}"
        );
    }
    bench.release(&holder).await;
    bench
        .are_served(&waiters, "waiters are served in order")
        .await;
}

#[tokio::test]
async fn locks_are_extended_and_force_released_and_heartbeats_renewed() {
    let (redis, bench) = start().await;
    let beat = async || {
        let claim = bench.claim_of(0, KEY, LEASE);
        let (name, epoch) = (&claim.instance, claim.id.epoch);
        let sent = bench
            .store(0)
            .heartbeat(name, epoch, Duration::from_secs(9), false);
        sent.await.expect("the store answers")
    };
    let holder = bench.holder(0).await;
    let waiter = bench.join(1).await;
    assert_eq!(beat().await, HeartbeatReply::Registered, "the first one");
    fill(&redis).await;
    assert_eq!(beat().await, HeartbeatReply::Renewed, "it goes on");
    let ttl = redis.pttl("seriatim:instance:1:pod-0").await;
    assert!((1..=9_000).contains(&ttl), "with its TTL: {ttl}");
    let claims = std::slice::from_ref(&holder);
    assert_eq!(bench.extend(claims).await, [true], "the lease is extended");
    let forced = bench
        .store(0)
        .force_release(&holder.key, &LockHolder::from(&holder.token))
        .await;
    assert!(forced.is_ok_and(|fence| fence.is_some()), "it is released");
    bench
        .are_served([&waiter], "the lock is offered to the waiter")
        .await;
}

#[tokio::test]
async fn a_waiter_is_dequeued_for_good() {
    let (redis, bench) = start().await;
    let holder = bench.holder(0).await;
    let (out, next) = (bench.join(1).await, bench.join(2).await);
    fill(&redis).await;
    let removed = bench.store(0).dequeue(&out.claim.key, out.claim.id).await;
    assert!(removed.is_ok_and(|was_there| was_there), "it waited");
    let reply = bench.ask_again(&out).await;
    assert_eq!(reply, AcquireReply::Dequeued, "it stays out");
    bench.release(&holder).await;
    bench
        .are_served([&next], "the lock is offered to the other waiter")
        .await;
}
