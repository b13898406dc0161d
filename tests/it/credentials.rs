//! No password of the store, right or wrong, is in a log, an answer of the admin interface, or the output of a command:
//! for every form of the URL, every option, and every error.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::bench::{chat, hold};
use crate::support::client::Client;
use crate::support::cluster_redis::ClusterRedis;
use crate::support::process::{Process, run};
use crate::support::redis::Redis;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::tls_redis::TlsRedis;
use crate::support::{wait_for, wait_for_async};

/// What every password here contains.
const MARK: &str = "geheim";

/// The password of the user `agent`, and how a URL has it.
const RIGHT: (&str, &str) = ("geheim p@s#s%", "geheim%20p%40s%23s%25");

/// Another one.
const WRONG: (&str, &str) = ("falsch geheim?", "falsch%20geheim%3F");

/// Options for a store whose connections fail soon, with a log that leaves nothing out.
const QUICK: &str = "timeout = \"1s\"\ncrash_recovery = \"3s\"\n";

/// A configuration file, and files with passwords beside it.
struct Files(TempDir);

/// Adds users with these passwords to a server.
async fn add_users(redis: &Redis) {
    for name in ["agent", "watcher"] {
        let password = format!(">{}", RIGHT.0);
        let user = ["ACL", "SETUSER", name, "on", &password, "~*", "&*", "+@all"];
        redis.command(&user).await;
    }
}

/// Removes the users from a server that the next test gets.
async fn remove_users(redis: &Redis) {
    redis.command(&["ACL", "DELUSER", "agent", "watcher"]).await;
}

/// Ends all connections of the user, which then logs in again.
async fn cut_connections(servers: &[&Redis]) {
    for redis in servers {
        let kill = ["CLIENT", "KILL", "USER", "agent"];
        redis.command(&kill).await;
    }
}

