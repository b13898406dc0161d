//! Operating the locks over HTTP: what is listed and shown, what a force release and an interruption do
//! to a turn on another replica, and that nothing else is touched.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Answer, Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

mod access;
mod command_line;
mod places;

const WAIT: &str = "[lock]\nblocking = true\n";

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config).replicas(2).on_redis().await
}

impl Bench<Redis> {
    /// The other one, where operators ask.
    fn operator(&self) -> SocketAddr {
        self.others[0].admin()
    }

    /// What the first replica counts of this.
    async fn counted(&self, line: &str) -> bool {
        let text = get(self.app.admin(), "/metrics").await.text();
        text.lines().any(|counted| counted == line)
    }

    /// Every key ends by itself, and the next turn of the session leaves none.
    async fn is_clean(&self, session: &str) {
        for key in self.redis.keys().await {
            assert_ne!(
                self.redis.pttl(&key).await,
                -1,
                "no key is without a TTL: {key}"
            );
        }
        let served = async || turn(self.replica(0), session, "plain:next").await.status == 200;
        wait_for_async(served, "the next turn is served").await;
        is_quiet(&self.redis).await;
    }
}

async fn call(admin: SocketAddr, method: &str, target: &str) -> Answer {
    let mut client = Client::connect(admin).await;
    client.call(&Request::new(method, target)).await
}

async fn get(admin: SocketAddr, target: &str) -> Answer {
    call(admin, "GET", target).await
}

/// All locks that are listed, page by page.
async fn listed(admin: SocketAddr, query: &str) -> Vec<Value> {
    let (mut locks, mut next) = (Vec::new(), String::new());
    // More pages than there can be keys would be a cursor that goes round.
    for _ in 0..10_000 {
        let answer = get(admin, &format!("/locks?{query}{next}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        locks.extend(page["locks"].as_array().expect("a list").iter().cloned());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => {
                assert!(page["next"].is_null(), "text, or null: {page}");
                return locks;
            }
        }
    }
    panic!("the cursor comes to no end");
}

fn keys(locks: &[Value]) -> BTreeSet<&str> {
    let keys = locks.iter().map(|lock| lock["key"].as_str());
    keys.map(|key| key.expect("a key")).collect()
}

/// What stands in Redis where Python code holds a lock.
async fn python_holds(redis: &Redis, key: &str) {
    redis
        .command(&["SET", key, "0b7e4c1e", "NX", "PX", "60000"])
        .await;
}

// === seeing ===

#[tokio::test]
async fn a_held_lock_is_listed_with_all_that_is_known_of_it() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    let memory = App::in_memory(&bench.backend, CHAT);
    let mut local = begin_turn(memory.addr(), "s1", "gate").await;
    local.read_until(&event(0)).await;
    for (admin, instance) in [(bench.operator(), Some("pod-0")), (memory.admin(), None)] {
        let locks = listed(admin, "").await;
        let [lock] = &locks[..] else {
            panic!("one lock is held: {locks:?}");
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
        assert_eq!(names, expected, "these and no others");
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
            assert_eq!(lock["instance"], instance, "which replica serves it");
        }
        assert!(lock["request_id"].is_string(), "which request: {lock}");
        let since = lock["since"].as_str().expect("since when");
        assert!(
            since.ends_with('Z') && since.len() == 24,
            "RFC 3339: {since}"
        );
        let number = |name: &str| {
            lock[name]
                .as_u64()
                .unwrap_or_else(|| panic!("{name}: {lock}"))
        };
        assert!(number("fence") > 1_700_000_000_000_000, "by a clock");
        assert!(
            number("age_ms") + number("ttl_ms") <= 300_000 && number("ttl_ms") > 200_000,
            "of a lease of 300 s: {lock}"
        );
    }
    for _ in 0..2 {
        bench.backend.open_gate("s1");
    }
    for turn in [&mut held, &mut local] {
        assert!(turn.answer().await.whole, "seeing disturbs nobody");
    }
    let none = async || listed(bench.operator(), "").await.is_empty();
    wait_for_async(none, "a turn that is over is gone from the list").await;
}

