//! Taking waiters out of a queue: what their clients get, and what goes on.

use serde_json::json;

use super::{call, get, start};
use crate::support::app::{App, CHAT, key, wait_for_queue_length, waiting};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Replicas, hold};
use crate::support::client::{Answer, Client, Request, begin_turn};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const WAIT: &str = "[lock]\nblocking = true\n";

impl Bench<Redis> {
    /// A turn with this request id that waits on the nth replica, as number `place` in the queue.
    async fn enqueue(&self, n: usize, request: &str, place: usize) -> Client {
        let mut client = Client::connect(self.replica(n)).await;
        client.send(&waiter(request)).await;
        wait_for_queue_length(&self.redis, "s1", place).await;
        client
    }

    /// The request ids of the session's waiters, in order.
    async fn queue(&self) -> Vec<String> {
        let shown = get(self.operator(), "/locks/u1/s1").await.json();
        let queue = shown["queue"].as_array().expect("a held lock has a queue");
        let ids = queue.iter().map(|waiter| waiter["request_id"].as_str());
        ids.map(|id| id.expect("a request id").to_owned()).collect()
    }

    async fn dequeue(&self, request: &str) -> Answer {
        let target = format!("/locks/u1/s1/queue/{request}");
        call(self.operator(), "DELETE", &target).await
    }
}

fn waiter(request: &str) -> Request {
    Request::turn("s1", &format!("plain:{request}")).header("x-request-id", request)
}

fn assert_dequeued(answer: &Answer) {
    assert_eq!(answer.error(), (409, "dequeued"), "{answer:?}");
    assert_eq!(
        answer.header("x-should-retry"),
        Some("false"),
        "clients that retry after 409 don't join the queue again: {answer:?}"
    );
}

