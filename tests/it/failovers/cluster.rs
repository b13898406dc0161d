//! A cluster changes: a master fails over or is killed, a slot moves with its keys, a replica is lost. Turns never
//! overlap, every session is served again, and no key is left.

use super::{BLOCKING, HeldTurns, PATIENT, QUICK, start};
use crate::support::app::{App, CHAT, key};
use crate::support::backend::Backend;
use crate::support::bench::hold;
use crate::support::client::begin_turn;
use crate::support::cluster_redis::ClusterRedis;
use crate::support::load::Load;
use crate::support::wait_for_async;

/// A session for each of these masters, whose lock is there.
async fn sessions_at(cluster: &ClusterRedis, masters: &[usize]) -> Vec<String> {
    let mut found = Vec::new();
    for master in masters {
        let mut n = found.len();
        found.push(loop {
            let session = format!("s{n}");
            let slot = cluster.slot_of(&key(&session)).await;
            if cluster.owner(slot).await == *master && !found.contains(&session) {
                break session;
            }
            n += 1;
        });
    }
    found
}

async fn wait_until_no_keys(cluster: &ClusterRedis) {
    let none = async || cluster.keys().await.is_empty();
    wait_for_async(none, "no key is left in the cluster").await;
}

/// How many commands the nodes have refused with this error.
async fn refusals(cluster: &ClusterRedis, code: &str) -> usize {
    let mut sum = 0;
    for node in cluster.nodes() {
        let stats = cluster.node(node).info("errorstats").await;
        let count = stats.get(&format!("errorstat_{code}"));
        let count = count.and_then(|count| count.strip_prefix("count="));
        sum += count.map_or(0, |count| count.parse().expect("a count"));
    }
    sum
}

#[tokio::test]
async fn sessions_are_served_again_after_failovers_on_command_and_a_killed_master() {
    let (backend, cluster) = (
        Backend::start("plain:ok").await,
        ClusterRedis::start(3, 1).await,
    );
    let apps = start(&backend, &cluster.url(), QUICK);
    // One more in the shard that fails over.
    let sessions = sessions_at(&cluster, &[0, 1, 2, 0]).await;
    let load = Load::start(&[apps[0].addr(), apps[1].addr()], &sessions);
    load.progress("at first").await;
    let master = cluster.failover(0).await;
    load.progress("after a failover on command").await;
    cluster.wait_until_ok().await;
    cluster.kill(master);
    assert_eq!(cluster.wait_for_another_master(master).await, 0);
    load.progress("after the master was killed").await;
    cluster.restart(master).await;
    cluster.wait_until_ok().await;
    let failures = load.failures().len();
    // Now it is a replica.
    cluster.kill(master);
    load.progress("after a replica was lost").await;
    assert_eq!(
        load.failures()[failures..],
        [""; 0],
        "the loss of a replica changes nothing"
    );
    load.stop(&backend).await;
    wait_until_no_keys(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_turn_goes_on_if_the_new_master_has_its_lock_and_else_ends_before_the_next_one() {
    let cluster = ClusterRedis::start(3, 1).await;
    let mut turns = HeldTurns::start(&cluster.url()).await;
    let mut heartbeats = Vec::new();
    let are_there = async || {
        heartbeats.clear();
        for master in 0..3 {
            heartbeats.push(cluster.node(master).instances().await.len());
        }
        heartbeats.iter().sum::<usize>() == 2
    };
    wait_for_async(are_there, "both instances have a heartbeat").await;
    // Two of three masters at most have one: all keys of the third may be removed.
    let shard = heartbeats.iter().position(|count| *count == 0);
    let shard = shard.expect("a master without a heartbeat");
    let sessions = sessions_at(&cluster, &[shard, shard]).await;
    let replica = cluster.node(3 + shard);
    let has_lock = async |session: &str| {
        let lock = key(session);
        let is_there = async || replica.keys().await.contains(&lock);
        wait_for_async(is_there, "the replica has the lock").await;
    };
    turns.hold_lost(&sessions[0]).await;
    has_lock(&sessions[0]).await;
    // As if the lock had been taken in the moment before the failover.
    let writable = ["CONFIG", "SET", "replica-read-only", "no"];
    replica.command(&writable).await;
    replica.command(&["FLUSHALL"]).await;
    turns.hold_kept(&sessions[1]).await;
    has_lock(&sessions[1]).await;
    turns
        .assert_ends_after(async || cluster.node(cluster.failover(shard).await))
        .await;
    wait_until_no_keys(&cluster).await;
}

#[tokio::test]
async fn turns_that_run_and_wait_in_a_slot_follow_it_to_its_new_owner() {
    let backend = Backend::start("plain:ok").await;
    let cluster = ClusterRedis::pooled_of_six().await;
    let apps = start(&backend, &cluster.url(), PATIENT);
    let session = sessions_at(&cluster, &[0]).await.remove(0);
    let slot = cluster.slot_of(&key(&session)).await;
    let mut held = hold(apps[0].addr(), &session).await;
    let mut waiters = vec![begin_turn(apps[1].addr(), &session, "plain:1").await];
    apps[1].wait_for_waiters(1).await;
    let refused = async |code: &str, before: usize| {
        let is_refused = async || refusals(&cluster, code).await > before;
        wait_for_async(is_refused, &format!("a node says {code}")).await;
    };
    let (tries, asks) = (
        refusals(&cluster, "TRYAGAIN").await,
        refusals(&cluster, "ASK").await,
    );
    let moving = cluster.begin_move(slot, 1).await;
    // Half of the keys are there, as in the middle of a move.
    let at = cluster.node(1).port().to_string();
    let lock = key(&session);
    let one = ["MIGRATE", "127.0.0.1", &at, &lock, "0", "5000"];
    cluster.command(0, &one).await;
    waiters.push(begin_turn(apps[0].addr(), &session, "plain:2").await);
    refused("TRYAGAIN", tries).await;
    moving.move_keys().await;
    backend.open_gate(&session);
    refused("ASK", asks).await;
    moving.finish().await;
    assert!(held.answer().await.whole, "the turn that ran is complete");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "who waited is served");
    }
    assert_eq!(backend.overlaps(), [], "turns never overlap");
    wait_until_no_keys(&cluster).await;
    cluster.move_slot(slot, 0).await;
}

