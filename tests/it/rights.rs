//! The permissions of Seriatim's Redis user in docs/redis.md suffice for every command; and what
//! happens to a turn when Redis denies one.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use seriatim::key::SessionKey;
use seriatim::lock::redis::{RedisAddress, RedisStore};
use seriatim::lock::{Epoch, Store};

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::sentinel_redis::SentinelRedis;
use crate::support::wait_for_async;

const PAGE: &str = include_str!("../../docs/redis.md");

/// The words of the command on the page, as a shell splits them.
fn documented() -> Vec<String> {
    let at = PAGE
        .find("ACL SETUSER seriatim reset")
        .expect("the command");
    let rest = &PAGE[at..];
    let (command, _) = rest.split_once("\n```").expect("its end");
    let words = command.split_whitespace().filter(|word| *word != "\\");
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

async fn ask(admin: SocketAddr, method: &str, target: &str) -> Value {
    let mut client = Client::connect(admin).await;
    let answer = client.call(&Request::new(method, target)).await;
    assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
    answer.json()
}

/// The permissions of the page that begin with this one, and are needed for an option only.
fn documented_extra(first: &str) -> Vec<String> {
    let at = PAGE.find(&format!("`{first}")).expect("the permissions");
    let (extra, _) = PAGE[at + 1..].split_once('`').expect("their end");
    extra.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn the_documented_redis_user_can_keep_answers() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let command = [documented(), documented_extra("+xadd")].concat();
    let command: Vec<_> = command.iter().map(|word| &**word).collect();
    redis.command(&command).await;
    let url = format!("redis://seriatim:password@{}/0", redis.addr());
    let attach = "[[routes]]\npath = \"/{id}/stream\"\nsession_id = [\"{path:id}\"]\nuser_id = [\"u1\"]\nattach = true\n";
    let config = format!("[replay]\nmax_turn = \"64KiB\"\n[lock]\nreplay = true\n{attach}{CHAT}");
    let [a, b] = [0, 1].map(|_| App::start(&backend.url(), &url, "", &config));
    for (script, status) in [("plain:kept", 200), ("big:1000000", 409)] {
        assert_eq!(turn(a.addr(), "s1", script).await.status, 200, "{script}");
        let read = async || {
            let mut client = Client::connect(b.addr()).await;
            client.get("/s1/stream").await.status == status
        };
        wait_for_async(read, "another replica has the answer").await;
    }
    let refused = redis.command(&["ACL", "LOG"]).await;
    let none = ::redis::Value::Array(Vec::new());
    assert_eq!(refused, none, "nothing was denied");
}

#[tokio::test]
async fn the_documented_redis_user_has_all_needed_permissions() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let command = documented();
    let command: Vec<_> = command.iter().map(|word| &**word).collect();
    redis.command(&command).await;
    let url = format!("redis://seriatim:password@{}/0", redis.addr());
    let config = format!(
        "[lock]\nblocking = true\nlock_timeout = \"2s\"\nextend_lock_interval = \"200ms\"\n{CHAT}"
    );
    let app = App::start(&backend.url(), &url, "", &config);
    let running = async |session| {
        let mut turn = begin_turn(app.addr(), session, "gate").await;
        turn.read_until(&event(0)).await;
        turn
    };
    // A queue and its hand-over.
    let mut held = running("s1").await;
    let mut behind = begin_turn(app.addr(), "s1", "plain:next").await;
    wait_for_queue_length(&redis, "s1", 1).await;
    let list = ask(app.admin(), "GET", "/locks").await;
    assert_eq!(
        list["locks"][0]["waiters"], 1,
        "locks are listed with their waiters: {list}"
    );
    let shown = ask(app.admin(), "GET", "/locks/u1/s1").await;
    assert_eq!(shown["locked"], true, "a lock is shown: {shown}");
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder's turn is complete");
    assert_eq!(behind.answer().await.status, 200, "the waiter is served");
    // What operators do.
    let held = running("s4").await;
    let waits = Request::turn("s4", "plain:x").header("x-request-id", "r");
    let mut out = Client::connect(app.addr()).await;
    out.send(&waits).await;
    wait_for_queue_length(&redis, "s4", 1).await;
    let dequeued = ask(app.admin(), "DELETE", "/locks/u1/s4/queue/r").await;
    assert_eq!(dequeued["dequeued"], true, "a waiter is taken out");
    assert_eq!(out.answer().await.status, 409, "its client is told");
    drop(held);
    let mut forced = running("s2").await;
    let released = ask(app.admin(), "DELETE", "/locks/u1/s2").await;
    assert_eq!(released["released"], true, "a lock is force released");
    assert!(
        !forced.answer().await.whole,
        "the turn of a released lock is cut"
    );
    let mut stopped = running("s3").await;
    let interrupted = ask(app.admin(), "POST", "/locks/u1/s3/interrupt").await;
    assert_eq!(interrupted["released"], true, "a turn is interrupted");
    assert!(!stopped.answer().await.whole, "an interrupted turn is cut");
    assert_eq!(
        turn(app.addr(), "s2", "plain:x").await.status,
        200,
        "the session is free"
    );
    wait_until_no_keys(&redis).await;
    app.stop().await;
    let refused = redis.command(&["ACL", "LOG"]).await;
    let none = ::redis::Value::Array(Vec::new());
    assert_eq!(refused, none, "Redis denied no command");
}

