//! Turns that run without the store's lock because the configuration allows it: while the store is
//! unavailable, and with enforcement off. Each is marked, and overlapping turns are logged.

use serde_json::Value;

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
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
async fn with_on_error_allow_turns_run_unlocked_during_an_outage() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica("on_error = \"allow\"", "");
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "a turn is served with the store"
    );
    bench.network.set(Mode::Reset).await;
    let mut first = hold(app.addr(), "s1").await;
    let mut second = hold(app.addr(), "s1").await;
    assert_eq!(bench.backend.max_overlap("s1"), 2, "unlocked turns overlap");
    bench.backend.open_gate("s1");
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "each turn is complete");
    assert!(second.answer().await.whole, "each turn is complete");
    let last = bench.backend.requests().pop().expect("there were requests");
    assert!(
        last.headers
            .iter()
            .all(|(name, _)| name != "x-seriatim-fence"),
        "an unlocked turn has no fence"
    );
    bench.network.set(Mode::Pass).await;
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn readiness_needs_the_store_only_with_on_error_reject() {
    let bench = Replicas::on_faulty_network().await;
    bench.network.set(Mode::Reset).await;
    for (on_error, expected) in [("reject", 503), ("allow", 200), ("local", 200)] {
        let app = bench.replica(&format!("on_error = \"{on_error}\""), "");
        let answer = Client::connect(app.admin()).await.get("/readyz").await;
        assert_eq!(
            answer.status, expected,
            "on_error = {on_error}: a replica that can serve is ready"
        );
        app.stop().await;
    }
}

#[tokio::test]
async fn a_hanging_store_is_reported_before_the_next_heartbeat() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica(
        "crash_recovery = 0\ntimeout = \"200ms\"\nunready_after = 0",
        "",
    );
    let ask = async |path| Client::connect(app.admin()).await.get(path).await;
    let reports = async |counted: &str, ready| {
        let metrics = ask("/metrics").await.text();
        metrics.lines().any(|line| line == counted) && ask("/readyz").await.status == ready
    };
    let is_up = async || reports("seriatim_store_up 1", 200).await;
    let is_down = async || reports("seriatim_store_up 0", 503).await;
    wait_for_async(is_up, "a working store is up, and the replica is ready").await;
    bench.network.set(Mode::Blackhole).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        503,
        "no turn is served"
    );
    wait_for_async(
        is_down,
        "a hanging store is down, and the replica is not ready",
    )
    .await;
    bench.network.set(Mode::Pass).await;
    wait_for_async(is_up, "the store is up again when it answers").await;
}

#[tokio::test]
async fn a_turn_from_an_outage_takes_its_lock_when_the_store_is_back() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_faulty_network().await;
        let store = format!("on_error = \"{on_error}\"");
        let app = bench.replica(&store, "");
        let other = App::on_redis(&bench.backend, &bench.redis, CHAT);
        bench.network.set(Mode::Reset).await;
        let mut held = hold(app.addr(), "s1").await;
        let request = bench
            .backend
            .requests()
            .pop()
            .expect("the backend received the request");
        let has_fence = request
            .headers
            .iter()
            .any(|(name, _)| name == "x-seriatim-fence");
        assert!(
            !has_fence,
            "an unlocked turn has no fence, as numbers of another clock might not rise"
        );
        bench.network.set(Mode::Pass).await;
        bench.is_held_in_redis("s1").await;
        assert_eq!(
            turn(other.addr(), "s1", "plain:x").await.status,
            429,
            "the other replica sees the lock ({on_error})"
        );
        bench.backend.open_gate("s1");
        assert!(held.answer().await.whole, "the turn is complete");
        assert_eq!(
            turn(other.addr(), "s1", "plain:x").await.status,
            200,
            "the lock is released before the client sees the end ({on_error})"
        );
        assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlapped");
        wait_until_no_keys(&bench.redis).await;
    }
}

#[tokio::test]
async fn a_forced_release_stops_a_turn_from_an_outage() {
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
        assert_eq!(freed["released"], true, "the lock is released: {freed}");
        assert!(
            held.try_answer().await.is_ok_and(|answer| !answer.whole),
            "on_lost = \"abort\" cuts a turn that lost its lock ({on_error})"
        );
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            200,
            "the session is free ({on_error})"
        );
    }
}

