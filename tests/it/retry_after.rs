//! What the refusal of a busy session says of it: when to try again, since when it is busy, and how many wait.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::app::{CHAT, wait_for_queue_length};
use crate::support::backend::Backend;
use crate::support::bench::{Bench, Setup, assert_error_response};
use crate::support::client::{Answer, Client, Request, turn};
use crate::support::redis::Redis;

/// Turns of `/chat` wait, and turns of `/now` don't. Both have the same sessions.
const TWO_WAYS: &str = r#"
[[routes]]
name = "now"
path = "/now"
session_id = ["{body:/session_id}"]
user_id = ["{body:/user_id}"]
blocking = false
"#;

/// A turn that doesn't wait.
fn now(session: &str) -> Request {
    let body = format!(r#"{{"session_id": "{session}", "user_id": "u1"}}"#);
    Request::post("/now").json(&body)
}

async fn start(lock: &str) -> Bench<Redis> {
    let config = format!("[lock]\n{lock}\n{CHAT}{TWO_WAYS}");
    Setup::new(&config).replicas(2).on_redis().await
}

/// When the running turn of the session took its lock, by the fence that its backend got.
fn since(backend: &Backend, session: &str) -> String {
    let turns = backend.turns(session);
    let fence = turns
        .iter()
        .find_map(|turn| turn.header("x-seriatim-fence"));
    let fence = fence.expect("the turn runs").parse().expect("a number");
    let since = UNIX_EPOCH + Duration::from_micros(fence);
    humantime::format_rfc3339_millis(since).to_string()
}

/// Asserts that headers and body of the refusal tell the same of its session.
fn assert_told(answer: &Answer, reason: &str, since: &str, queue: usize) {
    assert_error_response(reason, answer, 429, reason);
    assert_eq!(
        (
            answer.header("x-seriatim-busy-since"),
            answer.header("x-seriatim-queue")
        ),
        (Some(since), Some(&*queue.to_string())),
        "{reason}: the headers tell when the lock was taken, by the store's clock, and how many others wait: {answer:?}"
    );
    let json = answer.json();
    assert_eq!(
        (&json["busy_since"], &json["queue"]),
        (&json!(since), &json!(queue)),
        "{reason}: the body, too"
    );
    assert_eq!(
        Some(json["retry_after_ms"].to_string().as_str()),
        answer.header("retry-after-ms"),
        "{reason}: and when to try again"
    );
}

/// The value of `retry-after-ms`.
fn millis(answer: &Answer) -> u64 {
    let value = answer.header("retry-after-ms");
    let value = value.and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("a busy session says when to try again: {answer:?}"))
}

#[tokio::test]
async fn every_refusal_tells_since_when_the_session_is_busy_and_how_many_wait() {
    let bench = start("blocking = true\nmax_waiters = 2").await;
    let _holder = bench.hold("s1").await;
    let since = since(&bench.backend, "s1");
    let mut waiters = Vec::new();
    for queue in 0..2 {
        let answer = Client::connect(bench.replica(1))
            .await
            .call(&now("s1"))
            .await;
        assert_told(&answer, "session_busy", &since, queue);
        let mut waiter = Client::connect(bench.replica(queue)).await;
        waiter.send(&Request::turn("s1", "plain:x")).await;
        wait_for_queue_length(&bench.redis, "s1", queue + 1).await;
        waiters.push(waiter);
    }
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_told(&answer, "queue_full", &since, 2);
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "the waiters are served");
    }
}

#[tokio::test]
async fn a_turn_that_has_waited_too_long_is_told_of_the_others() {
    let bench = start("blocking = true\nblocking_timeout = \"300ms\"").await;
    let _holder = bench.hold("s1").await;
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_told(&answer, "wait_timeout", &since(&bench.backend, "s1"), 0);
    bench.backend.open_gate("s1");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn the_time_to_try_again_goes_by_the_last_turns_of_the_route() {
    let bench = Bench::start(CHAT).await;
    let mut first = bench.hold("s1").await;
    // Longer than the second that a client waits at least.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let refused = turn(bench.replica(0), "s1", "plain:x").await;
    assert!(
        millis(&refused) >= 1500,
        "a turn that is older than all that are known may take as long again: {refused:?}"
    );
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "the turn is complete");
    let _second = bench.hold("s2").await;
    let refused = turn(bench.replica(0), "s2", "plain:x").await;
    assert!(
        millis(&refused) > 1000,
        "a turn that has just begun takes as long as the one before: {refused:?}"
    );
    let seconds = refused.header("retry-after").map(str::to_owned);
    let rounded = millis(&refused).div_ceil(1000).to_string();
    assert_eq!(seconds, Some(rounded), "whole seconds, and none too few");
    bench.backend.open_gate("s2");
}

#[tokio::test]
async fn a_configured_time_and_the_contracts_body_can_be_had() {
    let busy = "[busy]\nretry_after = 7\nexplain = false\n";
    let bench = Bench::start(&format!("{busy}{CHAT}")).await;
    let _holder = bench.hold("s1").await;
    let refused = turn(bench.replica(0), "s1", "plain:x").await;
    assert_eq!(
        (refused.header("retry-after"), millis(&refused)),
        (Some("7"), 7000),
        "the configured time, in both units"
    );
    assert_eq!(
        refused.json(),
        json!({
            "success": false,
            "error": "AI 正在思考中，请稍后再试",
            "detail": "[lock:session:u1:s1] 锁已被占用",
            "status_code": 429,
        }),
        "the body has the contract's four members alone"
    );
    assert_eq!(
        refused.header("x-seriatim-queue"),
        Some("0"),
        "the headers stay"
    );
    bench.backend.open_gate("s1");
}

/// The refusal of a busy session on a route with these options of `busy`.
async fn refused(busy: &str) -> Value {
    let bench = Bench::start(&format!("[busy]\nretry_after = 7\n{busy}\n{CHAT}")).await;
    let _holder = bench.hold("s1").await;
    let refused = turn(bench.replica(0), "s1", "plain:x").await;
    bench.backend.open_gate("s1");
    let mut json = refused.json();
    let inner = match json.pointer_mut("/error/data") {
        Some(data) => data.take(),
        None => json,
    };
    assert_eq!(inner["status_code"], 429, "the contract's members: {inner}");
    inner
}

#[tokio::test]
async fn a_format_of_others_gets_no_more_members_unless_it_is_told_to() {
    for format in ["format = \"json-rpc\"", "format = \"openai\""] {
        let json = refused(format).await;
        assert_eq!(json.get("retry_after_ms"), None, "{format}: {json}");
        let json = refused(&format!("{format}\nexplain = true")).await;
        assert_eq!(
            (&json["retry_after_ms"], &json["queue"]),
            (&json!(7000), &json!(0)),
            "{format}: beside the members of the contract"
        );
        assert!(json["busy_since"].is_string(), "{format}: {json}");
    }
}
