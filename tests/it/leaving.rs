//! With `on_disconnect = "continue"` the proxy reads the response of a turn to its end after the client
//! has disconnected, under the lock and within the limits.
//!
//! In these tests a client disconnects by closing its sending half, which the proxy takes for a
//! disconnect. The client can then see the proxy close, so the test knows that the proxy has noticed.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, Ending, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async, within};

const CONTINUE: &str = "[lock]\non_disconnect = \"continue\"\n";
const CANCEL: &str = "[lock]\non_disconnect = \"cancel\"\n";
/// Short timeouts for tests of hanging backends. Other turns stay far below them.
const SHORT_TIMEOUTS: &str = "[timeouts]\nresponse_head = \"700ms\"\nidle_stream = \"700ms\"\n";
/// A route with its session in a header, so that the body is streamed.
const UP: &str =
    "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";

async fn start(config: &str) -> Bench<Redis> {
    // A store timeout far below the short leases.
    let store = "timeout = \"200ms\"";
    let config = format!("{config}{CHAT}{UP}");
    Setup::new(&config).store(store).on_redis().await
}

impl Bench<Redis> {
    /// Begins a turn, and disconnects while the backend works on it: after the first event, where the
    /// script sends one before its end. Returns when the proxy has noticed.
    async fn disconnect(&self, session: &str, script: &str) {
        let begun = self.backend.turns(session).len();
        let mut client = begin_turn(self.app.addr(), session, script).await;
        self.backend.started(session, begun + 1).await;
        if !matches!(script, "hang" | "gate-head") {
            client.read_until(&event(0)).await;
        }
        disconnect(client).await;
    }

    /// How the session's first turn ended for the backend.
    async fn ending(&self, session: &str) -> Option<Ending> {
        self.backend.ended(session, 1).await;
        self.backend.turns(session)[0].ending
    }

    async fn assert_busy(&self, session: &str, during: &str) {
        let answer = turn(self.app.addr(), session, "plain:x").await;
        assert_eq!(
            answer.header("x-seriatim-error"),
            Some("session_busy"),
            "the lock is held while the backend works: {during}"
        );
    }
}

/// Disconnects, and waits until the proxy has noticed.
async fn disconnect(mut client: Client) {
    client.half_close().await;
    client.read_to_close().await;
}

// === to the end of the response ===

