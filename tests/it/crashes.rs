//! Replicas that are killed, stopped for a while, or can't reach the store: how soon their sessions
//! are free, and that they never run beside whoever took them over.

use crate::support::app::{App, CHAT, is_quiet, is_waiting, key};
use crate::support::backend::event;
use crate::support::bench::Replicas;
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::{wait_for, wait_for_async};

/// A store that notices within a test's time that an instance is gone.
const QUICK: &str = "timeout = \"200ms\"\ncrash_recovery = \"1s\"";
const BLOCKING: &str = "[lock]\nblocking = true\n";

impl Replicas {
    /// The fences of the session's turns, in the order in which they began.
    fn fences(&self, session: &str) -> Vec<u64> {
        let turns = self.backend.turns(session);
        let headers = turns.iter().flat_map(|turn| &turn.headers);
        headers
            .filter(|(name, _)| name == "x-seriatim-fence")
            .map(|(_, fence)| fence.parse().expect("a number"))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sessions_of_a_killed_replica_are_taken_over() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, "");
    let other = bench.replica(QUICK, "");
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert_eq!(
        turn(other.addr(), "s1", "plain:x").await.status,
        429,
        "the session is busy while its replica lives"
    );
    victim.signal("KILL");
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(
        free,
        "the session is free long before its lease of 300 s ends",
    )
    .await;
    bench.is_quiet().await;
    let fences = bench.fences("s1");
    assert!(
        fences.is_sorted() && fences.len() == 2,
        "the fence rises with a take-over: {fences:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_elsewhere_for_a_killed_replica_are_served_in_order() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, BLOCKING);
    let others = [(); 2].map(|()| bench.replica(QUICK, BLOCKING));
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        waiters.push(begin_turn(others[n % 2].addr(), "s1", &format!("plain:{n}")).await);
        is_waiting(&bench.redis, "s1", n + 1).await;
    }
    victim.signal("KILL");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(
            waiter.answer().await.text(),
            n.to_string(),
            "each of them is served"
        );
    }
    let fences = bench.fences("s1");
    assert!(
        fences.is_sorted(),
        "the fence rises all the way: {fences:?}"
    );
    bench.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_restarts_under_its_name_frees_its_sessions_at_once() {
    let bench = Replicas::on_redis().await;
    // Nothing but the restart can free the session within this test.
    let store = "timeout = \"200ms\"\ncrash_recovery = \"1h\"\n";
    let named = format!("{store}instance = \"agent-0\"");
    let victim = bench.process(&named, BLOCKING);
    let other = bench.replica(store, BLOCKING);
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let mut waiter = begin_turn(other.addr(), "s1", "plain:x").await;
    is_waiting(&bench.redis, "s1", 1).await;
    victim.signal("KILL");
    drop(victim);
    let _again = bench.process(&named, BLOCKING);
    assert_eq!(
        waiter.answer().await.status,
        200,
        "the key of its name has another epoch now"
    );
    bench.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_behind_the_waiters_of_a_killed_replica_are_served() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, BLOCKING);
    let other = bench.replica(QUICK, BLOCKING);
    let mut holder = begin_turn(other.addr(), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut doomed = Vec::new();
    for n in 0..5 {
        doomed.push(begin_turn(victim.addr(), "s1", "plain:doomed").await);
        is_waiting(&bench.redis, "s1", n + 1).await;
    }
    let mut behind = begin_turn(other.addr(), "s1", "plain:x").await;
    is_waiting(&bench.redis, "s1", 6).await;
    victim.signal("KILL");
    for client in &mut doomed {
        assert!(client.try_answer().await.is_err(), "their replica is gone");
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't concerned");
    assert_eq!(behind.answer().await.status, 200, "the line goes on");
    assert_eq!(
        bench.backend.turns("s1").len(),
        2,
        "no turn of the killed replica's ever began"
    );
    bench.is_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_stopped_past_its_lease_moves_nothing_when_it_wakes() {
    let bench = Replicas::on_redis().await;
    for (lock, why) in [
        (
            "[lock]\nblocking = true\nlock_timeout = \"1s\"\n",
            "its lease has ended",
        ),
        (BLOCKING, "its instance was taken for dead"),
    ] {
        let sleeper = bench.process(QUICK, lock);
        let other = bench.replica(QUICK, lock);
        let mut old = begin_turn(sleeper.addr(), why, "chunked:100000:5").await;
        old.read_until(&event(0)).await;
        sleeper.signal("STOP");
        let mut new = begin_turn(other.addr(), why, "gate").await;
        new.read_until(&event(0)).await;
        new.head().await;
        // What was sent before it was stopped has arrived by now; from here on nothing may come.
        let before = old.arrived();
        sleeper.signal("CONT");
        let old = old.read_to_close().await;
        assert!(
            !old.ends_with(b"\r\n0\r\n\r\n"),
            "the old turn is cut: {why}"
        );
        assert!(
            old.len() <= before,
            "and not a byte of it comes after the new one began: {why}"
        );
        let fences = bench.fences(why);
        assert!(fences[0] < fences[1], "its fence is lower: {fences:?}");
        bench.backend.open_gate(why);
        assert!(new.answer().await.whole, "the new turn isn't disturbed");
    }
    // Both ran at the backend for a while: a process that is stopped can't leave it. So its fence is
    // what a backend has to look at.
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn an_instance_that_can_not_say_that_it_lives_stops_before_it_is_taken_for_dead() {
    let bench = Replicas::on_redis().await;
    let network = FaultProxy::start(bench.redis.addr()).await;
    let through = format!("redis://{}/0", network.addr());
    let config = format!("{BLOCKING}{CHAT}");
    let cut_off = App::start(&bench.backend.url(), &through, QUICK, &config);
    let other = bench.replica(QUICK, BLOCKING);
    let mut old = begin_turn(cut_off.addr(), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let mut new = begin_turn(other.addr(), "s1", "plain:new").await;
    is_waiting(&bench.redis, "s1", 1).await;
    network.set(Mode::Blackhole).await;
    assert!(
        !old.answer().await.whole,
        "its turn is cut though its lease of 300 s goes on"
    );
    assert_eq!(new.answer().await.status, 200, "and the next one is served");
    network.set(Mode::Pass).await;
    let serves = async || turn(cut_off.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(serves, "it serves again when the store is there").await;
    bench.is_quiet().await;
}

#[tokio::test]
async fn an_instance_that_stops_takes_its_key_with_it() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"agent-7\"");
    let app = bench.replica(&named, "");
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "it serves"
    );
    let alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(alive, "it has given its sign of life").await;
    assert_eq!(
        bench.redis.instances().await,
        ["seriatim:instance:agent-7"],
        "one key for each instance"
    );
    let left = bench.redis.pttl("seriatim:instance:agent-7").await;
    assert!((1..=1000).contains(&left), "for crash_recovery: {left}");
    app.stop().await;
    assert_eq!(bench.redis.instances().await, [""; 0], "and none after it");
}

#[tokio::test]
async fn of_two_processes_with_one_name_the_older_one_stops_its_turns_and_serves_no_more() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"twin\"");
    let older = bench.replica(&named, "");
    let mut old = begin_turn(older.addr(), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let younger = bench.replica(&named, "");
    assert!(!old.answer().await.whole, "its turns may be taken over");
    let refused = async || {
        let answer = turn(older.addr(), "s2", "plain:x").await;
        answer.header("x-seriatim-error") == Some("store_unavailable")
    };
    wait_for_async(refused, "the older one refuses").await;
    assert_eq!(
        turn(younger.addr(), "s2", "plain:x").await.status,
        200,
        "the younger one serves"
    );
    younger.stop().await;
    let serves = async || turn(older.addr(), "s2", "plain:x").await.status == 200;
    wait_for_async(serves, "and the older one again when the name is free").await;
}

#[tokio::test]
async fn probes_say_whether_an_instance_lives_and_is_ready() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"twin\"");
    let app = bench.replica(&named, "");
    let ask = async |path| Client::connect(app.admin()).await.get(path).await.status;
    let ready = async || ask("/readyz").await == 200;
    wait_for_async(ready, "an instance that the store knows is ready").await;
    let _younger = bench.replica(&named, "");
    let unready = async || ask("/readyz").await == 503;
    wait_for_async(unready, "one that lost its name is not").await;
    assert_eq!(ask("/livez").await, 200, "though it lives");
    assert_eq!(ask("/nothing").await, 404, "and nothing else is there");
    let mut client = Client::connect(app.admin()).await;
    let posted = client.call(&Request::post("/metrics")).await;
    assert_eq!(posted.status, 405, "it is only to be looked at");
}

