//! A Redis whose memory is full (`maxmemory`, `noeviction`): what runs and what waits goes on, and new turns are
//! refused with the reason.

use std::time::Duration;

use crate::support::app::{key, wait_for_queue_length};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// A lost heartbeat stops all turns within three seconds.
const QUICK: &str = "crash_recovery = \"3s\"";
const BLOCKING: &str = "[lock]\nblocking = true\n";

/// Longer than `crash_recovery` and than a waiter may be silent.
const LONG: Duration = Duration::from_secs(5);

/// Makes Redis refuse everything that may need memory, or lets it accept everything again.
async fn fill(redis: &Redis, is_full: bool) {
    let most = if is_full { "1" } else { "0" };
    redis.command(&["CONFIG", "SET", "maxmemory", most]).await;
}

/// Waits until this time has passed by the clock of Redis.
async fn pass(redis: &Redis, time: Duration) {
    let seconds = async || {
        let time = redis.command(&["TIME"]).await;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).expect("two numbers");
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    let end = seconds().await + time;
    wait_for_async(async || seconds().await >= end, "the clock of Redis").await;
}

#[tokio::test]
async fn running_turns_go_on_and_new_ones_are_refused_with_the_reason() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica(QUICK, "");
    let mut held = hold(app.addr(), "s1").await;
    fill(&bench.redis, true).await;
    pass(&bench.redis, LONG).await;
    let refused = turn(app.addr(), "s2", "plain:x").await;
    assert_eq!(
        (refused.error(), refused.json()["detail"].as_str()),
        (
            (503, "store_unavailable"),
            Some("the lock store answered: OOM")
        ),
        "a new turn can't be locked"
    );
    let busy = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(busy.status, 429, "the running turn still has its lock");
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "the running turn isn't cut: its lock and its heartbeat are intact"
    );
    fill(&bench.redis, false).await;
    let served = turn(app.addr(), "s2", "plain:x").await;
    assert_eq!(served.status, 200, "turns are served when there is room");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn extended_turns_go_on() {
    let bench = Replicas::on_redis().await;
    let lock = "[lock]\nlock_timeout = \"4s\"\nextend_lock_interval = \"500ms\"\n";
    let app = bench.replica(QUICK, lock);
    let mut held = hold(app.addr(), "s1").await;
    fill(&bench.redis, true).await;
    pass(&bench.redis, LONG).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "an extended turn isn't cut");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn waiting_turns_keep_their_places_and_get_the_lock() {
    let bench = Replicas::on_redis().await;
    let apps = [(); 2].map(|()| bench.replica(QUICK, BLOCKING));
    let mut held = hold(apps[0].addr(), "s1").await;
    let mut waiters = Vec::new();
    for n in 0..4 {
        waiters.push(begin_turn(apps[n % 2].addr(), "s1", &format!("plain:{n}")).await);
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
    }
    fill(&bench.redis, true).await;
    pass(&bench.redis, LONG).await;
    wait_for_queue_length(&bench.redis, "s1", 4).await;
    // A waiter asks again after its instance has connected again.
    let kill = ["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"];
    bench.redis.command(&kill).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder's turn is complete");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        let answer = waiter.answer().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, n.to_string()),
            "who waits is served, in order"
        );
    }
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_heartbeat_is_a_warning_with_the_reason() {
    let bench = Replicas::on_redis().await;
    let process = bench.process(&format!("{QUICK}\ninstance = \"pod-1\""), "");
    let mut held = hold(process.addr(), "s1").await;
    fill(&bench.redis, true).await;
    // A heartbeat that is gone can't be written again.
    bench
        .redis
        .command(&["DEL", "seriatim:instance:1:pod-1"])
        .await;
    assert!(
        !held.answer().await.whole,
        "the turn is cut before others may take over its lock"
    );
    let refused = || process.has_logged("heartbeat refused");
    wait_for(refused, "the warning").await;
    pass(&bench.redis, Duration::from_secs(1)).await;
    fill(&bench.redis, false).await;
    let free = async || turn(process.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "turns are served again").await;
    process.signal("TERM");
    let (_, events) = process.end();
    let warnings: Vec<_> = events
        .iter()
        .filter(|event| {
            event["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("heartbeat refused"))
        })
        .collect();
    assert_eq!(warnings.len(), 1, "one warning per outage: {warnings:#?}");
    assert_eq!(warnings[0]["level"], "WARN", "it is a warning");
    let error = warnings[0]["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("answered: OOM"),
        "it has the reason: {error}"
    );
    let cut = events.iter().find(|event| event["outcome"] == "lock_lost");
    assert_eq!(
        cut.map(|event| &event["error"]),
        Some(&"its instance could not renew its heartbeat in the store".into()),
        "the turn's own event says why it was cut"
    );
    assert!(
        bench.redis.get(&key("s1")).await.is_none(),
        "its lock is released"
    );
}