#[tokio::test]
async fn with_continue_a_turn_without_a_client_runs_to_its_end_under_its_lock() {
    let bench = start(CONTINUE).await;
    // Before the head of the response, and in the middle of it.
    for script in ["gate-head", "gate"] {
        bench.disconnect(script, script).await;
        for _ in 0..3 {
            bench.assert_busy(script, script).await;
        }
        assert_eq!(
            bench.backend.running(script),
            1,
            "the backend's request is not cancelled: {script}"
        );
        bench.backend.open_gate(script);
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "the response is read to its end: {script}"
        );
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn a_response_of_any_form_is_read_to_its_end() {
    let bench = start(CONTINUE).await;
    for script in ["chunked:6:50", "length:6:50"] {
        bench.disconnect(script, script).await;
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "the backend can send its whole response: {script}"
        );
        bench.wait_until_free(script, script).await;
    }
    // These responses may end before the proxy notices the disconnect.
    for script in ["plain:x", "empty", "nocontent", "until-close", "trailers"] {
        let client = begin_turn(bench.app.addr(), script, script).await;
        bench.backend.started(script, 1).await;
        disconnect(client).await;
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "the response is complete: {script}"
        );
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn a_close_and_a_reset_are_disconnects_too() {
    let bench = start(CONTINUE).await;
    for (session, script) in [("s1", "gate-head"), ("s2", "gate")] {
        for is_reset in [false, true] {
            let session = format!("{session}-{is_reset}");
            let client = begin_turn(bench.app.addr(), &session, script).await;
            bench.backend.started(&session, 1).await;
            if is_reset {
                client.reset();
            } else {
                client.close();
            }
            bench.assert_busy(&session, script).await;
            bench.backend.open_gate(&session);
            assert_eq!(
                bench.ending(&session).await,
                Some(Ending::Finished),
                "the turn goes on after any kind of disconnect: {script}, reset: {is_reset}"
            );
            bench.wait_until_free(&session, script).await;
        }
    }
}

#[tokio::test]
async fn a_disconnect_after_the_last_frame_leaves_nothing_to_read() {
    let bench = start(CONTINUE).await;
    for script in ["plain:hello", "chunked:3:1"] {
        let mut client = Client::connect(bench.app.addr()).await;
        assert!(
            client.turn(script, script).await.whole,
            "a complete turn: {script}"
        );
        client.close();
        let next = turn(bench.app.addr(), script, "plain:next").await;
        assert_eq!(next.status, 200, "the turn has ended: {script}");
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn the_backend_connection_of_a_turn_without_a_client_is_reused() {
    let bench = start(CONTINUE).await;
    bench.disconnect("s1", "gate").await;
    bench.backend.open_gate("s1");
    // Each worker has its own pool, and the next client may be on another worker.
    let again = async || {
        turn(bench.app.addr(), "s1", "plain:next").await;
        let turns = bench.backend.turns("s1");
        turns[1..]
            .iter()
            .any(|turn| turn.connection == turns[0].connection)
    };
    wait_for_async(again, "a turn on the connection of the first one").await;
}

#[tokio::test]
async fn with_continue_a_backend_that_ignores_a_disconnect_runs_one_turn() {
    for (lock, overlap) in [(CANCEL, 2), (CONTINUE, 1)] {
        let bench = start(lock).await;
        bench.disconnect("s1", "stubborn").await;
        if lock == CONTINUE {
            bench.assert_busy("s1", "the backend goes on").await;
            bench.backend.open_gate("s1");
        }
        let next = async || turn(bench.app.addr(), "s1", "plain:next").await.status == 200;
        wait_for_async(next, "the next turn").await;
        assert_eq!(
            bench.backend.max_overlap("s1"),
            overlap,
            "only the end of the response shows that such a backend is done: {lock}"
        );
        bench.backend.open_all_gates();
    }
}

// === turns that end with their client ===

#[tokio::test]
async fn with_cancel_the_backend_sees_the_disconnect() {
    let bench = start(CANCEL).await;
    for script in ["hang", "gate-head", "gate", "hang-middle"] {
        bench.disconnect(script, script).await;
        bench.backend.gone(script).await;
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn a_request_without_a_session_ends_with_its_client() {
    let bench = start(CONTINUE).await;
    let request = Request::get("/free")
        .header("x-test-session", "s1")
        .header("x-test-script", "gate");
    let mut client = Client::connect(bench.app.addr()).await;
    client.send(&request).await;
    client.read_until(&event(0)).await;
    disconnect(client).await;
    bench.backend.gone("s1").await;
}

#[tokio::test]
async fn a_turn_with_an_incomplete_request_ends_with_its_client() {
    let bench = start(CONTINUE).await;
    // A body that is read to find the session, before the lock.
    let mut client = Client::connect(bench.app.addr()).await;
    client
        .send_head(&Request::post("/chat").header("content-length", "100"))
        .await;
    client.send_raw(b"{\"session_id\"").await;
    disconnect(client).await;
    assert_eq!(
        bench.backend.requests().len(),
        0,
        "no request was forwarded"
    );
    // A body that is streamed under the lock.
    for framing in [
        ("content-length", "100000"),
        ("transfer-encoding", "chunked"),
    ] {
        let before = bench.backend.requests().len();
        let mut client = Client::connect(bench.app.addr()).await;
        let request = Request::post("/up").header("x-test-session", "s1");
        client
            .send_head(&request.header(framing.0, framing.1))
            .await;
        client.send_raw(b"5\r\nhello\r\n").await;
        bench.backend.received(before + 1).await;
        disconnect(client).await;
        let quiet = async || bench.redis.keys().await.is_empty();
        wait_for_async(quiet, "the lock is released").await;
        let closed = async || bench.backend.requests()[before].ending.is_some();
        wait_for_async(closed, "the connection to the backend is closed").await;
        assert_eq!(
            bench.backend.turns("s1").len(),
            0,
            "a partial request never looks complete: {framing:?}"
        );
    }
}

#[tokio::test]
async fn a_turn_goes_on_once_its_whole_request_is_forwarded() {
    let bench = start(CONTINUE).await;
    for (session, script) in [("s1", "gate-head"), ("s2", "gate")] {
        let request = Request::post("/up")
            .header("x-test-session", session)
            .header("x-test-script", script)
            .chunked(&[b"hello", b"world"]);
        let mut client = Client::connect(bench.app.addr()).await;
        client.send(&request).await;
        bench.backend.started(session, 1).await;
        disconnect(client).await;
        bench.backend.open_gate(session);
        assert_eq!(
            bench.ending(session).await,
            Some(Ending::Finished),
            "the request is complete: {script}"
        );
    }
}

/// A backend that begins its response before it has the whole body. Gives what it got until the proxy
/// closed.
async fn respond_early(listener: TcpListener) -> Vec<u8> {
    let (mut socket, _) = listener.accept().await.expect("the proxy connects");
    let mut got = Vec::new();
    let mut has_responded = false;
    while let Ok(1..) = socket.read_buf(&mut got).await {
        if !has_responded && got.windows(5).any(|bytes| bytes == b"hello") {
            has_responded = true;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n{}\r\n",
                &event(0)[..11]
            );
            let written = socket.write_all(answer.as_bytes()).await;
            written.expect("the proxy reads");
        }
    }
    got
}

#[tokio::test]
async fn a_request_cut_off_during_its_response_never_looks_complete() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!(
        "http://{}",
        listener.local_addr().expect("the listener's address")
    );
    let app = App::start(&upstream, "memory:", "", &format!("{CONTINUE}{UP}"));
    let backend = tokio::spawn(respond_early(listener));
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/up").header("x-test-session", "s1");
    client
        .send_head(&request.header("transfer-encoding", "chunked"))
        .await;
    client.send_raw(b"5\r\nhello\r\n").await;
    client.read_until(&event(0)[..11]).await;
    disconnect(client).await;
    let got = within("the connection to the backend to close", backend).await;
    let got = got.expect("no panic");
    assert!(
        got.ends_with(b"5\r\nhello\r\n"),
        "the proxy adds nothing to what the client sent: {}",
        String::from_utf8_lossy(&got)
    );
}

#[tokio::test]
async fn a_turn_that_waits_for_a_backend_connection_ends_with_its_client() {
    // The listener's queue is full, so that the next connection hangs.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let full = socket.listen(0).expect("a socket that listens");
    let addr = full.local_addr().expect("its address");
    let _queued = TcpStream::connect(addr)
        .await
        .expect("the queue has room for one");
    let redis = Redis::start().await;
    let config = format!("[timeouts]\nconnect = \"1h\"\n{CONTINUE}{CHAT}");
    let app = App::start(&format!("http://{addr}"), &redis.url(), "", &config);
    let client = begin_turn(app.addr(), "s1", "plain:x").await;
    let held = async || redis.get(&key("s1")).await.is_some();
    wait_for_async(held, "the turn holds its lock").await;
    disconnect(client).await;
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "a turn that has not begun ends with its client").await;
}

// === limits ===

#[tokio::test]
async fn a_turn_without_a_client_is_aborted_when_its_backend_hangs() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CONTINUE}")).await;
    for script in ["hang", "hang-middle"] {
        bench.disconnect(script, script).await;
        bench.backend.gone(script).await;
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn a_slow_stream_without_a_client_does_not_time_out() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CONTINUE}")).await;
    bench.disconnect("s1", "chunked:12:100").await;
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "each event restarts the timeout"
    );
    bench.wait_until_free("s1", "a slow stream").await;
}

