//! Operating locks over the admin API: what it lists and shows, what a force release and an
//! interruption do to a turn on another replica, and that they touch nothing else.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::app::{
    App, CHAT, key, wait_for_queue_length, wait_until_no_keys, wait_until_unlocked,
};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

mod access;
mod cluster;
mod command_line;
mod dequeuing;
mod places;

const WAIT: &str = "[lock]\nblocking = true\n";

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config).replicas(2).on_redis().await
}

impl Bench<Redis> {
    /// The admin address of another replica than the one that serves the turns.
    fn operator(&self) -> SocketAddr {
        self.others[0].admin()
    }

    /// Whether the first replica's metrics contain this line.
    async fn has_metric(&self, line: &str) -> bool {
        let text = get(self.app.admin(), "/metrics").await.text();
        text.lines().any(|metric| metric == line)
    }

    /// Waits until the session is free again; no key is without a TTL.
    async fn is_clean(&self, session: &str) {
        for key in self.redis.keys().await {
            assert_ne!(
                self.redis.pttl(&key).await,
                -1,
                "every key has a TTL: {key}"
            );
        }
        wait_until_unlocked(&self.redis, "the turns of the test").await;
        let served = async || turn(self.replica(0), session, "plain:next").await.status == 200;
        wait_for_async(served, "the next turn of the session is served").await;
        wait_until_no_keys(&self.redis).await;
    }
}

async fn call(admin: SocketAddr, method: &str, target: &str) -> Answer {
    let mut client = Client::connect(admin).await;
    client.call(&Request::new(method, target)).await
}

async fn get(admin: SocketAddr, target: &str) -> Answer {
    call(admin, "GET", target).await
}

/// All locks of the list, page by page.
async fn list_locks(admin: SocketAddr, query: &str) -> Vec<Value> {
    let (mut locks, mut next) = (Vec::new(), String::new());
    // There cannot be more pages than keys; more would mean that the cursor never ends.
    for _ in 0..10_000 {
        let answer = get(admin, &format!("/locks?{query}{next}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        locks.extend(page["locks"].as_array().expect("a list").iter().cloned());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => {
                assert!(page["next"].is_null(), "`next` is text or null: {page}");
                return locks;
            }
        }
    }
    panic!("the cursor never ends");
}

fn keys(locks: &[Value]) -> BTreeSet<&str> {
    let keys = locks.iter().map(|lock| lock["key"].as_str());
    keys.map(|key| key.expect("a key")).collect()
}

/// Writes a lock to Redis as Python code does.
async fn hold_from_python(redis: &Redis, key: &str) {
    redis
        .command(&["SET", key, "0b7e4c1e", "NX", "PX", "60000"])
        .await;
}

// === list and show ===

#[tokio::test]
async fn a_held_lock_is_listed_with_its_key_ids_holder_and_times() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    let memory = App::in_memory(&bench.backend, CHAT);
    let mut local = begin_turn(memory.addr(), "s1", "gate").await;
    local.read_until(&event(0)).await;
    for (admin, instance) in [(bench.operator(), Some("pod-0")), (memory.admin(), None)] {
        let locks = list_locks(admin, "").await;
        let [lock] = &locks[..] else {
            panic!("exactly one lock is listed: {locks:?}");
        };
        let known = lock.as_object().expect("an object");
        let names: Vec<_> = known.keys().map(String::as_str).collect();
        let mut expected = [
            "key",
            "user_id",
            "session_id",
            "holder",
            "instance",
            "route",
            "request_id",
            "since",
            "fence",
            "age_ms",
            "ttl_ms",
            "waiters",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected, "a lock has exactly these members");
        for (name, value) in [
            ("key", json!(key("s1"))),
            ("user_id", json!("u1")),
            ("session_id", json!("s1")),
            ("holder", json!("seriatim")),
            ("route", json!("chat")),
            ("waiters", json!(0)),
        ] {
            assert_eq!(lock[name], value, "{name} of {lock}");
        }
        if let Some(instance) = instance {
            assert_eq!(
                lock["instance"], instance,
                "the lock names the replica that serves it"
            );
        }
        assert!(
            lock["request_id"].is_string(),
            "the lock names the request: {lock}"
        );
        let since = lock["since"].as_str().expect("`since` is text");
        assert!(
            since.ends_with('Z') && since.len() == 24,
            "`since` is RFC 3339: {since}"
        );
        let number = |name: &str| {
            lock[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name}: {lock}"))
        };
        assert!(
            number("fence") > 1_700_000_000_000_000,
            "the fence comes from the clock"
        );
        assert!(
            number("age_ms") + number("ttl_ms") <= 300_000 && number("ttl_ms") > 200_000,
            "the TTL is that of a lease of 300 s: {lock}"
        );
    }
    for _ in 0..2 {
        bench.backend.open_gate("s1");
    }
    for turn in [&mut held, &mut local] {
        assert!(
            turn.answer().await.whole,
            "listing locks does not disturb their turns"
        );
    }
    let none = async || list_locks(bench.operator(), "").await.is_empty();
    wait_for_async(none, "a turn that has ended leaves the list").await;
}