#[tokio::test]
async fn an_instance_whose_key_was_gone_for_a_while_loses_its_turns() {
    let bench = Replicas::on_redis().await;
    let lock = "[lock]\nlock_timeout = \"60s\"\n";
    let (app, other) = (bench.replica(QUICK, lock), bench.replica(QUICK, lock));
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let alive = async || bench.redis.instances().await.len() == 2;
    wait_for_async(alive, "both have given their sign of life").await;
    // As a Redis does that restarts from an old snapshot, or evicts what ends soonest.
    for instance in bench.redis.instances().await {
        bench.redis.command(&["DEL", &instance]).await;
    }
    assert!(
        !held.answer().await.whole,
        "a turn whose lock may have been taken over stops"
    );
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "and the session is free").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_crash_recovery_nobody_is_taken_for_dead() {
    let bench = Replicas::on_redis().await;
    let without = "timeout = \"200ms\"\ncrash_recovery = 0";
    let victim = bench.process(without, "[lock]\nlock_timeout = \"3s\"\n");
    // The other one would take over whoever should have a heartbeat and has none.
    let other = bench.replica(QUICK, "");
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(alive, "the other one has given its sign of life").await;
    assert_eq!(
        bench.redis.instances().await.len(),
        1,
        "it keeps no key of its own: there is the other one's alone"
    );
    victim.signal("KILL");
    wait_for(
        || bench.backend.running("s1") == 0,
        "the backend sees that it is gone",
    )
    .await;
    let answer = turn(other.addr(), "s1", "plain:x").await;
    assert_eq!(answer.status, 429, "the lease is all there is to go by");
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "and then it ends").await;
    bench.is_quiet().await;
}