/// Runs a process at trace level on this URL, which leads to these servers, until `/readyz` has this status and this
/// text. Asserts that neither the process nor a command with its configuration shows a password.
async fn assert_no_password_is_shown(
    servers: &[&Redis],
    (url, store): (&str, &str),
    (status, text): (u16, &str),
) {
    let (backend, files) = (Backend::start("plain:ok").await, Files::new());
    let config = files.config(&backend, url, store);
    let process = tokio::task::block_in_place(|| Process::start(&config));
    let mut shown = process.logged_while_starting().to_vec();
    let says = async || {
        let answer = Client::connect(process.admin()).await.get("/readyz").await;
        (answer.status, answer.text().contains(text)) == (status, true)
    };
    wait_for_async(says, &format!("{url}: /readyz is {status} with {text:?}")).await;
    let mut held = match status {
        200 => Some(hold(process.addr(), "s1").await),
        _ => None,
    };
    for path in [
        "/",
        "/readyz",
        "/livez",
        "/status",
        "/metrics",
        "/locks",
        "/locks/u1/s1",
    ] {
        let answer = Client::connect(process.admin()).await.get(path).await;
        shown.push(answer.text());
    }
    let mut client = Client::connect(process.addr()).await;
    shown.push(client.call(&chat(r#"{"session_id": "s1"}"#)).await.text());
    if let Some(held) = &mut held {
        backend.open_gate("s1");
        assert!(held.answer().await.whole, "a turn is served");
        cut_connections(servers).await;
        let reconnects = || process.has_logged("reconnecting to the store");
        wait_for(reconnects, "the process logs that it connects again").await;
    }
    shown.extend(commands(&config, true));
    process.signal("TERM");
    let (_, events) = tokio::task::block_in_place(|| process.end());
    assert!(
        status != 200 || events.iter().any(|event| event["level"] == "DEBUG"),
        "the log leaves nothing out"
    );
    shown.extend(events.iter().map(ToString::to_string));
    for text in shown {
        assert!(!text.contains(MARK), "a password is shown ({url}): {text}");
    }
}

/// The output of the commands that read this configuration: whether it is `valid` is asserted, too.
fn commands(config: &Path, valid: bool) -> Vec<String> {
    let path = config.to_str().expect("its name is text");
    let all: [&[&str]; 5] = [
        &["check", "--config", path],
        &["check", "--json", "--config", path],
        &["locks", "--config", path, "list"],
        &["locks", "--config", path, "show", "u1", "s1"],
        &["locks", "--config", path, "release", "u1", "s2"],
    ];
    let outputs = all.map(|arguments| {
        let output = tokio::task::block_in_place(|| run(arguments));
        let is_invalid = output.status.code() == Some(78);
        assert_eq!(is_invalid, !valid, "{arguments:?}: {output:?}");
        let output = [output.stdout, output.stderr].concat();
        String::from_utf8(output).expect("text")
    });
    outputs.into()
}

// === impl Files ===

impl Files {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn config(&self, backend: &Backend, url: &str, store: &str) -> PathBuf {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[log]\nlevel = \"trace\"\n\
             [store]\nurl = {url:?}\n{QUICK}{store}\n{}",
            backend.url(),
            crate::support::app::CHAT,
        );
        self.write("config.toml", &text)
    }

    /// An option with a file that has this password.
    fn option(&self, option: &str, password: &str) -> String {
        let path = self.write(&format!("{option}-{}", password.len()), password);
        format!("{option} = {path:?}\n")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_no_password_is_shown() {
    let (redis, files) = (SentinelRedis::pooled().await, Files::new());
    for index in 0..3 {
        add_users(redis.server(index)).await;
        add_users(redis.sentinel(index)).await;
    }
    let at = |login: &str| {
        let url = redis.url();
        url.replace(
            "redis-sentinel://",
            &format!("redis-sentinel://agent{login}@"),
        )
    };
    let servers = [0, 1, 2].map(|index| redis.server(index));
    let in_file = |password: &str| files.option("password_file", password);
    let watcher = |password: &str| {
        let file = files.option("sentinel_password_file", password);
        format!("sentinel_user = \"watcher\"\n{file}")
    };
    for (url, store, status, text) in [
        (at(&format!(":{}", RIGHT.1)), String::new(), 200, "ready"),
        (
            at(&format!(":{}", WRONG.1)),
            String::new(),
            503,
            "WRONGPASS",
        ),
        (at(""), in_file(RIGHT.0) + &watcher(RIGHT.0), 200, "ready"),
        (
            at(""),
            in_file(WRONG.0) + &watcher(RIGHT.0),
            503,
            "WRONGPASS",
        ),
        (
            at(""),
            in_file(RIGHT.0) + &watcher(WRONG.0),
            503,
            "WRONGPASS",
        ),
        (at(""), String::new(), 503, "WRONGPASS"),
    ] {
        assert_no_password_is_shown(&servers, (&url, &store), (status, text)).await;
    }
    for index in 0..3 {
        remove_users(redis.server(index)).await;
        remove_users(redis.sentinel(index)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_no_password_is_shown() {
    let (cluster, files) = (ClusterRedis::pooled_of_six().await, Files::new());
    for index in cluster.nodes() {
        add_users(cluster.node(index)).await;
    }
    let at = |scheme: &str, login: &str| {
        let url = cluster.url();
        url.replace("redis-cluster://", &format!("{scheme}://agent{login}@"))
    };
    let in_url = |password: (&str, &str)| at("redis-cluster", &format!(":{}", password.1));
    let in_file = |password: (&str, &str)| files.option("password_file", password.0);
    let servers = [0, 1, 2].map(|index| cluster.node(index));
    let without = at("redis-cluster", "");
    let as_sentinel = at("redis-sentinel", &format!(":{}", RIGHT.1)) + "/mymaster";
    let as_single = format!("redis://agent:{}@{}/0", RIGHT.1, cluster.addr(0));
    for (url, store, status, text) in [
        (in_url(RIGHT), String::new(), 200, "ready"),
        (in_url(WRONG), String::new(), 503, "WRONGPASS"),
        (without.clone(), in_file(RIGHT), 200, "ready"),
        (without, in_file(WRONG), 503, "WRONGPASS"),
        (as_sentinel, String::new(), 503, "write redis-cluster://"),
        (as_single, String::new(), 503, "write redis-cluster://"),
    ] {
        assert_no_password_is_shown(&servers, (&url, &store), (status, text)).await;
    }
    for index in cluster.nodes() {
        remove_users(cluster.node(index)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_no_password_is_shown() {
    let (server, files) = (TlsRedis::start().await, Files::new());
    add_users(&server.redis).await;
    let (port, trusted) = (server.port(), server.trusted());
    let at = |scheme: &str, password: (&str, &str), path: &str| {
        format!("{scheme}://agent:{}@localhost:{port}{path}", password.1)
    };
    let in_file = |password: (&str, &str)| {
        let option = files.option("password_file", password.0);
        format!("{option}{trusted}")
    };
    let servers = [&*server.redis];
    let without = format!("rediss://agent@localhost:{port}/0");
    for (url, store, status, text) in [
        (at("rediss", RIGHT, "/0"), trusted.clone(), 200, "ready"),
        (at("rediss", WRONG, "/0"), trusted.clone(), 503, "WRONGPASS"),
        (at("rediss", RIGHT, "/0"), String::new(), 503, "certificate"),
        (without.clone(), in_file(RIGHT), 200, "ready"),
        (without, in_file(WRONG), 503, "WRONGPASS"),
        (
            at("rediss-cluster", RIGHT, ""),
            trusted.clone(),
            503,
            "write rediss://",
        ),
        (
            at("rediss-sentinel", RIGHT, "/m"),
            trusted.clone(),
            503,
            "or rediss://",
        ),
    ] {
        assert_no_password_is_shown(&servers, (&url, &store), (status, text)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_cant_be_used_is_refused_without_its_password() {
    let (backend, files) = (Backend::start("plain:ok").await, Files::new());
    for url in [
        "redis://agent:geheim@h:1,h:2/0",
        "redis://agent:geheim@h/x",
        "redis-sentinel://agent:geheim@h:1,agent:geheim@h:2/m",
        "redis-sentinel://agent:gehe/geheim@h/m",
        "redis-sentinel://agent:geheim@h",
        "redis-sentinel://agent:geheim@h#m",
        "redis-sentinel://agent:geheim@h/m?password=geheim",
        "redis-cluster://agent:geheim@h:1,agent:geheim@h:2",
        "redis-cluster://agent:geheim@h/3",
        "redis-cluster://agent:gehe#geheim@h",
        "rediss-cluster://agent:geheim@h:x",
        "rediss+sentinel://agent:geheim@h/m",
        "redis-sentinal://agent:geheim@h/m",
        "redis_cluster://agent:geheim@h",
    ] {
        let config = files.config(&backend, url, "");
        let mut shown = commands(&config, false);
        let path = config.to_str().expect("its name is text");
        let ran = tokio::task::block_in_place(|| run(&["--config", path]));
        assert_eq!(ran.status.code(), Some(78), "{ran:?}");
        shown.push(String::from_utf8([ran.stdout, ran.stderr].concat()).expect("text"));
        for text in shown {
            assert!(text.contains("store.url"), "the option is named: {text}");
            assert!(
                !text.contains(MARK),
                "the password is shown ({url}): {text}"
            );
        }
    }
}
