//! `store.wait_replicas`: a turn begins when replicas of Redis have its lock.

use std::sync::Arc;
use std::time::Duration;

use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{
    AcquireReply, AcquireRequest, ClaimIssuer, Epoch, Store, StoreError, Withdrawal,
};

use crate::support::app::{CHAT, key, wait_for_queue_length};
use crate::support::bench::{Bench, Setup, assert_error_response};
use crate::support::client::{Client, begin_turn, turn};
use crate::support::cluster_redis::ClusterRedis;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

/// A command that is blocked for this long blocks for the whole test.
const PATIENT: &str = "wait_replicas = 1\ntimeout = \"60s\"\ncrash_recovery = 0";

/// Starts Seriatim on a Redis with one replica, which has all data. Turns have been served.
async fn start(store: &str) -> (Bench<Redis>, Redis) {
    let master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let port = master.port().to_string();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    // Redis sends a new replica nothing before its first confirmation.
    master.command(&["SET", "first", "1", "PX", "1"]).await;
    let confirmed = master.command(&["WAIT", "1", "15000"]).await;
    assert_eq!(confirmed, redis::Value::Int(1), "the replica is there");
    let config = format!("[lock]\nblocking = true\n{CHAT}");
    let bench = Setup::new(&config).store(store).on(master).await;
    for n in 0..8 {
        let session = format!("first {n}");
        let is_served = async || turn(bench.app.addr(), &session, "plain:ok").await.status == 200;
        wait_for_async(is_served, "the replica confirms").await;
    }
    (bench, replica)
}

impl Bench<Redis> {
    /// Waits until this many connections wait for replicas.
    async fn wait_for_waits(&self, count: usize) {
        let are_waiting = async || {
            let list = self.redis.command(&["CLIENT", "LIST"]).await;
            let list: String = redis::from_redis_value(list).expect("text");
            let is_blocked = |line: &&str| line.contains("cmd=wait") && line.contains("flags=b");
            list.lines().filter(is_blocked).count() >= count
        };
        wait_for_async(are_waiting, "a connection waits for replicas").await;
    }
}

