//! A store URL that names servers of another kind than those that answer: `/readyz` and the log have the URL to
//! write, and that URL works.

use std::path::PathBuf;

use tempfile::NamedTempFile;

use crate::support::bench::Replicas;
use crate::support::client::{Client, turn};
use crate::support::cluster_redis::ClusterRedis;
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::{wait_for, wait_for_async};

/// Options for a store whose connections fail soon.
const QUICK: &str = "timeout = \"1s\"\ncrash_recovery = \"3s\"\n";

/// Starts a process on the Redis at this URL.
fn start(bench: &Replicas, url: &str, store: &str) -> Process {
    let path: PathBuf = bench.config_at(url, &format!("{QUICK}{store}"), "");
    tokio::task::block_in_place(|| Process::start(&path))
}

/// Waits until `/readyz` has this status and this text. Gives all of it.
async fn wait_until(process: &Process, status: u16, text: &str) -> String {
    let mut last = (0, String::new());
    let says = async || {
        let answer = Client::connect(process.admin()).await.get("/readyz").await;
        let now = (answer.status, answer.text());
        if now != last {
            eprintln!("{} {}", now.0, now.1);
            last = now;
        }
        last.0 == status && last.1.contains(text)
    };
    wait_for_async(says, &format!("/readyz is {status} with {text:?}")).await;
    last.1
}

/// Starts a process on this URL, and asserts that `/readyz` and the log say `told`. With `right` in place of the URL
/// turns are served.
async fn is_told(bench: &Replicas, url: &str, told: &str, right: &str) {
    let process = start(bench, url, "");
    wait_until(&process, 503, told).await;
    wait_for(|| process.has_logged(told), "the log says the same").await;
    let refused = turn(process.addr(), "s1", "plain:x").await;
    assert_eq!(refused.status, 503, "no turn passes: {url}");
    assert_eq!(bench.backend.turns("s1").len(), 0, "none at the backend");
    drop(process);
    let process = start(bench, right, "");
    wait_until(&process, 200, "ready").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_to_write_is_told_when_other_servers_answer_than_the_url_says() {
    let bench = Replicas::on_redis().await;
    let (cluster, sentinels) = (
        ClusterRedis::pooled_of_six().await,
        SentinelRedis::pooled().await,
    );
    let (single, node, sentinel) = (
        bench.redis.addr(),
        cluster.addr(0),
        sentinels.sentinel(0).addr(),
    );
    let master = sentinels.addr(sentinels.master().await);
    let replica = (0..3).map(|index| sentinels.addr(index));
    let replica = { replica }.find(|addr| *addr != master).expect("a replica");
    let single_url = format!("redis://{single}/0");
    let cluster_url = format!("redis-cluster://{node}");
    let sentinel_url = |name: &str| format!("redis-sentinel://{sentinel}/{name}");
    let write = |url: &str| format!("write {url} in store.url");
    let name_it = format!(
        "{}, with the name of the master",
        write(&sentinel_url("NAME"))
    );
    for (url, told, right) in [
        (
            format!("redis://{node}/0"),
            &*write(&cluster_url),
            &cluster_url,
        ),
        (
            format!("redis-sentinel://{node}/mymaster"),
            "it is not a Sentinel: write",
            &cluster_url,
        ),
        (
            format!("redis://{sentinel}/0"),
            &name_it,
            &sentinel_url("mymaster"),
        ),
        (
            format!("redis-cluster://{sentinel}"),
            &name_it,
            &sentinel_url("mymaster"),
        ),
        (
            format!("redis-cluster://{single}"),
            &write(&single_url),
            &single_url,
        ),
        (
            format!("redis-sentinel://{single}/mymaster"),
            &format!("or {single_url}, in store.url"),
            &single_url,
        ),
        (
            sentinel_url("other"),
            "write the name that the Sentinels' configuration has for the master in store.url",
            &sentinel_url("mymaster"),
        ),
        (
            format!("redis://{replica}/0"),
            "it is a replica, which accepts no writes: write the address of the master in store.url",
            &format!("redis://{master}/0"),
        ),
    ] {
        is_told(&bench, &url, told, right).await;
    }
    assert_eq!(bench.redis.keys().await, [""; 0], "no turn took a lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_option_is_told_when_a_sentinel_has_a_password_of_its_own() {
    let bench = Replicas::on_redis().await;
    let sentinel = Redis::start_sentinel(&[]).await;
    let port = bench.redis.port().to_string();
    let monitor = ["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "1"];
    sentinel.command(&monitor).await;
    // The test's own connection stays logged in.
    let password = ["ACL", "SETUSER", "default", "resetpass", ">geheim"];
    sentinel.command(&password).await;
    let url = format!("redis-sentinel://{}/mymaster", sentinel.addr());

    let process = start(&bench, &url, "");
    let option = "the Sentinels have a login of their own: set store.sentinel_password_file";
    wait_until(&process, 503, option).await;
    wait_for(|| process.has_logged(option), "the log says the same").await;
    drop(process);

    let file = NamedTempFile::new().expect("a file");
    let write = |password: &str| std::fs::write(file.path(), password).expect("written");
    write("falsch");
    let store = format!("sentinel_password_file = {:?}\n", file.path());
    let process = start(&bench, &url, &store);
    let correct = "correct store.sentinel_user or the file of store.sentinel_password_file";
    let told = wait_until(&process, 503, correct).await;
    assert!(!told.contains("falsch"), "the password isn't shown: {told}");
    wait_for(|| process.has_logged(correct), "the log says the same").await;
    write("geheim");
    wait_until(&process, 200, "ready").await;
    let served = turn(process.addr(), "s1", "plain:x").await;
    assert_eq!(
        served.status, 200,
        "turns are served with the right password"
    );
}
