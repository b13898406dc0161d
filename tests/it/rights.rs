//! What a Redis user needs for Seriatim, as docs/redis.md has it: that user can do all of it, and
//! nothing is refused on the way.

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::app::{App, CHAT, is_quiet, is_waiting};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;

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
