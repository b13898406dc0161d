//! The tests' own Sentinels and clusters: what other tests rely on when they let one fail over, cut it off, or
//! move its slots.

use redis::Value;
use tokio::net::TcpStream;

use crate::support::cluster_redis::ClusterRedis;
use crate::support::pool::Watchdog;
use crate::support::redis::Redis;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::{wait_for_async, wire, within};

/// Whether the reply of a command is this text.
async fn replies(redis: &Redis, command: &[&str], text: &str) -> bool {
    let reply = redis.try_command(command).await;
    reply.is_ok_and(|reply| reply == Value::BulkString(text.into()))
}

async fn role(redis: &Redis) -> String {
    redis.info("replication").await["role"].clone()
}

/// Runs a command on a new connection to this address, as a client does.
async fn as_client(addr: std::net::SocketAddr, command: &str, reply: &str) {
    let what = format!("{reply:?} in reply to {command:?}");
    let asked = within(&what, async {
        let socket = TcpStream::connect(addr).await.expect("the proxy accepts");
        wire::write_all(&socket, format!("{command}\r\n").as_bytes())
            .await
            .expect("it reads");
        let mut inbox = Vec::new();
        while !inbox.ends_with(b"\r\n") {
            wire::read_some(&socket, &mut inbox).await.expect("a reply");
        }
        String::from_utf8_lossy(&inbox).into_owned()
    });
    assert_eq!(asked.await.trim_end(), reply, "the reply to {command}");
}

#[tokio::test]
async fn sentinels_fail_over_to_a_replica_that_has_all_keys() {
    let redis = SentinelRedis::start().await;
    assert_eq!(redis.master().await, 0, "the first server is the master");
    redis.command(0, &["SET", "k", "v"]).await;
    for replica in [1, 2] {
        let has_key = async || replies(redis.server(replica), &["GET", "k"], "v").await;
        wait_for_async(has_key, "the replica to have the key").await;
    }
    let new = redis.failover().await;
    assert_ne!(new, 0, "another server is the master");
    assert_eq!(role(redis.server(new)).await, "master");
    assert_eq!(redis.keys().await, ["k"], "the key is still there");
    redis.wait_until_ready().await;
    assert_eq!(
        role(redis.server(0)).await,
        "slave",
        "the old master follows"
    );
    redis.failover().await;
}

#[tokio::test]
async fn sentinels_replace_a_killed_master_which_follows_when_it_is_back() {
    let redis = SentinelRedis::start().await;
    let old = redis.kill_master().await;
    let new = redis.wait_for_another_master(old).await;
    redis.command(new, &["SET", "k", "v"]).await;
    redis.restart(old).await;
    redis.wait_until_ready().await;
    assert!(
        replies(redis.server(old), &["GET", "k"], "v").await,
        "the old master has what the new one has"
    );
}

#[tokio::test]
async fn a_sentinel_knows_its_master_after_a_restart() {
    let redis = SentinelRedis::start().await;
    redis.restart_sentinel(1).await;
    redis.wait_until_ready().await;
}

#[tokio::test]
async fn a_master_that_is_cut_off_from_the_others_still_accepts_writes_of_clients() {
    let redis = SentinelRedis::start_behind_proxies().await;
    redis.cut_off(0);
    let new = redis.wait_for_another_master(0).await;
    as_client(redis.addr(0), "SET k old", "+OK").await;
    as_client(redis.addr(new), "SET k new", "+OK").await;
    assert_eq!(role(redis.server(0)).await, "master", "it knows nothing");
    redis.reconnect(0);
    redis.wait_until_ready().await;
    assert!(
        replies(redis.server(0), &["GET", "k"], "new").await,
        "what clients wrote to the old master is lost"
    );
}

