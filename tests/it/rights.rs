//! What a Redis user needs for Seriatim, as docs/redis.md has it: that user can do all of it, and
//! nothing is refused on the way. And what becomes of a turn where Redis refuses.

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const PAGE: &str = include_str!("../../docs/redis.md");

/// The words of the page's command, as a shell reads them.
fn documented() -> Vec<String> {
    let (_, rest) = PAGE.split_once("redis-cli ").expect("the command");
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

#[tokio::test]
async fn the_documented_redis_user_can_do_all_that_is_done() {
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
    // A line, and its hand-over.
    let mut held = running("s1").await;
    let mut behind = begin_turn(app.addr(), "s1", "plain:next").await;
    is_waiting(&redis, "s1", 1).await;
    let list = ask(app.admin(), "GET", "/locks").await;
    assert_eq!(list["locks"][0]["waiters"], 1, "locks are listed: {list}");
    let shown = ask(app.admin(), "GET", "/locks/u1/s1").await;
    assert_eq!(shown["locked"], true, "and shown: {shown}");
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "a turn ends");
    assert_eq!(behind.answer().await.status, 200, "and the next one runs");
    // What operators do.
    let mut forced = running("s2").await;
    let released = ask(app.admin(), "DELETE", "/locks/u1/s2").await;
    assert_eq!(released["released"], true, "a lock is taken away");
    assert!(!forced.answer().await.whole, "and its turn told so");
    let mut stopped = running("s3").await;
    let interrupted = ask(app.admin(), "POST", "/locks/u1/s3/interrupt").await;
    assert_eq!(interrupted["released"], true, "a turn is interrupted");
    assert!(!stopped.answer().await.whole, "and told so");
    assert_eq!(
        turn(app.addr(), "s2", "plain:x").await.status,
        200,
        "all is free"
    );
    is_quiet(&redis).await;
    app.stop().await;
    let refused = redis.command(&["ACL", "LOG"]).await;
    let none = ::redis::Value::Array(Vec::new());
    assert_eq!(refused, none, "Redis has refused nothing on the way");
}

#[tokio::test]
async fn a_lock_that_redis_refuses_is_not_taken_back() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, CHAT);
    redis.is_connected().await;
    redis.command(&["RPUSH", &key("s1"), "x"]).await;
    let monitor = redis.monitor().await;
    let refused = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "no lock, no turn"
    );
    assert_eq!(
        refused.json()["detail"],
        "the lock store answered: WRONGTYPE",
        "what it answered is told"
    );
    for n in 0..10 {
        // On every worker, behind whatever the first turn left behind.
        let other = turn(app.addr(), &format!("other-{n}"), "plain:x").await;
        assert_eq!(other.status, 200, "another session isn't disturbed");
    }
    let lines = monitor.lines_from_clients().await;
    let about = lines.iter().filter(|line| line.contains(&key("s1")));
    assert_eq!(
        about.count(),
        1,
        "it was asked for, and that was all: {lines:#?}"
    );
}

#[tokio::test]
async fn what_redis_answers_is_told_as_it_was_in_one_line() {
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
    let is_told = |text: &str| {
        let text = text.trim_end();
        assert!(
            !text.contains("geheim") && !text.contains("script:"),
            "no secret, no script: {text}"
        );
        text.contains(" answered: NOPERM ") && text.lines().count() == 1 && text.len() < 200
    };
    let unready = async || {
        let mut client = Client::connect(app.admin()).await;
        let answer = client.call(&Request::get("/readyz")).await;
        answer.status == 503 && is_told(&answer.text())
    };
    wait_for_async(unready, "a probe is told what Redis answered").await;
    let refused = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "no lock, no turn"
    );
    assert_eq!(
        refused.json()["detail"],
        "the lock store answered: NOPERM",
        "a client is told so"
    );
    let status = ask(app.admin(), "GET", "/status").await;
    let error = status["recent"][0]["error"].as_str().expect("why");
    assert!(is_told(error), "an operator is told: {error}");
}
