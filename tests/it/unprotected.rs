//! Turns that run without the store's lock because the configuration says so: when the store is out
//! of reach, and when turns are observed only. Each is marked, and two at once are told of.

use serde_json::Value;

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::{wait_for, wait_for_async};

impl Replicas<FaultProxy> {
    async fn is_held_in_redis(&self, session: &str) {
        let held = async || self.redis.get(&key(session)).await.is_some();
        wait_for_async(held, "the turn's lock is in the store").await;
    }
}

fn of_requests(events: &[Value]) -> Vec<&Value> {
    let mut events: Vec<_> = events.iter().collect();
    events.retain(|event| event["outcome"].is_string());
    events
}

#[tokio::test]
async fn with_allow_turns_pass_without_a_lock_while_the_store_is_away() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica("on_error = \"allow\"", "");
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "as usual"
    );
    bench.network.set(Mode::Reset).await;
    let mut first = hold(app.addr(), "s1").await;
    let mut second = hold(app.addr(), "s1").await;
    assert_eq!(
        bench.backend.max_overlap("s1"),
        2,
        "nobody keeps them apart"
    );
    bench.backend.open_gate("s1");
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "each runs to its end");
    assert!(second.answer().await.whole, "each runs to its end");
    let last = bench.backend.requests().pop().expect("there were requests");
    assert!(
        last.headers
            .iter()
            .all(|(name, _)| name != "x-seriatim-fence"),
        "without a lock there is no fence"
    );
    bench.network.set(Mode::Pass).await;
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn a_replica_that_serves_without_the_store_is_ready_without_it() {
    let bench = Replicas::on_faulty_network().await;
    bench.network.set(Mode::Reset).await;
    for (on_error, expected) in [("reject", 503), ("allow", 200), ("local", 200)] {
        let app = bench.replica(&format!("on_error = \"{on_error}\""), "");
        let answer = Client::connect(app.admin()).await.get("/readyz").await;
        assert_eq!(
            answer.status, expected,
            "on_error = {on_error}: whoever can serve is to be sent requests"
        );
        app.stop().await;
    }
}

#[tokio::test]
async fn a_store_that_hangs_is_told_of_though_no_sign_of_life_is_due() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica("crash_recovery = 0\ntimeout = \"200ms\"", "");
    let ask = async |path| Client::connect(app.admin()).await.get(path).await;
    let is_told = async |counted: &str, ready| {
        let metrics = ask("/metrics").await.text();
        metrics.lines().any(|line| line == counted) && ask("/readyz").await.status == ready
    };
    let is_up = async || is_told("seriatim_store_up 1", 200).await;
    let is_down = async || is_told("seriatim_store_up 0", 503).await;
    wait_for_async(is_up, "a store that answers is up, and the replica ready").await;
    bench.network.set(Mode::Blackhole).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        503,
        "nobody is served"
    );
    wait_for_async(is_down, "it isn't up, and the replica not ready").await;
    bench.network.set(Mode::Pass).await;
    wait_for_async(is_up, "and again when it answers").await;
}

#[tokio::test]
async fn a_turn_that_began_without_the_store_is_seen_there_as_soon_as_it_is_back() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_faulty_network().await;
        let store = format!("on_error = \"{on_error}\"");
        let app = bench.replica(&store, "");
        let other = App::on_redis(&bench.backend, &bench.redis, CHAT);
        bench.network.set(Mode::Reset).await;
        let mut held = hold(app.addr(), "s1").await;
        let request = bench.backend.requests().pop().expect("its request");
        let has_fence = request
            .headers
            .iter()
            .any(|(name, _)| name == "x-seriatim-fence");
        assert!(
            !has_fence,
            "the numbers of another clock would not rise: there is none"
        );
        bench.network.set(Mode::Pass).await;
        bench.is_held_in_redis("s1").await;
        assert_eq!(
            turn(other.addr(), "s1", "plain:x").await.status,
            429,
            "the other replica sees it ({on_error})"
        );
        bench.backend.open_gate("s1");
        assert!(held.answer().await.whole, "it runs to its end");
        assert_eq!(
            turn(other.addr(), "s1", "plain:x").await.status,
            200,
            "and is gone from the store before its end is seen ({on_error})"
        );
        assert_eq!(bench.backend.max_overlap("s1"), 1, "nothing overlapped");
        is_quiet(&bench.redis).await;
    }
}