#[tokio::test]
async fn no_turn_is_refused_while_a_slot_moves_back_and_forth() {
    let backend = Backend::start("plain:ok").await;
    let cluster = ClusterRedis::pooled_of_six().await;
    let apps = start(&backend, &cluster.url(), PATIENT);
    let sessions = sessions_at(&cluster, &[0, 1]).await;
    let slot = cluster.slot_of(&key(&sessions[0])).await;
    let load = Load::start(&[apps[0].addr(), apps[1].addr()], &sessions);
    load.progress("at first").await;
    let before = refusals(&cluster, "MOVED").await;
    // The replicas may learn of a move before a node tells them.
    for _ in 0..20 {
        cluster.move_slot(slot, 2).await;
        load.progress("by the new owner of the slot").await;
        cluster.move_slot(slot, 0).await;
        load.progress("by the old owner of the slot").await;
        if refusals(&cluster, "MOVED").await > before {
            break;
        }
    }
    assert!(
        refusals(&cluster, "MOVED").await > before,
        "a node says MOVED"
    );
    assert_eq!(load.failures(), [""; 0], "every turn is served");
    load.stop(&backend).await;
    wait_until_no_keys(&cluster).await;
}

#[tokio::test]
async fn many_turns_that_are_held_and_wait_at_once_are_kept_in_a_cluster_of_one_shard() {
    const HELD: usize = 30;
    // Each turn is extended as often as its lease without extensions is long, and again.
    const EXTENSIONS: usize = 24;
    let backend = Backend::start("plain:ok").await;
    let cluster = ClusterRedis::pooled_of_one_shard().await;
    let config =
        format!("{BLOCKING}lock_timeout = \"4s\"\nextend_lock_interval = \"200ms\"\n{CHAT}");
    let apps = [0, 1].map(|n| {
        let store = format!("instance = \"pod-{n}\"\ntimeout = \"2s\"\n");
        App::start(&backend.url(), &cluster.url(), &store, &config)
    });
    let (mut held, mut waiters) = (Vec::new(), Vec::new());
    let master = cluster.node(cluster.master(0).await);
    let crossed = refusals(&cluster, "CROSSSLOT").await;
    for n in 0..HELD {
        held.push(hold(apps[0].addr(), &format!("s{n}")).await);
        waiters.push(begin_turn(apps[1].addr(), &format!("s{n}"), "plain:next").await);
    }
    apps[1].wait_for_waiters(HELD).await;
    let monitor = master.monitor().await;
    let are_extended = async || {
        let lines = monitor.lines_from_clients().await;
        (0..HELD).all(|n| {
            let quoted = format!("\"{}\"", key(&format!("s{n}")));
            // Whoever watches a queue names it.
            let is_extension = |line: &&String| line.contains(&quoted) && !line.contains(":queue");
            let extensions = lines.iter().filter(is_extension);
            extensions.count() >= EXTENSIONS
        })
    };
    wait_for_async(are_extended, "each turn is extended again and again").await;
    assert_eq!(
        refusals(&cluster, "CROSSSLOT").await,
        crossed,
        "no command is about two slots"
    );
    backend.open_all_gates();
    for client in &mut held {
        assert!(client.answer().await.whole, "no held turn is cut");
    }
    for client in &mut waiters {
        assert_eq!(client.answer().await.status, 200, "who waited is served");
    }
    assert_eq!(backend.overlaps(), [], "turns never overlap");
    wait_until_no_keys(&cluster).await;
}
