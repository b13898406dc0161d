//! Replicas that are killed, paused, or cut off from the store: how soon their sessions are free, and
//! that no turn of theirs overlaps a turn that took over the session.

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::backend::event;
use crate::support::bench::Replicas;
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::{wait_for, wait_for_async};

/// Store options with which other replicas notice a dead instance within a second.
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
async fn a_session_of_a_killed_replica_is_taken_over() {
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
    bench.wait_until_no_keys().await;
    let fences = bench.fences("s1");
    assert!(
        fences.is_sorted() && fences.len() == 2,
        "the fence rises with the takeover: {fences:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_on_other_replicas_are_served_after_a_kill() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, BLOCKING);
    let others = [(); 2].map(|()| bench.replica(QUICK, BLOCKING));
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let mut waiters = Vec::new();
    for n in 0..6 {
        waiters.push(begin_turn(others[n % 2].addr(), "s1", &format!("plain:{n}")).await);
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
    }
    victim.signal("KILL");
    for (n, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(
            waiter.answer().await.text(),
            n.to_string(),
            "each waiter is served, in order"
        );
    }
    let fences = bench.fences("s1");
    assert!(
        fences.is_sorted(),
        "the fence rises with every turn: {fences:?}"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_restarts_under_its_name_frees_its_sessions() {
    let bench = Replicas::on_redis().await;
    // Only the restart can free the session within the time of this test.
    let store = "timeout = \"200ms\"\ncrash_recovery = \"1h\"\n";
    let named = format!("{store}instance = \"agent-0\"");
    let victim = bench.process(&named, BLOCKING);
    let other = bench.replica(store, BLOCKING);
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let mut waiter = begin_turn(other.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    victim.signal("KILL");
    drop(victim);
    let _again = bench.process(&named, BLOCKING);
    assert_eq!(
        waiter.answer().await.status,
        200,
        "the instance key has a new epoch"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_behind_those_of_a_killed_replica_are_served() {
    let bench = Replicas::on_redis().await;
    let victim = bench.process(QUICK, BLOCKING);
    let other = bench.replica(QUICK, BLOCKING);
    let mut holder = begin_turn(other.addr(), "s1", "gate").await;
    holder.read_until(&event(0)).await;
    let mut doomed = Vec::new();
    for n in 0..5 {
        doomed.push(begin_turn(victim.addr(), "s1", "plain:doomed").await);
        wait_for_queue_length(&bench.redis, "s1", n + 1).await;
    }
    let mut behind = begin_turn(other.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 6).await;
    victim.signal("KILL");
    for client in &mut doomed {
        assert!(
            client.try_answer().await.is_err(),
            "a killed replica sends no response"
        );
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder is not disturbed");
    assert_eq!(behind.answer().await.status, 200, "the queue moves on");
    assert_eq!(
        bench.backend.turns("s1").len(),
        2,
        "no waiter of the killed replica began its turn"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_paused_past_its_lease_sends_no_byte_when_resumed() {
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
        // What was sent before the pause has arrived by now. Nothing may come after this.
        let before = old.arrived();
        sleeper.signal("CONT");
        let old = old.read_to_close().await;
        assert!(
            !old.ends_with(b"\r\n0\r\n\r\n"),
            "the old turn is aborted: {why}"
        );
        assert!(
            old.len() <= before,
            "the old turn sends no byte after the new one began: {why}"
        );
        let fences = bench.fences(why);
        assert!(
            fences[0] < fences[1],
            "the old turn has the lower fence: {fences:?}"
        );
        bench.backend.open_gate(why);
        assert!(new.answer().await.whole, "the new turn is not disturbed");
    }
    // For a while both turns ran on the backend: a paused process cannot close its connection. A
    // backend must compare the fences.
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn an_instance_cut_off_from_redis_aborts_before_the_takeover() {
    let bench = Replicas::on_redis().await;
    let network = FaultProxy::start(bench.redis.addr()).await;
    let through = format!("redis://{}/0", network.addr());
    let config = format!("{BLOCKING}{CHAT}");
    let cut_off = App::start(&bench.backend.url(), &through, QUICK, &config);
    let other = bench.replica(QUICK, BLOCKING);
    let mut old = begin_turn(cut_off.addr(), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let mut new = begin_turn(other.addr(), "s1", "plain:new").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    network.set(Mode::Blackhole).await;
    assert!(
        !old.answer().await.whole,
        "the turn is aborted though its lease of 300 s is still valid"
    );
    assert_eq!(new.answer().await.status, 200, "the next turn is served");
    network.set(Mode::Pass).await;
    let serves = async || turn(cut_off.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(
        serves,
        "the instance serves again when the store is reachable",
    )
    .await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn an_instance_that_stops_deletes_its_key() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"agent-7\"");
    let app = bench.replica(&named, "");
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "the instance serves"
    );
    let alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(alive, "the instance has sent its first heartbeat").await;
    assert_eq!(
        bench.redis.instances().await,
        ["seriatim:instance:1:agent-7"],
        "each instance has one key"
    );
    let left = bench.redis.pttl("seriatim:instance:1:agent-7").await;
    assert!(
        (1..=1000).contains(&left),
        "its TTL is crash_recovery: {left}"
    );
    app.stop().await;
    assert_eq!(
        bench.redis.instances().await,
        [""; 0],
        "a stopped instance leaves no key"
    );
}

#[tokio::test]
async fn the_older_of_two_processes_with_one_name_aborts_and_refuses() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"twin\"");
    let older = bench.replica(&named, "");
    let mut old = begin_turn(older.addr(), "s1", "chunked:100000:5").await;
    old.read_until(&event(0)).await;
    let younger = bench.replica(&named, "");
    assert!(
        !old.answer().await.whole,
        "the older process aborts its turns"
    );
    let refused = async || {
        let answer = turn(older.addr(), "s2", "plain:x").await;
        answer.header("x-seriatim-error") == Some("store_unavailable")
    };
    wait_for_async(refused, "the older process refuses new turns").await;
    assert_eq!(
        turn(younger.addr(), "s2", "plain:x").await.status,
        200,
        "the younger process serves"
    );
    younger.stop().await;
    let serves = async || turn(older.addr(), "s2", "plain:x").await.status == 200;
    wait_for_async(
        serves,
        "the older process serves again when the name is free",
    )
    .await;
}

#[tokio::test]
async fn probes_say_whether_an_instance_is_alive_and_ready() {
    let bench = Replicas::on_redis().await;
    let named = format!("{QUICK}\ninstance = \"twin\"");
    let app = bench.replica(&named, "");
    let ask = async |path| Client::connect(app.admin()).await.get(path).await.status;
    let ready = async || ask("/readyz").await == 200;
    wait_for_async(ready, "an instance with a heartbeat is ready").await;
    let _younger = bench.replica(&named, "");
    let unready = async || ask("/readyz").await == 503;
    wait_for_async(unready, "an instance that lost its name is not ready").await;
    assert_eq!(ask("/livez").await, 200, "but it is alive");
    assert_eq!(ask("/nothing").await, 404, "other paths do not exist");
    let mut client = Client::connect(app.admin()).await;
    let posted = client.call(&Request::post("/metrics")).await;
    assert_eq!(posted.status, 405, "the metrics accept only GET");
}

#[tokio::test]
async fn an_instance_whose_key_was_deleted_loses_its_turns() {
    let bench = Replicas::on_redis().await;
    let lock = "[lock]\nlock_timeout = \"60s\"\n";
    let (app, other) = (bench.replica(QUICK, lock), bench.replica(QUICK, lock));
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let alive = async || bench.redis.instances().await.len() == 2;
    wait_for_async(alive, "both instances have sent their first heartbeat").await;
    // A Redis that restarts from an old snapshot, or that evicts keys, loses the key in the same way.
    for instance in bench.redis.instances().await {
        bench.redis.command(&["DEL", &instance]).await;
    }
    assert!(
        !held.answer().await.whole,
        "a turn whose lock may be taken over is aborted"
    );
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session is free").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_crash_recovery_no_instance_is_taken_for_dead() {
    let bench = Replicas::on_redis().await;
    let without = "timeout = \"200ms\"\ncrash_recovery = 0";
    let victim = bench.process(without, "[lock]\nlock_timeout = \"3s\"\n");
    // The other replica takes over locks of instances that have a heartbeat and missed it.
    let other = bench.replica(QUICK, "");
    let mut held = begin_turn(victim.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    let alive = async || !bench.redis.instances().await.is_empty();
    wait_for_async(alive, "the other instance has sent its first heartbeat").await;
    assert_eq!(
        bench.redis.instances().await.len(),
        1,
        "an instance without crash recovery has no key"
    );
    victim.signal("KILL");
    wait_for(
        || bench.backend.running("s1") == 0,
        "the backend sees the connection close",
    )
    .await;
    let answer = turn(other.addr(), "s1", "plain:x").await;
    assert_eq!(answer.status, 429, "only the lease frees the session");
    let free = async || turn(other.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session is free when the lease ends").await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_lock_of_other_code_is_never_taken_over() {
    let bench = Replicas::on_redis().await;
    let app = bench.replica(QUICK, "");
    for value in [
        "7c9e6679",
        r#"{"format":1,"claim":"x-1","instance":"gone","heartbeat":true}"#,
        r#"{"instance":"gone","heartbeat":true}"#,
    ] {
        bench
            .redis
            .command(&["SET", &key("s1"), value, "PX", "60000"])
            .await;
        let mut client = Client::connect(app.addr()).await;
        let answer = client.call(&Request::turn("s1", "plain:x")).await;
        assert_eq!(answer.status, 429, "the holder keeps its lock: {value}");
    }
}

#[tokio::test]
async fn a_store_that_lost_all_keys_does_not_make_live_instances_dead() {
    let bench = Replicas::on_redis().await;
    // The next heartbeat is at least a second away.
    let store = "timeout = \"200ms\"\ncrash_recovery = \"9s\"";
    let (a, b) = (bench.replica(store, ""), bench.replica(store, ""));
    for app in [&a, &b] {
        let warm = async || turn(app.addr(), "s0", "plain:x").await.status == 200;
        wait_for_async(warm, "both instances serve").await;
    }
    bench.redis.command(&["FLUSHALL"]).await;
    for n in 0..5 {
        let session = format!("s{n}");
        let mut held = begin_turn(a.addr(), &session, "gate").await;
        held.read_until(&event(0)).await;
        assert_eq!(
            turn(b.addr(), &session, "plain:x").await.status,
            429,
            "a lock taken after the loss is not taken over"
        );
        bench.backend.open_gate(&session);
        assert!(held.answer().await.whole, "its turn comes to its end");
    }
    assert_eq!(bench.backend.overlaps(), [], "turns never overlap");
}
