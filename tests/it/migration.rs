//! Migration: replicas that take the lock themselves, in Python (`tests/python/distributed_lock.py`),
//! next to replicas behind the proxy, on one Redis and one key. docs/migration.md describes both.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::backend::{Backend, event, events};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::python::Agent;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const BLOCKING: &str = "[lock]\nblocking = true\n";
const EXTENDED: &str = "[lock]\nlock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
/// For how long clients send turns to both kinds of replica.
const LOAD: Duration = Duration::from_secs(6);

/// Both kinds of replica, and the backend that both use.
struct Migration {
    backend: Backend,
    redis: Redis,
    old: Agent,
    new: App,
}

// === impl Migration ===

impl Migration {
    async fn start(lock: &str) -> Self {
        let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
        let old = Agent::with_a_lock(&redis.url(), &backend.url()).await;
        let store = "timeout = \"300ms\"";
        let config = format!("{lock}{CHAT}");
        let new = App::start(&backend.url(), &redis.url(), store, &config);
        Self {
            backend,
            redis,
            old,
            new,
        }
    }

    /// Starts a turn at the old replica on one of its routes, and doesn't wait for the response.
    async fn begin_old(&self, path: &str, session: &str, script: &str) -> Client {
        let mut client = Client::connect(self.old.addr()).await;
        client.send(&request(path, session, script)).await;
        client
    }

    async fn old_turn(&self, session: &str, script: &str) -> Answer {
        self.begin_old("/chat", session, script)
            .await
            .answer()
            .await
    }

    /// Calls Python's `is_session_locked`.
    async fn is_session_locked(&self, session: &str) -> bool {
        let mut client = Client::connect(self.old.addr()).await;
        let answer = client.get(&format!("/locked/u1/{session}")).await;
        answer.json()["locked"].as_bool().expect("true or false")
    }

    /// Calls Python's `force_release`.
    async fn force_release(&self, session: &str) -> bool {
        let mut client = Client::connect(self.old.addr()).await;
        let path = format!("/force_release/u1/{session}");
        let answer = client.post_json(&path, "{}").await;
        answer.json()["released"].as_bool().expect("true or false")
    }
}

/// A turn of the session to this path.
fn request(path: &str, session: &str, script: &str) -> Request {
    let body = json!({ "session_id": session, "user_id": "u1" });
    Request::post(path)
        .header("x-test-script", script)
        .json(&body.to_string())
}

