//! Redis's password changes while turns run: open connections log in again, in place.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tempfile::NamedTempFile;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, turn};
use crate::support::redis::{Monitor, Redis};
use crate::support::{wait_for, wait_for_async};

/// How often the password changes under load.
const ROUNDS: usize = 10;
const CLIENTS: usize = 6;
/// Fewer than clients, so that turns wait and are woken over the channel.
const SESSIONS: usize = 3;

const LOCK: &str = "[lock]\nlock_timeout = \"3s\"\nextend_lock_interval = \"200ms\"\n\
                    blocking = true\nblocking_timeout = \"15s\"\n";

/// The Redis user of the replicas, with its password in a file.
struct User<'r> {
    redis: &'r Redis,
    file: NamedTempFile,
}

impl<'r> User<'r> {
    /// A user with this password.
    async fn new(redis: &'r Redis, password: &str) -> Self {
        let file = NamedTempFile::new().expect("a file");
        let user = Self { redis, file };
        user.set(&["on", "~*", "&*", "+@all"]).await;
        user.allow(password).await;
        user.write(password);
        user
    }

    async fn set(&self, rules: &[&str]) {
        let command = [&["ACL", "SETUSER", "seriatim"], rules].concat();
        self.redis.command(&command).await;
    }

    async fn allow(&self, password: &str) {
        self.set(&[&format!(">{password}")]).await;
    }

    async fn forbid(&self, password: &str) {
        self.set(&[&format!("<{password}")]).await;
    }

    fn write(&self, password: &str) {
        fs::write(self.path(), password).expect("written");
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn url(&self) -> String {
        format!("redis://seriatim@{}/0", self.redis.addr())
    }

    fn store(&self) -> String {
        format!("password_file = {:?}", self.path())
    }

    /// The connections of this user: id and address.
    async fn connections(&self) -> BTreeMap<String, String> {
        let list = self.redis.command(&["CLIENT", "LIST"]).await;
        let list: String = ::redis::from_redis_value(list).expect("CLIENT LIST gives text");
        let lines = list.lines().filter(|line| line.contains(" user=seriatim "));
        let field = |line: &str, name: &str| {
            let mut fields = line.split(' ');
            let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value.expect("CLIENT LIST has the field").to_owned()
        };
        lines
            .map(|line| (field(line, "id"), field(line, "addr")))
            .collect()
    }

    /// Waits until this many replicas have all their connections, and gives these.
    async fn connected(&self, replicas: usize) -> BTreeMap<String, String> {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = replicas * (workers + 1);
        let is_connected = async || self.connections().await.len() == wanted;
        wait_for_async(is_connected, "the replicas have all their connections").await;
        self.connections().await
    }

    /// Waits until each connection has sent AUTH since the monitor was cleared, and clears it.
    async fn logged_in_again(&self, monitor: &Monitor<'_>, what: &str) {
        let is_done = async || {
            // Each look copies all commands of the load.
            sleep(Duration::from_millis(50)).await;
            let lines = monitor.lines().await;
            let all = self.connections().await;
            let has_sent_auth = |addr: &String| {
                let begin = format!("{addr}] \"AUTH\"");
                lines.iter().any(|line| line.contains(&begin))
            };
            all.values().all(has_sent_auth)
        };
        wait_for_async(is_done, what).await;
        monitor.clear().await;
    }
}

/// Sends turns of a session until told to stop, each of which must be served. Gives their number.
async fn take_turns(replica: SocketAddr, session: String, stop: watch::Receiver<bool>) -> usize {
    let mut client = Client::connect(replica).await;
    let mut served = 0;
    while !*stop.borrow() {
        let answer = client.turn(&session, "chunked:2:5").await;
        assert!(
            answer.status == 200 && answer.whole,
            "a new password refuses no turn and cuts none: {answer:?}"
        );
        served += 1;
    }
    served
}

#[tokio::test]
async fn no_turn_notices_that_the_password_changes() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let user = User::new(&redis, "secret-0").await;
    let config = format!("{LOCK}{CHAT}");
    let replicas =
        [(); 2].map(|()| App::start(&backend.url(), &user.url(), &user.store(), &config));
    let before = user.connected(2).await;
    let (stop, stopped) = watch::channel(false);
    let turns: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let replica = replicas[n % 2].addr();
            let session = format!("s{}", n % SESSIONS);
            tokio::spawn(take_turns(replica, session, stopped.clone()))
        })
        .collect();
    let mut held = hold(replicas[0].addr(), "held").await;
    let monitor = redis.monitor().await;
    for round in 1..=ROUNDS {
        let (old, new) = (format!("secret-{}", round - 1), format!("secret-{round}"));
        user.allow(&new).await;
        user.write(&new);
        let what = "each open connection logs in with the new password";
        user.logged_in_again(&monitor, what).await;
        user.forbid(&old).await;
    }
    stop.send_replace(true);
    for client in turns {
        let served = client.await.expect("every turn was served");
        assert!(served > ROUNDS, "turns went on all the time");
    }
    backend.open_gate("held");
    assert!(
        held.answer().await.whole,
        "a turn keeps its lock over all passwords"
    );
    assert_eq!(
        user.connections().await,
        before,
        "the connections are the same, with the one that listens"
    );
    let denied = redis.command(&["ACL", "LOG"]).await;
    let none = ::redis::Value::Array(Vec::new());
    assert_eq!(denied, none, "no connection tried a wrong password");
    assert_eq!(backend.overlaps(), [], "turns never overlap");
}