#[tokio::test]
async fn a_turn_that_began_without_the_store_stops_when_its_lock_is_freed_by_force() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_faulty_network().await;
        let app = bench.replica(&format!("on_error = \"{on_error}\""), "");
        bench.network.set(Mode::Reset).await;
        let mut held = hold(app.addr(), "s1").await;
        bench.network.set(Mode::Pass).await;
        bench.is_held_in_redis("s1").await;
        let mut operator = Client::connect(app.admin()).await;
        let free = Request::new("DELETE", "/locks/u1/s1");
        let freed = operator.call(&free).await.json();
        assert_eq!(freed["released"], true, "it was there: {freed}");
        assert!(
            held.try_answer().await.is_ok_and(|answer| !answer.whole),
            "on_lost is \"abort\", and its lock is lost ({on_error})"
        );
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            200,
            "the session is free ({on_error})"
        );
    }
}

#[tokio::test]
async fn with_local_a_replica_keeps_its_own_turns_apart() {
    let bench = Replicas::on_faulty_network().await;
    for lock in ["", "[lock]\nblocking = true\n"] {
        let app = bench.replica("on_error = \"local\"", lock);
        let session = if lock.is_empty() { "s1" } else { "s2" };
        bench.network.set(Mode::Reset).await;
        let mut held = hold(app.addr(), session).await;
        if lock.is_empty() {
            assert_eq!(
                turn(app.addr(), session, "plain:x").await.status,
                429,
                "the session is busy here"
            );
            // Also for a turn that asks the store and gets its lock there.
            bench.network.set(Mode::Pass).await;
            bench.is_held_in_redis(session).await;
            bench.redis.command(&["DEL", &key(session)]).await;
            let refused = turn(app.addr(), session, "plain:x").await;
            assert_eq!(refused.status, 429, "whatever the store says");
            bench.backend.open_gate(session);
            assert!(held.answer().await.whole, "the holder runs to its end");
        } else {
            let mut waiter = begin_turn(app.addr(), session, "plain:x").await;
            bench.backend.open_gate(session);
            assert!(held.answer().await.whole, "the holder runs to its end");
            assert_eq!(waiter.answer().await.status, 200, "then comes who waited");
            bench.network.set(Mode::Pass).await;
        }
        assert_eq!(bench.backend.max_overlap(session), 1, "one at a time");
        app.stop().await;
        is_quiet(&bench.redis).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_turn_without_the_stores_lock_says_so_and_whether_it_overlapped() {
    let bench = Replicas::on_faulty_network().await;
    let process = bench.process("on_error = \"allow\"\ntimeout = \"500ms\"", "");
    let other = App::on_redis(&bench.backend, &bench.redis, CHAT);
    turn(process.addr(), "s0", "plain:x").await;
    bench.network.set(Mode::Reset).await;
    let mut first = hold(process.addr(), "s1").await;
    let mut beside = hold(other.addr(), "s1").await;
    bench.network.set(Mode::Pass).await;
    // It asks the store again, and finds the other replica's turn there.
    let overlap = || process.told("two turns of one session run at once");
    wait_for(overlap, "the overlap is told of while it lasts").await;
    bench.backend.open_all_gates();
    assert!(first.answer().await.whole, "nothing is refused or cut");
    assert!(beside.answer().await.whole, "on either side");
    process.signal("TERM");
    let (_, events) = process.end();
    let of_turns = of_requests(&events);
    assert_eq!(
        (&of_turns[0]["unprotected"], &of_turns[0]["overlap"]),
        (&Value::Null, &Value::Null),
        "a turn under its lock has nothing to say"
    );
    assert_eq!(
        (&of_turns[1]["unprotected"], &of_turns[1]["overlap"]),
        (&Value::from("allow"), &Value::from(true)),
        "one without says why, and that it was not alone: {}",
        of_turns[1]
    );
}

#[tokio::test]
async fn an_observed_holder_is_waited_for_by_who_would_replace_it() {
    let bench = Replicas::on_faulty_network().await;
    let observed = bench.replica("", "[lock]\nenforce = false\n");
    let other = bench.replica("", "[lock]\nblocking = true\ninterrupt = true\n");
    let mut held = hold(observed.addr(), "s1").await;
    bench.is_held_in_redis("s1").await;
    let mut waiter = begin_turn(other.addr(), "s1", "plain:x").await;
    is_waiting(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "it isn't disturbed");
    assert_eq!(
        waiter.answer().await.status,
        200,
        "and then the other comes"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "never beside it");
}

#[tokio::test]
async fn turns_without_the_stores_lock_are_counted() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica("on_error = \"allow\"", "");
    let counted = async || {
        let mut client = Client::connect(app.admin()).await;
        client.get("/metrics").await.text()
    };
    turn(app.addr(), "s1", "plain:x").await;
    assert!(
        counted()
            .await
            .contains("unprotected_turns_total{reason=\"allow\"} 0"),
        "a turn under its lock isn't one of them"
    );
    bench.network.set(Mode::Reset).await;
    for _ in 0..3 {
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            200,
            "passes"
        );
    }
    let text = counted().await;
    assert!(
        text.contains("seriatim_unprotected_turns_total{reason=\"allow\"} 3"),
        "each is counted: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn observed_turns_are_neither_refused_nor_delayed_and_overlaps_are_told_of() {
    let bench = Replicas::on_faulty_network().await;
    let process = bench.process("", "[lock]\nenforce = false\n");
    for _ in 0..20 {
        let alone = turn(process.addr(), "s1", "plain:x").await;
        assert_eq!(alone.status, 200, "one after another");
    }
    let mut first = hold(process.addr(), "s2").await;
    bench.is_held_in_redis("s2").await;
    let mut second = hold(process.addr(), "s2").await;
    let overlap = || process.told("two turns of one session run at once");
    wait_for(overlap, "the overlap is told of").await;
    bench.backend.open_all_gates();
    assert!(first.answer().await.whole, "nothing is refused");
    assert!(second.answer().await.whole, "or cut");
    bench.network.set(Mode::Blackhole).await;
    let blind = turn(process.addr(), "s3", "plain:x").await;
    assert_eq!(blind.status, 200, "nor does anything wait for the store");
    bench.network.set(Mode::Pass).await;
    is_quiet(&bench.redis).await;
    process.signal("TERM");
    let (_, events) = process.end();
    let of_turns = of_requests(&events);
    assert!(
        of_turns
            .iter()
            .all(|event| event["unprotected"] == "observe"),
        "each is marked"
    );
    let overlaps: Vec<_> = of_turns
        .iter()
        .filter(|event| event["overlap"] == true)
        .collect();
    assert_eq!(overlaps.len(), 1, "the second one overlapped: {overlaps:?}");
    assert_eq!(overlaps[0]["key"], key("s2"), "and no other");
}

#[tokio::test]
async fn with_local_a_newer_turn_replaces_one_that_began_when_the_store_was_there() {
    let bench = Replicas::on_faulty_network().await;
    let lock = "[lock]\nblocking = true\ninterrupt = true\n";
    let app = bench.replica("on_error = \"local\"", lock);
    let mut held = hold(app.addr(), "s1").await;
    bench.network.set(Mode::Reset).await;
    let mut newer = begin_turn(app.addr(), "s1", "plain:x").await;
    assert!(
        !held.answer().await.whole,
        "the running turn is told by the lock of its own replica"
    );
    assert_eq!(newer.answer().await.status, 200, "and the newer one runs");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one at a time");
    bench.network.set(Mode::Pass).await;
    is_quiet(&bench.redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observed_turn_that_outlives_its_lease_is_not_taken_for_two() {
    let bench = Replicas::on_faulty_network().await;
    let lock = "[lock]\nenforce = false\nlock_timeout = \"300ms\"\n";
    let process = bench.process("timeout = \"200ms\"", lock);
    let mut alone = hold(process.addr(), "s1").await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    bench.is_held_in_redis("s1").await;
    bench.backend.open_gate("s1");
    assert!(alone.answer().await.whole, "it runs to its end");
    is_quiet(&bench.redis).await;
    process.signal("TERM");
    let (_, events) = process.end();
    assert_eq!(
        of_requests(&events)[0]["overlap"],
        false,
        "it was alone, whatever became of its leases"
    );
}