#[tokio::test]
async fn a_lock_that_redis_denied_is_not_released() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    redis.is_connected().await;
    let alive = async || redis.instances().await.len() == 1;
    wait_for_async(alive, "the replica has its heartbeat").await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let monitor = redis.monitor().await;
    let refused = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "without a lock the turn is refused"
    );
    assert_eq!(
        refused.json()["detail"],
        "the lock store answered: OOM",
        "the error response has the error of Redis"
    );
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    for n in 0..10 {
        // On every worker, after any command that the first turn queued.
        let other = turn(app.addr(), &format!("other-{n}"), "plain:x").await;
        assert_eq!(other.status, 200, "another session isn't disturbed");
    }
    let lines = monitor.lines_from_clients().await;
    let about = lines.iter().filter(|line| line.contains(&key("s1")));
    assert_eq!(
        about.count(),
        1,
        "one command was sent for the key: {lines:#?}"
    );
}

#[tokio::test]
async fn an_error_of_redis_is_reported_literally_in_one_line() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let user = [
        "ACL",
        "SETUSER",
        "poor",
        "on",
        ">geheim",
        "~*",
        "&*",
        "+@all",
        "-script|load",
    ];
    redis.command(&user).await;
    let url = format!("redis://poor:geheim@{}/0", redis.addr());
    let app = App::start(&backend.url(), &url, "", CHAT);
    let is_reported = |text: &str| {
        let text = text.trim_end();
        assert!(
            !text.contains("geheim") && !text.contains("script:"),
            "the report contains no password and no script: {text}"
        );
        text.contains(" answered: NOPERM ") && text.lines().count() == 1 && text.len() < 200
    };
    let unready = async || {
        let mut client = Client::connect(app.admin()).await;
        let answer = client.call(&Request::get("/readyz")).await;
        answer.status == 503 && is_reported(&answer.text())
    };
    wait_for_async(unready, "the readiness probe has the error of Redis").await;
    let refused = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "without a lock the turn is refused"
    );
    assert_eq!(
        refused.json()["detail"],
        "the lock store answered: NOPERM",
        "the error response has the error code of Redis"
    );
    let status = ask(app.admin(), "GET", "/status").await;
    let error = status["recent"][0]["error"]
        .as_str()
        .expect("the event has an error");
    assert!(
        is_reported(error),
        "the status has the error of Redis: {error}"
    );
}

#[tokio::test]
async fn a_failover_is_known_without_the_right_to_ask_for_the_run_id() {
    let redis = SentinelRedis::start().await;
    let user = ["ACL", "SETUSER", "poor", "on", ">geheim", "~*", "&*"];
    for server in 0..3 {
        let user = [&user[..], &["+@all", "-info"]].concat();
        redis.command(server, &user).await;
    }
    let url = redis.url().replace("://", "://poor:geheim@");
    let address = RedisAddress::parse(&url, Duration::from_secs(5)).expect("a URL");
    let store = RedisStore::connect(address);
    let key = SessionKey::literal("k");
    let ttl = Duration::from_secs(30);
    let answers = async || store.heartbeat("a", Epoch(1), ttl, true).await.is_ok();
    wait_for_async(answers, "the first master answers").await;
    assert_eq!(store.server_changed(&key), None, "the first one");
    redis.failover().await;
    let is_known = async || answers().await && store.server_changed(&key).is_some();
    wait_for_async(is_known, "another master counts as another server").await;
}
