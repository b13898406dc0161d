//! Redis killed, silent, slow, or deaf on one ear; and no session that stays blocked by it.

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
        "it is connected"
    );
    bench
}

impl Bench<Redis, FaultProxy> {
    /// A turn that has begun and waits for its gate, on whichever worker is connected by now.
    async fn begun(&self, session: &str) -> Client {
        loop {
            let mut client = begin_turn(self.app.addr(), session, "gate").await;
            if client.head().await.status == 200 {
                client.read_until(&event(0)).await;
                return client;
            }
        }
    }

    /// The network is well again. What was lost on a connection is lost with the connection: none
    /// goes on with a gap in what it carries.
    async fn heal(&self) {
        self.network.set(Mode::Reset).await;
        self.network.set(Mode::Pass).await;
    }

    /// The answer that tells of a store that can't be reached.
    async fn assert_unavailable(&self, session: &str, during: &str) {
        let answer = turn(self.app.addr(), session, "plain:x").await;
        assert_eq!(answer.status, 503, "no lock, no turn: {during}");
        let reason = answer.header("x-seriatim-error");
        assert_eq!(
            reason,
            Some("store_unavailable"),
            "and the reason is said: {during}"
        );
        assert_eq!(
            answer.json()["status_code"],
            503,
            "with the body of the contract: {during}"
        );
    }
}

#[tokio::test]
async fn an_acquisition_whose_answer_is_lost_blocks_nobody() {
    let bench = start().await;
    let monitor = bench.redis.monitor().await;
    bench.network.set(Mode::DropAnswers).await;
    bench.assert_unavailable("s1", "answers are lost").await;
    let lines = monitor.lines().await;
    let taken = lines
        .iter()
        .any(|line| line.contains("\"SET\" \"lock:session:u1:s1\""));
    assert!(
        taken,
        "Redis has executed the command, and nobody was told: {lines:#?}"
    );
    bench.heal().await;
    bench
        .becomes_free("s1", "the answer of an acquisition was lost")
        .await;
}

#[tokio::test]
async fn an_acquisition_that_arrives_late_blocks_nobody() {
    let bench = start().await;
    bench.network.set(Mode::Blackhole).await;
    bench.assert_unavailable("s1", "nothing arrives").await;
    assert!(
        bench.network.withheld() > 0,
        "the command is still on its way"
    );
    bench.network.set(Mode::Pass).await;
    bench.becomes_free("s1", "an acquisition came late").await;
}

#[tokio::test]
async fn an_acquisition_that_arrives_very_late_is_not_executed() {
    let bench = start().await;
    bench.network.set(Mode::Blackhole).await;
    bench.assert_unavailable("s1", "nothing arrives").await;
    // Its last moment is by Redis's clock; here it has passed when that clock says so.
    let passed = bench.redis.command(&["TIME"]).await;
    let later = async || seconds(&bench.redis.command(&["TIME"]).await) >= seconds(&passed) + 3;
    wait_for_async(later, "Redis's clock goes on").await;
    let monitor = bench.redis.monitor().await;
    bench.network.set(Mode::Pass).await;
    bench
        .becomes_free("s1", "an acquisition came very late")
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
    let (seconds, _micros): (u64, u64) = redis::from_redis_value_ref(time).expect("TIME's answer");
    seconds
}

