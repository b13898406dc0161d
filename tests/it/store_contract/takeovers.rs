//! A store says when a dead holder lost its lock: once, and not when the lock had been released. And what becomes
//! of keys of another type.

use std::sync::Arc;

use seriatim::key::SessionKey;
use seriatim::lock::{AcquireReply, AcquireRequest, Claim, LockHolder, QueueState, WatchedQueue};

use super::{KEY, LEASE, PATIENT, StoreSetup, Waiter, all, at_once};
use crate::support::redis::Redis;

store_contract!(
    a_takeover_is_reported_by_the_turn_that_takes_over,
    a_lock_that_was_released_is_not_reported_as_taken_over,
    a_watch_reports_a_takeover_once,
);

impl StoreSetup {
    /// Requests the lock and names a dead holder; gives the whole reply.
    async fn take_over(&self, claim: &Arc<Claim>, dead: &Claim, waits: bool) -> AcquireReply {
        let request = AcquireRequest {
            take_over: Some(at_once(LockHolder::from(&dead.token))),
            queue: waits.then_some(PATIENT),
        };
        let reply = self.store_of(claim).acquire(claim, &request).await;
        reply.expect("the store answers")
    }

    /// The instance of the waiter watches its queue and names a dead holder.
    async fn watch_and_take_over(&self, waiter: &Waiter, dead: &Claim) -> QueueState {
        let queues = [WatchedQueue {
            key: SessionKey::literal(KEY),
            take_over: Some(at_once(LockHolder::from(&dead.token))),
            wants_places: false,
            waiters: vec![waiter.claim.id],
        }];
        let store = self.store_of(&waiter.claim);
        let found = store.watch(&waiter.claim.instance, &queues).await;
        all(found).remove(0)
    }
}

async fn a_takeover_is_reported_by_the_turn_that_takes_over(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let first = bench.claim_of(2, KEY, LEASE);
    let reply = bench.take_over(&first, &dead, false).await;
    assert!(
        matches!(&reply, AcquireReply::TookOver(inner) if matches!(**inner, AcquireReply::Granted(_))),
        "the turn that takes over is told so, and has the lock: {reply:?}"
    );
    let second = bench.claim_of(0, KEY, LEASE);
    let reply = bench.take_over(&second, &dead, false).await;
    assert!(
        matches!(&reply, AcquireReply::Busy(holder, _) if holder.has_token(&first.token)),
        "a turn that comes later took nothing over: {reply:?}"
    );
    // The lock may go to a waiter instead of the turn that takes over.
    let waiter = bench.join(0).await;
    let third = bench.claim_of(2, KEY, LEASE);
    let reply = bench.take_over(&third, &first, false).await;
    assert!(
        matches!(&reply, AcquireReply::TookOver(inner)
            if matches!(&**inner, AcquireReply::Busy(holder, _) if holder.has_token(&waiter.claim.token))),
        "a turn that takes over for a waiter is told so: {reply:?}"
    );
    bench.are_served([&waiter], "the waiter has the lock").await;
    bench.wait_until_no_keys().await;
}

async fn a_lock_that_was_released_is_not_reported_as_taken_over(bench: StoreSetup) {
    let alive = bench.holder(1).await;
    bench.release(&alive).await;
    let claim = bench.claim_of(2, KEY, LEASE);
    let reply = bench.take_over(&claim, &alive, true).await;
    assert!(
        matches!(reply, AcquireReply::Granted(_)),
        "a release is no takeover: {reply:?}"
    );
    let waiter = bench.join(0).await;
    bench.release(&claim).await;
    let state = bench.watch_and_take_over(&waiter, &claim).await;
    assert!(
        !state.took_over,
        "a release is no takeover for who watches: {state:?}"
    );
    bench.are_served([&waiter], "the waiter has the lock").await;
    bench.wait_until_no_keys().await;
}

async fn a_watch_reports_a_takeover_once(bench: StoreSetup) {
    let dead = bench.holder(1).await;
    let waiters = [bench.join(0).await, bench.join(2).await];
    let state = bench.watch_and_take_over(&waiters[1], &dead).await;
    assert!(state.took_over, "the first watch takes over: {state:?}");
    let state = bench.watch_and_take_over(&waiters[0], &dead).await;
    assert!(
        !state.took_over,
        "the second watch finds another holder: {state:?}"
    );
    bench
        .are_served(&waiters, "waiters are served in order")
        .await;
    bench.wait_until_no_keys().await;
}

// === keys of another type ===

#[tokio::test]
async fn a_lock_of_another_type_is_held_by_somebody_unknown() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    redis.command(&["RPUSH", KEY, "x"]).await;
    let claim = bench.claim_of(0, KEY, LEASE);
    let reply = bench.acquire(&claim).await;
    assert!(
        matches!(&reply, AcquireReply::Busy(holder, _) if holder.turn().is_none()),
        "another program's key keeps the lock busy: {reply:?}"
    );
    let waiter = bench.join(1).await;
    let state = bench.watch_and_take_over(&waiter, &claim).await;
    assert_eq!(
        (
            state.missing,
            state.holder.map(|holder| holder.turn().cloned())
        ),
        (vec![], Some(None)),
        "who waits goes on waiting for the unknown holder"
    );
    redis.command(&["DEL", KEY]).await;
    bench.watch(1).await;
    bench.are_served([&waiter], "the lock is free").await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn the_companion_keys_of_another_type_are_replaced() {
    let redis = Arc::new(Redis::start().await);
    let bench = StoreSetup::on_redis(&redis).await;
    for spoil in [
        ["RPUSH", "{k}:fence", "x"],
        ["SET", "{k}:1:queue", "x"],
        ["SET", "{k}:1:waiters", "x"],
    ] {
        redis.command(&["FLUSHALL"]).await;
        redis.command(&spoil).await;
        let holder = bench.holder(0).await;
        redis.command(&["DEL", spoil[1]]).await;
        redis.command(&spoil).await;
        let waiter = bench.join(1).await;
        bench.release(&holder).await;
        let why = format!("turns are served although {} had another type", spoil[1]);
        bench.are_served([&waiter], &why).await;
    }
    redis.command(&["FLUSHALL"]).await;
}
