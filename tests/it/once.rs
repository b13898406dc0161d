//! Turns that are executed once: whatever happens to their requests, the backend gets one turn for each idempotency key.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join;
use seriatim::key::{OnceId, SessionKey};
use seriatim::lock::{
    AcquireError, CallChain, LockGuard, LockOptions, LockRequest, OnLost, RepeatedState, Store as _,
};
use tokio::time::sleep;

use crate::support::app::{App, CHAT, wait_for_queue_length};
use crate::support::backend::{Backend, Recorded, event};
use crate::support::bench::{Replicas, Setup, assert_error_response, hold};
use crate::support::client::{Answer, Client, Request};
use crate::support::fault::Mode;
use crate::support::faulty_store::{Call, Fault, FaultyReplica, NoReply, SESSION, TIMEOUT};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

/// A route beside [`CHAT`] that locks the same sessions, and whose turns are executed once.
const ONCE: &str = r#"
[[routes]]
name = "once"
path = "/once"
methods = ["POST"]
session_id = ["{body:/session_id}"]
user_id = ["{body:/user_id}"]
once = ["{header:idempotency-key}"]
"#;

/// Both routes; the one with once ids has these options.
fn routes(options: &str) -> String {
    format!("{CHAT}{ONCE}{options}")
}

const BLOCKING: &str = "blocking = true\n";

/// Store options with which other replicas notice a dead instance within a second.
const QUICK: &str = "timeout = \"200ms\"\ncrash_recovery = \"1s\"";

/// A turn of a session with an idempotency key.
fn keyed(session: &str, key: &str, script: &str) -> Request {
    let body = serde_json::json!({ "session_id": session, "user_id": "u1" });
    Request::post("/once")
        .header("x-test-script", script)
        .header("idempotency-key", key)
        .json(&body.to_string())
}

async fn call(replica: SocketAddr, request: &Request) -> Answer {
    Client::connect(replica).await.call(request).await
}

async fn begin(replica: SocketAddr, request: &Request) -> Client {
    let mut client = Client::connect(replica).await;
    client.send(request).await;
    client
}