#[tokio::test]
async fn a_lock_is_shown_with_its_queue_in_order() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let free = get(bench.operator(), "/locks/u1/s1").await;
    assert_eq!(
        (free.status, free.json()),
        (
            200,
            json!({"locked": false, "key": key("s1"), "user_id": "u1", "session_id": "s1", "waiters": 0})
        ),
        "a free lock can be shown, too"
    );
    let _held = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..3 {
        let addr = bench.replica(n);
        let request = Request::turn("s1", "plain:x").header("x-request-id", &format!("r{n}"));
        let mut client = Client::connect(addr).await;
        client.send(&request).await;
        waiters.push(client);
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
    }
    let shown = get(bench.operator(), "/locks/u1/s1").await;
    assert_eq!(
        shown.header("content-type"),
        Some("application/json; charset=utf-8"),
        "the detail is JSON"
    );
    assert_eq!(
        shown.header("cache-control"),
        Some("no-store"),
        "the detail must not be cached"
    );
    let shown = shown.json();
    assert_eq!(
        (&shown["locked"], &shown["waiters"]),
        (&json!(true), &json!(3)),
        "{shown}"
    );
    let queue: Vec<_> = shown["queue"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|waiter| {
            assert!(
                waiter["since"].is_string() && waiter["route"] == "chat",
                "{waiter}"
            );
            (
                waiter["instance"].as_str().expect("the waiter's replica"),
                waiter["request_id"].as_str().expect("the waiter's request"),
            )
        })
        .collect();
    assert_eq!(
        queue,
        [("pod-0", "r0"), ("pod-1", "r1"), ("pod-0", "r2")],
        "the queue lists waiters in order of arrival"
    );
    let head = call(bench.operator(), "HEAD", "/locks/u1/s1").await;
    assert_eq!(
        (head.status, head.body.len()),
        (200, 0),
        "HEAD answers as GET, without a body"
    );
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "each waiter is served");
    }
}

#[tokio::test]
async fn the_cursor_lists_all_of_a_thousand_locks_among_other_keys() {
    let bench = start(CHAT).await;
    let fill = "for n = 1, 1000 do \
                  redis.call('SET', 'lock:session:User' .. n % 10 .. ':s' .. n, 'x', 'PX', 600000) \
                end \
                for n = 1, 5000 do redis.call('SET', 'cache:' .. n, 'x', 'PX', 600000) end";
    bench.redis.command(&["EVAL", fill, "0"]).await;
    for query in ["", "limit=1000", "limit=7"] {
        let locks = list_locks(bench.operator(), query).await;
        assert_eq!(keys(&locks).len(), 1000, "every lock is listed: {query}");
    }
    let found = list_locks(bench.operator(), "search=uSeR3").await;
    assert_eq!(keys(&found).len(), 100, "the search ignores case");
    let found = list_locks(bench.operator(), "search=s99").await;
    assert_eq!(
        keys(&found).len(),
        11,
        "the search finds s99 and s990 to s999"
    );
    assert!(
        list_locks(bench.operator(), "search=lock:")
            .await
            .is_empty(),
        "the search looks at ids, not at the whole key"
    );
    let page = get(bench.operator(), "/locks?limit=1").await.json();
    let count = page["locks"].as_array().expect("a list").len();
    assert!(
        (1..100).contains(&count),
        "a page has about as many locks as requested: {count}"
    );
}

