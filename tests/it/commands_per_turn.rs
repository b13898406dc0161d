//! An uncontended turn takes two commands on every topology: one script to acquire, one to release.

use crate::support::app::{App, CHAT, key};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request};
use crate::support::cluster_redis::ClusterRedis;
use crate::support::redis::{Monitor, Redis};
use crate::support::sentinel_redis::SentinelRedis;

/// Runs turns of sessions on a replica at this URL, and asserts that these masters, which are all, execute two scripts for
/// each of them.
async fn assert_two_scripts_per_turn(url: &str, masters: &[&Redis]) {
    let backend = Backend::start("plain:ok").await;
    // A turn with an idempotency key, which is executed once, takes no more of them.
    let config = format!("{CHAT}once = [\"{{header:idempotency-key}}\"]\n");
    let app = App::start(&backend.url(), url, "", &config);
    for master in masters {
        master.is_connected().await;
    }
    let mut monitors = Vec::new();
    for master in masters {
        monitors.push(master.monitor().await);
    }
    let mut executed_by = vec![0; masters.len()];
    for n in 0..12 {
        for script in ["plain:x", "chunked:3:1", "empty"] {
            let session = format!("s{n}");
            let mut request = Request::turn(&session, script);
            if n % 2 == 0 {
                request = request.header("idempotency-key", script);
            }
            let served = Client::connect(app.addr()).await.call(&request).await;
            assert_eq!(served.status, 200, "a turn is served");
            let mut lines = Vec::new();
            for (monitor, count) in monitors.iter().zip(&mut executed_by) {
                let executed = commands_of_turns(monitor).await;
                *count += executed.len();
                lines.extend(executed);
                monitor.clear().await;
            }
            let is_about_session = |line: &String| {
                line.contains("\"EVALSHA\"") && line.contains(&format!("\"{}\"", key(&session)))
            };
            assert!(
                lines.len() == 2 && lines.iter().all(is_about_session),
                "a turn ({script}) takes two scripts: {lines:#?}"
            );
        }
    }
    assert!(
        executed_by.iter().all(|count| *count > 0),
        "the sessions are at all masters: {executed_by:?}"
    );
}

#[tokio::test]
async fn the_scripts_of_a_turn_call_nothing_that_only_busy_sessions_need() {
    let redis = Redis::start().await;
    let backend = Backend::start("plain:ok").await;
    let app = App::on_redis(&backend, &redis, CHAT);
    redis.is_connected().await;
    let monitor = redis.monitor().await;
    let request = Request::turn("s", "plain:x");
    let served = Client::connect(app.addr()).await.call(&request).await;
    assert_eq!(served.status, 200, "a turn is served");
    let mut called = monitor.lines().await;
    called.retain(|line| line.contains(" lua] ") && line.contains(&key("s")));
    let names: Vec<_> = called
        .iter()
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    let (acquires, releases) = (["EXISTS", "SET", "SET"], ["EXISTS", "GET", "GET", "DEL"]);
    assert_eq!(names, [&acquires[..], &releases].concat(), "{called:#?}");
}

/// The commands that replicas sent for turns: without those that ask for the topology.
async fn commands_of_turns(monitor: &Monitor<'_>) -> Vec<String> {
    let mut lines = monitor.lines_from_clients().await;
    // Servers and Sentinels connect from there.
    lines.retain(|line| !line.contains(" 127.0.0.2:") && !line.ends_with("\"CLUSTER\" \"NODES\""));
    lines
}

#[tokio::test]
async fn a_turn_takes_two_scripts_at_a_master_behind_sentinels() {
    let redis = SentinelRedis::pooled().await;
    let master = redis.server(redis.master().await);
    assert_two_scripts_per_turn(&redis.url(), &[master]).await;
}

#[tokio::test]
async fn a_turn_takes_two_scripts_at_one_master_of_a_cluster() {
    let cluster = ClusterRedis::pooled_of_six().await;
    let masters = [
        cluster.node(cluster.master(0).await),
        cluster.node(cluster.master(1).await),
        cluster.node(cluster.master(2).await),
    ];
    assert_two_scripts_per_turn(&cluster.url(), &masters).await;
}

#[tokio::test]
async fn a_turn_takes_two_scripts_in_a_cluster_of_one_shard() {
    let cluster = ClusterRedis::pooled_of_one_shard().await;
    let master = cluster.node(cluster.master(0).await);
    assert_two_scripts_per_turn(&cluster.url(), &[master]).await;
}