#[tokio::test]
async fn with_on_error_local_a_replica_still_serialises_its_own_turns() {
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
                "the session is busy on this replica"
            );
            // Also for a turn that gets the lock from the store.
            bench.network.set(Mode::Pass).await;
            bench.is_held_in_redis(session).await;
            bench.redis.command(&["DEL", &key(session)]).await;
            let refused = turn(app.addr(), session, "plain:x").await;
            assert_eq!(
                refused.status, 429,
                "the local lock refuses although the store grants"
            );
            bench.backend.open_gate(session);
            assert!(held.answer().await.whole, "the holder's turn is complete");
        } else {
            let mut waiter = begin_turn(app.addr(), session, "plain:x").await;
            bench.backend.open_gate(session);
            assert!(held.answer().await.whole, "the holder's turn is complete");
            assert_eq!(
                waiter.answer().await.status,
                200,
                "the waiter is served next"
            );
            bench.network.set(Mode::Pass).await;
        }
        assert_eq!(
            bench.backend.max_overlap(session),
            1,
            "turns never overlapped"
        );
        app.stop().await;
        wait_until_no_keys(&bench.redis).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unprotected_turn_is_logged_with_its_reason_and_overlap() {
    let bench = Replicas::on_faulty_network().await;
    let process = bench.process("on_error = \"allow\"\ntimeout = \"500ms\"", "");
    let other = App::on_redis(&bench.backend, &bench.redis, CHAT);
    turn(process.addr(), "s0", "plain:x").await;
    bench.network.set(Mode::Reset).await;
    let mut first = hold(process.addr(), "s1").await;
    let mut second = hold(other.addr(), "s1").await;
    bench.network.set(Mode::Pass).await;
    // The process asks the store again and finds the other replica's lock.
    let overlap = || process.has_logged("two turns of one session run at once");
    wait_for(overlap, "the overlap is logged while it lasts").await;
    bench.backend.open_all_gates();
    assert!(first.answer().await.whole, "the first turn is complete");
    assert!(second.answer().await.whole, "the second turn is complete");
    process.signal("TERM");
    let (_, events) = process.end();
    let of_turns = of_requests(&events);
    assert_eq!(
        (&of_turns[0]["unprotected"], &of_turns[0]["overlap"]),
        (&Value::Null, &Value::Null),
        "a locked turn has neither field"
    );
    assert_eq!(
        (&of_turns[1]["unprotected"], &of_turns[1]["overlap"]),
        (&Value::from("allow"), &Value::from(true)),
        "an unprotected turn has its reason and overlap: {}",
        of_turns[1]
    );
}

