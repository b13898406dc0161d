//! A Redis that restarts from an older snapshot, with the heartbeats of all replicas and without the lock of a
//! running turn: the turn is cut before another one of its session begins.

use std::time::Duration;

use crate::support::app::{App, CHAT, key};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for_async, within};

/// Leases that end long after any test, never extended and extended long after any test.
const LEASES: [&str; 2] = [
    "",
    "lock_timeout = \"900s\"\nextend_lock_interval = \"400s\"\n",
];

/// Writes the snapshot from which Redis restarts later, with a heartbeat of each replica.
async fn save(redis: &Redis, replicas: usize) {
    let alive = async || redis.instances().await.len() == replicas;
    wait_for_async(alive, "each replica has a heartbeat").await;
    redis.command(&["SAVE"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_whose_lock_is_not_in_the_snapshot_is_cut_before_another_begins() {
    for lease in LEASES {
        for blocking in ["", "blocking = true\n"] {
            let bench = Replicas::on_redis().await;
            let lock = format!("[lock]\n{lease}{blocking}");
            // This replica needs longer to connect again.
            let network = FaultProxy::start(bench.redis.addr()).await;
            let slow = format!("redis://{}/0", network.addr());
            let slow = App::start(&bench.backend.url(), &slow, "", &format!("{lock}{CHAT}"));
            let other = bench.replica("", &lock);
            save(&bench.redis, 2).await;
            let mut held = hold(slow.addr(), "s1").await;
            network.set(Mode::Delay(Duration::from_millis(40))).await;
            let restart = async {
                bench.redis.restart().await;
                assert_eq!(bench.redis.get(&key("s1")).await, None, "the lock is lost");
            };
            // Without a pause, so that some turn asks for the lock while its replica connects.
            let served = within("a turn of the session is served", async {
                while turn(other.addr(), "s1", "plain:x").await.status != 200 {}
            });
            tokio::join!(restart, served);
            assert!(!held.answer().await.whole, "the turn without a lock is cut");
            assert_eq!(
                bench.backend.max_overlap("s1"),
                1,
                "no turn runs beside another: {lock}"
            );
            bench.wait_until_no_keys().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_whose_lock_is_in_the_snapshot_goes_on() {
    for lease in LEASES {
        let bench = Replicas::on_redis().await;
        let lock = format!("[lock]\n{lease}blocking = true\n");
        let (app, other) = (bench.replica("", &lock), bench.replica("", &lock));
        let mut held = hold(app.addr(), "s1").await;
        save(&bench.redis, 2).await;
        bench.redis.restart().await;
        for app in [&app, &other] {
            let served = async || turn(app.addr(), "s2", "plain:x").await.status == 200;
            wait_for_async(served, "each replica has found the new server").await;
        }
        let mut behind = begin_turn(other.addr(), "s1", "plain:x").await;
        other.wait_for_waiters(1).await;
        bench.backend.open_gate("s1");
        assert!(held.answer().await.whole, "the turn isn't disturbed");
        assert_eq!(behind.answer().await.status, 200, "the waiter is served");
        assert_eq!(bench.backend.max_overlap("s1"), 1, "one after the other");
        bench.wait_until_no_keys().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_asks_while_its_replica_connects_begins_no_earlier() {
    let bench = Replicas::on_faulty_network().await;
    let network = FaultProxy::start(bench.redis.addr()).await;
    let slow = format!("redis://{}/0", network.addr());
    let slow = App::start(&bench.backend.url(), &slow, "", CHAT);
    // The attempt to connect has to outlast the silence of the network.
    let other = bench.replica("timeout = \"10s\"\n", "");
    turn(other.addr(), "warm", "plain:x").await;
    // The snapshot must not have this turn's lock, which nobody would release after the restart.
    bench.wait_until_no_keys().await;
    save(&bench.redis, 2).await;
    let mut held = hold(slow.addr(), "s1").await;
    bench.network.set(Mode::Blackhole).await;
    network.set(Mode::Delay(Duration::from_millis(40))).await;
    let connections = bench.network.connections();
    bench.redis.restart().await;
    tokio::join!(network.cut(), bench.network.cut());
    let connecting = async || bench.network.connections() == connections;
    wait_for_async(connecting, "the replica connects again").await;
    let mut asking = begin_turn(other.addr(), "s1", "plain:x").await;
    // The turn is on its way to the store when another request is answered.
    turn(other.addr(), "", "plain:x").await;
    bench.network.set(Mode::Pass).await;
    assert_eq!(asking.answer().await.status, 200, "the turn is served");
    assert!(!held.answer().await.whole, "the turn without a lock is cut");
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "no turn runs beside another"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_turn_begins_within_the_failover_grace() {
    let bench = Replicas::on_redis().await;
    // The longest one that can be configured, which ends after the test, and none.
    let waits = bench.replica("failover_grace = \"1m\"\n", "");
    let goes_on = bench.replica("failover_grace = \"0s\"\n", "");
    for app in [&waits, &goes_on] {
        let first = turn(app.addr(), "first", "plain:x").await;
        assert_eq!(first.status, 200, "the first server is no failover");
        bench.wait_until_no_keys().await;
    }
    save(&bench.redis, 2).await;
    bench.redis.restart().await;
    let connected = async || {
        let command = ["PUBSUB", "CHANNELS", "seriatim:instance:*"];
        let channels = bench.redis.command(&command).await;
        channels.as_sequence().map(<[_]>::len) == Some(2)
    };
    wait_for_async(connected, "each replica has found the new server").await;
    let _waiting = begin_turn(waits.addr(), "s1", "plain:x").await;
    // The turn is on its way to the store when another request is answered.
    turn(waits.addr(), "", "plain:x").await;
    for _ in 0..20 {
        let served = turn(goes_on.addr(), "s2", "plain:x").await;
        assert_eq!(served.status, 200, "without a grace, turns begin at once");
    }
    assert!(
        bench.backend.turns("s1").is_empty(),
        "within the grace, none begins"
    );
}

#[tokio::test]
async fn a_redis_user_without_info_is_served_and_named_once_in_the_log() {
    let bench = Replicas::on_redis().await;
    let set = async |rights: &str| {
        let user = format!("ACL SETUSER poor on >secret ~* &* +@all {rights}");
        let user: Vec<_> = user.split_whitespace().collect();
        bench.redis.command(&user).await;
    };
    set("").await;
    let url = format!("redis://poor:secret@{}/0", bench.redis.addr());
    let process = Process::start(&bench.config_at(&url, "", ""));
    turn(process.addr(), "s1", "plain:x").await;
    set("-info").await;
    let kill = ["CLIENT", "KILL", "USER", "poor", "SKIPME", "yes"];
    bench.redis.command(&kill).await;
    let warned = || process.times_logged("does not answer INFO server");
    let connected = async || {
        let served = turn(process.addr(), "s2", "plain:x").await.status == 200;
        served && warned() > 0
    };
    wait_for_async(connected, "turns are served, and the log has the warning").await;
    process.signal("TERM");
    let (_, events) = process.end();
    let has = |event: &serde_json::Value| {
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        text("message").contains("INFO server") && text("error").contains("can't run this command")
    };
    let warnings = events.iter().filter(|event| has(event)).count();
    assert_eq!(warnings, 1, "one warning for all connections");
}