#[tokio::test]
async fn a_lock_is_shown_with_its_line_in_order() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let free = get(bench.operator(), "/locks/u1/s1").await;
    assert_eq!(
        (free.status, free.json()),
        (
            200,
            json!({"locked": false, "key": key("s1"), "user_id": "u1", "session_id": "s1", "waiters": 0})
        ),
        "what nobody holds is shown, too"
    );
    let _held = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..3 {
        let addr = bench.replica(n);
        let request = Request::turn("s1", "plain:x").header("x-request-id", &format!("r{n}"));
        let mut client = Client::connect(addr).await;
        client.send(&request).await;
        waiters.push(client);
        is_waiting(&bench.redis, "s1", n + 1).await;
    }
    let shown = get(bench.operator(), "/locks/u1/s1").await;
    assert_eq!(
        shown.header("content-type"),
        Some("application/json; charset=utf-8"),
        "JSON"
    );
    assert_eq!(
        shown.header("cache-control"),
        Some("no-store"),
        "of this moment"
    );
    let shown = shown.json();
    assert_eq!(
        (&shown["locked"], &shown["waiters"]),
        (&json!(true), &json!(3)),
        "{shown}"
    );
    let line: Vec<_> = shown["queue"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|waiter| {
            assert!(
                waiter["since"].is_string() && waiter["route"] == "chat",
                "{waiter}"
            );
            (
                waiter["instance"].as_str().expect("its replica"),
                waiter["request_id"].as_str().expect("its request"),
            )
        })
        .collect();
    assert_eq!(
        line,
        [("pod-0", "r0"), ("pod-1", "r1"), ("pod-0", "r2")],
        "who waits, where, in order of arrival"
    );
    let head = call(bench.operator(), "HEAD", "/locks/u1/s1").await;
    assert_eq!(
        (head.status, head.body.len()),
        (200, 0),
        "HEAD is GET without its body"
    );
    bench.backend.open_gate("s1");
    for waiter in &mut waiters {
        assert_eq!(waiter.answer().await.status, 200, "and each is served");
    }
}

#[tokio::test]
async fn a_thousand_locks_among_other_things_are_all_listed_by_cursor() {
    let bench = start(CHAT).await;
    let fill = "for n = 1, 1000 do \
                  redis.call('SET', 'lock:session:User' .. n % 10 .. ':s' .. n, 'x', 'PX', 600000) \
                end \
                for n = 1, 5000 do redis.call('SET', 'cache:' .. n, 'x', 'PX', 600000) end";
    bench.redis.command(&["EVAL", fill, "0"]).await;
    for query in ["", "limit=1000", "limit=7"] {
        let locks = listed(bench.operator(), query).await;
        assert_eq!(keys(&locks).len(), 1000, "each of them: {query}");
    }
    let found = listed(bench.operator(), "search=uSeR3").await;
    assert_eq!(keys(&found).len(), 100, "those of one user, in any case");
    let found = listed(bench.operator(), "search=s99").await;
    assert_eq!(keys(&found).len(), 11, "s99 and s990 to s999");
    assert!(
        listed(bench.operator(), "search=lock:").await.is_empty(),
        "ids are searched, and not what all keys have"
    );
    let page = get(bench.operator(), "/locks?limit=1").await.json();
    let count = page["locks"].as_array().expect("a list").len();
    assert!(
        (1..100).contains(&count),
        "a page has about as many as were asked for: {count}"
    );
}

#[tokio::test]
async fn what_other_code_holds_is_listed_and_freed_too() {
    let bench = start(CHAT).await;
    python_holds(&bench.redis, "lock:session:u1:py").await;
    python_holds(&bench.redis, "lock:session:u:1:py").await;
    bench
        .redis
        .command(&["SET", "lock:session:u1:ever", "x"])
        .await;
    bench
        .redis
        .command(&["RPUSH", "lock:session:u1:list", "x"])
        .await;
    let mut locks = listed(bench.operator(), "").await;
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
            assert!(lock[none].is_null(), "{none} isn't known: {lock}");
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
        "with what can be known, and nothing that is no lock"
    );
    let found = listed(bench.operator(), "search=u:1").await;
    assert_eq!(found.len(), 1, "one without ids is found by its key");
    let freed = call(bench.operator(), "DELETE", "/locks/u1/py").await;
    assert_eq!(
        (freed.status, &freed.json()["released"]),
        (200, &json!(true)),
        "{freed:?}"
    );
    assert_eq!(
        bench.redis.get("lock:session:u1:py").await,
        None,
        "it is free"
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
        "also by its key"
    );
    let told = call(bench.operator(), "POST", "/locks/u1/ever/interrupt").await;
    assert_eq!(
        told.error(),
        (409, "not_interruptible"),
        "nobody can be told"
    );
    for key in bench.redis.keys().await {
        let is_theirs = key.ends_with(":ever") || key.ends_with(":list");
        assert!(
            is_theirs || bench.redis.pttl(&key).await != -1,
            "{key} ends by itself"
        );
    }
}