#[tokio::test]
async fn a_connection_whose_new_password_is_refused_stays_in_use_and_tries_the_next_one() {
    let replicas = Replicas::on_redis().await;
    let user = User::new(&replicas.redis, "secret-0").await;
    let config = replicas.config_at(&user.url(), &user.store(), "");
    let process = crate::support::process::Process::start(&config);
    let before = user.connected(1).await;
    let monitor = replicas.redis.monitor().await;
    let is_served = async |when: &str| {
        for _ in 0..10 {
            let answer = turn(process.addr(), "s1", "plain:x").await;
            assert_eq!(answer.status, 200, "turns are served {when}: {answer:?}");
        }
    };
    let refusals = || process.times_logged("refuses the new password");
    for (round, wrong) in [(1, "wrong-1"), (2, "wrong-2")] {
        user.write(wrong);
        let what = "each connection tries the password that is in the file";
        user.logged_in_again(&monitor, what).await;
        wait_for(|| refusals() == round, "a warning tells that it is wrong").await;
        is_served("over connections that Redis keeps").await;
    }
    user.allow("secret-1").await;
    user.write("secret-1\n");
    let what = "each connection logs in when the file is right";
    user.logged_in_again(&monitor, what).await;
    user.forbid("secret-0").await;
    is_served("with the next password").await;

    let unreadable = || process.times_logged("can't read the password of the store");
    for round in 1..=2 {
        fs::remove_file(user.path()).expect("removed");
        wait_for(|| unreadable() == round, "a warning tells of no file").await;
        is_served("without a file").await;
        user.allow(&format!("back-{round}")).await;
        user.write(&format!("back-{round}"));
        let what = "each connection logs in when the file is back";
        user.logged_in_again(&monitor, what).await;
    }
    assert_eq!(
        user.connections().await,
        before,
        "no connection was replaced"
    );
    assert_eq!(
        (refusals(), unreadable()),
        (2, 2),
        "many connections log one warning"
    );
    assert!(process.has_logged("WRONGPASS"), "it has Redis's reason");
    for secret in ["wrong-", "secret-", "back-"] {
        assert!(!process.has_logged(secret), "the log has no password");
    }
}

#[tokio::test]
async fn an_open_connection_tries_a_password_again_that_was_not_found_wrong() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = NamedTempFile::new().expect("a file");
    let require = async |password: &str| {
        let command = ["CONFIG", "SET", "requirepass", password];
        redis.command(&command).await;
    };
    require("secret-0").await;
    fs::write(file.path(), "secret-0").expect("written");
    let store = format!("password_file = {:?}", file.path());
    let _app = App::start(&backend.url(), &redis.url(), &store, CHAT);
    redis.is_connected().await;
    // Then Redis has another error for any password.
    require("").await;
    fs::write(file.path(), "secret-1").expect("written");
    let attempts = async || {
        let stats = redis.command(&["INFO", "commandstats"]).await;
        let stats: String = ::redis::from_redis_value(stats).expect("INFO gives text");
        let of_auth = stats.lines().find(|line| line.starts_with("cmdstat_auth:"));
        let count = |name: &str| {
            let mut fields = of_auth?.split([':', ',']);
            let value = fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            value?.parse::<usize>().ok()
        };
        let (calls, failed) = (count("calls"), count("failed_calls"));
        (calls.unwrap_or(0), failed.unwrap_or(0))
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let all = workers + 1;
    let has_failed = async || attempts().await.1 >= all;
    wait_for_async(has_failed, "each connection tries the new password").await;
    require("secret-1").await;
    let succeeded = async || {
        let (calls, failed) = attempts().await;
        calls - failed == all
    };
    wait_for_async(succeeded, "each connection logs in, and once").await;
}
