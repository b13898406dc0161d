//! Several environments on one Redis: `store.prefix` separates everything but the locks, and two processes
//! with one name are told what to change.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::app::{App, CHAT, key, wait_for_queue_length};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};
use seriatim::metrics::ExpositionFormat;

const PAGE: &str = include_str!("../../docs/several-environments.md");

/// An instance that counts as dead three seconds after its last heartbeat, and sends one each second.
const TWIN: &str = "timeout = \"1s\"\ncrash_recovery = \"3s\"\ninstance = \"agent-0\"\n";

const BLOCKING: &str = "[lock]\nblocking = true\n";

fn with_prefix(prefix: &str) -> String {
    format!("{TWIN}prefix = \"{prefix}\"\n")
}

async fn wait_until_ready(app: &App) {
    wait_until_ready_at(app.admin()).await;
}

async fn wait_until_ready_at(admin: SocketAddr) {
    let ready = async || Client::connect(admin).await.get("/readyz").await.status == 200;
    wait_for_async(ready, "the replica is ready").await;
}

#[tokio::test]
async fn two_environments_with_the_same_pod_names_do_not_disturb_each_other() {
    let bench = Replicas::on_redis().await;
    let one = bench.replica(&with_prefix("staging:"), "");
    wait_until_ready(&one).await;
    let mut held = hold(one.addr(), "s1").await;
    let other = bench.replica(&with_prefix("production:"), "");
    wait_until_ready(&other).await;
    let names = bench.redis.instances().await;
    let expected = ["production", "staging"].map(|it| format!("{it}:seriatim:instance:1:agent-0"));
    assert_eq!(names, expected, "each environment has its own name");
    // A name that is taken is noticed at the next heartbeat. Three pass meanwhile.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        for app in [&one, &other] {
            let answer = turn(app.addr(), "s2", "plain:x").await;
            assert_eq!(answer.status, 200, "both serve: {}", answer.text());
        }
    }
    bench.backend.open_gate("s1");
    assert!(
        held.answer().await.whole,
        "the turn of the older one is not cut"
    );
}

#[tokio::test]
async fn everything_but_the_lock_has_the_prefix() {
    let bench = Replicas::on_redis().await;
    let tables = "[lock]\nblocking = true\nkey = \"{user_id}:{session_id}\"\n";
    let app = bench.replica(&with_prefix("staging:"), tables);
    wait_until_ready(&app).await;
    let mut held = hold(app.addr(), "s1").await;
    let mut waiter = begin_turn(app.addr(), "s1", "plain:x").await;
    let companion = |name: &str| format!("staging:{{u1:s1}}:{name}");
    let all = [
        companion("1:queue"),
        companion("1:waiters"),
        companion("fence"),
        "u1:s1".into(),
    ];
    let there = async || bench.redis.keys().await == all;
    wait_for_async(there, "the lock, and its companions with the prefix").await;
    let channels = bench.redis.command(&["PUBSUB", "CHANNELS"]).await;
    let channels: Vec<String> = ::redis::from_redis_value(channels).expect("names");
    assert_eq!(
        channels,
        ["staging:seriatim:instance:1:agent-0"],
        "so has the channel"
    );
    let mut client = Client::connect(app.admin()).await;
    let list: Value = client.call(&Request::get("/locks")).await.json();
    let listed = list["locks"].as_array().expect("a list");
    let listed: Vec<_> = listed.iter().map(|lock| &lock["key"]).collect();
    assert_eq!(listed, ["u1:s1"], "companions and heartbeats are no locks");
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder's turn ends");
    assert_eq!(waiter.answer().await.status, 200, "the waiter is woken");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn replicas_of_different_prefixes_exclude_each_other_on_the_same_lock() {
    let bench = Replicas::on_redis().await;
    let one = bench.replica(&with_prefix("a:"), BLOCKING);
    let other = bench.replica(&with_prefix("b:"), "");
    let (blocking, plain) = (bench.replica(&with_prefix("c:"), BLOCKING), &other);
    for app in [&one, &other, &blocking] {
        wait_until_ready(app).await;
    }
    let mut held = hold(one.addr(), "s1").await;
    let mut waiter = begin_turn(blocking.addr(), "s1", "plain:waiter").await;
    let queue = format!("c:{{{}}}:1:queue", key("s1"));
    let waits = async || bench.redis.command(&["EXISTS", &queue]).await == ::redis::Value::Int(1);
    wait_for_async(waits, "the third one waits in its own queue").await;
    // Longer than `crash_recovery`, after which a holder without a heartbeat is taken for dead.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let answer = turn(plain.addr(), "s1", "plain:x").await;
        assert_eq!(answer.status, 429, "a living holder keeps its lock");
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder isn't disturbed");
    assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "never two at once");
}