/// Asserts that a request is refused as a repeat, and that client libraries are told whether to come back.
fn assert_repeat(case: &str, answer: &Answer, status: u16, reason: &str) {
    assert_error_response(case, answer, status, reason);
    let comes_back = reason == "duplicate_turn";
    let should_retry = answer.header("x-should-retry");
    assert_eq!(
        (answer.header("retry-after").is_some(), should_retry),
        (comes_back, (!comes_back).then_some("false")),
        "{case}: {answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_that_get_a_key_at_once_one_sends_the_turn() {
    let config = routes(BLOCKING);
    let bench = Setup::new(&config).replicas(2).on_redis().await;
    for n in 0..300 {
        // Some wait for a turn of the same session.
        let (session, key) = (format!("s{}", n % 7), format!("key {n}"));
        let request = keyed(&session, &key, "plain:x");
        let twice = [0, 1].map(|replica| call(bench.replica(replica), &request));
        let [first, second] = twice;
        let (first, second) = join(first, second).await;
        let mut statuses = [first.status, second.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "{key}: {first:?} {second:?}");
    }
    let requests = bench.backend.requests();
    for n in 0..300 {
        let key = format!("key {n}");
        let of_key = |request: &&Recorded| request.header("idempotency-key") == Some(&key);
        let turns = requests.iter().filter(of_key).count();
        assert_eq!(turns, 1, "the backend got one turn with {key}");
    }
}

#[tokio::test]
async fn a_repeat_is_refused_while_its_turn_waits_and_runs_and_after_it() {
    let config = routes(BLOCKING);
    let bench = Setup::new(&config).replicas(2).on_redis().await;
    let mut holder = hold(bench.replica(0), "s1").await;
    let request = keyed("s1", "k", "gate");
    let mut first = begin(bench.replica(0), &request).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    for replica in [0, 1] {
        let repeat = call(bench.replica(replica), &request).await;
        assert_repeat("the first turn waits", &repeat, 409, "duplicate_turn");
        let other = Request::post("/once")
            .header("idempotency-key", "k")
            .json(r#"{"session_id": "s1", "user_id": "u1", "x": 1}"#);
        let reused = call(bench.replica(replica), &other).await;
        assert_repeat("another body", &reused, 422, "key_reused");
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't disturbed");
    first.read_until(&event(0)).await;
    let repeat = call(bench.replica(1), &request).await;
    assert_repeat("the first turn runs", &repeat, 409, "duplicate_turn");
    let ms = repeat.header("retry-after-ms").map(str::parse::<u64>);
    assert!(matches!(ms, Some(Ok(1..))), "when to come back: {repeat:?}");
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "the first turn is served");
    for replica in [0, 1] {
        let repeat = call(bench.replica(replica), &request).await;
        assert_repeat("the turn has ended", &repeat, 409, "already_answered");
    }
    let elsewhere = call(bench.replica(1), &keyed("s2", "k", "plain:x")).await;
    assert_eq!(elsewhere.status, 200, "another session has its own keys");
    let next = call(bench.replica(1), &keyed("s1", "k2", "plain:x")).await;
    assert_eq!(next.status, 200, "another key is another turn");
    assert_eq!(
        bench.backend.turns("s1").len(),
        3,
        "one of them had the key"
    );
}

#[tokio::test]
async fn a_repeat_is_refused_with_the_memory_store() {
    let bench = Setup::new(&routes("")).in_memory().await;
    let request = keyed("s1", "k", "gate");
    let mut first = begin(bench.app.addr(), &request).await;
    first.read_until(&event(0)).await;
    let repeat = bench.call(&request).await;
    assert_repeat("the first turn runs", &repeat, 409, "duplicate_turn");
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "the first turn is served");
    let repeat = bench.call(&request).await;
    assert_repeat("the turn has ended", &repeat, 409, "already_answered");
    let metric = bench
        .app
        .metric("seriatim_requests_total{route=\"once\",outcome=\"already_answered\"}")
        .await;
    assert_eq!(metric, "1", "repeats are counted");
}

#[tokio::test]
async fn a_turn_that_the_backend_refuses_may_be_repeated() {
    for on_disconnect in ["cancel", "continue"] {
        let config = routes(&format!("on_disconnect = \"{on_disconnect}\"\n"));
        let bench = Setup::new(&config).on_redis().await;
        for status in [425, 429, 503] {
            let request = keyed("s1", &status.to_string(), &format!("status:{status}:no"));
            let request = request.header("x-test-answer", "retry-after: 1");
            for _ in 0..2 {
                let answer = bench.call(&request).await;
                assert_eq!(answer.status, status, "the backend's own: {answer:?}");
            }
            let case = format!("{on_disconnect} {status}");
            assert_eq!(bench.redis.keys().await, [""; 0], "{case}: it is forgotten");
        }
        // A proxy whose connection to the backend broke names no time for a retry.
        for status in [200, 400, 500, 502, 503] {
            let request = keyed(
                "s1",
                &format!("{status}-run"),
                &format!("status:{status}:yes"),
            );
            assert_eq!(bench.call(&request).await.status, status);
            let repeat = bench.call(&request).await;
            let case = format!("{on_disconnect}, after {status}");
            assert_repeat(&case, &repeat, 409, "already_answered");
        }
        // It may have been run to its end.
        let request = keyed("s1", "close", "close");
        assert_eq!(bench.call(&request).await.status, 502);
        let repeat = bench.call(&request).await;
        assert_repeat("no response", &repeat, 409, "already_answered");
    }
}

#[tokio::test]
async fn a_turn_that_runs_while_redis_is_away_is_not_remembered() {
    for on_error in ["allow", "local"] {
        let (config, store) = (routes(""), format!("{QUICK}\non_error = \"{on_error}\"\n"));
        let bench = Setup::new(&config).store(&store).on_faulty_network().await;
        bench.network.set(Mode::Reset).await;
        let request = keyed("s1", "away", "gate");
        let mut first = begin(bench.replica(0), &request).await;
        first.read_until(&event(0)).await;
        if on_error == "local" {
            let repeat = bench.call(&request).await;
            assert_eq!(repeat.status, 429, "its own lock is busy: {repeat:?}");
        }
        bench.backend.open_gate("s1");
        assert!(first.answer().await.whole, "{on_error}: the turn is served");
        let repeat = keyed("s1", "away", "plain:x");
        let served = async || bench.call(&repeat).await.status == 200;
        wait_for_async(served, "another body is no reuse, because nothing is known").await;
        bench.network.set(Mode::Pass).await;
        let remembered = async || {
            let again = keyed("s2", "back", "plain:x");
            bench.call(&again).await.header("x-seriatim-error") == Some("already_answered")
        };
        wait_for_async(remembered, "turns are remembered again").await;
    }
}

#[tokio::test]
async fn a_turn_that_never_reached_its_backend_may_be_repeated() {
    let redis = Redis::start().await;
    // A port on which nobody listens any more.
    let gone = Backend::start("plain:ok").await;
    let url = gone.url();
    drop(gone);
    for on_disconnect in ["cancel", "continue"] {
        let config = routes(&format!("on_disconnect = \"{on_disconnect}\"\n"));
        let app = App::start(&url, &redis.url(), "", &config);
        for _ in 0..2 {
            let answer = call(app.addr(), &keyed("s1", "k", "plain:x")).await;
            assert_eq!(answer.error(), (502, "upstream_unreachable"));
        }
        assert_eq!(redis.keys().await, [""; 0], "it is forgotten");
    }
}

#[tokio::test]
async fn a_turn_whose_client_left_the_queue_may_be_repeated() {
    let config = routes(BLOCKING);
    let bench = Setup::new(&config).replicas(2).on_redis().await;
    let mut holder = hold(bench.replica(0), "s1").await;
    let request = keyed("s1", "k", "plain:x");
    let first = begin(bench.replica(0), &request).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    first.close();
    wait_for_queue_length(&bench.redis, "s1", 0).await;
    let mut second = begin(bench.replica(1), &request).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't disturbed");
    assert_eq!(second.answer().await.status, 200, "the repeat is served");
    assert_eq!(bench.backend.turns("s1").len(), 2, "it was sent once");
}

#[tokio::test]
async fn a_turn_whose_client_left_its_answer_is_not_repeated() {
    let bench = Setup::new(&routes("")).replicas(2).on_redis().await;
    let request = keyed("s1", "k", "gate");
    let mut first = begin(bench.replica(0), &request).await;
    first.read_until(&event(0)).await;
    first.close();
    bench.backend.gone("s1").await;
    let ended = async || {
        let repeat = call(bench.replica(1), &request).await;
        assert_eq!(repeat.status, 409, "the turn was sent: {repeat:?}");
        repeat.header("x-seriatim-error") == Some("already_answered")
    };
    wait_for_async(ended, "the cancelled turn has ended").await;
    assert_eq!(bench.backend.turns("s1").len(), 1, "it was sent once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_a_killed_replica_is_in_doubt() {
    let bench = Replicas::on_redis().await;
    let tables = format!("{ONCE}{BLOCKING}");
    let victim = bench.process(QUICK, &tables);
    let other = bench.replica(QUICK, &tables);
    let request = keyed("s1", "k", "gate");
    let mut first = begin(victim.addr(), &request).await;
    first.read_until(&event(0)).await;
    victim.signal("KILL");
    let in_doubt = async || {
        let repeat = call(other.addr(), &request).await;
        let reason = repeat.header("x-seriatim-error").map(str::to_owned);
        let is_in_doubt = reason.as_deref() == Some("in_doubt");
        assert_repeat(
            "the replica is killed",
            &repeat,
            409,
            match is_in_doubt {
                true => "in_doubt",
                false => "duplicate_turn",
            },
        );
        is_in_doubt
    };
    wait_for_async(in_doubt, "the turn is in doubt").await;
    let next = keyed("s1", "k2", "plain:x");
    let served = async || call(other.addr(), &next).await.status == 200;
    wait_for_async(served, "another turn takes the lock over").await;
    let repeat = call(other.addr(), &request).await;
    assert_repeat("after a takeover", &repeat, 409, "in_doubt");
    let reused = Request::post("/once")
        .header("idempotency-key", "k")
        .json(r#"{"session_id": "s1", "user_id": "u1", "x": 1}"#);
    let reused = call(other.addr(), &reused).await;
    assert_repeat("another body", &reused, 422, "key_reused");
    assert_eq!(bench.backend.turns("s1").len(), 2, "one had the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_waited_in_a_killed_replica_is_forgotten() {
    let bench = Replicas::on_redis().await;
    let tables = format!("{ONCE}{BLOCKING}");
    let victim = bench.process(QUICK, &tables);
    let other = bench.replica(QUICK, &tables);
    let mut holder = hold(other.addr(), "s1").await;
    let request = keyed("s1", "k", "plain:x");
    let _first = begin(victim.addr(), &request).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    victim.signal("KILL");
    let mut second = None;
    let joins = async || {
        let mut client = begin(other.addr(), &request).await;
        tokio::select! {
            refused = client.answer() => {
                assert_repeat("its instance may live", &refused, 409, "duplicate_turn");
                return false;
            }
            () = other.wait_for_waiters(1) => {}
        }
        second = Some(client);
        true
    };
    wait_for_async(joins, "a repeat waits").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't disturbed");
    let served = second.expect("a repeat that waits").answer().await;
    assert_eq!(served.status, 200, "the repeat is served");
}

// === Locks without HTTP, with a clock that stands still ===

const KEEP: Duration = Duration::from_secs(60);

/// A turn with the once id of these tests.
async fn acquire(replica: &FaultyReplica, blocking: bool) -> Result<LockGuard, AcquireError> {
    let (id, nobody) = (OnceId::new("k"), CallChain::default());
    let key = id.with_request("POST", "/once", b"x");
    let request = LockRequest {
        once: Some((&key, KEEP)),
        ..LockRequest::new("route", "request", &nobody)
    };
    let options = LockOptions {
        blocking,
        ..OPTIONS
    };
    let session = SessionKey::literal(SESSION);
    replica.locks.acquire(session, request, &options).await
}

const OPTIONS: LockOptions = LockOptions {
    lock_timeout: Duration::from_secs(30),
    extend_lock_interval: Some(Duration::from_secs(10)),
    blocking: true,
    blocking_timeout: None,
    interrupt: false,
    max_waiters: 10,
    on_lost: OnLost::Abort,
    settle: Duration::ZERO,
    settle_cancelled: None,
    enforce: true,
};

/// The state of the turn that a repeat finds; `None`: the repeat got the lock.
async fn found(replica: &FaultyReplica) -> Option<RepeatedState> {
    match acquire(replica, false).await {
        Ok(_) => None,
        Err(AcquireError::Repeated(_, first)) => Some(first.state),
        Err(error) => panic!("a repeat gets the lock, or is refused as one: {error}"),
    }
}

fn send(guard: &LockGuard) {
    let flag = guard.sent_flag().expect("a turn with a once id");
    flag.as_bool().store(true, Ordering::Relaxed);
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_remembered_however_long_it_waits_and_runs() {
    let (_memory, a, b) = FaultyReplica::two();
    let a = Arc::new(a);
    let holder = b.hold(&OPTIONS).await;
    let waiting = Arc::clone(&a);
    let first = tokio::spawn(async move { acquire(&waiting, true).await });
    for _ in 0..10 {
        sleep(KEEP).await;
        assert_eq!(found(&b).await, Some(RepeatedState::Waits));
    }
    holder.release().await;
    let first = first.await.expect("no panic").expect("the lock is free");
    send(&first);
    match acquire(&b, false).await {
        Err(AcquireError::Repeated(_, repeated)) => {
            assert_eq!(repeated.turn, first.turn(), "whose answer it is");
        }
        other => panic!("the turn runs: {other:?}"),
    }
    for _ in 0..10 {
        sleep(KEEP).await;
        assert_eq!(found(&b).await, Some(RepeatedState::Runs));
    }
    first.release().await;
    sleep(KEEP - Duration::from_millis(1)).await;
    assert_eq!(found(&b).await, Some(RepeatedState::Ended));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(found(&b).await, None, "it is forgotten in the end");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_never_learns_that_it_has_its_lock_is_forgotten() {
    for fault in [
        Fault::NoReply(NoReply::TimedOut),
        Fault::NoReply(NoReply::ConnectionBroke),
        Fault::LateCommand(TIMEOUT * 2),
    ] {
        let (_memory, a, b) = FaultyReplica::two();
        a.store.fail(Call::Acquire, fault);
        let refused = acquire(&a, false).await;
        assert!(matches!(refused, Err(AcquireError::Store(_))), "{fault:?}");
        let is_free = async || found(&b).await.is_none();
        wait_for_async(is_free, "the turn is forgotten").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_release_is_lost_has_ended_when_it_arrives() {
    let (_memory, a, b) = FaultyReplica::two();
    let first = acquire(&a, false).await.expect("the lock is free");
    send(&first);
    a.store.fail(Call::Release, Fault::Lost);
    drop(first);
    sleep(OPTIONS.lock_timeout * 2).await;
    assert_eq!(found(&b).await, Some(RepeatedState::InDoubt));
    a.store.heal();
    let has_ended = async || found(&b).await == Some(RepeatedState::Ended);
    wait_for_async(has_ended, "the release arrives").await;
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_turn_to_itself_with_its_own_key_would_deadlock() {
    let (_memory, a, b) = FaultyReplica::two();
    let first = acquire(&a, false).await.expect("the lock is free");
    let key = OnceId::new("k").with_request("POST", "/once", b"x");
    let callers = CallChain::default().called_by(first.tag());
    let request = LockRequest {
        once: Some((&key, KEEP)),
        ..LockRequest::new("route", "request", &callers)
    };
    let session = SessionKey::literal(SESSION);
    let call = b.locks.acquire(session, request, &OPTIONS).await;
    assert!(
        matches!(call, Err(AcquireError::WouldDeadlock(_))),
        "{call:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_id_another_turn_has_by_now_gives_its_place_back() {
    let (memory, a, b) = FaultyReplica::two();
    let (a, b) = (Arc::new(a), Arc::new(b));
    let holder = b.hold(&OPTIONS).await;
    let begin = |replica: &Arc<FaultyReplica>| {
        let replica = Arc::clone(replica);
        tokio::spawn(async move { acquire(&replica, true).await })
    };
    let waiters = async || {
        let keys = [SessionKey::literal(SESSION)];
        let found = memory.inspect(&keys, true).await;
        found.expect("the memory answers")[0].queue.len()
    };
    let first = begin(&a);
    wait_for_async(async || waiters().await == 1, "the first turn waits").await;
    // It keeps its place, and can't renew its record.
    a.store.fail(Call::Acquire, Fault::NotSent);
    sleep(KEEP + OPTIONS.lock_timeout).await;
    let second = begin(&b);
    wait_for_async(async || waiters().await == 2, "the second turn waits").await;
    a.store.heal();
    let refused = first.await.expect("no panic");
    assert!(
        matches!(refused, Err(AcquireError::Repeated(..))),
        "{refused:?}"
    );
    wait_for_async(async || waiters().await == 1, "one place is left").await;
    holder.release().await;
    let second = second.await.expect("no panic");
    assert!(second.is_ok(), "the second turn is served: {second:?}");
}