// === force release ===

#[tokio::test]
async fn a_lock_freed_by_force_through_another_replica_aborts_its_turn() {
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
        "the fence is raised: {body}"
    );
    let answer = held.answer().await;
    assert!(
        answer.status == 200 && !answer.whole,
        "the holder's replica is told, and its turn is cut"
    );
    bench.backend.gone("s1").await;
    let counted = async || {
        bench
            .counted("seriatim_locks_lost_total{reason=\"taken\"} 1")
            .await
    };
    wait_for_async(counted, "the loss is counted where it happened").await;
    let again = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(
        (again.status, again.json()),
        (200, json!({"released": false, "key": key("s1")})),
        "a free lock is not an error"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_that_may_go_on_without_its_lock_does_so_when_it_is_freed_by_force() {
    let bench = start(&format!("[lock]\non_lost = \"continue\"\n{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "{freed:?}");
    assert_eq!(
        turn(bench.replica(0), "s1", "plain:next").await.status,
        200,
        "its session is free"
    );
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "and it comes to its end unprotected"
    );
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_without_an_answer_yet_is_told_why_it_was_stopped() {
    let bench = start(CHAT).await;
    let locks = "/locks/u1/s1";
    for (method, target, expected) in [
        ("DELETE", locks.to_owned(), (503, "lock_lost")),
        ("POST", format!("{locks}/interrupt"), (409, "superseded")),
    ] {
        let mut held = begin_turn(bench.replica(0), "s1", "gate-head").await;
        let is_held = async || get(bench.operator(), locks).await.json()["locked"] == true;
        wait_for_async(is_held, "the turn has its lock").await;
        let done = call(bench.operator(), method, &target).await;
        assert_eq!(done.json()["released"], true, "{done:?}");
        let answer = held.answer().await;
        assert_eq!(answer.error(), expected, "{method}: {answer:?}");
    }
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_lock_freed_by_force_goes_to_the_first_who_waits() {
    let bench = start(&format!("{WAIT}{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let mut waiters = Vec::new();
    for n in 0..3 {
        let addr = bench.replica(n);
        waiters.push(begin_turn(addr, "s1", &format!("plain:{n}")).await);
        is_waiting(&bench.redis, "s1", n + 1).await;
    }
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "{freed:?}");
    assert!(!held.answer().await.whole, "the holder is cut");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        let answer = waiter.answer().await;
        assert_eq!(
            (answer.status, answer.text()),
            (200, n.to_string()),
            "who waits is served"
        );
    }
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn only_the_turn_that_was_meant_is_stopped() {
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
    python_holds(&bench.redis, &key("s2")).await;
    let refused = call(bench.operator(), "DELETE", "/locks/u1/s2?request_id=x").await;
    assert_eq!(
        refused.error(),
        (409, "holder_changed"),
        "other code has no requests"
    );
    let shown = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(shown["locked"], true, "who holds it has it still: {shown}");
    let request = shown["request_id"].as_str().expect("its request");
    let target = format!("/locks/u1/s1?request_id={request}");
    let freed = call(bench.operator(), "DELETE", &target).await;
    assert_eq!(freed.json()["released"], true, "this one was meant");
    assert!(!held.answer().await.whole, "and is stopped");
    let freed = call(bench.operator(), "DELETE", &target).await;
    assert_eq!(freed.json()["released"], false, "it holds nothing any more");
}

// === interrupting ===

#[tokio::test]
async fn a_turn_interrupted_through_another_replica_is_aborted_and_its_lock_released() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(
        (done.status, done.json()),
        (
            200,
            json!({"interrupted": true, "released": true, "key": key("s1")})
        ),
        "it is waited for"
    );
    assert_eq!(bench.redis.get(&key("s1")).await, None, "the lock is free");
    assert!(!held.answer().await.whole, "the answer is cut, not ended");
    bench.backend.gone("s1").await;
    assert!(
        bench
            .counted("seriatim_locks_lost_total{reason=\"interrupted\"} 1")
            .await,
        "and counted"
    );
    let again = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(
        again.error(),
        (404, "not_locked"),
        "there is nobody to stop"
    );
    is_quiet(&bench.redis).await;
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_that_would_go_on_without_its_lock_is_stopped_when_it_is_interrupted() {
    let bench = start(&format!("[lock]\non_lost = \"continue\"\n{CHAT}")).await;
    let mut held = bench.hold("s1").await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(done.json()["released"], true, "{done:?}");
    assert!(!held.answer().await.whole, "it is a stop button");
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn a_turn_is_stopped_though_the_first_message_to_it_is_lost() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    // Redis takes messages for nobody, and says so as if nobody listened.
    let deaf = ["CLIENT", "KILL", "TYPE", "pubsub"];
    bench.redis.command(&deaf).await;
    let done = call(bench.operator(), "POST", "/locks/u1/s1/interrupt").await;
    assert_eq!(done.json()["released"], true, "it is told again: {done:?}");
    assert!(!held.answer().await.whole, "and stops");
}

#[tokio::test]
async fn a_holder_whose_instance_is_gone_is_not_waited_for() {
    let bench = start(CHAT).await;
    let token = r#"{"token":"00000000000000aa-1","instance":"gone","heartbeat":true,"route":"chat","request":"r1","since":"2026-11-23T02:00:00.000Z"}"#;
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
        "it is shown as it stands: {lock}"
    );
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["released"], true, "by force it can be freed");
    bench.is_clean("s1").await;
}

#[tokio::test]
async fn in_memory_too_a_lock_is_freed_by_force_and_a_turn_interrupted() {
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
        assert!(!held.answer().await.whole, "{method} stops it");
        let free = get(app.admin(), "/locks/u1/s1").await.json();
        assert_eq!(free["locked"], false, "{method}: {free}");
    }
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "and the next is served"
    );
}

// === names ===

#[tokio::test]
async fn ids_of_any_bytes_are_found_as_the_client_has_sent_them() {
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
    let locks = listed(bench.operator(), "limit=3").await;
    let told = locks
        .iter()
        .map(|lock| (lock["user_id"].as_str(), lock["session_id"].as_str()));
    let expected = running
        .iter()
        .map(|(_, user, session)| (Some(*user), Some(*session)));
    assert_eq!(
        told.collect::<BTreeSet<_>>(),
        expected.collect::<BTreeSet<_>>(),
        "each is listed with its ids, decoded"
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
            "and shown by them: {shown}"
        );
        let search = format!("search={}", encode(session));
        let found = listed(bench.operator(), &search).await;
        assert!(
            found.iter().any(|lock| lock["key"] == shown["key"]),
            "and found by them: {found:?}"
        );
        let freed = call(bench.operator(), "DELETE", &target).await;
        assert_eq!(
            freed.json()["released"],
            true,
            "and freed by them: {freed:?}"
        );
        assert!(
            !client.answer().await.whole,
            "{user:?} {session:?} is stopped"
        );
    }
}

