//! A call that the backend of a turn makes to the turn's own session is refused at once, on every replica:
//! it would wait for the turn, and the turn for the call.
//!
//! The backend of these tests makes no calls. The tests send them, with what the backend got.

use serde_json::{Value, json};

use crate::support::app::{App, CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::backend::Backend;
use crate::support::bench::{Bench, Replicas, Setup, assert_error_response, hold};
use crate::support::client::{Answer, Client, Request, begin_turn};
use crate::support::collector::{Collector, Mood};
use crate::support::fault::Mode;
use crate::support::python::Agent;
use crate::support::redis::Redis;
use crate::support::wait_for_async;

const BLOCKING: &str = "[lock]\nblocking = true\n";
const TURN: &str = "x-seriatim-turn";

/// A route whose session is in a header, and which takes upgrades.
const TALK: &str = "\n[[routes]]\nname = \"talk\"\npath = \"/talk\"\n\
                    session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";

/// A tag of a turn that doesn't exist.
const FORGED: &str = "0123456789abcdef0123456789abcdef";

async fn replicas(config: &str) -> Bench<Redis> {
    Setup::new(config).replicas(2).on_redis().await
}

/// A turn of `s1` on one replica, the tag that its backend passes on, and a turn on the other that waits.
async fn holder_and_waiter(bench: &Bench<Redis>) -> (Client, String, Client) {
    let holder = hold(bench.replica(0), "s1").await;
    let tag = passed_on(&bench.backend, "s1", TURN);
    let waiter = begin_turn(bench.replica(1), "s1", "plain:waited").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    (holder, tag, waiter)
}

/// What the backend got in this header, with the last turn of the session.
fn passed_on(backend: &Backend, session: &str, name: &str) -> String {
    let turn = backend.turns(session).pop().expect("the turn has begun");
    let value = turn.header(name).map(str::to_owned);
    value.unwrap_or_else(|| panic!("the backend gets {name}: {:?}", turn.headers))
}

/// A turn that the backend of another turn sends.
fn nested(session: &str, callers: &str) -> Request {
    Request::turn(session, "plain:nested").header(TURN, callers)
}

async fn call(app: std::net::SocketAddr, request: &Request) -> Answer {
    Client::connect(app).await.call(request).await
}

/// Asserts that this is the refusal of a call to the session.
#[track_caller]
fn assert_would_deadlock(case: &str, answer: &Answer, session: &str) {
    assert_error_response(case, answer, 409, "would_deadlock");
    let detail = answer.json()["detail"].as_str().map(str::to_owned);
    assert!(
        detail.is_some_and(|detail| detail.contains(&key(session))),
        "{case}: the detail names the session: {answer:?}"
    );
    assert_eq!(
        answer.header("retry-after"),
        None,
        "{case}: trying again is of no use"
    );
}

/// The number of a replica's requests with this outcome.
async fn counted(app: &App, outcome: &str) -> String {
    let metrics = Client::connect(app.admin()).await.get("/metrics").await;
    let line = format!("seriatim_requests_total{{route=\"chat\",outcome=\"{outcome}\"}} ");
    let text = metrics.text();
    let mut lines = text.lines().filter_map(|text| text.strip_prefix(&line));
    lines.next().unwrap_or("0").to_owned()
}

#[tokio::test]
async fn a_call_to_the_turns_own_session_is_refused_at_once_on_every_replica() {
    for config in [CHAT.to_owned(), format!("{BLOCKING}{CHAT}")] {
        let bench = replicas(&config).await;
        let mut holder = hold(bench.replica(0), "s1").await;
        let tag = passed_on(&bench.backend, "s1", TURN);
        for replica in 0..2 {
            let answer = call(bench.replica(replica), &nested("s1", &tag)).await;
            assert_would_deadlock(&format!("replica {replica}, {config}"), &answer, "s1");
        }
        assert_eq!(
            counted(&bench.app, "would_deadlock").await,
            "1",
            "the refusal is counted by its word"
        );
        bench.backend.open_gate("s1");
        assert!(
            holder.answer().await.whole,
            "the turn itself comes to its end"
        );
        let after = call(bench.replica(1), &nested("s1", &tag)).await;
        assert_eq!(after.status, 200, "a call after the turn's end is served");
        wait_until_no_keys(&bench.redis).await;
        assert_eq!(bench.backend.overlaps(), [], "turns never overlap");
    }
}

#[tokio::test]
async fn a_real_agent_that_hands_on_the_header_never_waits_for_itself() {
    let (agent, redis) = tokio::join!(Agent::that_calls_itself(), Redis::start());
    for config in [CHAT.to_owned(), format!("{BLOCKING}{CHAT}")] {
        let [one, two] = [(); 2].map(|()| App::start(&agent.url(), &redis.url(), "", &config));
        let [first, second] = [&one, &two].map(|app| format!("http://{}", app.addr()));
        let deadlock = json!([409, "would_deadlock", null]);
        let (itself, served) = (json!([[second, "s1"]]), json!([200, null, null]));
        for (hops, expected) in [
            (json!([[first, "s1"]]), deadlock.clone()),
            (itself, deadlock.clone()),
            (json!([[second, "s2"]]), served),
            (
                json!([[second, "s2"], [first, "s1"]]),
                json!([200, null, deadlock]),
            ),
            (
                json!([[second, "s2"], [first, "s2"]]),
                json!([200, null, deadlock]),
            ),
        ] {
            let body = json!({"session_id": "s1", "user_id": "u1", "hops": hops});
            let request = Request::post("/chat").json(&body.to_string());
            let answer = call(one.addr(), &request).await;
            assert_eq!(answer.status, 200, "the turn itself is served: {answer:?}");
            assert_eq!(
                answer.json()["called"],
                expected,
                "what its calls got: {hops}"
            );
        }
        wait_until_no_keys(&redis).await;
    }
}

#[tokio::test]
async fn a_chain_of_sessions_that_comes_back_to_the_first_is_refused() {
    let bench = replicas(&format!("{BLOCKING}{CHAT}{TALK}")).await;
    let mut first = hold(bench.replica(0), "s1").await;
    let one = passed_on(&bench.backend, "s1", TURN);
    // The first turn calls another session, through another replica.
    let mut second = Client::connect(bench.replica(1)).await;
    let request = Request::turn("s2", "gate").header(TURN, &one);
    second.send(&request).await;
    bench.backend.started("s2", 1).await;
    let two = passed_on(&bench.backend, "s2", TURN);
    assert_eq!(
        two.split(", ").skip(1).collect::<Vec<_>>(),
        [&*one],
        "the second turn's tag comes first, and then its caller's"
    );
    for session in ["s1", "s2"] {
        let answer = call(bench.replica(0), &nested(session, &two)).await;
        assert_would_deadlock("a call of the second turn", &answer, session);
    }
    // A request without a lock is no turn, and passes on what it came with.
    let unlocked = Request::post("/elsewhere")
        .header(TURN, &two)
        .header("x-test-session", "s3");
    assert_eq!(
        call(bench.replica(0), &unlocked).await.status,
        200,
        "it passes"
    );
    let three = passed_on(&bench.backend, "s3", TURN);
    assert_eq!(
        three, two,
        "what comes after a request without a lock is known, too"
    );
    bench.backend.open_gate("s2");
    bench.backend.open_gate("s1");
    assert!(second.answer().await.whole, "the second turn ends");
    assert!(first.answer().await.whole, "the first turn ends");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_value_of_no_running_turn_changes_nothing() {
    let refusing = replicas(CHAT).await;
    let mut holder = hold(refusing.replica(0), "s1").await;
    let tag = passed_on(&refusing.backend, "s1", TURN);
    for forged in [FORGED, "", "x", &tag[1..], &format!("{tag}0")] {
        let answer = call(refusing.replica(1), &nested("s1", forged)).await;
        assert_error_response(forged, &answer, 429, "session_busy");
    }
    refusing.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");

    let waiting = replicas(&format!("{BLOCKING}{CHAT}")).await;
    let mut holder = hold(waiting.replica(0), "s1").await;
    let mut waiter = Client::connect(waiting.replica(1)).await;
    waiter.send(&nested("s1", FORGED)).await;
    wait_for_queue_length(&waiting.redis, "s1", 1).await;
    waiting.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");
    assert_eq!(
        waiter.answer().await.text(),
        "nested",
        "the waiter is served next"
    );
    let got = passed_on(&waiting.backend, "s1", TURN);
    assert!(
        got.ends_with(FORGED) && got.len() == 2 * FORGED.len() + 2,
        "the backend gets its own turn first: {got}"
    );
    wait_until_no_keys(&waiting.redis).await;
}

#[tokio::test]
async fn a_client_can_set_no_other_header_of_the_proxy() {
    let bench = Bench::start(CHAT).await;
    let request = nested("s1", "rubbish")
        .header("x-seriatim-fence", "7")
        .header("x_seriatim_turn", FORGED);
    assert_eq!(bench.call(&request).await.status, 200, "the turn is served");
    let turn = bench.backend.turns("s1").remove(0);
    let tag = turn.header(TURN).expect("the turn has a tag");
    assert!(
        tag.len() == FORGED.len() && tag.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "only tags pass: {tag}"
    );
    assert_eq!(
        turn.header("x_seriatim_turn"),
        None,
        "another spelling is removed"
    );
}

#[tokio::test]
async fn a_waiter_in_front_and_a_full_queue_hide_nothing() {
    let bench = replicas(&format!("{BLOCKING}max_waiters = 1\n{CHAT}")).await;
    let (mut holder, tag, mut waiter) = holder_and_waiter(&bench).await;
    for replica in 0..2 {
        let answer = call(bench.replica(replica), &nested("s1", &tag)).await;
        assert_would_deadlock("behind a waiter", &answer, "s1");
    }
    let other = call(bench.replica(0), &nested("s1", FORGED)).await;
    assert_error_response("another turn", &other, 429, "queue_full");
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");
    assert_eq!(
        waiter.answer().await.text(),
        "waited",
        "the waiter is served"
    );
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn with_interrupt_a_call_stops_neither_its_own_turn_nor_a_waiter() {
    let config = format!(
        "{CHAT}blocking = true\n\
         [[routes]]\nname = \"now\"\npath = \"/now\"\nsession_id = [\"{{body:/session_id}}\"]\n\
         user_id = [\"{{body:/user_id}}\"]\nblocking = true\ninterrupt = true\n"
    );
    let bench = replicas(&config).await;
    let (mut holder, tag, mut waiter) = holder_and_waiter(&bench).await;
    for replica in 0..2 {
        let body = r#"{"session_id":"s1","user_id":"u1"}"#;
        let request = Request::post("/now").header(TURN, &tag).json(body);
        let answer = call(bench.replica(replica), &request).await;
        assert_would_deadlock("an interrupting call", &answer, "s1");
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "its turn goes on to its end");
    assert_eq!(
        waiter.answer().await.text(),
        "waited",
        "the waiter keeps its place"
    );
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn upgraded_connections_and_turns_without_a_client_are_turns_like_others() {
    let config = format!("[lock]\nblocking = true\non_disconnect = \"continue\"\n{CHAT}{TALK}");
    let bench = replicas(&config).await;
    let upgrade = |session: &str| {
        Request::get("/talk")
            .header("x-test-session", session)
            .header("x-test-script", "upgrade")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
    };
    let mut tunnel = Client::connect(bench.replica(0)).await;
    tunnel.send(&upgrade("s1")).await;
    assert_eq!(
        tunnel.head().await.status,
        101,
        "the connection is upgraded"
    );
    let tag = passed_on(&bench.backend, "s1", TURN);
    let answer = call(bench.replica(1), &nested("s1", &tag)).await;
    assert_would_deadlock("a call from a tunnel", &answer, "s1");
    let answer = call(bench.replica(1), &upgrade("s1").header(TURN, &tag)).await;
    assert_would_deadlock("an upgrade from a tunnel", &answer, "s1");
    tunnel.close();

    let mut left = hold(bench.replica(0), "s2").await;
    let tag = passed_on(&bench.backend, "s2", TURN);
    left.half_close().await;
    left.read_to_close().await;
    let answer = call(bench.replica(1), &nested("s2", &tag)).await;
    assert_would_deadlock("a call of a turn whose client is gone", &answer, "s2");
    bench.backend.open_gate("s2");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_turn_without_the_stores_lock_is_known_before_and_after_the_store_is_back() {
    for on_error in ["allow", "local"] {
        let bench = Replicas::on_faulty_network().await;
        let app = bench.replica(&format!("on_error = \"{on_error}\""), BLOCKING);
        let other = App::on_redis(&bench.backend, &bench.redis, &format!("{BLOCKING}{CHAT}"));
        bench.network.set(Mode::Reset).await;
        let mut holder = hold(app.addr(), "s1").await;
        let tag = passed_on(&bench.backend, "s1", TURN);
        if on_error == "local" {
            let answer = call(app.addr(), &nested("s1", &tag)).await;
            assert_would_deadlock("under this replica's lock", &answer, "s1");
        }
        bench.network.set(Mode::Pass).await;
        let is_held = async || bench.redis.get(&key("s1")).await.is_some();
        wait_for_async(is_held, "the turn's lock is in the store").await;
        let answer = call(other.addr(), &nested("s1", &tag)).await;
        assert_would_deadlock(on_error, &answer, "s1");
        // The other worker of the replica may come back to the store later.
        let is_known = async || {
            let answer = call(app.addr(), &nested("s1", &tag)).await;
            answer.error() == (409, "would_deadlock")
        };
        wait_for_async(is_known, "each worker of the replica is back").await;
        bench.backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the turn is complete");
        wait_until_no_keys(&bench.redis).await;
    }
}

#[tokio::test]
async fn a_turn_under_both_locks_and_an_observed_turn_are_known() {
    let bench = Replicas::on_faulty_network().await;
    let app = bench.replica("on_error = \"local\"", BLOCKING);
    let mut holder = hold(app.addr(), "s1").await;
    let tag = passed_on(&bench.backend, "s1", TURN);
    for (store, mode) in [
        ("up", Mode::Pass),
        ("down", Mode::Reset),
        ("up again", Mode::Pass),
    ] {
        bench.network.set(mode).await;
        let answer = call(app.addr(), &nested("s1", &tag)).await;
        assert_would_deadlock(&format!("with the store {store}"), &answer, "s1");
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");

    // New replicas, whose every worker reaches the store.
    let enforcing = bench.replica("", BLOCKING);
    let observing = bench.replica("", "[lock]\nenforce = false\n");
    let mut observed = hold(observing.addr(), "s2").await;
    let tag = passed_on(&bench.backend, "s2", TURN);
    let is_held = async || bench.redis.get(&key("s2")).await.is_some();
    wait_for_async(is_held, "the observed turn's lock is in the store").await;
    let answer = call(enforcing.addr(), &nested("s2", &tag)).await;
    assert_would_deadlock("an observed turn", &answer, "s2");
    let answer = call(observing.addr(), &nested("s2", &tag)).await;
    assert_eq!(
        answer.status, 200,
        "where nothing waits, nothing is refused"
    );
    bench.backend.open_gate("s2");
    assert!(observed.answer().await.whole, "the turn is complete");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_call_of_a_turn_that_is_over_waits_for_the_settling() {
    let config = format!("{BLOCKING}settle = \"5s\"\n{CHAT}");
    let bench = Setup::new(&config).on_redis().await;
    let mut holder = hold(bench.app.addr(), "s1").await;
    let tag = passed_on(&bench.backend, "s1", TURN);
    bench.backend.open_gate("s1");
    // Until the proxy has noticed the end, the turn still waits for its backend.
    let mut served = None;
    let is_served = async || {
        let answer = call(bench.app.addr(), &nested("s1", &tag)).await;
        served = (answer.status == 200).then_some(answer);
        served.is_some()
    };
    wait_for_async(is_served, "the call is served").await;
    let served = served.expect("the call is served");
    assert!(
        served.header("server-timing").is_some(),
        "it waited while the lock was kept: {served:?}"
    );
    assert!(holder.answer().await.whole, "the turn is complete");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_call_of_a_turn_whose_client_has_left_waits_for_the_settling() {
    let config = format!("{BLOCKING}settle = \"5s\"\n{CHAT}");
    let bench = Setup::new(&config).on_redis().await;
    let holder = begin_turn(bench.app.addr(), "s1", "hang").await;
    bench.backend.started("s1", 1).await;
    let tag = passed_on(&bench.backend, "s1", TURN);
    holder.close();
    // Until the proxy has noticed that, the turn still waits for its backend.
    let mut served = None;
    let is_served = async || {
        let answer = call(bench.app.addr(), &nested("s1", &tag)).await;
        served = (answer.status == 200).then_some(answer);
        served.is_some()
    };
    wait_for_async(is_served, "the call is served").await;
    let served = served.expect("the call is served");
    assert!(
        served.header("server-timing").is_some(),
        "it waited while the lock was kept: {served:?}"
    );
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_call_that_may_wait_joins_the_queue_before_it_asks_about_the_holder() {
    let bench = replicas(&format!("{BLOCKING}{CHAT}")).await;
    let mut holder = hold(bench.replica(0), "s1").await;
    let monitor = bench.redis.monitor().await;
    let mut waiter = Client::connect(bench.replica(1)).await;
    waiter.send(&nested("s1", FORGED)).await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let lines = monitor.lines_from_clients().await;
    // With all four keys.
    let asks_for_lock = format!("\"4\" \"{}\"", key("s1"));
    let mut asked = lines.iter().enumerate();
    let mut asked = asked
        .by_ref()
        .filter(|(_, line)| line.contains(&asks_for_lock));
    let (joined, _) = asked.nth(1).expect("it asks, and then joins the queue");
    let question = lines.iter().position(|line| line.contains("\"1 in_use "));
    assert!(
        question.is_none_or(|question| question > joined),
        "its place comes first: {lines:?}"
    );
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");
    assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn the_tag_tells_nothing_of_the_lock() {
    let bench = replicas(CHAT).await;
    let mut holder = hold(bench.replica(0), "s1").await;
    let tag = passed_on(&bench.backend, "s1", TURN);
    let value = bench.redis.get(&key("s1")).await.expect("the lock is held");
    let value: Value = serde_json::from_str(&value).expect("a value is JSON");
    let (claim, request) = (value["claim"].as_str(), value["request"].as_str());
    let (claim, request) = (claim.expect("a claim"), request.expect("an id"));
    let epoch = &claim[..16];
    assert!(
        !tag.contains(epoch) && !request.contains(epoch),
        "neither the tag nor the request's id has the number of the process: {tag} {request}"
    );
    // Ids of other requests of the process, whatever their order: no half of the number is in them.
    let (high, low) = epoch.split_at(8);
    assert!(
        !request.contains(high) && !request.contains(low),
        "no half of it is in the id: {request}"
    );
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the turn is complete");
}

// === by the trace ===

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const TRACED: &str = "[lock]\nblocking = true\nnested_calls = \"traceparent\"\n";

/// A turn with a `traceparent` of another span in the trace `id`.
fn traced(session: &str, script: &str, id: &str) -> Request {
    let parent = format!("00-{id}-{CALLER}-01");
    Request::turn(session, script).header("traceparent", &parent)
}

#[tokio::test]
async fn with_traceparent_a_call_is_known_by_the_turns_own_trace() {
    for in_a_trace in [true, false] {
        let config = format!("{TRACED}{CHAT}");
        let bench = replicas(&config).await;
        let plain = App::on_redis(&bench.backend, &bench.redis, &format!("{BLOCKING}{CHAT}"));
        let request = match in_a_trace {
            true => traced("s1", "gate", TRACE).header("tracestate", "congo=t61rcWkgMzE"),
            false => Request::turn("s1", "gate"),
        };
        let mut holder = Client::connect(bench.replica(0)).await;
        holder.send(&request).await;
        bench.backend.started("s1", 1).await;
        let tag = passed_on(&bench.backend, "s1", TURN);
        let parent = passed_on(&bench.backend, "s1", "traceparent");
        assert!(
            parent.starts_with(&format!("00-{tag}-")) && parent.ends_with("-01"),
            "the trace id is the turn's tag, and the trace is recorded: {parent}"
        );
        let state = passed_on(&bench.backend, "s1", "tracestate");
        assert_eq!(state, format!("seriatim={tag}"), "the caller's is left out");
        let known = call(bench.replica(1), &traced("s1", "plain:x", &tag)).await;
        assert_would_deadlock("a call with nothing but the trace id", &known, "s1");
        // A second session, and back to both.
        let mut second = Client::connect(bench.replica(1)).await;
        let request = traced("s2", "gate", &tag).header("tracestate", &state);
        second.send(&request).await;
        bench.backend.started("s2", 1).await;
        let two = passed_on(&bench.backend, "s2", "traceparent");
        let state = passed_on(&bench.backend, "s2", "tracestate");
        for session in ["s1", "s2"] {
            let request = traced(session, "plain:x", &two[3..35]).header("tracestate", &state);
            let answer = call(bench.replica(1), &request).await;
            assert_would_deadlock("a call in the turn's trace", &answer, session);
        }
        // Without the option, a trace tells nothing.
        let mut waiter = Client::connect(plain.addr()).await;
        waiter.send(&traced("s1", "plain:waited", &tag)).await;
        wait_for_queue_length(&bench.redis, "s1", 1).await;
        bench.backend.open_gate("s2");
        bench.backend.open_gate("s1");
        assert!(second.answer().await.whole, "the second turn is complete");
        assert!(holder.answer().await.whole, "the first turn is complete");
        assert_eq!(
            waiter.answer().await.text(),
            "waited",
            "the waiter is served"
        );
        wait_until_no_keys(&bench.redis).await;
    }
}

#[tokio::test]
async fn with_traceparent_a_trace_that_is_not_recorded_stays_so() {
    let bench = Bench::start(&format!("{TRACED}{CHAT}")).await;
    let parent = format!("00-{TRACE}-{CALLER}-00");
    let request = Request::turn("s1", "plain:x")
        .header("traceparent", &parent)
        .header("tracestate", "congo=t61rcWkgMzE");
    assert_eq!(bench.call(&request).await.status, 200, "the turn is served");
    let turn = bench.backend.turns("s1").remove(0);
    let parent = turn.header("traceparent").expect("a trace");
    assert!(
        !parent.contains(TRACE) && parent.ends_with("-00"),
        "another trace, with the caller's flag: {parent}"
    );
    assert_eq!(
        turn.header("tracestate")
            .map(|state| state.contains("congo")),
        Some(false),
        "what went with the caller's trace doesn't go with the turn's"
    );
}

#[tokio::test]
async fn with_traceparent_the_spans_link_to_the_callers_trace() {
    let (backend, collector) = (
        Backend::start("plain:ok").await,
        Collector::start(Mood::Takes).await,
    );
    let config = format!("{TRACED}{}{CHAT}", collector.config());
    let app = App::in_memory(&backend, &config);
    let answer = call(app.addr(), &traced("s1", "plain:x", TRACE)).await;
    assert_eq!(answer.status, 200, "the turn is served");
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one tree");
    };
    let tag = passed_on(&backend, "s1", TURN);
    assert_eq!(
        (&tree.server.trace, &*tree.server.parent),
        (&tag, ""),
        "the request's span begins the turn's trace"
    );
    assert_eq!(
        tree.server.links,
        [(TRACE.to_owned(), CALLER.to_owned())],
        "it links to the caller's span"
    );
    let sent = tree.backend.as_ref().expect("it was sent");
    let parent = passed_on(&backend, "s1", "traceparent");
    assert_eq!(
        parent,
        format!("00-{tag}-{}-01", sent.id),
        "the backend's spans are below the backend span"
    );
    assert_eq!(sent.links, [], "the other spans have no link");
}
