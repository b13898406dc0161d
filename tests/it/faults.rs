//! Redis killed, hanging, slow, or reachable in one direction only: no session stays blocked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async, within};

async fn start() -> Bench<Redis, FaultProxy> {
    let setup = Setup::new(CHAT).store("timeout = \"300ms\"");
    let bench = setup.on_faulty_network().await;
    assert_eq!(
        turn(bench.app.addr(), "warm", "plain:x").await.status,
        200,
        "the replica is connected"
    );
    bench
}

impl Bench<Redis, FaultProxy> {
    /// A turn that has begun and waits for its gate. Retries until a worker is connected to Redis.
    async fn begun(&self, session: &str) -> Client {
        loop {
            let mut client = begin_turn(self.app.addr(), session, "gate").await;
            if client.head().await.status == 200 {
                client.read_until(&event(0)).await;
                return client;
            }
        }
    }

    /// Restores the network. All connections are reset, because a connection that lost bytes cannot go
    /// on.
    async fn restore_network(&self) {
        self.network.set(Mode::Reset).await;
        self.network.set(Mode::Pass).await;
    }

    /// Asserts that a turn gets the error response for an unreachable store.
    async fn assert_unavailable(&self, session: &str, during: &str) {
        let answer = turn(self.app.addr(), session, "plain:x").await;
        assert_eq!(answer.status, 503, "without a lock no turn runs: {during}");
        let reason = answer.header("x-seriatim-error");
        assert_eq!(
            reason,
            Some("store_unavailable"),
            "the error response has the reason: {during}"
        );
        assert_eq!(
            answer.json()["status_code"],
            503,
            "the JSON body has the status: {during}"
        );
    }
}

#[tokio::test]
async fn an_acquisition_whose_reply_is_lost_does_not_block_the_session() {
    let bench = start().await;
    let monitor = bench.redis.monitor().await;
    bench.network.set(Mode::DropReplies).await;
    bench.assert_unavailable("s1", "replies are lost").await;
    let lines = monitor.lines().await;
    let taken = lines
        .iter()
        .any(|line| line.contains("\"SET\" \"lock:session:u1:s1\""));
    assert!(
        taken,
        "Redis has executed the command, and its reply was lost: {lines:#?}"
    );
    bench.restore_network().await;
    bench
        .wait_until_free("s1", "the reply to an acquisition was lost")
        .await;
}

#[tokio::test]
async fn an_acquisition_that_arrives_late_does_not_block_the_session() {
    let bench = start().await;
    bench.network.set(Mode::Blackhole).await;
    bench.assert_unavailable("s1", "nothing arrives").await;
    assert!(
        bench.network.withheld() > 0,
        "the command has not reached Redis yet"
    );
    bench.network.set(Mode::Pass).await;
    bench
        .wait_until_free("s1", "an acquisition came late")
        .await;
}

#[tokio::test]
async fn an_acquisition_that_arrives_after_its_deadline_is_not_executed() {
    let bench = start().await;
    bench.network.set(Mode::Blackhole).await;
    bench.assert_unavailable("s1", "nothing arrives").await;
    // Redis compares the deadline with its own clock, so the test waits for that clock.
    let passed = bench.redis.command(&["TIME"]).await;
    let later = async || seconds(&bench.redis.command(&["TIME"]).await) >= seconds(&passed) + 3;
    wait_for_async(later, "Redis's clock passes the deadline").await;
    let monitor = bench.redis.monitor().await;
    bench.network.set(Mode::Pass).await;
    bench
        .wait_until_free("s1", "an acquisition arrived after its deadline")
        .await;
    let lines = monitor.lines().await;
    let taken = lines
        .iter()
        .filter(|line| line.contains("\"SET\" \"lock:session:u1:s1\""))
        .count();
    assert_eq!(
        taken, 1,
        "only the later turn has taken the lock: {lines:#?}"
    );
}

fn seconds(time: &redis::Value) -> u64 {
    let (seconds, _micros): (u64, u64) =
        redis::from_redis_value_ref(time).expect("the reply to TIME");
    seconds
}

#[tokio::test]
async fn a_lost_release_reply_delays_the_end_only_for_a_moment() {
    let bench = start().await;
    for mode in [Mode::DropReplies, Mode::Blackhole, Mode::Reset] {
        let session = format!("{mode:?}");
        let mut client = bench.begun(&session).await;
        bench.network.set(mode).await;
        bench.backend.open_gate(&session);
        assert!(
            client.answer().await.whole,
            "the response is complete: {mode:?}"
        );
        match mode {
            Mode::DropReplies => bench.restore_network().await,
            _ => bench.network.set(Mode::Pass).await,
        }
        bench
            .wait_until_free(&session, "its release was disturbed")
            .await;
    }
}

#[tokio::test]
async fn a_disconnect_during_the_acquisition_does_not_block_the_session() {
    let bench = start().await;
    bench
        .network
        .set(Mode::Delay(Duration::from_millis(100)))
        .await;
    for n in 0..5 {
        let client = begin_turn(bench.app.addr(), "s1", "plain:x").await;
        if n % 2 == 0 {
            client.close()
        } else {
            client.reset()
        }
    }
    bench.network.set(Mode::Pass).await;
    bench
        .wait_until_free("s1", "clients disconnected while the acquisition ran")
        .await;
}