#[tokio::test]
async fn a_session_with_several_locks_is_freed_by_the_name_of_one() {
    let second = "\n[[routes]]\nname = \"plan\"\npath = \"/plan\"\nkey = \"plan:{session_id}\"\n\
                  session_id = [\"{body:/session_id}\"]\nuser_id = [\"{body:/user_id}\"]\n";
    let bench = start(&format!("{CHAT}{second}")).await;
    let free = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(
        free["key"],
        key("s1"),
        "the first route's, where none is held"
    );
    let mut chat = bench.hold("s1").await;
    let body = r#"{"session_id":"s1","user_id":"u1"}"#;
    let request = Request::post("/plan")
        .header("x-test-script", "gate")
        .json(body);
    let mut plan = Client::connect(bench.replica(0)).await;
    plan.send(&request).await;
    plan.read_until(&event(0)).await;
    let locks = listed(bench.operator(), "").await;
    assert_eq!(
        keys(&locks),
        BTreeSet::from(["lock:session:u1:s1", "plan:s1"]),
        "both are listed"
    );
    let planned = locks.iter().find(|lock| lock["key"] == "plan:s1");
    assert!(
        planned.expect("it is there")["user_id"].is_null(),
        "its key names no user"
    );
    for (method, target) in [("DELETE", ""), ("POST", "/interrupt")] {
        let refused = call(bench.operator(), method, &format!("/locks/u1/s1{target}")).await;
        assert_eq!(refused.error(), (409, "ambiguous_key"), "{refused:?}");
        assert!(
            refused.text().contains("plan:s1"),
            "they are named: {refused:?}"
        );
    }
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1?key=plan:s1").await;
    assert_eq!(freed.json()["key"], "plan:s1", "{freed:?}");
    assert!(!plan.answer().await.whole, "that one is stopped");
    let shown = get(bench.operator(), "/locks/u1/s1").await.json();
    assert_eq!(
        (&shown["locked"], &shown["key"]),
        (&json!(true), &json!(key("s1"))),
        "the other is held, and shown as the first that is"
    );
    let freed = call(bench.operator(), "DELETE", "/locks/u1/s1").await;
    assert_eq!(freed.json()["key"], key("s1"), "it is the only one now");
    assert!(!chat.answer().await.whole, "and is stopped");
}

