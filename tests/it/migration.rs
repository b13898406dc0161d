//! Moving over: replicas that take the lock themselves, in Python (`tests/python/distributed_lock.py`),
//! beside replicas behind the proxy, on one Redis and one key. What docs/migration.md says of both.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::backend::{Backend, event, events};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::python::Agent;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const BLOCKING: &str = "[lock]\nblocking = true\n";
const EXTENDED: &str = "[lock]\nlock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
/// For how long clients of both kinds of replica go on.
const LOAD: Duration = Duration::from_secs(6);

/// Both kinds of replica, and the backend at which both do their work.
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

    /// A turn at the old replica, on one of its routes; the answer isn't waited for.
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

    /// What `is_session_locked` says.
    async fn is_session_locked(&self, session: &str) -> bool {
        let mut client = Client::connect(self.old.addr()).await;
        let answer = client.get(&format!("/locked/u1/{session}")).await;
        answer.json()["locked"].as_bool().expect("true or false")
    }

    /// `force_release` of a session's lock.
    async fn force_release(&self, session: &str) -> bool {
        let mut client = Client::connect(self.old.addr()).await;
        let path = format!("/force_release/u1/{session}");
        let answer = client.post_json(&path, "{}").await;
        answer.json()["released"].as_bool().expect("true or false")
    }
}

/// A turn of the session, to a route of this path.
fn request(path: &str, session: &str, script: &str) -> Request {
    let body = serde_json::json!({ "session_id": session, "user_id": "u1" });
    Request::post(path)
        .header("x-test-script", script)
        .json(&body.to_string())
}

#[tokio::test]
async fn a_turn_under_the_python_lock_is_refused_by_the_proxy_as_python_refuses_it() {
    let bench = Migration::start("").await;
    let mut held = bench.begin_old("/chat", "s1", "gate").await;
    bench.backend.started("s1", 1).await;
    let theirs = bench.old_turn("s1", "plain:x").await;
    let ours = turn(bench.new.addr(), "s1", "plain:x").await;
    assert_eq!(
        (ours.status, ours.json()),
        (theirs.status, theirs.json()),
        "a client can't tell who refused it"
    );
    assert_eq!(ours.status, 429, "the session is busy");
    bench.backend.open_gate("s1");
    assert_eq!(held.answer().await.status, 200, "the turn isn't disturbed");
    assert_eq!(
        turn(bench.new.addr(), "s1", "plain:x").await.status,
        200,
        "and then the session is free"
    );
    is_quiet(&bench.redis).await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_turn_of_the_proxy_is_a_lock_to_python() {
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
        "is_session_locked sees it"
    );
    assert!(
        !bench.is_session_locked("s2").await,
        "and no other session's"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn isn't disturbed");
    assert!(
        !bench.is_session_locked("s1").await,
        "a client that has the end has a free session"
    );
    assert_eq!(
        bench.old_turn("s1", "plain:x").await.status,
        200,
        "on the old replicas, too"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_python_lock_that_is_extended_around_a_stream_keeps_the_proxy_out_to_its_end() {
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
        "the session is busy for as long as its stream"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the stream comes to its end");
    let free = async || turn(bench.new.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "then the session is free").await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn turns_of_either_kind_wait_for_the_other() {
    let bench = Migration::start(BLOCKING).await;
    let mut held = bench.begin_old("/chat", "s1", "gate").await;
    bench.backend.started("s1", 1).await;
    let mut waits = begin_turn(bench.new.addr(), "s1", "gate").await;
    is_waiting(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert_eq!(held.answer().await.status, 200, "the Python turn ends");
    // Python deletes the key and tells nobody: the line looks by itself.
    waits.read_until(&event(0)).await;
    let mut blocks = bench.begin_old("/wait", "s1", "plain:late").await;
    bench.backend.open_gate("s1");
    let answer = waits.answer().await;
    assert!(answer.whole, "the turn that waited is served: {answer:?}");
    let answer = blocks.answer().await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "late"),
        "and so is Python's that blocked"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn of_those_who_wait_for_the_proxys_turn_its_own_line_comes_first() {
    let bench = Migration::start(BLOCKING).await;
    let mut held = begin_turn(bench.new.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let monitor = bench.redis.monitor().await;
    let mut python = bench.begin_old("/wait", "s1", "plain:python").await;
    let looks = async || {
        let lines = monitor.lines().await;
        lines.iter().filter(|line| line.contains("\"NX\"")).count() > 1
    };
    wait_for_async(looks, "Python looks again and again").await;
    let mut first = begin_turn(bench.new.addr(), "s1", "gate").await;
    is_waiting(&bench.redis, "s1", 1).await;
    let mut second = begin_turn(bench.new.addr(), "s1", "plain:second").await;
    is_waiting(&bench.redis, "s1", 2).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn that held ends");
    first.read_until(&event(0)).await;
    assert_eq!(
        bench.backend.turns("s1").len(),
        2,
        "the lock is handed over: it is never free for who looks"
    );
    bench.backend.open_gate("s1");
    for (client, whose) in [(&mut first, "first"), (&mut second, "second")] {
        let answer = client.answer().await;
        assert!(answer.whole, "the {whose} in line is served: {answer:?}");
    }
    assert_eq!(python.answer().await.text(), "python", "Python at the end");
    let turns = bench.backend.turns("s1");
    let last = turns.iter().max_by_key(|turn| turn.began);
    let last = last.and_then(|turn| turn.header("x-test-script"));
    assert_eq!(last, Some("plain:python"), "though it came before them");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn force_release_in_python_lets_a_second_turn_in_beside_the_proxys() {
    let bench = Migration::start("").await;
    let mut held = begin_turn(bench.new.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert!(bench.force_release("s1").await, "the key is deleted");
    assert_eq!(
        turn(bench.new.addr(), "s1", "plain:x").await.status,
        200,
        "the next turn comes in"
    );
    assert_eq!(
        bench.backend.max_overlap("s1"),
        2,
        "beside the first one, of which nobody was told"
    );
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "without an extension that runs to its end"
    );
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn a_turn_that_python_released_by_force_is_cut_when_it_is_next_extended() {
    let bench = Migration::start(EXTENDED).await;
    let mut held = begin_turn(bench.new.addr(), "s1", "hang-middle").await;
    held.read_until(&event(0)).await;
    assert!(bench.force_release("s1").await, "the key is deleted");
    let answer = held.answer().await;
    assert!(
        !answer.whole && answer.text() == events(1),
        "it is aborted: {answer:?}"
    );
    bench.backend.gone("s1").await;
    assert_eq!(
        bench.old_turn("s1", "plain:x").await.status,
        200,
        "and the session is free"
    );
}

#[tokio::test]
async fn turns_of_both_kinds_never_overlap_under_load() {
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
                            // As `retry-after` asks for, in small: a turn takes some 10 ms.
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
        "both kinds had turns, and were in each other's way: {old}, {new}, {refusals}"
    );
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        assert_eq!(
            bench.backend.max_overlap(&session),
            1,
            "never two at once: {session}"
        );
    }
    is_quiet(&bench.redis).await;
}