#[tokio::test]
async fn a_turn_of_another_prefix_is_not_interrupted_and_the_answer_says_why() {
    let bench = Replicas::on_redis().await;
    let other = bench.replica(&with_prefix("b:"), "");
    let interrupt = Request::new("POST", "/locks/u1/s1/interrupt");
    for heartbeat in ["3s", "0s"] {
        let store = with_prefix("a:").replace("\"3s\"", &format!("\"{heartbeat}\""));
        let one = bench.replica(&store, "");
        for app in [&one, &other] {
            wait_until_ready(app).await;
        }
        let mut held = hold(one.addr(), "s1").await;
        let answer = Client::connect(other.admin()).await.call(&interrupt).await;
        assert_eq!(answer.error(), (409, "not_interruptible"), "{answer:?}");
        let why = answer.json()["detail"].to_string();
        assert!(
            why.contains("its instance has another store.prefix"),
            "the cause is told: {why}"
        );
        bench.backend.open_gate("s1");
        assert!(held.answer().await.whole, "the turn goes on");
        let mut held = hold(one.addr(), "s1").await;
        let answer = Client::connect(one.admin()).await.call(&interrupt).await;
        assert_eq!(answer.json()["released"], true, "its own prefix can do it");
        assert!(!held.answer().await.whole, "and the turn is cut");
        one.stop().await;
    }
}

#[tokio::test]
async fn the_documented_redis_users_of_two_environments_have_all_needed_rights() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let (_, rest) = PAGE.split_once("redis-cli ").expect("the command");
    let (command, _) = rest.split_once("\n```").expect("its end");
    let words = command.split_whitespace().filter(|word| *word != "\\");
    let words: Vec<_> = words.map(|word| word.trim_matches('\'')).collect();
    redis.command(&words).await;
    let url = format!("redis://staging:password@{}/0", redis.addr());
    let config = format!(
        "[lock]\nblocking = true\nkey = \"lock:staging:{{user_id}}:{{session_id}}\"\n{CHAT}"
    );
    let app = App::start(&backend.url(), &url, &with_prefix("staging:"), &config);
    wait_until_ready(&app).await;
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let mut waiter = begin_turn(app.addr(), "s1", "plain:x").await;
    let queue = "staging:{lock:staging:u1:s1}:1:queue";
    let waits = async || redis.command(&["EXISTS", queue]).await == ::redis::Value::Int(1);
    wait_for_async(waits, "a turn waits").await;
    backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder's turn ends");
    assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
    app.stop().await;
    let denied = redis.command(&["ACL", "LOG"]).await;
    assert_eq!(
        denied,
        ::redis::Value::Array(Vec::new()),
        "Redis denied nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_processes_with_one_name_says_what_to_change() {
    let bench = Replicas::on_redis().await;
    let older = bench.process(TWIN, BLOCKING);
    wait_until_ready_at(older.admin()).await;
    let mut cut = begin_turn(older.addr(), "s1", "gate").await;
    cut.read_until(&event(0)).await;
    let mut behind = begin_turn(older.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let younger = bench.replica(TWIN, "");
    assert!(!cut.answer().await.whole, "the running turn is cut");
    let named = "another process uses the store.instance of this one";
    let behind = behind.answer().await;
    assert_eq!(
        behind.error(),
        (503, "store_unavailable"),
        "who waits is refused"
    );
    assert_eq!(behind.json()["detail"], named, "and told the cause");
    let refused = turn(older.addr(), "s2", "plain:x").await;
    assert_eq!(
        refused.error(),
        (503, "store_unavailable"),
        "new turns are refused"
    );
    assert_eq!(refused.json()["detail"], named, "and told the cause");
    let logged = || {
        older.has_logged("another process uses the same store.instance")
            && older.has_logged("another process uses the store.instance of this one")
    };
    wait_for(
        logged,
        "the log names the cause of it all, and of the turn that was cut",
    )
    .await;
    let began = Instant::now();
    let later = async || began.elapsed() > Duration::from_secs(3);
    wait_for_async(later, "two further heartbeats").await;
    let once = older.times_logged("turns lost their locks, and new ones are refused");
    assert_eq!(once, 1, "one error per conflict, and not per heartbeat");
    let mut client = Client::connect(older.admin()).await;
    let ready = client.get("/readyz").await;
    assert_eq!(ready.status, 503, "the older one is not ready");
    for told in ["store.instance = \"agent-0\"", "store.prefix"] {
        assert!(
            ready.text().contains(told),
            "{told} is told: {}",
            ready.text()
        );
    }
    let metrics = client.get("/metrics").await.text().to_owned();
    let counted = "seriatim_locks_lost_total{reason=\"name_taken\"} 1";
    assert!(
        metrics.lines().any(|line| line == counted),
        "{counted} in {metrics}"
    );
    let text = younger.metrics().text(ExpositionFormat::Classic);
    let none = "seriatim_locks_lost_total{reason=\"name_taken\"} 0";
    assert!(
        text.lines().any(|line| line == none),
        "the younger one lost nothing"
    );
}

#[tokio::test]
async fn a_process_whose_name_is_taken_runs_no_turn_without_a_lock_whatever_on_error_says() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_redis().await;
        let older = bench.replica(&format!("{TWIN}on_error = \"{on_error}\"\n"), BLOCKING);
        let mut cut = hold(older.addr(), "s1").await;
        let mut behind = begin_turn(older.addr(), "s1", "plain:behind").await;
        wait_for_queue_length(&bench.redis, "s1", 1).await;
        let younger = bench.replica(TWIN, "");
        assert!(!cut.answer().await.whole, "{on_error}: the turn is cut");
        let refusal = (503, "store_unavailable");
        let behind = behind.answer().await;
        assert_eq!(behind.error(), refusal, "{on_error}: who waits is refused");
        let new = turn(older.addr(), "s2", "plain:x").await;
        assert_eq!(new.error(), refusal, "{on_error}: so is a new turn");
        assert_eq!(bench.backend.turns("s2").len(), 0, "none reached it");
        let served = turn(younger.addr(), "s2", "plain:x").await;
        assert_eq!(served.status, 200, "{on_error}: the younger one serves");
        bench.wait_until_no_keys().await;
    }
}

