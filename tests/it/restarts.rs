//! A Redis that restarts without its data, or is away for a while: who waits goes on waiting, and is served.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seriatim::key::SessionKey;
use seriatim::lock::memory::MemoryStore;
use seriatim::lock::{AcquireError, LockOptions, Store as _};

use crate::support::app::{App, CHAT};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::faulty_store::{Call, Fault, FaultyReplica, SESSION, granted};
use crate::support::redis::Redis;
use crate::support::{wait_for_async, within};

const BLOCKING: &str = "[lock]\nblocking = true\n";
const REPLICAS: usize = 3;
const SESSIONS: usize = 20;
/// Per session and replica.
const WAITERS: usize = 2;

/// Waits until turns at this replica have been refused for this long, because Redis is away.
async fn is_away_for(app: &App, time: Duration) {
    let began = Instant::now();
    let away = async || {
        let answer = turn(app.addr(), "other", "plain:x").await;
        assert_eq!(
            answer.error(),
            (503, "store_unavailable"),
            "a new turn is refused while Redis is away"
        );
        began.elapsed() > time
    };
    wait_for_async(away, "Redis to be away for a while").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_are_served_after_a_restart_without_data() {
    let bench = Replicas::on_redis().await;
    let apps = [(); REPLICAS].map(|()| bench.replica("", BLOCKING));
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        holders.push(hold(apps[n % REPLICAS].addr(), &session).await);
        for app in &apps {
            for _ in 0..WAITERS {
                waiters.push(begin_turn(app.addr(), &session, "chunked:2:5").await);
            }
        }
    }
    for app in &apps {
        app.wait_for_waiters(SESSIONS * WAITERS).await;
    }
    bench.redis.restart().await;
    let mut sent_away = Vec::new();
    for mut waiter in waiters {
        let answer = within("each waiter gets an answer", waiter.answer()).await;
        if answer.status != 200 || !answer.whole {
            sent_away.push(format!("{:?}", answer.error()));
        }
    }
    assert_eq!(
        sent_away,
        [""; 0],
        "of {} who wait, none is sent away or cut",
        SESSIONS * REPLICAS * WAITERS
    );
    for mut holder in holders {
        assert!(
            !holder.answer().await.whole,
            "a turn whose lock is gone is cut"
        );
    }
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn who_waits_goes_on_waiting_while_redis_is_away() {
    let bench = Replicas::on_redis().await;
    for store in [
        "",
        "timeout = \"200ms\"\ncrash_recovery = \"1s\"",
        "crash_recovery = 0",
    ] {
        let app = bench.replica(store, BLOCKING);
        // By a lock that isn't Seriatim's, so that no turn is cut.
        let foreign = ["SET", "lock:session:u1:s1", "python", "PX", "3600000"];
        bench.redis.command(&foreign).await;
        let mut waiter = begin_turn(app.addr(), "s1", "plain:x").await;
        app.wait_for_waiters(1).await;
        bench.redis.kill();
        is_away_for(&app, Duration::from_secs(5)).await;
        bench.redis.restart().await;
        let back = Instant::now();
        let answer = waiter.answer().await;
        assert_eq!(
            answer.status,
            200,
            "the waiter is served: {store} {}",
            answer.text()
        );
        let took = back.elapsed();
        assert!(
            took < Duration::from_secs(5),
            "within two seconds, and some for a slow machine: {took:?} with {store}"
        );
        bench.wait_until_no_keys().await;
    }
}

#[tokio::test]
async fn who_waits_is_refused_after_its_time_if_redis_stays_away() {
    let bench = Replicas::on_redis().await;
    let lock = format!("{BLOCKING}blocking_timeout = \"1s\"\n");
    let app = bench.replica("", &lock);
    let foreign = ["SET", "lock:session:u1:s1", "python", "PX", "3600000"];
    bench.redis.command(&foreign).await;
    let mut waiter = begin_turn(app.addr(), "s1", "plain:x").await;
    app.wait_for_waiters(1).await;
    bench.redis.kill();
    assert_eq!(
        waiter.answer().await.error(),
        (503, "store_unavailable"),
        "it waited for Redis in the end, and not for another turn"
    );
}

#[tokio::test]
async fn an_offer_that_is_lost_with_the_data_runs_no_turn_without_a_lock() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica("", BLOCKING);
    let mut held = hold(app.addr(), "s1").await;
    let mut waiters = Vec::new();
    for _ in 0..5 {
        waiters.push(begin_turn(app.addr(), "s1", "chunked:2:5").await);
    }
    app.wait_for_waiters(5).await;
    // The release offers the lock while Redis goes away.
    bench.backend.open_gate("s1");
    bench.redis.restart().await;
    let _ = held.try_answer().await;
    let mut cut = 0;
    for waiter in &mut waiters {
        let answer = waiter.try_answer().await;
        cut += usize::from(!answer.is_ok_and(|answer| answer.status == 200 && answer.whole));
    }
    assert!(
        cut <= 1,
        "each waiter gets its turn, and only one that had begun before is cut: {cut}"
    );
    bench.wait_until_no_keys().await;
}

/// Deletes all keys and breaks all connections, as a restart without data does, in no time.
async fn lose_everything(redis: &Redis) {
    redis.command(&["FLUSHALL"]).await;
    for kind in ["normal", "pubsub"] {
        let kill = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
        redis.command(&kill).await;
    }
}

