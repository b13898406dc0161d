//! The wait queue as clients see it: order across replicas, disconnects, limits, and holders and
//! messages that fail.

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys, waiting};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const BLOCKING: &str = "[lock]\nblocking = true\n";

async fn start(replicas: usize, lock: &str) -> Bench<Redis> {
    let config = format!("{lock}{CHAT}");
    Setup::new(&config).replicas(replicas).on_redis().await
}

impl Bench<Redis> {
    /// Starts turn `n` on the nth replica and returns when it is in the queue.
    async fn join(&self, session: &str, n: usize, script: &str) -> Client {
        let before = waiting(&self.redis, session).await;
        let mut client = Client::connect(self.replica(n)).await;
        let request = Request::turn(session, script).header("x-n", &n.to_string());
        client.send(&request).await;
        wait_for_queue_length(&self.redis, session, before + 1).await;
        client
    }

    /// The numbers of the waiters, in the order in which the backend received their turns.
    fn served(&self, session: &str) -> Vec<usize> {
        numbers(&self.backend, session)
    }
}

fn numbers(backend: &Backend, session: &str) -> Vec<usize> {
    let mut turns = backend.turns(session);
    turns.retain(|turn| turn.began.is_some());
    turns.sort_by_key(|turn| turn.began);
    let headers = turns.iter().flat_map(|turn| &turn.headers);
    headers
        .filter(|(name, _)| name == "x-n")
        .map(|(_, n)| n.parse().expect("a number"))
        .collect()
}

#[tokio::test]
async fn a_served_waiter_reports_its_wait_in_server_timing() {
    let bench = start(2, BLOCKING).await;
    let first = turn(bench.replica(0), "s1", "plain:x").await;
    assert_eq!(
        first.header("server-timing"),
        None,
        "a turn on a free session reports no wait"
    );
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.join("s1", 1, "plain:mine").await;
    bench.backend.open_gate("s1");
    assert!(
        holder.answer().await.whole,
        "a waiter doesn't disturb the holder"
    );
    let answer = waiter.answer().await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "mine"),
        "the waiter gets its own response"
    );
    let timing = answer
        .header("server-timing")
        .expect("a turn that waited has a server-timing header");
    let waited = timing
        .strip_prefix("lock;dur=")
        .expect("the header names the lock wait");
    assert!(
        waited.parse::<f64>().is_ok(),
        "the wait is a number of milliseconds: {timing}"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn the_memory_store_serves_every_waiter_once() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{BLOCKING}{CHAT}"));
    let mut holder = begin_turn(app.addr(), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..20 {
        let mut client = Client::connect(app.addr()).await;
        let request = Request::turn("s1", "plain:x").header("x-n", &n.to_string());
        client.send(&request).await;
        // The memory store can't be asked for its queue: a completed turn proves that `client` is
        // in it.
        let probe = Request::turn("other", "plain:x");
        Client::connect(app.addr()).await.call(&probe).await;
        waiters.push(client);
    }
    backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        backend.max_overlap("s1"),
        1,
        "turns of one session run one after another"
    );
    assert_eq!(
        numbers(&backend, "s1").len(),
        20,
        "each waiter is served exactly once"
    );
}