#[tokio::test]
async fn a_turn_without_a_client_is_aborted_when_its_lease_expires() {
    let lock = format!("{CONTINUE}lock_timeout = \"600ms\"\n");
    let bench = start(&lock).await;
    for script in ["hang", "hang-middle", "chunked:100000:5"] {
        bench.disconnect(script, script).await;
        bench.backend.gone(script).await;
        bench.wait_until_free(script, script).await;
    }
}

#[tokio::test]
async fn a_turn_without_a_client_is_extended_beyond_its_lease() {
    let lock = "lock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
    let bench = start(&format!("{CONTINUE}{lock}")).await;
    bench.disconnect("s1", "chunked:40:50").await;
    loop {
        let ttl = bench.redis.pttl(&key("s1")).await;
        if bench.backend.running("s1") == 0 {
            break;
        }
        assert!(ttl > 0, "the lock has a TTL during the whole turn: {ttl}");
    }
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "the turn takes three times as long as its lease"
    );
    bench.wait_until_free("s1", "an extended turn").await;
}

#[tokio::test]
async fn a_lost_lock_aborts_a_turn_without_a_client() {
    let lock = "lock_timeout = 60\nextend_lock_interval = \"100ms\"\n";
    let bench = start(&format!("{CONTINUE}{lock}")).await;
    for script in ["gate-head", "gate"] {
        bench.disconnect(script, script).await;
        let key = key(script);
        let theirs = ["SET", &key, "somebody else", "PX", "60000"];
        bench.redis.command(&theirs).await;
        bench.backend.gone(script).await;
        let value = bench.redis.get(&key).await;
        assert_eq!(
            value.as_deref(),
            Some("somebody else"),
            "the new holder keeps its lock"
        );
        bench.redis.command(&["DEL", &key]).await;
        bench
            .wait_until_free(script, "the lock was taken away")
            .await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_dropped_and_its_turn_goes_on() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CONTINUE}")).await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:30000000")).await;
    client.piece().await;
    // The client stays connected but reads nothing more.
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "the backend can send its whole response"
    );
    bench
        .wait_until_free("s1", "a client that reads nothing")
        .await;
    client.close();
}

