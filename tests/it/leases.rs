//! The lease: it is extended, it expires, it is taken away; no byte moves after its end.

use std::time::Duration;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event, events};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const SHORT_LEASE: &str = "[lock]\nlock_timeout = \"600ms\"\n";
const EXTENDED_LEASE: &str = "[lock]\nlock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
/// A store timeout far below these leases.
const QUICK: &str = "timeout = \"200ms\"";

async fn start(lock: &str) -> Bench<Redis> {
    let config = format!("{lock}{CHAT}");
    Setup::new(&config).store(QUICK).on_redis().await
}

impl Bench<Redis> {}

#[tokio::test]
async fn an_extended_stream_runs_longer_than_its_lease() {
    let bench = start(EXTENDED_LEASE).await;
    let mut long = begin_turn(bench.app.addr(), "s1", "chunked:40:50").await;
    // The loop stops before the last event, because the turn ends right after it.
    for n in 1..30 {
        long.read_until(&event(n)).await;
        let left = bench.redis.pttl(&key("s1")).await;
        assert!(left > 0, "the lock has a TTL during the whole turn: {left}");
    }
    let long = long.answer().await;
    assert!(
        long.whole && long.text() == events(40),
        "the turn comes to its end"
    );
    bench.wait_until_free("s1", "an extended turn").await;
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "turns run one at a time"
    );
}

#[tokio::test]
async fn the_memory_store_extends_a_lease_and_refuses_other_turns() {
    let backend = Backend::start("plain:ok").await;
    let store = App::start(
        &backend.url(),
        "memory:",
        QUICK,
        &format!("{EXTENDED_LEASE}{CHAT}"),
    );
    let mut long = begin_turn(store.addr(), "s1", "chunked:30:50").await;
    for n in 1..25 {
        long.read_until(&event(n)).await;
        assert_eq!(
            turn(store.addr(), "s1", "plain:x").await.status,
            429,
            "the session is busy"
        );
    }
    assert!(long.answer().await.whole, "the turn comes to its end");
    assert_eq!(backend.max_overlap("s1"), 1, "turns run one at a time");
}

#[tokio::test]
async fn a_turn_without_extension_is_aborted_when_its_lease_expires() {
    let bench = start(SHORT_LEASE).await;
    // A busy stream and a silent one; below, one whose client reads nothing.
    for script in ["chunked:100000:5", "hang-middle"] {
        let mut client = begin_turn(bench.app.addr(), script, script).await;
        client.read_until(&event(0)).await;
        // The next turn starts as soon as Redis allows it, and must find the first one aborted.
        let free = async || turn(bench.app.addr(), script, "plain:next").await.status == 200;
        let next = wait_for_async(free, "the next turn");
        let (answer, ()) = tokio::join!(client.answer(), next);
        assert_eq!(answer.status, 200, "the response had begun: {script}");
        assert!(
            !answer.whole,
            "the aborted response never looks complete: {script}"
        );
        bench.backend.gone(script).await;
        bench.wait_until_free(script, script).await;
        assert_eq!(
            bench.backend.max_overlap(script),
            1,
            "the next turn starts after the abort: {script}"
        );
    }
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("unread", "big:100000000")).await;
    client.piece().await;
    bench.backend.gone("unread").await;
    bench
        .wait_until_free("unread", "a client that reads nothing")
        .await;
    assert_eq!(
        bench.backend.max_overlap("unread"),
        1,
        "turns run one at a time"
    );
}

#[tokio::test]
async fn a_lease_that_expires_before_the_response_is_a_503() {
    let bench = start(SHORT_LEASE).await;
    let answer = turn(bench.app.addr(), "s1", "hang").await;
    assert_eq!(answer.status, 503, "the turn is aborted");
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("lock_lost"),
        "the error response has the reason"
    );
    bench.backend.gone("s1").await;
    bench.wait_until_free("s1", "an expired lease").await;
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "turns run one at a time"
    );
}