#[tokio::test]
async fn a_lost_connection_is_replaced_before_the_next_command() {
    let bench = start().await;
    for round in 0..5 {
        bench.network.cut().await;
        // No command is sent: the loss itself triggers the reconnect.
        let back = || bench.network.connections() == connections();
        wait_for(back, "every worker and the instance reconnect").await;
        bench.wait_until_free("s1", &format!("cut {round}")).await;
    }
}

#[tokio::test]
async fn a_connection_that_hangs_is_replaced() {
    let bench = start().await;
    let is_whole = || bench.network.connections() == connections();
    wait_for(is_whole, "every connection is open").await;
    // A blackhole does not pass a close, so the old connection stays open next to the new one.
    bench.network.set(Mode::Blackhole).await;
    bench
        .assert_unavailable("s1", "the connection is dead")
        .await;
    let replaced = || bench.network.connections() > connections();
    wait_for(
        replaced,
        "a new connection replaces the one that does not reply",
    )
    .await;
    bench.network.set(Mode::Pass).await;
    bench.wait_until_free("s1", "a hanging connection").await;
}

#[tokio::test]
async fn turns_run_again_after_redis_was_read_only() {
    let bench = start().await;
    bench.redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    bench.assert_unavailable("s1", "Redis is read-only").await;
    bench.redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    bench.wait_until_free("s1", "Redis is a master again").await;
}

#[tokio::test]
async fn a_turn_is_aborted_when_redis_comes_back_without_its_lock() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let lock = "[lock]\nlock_timeout = 60\nextend_lock_interval = \"200ms\"\n";
    let app = App::on_redis(&backend, &redis, &format!("{lock}{CHAT}"));
    let mut client = begin_turn(app.addr(), "s1", "gate").await;
    client.read_until(&event(0)).await;
    redis.kill();
    redis.restart().await;
    assert!(
        !client.answer().await.whole,
        "the lock is gone, so the turn is aborted"
    );
    backend.gone("s1").await;
    let free = async || turn(app.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session is free").await;
    assert_eq!(
        backend.max_overlap("s1"),
        1,
        "turns of a session run one at a time"
    );
}

#[tokio::test]
async fn with_redis_killed_under_load_turns_get_503_until_it_is_back() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    let (done, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let unavailable = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let (done, served) = (Arc::clone(&done), Arc::clone(&served));
            let (unavailable, addr) = (Arc::clone(&unavailable), app.addr());
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                while !done.load(Ordering::Relaxed) {
                    // The client's own time limit bounds each response, so a hang fails the test.
                    let request = Request::turn(&format!("s{}", n % 10), "chunked:2:2");
                    let answer = client.call(&request).await;
                    if !answer.whole {
                        // The restart lost the lock of this turn. The client must see an aborted
                        // response.
                        assert!(
                            answer.status == 200 && answer.broken.is_some(),
                            "an aborted response is never complete: {answer:?}"
                        );
                        client = Client::connect(addr).await;
                        continue;
                    }
                    match answer.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        503 => unavailable.fetch_add(1, Ordering::Relaxed),
                        429 => 0,
                        other => panic!("a turn is served or refused: {other} {answer:?}"),
                    };
                }
            })
        })
        .collect();
    let reaches = |counter: &Arc<AtomicUsize>, more: usize| {
        let (counter, goal) = (Arc::clone(counter), counter.load(Ordering::Relaxed) + more);
        wait_for(
            move || counter.load(Ordering::Relaxed) >= goal,
            "the load goes on",
        )
    };
    for _ in 0..3 {
        reaches(&served, 50).await;
        redis.kill();
        reaches(&unavailable, 50).await;
        redis.restart().await;
        reaches(&served, 50).await;
    }
    for key in redis.keys().await {
        // The key is gone by now, or has a TTL.
        assert_ne!(redis.pttl(&key).await, -1, "every key has a TTL: {key}");
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        within("the load to end", client)
            .await
            .expect("every response was right");
    }
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "no key is left at the end").await;
    assert_eq!(backend.overlaps(), [], "turns of a session never overlap");
}

/// How many connections a replica has to Redis: one for each worker, and one for the instance.
fn connections() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_never_takes_over_a_lock_that_is_being_released() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let network = FaultProxy::start(redis.addr()).await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"redis://{}\"\n{CHAT}",
        backend.url(),
        network.addr()
    );
    std::fs::write(&path, text).expect("the file can be written");
    let process = Process::start(&path);
    network.set(Mode::Delay(Duration::from_millis(5))).await;
    let addr = process.addr();
    // The clients meet each other's locks in every state, mostly while they are being released.
    let clients = (0..6).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            let mut served = 0;
            for _ in 0..50 {
                match client.turn("s1", "plain:x").await.status {
                    200 => served += 1,
                    status => {
                        assert_eq!(status, 429, "a busy session gets 429, and no other error")
                    }
                }
            }
            served
        })
    });
    let mut served = 0;
    for client in clients.collect::<Vec<_>>() {
        served += client.await.expect("no client failed");
    }
    assert!(served > 0, "the session is served");
    assert_eq!(backend.overlaps(), [], "turns never overlap");
    process.signal("TERM");
    let (_, events) = process.end();
    let lost = events.iter().filter(|event| event["level"] == "WARN");
    let lost: Vec<_> = lost.filter(|event| event["key"].is_string()).collect();
    assert!(
        lost.is_empty(),
        "each release finds its own lock: {lost:#?}"
    );
}