#[tokio::test]
async fn a_turn_begins_when_a_replica_confirms_its_lock_and_holds_up_no_other_command() {
    let (bench, replica) = start(PATIENT).await;
    let mut before = bench.hold("s1").await;
    replica.stop_cont(true).await;
    let mut turn = begin_turn(bench.app.addr(), "s2", "plain:ok").await;
    bench.wait_for_waits(1).await;
    assert!(
        bench.redis.get(&key("s2")).await.is_some(),
        "Redis has granted the lock"
    );
    // The end of another turn, whose lock is released over the connection for commands.
    bench.backend.open_gate("s1");
    assert!(before.answer().await.whole);
    let is_released = async || bench.redis.get(&key("s1")).await.is_none();
    wait_for_async(is_released, "the release of another session's lock").await;
    assert!(
        bench.backend.turns("s2").is_empty(),
        "no replica has the lock"
    );
    replica.stop_cont(false).await;
    assert_eq!(turn.answer().await.status, 200, "the replica confirms");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_turn_that_gets_its_lock_from_the_queue_waits_for_a_replica_too() {
    let (bench, replica) = start(PATIENT).await;
    let mut first = bench.hold("s1").await;
    let mut second = begin_turn(bench.app.addr(), "s1", "plain:ok").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    replica.stop_cont(true).await;
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole);
    bench.wait_for_waits(1).await;
    assert_eq!(
        bench.backend.turns("s1").len(),
        1,
        "no replica has the lock"
    );
    replica.stop_cont(false).await;
    assert_eq!(second.answer().await.status, 200, "the replica confirms");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_turn_whose_lock_no_replica_confirms_is_refused_and_leaves_no_lock() {
    let (bench, replica) = start("wait_replicas = 1\ntimeout = \"1s\"").await;
    replica.stop_cont(true).await;
    let answer = turn(bench.app.addr(), "s1", "plain:ok").await;
    assert_error_response("no replica", &answer, 503, "store_unavailable");
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("replicas"), "the reason: {detail}");
    assert!(bench.backend.turns("s1").is_empty(), "the turn never began");
    bench.wait_until_no_keys().await;
    let readiness = async || {
        Client::connect(bench.app.admin())
            .await
            .get("/readyz")
            .await
    };
    let is_told = async || readiness().await.text().contains("replica");
    wait_for_async(is_told, "/readyz names the cause").await;
    replica.stop_cont(false).await;
    let is_served = async || turn(bench.app.addr(), "s1", "plain:ok").await.status == 200;
    wait_for_async(is_served, "turns are served again").await;
    let is_ready = async || readiness().await.status == 200;
    wait_for_async(is_ready, "the process is ready again").await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn turns_that_begin_together_share_the_wait_for_replicas() {
    const TURNS: usize = 30;
    let (bench, replica) = start(PATIENT).await;
    let monitor = bench.redis.monitor().await;
    replica.stop_cont(true).await;
    let begin = (0..TURNS).map(|n| {
        let addr = bench.app.addr();
        async move { begin_turn(addr, &format!("s{n}"), "plain:ok").await }
    });
    let turns = futures_util::future::join_all(begin).await;
    let are_granted = async || {
        let keys = bench.redis.keys().await;
        let locks = (0..TURNS).filter(|n| keys.contains(&key(&format!("s{n}"))));
        locks.count() == TURNS
    };
    wait_for_async(are_granted, "all locks are granted").await;
    replica.stop_cont(false).await;
    for mut turn in turns {
        assert_eq!(turn.answer().await.status, 200, "the replica confirms");
    }
    bench.wait_until_no_keys().await;
    let lines = monitor.lines().await;
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let waits = count("\"WAIT\" \"1\"");
    assert!((1..TURNS / 2).contains(&waits), "{waits} times WAIT");
    let writes = lines
        .iter()
        .filter(|line| line.contains("\"SET\"") && line.contains(":confirm\""))
        .count();
    assert_eq!(writes, waits, "a write precedes each WAIT: {lines:#?}");
}

#[tokio::test]
async fn a_lock_in_a_cluster_is_confirmed_by_a_replica_of_its_shard() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let cluster = ClusterRedis::start(2, 1).await;
    let address = RedisAddress::parse(&cluster.url(), TIMEOUT).expect("a URL");
    let store = RedisStore::connect(address.with_wait_replicas(1));
    let issuer = ClaimIssuer::new("a", Epoch(1), false);
    let lease = Duration::from_secs(300);
    let mut of_shard = [Vec::new(), Vec::new()];
    for n in 0..16 {
        let key = SessionKey::literal(&format!("lock:session:u:{n}"));
        let owner = cluster.owner(cluster.slot_of(key.as_str()).await).await;
        let claim = Arc::new(issuer.issue(key, "", "request", lease));
        of_shard[cluster.shard(owner)].push(claim);
    }
    let acquire = |claim: &Arc<_>| store.acquire(claim, &AcquireRequest::default());
    for claims in &of_shard {
        let is_granted = async || matches!(acquire(&claims[0]).await, Ok(AcquireReply::Granted(_)));
        wait_for_async(is_granted, "a replica of the shard confirms").await;
    }
    // Node 2 is the replica of the first shard.
    cluster.node(2).stop_cont(true).await;
    let refused = acquire(&of_shard[0][1]).await;
    assert!(
        matches!(&refused, Err(error @ StoreError::Unconfirmed { .. }) if !error.was_not_executed()),
        "no replica of this shard has the lock: {refused:?}"
    );
    let other = acquire(&of_shard[1][1]).await;
    assert!(
        matches!(other, Ok(AcquireReply::Granted(_))),
        "another shard has its own replica: {other:?}"
    );
    cluster.node(2).stop_cont(false).await;
    for claim in of_shard.iter().flatten() {
        let is_gone = async || matches!(store.withdraw(claim).await, Ok(Withdrawal::ForGood));
        wait_for_async(is_gone, "the claim is out of the store").await;
    }
    let is_empty = async || cluster.keys().await.is_empty();
    wait_for_async(is_empty, "no key is left").await;
}