#[tokio::test]
async fn a_waiter_on_any_replica_is_taken_out_and_the_others_go_on() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for (n, request) in ["r0", "r1", "r2", "r3"].into_iter().enumerate() {
        // The operator's own replica has every second one.
        waiters.push(bench.enqueue(n % 2, request, n + 1).await);
    }
    for (at, request, left) in [(1, "r1", &["r0", "r2", "r3"][..]), (2, "r2", &["r0", "r3"])] {
        let done = bench.dequeue(request).await;
        let expected = json!({"dequeued": true, "key": key("s1")});
        assert_eq!((done.status, done.json()), (200, expected), "{done:?}");
        assert_dequeued(&waiters[at].answer().await);
        assert_eq!(bench.queue().await, left, "it is in the queue no more");
        let again = bench.dequeue(request).await;
        assert_eq!(again.error(), (404, "not_waiting"), "{again:?}");
    }
    for replica in [bench.app.admin(), bench.operator()] {
        let metrics = get(replica, "/metrics").await.text();
        let counts = metrics
            .lines()
            .filter(|line| line.contains("outcome=\"dequeued\""));
        let counts: Vec<_> = counts.filter(|line| line.ends_with(" 1")).collect();
        assert_eq!(counts.len(), 1, "each replica counts its own: {metrics}");
    }
    let status = get(bench.app.admin(), "/status").await.json();
    assert_eq!(
        status["recent"][0]["outcome"], "dequeued",
        "the replica lists it among its refusals: {status}"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
    for (at, request) in [(0, "r0"), (3, "r3")] {
        let answer = waiters[at].answer().await;
        assert_eq!(answer.text(), request, "the others are served: {answer:?}");
    }
    assert_eq!(
        bench.backend.turns("s1").len(),
        3,
        "the backend never sees a turn that was taken out"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_waiter_whose_message_is_lost_does_not_join_the_queue_again() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let mut out = bench.enqueue(0, "r1", 1).await;
    let [queue, waiters] = ["queue", "waiters"].map(|name| format!("{{{}}}:1:{name}", key("s1")));
    // As the script leaves the session, without any message.
    let take_out = "local id = redis.call('ZRANGE', KEYS[1], 0, 0)[1] \
                    redis.call('ZREM', KEYS[1], id) \
                    redis.call('HSET', KEYS[2], id, '-', '!', 0)";
    bench
        .redis
        .command(&["EVAL", take_out, "2", &queue, &waiters])
        .await;
    assert_dequeued(&out.answer().await);
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_that_has_the_lock_is_not_taken_out() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let mut held = Client::connect(bench.replica(0)).await;
    let request = Request::turn("s1", "gate").header("x-request-id", "r1");
    held.send(&request).await;
    held.read_until(&event(0)).await;
    let mut next = bench.enqueue(0, "r2", 1).await;
    let refused = bench.dequeue("r1").await;
    assert_eq!(refused.error(), (404, "not_waiting"), "{refused:?}");
    assert!(
        refused
            .text()
            .contains("it has the lock now; `seriatim locks interrupt` stops it"),
        "the error says why: {}",
        refused.text()
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "its turn isn't stopped");
    assert_eq!(next.answer().await.text(), "r2", "and the next is served");
    for target in ["/locks/u1/s1/queue/r2", "/locks/u1/nobody/queue/r"] {
        let refused = call(bench.operator(), "DELETE", target).await;
        assert_eq!(refused.error(), (404, "not_waiting"), "{refused:?}");
    }
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_waiter_is_named_by_any_id_and_under_any_key() {
    let second = "\n[[routes]]\nname = \"plan\"\npath = \"/plan\"\nkey = \"plan:{session_id}\"\n\
                  session_id = [\"{body:/session_id}\"]\n";
    let bench = start(&format!("{WAIT}{CHAT}{second}")).await;
    let _chat = bench.hold("s1").await;
    let body = r#"{"session_id":"s1","user_id":"u1"}"#;
    let plan = |id: &str, script: &str| {
        Request::post("/plan")
            .header("x-test-script", script)
            .header("x-request-id", id)
            .json(body)
    };
    let mut holder = Client::connect(bench.replica(0)).await;
    holder.send(&plan("h", "gate")).await;
    holder.read_until(&event(0)).await;
    for (id, target) in [
        ("a/b?c#d", "/locks/u1/s1/queue/a%2Fb%3Fc%23d"),
        ("..", "/locks/u1/s1/queue/-?request_id=.."),
        ("-", "/locks/u1/s1/queue/-"),
        ("same", "/locks/u1/s1/queue/same?request_id=same"),
        ("r", "/locks/-/-/queue/r?key=plan:s1"),
    ] {
        let mut out = Client::connect(bench.replica(1)).await;
        out.send(&plan(id, "plain:x")).await;
        let waits = async || {
            let shown = get(bench.operator(), "/locks/-/-?key=plan:s1").await.json();
            shown["queue"][0]["request_id"] == id
        };
        wait_for_async(waits, "the turn waits").await;
        let done = call(bench.operator(), "DELETE", target).await;
        let expected = json!({"dequeued": true, "key": "plan:s1"});
        assert_eq!((done.status, done.json()), (200, expected), "{id:?}");
        assert_dequeued(&out.answer().await);
    }
    // A client may give several requests one id.
    let mut out = [
        bench.enqueue(0, "twice", 1).await,
        bench.enqueue(1, "twice", 2).await,
    ];
    let done = bench.dequeue("twice").await;
    assert_eq!(done.status, 200, "{done:?}");
    for out in &mut out {
        assert_dequeued(&out.answer().await);
    }
}

#[tokio::test]
async fn the_memory_store_takes_waiters_out() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{WAIT}{CHAT}"));
    let mut held = hold(app.addr(), "s1").await;
    let mut out = Client::connect(app.addr()).await;
    out.send(&waiter("r1")).await;
    app.wait_for_waiters(1).await;
    let done = call(app.admin(), "DELETE", "/locks/u1/s1/queue/r1").await;
    assert_eq!(done.json()["dequeued"], true, "{done:?}");
    assert_dequeued(&out.answer().await);
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_waiter_of_a_replica_that_crashed_is_removed() {
    let bench = Replicas::on_redis().await;
    let alive = bench.replica("", WAIT);
    let dead: Process = bench.process("instance = \"dead\"", WAIT);
    let mut held = hold(alive.addr(), "s1").await;
    let mut gone = Client::connect(dead.addr()).await;
    gone.send(&waiter("r1")).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    dead.signal("KILL");
    let done = call(alive.admin(), "DELETE", "/locks/u1/s1/queue/r1").await;
    assert_eq!(done.json()["dequeued"], true, "{done:?}");
    assert_eq!(waiting(&bench.redis, "s1").await, 0, "its entry is gone");
    let mut next = begin_turn(alive.addr(), "s1", "plain:next").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
    assert_eq!(next.answer().await.text(), "next", "the next is served");
}

#[tokio::test]
async fn a_waiter_under_another_prefix_is_not_seen() {
    let bench = Replicas::on_redis().await;
    let own = bench.replica("instance = \"own\"", WAIT);
    let other = bench.replica("instance = \"other\"\nprefix = \"staging:\"", WAIT);
    let mut held = hold(own.addr(), "s1").await;
    let mut waits = Client::connect(other.addr()).await;
    waits.send(&waiter("r1")).await;
    other.wait_for_waiters(1).await;
    let refused = call(own.admin(), "DELETE", "/locks/u1/s1/queue/r1").await;
    assert_eq!(refused.error(), (404, "not_waiting"), "{refused:?}");
    assert!(
        refused.text().contains("another store.prefix"),
        "the error names the cause: {}",
        refused.text()
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
    assert_eq!(waits.answer().await.text(), "r1", "the waiter is served");
}