#[tokio::test]
async fn a_turn_that_a_restarted_redis_grants_is_not_cut_by_the_next_heartbeat() {
    let bench = Replicas::on_redis().await;
    // A heartbeat every two seconds.
    let app = bench.replica("crash_recovery = \"6s\"", "");
    turn(app.addr(), "warm", "plain:x").await;
    bench.redis.command(&["FLUSHALL"]).await;
    // The instance's own connection stays, and so nothing tells it to send a heartbeat.
    let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    bench.redis.command(&kill).await;
    let mut held = hold(app.addr(), "s1").await;
    let began = Instant::now();
    let later = async || began.elapsed() > Duration::from_secs(3);
    wait_for_async(later, "the next heartbeat").await;
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "the instance had a heartbeat before the turn began"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn after_a_loss_of_data_turns_begin_when_those_of_other_replicas_have_stopped() {
    let bench = Replicas::on_redis().await;
    // This replica needs longer to connect again and to find its heartbeat gone.
    let network = FaultProxy::start(bench.redis.addr()).await;
    let slow = format!("redis://{}/0", network.addr());
    let config = format!("{BLOCKING}{CHAT}");
    let slow = App::start(&bench.backend.url(), &slow, "", &config);
    let other = bench.replica("", BLOCKING);
    let mut held = hold(slow.addr(), "s1").await;
    let mut waiter = begin_turn(other.addr(), "s1", "plain:x").await;
    other.wait_for_waiters(1).await;
    network.set(Mode::Delay(Duration::from_millis(20))).await;
    lose_everything(&bench.redis).await;
    assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
    assert!(!held.answer().await.whole, "the turn without a lock is cut");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn after_a_loss_of_data_a_turn_that_never_waited_begins_no_earlier() {
    let bench = Replicas::on_redis().await;
    // This replica needs longer to connect again and to find its heartbeat gone.
    let network = FaultProxy::start(bench.redis.addr()).await;
    let slow = format!("redis://{}/0", network.addr());
    let slow = App::start(&bench.backend.url(), &slow, "", CHAT);
    let other = bench.replica("", "");
    turn(other.addr(), "warm", "plain:x").await;
    let mut held = hold(slow.addr(), "s1").await;
    network.set(Mode::Delay(Duration::from_millis(40))).await;
    bench.redis.command(&["FLUSHALL"]).await;
    // The other replica's own connection stays, and so the first to find its heartbeat gone is a turn that has
    // been granted a lock.
    let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
    bench.redis.command(&kill).await;
    network.cut().await;
    let served = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(served, "a turn of the session is served").await;
    assert!(!held.answer().await.whole, "the turn without a lock is cut");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_replica_whose_heartbeat_had_expired_begins_no_turn_sooner_after_a_loss_of_data() {
    let bench = Replicas::on_faulty_network().await;
    let network = FaultProxy::start(bench.redis.addr()).await;
    let late = format!("redis://{}/0", network.addr());
    let late = App::start(&bench.backend.url(), &late, "", CHAT);
    let mut held = hold(late.addr(), "s1").await;
    let expired = bench.replica("timeout = \"200ms\"\ncrash_recovery = \"1s\"", "");
    turn(expired.addr(), "warm", "plain:x").await;
    bench.network.set(Mode::Reset).await;
    let heartbeats = async |count| bench.redis.instances().await.len() == count;
    let gone = async || heartbeats(1).await;
    wait_for_async(gone, "the heartbeat expires").await;
    network.set(Mode::Blackhole).await;
    bench.redis.command(&["FLUSHALL"]).await;
    bench.network.set(Mode::Pass).await;
    let served = async || turn(expired.addr(), "s1", "plain:x").await.status == 200;
    let served = wait_for_async(served, "a turn of the session is served");
    let reconnected = async {
        let back = async || heartbeats(1).await;
        wait_for_async(back, "the heartbeat is there again").await;
        // The replica with the turn finds its own heartbeat gone half a second later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        network.set(Mode::Pass).await;
        network.cut().await;
    };
    tokio::join!(served, reconnected);
    assert!(!held.answer().await.whole, "the turn without a lock is cut");
    bench.wait_until_no_keys().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_replaced_while_its_replica_begins_no_turn_is_told_so_and_not_served() {
    let memory = Arc::new(MemoryStore::new());
    let recovery = Duration::from_secs(3);
    let expiring = FaultyReplica::start(&memory, "a", Some(recovery));
    let other = FaultyReplica::start(&memory, "b", None);
    let options = LockOptions {
        lock_timeout: Duration::from_secs(300),
        blocking: true,
        interrupt: true,
        max_waiters: 100,
        ..LockOptions::default()
    };
    let waits_at = async |instance: &str| {
        let found = memory.inspect(&[SessionKey::literal(SESSION)], true).await;
        let queue = found.expect("no error").remove(0).queue;
        let turns = queue.iter().map(|waiter| waiter.turn().expect("a turn"));
        turns
            .map(|turn| turn.instance.clone())
            .eq([Arc::from(instance)])
    };
    let holder = other.hold(&options).await;
    let replaced = expiring.turn(&options);
    wait_for_async(async || waits_at("a").await, "a turn waits").await;
    expiring.store.fail(Call::Heartbeat, Fault::NotSent);
    tokio::time::sleep(recovery + Duration::from_secs(1)).await;
    expiring.store.heal();
    let is_back = async || memory.liveness("a").await.expect("no error").is_some();
    wait_for_async(is_back, "the heartbeat is there again").await;
    let newer = other.turn(&options);
    wait_for_async(async || waits_at("b").await, "the newer turn waits alone").await;
    drop(holder);
    granted(newer).await.0.release().await;
    let replaced = replaced.await.expect("no panic");
    assert!(
        matches!(replaced, Err(AcquireError::Superseded(_))),
        "an older turn doesn't run after the one that replaced it: {replaced:?}"
    );
}
