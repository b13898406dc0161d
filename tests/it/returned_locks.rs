//! A lock that comes back after its release, because Redis restarted from an older snapshot or failed over to a
//! replica without the release: it blocks nobody for longer than a moment, though its instance is alive.

use std::time::Duration;

use crate::support::app::{App, key, wait_for_queue_length};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, begin_turn, turn};
use crate::support::wait_for_async;

const BLOCKING: &str = "[lock]\nblocking = true\n";

/// Runs a turn of the session at this replica, and puts its lock back as it was. Its lease is far longer than
/// any test.
async fn return_lock(bench: &Replicas, app: &App, session: &str) {
    let mut held = hold(app.addr(), session).await;
    let value = bench.redis.get(&key(session)).await.expect("a lock");
    bench.backend.open_gate(session);
    assert!(held.answer().await.whole, "the turn is over");
    put_back(bench, session, &value).await;
}

async fn put_back(bench: &Replicas, session: &str, value: &str) {
    let set = ["SET", &key(session), value, "PX", "3600000"];
    bench.redis.command(&set).await;
}

#[tokio::test]
async fn a_returned_lock_is_withdrawn_when_another_replica_is_refused() {
    let bench = Replicas::on_redis().await;
    let (first, other) = (bench.replica("", ""), bench.replica("", ""));
    for recovery in [first, bench.replica("crash_recovery = 0", "")] {
        return_lock(&bench, &recovery, "s1").await;
        let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
        wait_for_async(free, "the session is free soon after a turn asked").await;
        bench.wait_until_no_keys().await;
    }
}

#[tokio::test]
async fn a_returned_lock_is_withdrawn_for_a_turn_that_waits_at_another_replica() {
    let bench = Replicas::on_redis().await;
    let (first, other) = (bench.replica("", BLOCKING), bench.replica("", BLOCKING));
    return_lock(&bench, &first, "s1").await;
    let served = turn(other.addr(), "s1", "plain:x").await;
    assert_eq!(served.status, 200, "the waiter gets the lock");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_lock_that_returns_while_turns_of_its_own_replica_wait_is_withdrawn() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica("", BLOCKING);
    let mut held = hold(app.addr(), "s1").await;
    let value = bench.redis.get(&key("s1")).await.expect("a lock");
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn is over");
    put_back(&bench, "s1", "python").await;
    let mut waiter = begin_turn(app.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    put_back(&bench, "s1", &value).await;
    assert_eq!(
        waiter.answer().await.status,
        200,
        "the waiter gets the lock"
    );
    bench.wait_until_no_keys().await;
}

/// Runs a turn of the session at this replica, begins another one, and writes the lock of the first one over that
/// of the other.
async fn hold_under_an_old_lock(bench: &Replicas, app: &App, session: &str) -> Client {
    return_lock(bench, app, session).await;
    let old = bench.redis.get(&key(session)).await.expect("a lock");
    bench.redis.command(&["DEL", &key(session)]).await;
    let held = hold(app.addr(), session).await;
    put_back(bench, session, &old).await;
    held
}

#[tokio::test]
async fn an_old_lock_over_that_of_a_running_turn_stops_that_turn_before_the_next_one_begins() {
    for lock in ["", BLOCKING] {
        let bench = Replicas::on_redis().await;
        let (app, other) = (bench.replica("", lock), bench.replica("", lock));
        for asked in [&other, &app] {
            let mut held = hold_under_an_old_lock(&bench, &app, "s1").await;
            let free = async || turn(asked.addr(), "s1", "plain:x").await.status == 200;
            wait_for_async(free, "the next turn is served").await;
            assert!(!held.answer().await.whole, "the running turn is cut");
            bench.wait_until_no_keys().await;
        }
    }
}

#[tokio::test]
async fn a_lock_that_is_in_use_stays_however_often_others_ask() {
    let bench = Replicas::on_redis().await;
    let (app, other) = (bench.replica("", ""), bench.replica("", ""));
    let mut held = hold(app.addr(), "s1").await;
    let value = bench.redis.get(&key("s1")).await;
    let monitor = bench.redis.monitor().await;
    let began = std::time::Instant::now();
    let mut refused = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let answer = turn(other.addr(), "s1", "plain:x").await;
        assert_eq!(answer.status, 429, "the session is busy");
        refused += 1;
    }
    let seconds = began.elapsed().as_secs() as usize;
    assert_eq!(
        bench.redis.get(&key("s1")).await,
        value,
        "the lock is there"
    );
    let lines = monitor.lines_from_clients().await;
    let asked = lines.iter().filter(|line| line.contains("\"1 in_use "));
    let asked = asked.count();
    assert!(
        (2..=seconds + 2).contains(&asked) && asked < refused,
        "its instance is asked once per second, not per refusal: {asked} of {refused}"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn isn't disturbed");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_redis_that_restarts_from_an_older_snapshot_blocks_no_session() {
    let bench = Replicas::on_redis().await;
    let (app, other) = (bench.replica("", ""), bench.replica("", ""));
    let mut held = hold(app.addr(), "s1").await;
    bench.redis.command(&["SAVE"]).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn is over");
    bench.wait_until_no_keys().await;
    bench.redis.restart().await;
    assert!(
        bench.redis.get(&key("s1")).await.is_some(),
        "the lock came back with the snapshot"
    );
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(
        free,
        "the session is free long before the lease of 300 s ends",
    )
    .await;
    bench.wait_until_no_keys().await;
}