#[tokio::test]
async fn the_lock_of_a_self_test_is_not_listed() {
    let bench = start(CHAT).await;
    let value = |route: &str| {
        let value = json!({
            "format": 1, "claim": "00000000000000aa-1", "instance": "pod-7", "heartbeat": true,
            "route": route, "request": "seriatim-self-test", "since": "2026-11-23T02:00:00.000Z"
        });
        value.to_string()
    };
    // Of two holders that differ in nothing else, the self-test has no route.
    for (session, route) in [("seriatim-self-test-1", ""), ("s1", "chat")] {
        let key = format!("lock:session:unknown:{session}");
        let set = ["SET", &key, &value(route), "PX", "60000"];
        bench.redis.command(&set).await;
    }
    for query in ["", "search=unknown"] {
        let locks = list_locks(bench.operator(), query).await;
        assert_eq!(
            keys(&locks),
            BTreeSet::from(["lock:session:unknown:s1"]),
            "only turns are listed: {query:?}"
        );
    }
}

#[tokio::test]
async fn locks_held_by_other_code_are_listed_and_force_released() {
    let bench = start(CHAT).await;
    hold_from_python(&bench.redis, "lock:session:u1:py").await;
    hold_from_python(&bench.redis, "lock:session:u:1:py").await;
    bench
        .redis
        .command(&["SET", "lock:session:u1:ever", "x"])
        .await;
    bench
        .redis
        .command(&["RPUSH", "lock:session:u1:list", "x"])
        .await;
    let mut locks = list_locks(bench.operator(), "").await;
    locks.sort_by_key(|lock| lock["key"].to_string());
    let brief = |lock: &Value| {
        for none in [
            "instance",
            "route",
            "request_id",
            "since",
            "fence",
            "age_ms",
        ] {
            assert!(
                lock[none].is_null(),
                "{none} is null for a lock of other code: {lock}"
            );
        }
        assert_eq!(lock["holder"], "other", "{lock}");
        (
            lock["key"].clone(),
            lock["user_id"].clone(),
            lock["ttl_ms"].is_u64(),
        )
    };
    let briefly: Vec<_> = locks.iter().map(brief).collect();
    assert_eq!(
        briefly,
        [
            (json!("lock:session:u1:ever"), json!("u1"), false),
            (json!("lock:session:u1:py"), json!("u1"), true),
            (json!("lock:session:u:1:py"), Value::Null, true),
        ],
        "only locks are listed, with what is known about them"
    );
    let found = list_locks(bench.operator(), "search=u:1").await;
    assert_eq!(found.len(), 1, "a lock without ids is found by its key");
    let freed = call(bench.operator(), "DELETE", "/locks/u1/py").await;
    assert_eq!(
        (freed.status, &freed.json()["released"]),
        (200, &json!(true)),
        "{freed:?}"
    );
    assert_eq!(
        bench.redis.get("lock:session:u1:py").await,
        None,
        "the force release frees the lock"
    );
    let freed = call(
        bench.operator(),
        "DELETE",
        "/locks/-/-?key=lock:session:u:1:py",
    )
    .await;
    assert_eq!(
        freed.json()["key"],
        "lock:session:u:1:py",
        "a lock can be released by its key"
    );
    let refused = call(bench.operator(), "POST", "/locks/u1/ever/interrupt").await;
    assert_eq!(
        refused.error(),
        (409, "not_interruptible"),
        "a holder that is not Seriatim cannot be interrupted"
    );
    for key in bench.redis.keys().await {
        let is_theirs = key.ends_with(":ever") || key.ends_with(":list");
        assert!(
            is_theirs || bench.redis.pttl(&key).await != -1,
            "{key} has a TTL"
        );
    }
}