#[tokio::test]
async fn an_interrupting_turn_waits_for_an_unenforced_holder() {
    let bench = Replicas::on_faulty_network().await;
    let observed = bench.replica("", "[lock]\nenforce = false\n");
    let other = bench.replica("", "[lock]\nblocking = true\ninterrupt = true\n");
    let mut held = hold(observed.addr(), "s1").await;
    bench.is_held_in_redis("s1").await;
    let mut waiter = begin_turn(other.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the holder isn't interrupted");
    assert_eq!(
        waiter.answer().await.status,
        200,
        "the waiter is served after it"
    );
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlapped");
}

#[tokio::test]
async fn unprotected_turns_are_counted() {
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
        "a locked turn isn't counted"
    );
    bench.network.set(Mode::Reset).await;
    for _ in 0..3 {
        assert_eq!(
            turn(app.addr(), "s1", "plain:x").await.status,
            200,
            "an unlocked turn is served"
        );
    }
    let text = counted().await;
    assert!(
        text.contains("seriatim_unprotected_turns_total{reason=\"allow\"} 3"),
        "each unprotected turn is counted: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unenforced_turns_are_never_refused_or_delayed_and_overlaps_are_logged() {
    let bench = Replicas::on_faulty_network().await;
    let process = bench.process("", "[lock]\nenforce = false\n");
    for _ in 0..20 {
        let alone = turn(process.addr(), "s1", "plain:x").await;
        assert_eq!(alone.status, 200, "a turn is served");
    }
    let mut first = hold(process.addr(), "s2").await;
    bench.is_held_in_redis("s2").await;
    let mut second = hold(process.addr(), "s2").await;
    let overlap = || process.has_logged("two turns of one session run at once");
    wait_for(overlap, "the overlap is logged").await;
    bench.backend.open_all_gates();
    assert!(first.answer().await.whole, "the first turn is complete");
    assert!(second.answer().await.whole, "the second turn is complete");
    bench.network.set(Mode::Blackhole).await;
    let blind = turn(process.addr(), "s3", "plain:x").await;
    assert_eq!(
        blind.status, 200,
        "an unenforced turn doesn't wait for the store"
    );
    bench.network.set(Mode::Pass).await;
    wait_until_no_keys(&bench.redis).await;
    process.signal("TERM");
    let (_, events) = process.end();
    let of_turns = of_requests(&events);
    assert!(
        of_turns
            .iter()
            .all(|event| event["unprotected"] == "observe"),
        "each turn is marked as observed"
    );
    let overlaps: Vec<_> = of_turns
        .iter()
        .filter(|event| event["overlap"] == true)
        .collect();
    assert_eq!(
        overlaps.len(),
        1,
        "only the second turn overlapped: {overlaps:?}"
    );
    assert_eq!(
        overlaps[0]["key"],
        key("s2"),
        "the overlap belongs to the session"
    );
}

#[tokio::test]
async fn with_on_error_local_a_newer_turn_interrupts_one_from_before_the_outage() {
    let bench = Replicas::on_faulty_network().await;
    let lock = "[lock]\nblocking = true\ninterrupt = true\n";
    let app = bench.replica("on_error = \"local\"", lock);
    let mut held = hold(app.addr(), "s1").await;
    bench.network.set(Mode::Reset).await;
    let mut newer = begin_turn(app.addr(), "s1", "plain:x").await;
    assert!(
        !held.answer().await.whole,
        "the local lock interrupts the running turn"
    );
    assert_eq!(newer.answer().await.status, 200, "the newer turn is served");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlapped");
    bench.network.set(Mode::Pass).await;
    wait_until_no_keys(&bench.redis).await;
}

/// Begins a turn whose client reads nothing, and waits until the backend has it.
async fn hold_unread(bench: &Replicas<FaultProxy>, app: &App, session: &str) -> Client {
    let mut client = Client::connect_narrow(app.addr(), 4096).await;
    client.send(&Request::turn(session, "big:50000000")).await;
    bench.backend.started(session, 1).await;
    client
}

#[tokio::test]
async fn an_interrupt_reaches_a_turn_from_an_outage_whose_client_reads_nothing() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_faulty_network().await;
        let app = bench.replica(&format!("on_error = \"{on_error}\""), "");
        bench.network.set(Mode::Reset).await;
        let _unread = hold_unread(&bench, &app, "s1").await;
        bench.network.set(Mode::Pass).await;
        bench.is_held_in_redis("s1").await;
        let mut operator = Client::connect(app.admin()).await;
        let interrupt = Request::new("POST", "/locks/u1/s1/interrupt");
        let interrupted = operator.call(&interrupt).await.json();
        assert_eq!(interrupted["released"], true, "{on_error}: {interrupted}");
        bench.backend.gone("s1").await;
        wait_until_no_keys(&bench.redis).await;
    }
}

#[tokio::test]
async fn with_on_error_local_an_interrupt_reaches_a_turn_whose_client_reads_nothing() {
    let bench = Replicas::on_faulty_network().await;
    for on_lost in ["abort", "continue"] {
        let lock = format!("[lock]\nblocking = true\ninterrupt = true\non_lost = \"{on_lost}\"\n");
        let app = bench.replica("on_error = \"local\"", &lock);
        let _unread = hold_unread(&bench, &app, on_lost).await;
        bench.is_held_in_redis(on_lost).await;
        bench.network.set(Mode::Reset).await;
        let newer = turn(app.addr(), on_lost, "plain:x").await;
        assert_eq!(newer.status, 200, "the newer turn is served ({on_lost})");
        let overlap = bench.backend.max_overlap(on_lost);
        assert_eq!(overlap, 1, "turns never overlapped ({on_lost})");
        bench.network.set(Mode::Pass).await;
        app.stop().await;
    }
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unenforced_turn_that_outlives_its_lease_is_no_overlap() {
    let bench = Replicas::on_faulty_network().await;
    let lock = "[lock]\nenforce = false\nlock_timeout = \"300ms\"\n";
    let process = bench.process("timeout = \"200ms\"", lock);
    let mut alone = hold(process.addr(), "s1").await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    bench.is_held_in_redis("s1").await;
    bench.backend.open_gate("s1");
    assert!(alone.answer().await.whole, "the turn is complete");
    wait_until_no_keys(&bench.redis).await;
    process.signal("TERM");
    let (_, events) = process.end();
    assert_eq!(
        of_requests(&events)[0]["overlap"],
        false,
        "a turn that is alone has no overlap, whatever happens to its lease"
    );
}