#[tokio::test]
async fn a_lock_that_python_holds_is_nobodys_to_take_over() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica(QUICK, "");
    for value in [
        "7c9e6679",
        r#"{"token":"x-1","instance":"gone","heartbeat":true}"#,
        r#"{"instance":"gone","heartbeat":true}"#,
    ] {
        bench
            .redis
            .command(&["SET", &key("s1"), value, "PX", "60000"])
            .await;
        let mut client = Client::connect(app.addr()).await;
        let answer = client.call(&Request::turn("s1", "plain:x")).await;
        assert_eq!(answer.status, 429, "whoever it is: {value}");
    }
}

#[tokio::test]
async fn a_store_that_lost_all_its_keys_does_not_make_living_instances_dead() {
    let bench = Replicas::on_redis().await;
    // The next sign of life comes a second later at the earliest.
    let store = "timeout = \"200ms\"\ncrash_recovery = \"9s\"";
    let (a, b) = (bench.replica(store, ""), bench.replica(store, ""));
    for app in [&a, &b] {
        let warm = async || turn(app.addr(), "s0", "plain:x").await.status == 200;
        wait_for_async(warm, "both serve").await;
    }
    bench.redis.command(&["FLUSHALL"]).await;
    for n in 0..5 {
        let session = format!("s{n}");
        let mut held = begin_turn(a.addr(), &session, "gate").await;
        held.read_until(&event(0)).await;
        assert_eq!(
            turn(b.addr(), &session, "plain:x").await.status,
            429,
            "a turn that began after the loss is nobody's to take over"
        );
        bench.backend.open_gate(&session);
        assert!(held.answer().await.whole, "and runs to its end");
    }
    assert_eq!(bench.backend.overlaps(), [], "turns never overlapped");
}
