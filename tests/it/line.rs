//! Waiting in line: order across replicas, leaving, limits, holders and messages that can't be
//! relied on.

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key, waiting};
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
    /// A turn that waits, on the nth replica and as number n; returns when it is in the line.
    async fn join(&self, session: &str, n: usize, script: &str) -> Client {
        let before = waiting(&self.redis, session).await;
        let mut client = Client::connect(self.replica(n)).await;
        let request = Request::turn(session, script).header("x-n", &n.to_string());
        client.send(&request).await;
        is_waiting(&self.redis, session, before + 1).await;
        client
    }

    /// The numbers of the turns that waited, in the order in which they began at the backend.
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
async fn a_turn_that_waited_is_served_and_says_how_long_it_waited() {
    let bench = start(2, BLOCKING).await;
    let first = turn(bench.replica(0), "s1", "plain:x").await;
    assert_eq!(
        first.header("server-timing"),
        None,
        "a free session is not waited for"
    );
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.join("s1", 1, "plain:mine").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't disturbed");
    let answer = waiter.answer().await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "mine"),
        "the waiter gets its answer"
    );
    let timing = answer.header("server-timing").expect("it waited");
    let waited = timing.strip_prefix("lock;dur=").expect("for its lock");
    assert!(waited.parse::<f64>().is_ok(), "in milliseconds: {timing}");
    bench.is_quiet().await;
}

#[tokio::test]
async fn in_memory_turns_wait_in_order_too() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{BLOCKING}{CHAT}"));
    let mut holder = begin_turn(app.addr(), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..20 {
        let mut client = Client::connect(app.addr()).await;
        let request = Request::turn("s1", "plain:x").header("x-n", &n.to_string());
        client.send(&request).await;
        // Nothing tells that a turn is in the line but that a refused one has had its answer.
        let probe = Request::turn("other", "plain:x");
        Client::connect(app.addr()).await.call(&probe).await;
        waiters.push(client);
    }
    backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(backend.max_overlap("s1"), 1, "one after another");
    assert_eq!(
        numbers(&backend, "s1").len(),
        20,
        "each of them exactly once"
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
        "whichever replica they came to"
    );
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_waiter_whose_client_leaves_is_out_of_the_line_and_never_starts() {
    let bench = start(2, BLOCKING).await;
    let _holder = bench.hold("s1").await;
    let _first = bench.join("s1", 0, "plain:x").await;
    let leaver = bench.join("s1", 1, "plain:x").await;
    let mut last = bench.join("s1", 2, "plain:x").await;
    leaver.close();
    is_waiting(&bench.redis, "s1", 2).await;
    bench.backend.open_gate("s1");
    assert_eq!(last.answer().await.status, 200, "those behind it move up");
    assert_eq!(
        bench.served("s1"),
        [0, 2],
        "and its turn never reaches the backend"
    );
    bench.is_quiet().await;
}

#[tokio::test]
async fn all_leave_and_nothing_is_left() {
    let bench = start(2, BLOCKING).await;
    let holder = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..10 {
        waiters.push(bench.join("s1", n, "plain:x").await);
    }
    drop(waiters);
    is_waiting(&bench.redis, "s1", 0).await;
    holder.close();
    bench.is_quiet().await;
    assert_eq!(bench.served("s1"), [0; 0], "nobody who left was served");
}

#[tokio::test]
async fn a_turn_waits_no_longer_than_its_route_says() {
    let bench = start(2, "[lock]\nblocking = true\nblocking_timeout = \"300ms\"\n").await;
    let _holder = bench.hold("s1").await;
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_eq!(
        answer.error(),
        (429, "wait_timeout"),
        "then it is refused as busy"
    );
    assert_eq!(
        answer.json()["error"],
        "AI 正在思考中，请稍后再试",
        "with the sentence of [busy]"
    );
    is_waiting(&bench.redis, "s1", 0).await;
    bench.backend.open_gate("s1");
    bench.is_quiet().await;
}

#[tokio::test]
async fn one_more_than_may_wait_is_refused() {
    let bench = start(2, "[lock]\nblocking = true\nmax_waiters = 2\n").await;
    let _holder = bench.hold("s1").await;
    let mut waiters = [
        bench.join("s1", 0, "plain:x").await,
        bench.join("s1", 1, "plain:x").await,
    ];
    let answer = turn(bench.replica(1), "s1", "plain:x").await;
    assert_eq!(answer.error(), (429, "queue_full"), "the line is full");
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(
            waiter.answer().await.status,
            200,
            "those who wait are served"
        );
    }
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_turn_that_does_not_wait_never_jumps_the_line() {
    let config = format!(
        "{CHAT}blocking = true\n\n[[routes]]\nname = \"hasty\"\npath = \"/hasty\"\nsession_id = [\"{{body:/session_id}}\"]\nuser_id = [\"{{body:/user_id}}\"]\n"
    );
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let app = App::on_redis(&backend, &redis, &config);
    // A holder that tells nobody when it is gone: the lock is free, and somebody waits.
    redis
        .command(&["SET", &key("s1"), "python", "PX", "60000"])
        .await;
    let mut waiter = begin_turn(app.addr(), "s1", "gate").await;
    is_waiting(&redis, "s1", 1).await;
    redis.command(&["DEL", &key("s1")]).await;
    let mut hasty = Client::connect(app.addr()).await;
    let answer = hasty
        .call(&Request::post("/hasty").json(r#"{"session_id":"s1","user_id":"u1"}"#))
        .await;
    assert_eq!(
        answer.error(),
        (429, "session_busy"),
        "the lock goes to the one who waits"
    );
    waiter.read_until(&event(0)).await;
    backend.open_gate("s1");
    assert!(waiter.answer().await.whole, "who is served at once");
}

#[tokio::test]
async fn a_holder_that_tells_nobody_when_it_is_gone_is_noticed() {
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
        assert_eq!(waiter.answer().await.status, 200, "the line goes on");
    }
    assert_eq!(bench.served("s1"), [0, 1], "in order");
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_lease_that_runs_out_is_noticed_by_those_who_wait() {
    let bench = start(1, BLOCKING).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "somebody who died", "PX", "400"])
        .await;
    let mut waiter = bench.join("s1", 0, "plain:x").await;
    assert_eq!(waiter.answer().await.status, 200, "the line goes on");
    bench.is_quiet().await;
}

#[tokio::test]
async fn draining_sends_waiters_away_at_once_and_lets_the_holder_end() {
    let bench = start(2, BLOCKING).await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.join("s1", 0, "plain:x").await;
    let mut other = bench.join("s1", 1, "plain:x").await;
    let stopping = tokio::spawn(bench.app.stop());
    let answer = waiter.answer().await;
    assert_eq!(
        answer.error(),
        (503, "draining"),
        "another replica has time to wait"
    );
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the running turn may end");
    assert_eq!(
        other.answer().await.status,
        200,
        "and who waits elsewhere comes next"
    );
    let stopped = stopping.await.expect("no panic");
    assert!(
        stopped.in_time && stopped.all_released,
        "nothing is left of it: {stopped:?}"
    );
    is_quiet(&bench.redis).await;
    assert_eq!(bench.backend.overlaps(), [], "turns never overlapped");
}

#[tokio::test]
async fn a_message_that_is_lost_costs_a_bounded_wait() {
    let bench = start(2, BLOCKING).await;
    for round in 0..3 {
        let mut holder = bench.hold("s1").await;
        let mut waiter = bench.join("s1", 1, "plain:x").await;
        // Nobody hears what is said from now on; each instance connects anew by itself.
        let killed = bench
            .redis
            .command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .await;
        let killed: i64 = redis::from_redis_value(killed).expect("a count");
        assert_eq!(killed, 2, "one subscription for each instance");
        bench.backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the holder isn't concerned");
        assert_eq!(
            waiter.answer().await.status,
            200,
            "the waiter is served nevertheless: {round}"
        );
        let back = async || {
            let clients = bench.redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            let clients: String = redis::from_redis_value(clients.await).expect("a list");
            clients.lines().count() == 2
        };
        wait_for_async(back, "both instances listen again").await;
    }
    bench.is_quiet().await;
}

#[tokio::test]
async fn waiters_keep_their_order_when_connections_are_lost() {
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
        is_waiting(&redis, "s1", n + 1).await;
        waiters.push(client);
    }
    for _ in 0..5 {
        network.cut().await;
        network.set(Mode::Reset).await;
        network.set(Mode::Pass).await;
    }
    is_waiting(&redis, "s1", 10).await;
    backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        numbers(&backend, "s1").len(),
        10,
        "each of them exactly once"
    );
    assert_eq!(backend.max_overlap("s1"), 1, "one after another");
}