#[tokio::test]
async fn a_holder_with_another_prefix_is_sent_nothing_because_it_would_get_nothing() {
    let bench = Replicas::on_redis().await;
    let holding = bench.replica(&with_prefix("a:"), "");
    let interrupting = format!("{BLOCKING}interrupt = true\n");
    let waiting = bench.replica(&with_prefix("b:"), &interrupting);
    let mut held = hold(holding.addr(), "s1").await;
    let monitor = bench.redis.monitor().await;
    let mut waiter = begin_turn(waiting.addr(), "s1", "plain:x").await;
    waiting.wait_for_waiters(1).await;
    let queue = format!("b:{{{}}}:1:queue", key("s1"));
    let watches = async || {
        let lines = monitor.lines_from_clients().await;
        // Not the turn's own command, which has the lock's key first.
        let watches = |line: &&String| line.contains(&queue) && !line.contains("\"since");
        lines.iter().filter(watches).count() >= 3
    };
    wait_for_async(watches, "the queue is watched for a while").await;
    let lines = monitor.lines_from_clients().await;
    let sent: Vec<_> = lines
        .iter()
        .filter(|it| it.contains("\"PUBLISH\""))
        .collect();
    assert_eq!(sent, [""; 0], "neither a question nor an interruption");
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder isn't disturbed");
    assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
}

#[tokio::test]
async fn a_process_whose_name_is_taken_stays_so_while_redis_is_away() {
    let bench = Replicas::on_redis().await;
    let older = bench.replica(TWIN, "");
    wait_until_ready(&older).await;
    let _younger = bench.replica(TWIN, "");
    let mut client = Client::connect(older.admin()).await;
    let is_named = async |client: &mut Client| {
        let ready = client.get("/readyz").await;
        ready.status == 503 && ready.text().contains("store.instance")
    };
    let began = Instant::now();
    while !is_named(&mut client).await {
        assert!(began.elapsed() < Duration::from_secs(20), "it is noticed");
    }
    bench.redis.kill();
    // Several attempts of a heartbeat fail in this time.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert!(
            is_named(&mut client).await,
            "it gets no heartbeat meanwhile, so it isn't ready for a short outage"
        );
    }
}