// === stop ===

#[tokio::test]
async fn a_stop_waits_for_turns_without_clients() {
    let bench = start(&format!("[timeouts]\ndrain = \"1h\"\n{CONTINUE}")).await;
    for script in ["gate-head", "gate"] {
        bench.disconnect(script, script).await;
    }
    let addr = bench.app.addr();
    let stopping = tokio::spawn(bench.app.stop());
    let refused = async || Client::try_connect(addr).await.is_err();
    wait_for_async(refused, "the listener is closed").await;
    for script in ["gate-head", "gate"] {
        assert_eq!(
            bench.backend.running(script),
            1,
            "a turn without a client still runs: {script}"
        );
        bench.backend.open_gate(script);
    }
    let stopped = within("its end", stopping).await.expect("the stop");
    assert!(
        stopped.in_time && stopped.all_released,
        "the turns end by themselves: {stopped:?}"
    );
    for script in ["gate-head", "gate"] {
        let ending = bench.backend.turns(script)[0].ending;
        assert_eq!(ending, Some(Ending::Finished), "read to its end: {script}");
    }
    assert_eq!(bench.redis.keys().await, [""; 0], "no key is left");
}

#[tokio::test]
async fn a_stop_aborts_turns_without_clients_after_the_drain_timeout() {
    let bench = start(&format!("[timeouts]\ndrain = \"300ms\"\n{CONTINUE}")).await;
    for script in ["gate-head", "gate"] {
        bench.disconnect(script, script).await;
    }
    let stopped = within("the stop", bench.app.stop()).await;
    assert!(!stopped.in_time, "the aborted turns are reported");
    assert!(stopped.all_released, "every lock is released");
    assert_eq!(bench.redis.keys().await, [""; 0], "no key is left");
    for script in ["gate-head", "gate"] {
        bench.backend.gone(script).await;
    }
}

// === log ===

#[tokio::test]
async fn who_leaves_after_the_last_byte_has_had_the_whole_response() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[lock]\nsettle = \"5s\"\n{CHAT}",
        backend.url()
    );
    std::fs::write(&path, text).expect("the file can be written");
    let process = Process::start(&path);
    let mut client = begin_turn(process.addr(), "s1", "chunked:1:0").await;
    client.read_until(&event(0)).await;
    backend.ended("s1", 1).await;
    // The end of the response is held back until the turn has settled.
    disconnect(client).await;
    let logged = || process.has_logged("seriatim::access");
    wait_for(logged, "the turn is over").await;
    process.signal("TERM");
    let (_, events) = process.end();
    let access: Vec<_> = events
        .iter()
        .filter(|event| event["target"] == "seriatim::access")
        .collect();
    let outcomes: Vec<_> = access.iter().map(|event| &event["outcome"]).collect();
    assert_eq!(outcomes, ["complete"], "it missed nothing: {access:?}");
}