// === force release ===

#[tokio::test]
async fn a_forced_release_through_another_replica_aborts_the_turn() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    let fence = get(bench.operator(), "/locks/u1/s1").await.json()["fence"].as_u64();
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    let body = freed.json();
    assert_eq!(
        (freed.status, &body["released"], &body["key"]),
        (200, &json!(true), &json!(key("s1"))),
        "{freed:?}"
    );
    assert!(
        body["fence"].as_u64() > fence,
        "a force release raises the fence: {body}"
    );
    let answer = held.answer().await;
    assert!(
        answer.status == 200 && !answer.whole,
        "the holder's replica aborts the turn"
    );
    bench.backend.gone("s1").await;
    let has_metric = async || {
        bench
            .has_metric("seriatim_locks_lost_total{reason=\"taken\"} 1")
            .await
    };
    wait_for_async(has_metric, "the holder's replica counts the lost lock").await;
    let again = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(
        (again.status, again.json()),
        (200, json!({"released": false, "key": key("s1")})),
        "releasing a free lock is not an error"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn with_on_lost_continue_a_turn_survives_a_forced_release() {
    let bench = start(&format!("[lock]\non_lost = \"continue\"\n{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "{freed:?}");
    assert_eq!(
        turn(bench.replica(0), "s1", "plain:next").await.status,
        200,
        "the session is free after the force release"
    );
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "the turn goes on without its lock"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_stopped_before_its_response_gets_an_error_with_the_reason() {
    let bench = start(CHAT).await;
    let locks = "/locks/u1/s1";
    for (method, target, expected) in [
        ("DELETE", locks.to_owned(), (503, "lock_lost")),
        ("POST", format!("{locks}/interrupt"), (409, "superseded")),
    ] {
        let mut held = begin_turn(bench.replica(0), "s1", "gate-head").await;
        let is_held = async || get(bench.operator(), locks).await.json()["locked"] == true;
        wait_for_async(is_held, "the turn holds its lock").await;
        let done = call(bench.operator(), method, &target).await;
        assert_eq!(done.json()["released"], true, "{done:?}");
        let answer = held.answer().await;
        assert_eq!(answer.error(), expected, "{method}: {answer:?}");
    }
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_forced_release_hands_the_lock_to_the_first_waiter() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..3 {
        let addr = bench.replica(n);
        waiters.push(begin_turn(addr, "s1", &format!("plain:{n}")).await);
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
    }
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "{freed:?}");
    assert!(!held.answer().await.whole, "the holder's turn is aborted");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        let answer = waiter.answer().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, n.to_string()),
            "waiters are served in order"
        );
    }
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_lock_that_no_text_names_is_not_released_and_the_answer_says_what_to_do() {
    let bench = start(CHAT).await;
    let bytes = "return redis.call('SET', KEYS[1], '\\255\\254raw')";
    let list = "return redis.call('RPUSH', KEYS[1], 'x')";
    for (session, script) in [("s1", bytes), ("s2", list)] {
        bench
            .redis
            .command(&["EVAL", script, "1", &key(session)])
            .await;
        let target = format!("/locks/u1/{session}");
        let refused = call(bench.operator(), "DELETE", &target).await;
        assert_eq!(refused.error(), (409, "unreadable_holder"), "{refused:?}");
        let detail = refused.json()["detail"].to_string();
        assert!(
            detail.contains("delete the key in Redis"),
            "the remedy: {detail}"
        );
    }
}

#[tokio::test]
async fn a_request_id_limits_a_forced_release_to_the_turn_it_names() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    for (method, target) in [("DELETE", ""), ("POST", "/interrupt")] {
        for (field, expected) in [
            ("request_id=another", (409, "holder_changed")),
            ("request_id=", (409, "holder_changed")),
            ("key=", (400, "invalid_key")),
        ] {
            let target = format!("/locks/u1/s1{target}?{field}");
            let refused = call(bench.operator(), method, &target).await;
            assert_eq!(refused.error(), expected, "{method} {field}: {refused:?}");
        }
    }
    hold_from_python(&bench.redis, &key("s2")).await;
    let refused = call(bench.operator(), "DELETE", "/locks/u1/s2?request_id=x").await;
    assert_eq!(
        refused.error(),
        (409, "holder_changed"),
        "a lock of other code has no request id"
    );
    let shown = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(shown["locked"], true, "the holder keeps its lock: {shown}");
    let request = shown["request_id"]
        .as_str()
        .expect("the holder's request id");
    let target = format!("/locks/u1/s1?request_id={request}");
    let freed = call(bench.operator(), "DELETE", &target).await;
    assert_eq!(
        freed.json()["released"],
        true,
        "the named turn loses its lock"
    );
    assert!(!held.answer().await.whole, "and is aborted");
    let freed = call(bench.operator(), "DELETE", &target).await;
    assert_eq!(freed.json()["released"], false, "it holds no lock any more");
}

