//! A master behind Sentinels fails over: on command, because it is killed, and because it is cut off while it still
//! accepts clients. Turns never overlap, every session is served again, and no key is left.

use redis::Value;

use super::{HeldTurns, QUICK, start};
use crate::support::app::{App, key};
use crate::support::backend::Backend;
use crate::support::load::Load;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::wait_for_async;

fn load(apps: &[App; 2]) -> Load {
    let sessions: Vec<_> = (0..4).map(|n| format!("s{n}")).collect();
    Load::start(&[apps[0].addr(), apps[1].addr()], &sessions)
}

async fn wait_until_no_keys(redis: &SentinelRedis) {
    let none = async || redis.keys().await.is_empty();
    wait_for_async(none, "no key is left on the master").await;
}

#[tokio::test]
async fn sessions_are_served_again_after_failovers_on_command_and_a_killed_master() {
    let (backend, redis) = (
        Backend::start("plain:ok").await,
        SentinelRedis::start().await,
    );
    let apps = start(&backend, &redis.url(), QUICK);
    let load = load(&apps);
    load.progress("at first").await;
    redis.failover().await;
    load.progress("after a failover on command").await;
    redis.wait_until_ready().await;
    let old = redis.kill_master().await;
    redis.wait_for_another_master(old).await;
    load.progress("after the master was killed").await;
    redis.restart(old).await;
    redis.wait_until_ready().await;
    load.progress("after the old master came back").await;
    load.stop(&backend).await;
    wait_until_no_keys(&redis).await;
}

#[tokio::test]
async fn turns_go_to_the_new_master_although_the_old_one_still_accepts_them() {
    let backend = Backend::start("plain:ok").await;
    let redis = SentinelRedis::start_behind_proxies().await;
    let apps = start(&backend, &redis.url(), QUICK);
    let load = load(&apps);
    load.progress("at first").await;
    redis.cut_off(0);
    let new = redis.wait_for_another_master(0).await;
    let grants = async || {
        let locks = redis.server(new).keys().await;
        locks.iter().any(|key| key.starts_with("lock:"))
    };
    wait_for_async(grants, "the new master grants locks").await;
    load.progress("after the master was cut off").await;
    redis.reconnect(0);
    redis.wait_until_ready().await;
    load.progress("after the old master follows").await;
    load.stop(&backend).await;
    wait_until_no_keys(&redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_turn_goes_on_if_the_new_master_has_its_lock_and_else_ends_before_the_next_one() {
    let redis = SentinelRedis::start().await;
    let mut turns = HeldTurns::start(&redis.url()).await;
    turns.hold_lost("lost").await;
    turns.hold_kept("kept").await;
    for replica in [1, 2] {
        let replica = redis.server(replica);
        let has_both = async || {
            let keys = replica.keys().await;
            ["kept", "lost"]
                .iter()
                .all(|session| keys.contains(&key(session)))
        };
        wait_for_async(has_both, "the replica has both locks").await;
        // As if the lock had been taken in the moment before the failover.
        let writable = ["CONFIG", "SET", "replica-read-only", "no"];
        replica.command(&writable).await;
        let removed = replica.command(&["DEL", &key("lost")]).await;
        assert_eq!(removed, Value::Int(1), "the replica had the lock");
    }
    turns
        .assert_ends_after(async || redis.server(redis.failover().await))
        .await;
    wait_until_no_keys(&redis).await;
}