#[tokio::test]
async fn a_release_whose_answer_is_lost_holds_the_end_back_for_a_moment_only() {
    let bench = start().await;
    for mode in [Mode::DropAnswers, Mode::Blackhole, Mode::Reset] {
        let session = format!("{mode:?}");
        let mut client = bench.begun(&session).await;
        bench.network.set(mode).await;
        bench.backend.open_gate(&session);
        assert!(
            client.answer().await.whole,
            "the answer is whole, and it ends: {mode:?}"
        );
        match mode {
            Mode::DropAnswers => bench.heal().await,
            _ => bench.network.set(Mode::Pass).await,
        }
        bench
            .becomes_free(&session, "its release was disturbed")
            .await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_lock_is_on_the_way_leaves_nothing_behind() {
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
        .becomes_free("s1", "clients left while they were waiting for Redis")
        .await;
}

#[tokio::test]
async fn a_lost_connection_is_replaced_before_anybody_needs_it() {
    let bench = start().await;
    for round in 0..5 {
        bench.network.cut().await;
        // Nobody has asked for anything: the loss itself is what makes it connect again.
        let back = || bench.network.connections() == connections();
        wait_for(back, "every worker and the instance connect anew").await;
        bench.becomes_free("s1", &format!("cut {round}")).await;
    }
}

#[tokio::test]
async fn a_connection_that_dies_silently_is_given_up() {
    let bench = start().await;
    let is_whole = || bench.network.connections() == connections();
    wait_for(is_whole, "every connection is there").await;
    // Not even a close passes, so the old connection stays beside the new one.
    bench.network.set(Mode::Blackhole).await;
    bench
        .assert_unavailable("s1", "the connection is dead")
        .await;
    let anew = || bench.network.connections() > connections();
    wait_for(
        anew,
        "a new connection in place of the one that doesn't answer",
    )
    .await;
    bench.network.set(Mode::Pass).await;
    bench.becomes_free("s1", "a silent connection").await;
}

#[tokio::test]
async fn a_redis_that_became_a_replica_is_left_and_found_again() {
    let bench = start().await;
    bench.redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    bench.assert_unavailable("s1", "Redis is read-only").await;
    bench.redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    bench.becomes_free("s1", "Redis is a master again").await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_noticed_by_those_who_hold() {
    let (backend, mut redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let lock = "[lock]\nlock_timeout = 60\nextend_lock_interval = \"200ms\"\n";
    let app = App::on_redis(&backend, &redis, &format!("{lock}{CHAT}"));
    let mut client = begin_turn(app.addr(), "s1", "gate").await;
    client.read_until(&event(0)).await;
    redis.kill();
    redis.restart().await;
    assert!(
        !client.answer().await.whole,
        "its lock is gone, so the turn is aborted"
    );
    backend.gone("s1").await;
    let free = async || turn(app.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session is free").await;
    assert_eq!(backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn redis_killed_under_load_is_a_503_and_service_comes_back_with_it() {
    let (backend, mut redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    let (over, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let unavailable = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..20)
        .map(|n| {
            let (over, served) = (Arc::clone(&over), Arc::clone(&served));
            let (unavailable, addr) = (Arc::clone(&unavailable), app.addr());
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                while !over.load(Ordering::Relaxed) {
                    // Each answer is bounded by the client's own limit: there is no hang.
                    let request = Request::turn(&format!("s{}", n % 10), "chunked:2:2");
                    let answer = client.call(&request).await;
                    if !answer.whole {
                        // Its lock was lost with all that Redis had; this client's parser took the
                        // end of the connection for what it is.
                        assert!(
                            answer.status == 200 && answer.broken.is_some(),
                            "no answer is cut without an error: {answer:?}"
                        );
                        client = Client::connect(addr).await;
                        continue;
                    }
                    match answer.status {
                        200 => served.fetch_add(1, Ordering::Relaxed),
                        503 => unavailable.fetch_add(1, Ordering::Relaxed),
                        429 => 0,
                        other => panic!("neither served nor refused: {other} {answer:?}"),
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
        // Gone by now, or with a TTL.
        assert_ne!(
            redis.pttl(&key).await,
            -1,
            "no key is ever without a TTL: {key}"
        );
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        within("the load to end", client)
            .await
            .expect("no answer was wrong");
    }
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "no key is left when all is quiet").await;
    assert_eq!(
        backend.overlaps(),
        [],
        "no two turns of a session ever overlapped"
    );
}

/// How many connections a replica has to Redis: one for each worker, and the instance's own.
fn connections() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_whose_release_is_on_its_way_is_left_to_it() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let network = FaultProxy::start(redis.addr()).await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"redis://{}\"\n{CHAT}",
        backend.url(),
        network.addr()
    );
    std::fs::write(&path, text).expect("it can be written");
    let process = Process::start(&path);
    network.set(Mode::Delay(Duration::from_millis(5))).await;
    let addr = process.addr();
    // They meet each other's locks in every state, and mostly on their way out.
    let clients = (0..6).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            let mut served = 0;
            for _ in 0..50 {
                match client.turn("s1", "plain:x").await.status {
                    200 => served += 1,
                    status => assert_eq!(status, 429, "a busy session, and nothing else"),
                }
            }
            served
        })
    });
    let mut served = 0;
    for client in clients.collect::<Vec<_>>() {
        served += client.await.expect("no assertion of a client fails");
    }
    assert!(served > 0, "the session is served");
    assert_eq!(backend.overlaps(), [], "turns never overlapped");
    process.signal("TERM");
    let (_, events) = process.end();
    let lost = events.iter().filter(|event| event["level"] == "WARN");
    let lost: Vec<_> = lost.filter(|event| event["key"].is_string()).collect();
    assert!(
        lost.is_empty(),
        "no turn finds its lock gone when it releases it: {lost:#?}"
    );
}