// === interruption ===

#[tokio::test]
async fn an_interruption_through_another_replica_aborts_and_releases() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(
        (done.status, done.json()),
        (
            200,
            json!({"interrupted": true, "released": true, "key": key("s1")})
        ),
        "the call returns after the release"
    );
    assert_eq!(bench.redis.get(&key("s1")).await, None, "the lock is free");
    assert!(
        !held.answer().await.whole,
        "the response is aborted, not ended"
    );
    bench.backend.gone("s1").await;
    assert!(
        bench
            .has_metric("seriatim_locks_lost_total{reason=\"interrupted\"} 1")
            .await,
        "and the interruption is counted"
    );
    let again = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(
        again.error(),
        (404, "not_locked"),
        "no turn is left to interrupt"
    );
    wait_until_no_keys(&bench.redis).await;
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn with_on_lost_continue_an_interrupted_turn_is_still_aborted() {
    let bench = start(&format!("[lock]\non_lost = \"continue\"\n{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(done.json()["released"], true, "{done:?}");
    assert!(
        !held.answer().await.whole,
        "an interruption ends the turn under any `on_lost`"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn an_interruption_is_sent_again_when_its_first_message_is_lost() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    // Without a subscriber Redis drops the message and reports zero receivers.
    let drop_subscribers = ["CLIENT", "KILL", "TYPE", "pubsub"];
    bench.redis.command(&drop_subscribers).await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(
        done.json()["released"],
        true,
        "the message is sent again: {done:?}"
    );
    assert!(!held.answer().await.whole, "and the turn is aborted");
}

#[tokio::test]
async fn an_interruption_does_not_wait_for_a_holder_whose_instance_is_gone() {
    let bench = start(CHAT).await;
    let token = r#"{"format":1,"claim":"00000000000000aa-1","instance":"gone","heartbeat":true,"route":"chat","request":"r1","since":"2026-11-23T02:00:00.000Z"}"#;
    bench
        .redis
        .command(&["SET", &key("s1"), token, "PX", "60000"])
        .await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(done.error(), (409, "not_interruptible"), "{done:?}");
    let lock = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(
        (&lock["holder"], &lock["instance"], &lock["fence"]),
        (&json!("seriatim"), &json!("gone"), &Value::Null),
        "the lock is shown as Redis has it: {lock}"
    );
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "a force release frees it");
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn the_memory_store_supports_forced_release_and_interruption() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for (method, target) in [
        ("DELETE", "/locks/u1/s1"),
        ("POST", "/locks/u1/s1/interrupt"),
    ] {
        let mut held = begin_turn(app.addr(), "s1", "gate").await;
        held.read_until(&event(0)).await;
        let done = call(app.admin(), method, target).await;
        assert_eq!(
            (done.status, &done.json()["released"]),
            (200, &json!(true)),
            "{method}: {done:?}"
        );
        assert!(!held.answer().await.whole, "{method} aborts the turn");
        let free = get(app.admin(), "/locks/u1/s1").await.json();
        assert_eq!(free["locked"], false, "{method}: {free}");
    }
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "the next turn is served"
    );
}

// === ids and keys ===

#[tokio::test]
async fn locks_are_found_by_ids_of_any_bytes() {
    let bench = start(CHAT).await;
    let ids = [
        "a/b",
        "a:b",
        "%41",
        "{x}",
        "a b",
        "?q=1&r#f",
        "..",
        "锁",
        "\u{1f512}",
        "a\\\"*[?]",
        "a\u{2028}b",
    ];
    let mut running = Vec::new();
    for (n, session) in ids.iter().enumerate() {
        let user = ids[ids.len() - 1 - n];
        let body = json!({ "session_id": session, "user_id": user }).to_string();
        let request = Request::post("/chat").header("x-test-script", "hang-middle");
        let mut client = Client::connect(bench.replica(0)).await;
        client.send(&request.json(&body)).await;
        client.read_until(&event(0)).await;
        running.push((client, user, *session));
    }
    let locks = list_locks(bench.operator(), "limit=3").await;
    let ids = locks
        .iter()
        .map(|lock| (lock["user_id"].as_str(), lock["session_id"].as_str()));
    let expected = running
        .iter()
        .map(|(_, user, session)| (Some(*user), Some(*session)));
    assert_eq!(
        ids.collect::<BTreeSet<_>>(),
        expected.collect::<BTreeSet<_>>(),
        "each lock is listed with its decoded ids"
    );
    let encode = |id: &str| {
        let bytes = id.bytes().map(|byte| format!("%{byte:02X}"));
        bytes.collect::<String>()
    };
    for (client, user, session) in &mut running {
        let target = format!("/locks/{}/{}", encode(user), encode(session));
        let shown = get(bench.operator(), &target).await.json();
        assert_eq!(
            (&shown["locked"], &shown["user_id"], &shown["session_id"]),
            (&json!(true), &json!(user), &json!(session)),
            "each lock is shown by its ids: {shown}"
        );
        let search = format!("search={}", encode(session));
        let found = list_locks(bench.operator(), &search).await;
        assert!(
            found.iter().any(|lock| lock["key"] == shown["key"]),
            "each lock is found by its ids: {found:?}"
        );
        let freed = call(bench.operator(), "DELETE", &target).await;
        assert_eq!(
            freed.json()["released"],
            true,
            "each lock is released by its ids: {freed:?}"
        );
        assert!(
            !client.answer().await.whole,
            "the turn of {user:?} {session:?} is aborted"
        );
    }
}

#[tokio::test]
async fn a_session_with_several_locks_needs_a_key_to_release_one() {
    let second = "\n[[routes]]\nname = \"plan\"\npath = \"/plan\"\nkey = \"plan:{session_id}\"\n\
                  session_id = [\"{body:/session_id}\"]\n";
    let bench = start(&format!("{CHAT}{second}")).await;
    let free = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(
        free["key"],
        key("s1"),
        "a free session shows the key of the first route"
    );
    let mut chat = bench.hold("s1").await;
    let body = r#"{"session_id":"s1","user_id":"u1"}"#;
    let request = Request::post("/plan")
        .header("x-test-script", "gate")
        .json(body);
    let mut plan = Client::connect(bench.replica(0)).await;
    plan.send(&request).await;
    plan.read_until(&event(0)).await;
    let locks = list_locks(bench.operator(), "").await;
    assert_eq!(
        keys(&locks),
        BTreeSet::from(["lock:session:u1:s1", "plan:s1"]),
        "both locks are listed"
    );
    let planned = locks.iter().find(|lock| lock["key"] == "plan:s1");
    assert!(
        planned.expect("the second lock is listed")["user_id"].is_null(),
        "its key names no user"
    );
    for (method, target) in [("DELETE", ""), ("POST", "/interrupt")] {
        let refused = call(bench.operator(), method, &format!("/locks/u1/s1{target}")).await;
        assert_eq!(refused.error(), (409, "ambiguous_key"), "{refused:?}");
        assert!(
            refused.text().contains("plan:s1"),
            "the error names the keys: {refused:?}"
        );
    }
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1?key=plan:s1").await;
    assert_eq!(freed.json()["key"], "plan:s1", "{freed:?}");
    assert!(
        !plan.answer().await.whole,
        "the turn under that key is aborted"
    );
    let shown = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(
        (&shown["locked"], &shown["key"]),
        (&json!(true), &json!(key("s1"))),
        "the other lock is still held and is now shown"
    );
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(
        freed.json()["key"],
        key("s1"),
        "with one lock left no key is needed"
    );
    assert!(!chat.answer().await.whole, "its turn is aborted");
}

#[tokio::test]
async fn the_admin_api_touches_only_keys_that_are_locks() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    bench
        .redis
        .command(&["SET", "precious", "data", "PX", "60000"])
        .await;
    for key in [
        "precious".to_owned(),
        "seriatim:instance:1:pod-0".into(),
        format!("{{{}}}:fence", key("s1")),
        "lock:session:u1".into(),
    ] {
        for (method, target) in [
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/interrupt"),
            ("DELETE", "/queue/r"),
        ] {
            let target = format!("/locks/u1/s1{target}?key={key}");
            let refused = call(bench.operator(), method, &target.replace(['{', '}'], "%7B")).await;
            assert_eq!(
                refused.error(),
                (400, "invalid_key"),
                "{method} {key}: {refused:?}"
            );
        }
    }
    assert_eq!(
        bench.redis.get("precious").await.as_deref(),
        Some("data"),
        "the foreign key is unchanged"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "no turn was aborted");
}