#[tokio::test]
async fn an_upload_stops_when_the_lease_expires() {
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let backend = Backend::start("plain:ok").await;
    let app = App::start(
        &backend.url(),
        "memory:",
        QUICK,
        &format!("{SHORT_LEASE}{route}"),
    );
    let mut client = Client::connect(app.addr()).await;
    // The body is larger than what is read before the lock.
    let request = Request::post("/up").header("x-test-session", "s1");
    client
        .send_head(&request.header("content-length", "100000"))
        .await;
    client.send_raw(b"01234").await;
    let answer = client.answer().await;
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("lock_lost"),
        "the lease has expired"
    );
    client.send_raw(b"56789").await;
    let again = Request::post("/up")
        .header("x-test-session", "s1")
        .body("x");
    let free = async || Client::connect(app.addr()).await.call(&again).await.status == 200;
    wait_for_async(free, "the session is free").await;
    assert_eq!(
        backend.turns("s1").len(),
        1,
        "the backend never got the rest of the first turn"
    );
}

#[tokio::test]
async fn with_on_lost_continue_a_turn_goes_on_without_its_lock() {
    let bench = start("[lock]\nlock_timeout = \"600ms\"\non_lost = \"continue\"\n").await;
    let answer = turn(bench.app.addr(), "s1", "chunked:30:50").await;
    assert!(answer.whole, "the turn comes to its end: {answer:?}");
    bench.wait_until_free("s1", "a turn that went on").await;
}

#[tokio::test]
async fn a_turn_is_aborted_at_its_deadline_while_redis_hangs() {
    let bench = start(EXTENDED_LEASE).await;
    let mut client = begin_turn(bench.app.addr(), "s1", "chunked:100000:5").await;
    client.read_until(&event(0)).await;
    bench.redis.stop_cont(true).await;
    let answer = client.answer().await;
    assert!(
        !answer.whole,
        "a lease that cannot be extended ends at its deadline"
    );
    bench.backend.gone("s1").await;
    bench.redis.stop_cont(false).await;
    bench.wait_until_free("s1", "Redis hung").await;
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "turns run one at a time"
    );
}

#[tokio::test]
async fn a_turn_whose_lock_is_taken_away_is_aborted() {
    let bench = start("[lock]\nlock_timeout = 60\nextend_lock_interval = \"100ms\"\n").await;
    let mut client = begin_turn(bench.app.addr(), "s1", "gate").await;
    client.read_until(&event(0)).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "somebody else", "PX", "60000"])
        .await;
    assert!(
        !client.answer().await.whole,
        "the turn is aborted when the loss is noticed"
    );
    bench.backend.gone("s1").await;
    let value = bench.redis.get(&key("s1")).await;
    assert_eq!(
        value.as_deref(),
        Some("somebody else"),
        "the new holder keeps its lock"
    );
    bench.redis.command(&["DEL", &key("s1")]).await;
    bench.wait_until_free("s1", "the lock was taken away").await;
}

#[tokio::test]
async fn a_lost_lock_aborts_a_turn_whose_client_reads_nothing() {
    let bench = start("[lock]\nlock_timeout = 60\nextend_lock_interval = \"100ms\"\n").await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:100000000")).await;
    client.piece().await;
    bench
        .redis
        .command(&["SET", &key("s1"), "somebody else", "PX", "60000"])
        .await;
    bench.backend.gone("s1").await;
    client.close();
    bench.redis.command(&["DEL", &key("s1")]).await;
    bench.wait_until_free("s1", "the lock was taken away").await;
}

#[tokio::test]
async fn many_leases_are_extended_in_one_command_per_worker() {
    let lock = "[lock]\nlock_timeout = 60\nextend_lock_interval = \"1500ms\"\n";
    let bench = start(lock).await;
    let mut held = Vec::new();
    for n in 0..40 {
        let mut client = begin_turn(bench.app.addr(), &format!("s{n}"), "gate").await;
        client.read_until(&event(0)).await;
        held.push(client);
    }
    // From here on only extensions are sent. The first round gathers them.
    let monitor = bench.redis.monitor().await;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = async || monitor.lines_from_clients().await.len() >= 3 * workers;
    wait_for_async(rounds, "three rounds of extensions").await;
    let lines = monitor.lines_from_clients().await;
    let extended = |line: &String| line.matches("\"{lock:session:").count();
    let last: usize = lines.iter().rev().take(workers).map(extended).sum();
    assert_eq!(
        last, 40,
        "one command of each worker extends all its leases: {lines:#?}"
    );
    bench.backend.open_all_gates();
    for client in &mut held {
        assert!(client.answer().await.whole, "every turn comes to its end");
    }
    tokio::time::timeout(Duration::from_secs(20), bench.app.stop())
        .await
        .expect("the process stops");
}
