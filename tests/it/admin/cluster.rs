//! Operating locks of a cluster: lists have the locks of all masters, and each other call finds the master of its lock.

use std::collections::BTreeSet;

use serde_json::Value;

use super::command_line::File;
use super::{call, get, keys, list_locks};
use crate::support::app::{App, CHAT, key};
use crate::support::backend::Backend;
use crate::support::bench::hold;
use crate::support::client::{begin_turn, turn};
use crate::support::cluster_redis::ClusterRedis;
use crate::support::wait_for_async;

/// How many locks of other code there are.
const LOCKS: usize = 500;

/// Writes locks as Python code does, and other keys, each to the master of its slot.
async fn fill(cluster: &ClusterRedis) {
    for n in 0..LOCKS {
        for name in [&*key(&format!("py{n}")), &format!("cache:{n}")] {
            let owner = cluster.owner_of(name).await;
            owner.command(&["SET", name, "x", "PX", "600000"]).await;
        }
    }
}

#[tokio::test]
async fn locks_at_all_masters_of_a_cluster_are_listed_shown_released_and_interrupted() {
    let backend = Backend::start("plain:ok").await;
    let cluster = ClusterRedis::pooled_of_six().await;
    let config = format!("[lock]\nblocking = true\n{CHAT}");
    let apps = [0, 1].map(|n| {
        let store = format!("instance = \"pod-{n}\"");
        App::start(&backend.url(), &cluster.url(), &store, &config)
    });
    let file = File::with(&cluster.url(), "");
    fill(&cluster).await;
    let mut held = Vec::new();
    for n in 0..6 {
        held.push(hold(apps[0].addr(), &format!("s{n}")).await);
    }
    let waiter = begin_turn(apps[0].addr(), "s0", "plain:next").await;
    apps[0].wait_for_waiters(1).await;

    let other = (0..LOCKS).map(|n| key(&format!("py{n}")));
    let own = (0..6).map(|n| key(&format!("s{n}")));
    let all: BTreeSet<_> = other.chain(own).collect();
    let all: BTreeSet<_> = all.iter().map(String::as_str).collect();
    for query in ["", "limit=1000", "limit=7"] {
        let locks = list_locks(apps[1].admin(), query).await;
        assert_eq!(keys(&locks), all, "every lock of every master: {query}");
    }
    let found = list_locks(apps[1].admin(), "search=s3").await;
    assert_eq!(keys(&found), BTreeSet::from([&*key("s3")]), "the search");
    let done = file.locks(&["list", "--json"]).await;
    let lines = done.out.lines().map(serde_json::from_str);
    let listed: Result<Vec<Value>, _> = lines.collect();
    let listed = listed.expect("one line of JSON for each lock");
    assert_eq!(listed.len(), all.len(), "each lock is listed once");
    assert_eq!(keys(&listed), all, "the command lists the same locks");

    let shown = get(apps[1].admin(), "/locks/u1/s0").await.json();
    assert_eq!(
        (&shown["instance"], &shown["waiters"]),
        (&"pod-0".into(), &1.into()),
        "the lock is shown with its queue: {shown}"
    );
    waiter.close();
    apps[0].wait_for_waiters(0).await;
    for (n, held) in held.iter_mut().enumerate() {
        let session = format!("s{n}");
        let done = file.locks(&["show", "u1", &session]).await;
        let is_held = format!("{} is locked", key(&session));
        assert!(done.out.starts_with(&is_held), "it is shown: {done:?}");
        match n {
            0 | 1 => {
                let done = file.locks(&["release", "u1", &session]).await;
                let is_free = format!("{} is released\n", key(&session));
                assert_eq!(done.out, is_free, "{done:?}");
            }
            2 | 3 => {
                let done = file.locks(&["interrupt", "u1", &session]).await;
                assert_eq!(done.code, Some(0), "{done:?}");
            }
            4 => {
                let path = format!("/locks/u1/{session}");
                let done = call(apps[1].admin(), "DELETE", &path).await;
                assert_eq!(done.json()["released"], true, "{done:?}");
            }
            _ => {
                let path = format!("/locks/u1/{session}/interrupt");
                let done = call(apps[1].admin(), "POST", &path).await;
                assert_eq!(done.json()["interrupted"], true, "{done:?}");
            }
        }
        assert!(!held.answer().await.whole, "the turn is aborted");
        let next = turn(apps[1].addr(), &session, "plain:next").await;
        assert_eq!(next.status, 200, "the session is free");
    }
    assert_eq!(backend.overlaps(), [], "turns never overlap");
    let quiet = async || cluster.keys().await.len() == 2 * LOCKS;
    wait_for_async(quiet, "no key of a turn is left").await;
}