#[tokio::test]
async fn waiters_are_served_in_order_of_arrival_across_replicas() {
    let bench = start(3, BLOCKING).await;
    let _holder = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..60 {
        waiters.push(bench.join("s1", n, "plain:x").await);
    }
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        bench.served("s1"),
        (0..60).collect::<Vec<_>>(),
        "waiters are served in order of arrival across replicas"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_waiter_whose_client_disconnects_leaves_the_queue_and_never_starts() {
    let bench = start(2, BLOCKING).await;
    let _holder = bench.hold("s1").await;
    let _first = bench.join("s1", 0, "plain:x").await;
    let leaver = bench.join("s1", 1, "plain:x").await;
    let mut last = bench.join("s1", 2, "plain:x").await;
    leaver.close();
    wait_for_queue_length(&bench.redis, "s1", 2).await;
    bench.backend.open_gate("s1");
    assert_eq!(
        last.answer().await.status,
        200,
        "the waiters behind it move up"
    );
    assert_eq!(
        bench.served("s1"),
        [0, 2],
        "its turn never reaches the backend"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn the_store_is_empty_after_all_clients_disconnect() {
    let bench = start(2, BLOCKING).await;
    let holder = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..10 {
        waiters.push(bench.join("s1", n, "plain:x").await);
    }
    drop(waiters);
    wait_for_queue_length(&bench.redis, "s1", 0).await;
    holder.close();
    bench.wait_until_no_keys().await;
    assert_eq!(
        bench.served("s1"),
        [0; 0],
        "no disconnected waiter was served"
    );
}

#[tokio::test]
async fn a_turn_waits_no_longer_than_blocking_timeout() {
    let bench = start(2, "[lock]\nblocking = true\nblocking_timeout = \"300ms\"\n").await;
    let _holder = bench.hold("s1").await;
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_eq!(
        answer.error(),
        (429, "wait_timeout"),
        "a turn that waited too long is refused with 429"
    );
    assert_eq!(
        answer.json()["error"],
        "AI 正在思考中，请稍后再试",
        "the error response has the message of [busy]"
    );
    wait_for_queue_length(&bench.redis, "s1", 0).await;
    bench.backend.open_gate("s1");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_turn_beyond_max_waiters_is_refused() {
    let bench = start(2, "[lock]\nblocking = true\nmax_waiters = 2\n").await;
    let _holder = bench.hold("s1").await;
    let mut waiters = [
        bench.join("s1", 0, "plain:x").await,
        bench.join("s1", 1, "plain:x").await,
    ];
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_eq!(answer.error(), (429, "queue_full"), "the queue is full");
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(
            waiter.answer().await.status,
            200,
            "the turns in the queue are served"
        );
    }
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_non_blocking_turn_never_overtakes_a_waiter() {
    let config = format!(
        "{CHAT}blocking = true\n\n[[routes]]\nname = \"hasty\"\npath = \"/hasty\"\nsession_id = [\"{{body:/session_id}}\"]\nuser_id = [\"{{body:/user_id}}\"]\n"
    );
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, &config);
    // A foreign holder that releases without a message: the lock is free while a turn waits.
    redis
        .command(&["SET", &key("s1"), "python", "PX", "60000"])
        .await;
    let mut waiter = begin_turn(app.addr(), "s1", "gate").await;
    wait_for_queue_length(&redis, "s1", 1).await;
    redis.command(&["DEL", &key("s1")]).await;
    let mut hasty = Client::connect(app.addr()).await;
    let answer = hasty
        .call(&Request::post("/hasty").json(r#"{"session_id":"s1","user_id":"u1"}"#))
        .await;
    assert_eq!(
        answer.error(),
        (429, "session_busy"),
        "the lock goes to the waiter"
    );
    waiter.read_until(&event(0)).await;
    backend.open_gate("s1");
    assert!(waiter.answer().await.whole, "the waiter is served at once");
}

#[tokio::test]
async fn waiters_notice_a_release_without_a_message() {
    let bench = start(2, BLOCKING).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "python", "PX", "60000"])
        .await;
    let mut waiters = [
        bench.join("s1", 0, "plain:x").await,
        bench.join("s1", 1, "plain:x").await,
    ];
    bench.redis.command(&["DEL", &key("s1")]).await;
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "the queue moves on");
    }
    assert_eq!(bench.served("s1"), [0, 1], "waiters are served in order");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn waiters_notice_an_expired_lease() {
    let bench = start(1, BLOCKING).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "somebody who died", "PX", "400"])
        .await;
    let mut waiter = bench.join("s1", 0, "plain:x").await;
    assert_eq!(waiter.answer().await.status, 200, "the queue moves on");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn draining_refuses_waiters_at_once_and_lets_the_holder_finish() {
    let bench = start(2, BLOCKING).await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.join("s1", 0, "plain:x").await;
    let mut other = bench.join("s1", 1, "plain:x").await;
    let stopping = tokio::spawn(bench.app.stop());
    let answer = waiter.answer().await;
    assert_eq!(
        answer.error(),
        (503, "draining"),
        "draining refuses a waiter, and the client can retry elsewhere"
    );
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the running turn finishes");
    assert_eq!(
        other.answer().await.status,
        200,
        "a waiter on another replica is next"
    );
    let stopped = stopping.await.expect("no panic");
    assert!(
        stopped.in_time && stopped.all_released,
        "the drain finishes in time with all locks released: {stopped:?}"
    );
    wait_until_no_keys(&bench.redis).await;
    assert_eq!(bench.backend.overlaps(), [], "turns never overlapped");
}

#[tokio::test]
async fn a_lost_message_delays_a_waiter_for_a_bounded_time() {
    let bench = start(2, BLOCKING).await;
    for round in 0..3 {
        let mut holder = bench.hold("s1").await;
        let mut waiter = bench.join("s1", 1, "plain:x").await;
        // Messages are lost from now on, until each instance reconnects by itself.
        let killed = bench
            .redis
            .command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .await;
        let killed: i64 = redis::from_redis_value(killed).expect("a count");
        assert_eq!(killed, 2, "each instance has one subscription");
        bench.backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the holder isn't affected");
        assert_eq!(
            waiter.answer().await.status,
            200,
            "the waiter is served without the message: {round}"
        );
        let back = async || {
            let clients = bench.redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            let clients: String = redis::from_redis_value(clients.await).expect("a list");
            clients.lines().count() == 2
        };
        wait_for_async(back, "both instances subscribe again").await;
    }
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn waiters_keep_their_places_when_connections_are_lost() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let network = FaultProxy::start(redis.addr()).await;
    let through = format!("redis://{}/0", network.addr());
    let config = format!("{BLOCKING}{CHAT}");
    let apps = [(); 2].map(|()| App::start(&backend.url(), &through, "", &config));
    let mut holder = begin_turn(apps[0].addr(), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..10 {
        let mut client = Client::connect(apps[n % 2].addr()).await;
        let request = Request::turn("s1", "plain:x").header("x-n", &n.to_string());
        client.send(&request).await;
        wait_for_queue_length(&redis, "s1", n + 1).await;
        waiters.push(client);
    }
    for _ in 0..5 {
        network.cut().await;
        network.set(Mode::Reset).await;
        network.set(Mode::Pass).await;
    }
    wait_for_queue_length(&redis, "s1", 10).await;
    backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        numbers(&backend, "s1").len(),
        10,
        "each waiter is served exactly once"
    );
    assert_eq!(
        backend.max_overlap("s1"),
        1,
        "turns of one session run one after another"
    );
}

#[tokio::test]
async fn a_queue_that_redis_lost_is_rebuilt_in_the_same_order() {
    let bench = start(2, BLOCKING).await;
    let mut holder = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        waiters.push(bench.join("s1", n, "plain:x").await);
    }
    let suffixed = |what: &str| format!("{{{}}}:1:{what}", key("s1"));
    bench
        .redis
        .command(&["DEL", &suffixed("queue"), &suffixed("waiters")])
        .await;
    wait_for_queue_length(&bench.redis, "s1", 6).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        bench.served("s1"),
        [0, 1, 2, 3, 4, 5],
        "the rebuilt queue keeps the order of arrival"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_client_that_disconnects_after_a_large_body_leaves_the_queue() {
    let config = "[[routes]]\nname = \"chat\"\npath = \"/chat\"\nblocking = true\n\
                  session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, config);
    let request = |script: &str| {
        Request::post("/chat")
            .header("x-test-session", "s1")
            .header("x-test-script", script)
    };
    let mut holder = Client::connect(app.addr()).await;
    holder.send(&request("gate")).await;
    holder.read_until(&event(0)).await;
    let mut leaver = Client::connect(app.addr()).await;
    // More than the socket buffers hold, and less than the proxy reads ahead.
    leaver
        .send(&request("plain:x").body(vec![b'x'; 8 << 20]))
        .await;
    wait_for_queue_length(&redis, "s1", 1).await;
    let mut stayer = Client::connect(app.addr()).await;
    let body: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    stayer.send(&request("plain:x").body(body.clone())).await;
    wait_for_queue_length(&redis, "s1", 2).await;
    leaver.close();
    wait_for_queue_length(&redis, "s1", 1).await;
    backend.open_gate("s1");
    assert_eq!(
        stayer.answer().await.status,
        200,
        "the waiter that stays is served"
    );
    let turns = backend.turns("s1");
    assert_eq!(turns.len(), 2, "the disconnected waiter isn't served");
    assert!(
        turns[1].body == body,
        "a body that was read ahead arrives complete and in order"
    );
    wait_until_no_keys(&redis).await;
}