#[tokio::test]
async fn a_turn_without_a_client_gets_one_access_event_at_its_end() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    // The last two turns must still run when the process stops.
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[timeouts]\nidle_stream = \"2s\"\n\
         drain = \"100ms\"\n{CONTINUE}{CHAT}\
         [[routes]]\nname = \"short\"\npath = \"/short\"\nlock_timeout = \"1500ms\"\n\
         session_id = [\"{{header:x-test-session}}\"]\n",
        backend.url()
    );
    std::fs::write(&path, text).expect("the file can be written");
    let process = Process::start(&path);
    let addr = process.addr();
    let run_and_disconnect = async |request: &Request, session: &str, script: &str| {
        let mut client = Client::connect(addr).await;
        client.send(request).await;
        backend.started(session, 1).await;
        if script != "gate-head" {
            client.read_until(&event(0)).await;
        }
        disconnect(client).await;
    };
    let continued_turn = async |session: &str, script: &str| {
        run_and_disconnect(&Request::turn(session, script), session, script).await;
    };
    // This turn keeps its client and has a silent backend, so nothing goes on.
    let mut silent = begin_turn(addr, "silent", "hang-middle").await;
    continued_turn("whole", "chunked:3:300").await;
    backend.ended("whole", 1).await;
    continued_turn("at-its-last-byte", "gate").await;
    backend.open_gate("at-its-last-byte");
    backend.ended("at-its-last-byte", 1).await;
    continued_turn("unanswered", "gate-head").await;
    backend.open_gate("unanswered");
    backend.ended("unanswered", 1).await;
    let short = Request::post("/short")
        .header("x-test-session", "short")
        .header("x-test-script", "gate");
    run_and_disconnect(&short, "short", "gate").await;
    backend.gone("short").await;
    continued_turn("hanging", "hang-middle").await;
    backend.gone("hanging").await;
    assert!(!silent.answer().await.whole, "the idle timeout has expired");
    continued_turn("stays", "gate").await;
    process.signal("TERM");
    backend.gone("stays").await;
    let (_, events) = process.end();

    let access_event = |session: &str| {
        let key = key(session).replace(":u1:short", ":unknown:short");
        let is_of_session =
            |event: &&Value| event["target"] == "seriatim::access" && event["key"] == *key;
        let matching: Vec<_> = events.iter().filter(is_of_session).collect();
        assert_eq!(matching.len(), 1, "one event for each request: {events:#?}");
        matching[0].clone()
    };
    for (session, outcome, continued) in [
        ("whole", "client_gone", "complete"),
        ("at-its-last-byte", "complete", "complete"),
        ("unanswered", "client_gone", "complete"),
        ("short", "client_gone", "lock_lost"),
        ("hanging", "client_gone", "idle_timeout"),
        ("stays", "client_gone", "drain_aborted"),
    ] {
        let event = access_event(session);
        assert_eq!(
            event["outcome"], outcome,
            "whether the client disconnected before the last byte: {event}"
        );
        assert_eq!(
            event["continued"], continued,
            "the end of the turn after that: {event}"
        );
        assert!(
            event["hold_us"].is_u64(),
            "the whole time that the lock was held: {event}"
        );
    }
    let bytes = |session: &str| access_event(session)["bytes"].as_u64().expect("a number");
    let first = event(0).len() as u64;
    assert_eq!(bytes("whole"), first, "the bytes sent to the client");
    assert_eq!(bytes("unanswered"), 0, "no bytes before the head");
    let micros = access_event("hanging")["hold_us"]
        .as_u64()
        .expect("a number");
    let held = Duration::from_micros(micros);
    assert!(
        held >= Duration::from_secs(2),
        "the whole time that the lock was held: {held:?}"
    );
    let error = &access_event("short")["error"];
    assert_eq!(*error, "its lease ran out", "how the lock was lost");
    let silent = access_event("silent");
    assert_eq!(silent["outcome"], "idle_timeout", "no byte moved: {silent}");
    assert!(silent["continued"].is_null(), "nothing went on: {silent}");
}