#[tokio::test]
async fn a_cluster_fails_over_by_command_and_after_a_loss() {
    let cluster = ClusterRedis::start(3, 1).await;
    let slot = cluster.slot_of("k").await;
    let old = cluster.owner(slot).await;
    let shard = cluster.shard(old);
    assert_eq!(
        cluster.master(shard).await,
        old,
        "the owner is the master of its shard"
    );
    cluster.command(old, &["SET", "k", "v"]).await;
    let new = cluster.failover(shard).await;
    assert_eq!(cluster.owner(slot).await, new, "the replica owns the slot");
    assert_eq!(cluster.keys().await, ["k"], "the key is still there");
    cluster.wait_until_ok().await;
    cluster.kill(new);
    assert_eq!(
        cluster.wait_for_another_master(new).await,
        old,
        "only it can take over"
    );
    assert_eq!(cluster.keys().await, ["k"], "the key is still there");
    cluster.restart(new).await;
    cluster.wait_until_ok().await;
    assert_eq!(
        role(cluster.node(new)).await,
        "slave",
        "it follows when it is back"
    );
}

#[tokio::test]
async fn a_slot_moves_with_its_keys_step_by_step() {
    let cluster = ClusterRedis::start(3, 0).await;
    let slot = cluster.slot_of("{s}:1").await;
    let from = cluster.owner(slot).await;
    let to = (from + 1) % 3;
    for key in ["{s}:1", "{s}:2"] {
        cluster.command(from, &["SET", key, "v"]).await;
    }
    let code = async |node: usize, key: &str| {
        let reply = cluster.node(node).try_command(&["GET", key]).await;
        reply
            .err()
            .and_then(|error| error.code().map(str::to_owned))
    };
    let moving = cluster.begin_move(slot, to).await;
    assert_eq!(code(from, "{s}:1").await, None, "the owner has the key");
    assert_eq!(
        code(from, "{s}:3").await.as_deref(),
        Some("ASK"),
        "a new key is elsewhere"
    );
    let both = cluster
        .node(from)
        .try_command(&["MGET", "{s}:1", "{s}:3"])
        .await;
    let both = both.expect_err("keys are at two nodes");
    assert_eq!(
        both.code(),
        Some("TRYAGAIN"),
        "keys are at two nodes: {both}"
    );
    moving.move_keys().await;
    assert_eq!(
        code(from, "{s}:1").await.as_deref(),
        Some("ASK"),
        "the key has moved"
    );
    moving.finish().await;
    assert_eq!(
        code(from, "{s}:1").await.as_deref(),
        Some("MOVED"),
        "the slot has moved"
    );
    assert_eq!(cluster.owner(slot).await, to, "the slot has a new owner");
    assert!(
        replies(cluster.node(to), &["GET", "{s}:2"], "v").await,
        "it has the keys"
    );
    cluster.move_slot(slot, from).await;
    assert!(
        replies(cluster.node(from), &["GET", "{s}:2"], "v").await,
        "and back"
    );
    cluster.wait_until_ok().await;
}

#[tokio::test]
async fn a_replica_of_a_lost_only_master_takes_over_when_it_is_told_to() {
    let cluster = ClusterRedis::start(1, 2).await;
    cluster.kill(0);
    let new = cluster.take_over(0, 0).await;
    cluster.wait_until_ok().await;
    assert_eq!(cluster.master(0).await, new);
    assert_eq!(cluster.owner(5).await, new, "it owns all slots");
}

#[tokio::test]
async fn pooled_servers_are_empty_for_the_next_test() {
    let folder = {
        let cluster = ClusterRedis::pooled_of_one_shard().await;
        cluster.command(0, &["SET", "k", "v"]).await;
        assert_eq!(cluster.keys().await, ["k"]);
        cluster.node(0).folder().to_owned()
    };
    // Another test may have taken those in between. Then they were emptied for that one.
    let cluster = ClusterRedis::pooled_of_one_shard().await;
    assert_eq!(
        cluster.keys().await,
        [""; 0],
        "nothing is left in {folder:?}"
    );
}

#[tokio::test]
async fn pooled_servers_end_with_the_process() {
    let redis = Redis::start().await;
    let mut watchdog = Watchdog::new(std::iter::once(&redis));
    assert!(
        redis.try_command(&["PING"]).await.is_ok(),
        "it runs until then"
    );
    watchdog.bite();
    assert!(redis.try_command(&["PING"]).await.is_err(), "it was killed");
    assert!(!redis.folder().exists(), "its folder was removed");
}