#[tokio::test]
async fn the_proxy_refuses_a_session_locked_by_python_with_the_same_response() {
    let bench = Migration::start("").await;
    let mut held = bench.begin_old("/chat", "s1", "gate").await;
    bench.backend.started("s1", 1).await;
    let from_python = bench.old_turn("s1", "plain:x").await;
    let from_proxy = turn(bench.new.addr(), "s1", "plain:x").await;
    let mut json = from_proxy.json();
    let members = json.as_object_mut().expect("an object");
    let more = ["retry_after_ms", "busy_since", "queue"].map(|name| members.remove(name));
    assert_eq!(
        (from_proxy.status, json),
        (from_python.status, from_python.json()),
        "both refusals are the same response"
    );
    assert_eq!(
        (more, from_proxy.header("x-seriatim-busy-since")),
        ([json!(1000), json!(null), json!(0)].map(Some), None),
        "the proxy tells more, but not since when Python has the lock"
    );
    assert_eq!(from_proxy.status, 429, "the session is busy");
    bench.backend.open_gate("s1");
    assert_eq!(
        held.answer().await.status,
        200,
        "the refusals don't disturb the turn"
    );
    assert_eq!(
        turn(bench.new.addr(), "s1", "plain:x").await.status,
        200,
        "the session is free after the turn"
    );
    wait_until_no_keys(&bench.redis).await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn python_sees_the_lock_of_a_proxied_turn() {
    let bench = Migration::start("").await;
    let mut held = begin_turn(bench.new.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert_eq!(
        bench.old_turn("s1", "plain:x").await.status,
        429,
        "Python's acquire fails"
    );
    assert!(
        bench.is_session_locked("s1").await,
        "is_session_locked sees the proxy's lock"
    );
    assert!(
        !bench.is_session_locked("s2").await,
        "another session is not locked"
    );
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "the refusals don't disturb the turn"
    );
    assert!(
        !bench.is_session_locked("s1").await,
        "the session is free when the client has the end of the response"
    );
    assert_eq!(
        bench.old_turn("s1", "plain:x").await.status,
        200,
        "the session is free for the old replica too"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_python_lock_with_extension_protects_its_whole_stream() {
    let bench = Migration::start("").await;
    let mut held = bench.begin_old("/stream", "s1", "gate").await;
    held.read_until(&event(0)).await;
    let before = bench.redis.pttl(&key("s1")).await;
    let mut least = before;
    let is_extended = async || {
        let left = bench.redis.pttl(&key("s1")).await;
        let is_more = left > least + 500;
        least = least.min(left);
        is_more
    };
    wait_for_async(is_extended, "Python extends its lock").await;
    assert_eq!(
        turn(bench.new.addr(), "s1", "plain:x").await.status,
        429,
        "the session is busy until the stream ends"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the stream ends completely");
    let free = async || turn(bench.new.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session is free after the stream").await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn python_and_proxied_turns_wait_for_each_other() {
    let bench = Migration::start(BLOCKING).await;
    let mut held = bench.begin_old("/chat", "s1", "gate").await;
    bench.backend.started("s1", 1).await;
    let mut waits = begin_turn(bench.new.addr(), "s1", "gate").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert_eq!(held.answer().await.status, 200, "the Python turn ends");
    // Python deletes the key without a message: the queue finds out by polling.
    waits.read_until(&event(0)).await;
    let mut blocks = bench.begin_old("/wait", "s1", "plain:late").await;
    bench.backend.open_gate("s1");
    let answer = waits.answer().await;
    assert!(answer.whole, "the turn that waited is served: {answer:?}");
    let answer = blocks.answer().await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "late"),
        "Python's blocked turn is served"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn the_proxys_queue_is_served_before_pythons_polling_waiter() {
    let bench = Migration::start(BLOCKING).await;
    let mut held = begin_turn(bench.new.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let monitor = bench.redis.monitor().await;
    let mut python = bench.begin_old("/wait", "s1", "plain:python").await;
    let polls = async || {
        let lines = monitor.lines().await;
        lines.iter().filter(|line| line.contains("\"NX\"")).count() > 1
    };
    wait_for_async(polls, "Python polls the lock").await;
    let mut first = begin_turn(bench.new.addr(), "s1", "gate").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let mut second = begin_turn(bench.new.addr(), "s1", "plain:second").await;
    wait_for_queue_length(&bench.redis, "s1", 2).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder's turn ends");
    first.read_until(&event(0)).await;
    assert_eq!(
        bench.backend.turns("s1").len(),
        2,
        "the lock is handed over and never free for a poller"
    );
    bench.backend.open_gate("s1");
    for (client, whose) in [(&mut first, "first"), (&mut second, "second")] {
        let answer = client.answer().await;
        assert!(
            answer.whole,
            "the {whose} in the queue is served: {answer:?}"
        );
    }
    assert_eq!(
        python.answer().await.text(),
        "python",
        "Python is served last"
    );
    let turns = bench.backend.turns("s1");
    let last = turns.iter().max_by_key(|turn| turn.began);
    let last = last.and_then(|turn| turn.header("x-test-script"));
    assert_eq!(
        last,
        Some("plain:python"),
        "Python is last, although it came first"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn python_force_release_lets_a_second_turn_run_at_once() {
    let bench = Migration::start("").await;
    let mut held = begin_turn(bench.new.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert!(bench.force_release("s1").await, "the key is deleted");
    assert_eq!(
        turn(bench.new.addr(), "s1", "plain:x").await.status,
        200,
        "the next turn is served"
    );
    assert_eq!(
        bench.backend.max_overlap("s1"),
        2,
        "the first turn isn't notified, so two turns overlap"
    );
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "a turn without extension runs to its end"
    );
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn the_next_extension_cuts_a_turn_that_python_force_released() {
    let bench = Migration::start(EXTENDED).await;
    let mut held = begin_turn(bench.new.addr(), "s1", "hang-middle").await;
    held.read_until(&event(0)).await;
    assert!(bench.force_release("s1").await, "the key is deleted");
    let answer = held.answer().await;
    assert!(
        !answer.whole && answer.text() == events(1),
        "the response is aborted: {answer:?}"
    );
    bench.backend.gone("s1").await;
    assert_eq!(
        bench.old_turn("s1", "plain:x").await.status,
        200,
        "the session is free after the abort"
    );
}

#[tokio::test]
async fn python_and_proxied_turns_never_overlap_under_load() {
    const SESSIONS: usize = 3;
    let bench = Migration::start("").await;
    let end = Instant::now() + LOAD;
    let clients: Vec<_> = (0..12)
        .map(|n| {
            let (is_old, session) = (n % 2 == 0, format!("s{}", n / 2 % SESSIONS));
            let addr = match is_old {
                true => bench.old.addr(),
                false => bench.new.addr(),
            };
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                let (mut served, mut refused) = (0, 0);
                while Instant::now() < end {
                    let request = request("/chat", &session, "chunked:3:3");
                    let answer = client.call(&request).await;
                    match answer.status {
                        200 => served += 1,
                        429 => {
                            refused += 1;
                            // A shorter form of `retry-after`: a turn takes some 10 ms.
                            tokio::time::sleep(Duration::from_millis(3)).await;
                        }
                        _ => panic!("served or refused: {answer:?}"),
                    }
                }
                (is_old, served, refused)
            })
        })
        .collect();
    let (mut old, mut new, mut refusals) = (0, 0, 0);
    for client in clients {
        let (is_old, served, refused) = client.await.expect("no answer was wrong");
        *if is_old { &mut old } else { &mut new } += served;
        refusals += refused;
    }
    assert!(
        new > 0 && old > 0 && refusals > 0,
        "both kinds were served, and turns were refused: {old}, {new}, {refusals}"
    );
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        assert_eq!(
            bench.backend.max_overlap(&session),
            1,
            "turns of a session never overlap: {session}"
        );
    }
    wait_until_no_keys(&bench.redis).await;
}
