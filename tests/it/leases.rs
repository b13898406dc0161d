//! The lease: extended, run out, taken away; and nothing that moves after its end.

use std::time::Duration;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, event, events};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const SHORT: &str = "[lock]\nlock_timeout = \"600ms\"\n";
const EXTENDED: &str = "[lock]\nlock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
/// A store that gives up on a command well within these leases.
const QUICK: &str = "timeout = \"200ms\"";

async fn start(lock: &str) -> Bench<Redis> {
    let config = format!("{lock}{CHAT}");
    Setup::new(&config).store(QUICK).on_redis().await
}

impl Bench<Redis> {}

#[tokio::test]
async fn a_stream_longer_than_its_lease_runs_to_its_end_when_it_is_extended() {
    let bench = start(EXTENDED).await;
    let mut long = begin_turn(bench.app.addr(), "s1", "chunked:40:50").await;
    // Not up to the last event, behind which the turn ends at once.
    for n in 1..30 {
        long.read_until(&event(n)).await;
        let left = bench.redis.pttl(&key("s1")).await;
        assert!(
            left > 0,
            "the lock is there for as long as the turn, with a TTL: {left}"
        );
    }
    let long = long.answer().await;
    assert!(
        long.whole && long.text() == events(40),
        "and the turn runs to its end"
    );
    bench.becomes_free("s1", "an extended turn").await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn in_memory_too_an_extended_stream_outlives_its_lease_and_others_are_refused() {
    let backend = Backend::start("plain:ok").await;
    let store = App::start(
        &backend.url(),
        "memory:",
        QUICK,
        &format!("{EXTENDED}{CHAT}"),
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
    assert!(long.answer().await.whole, "to the end of the turn");
    assert_eq!(backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn without_an_extension_a_turn_is_cut_at_its_deadline() {
    let bench = start(SHORT).await;
    // A busy stream, a silent one, and one whose client reads nothing.
    for script in ["chunked:100000:5", "hang-middle"] {
        let mut client = begin_turn(bench.app.addr(), script, script).await;
        client.read_until(&event(0)).await;
        // A rival comes in as soon as Redis lets it, and must find the first one stopped.
        let free = async || turn(bench.app.addr(), script, "plain:next").await.status == 200;
        let rival = wait_for_async(free, "the rival's turn");
        let (answer, ()) = tokio::join!(client.answer(), rival);
        assert_eq!(answer.status, 200, "it had begun: {script}");
        assert!(
            !answer.whole,
            "and is not ended as if it were whole: {script}"
        );
        bench.backend.gone(script).await;
        bench.becomes_free(script, script).await;
        assert_eq!(
            bench.backend.max_overlap(script),
            1,
            "the next one starts after it: {script}"
        );
    }
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("unread", "big:100000000")).await;
    client.piece().await;
    bench.backend.gone("unread").await;
    bench
        .becomes_free("unread", "a client that reads nothing")
        .await;
    assert_eq!(bench.backend.max_overlap("unread"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_lease_that_runs_out_before_the_answer_is_a_503() {
    let bench = start(SHORT).await;
    let answer = turn(bench.app.addr(), "s1", "hang").await;
    assert_eq!(answer.status, 503, "the turn is stopped");
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("lock_lost"),
        "and it is said why"
    );
    bench.backend.gone("s1").await;
    bench.becomes_free("s1", "a lease that ran out").await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_request_still_being_sent_stops_at_the_deadline() {
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let backend = Backend::start("plain:ok").await;
    let app = App::start(&backend.url(), "memory:", QUICK, &format!("{SHORT}{route}"));
    let mut client = Client::connect(app.addr()).await;
    // Too large to be read before the lock is taken.
    let request = Request::post("/up").header("x-test-session", "s1");
    client
        .send_head(&request.header("content-length", "100000"))
        .await;
    client.send_raw(b"01234").await;
    let answer = client.answer().await;
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("lock_lost"),
        "its time is over"
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
        "the backend never had the rest of the first one"
    );
}

#[tokio::test]
async fn a_turn_that_may_go_on_without_its_lock_does() {
    let bench = start("[lock]\nlock_timeout = \"600ms\"\non_lost = \"continue\"\n").await;
    let answer = turn(bench.app.addr(), "s1", "chunked:30:50").await;
    assert!(
        answer.whole,
        "with on_lost = \"continue\" it runs to its end: {answer:?}"
    );
    bench.becomes_free("s1", "a turn that went on").await;
}

#[tokio::test]
async fn redis_stopped_in_the_middle_cuts_the_turn_without_redis_coming_back() {
    let bench = start(EXTENDED).await;
    let mut client = begin_turn(bench.app.addr(), "s1", "chunked:100000:5").await;
    client.read_until(&event(0)).await;
    bench.redis.stop_cont(true).await;
    let answer = client.answer().await;
    assert!(
        !answer.whole,
        "what can't be extended is cut at its own deadline"
    );
    bench.backend.gone("s1").await;
    bench.redis.stop_cont(false).await;
    bench.becomes_free("s1", "Redis stood still").await;
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one turn at a time");
}

#[tokio::test]
async fn a_lock_that_is_taken_away_aborts_its_turn() {
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
        "and the new holder isn't disturbed"
    );
    bench.redis.command(&["DEL", &key("s1")]).await;
    bench.becomes_free("s1", "the lock was taken away").await;
}

#[tokio::test]
async fn a_lock_that_is_taken_away_aborts_a_turn_whose_client_reads_nothing() {
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
    bench.becomes_free("s1", "the lock was taken away").await;
}

#[tokio::test]
async fn many_held_turns_are_extended_together() {
    let lock = "[lock]\nlock_timeout = 60\nextend_lock_interval = \"1500ms\"\n";
    let bench = start(lock).await;
    let mut held = Vec::new();
    for n in 0..40 {
        let mut client = begin_turn(bench.app.addr(), &format!("s{n}"), "gate").await;
        client.read_until(&event(0)).await;
        held.push(client);
    }
    // From here on nothing but extensions is sent. The first round gathers them.
    let monitor = bench.redis.monitor().await;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = async || monitor.lines_from_clients().await.len() >= 3 * workers;
    wait_for_async(rounds, "three rounds of extensions").await;
    let lines = monitor.lines_from_clients().await;
    let extended = |line: &String| line.matches("\"{lock:session:").count();
    let last: usize = lines.iter().rev().take(workers).map(extended).sum();
    assert_eq!(
        last, 40,
        "one command of each worker extends all it holds: {lines:#?}"
    );
    bench.backend.open_all_gates();
    for client in &mut held {
        assert!(
            client.answer().await.whole,
            "and every turn runs to its end"
        );
    }
    tokio::time::timeout(Duration::from_secs(20), bench.app.stop())
        .await
        .expect("it stops");
}
