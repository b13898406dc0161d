//! After an outage with `on_error = "local"`: turns that waited for their replica's own lock take the store's lock
//! before they begin, and overlaps are counted only where there are some.

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, begin_turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::wait_for_async;

const LOCAL: &str = "on_error = \"local\"";
const BLOCKING: &str = "[lock]\nblocking = true\n";

async fn is_held_in_redis(bench: &Replicas<FaultProxy>, session: &str) {
    let held = async || bench.redis.get(&key(session)).await.is_some();
    wait_for_async(held, "the turn's lock is in the store").await;
}

#[tokio::test]
async fn turns_that_waited_locally_take_the_stores_lock_before_they_begin() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica(LOCAL, BLOCKING);
    let other = App::on_redis(&bench.backend, &bench.redis, &format!("{BLOCKING}{CHAT}"));
    bench.network.set(Mode::Reset).await;
    let mut held = hold(app.addr(), "s1").await;
    let mut waiters = Vec::new();
    for n in 1..=3 {
        waiters.push(begin_turn(app.addr(), "s1", &format!("plain:{n}")).await);
        app.wait_for_waiters(n).await;
    }
    bench.network.set(Mode::Pass).await;
    is_held_in_redis(&bench, "s1").await;
    // A turn of another replica, which knows nothing of the waiters at the first one.
    let mut beside = begin_turn(other.addr(), "s1", "gate").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn from the outage ends");
    beside.read_until(&crate::support::backend::event(0)).await;
    wait_for_queue_length(&bench.redis, "s1", 3).await;
    bench.backend.open_gate("s1");
    assert!(beside.answer().await.whole, "the other replica's turn ends");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        let answer = waiter.answer().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, (n + 1).to_string()),
            "who waited is served, in order"
        );
    }
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlap");
    let turns = bench.backend.turns("s1");
    let locked = turns
        .iter()
        .filter(|turn| turn.header("x-seriatim-fence").is_some());
    assert_eq!(
        locked.count(),
        4,
        "only the turn from the outage ran without the store's lock"
    );
    assert_eq!(
        app.metric("seriatim_overlaps_total").await,
        "0",
        "no overlap is counted where none was"
    );
    wait_until_no_keys(&bench.redis).await;
}

/// A turn from an outage that runs at this replica, and a turn behind it that has the store's lock and waits for the
/// local one.
async fn wait_for_local_lock(bench: &Replicas<FaultProxy>, app: &App) -> (Client, Client) {
    bench.network.set(Mode::Reset).await;
    let held = hold(app.addr(), "s1").await;
    bench.network.set(Mode::Pass).await;
    is_held_in_redis(bench, "s1").await;
    // A new turn of the same replica gets the store's lock, and waits for the local one.
    let next = begin_turn(app.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let before = bench.redis.get(&key("s1")).await;
    bench.redis.command(&["DEL", &key("s1")]).await;
    let passed_on = async || {
        let now = bench.redis.get(&key("s1")).await;
        now.is_some() && now != before && app.metric("seriatim_waiters").await == "1"
    };
    wait_for_async(passed_on, "the new turn has the store's lock").await;
    (held, next)
}

const EXTENDED: &str =
    "[lock]\nblocking = true\nlock_timeout = \"30s\"\nextend_lock_interval = \"100ms\"\n";

#[tokio::test]
async fn a_turn_that_waits_for_the_local_lock_is_no_overlap() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica(LOCAL, EXTENDED);
    let (mut held, mut next) = wait_for_local_lock(&bench, &app).await;
    // The first turn finds its lock lost, asks for it again, and is refused.
    let monitor = bench.redis.monitor().await;
    let asks = async || {
        let lines = monitor.lines_from_clients().await;
        // With all four keys: an extension has two.
        let asked = format!("\"4\" \"{}\"", key("s1"));
        lines.iter().filter(|line| line.contains(&asked)).count() >= 3
    };
    wait_for_async(asks, "the first turn asks several times").await;
    assert_eq!(
        app.metric("seriatim_overlaps_total").await,
        "0",
        "a turn that waits for the other one doesn't overlap with it"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the first turn is complete");
    assert_eq!(
        next.answer().await.status,
        200,
        "the new turn is served next"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlap");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_turn_that_waits_for_the_local_lock_goes_on_waiting_when_redis_loses_its_data() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica(LOCAL, EXTENDED);
    let (mut held, mut next) = wait_for_local_lock(&bench, &app).await;
    bench.redis.command(&["FLUSHALL"]).await;
    bench.network.cut().await;
    is_held_in_redis(&bench, "s1").await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the first turn is complete");
    assert_eq!(next.answer().await.status, 200, "the waiter is served next");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlap");
    wait_until_no_keys(&bench.redis).await;
}