#[tokio::test]
async fn a_line_that_redis_has_forgotten_is_made_again_in_the_same_order() {
    let bench = start(2, BLOCKING).await;
    let mut holder = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        waiters.push(bench.join("s1", n, "plain:x").await);
    }
    let beside = |what: &str| format!("{{{}}}:{what}", key("s1"));
    bench
        .redis
        .command(&["DEL", &beside("queue"), &beside("waiters")])
        .await;
    is_waiting(&bench.redis, "s1", 6).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't concerned");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "every waiter is served");
    }
    assert_eq!(
        bench.served("s1"),
        [0, 1, 2, 3, 4, 5],
        "in order of arrival"
    );
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_store_that_is_gone_for_long_sends_waiters_away() {
    let mut bench = start(1, BLOCKING).await;
    let _holder = bench.hold("s1").await;
    let mut waiter = bench.join("s1", 0, "plain:x").await;
    bench.redis.kill();
    let answer = waiter.answer().await;
    assert_eq!(
        answer.error(),
        (503, "store_unavailable"),
        "nobody waits for what can't come"
    );
    bench.redis.restart().await;
    bench.backend.open_gate("s1");
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_client_that_leaves_behind_a_large_body_is_out_of_the_line_too() {
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
    // More than the buffers between the two hold, and less than is read ahead.
    leaver
        .send(&request("plain:x").body(vec![b'x'; 8 << 20]))
        .await;
    is_waiting(&redis, "s1", 1).await;
    let mut stayer = Client::connect(app.addr()).await;
    let body: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    stayer.send(&request("plain:x").body(body.clone())).await;
    is_waiting(&redis, "s1", 2).await;
    leaver.close();
    is_waiting(&redis, "s1", 1).await;
    backend.open_gate("s1");
    assert_eq!(stayer.answer().await.status, 200, "who stays is served");
    let turns = backend.turns("s1");
    assert_eq!(turns.len(), 2, "and who left is not");
    assert!(
        turns[1].body == body,
        "a body that was read ahead arrives whole and in order"
    );
    is_quiet(&redis).await;
}
