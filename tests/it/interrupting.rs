//! With `interrupt` the newest turn replaces the running one, on any replica, and all waiters.

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
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
    /// Waits until no key is left but the mark of an interruption, which expires after some seconds.
    async fn is_quiet_except_for_the_mark(&self) {
        let is_mark = |key: &String| key.ends_with(":waiters");
        let quiet = async || self.redis.keys().await.iter().all(is_mark);
        wait_for_async(quiet, "no lock and no queue is left at the end").await;
        assert_eq!(self.backend.overlaps(), [], "turns never overlap");
    }
}

#[tokio::test]
async fn a_turn_on_another_replica_aborts_the_running_one_and_follows_it() {
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
        "the old turn's response is aborted, and never looks complete"
    );
    bench.backend.gone("s1").await;
    bench.is_quiet_except_for_the_mark().await;
}

#[tokio::test]
async fn a_replaced_turn_without_a_response_gets_409() {
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
        "the old turn gets an error response with the reason"
    );
    bench.is_quiet_except_for_the_mark().await;
}

#[tokio::test]
async fn the_memory_store_lets_the_newest_turn_replace_the_running_one() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{INTERRUPT}{CHAT}"));
    for script in ["chunked:100000:5", "hang-middle"] {
        let mut old = begin_turn(app.addr(), script, script).await;
        old.read_until(&event(0)).await;
        let new = turn(app.addr(), script, "plain:new").await;
        assert_eq!(new.status, 200, "the new turn is served: {script}");
        assert!(
            !old.answer().await.whole,
            "the old turn is aborted: {script}"
        );
        assert_eq!(
            backend.max_overlap(script),
            1,
            "the two turns never overlap: {script}"
        );
    }
}

#[tokio::test]
async fn a_holder_whose_client_reads_nothing_is_aborted_too() {
    for on_lost in ["abort", "continue"] {
        let config = format!("{INTERRUPT}on_lost = \"{on_lost}\"\n{CHAT}");
        let bench = start(&config).await;
        let mut old = Client::connect_narrow(bench.replica(0), 4096).await;
        old.send(&Request::turn("s1", "big:50000000")).await;
        bench.backend.started("s1", 1).await;
        assert_eq!(
            turn(bench.replica(1), "s1", "plain:new").await.status,
            200,
            "the new turn does not wait for a client that reads nothing ({on_lost})"
        );
        assert_eq!(
            bench.backend.max_overlap("s1"),
            1,
            "the two turns never overlap"
        );
    }
}

#[tokio::test]
async fn an_interrupting_turn_replaces_all_waiters() {
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
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
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
            "every waiter is replaced"
        );
    }
    assert!(!holder.answer().await.whole, "the holder is replaced");
    bench.is_quiet_except_for_the_mark().await;
}

#[tokio::test]
async fn many_interrupting_turns_never_overlap_and_the_newest_is_served() {
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
            other => panic!("a turn is served or replaced: {other:?}"),
        }
    }
    assert!(served >= 1, "the newest turn is never replaced");
    assert!(replaced > 0, "some turns are replaced");
    bench.is_quiet_except_for_the_mark().await;
    // The mark of an interruption expires.
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn an_interrupting_turn_waits_for_a_holder_that_is_other_code() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    bench
        .redis
        .command(&["SET", &key("s1"), "python", "PX", "60000"])
        .await;
    let mut waiter = begin_turn(bench.replica(0), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    assert_eq!(
        bench.redis.get(&key("s1")).await.as_deref(),
        Some("python"),
        "the holder keeps its lock"
    );
    bench.redis.command(&["DEL", &key("s1")]).await;
    assert_eq!(
        waiter.answer().await.status,
        200,
        "the waiter is served when the lock is free"
    );
    bench.is_quiet_except_for_the_mark().await;
}

#[tokio::test]
async fn a_lost_message_to_the_holder_is_sent_again() {
    let bench = start(&format!("{INTERRUPT}{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    // For a while Redis delivers no message.
    let block_messages = bench
        .redis
        .command(&["ACL", "SETUSER", "default", "resetchannels"]);
    block_messages.await;
    let mut new = begin_turn(bench.replica(1), "s1", "plain:new").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench
        .redis
        .command(&["ACL", "SETUSER", "default", "allchannels"])
        .await;
    assert_eq!(new.answer().await.status, 200, "the new turn is served");
    assert!(!old.answer().await.whole, "the old turn is aborted first");
    bench.is_quiet_except_for_the_mark().await;
}

#[tokio::test]
async fn a_complete_turn_is_not_aborted_while_it_settles() {
    let bench = start(&format!("{INTERRUPT}settle = \"500ms\"\n{CHAT}")).await;
    let mut old = begin_turn(bench.replica(0), "s1", "chunked:2:1").await;
    old.read_until(&event(1)).await;
    bench.backend.ended("s1", 1).await;
    let mut new = begin_turn(bench.replica(1), "s1", "plain:new").await;
    assert!(old.answer().await.whole, "the old turn is complete");
    assert_eq!(new.answer().await.status, 200, "the new turn follows");
    bench.is_quiet_except_for_the_mark().await;
}