#[tokio::test]
async fn an_invalid_admin_request_gets_an_error_and_changes_nothing() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    for (method, target, expected) in [
        ("GET", "/locks?limit=0", (400, "bad_request")),
        ("GET", "/locks?limit=1001", (400, "bad_request")),
        ("GET", "/locks?limit=x", (400, "bad_request")),
        ("GET", "/locks?cursor=x", (400, "bad_request")),
        ("GET", "/locks?cursor=-1", (400, "bad_request")),
        ("GET", "/locks?serach=x", (400, "bad_request")),
        ("GET", "/locks?search=%FF", (400, "bad_request")),
        ("GET", "/locks?search=a&search=b", (400, "bad_request")),
        ("DELETE", "/locks/u1/s1?request=x", (400, "bad_request")),
        (
            "DELETE",
            "/locks/u1/s1?request_id=a&request_id=b",
            (400, "bad_request"),
        ),
        ("GET", "/locks/%FF/s1", (400, "bad_request")),
        ("GET", "/locks/u1", (404, "not_found")),
        ("GET", "/locks/u1/s1/", (404, "not_found")),
        ("GET", "/locks/u1/s1/interrupt/x", (404, "not_found")),
        ("GET", "/nothing", (404, "not_found")),
        ("DELETE", "/locks", (405, "method_not_allowed")),
        ("POST", "/locks/u1/s1", (405, "method_not_allowed")),
        ("GET", "/locks/u1/s1/interrupt", (405, "method_not_allowed")),
        ("GET", "/locks/u1/s1/queue/r", (405, "method_not_allowed")),
        ("DELETE", "/locks/u1/s1/queue", (404, "not_found")),
        ("DELETE", "/locks/u1/s1/queue/r/x", (404, "not_found")),
        ("DELETE", "/locks/u1/s1/queue/%FF", (400, "bad_request")),
        ("DELETE", "/locks/u1/s1/queue/r?x=y", (400, "bad_request")),
        // The query and the path name different ones.
        (
            "DELETE",
            "/locks/u1/s1/queue/r?request_id=x",
            (400, "bad_request"),
        ),
        (
            "DELETE",
            "/locks/u1/s1/queue/r?request_id=",
            (400, "bad_request"),
        ),
        (
            "GET",
            "/locks/u1/s1?key=lock:session:u1:s2",
            (400, "bad_request"),
        ),
        (
            "DELETE",
            "/locks/u2/s1?key=lock:session:u1:s1",
            (400, "bad_request"),
        ),
        (
            "POST",
            "/locks/-/s2/interrupt?key=lock:session:u1:s1",
            (400, "bad_request"),
        ),
        (
            "DELETE",
            "/locks/u1/s2/queue/r?key=lock:session:u1:s1",
            (400, "bad_request"),
        ),
        ("OPTIONS", "/locks/u1/s1", (405, "method_not_allowed")),
        ("PUT", "/livez", (405, "method_not_allowed")),
    ] {
        let refused = call(bench.operator(), method, target).await;
        assert_eq!(refused.error(), expected, "{method} {target}: {refused:?}");
        let error = refused.json();
        assert_eq!(
            (&error["success"], error["status_code"].as_u64()),
            (&json!(false), Some(u64::from(expected.0))),
            "the error has the four members: {error}"
        );
        assert!(
            error["error"].is_string() && error["detail"].is_string(),
            "{error}"
        );
        assert_eq!(
            refused.header("allow").is_some(),
            expected.0 == 405,
            "a 405 has an `allow` header, no other error has: {refused:?}"
        );
    }
    for target in [
        "/locks/u1/s1?key=lock:session:u1:s1",
        "/locks/-/s1?key=lock:session:u1:s1",
        "/locks/u1/-?key=lock:session:u1:s1",
        "/locks?search=",
        "/locks?&limit=5&cursor=0",
        "/locks?cursor=18446744073709551615",
    ] {
        assert_eq!(get(bench.operator(), target).await.status, 200, "{target}");
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "no turn was aborted");
}