#[tokio::test]
async fn a_key_that_is_no_lock_is_not_an_operators_to_touch() {
    let bench = start(CHAT).await;
    let mut held = bench.hold("s1").await;
    bench
        .redis
        .command(&["SET", "precious", "data", "PX", "60000"])
        .await;
    for key in [
        "precious".to_owned(),
        "seriatim:instance:pod-0".into(),
        format!("{{{}}}:fence", key("s1")),
        "lock:session:u1".into(),
    ] {
        for (method, target) in [("GET", ""), ("DELETE", ""), ("POST", "/interrupt")] {
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
        "it is there"
    );
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "and nobody was stopped");
}

#[tokio::test]
async fn what_can_not_be_read_is_refused_and_does_nothing() {
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
        ("OPTIONS", "/locks/u1/s1", (405, "method_not_allowed")),
        ("PUT", "/livez", (405, "method_not_allowed")),
    ] {
        let refused = call(bench.operator(), method, target).await;
        assert_eq!(refused.error(), expected, "{method} {target}: {refused:?}");
        let said = refused.json();
        assert_eq!(
            (&said["success"], said["status_code"].as_u64()),
            (&json!(false), Some(u64::from(expected.0))),
            "in the four members: {said}"
        );
        assert!(
            said["error"].is_string() && said["detail"].is_string(),
            "{said}"
        );
        assert_eq!(
            refused.header("allow").is_some(),
            expected.0 == 405,
            "what is allowed is said: {refused:?}"
        );
    }
    for target in [
        "/locks?search=",
        "/locks?&limit=5&cursor=0",
        "/locks?cursor=18446744073709551615",
    ] {
        assert_eq!(get(bench.operator(), target).await.status, 200, "{target}");
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "nobody was stopped");
}

#[tokio::test]
async fn with_redis_out_of_reach_an_operator_is_told_so_and_the_process_lives() {
    let backend = Backend::start("plain:ok").await;
    let mut redis = Redis::start().await;
    let app = App::start(&backend.url(), &redis.url(), "timeout = \"200ms\"", CHAT);
    assert_eq!(get(app.admin(), "/locks").await.status, 200, "it is there");
    redis.stop_cont(true).await;
    let refused = get(app.admin(), "/locks").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "silent: {refused:?}"
    );
    redis.stop_cont(false).await;
    redis.kill();
    for (method, target) in [
        ("GET", "/locks"),
        ("GET", "/locks/u1/s1"),
        ("DELETE", "/locks/u1/s1"),
        ("POST", "/locks/u1/s1/interrupt"),
    ] {
        let refused = call(app.admin(), method, target).await;
        assert_eq!(
            refused.error(),
            (503, "store_unavailable"),
            "{method}: {refused:?}"
        );
    }
    assert_eq!(get(app.admin(), "/livez").await.status, 200, "it lives");
    redis.restart().await;
    let there = async || get(app.admin(), "/locks").await.status == 200;
    wait_for_async(there, "and looks again when Redis is back").await;
}

#[tokio::test]
async fn only_keys_that_a_route_makes_are_locks() {
    let other = CHAT.replace(
        "name = \"chat\"",
        "name = \"chat\"\nkey = \"other:{user_id}:{session_id}\"",
    );
    let bench = start(&other).await;
    let _held = bench.hold("s1").await;
    python_holds(&bench.redis, &key("s1")).await;
    let locks = listed(bench.operator(), "").await;
    assert_eq!(
        keys(&locks),
        BTreeSet::from(["other:u1:s1"]),
        "by the routes' own keys"
    );
}
