//! The newest turn replaces the running one, wherever it runs, and everybody who waits.

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const INTERRUPT: &str = "[lock]\nblocking = true\ninterrupt = true\n";

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config).replicas(2).on_redis().await
}

impl Bench<Redis> {
    /// Waits until no key is left but the mark of an interruption, which stays for some seconds.
    async fn is_quiet_but_for_the_mark(&self) {
        let is_mark = |key: &String| key.ends_with(":waiters");
        let quiet = async || self.redis.keys().await.iter().all(is_mark);
        wait_for_async(quiet, "no lock and no line is left when all is quiet").await;
        assert_eq!(self.backend.overlaps(), [], "turns never overlapped");
    }
}

#[tokio::test]
async fn a_turn_on_another_replica_stops_the_running_one_and_starts_after_it() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let new = turn(bench.replica(1), "s1", "plain:new").await;
    assert_eq!(
        (new.status, &*new.text()),
        (200, "new"),
        "the new turn is served"
    );
    let old = old.answer().await;
    assert!(
        old.status == 200 && !old.whole,
        "the old one's answer is aborted, and never ended as if it were whole"
    );
    bench.backend.gone("s1").await;
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn a_turn_that_has_no_answer_yet_gets_409() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "gate-head").await;
    bench.backend.started("s1", 1).await;
    assert_eq!(
        turn(bench.replica(1), "s1", "plain:new").await.status,
        200,
        "the new turn is served"
    );
    assert_eq!(
        old.answer().await.error(),
        (409, "superseded"),
        "the old one is told that it was replaced"
    );
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn in_memory_too_the_newest_turn_replaces_the_running_one() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{INTERRUPT}{CHAT}"));
    for script in ["chunked:100000:5", "hang-middle"] {
        let mut old = begin_turn(app.addr(), script, script).await;
        old.read_until(&event(0)).await;
        let new = turn(app.addr(), script, "plain:new").await;
        assert_eq!(new.status, 200, "the new turn is served: {script}");
        assert!(!old.answer().await.whole, "the old one is cut: {script}");
        assert_eq!(backend.max_overlap(script), 1, "never beside it: {script}");
    }
}

#[tokio::test]
async fn a_holder_whose_client_takes_nothing_is_stopped_too() {
    for on_lost in ["abort", "continue"] {
        let config = format!("{INTERRUPT}on_lost = \"{on_lost}\"\n{CHAT}");
        let bench = start(&config).await;
        let mut old = Client::connect_narrow(bench.replica(0), 4096).await;
        old.send(&Request::turn("s1", "big:50000000")).await;
        bench.backend.started("s1", 1).await;
        assert_eq!(
            turn(bench.replica(1), "s1", "plain:new").await.status,
            200,
            "the new turn doesn't wait for a client that reads nothing ({on_lost})"
        );
        assert_eq!(bench.backend.max_overlap("s1"), 1, "nor runs beside it");
    }
}

#[tokio::test]
async fn all_older_waiters_are_superseded() {
    let waiting = format!(
        "{CHAT}blocking = true\n\n[[routes]]\nname = \"now\"\npath = \"/now\"\n\
         session_id = [\"{{body:/session_id}}\"]\nuser_id = [\"{{body:/user_id}}\"]\n\
         blocking = true\ninterrupt = true\n"
    );
    let bench = start(&waiting).await;
    let mut holder = begin_turn(bench.replica(0), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        let addr = if n % 2 == 0 {
            bench.replica(0)
        } else {
            bench.replica(1)
        };
        waiters.push(begin_turn(addr, "s1", "plain:old").await);
        is_waiting(&bench.redis, "s1", n + 1).await;
    }
    let body = r#"{"session_id":"s1","user_id":"u1"}"#;
    let now = Request::post("/now")
        .header("x-test-script", "plain:now")
        .json(body);
    let answer = Client::connect(bench.replica(1)).await.call(&now).await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "now"),
        "the newest turn is served"
    );
    for waiter in &mut waiters {
        assert_eq!(
            waiter.answer().await.error(),
            (409, "superseded"),
            "everybody who waited has been replaced"
        );
    }
    assert!(!holder.answer().await.whole, "and so has the holder");
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn of_many_interrupting_turns_the_newest_is_served_and_none_runs_beside_another() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    let mut clients = Vec::new();
    for n in 0..40 {
        let addr = if n % 2 == 0 {
            bench.replica(0)
        } else {
            bench.replica(1)
        };
        clients.push(begin_turn(addr, "s1", "chunked:3:10").await);
    }
    let (mut served, mut replaced) = (0, 0);
    for client in &mut clients {
        let answer = client.answer().await;
        match answer.error() {
            (200, _) if answer.whole => served += 1,
            (200, _) | (409, "superseded") => replaced += 1,
            other => panic!("served or replaced, and nothing else: {other:?}"),
        }
    }
    assert!(served >= 1, "the last one is never replaced");
    assert!(replaced > 0, "and there was something to replace");
    bench.is_quiet_but_for_the_mark().await;
    // The mark of an interruption goes by itself.
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn a_holder_that_is_not_seriatims_is_waited_for() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "python", "PX", "60000"])
        .await;
    let mut waiter = begin_turn(bench.replica(0), "s1", "plain:x").await;
    is_waiting(&bench.redis, "s1", 1).await;
    assert_eq!(
        bench.redis.get(&key("s1")).await.as_deref(),
        Some("python"),
        "its lock is not taken from it"
    );
    bench.redis.command(&["DEL", &key("s1")]).await;
    assert_eq!(waiter.answer().await.status, 200, "and then it is free");
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn a_message_to_the_holder_that_is_lost_is_sent_again() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    // Redis takes messages for nobody for a while.
    let deaf = bench
        .redis
        .command(&["ACL", "SETUSER", "default", "resetchannels"]);
    deaf.await;
    let mut new = begin_turn(bench.replica(1), "s1", "plain:new").await;
    is_waiting(&bench.redis, "s1", 1).await;
    bench
        .redis
        .command(&["ACL", "SETUSER", "default", "allchannels"])
        .await;
    assert_eq!(new.answer().await.status, 200, "the new turn is served");
    assert!(!old.answer().await.whole, "after the old one was told");
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn a_replaced_turn_has_its_time_to_settle_before_the_new_one_starts() {
    let bench = start(&format!("{INTERRUPT}settle = \"200ms\"\n{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let mut new = begin_turn(bench.replica(1), "s1", "plain:new").await;
    assert!(!old.answer().await.whole, "the old turn is cut at once");
    assert!(
        bench.redis.get(&key("s1")).await.is_some(),
        "its lock is held on to for what the backend saves late"
    );
    assert_eq!(new.answer().await.status, 200, "then the new one comes");
    bench.is_quiet_but_for_the_mark().await;
}

#[tokio::test]
async fn a_turn_whose_answer_is_over_is_not_cut_while_it_settles() {
    let bench = start(&format!("{INTERRUPT}settle = \"500ms\"\n{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:2:1").await;
    old.read_until(&event(1)).await;
    bench.backend.ended("s1", 1).await;
    let mut new = begin_turn(bench.replica(1), "s1", "plain:new").await;
    assert!(
        old.answer().await.whole,
        "there is nothing left to interrupt"
    );
    assert_eq!(
        new.answer().await.status,
        200,
        "the new turn comes after it"
    );
    bench.is_quiet_but_for_the_mark().await;
}