#[tokio::test]
async fn an_unreachable_redis_gets_a_503_and_the_process_lives() {
    let backend = Backend::start("plain:ok").await;
    let redis = Redis::start().await;
    let app = App::start(&backend.url(), &redis.url(), "timeout = \"200ms\"", CHAT);
    assert_eq!(
        get(app.admin(), "/locks").await.status,
        200,
        "Redis is reachable"
    );
    redis.stop_cont(true).await;
    let refused = get(app.admin(), "/locks").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "Redis does not reply: {refused:?}"
    );
    redis.stop_cont(false).await;
    redis.kill();
    for (method, target) in [
        ("GET", "/locks"),
        ("GET", "/locks/u1/s1"),
        ("DELETE", "/locks/u1/s1"),
        ("POST", "/locks/u1/s1/interrupt"),
        ("DELETE", "/locks/u1/s1/queue/r"),
    ] {
        let refused = call(app.admin(), method, target).await;
        assert_eq!(
            refused.error(),
            (503, "store_unavailable"),
            "{method}: {refused:?}"
        );
    }
    assert_eq!(
        get(app.admin(), "/livez").await.status,
        200,
        "the process lives"
    );
    redis.restart().await;
    let recovered = async || get(app.admin(), "/locks").await.status == 200;
    wait_for_async(recovered, "the admin API works again when Redis is back").await;
}

#[tokio::test]
async fn only_keys_of_a_route_are_listed_as_locks() {
    let other = CHAT.replace(
        "name = \"chat\"",
        "name = \"chat\"\nkey = \"other:{user_id}:{session_id}\"",
    );
    let bench = start(&other).await;
    let _held = bench.hold("s1").await;
    hold_from_python(&bench.redis, &key("s1")).await;
    let locks = list_locks(bench.operator(), "").await;
    assert_eq!(
        keys(&locks),
        BTreeSet::from(["other:u1:s1"]),
        "only keys made by a route's template are listed"
    );
}
