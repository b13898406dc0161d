//! `on_disconnect = "continue"`: a turn whose client is gone is read to its end, under its lock and
//! within its limits.
//!
//! A client leaves here by closing its sending half, which the proxy takes for gone: then it can
//! still see the proxy close, and the test knows that it was missed.

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
use crate::support::{wait_for_async, within};

const CONTINUE: &str = "[lock]\non_disconnect = \"continue\"\n";
const CANCEL: &str = "[lock]\non_disconnect = \"cancel\"\n";
/// Short, so that tests of hanging backends end; a turn that doesn't hang is far from it.
const IMPATIENT: &str = "[timeouts]\nresponse_head = \"700ms\"\nidle_stream = \"700ms\"\n";
/// A route whose session stands in a header, so that the body is streamed and not read before.
const UP: &str =
    "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";

async fn start(config: &str) -> Bench<Redis> {
    // A store that gives up on a command well within the short leases.
    let store = "timeout = \"200ms\"";
    let config = format!("{config}{CHAT}{UP}");
    Setup::new(&config).store(store).on_redis().await
}

impl Bench<Redis> {
    /// Begins a turn, and leaves it when the backend works on it; after the first event, where the
    /// script has one before its end. Resolves when the proxy has noticed.
    async fn leave(&self, session: &str, script: &str) {
        let begun = self.backend.turns(session).len();
        let mut client = begin_turn(self.app.addr(), session, script).await;
        self.backend.started(session, begun + 1).await;
        if !matches!(script, "hang" | "gate-head") {
            client.read_until(&event(0)).await;
        }
        leave(client).await;
    }

    /// How the session's first turn ended for the backend.
    async fn ending(&self, session: &str) -> Option<Ending> {
        self.backend.ended(session, 1).await;
        self.backend.turns(session)[0].ending
    }

    async fn assert_busy(&self, session: &str, while_: &str) {
        let answer = turn(self.app.addr(), session, "plain:x").await;
        assert_eq!(
            answer.header("x-seriatim-error"),
            Some("session_busy"),
            "the lock is held as long as the backend works: {while_}"
        );
    }
}

/// Leaves, and waits until that was noticed.
async fn leave(mut client: Client) {
    client.half_close().await;
    client.read_to_close().await;
}

// === to the end of the answer ===

#[tokio::test]
async fn a_turn_whose_client_left_is_read_to_its_end_and_holds_its_lock_until_then() {
    let bench = start(CONTINUE).await;
    // Before the head of the answer, and in the middle of it.
    for script in ["gate-head", "gate"] {
        bench.leave(script, script).await;
        for _ in 0..3 {
            bench.assert_busy(script, script).await;
        }
        assert_eq!(
            bench.backend.running(script),
            1,
            "the backend's request isn't cancelled: {script}"
        );
        bench.backend.open_gate(script);
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "its answer is read to its end: {script}"
        );
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn whatever_the_answer_looks_like_it_is_read_to_its_end() {
    let bench = start(CONTINUE).await;
    for script in ["chunked:6:50", "length:6:50"] {
        bench.leave(script, script).await;
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "the backend says all that it has to say: {script}"
        );
        bench.becomes_free(script, script).await;
    }
    // Of these the end may be there before the client is missed.
    for script in ["plain:x", "empty", "nocontent", "until-close", "trailers"] {
        let client = begin_turn(bench.app.addr(), script, script).await;
        bench.backend.started(script, 1).await;
        leave(client).await;
        assert_eq!(
            bench.ending(script).await,
            Some(Ending::Finished),
            "the answer is over: {script}"
        );
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn a_client_that_closes_or_resets_is_gone_too() {
    let bench = start(CONTINUE).await;
    for (session, script) in [("s1", "gate-head"), ("s2", "gate")] {
        for by_reset in [false, true] {
            let session = format!("{session}-{by_reset}");
            let client = begin_turn(bench.app.addr(), &session, script).await;
            bench.backend.started(&session, 1).await;
            if by_reset {
                client.reset();
            } else {
                client.close();
            }
            bench.assert_busy(&session, script).await;
            bench.backend.open_gate(&session);
            assert_eq!(
                bench.ending(&session).await,
                Some(Ending::Finished),
                "however it leaves, its turn goes on: {script}, reset: {by_reset}"
            );
            bench.becomes_free(&session, script).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_behind_the_last_frame_leaves_nothing_to_read() {
    let bench = start(CONTINUE).await;
    for script in ["plain:hello", "chunked:3:1"] {
        let mut client = Client::connect(bench.app.addr()).await;
        assert!(client.turn(script, script).await.whole, "a turn: {script}");
        client.close();
        let next = turn(bench.app.addr(), script, "plain:next").await;
        assert_eq!(next.status, 200, "the turn was over: {script}");
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn a_connection_whose_answer_was_read_for_nobody_is_used_again() {
    let bench = start(CONTINUE).await;
    bench.leave("s1", "gate").await;
    bench.backend.open_gate("s1");
    // Each worker has a pool of its own, and the next client may be another's.
    let again = async || {
        turn(bench.app.addr(), "s1", "plain:next").await;
        let turns = bench.backend.turns("s1");
        turns[1..]
            .iter()
            .any(|turn| turn.connection == turns[0].connection)
    };
    wait_for_async(again, "a turn over the connection of the first").await;
}

#[tokio::test]
async fn a_backend_that_goes_on_when_its_caller_leaves_is_never_given_two_turns_at_once() {
    for (lock, overlap) in [(CANCEL, 2), (CONTINUE, 1)] {
        let bench = start(lock).await;
        bench.leave("s1", "stubborn").await;
        if lock == CONTINUE {
            bench.assert_busy("s1", "it goes on working").await;
            bench.backend.open_gate("s1");
        }
        let next = async || turn(bench.app.addr(), "s1", "plain:next").await.status == 200;
        wait_for_async(next, "the next turn").await;
        assert_eq!(
            bench.backend.max_overlap("s1"),
            overlap,
            "only its answer's end tells that such a backend is done: {lock}"
        );
        bench.backend.open_all_gates();
    }
}

// === what does not go on ===

#[tokio::test]
async fn with_cancel_the_backend_sees_its_client_leave() {
    let bench = start(CANCEL).await;
    for script in ["hang", "gate-head", "gate", "hang-middle"] {
        bench.leave(script, script).await;
        bench.backend.gone(script).await;
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn a_request_without_a_session_does_not_go_on() {
    let bench = start(CONTINUE).await;
    let request = Request::get("/free")
        .header("x-test-session", "s1")
        .header("x-test-script", "gate");
    let mut client = Client::connect(bench.app.addr()).await;
    client.send(&request).await;
    client.read_until(&event(0)).await;
    leave(client).await;
    bench.backend.gone("s1").await;
}

#[tokio::test]
async fn a_request_that_the_proxy_does_not_have_whole_does_not_go_on() {
    let bench = start(CONTINUE).await;
    // Read for its session, before there is a lock.
    let mut client = Client::connect(bench.app.addr()).await;
    client
        .send_head(&Request::post("/chat").header("content-length", "100"))
        .await;
    client.send_raw(b"{\"session_id\"").await;
    leave(client).await;
    assert_eq!(bench.backend.requests().len(), 0, "nothing was started");
    // Streamed, under the lock.
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
        leave(client).await;
        let quiet = async || bench.redis.keys().await.is_empty();
        wait_for_async(quiet, "the lock goes with the client").await;
        let cut = async || bench.backend.requests()[before].ending.is_some();
        wait_for_async(cut, "the backend's connection is closed").await;
        assert_eq!(
            bench.backend.turns("s1").len(),
            0,
            "a part of a request is never ended as if it were whole: {framing:?}"
        );
    }
}

#[tokio::test]
async fn a_streamed_request_that_has_gone_out_whole_goes_on() {
    let bench = start(CONTINUE).await;
    for (session, script) in [("s1", "gate-head"), ("s2", "gate")] {
        let request = Request::post("/up")
            .header("x-test-session", session)
            .header("x-test-script", script)
            .chunked(&[b"hello", b"world"]);
        let mut client = Client::connect(bench.app.addr()).await;
        client.send(&request).await;
        bench.backend.started(session, 1).await;
        leave(client).await;
        bench.backend.open_gate(session);
        assert_eq!(
            bench.ending(session).await,
            Some(Ending::Finished),
            "its client has nothing more to give: {script}"
        );
    }
}

/// A backend that begins its answer before it has the request's body; gives what it got of that by
/// the time its peer closes.
async fn eager(listener: TcpListener) -> Vec<u8> {
    let (mut socket, _) = listener.accept().await.expect("the proxy connects");
    let mut got = Vec::new();
    let mut answered = false;
    while let Ok(1..) = socket.read_buf(&mut got).await {
        if !answered && got.windows(5).any(|bytes| bytes == b"hello") {
            answered = true;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nb\r\n{}\r\n",
                &event(0)[..11]
            );
            let said = socket.write_all(answer.as_bytes()).await;
            said.expect("the proxy reads");
        }
    }
    got
}

#[tokio::test]
async fn a_request_that_breaks_off_behind_the_answers_head_is_not_ended_as_if_it_were_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("its address"));
    let app = App::start(&upstream, "memory:", "", &format!("{CONTINUE}{UP}"));
    let backend = tokio::spawn(eager(listener));
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/up").header("x-test-session", "s1");
    client
        .send_head(&request.header("transfer-encoding", "chunked"))
        .await;
    client.send_raw(b"5\r\nhello\r\n").await;
    client.read_until(&event(0)[..11]).await;
    leave(client).await;
    let got = within("the backend's connection to close", backend).await;
    let got = got.expect("no panic");
    assert!(
        got.ends_with(b"5\r\nhello\r\n"),
        "nothing follows what the client had sent: {}",
        String::from_utf8_lossy(&got)
    );
}

#[tokio::test]
async fn a_request_that_has_not_reached_the_backend_is_not_started_without_its_client() {
    // Its queue of connections is full, so that the next one hangs.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let full = socket.listen(0).expect("a socket that listens");
    let addr = full.local_addr().expect("its address");
    let _queued = TcpStream::connect(addr).await.expect("room for one");
    let redis = Redis::start().await;
    let config = format!("[timeouts]\nconnect = \"1h\"\n{CONTINUE}{CHAT}");
    let app = App::start(&format!("http://{addr}"), &redis.url(), "", &config);
    let client = begin_turn(app.addr(), "s1", "plain:x").await;
    let held = async || redis.get(&key("s1")).await.is_some();
    wait_for_async(held, "the turn has its lock").await;
    leave(client).await;
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "a turn that had not begun is over with its client").await;
}

// === limits ===

#[tokio::test]
async fn a_turn_without_a_client_is_left_when_its_backend_is_silent_for_too_long() {
    let bench = start(&format!("{IMPATIENT}{CONTINUE}")).await;
    for script in ["hang", "hang-middle"] {
        bench.leave(script, script).await;
        bench.backend.gone(script).await;
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn a_slow_stream_that_nobody_reads_is_not_a_silent_one() {
    let bench = start(&format!("{IMPATIENT}{CONTINUE}")).await;
    bench.leave("s1", "chunked:12:100").await;
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "each event begins the time anew"
    );
    bench.becomes_free("s1", "a slow stream").await;
}

#[tokio::test]
async fn a_turn_without_a_client_is_cut_at_its_deadline() {
    let lock = format!("{CONTINUE}lock_timeout = \"600ms\"\n");
    let bench = start(&lock).await;
    for script in ["hang", "hang-middle", "chunked:100000:5"] {
        bench.leave(script, script).await;
        bench.backend.gone(script).await;
        bench.becomes_free(script, script).await;
    }
}

#[tokio::test]
async fn an_extended_turn_outlives_its_lease_without_its_client() {
    let lock = "lock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
    let bench = start(&format!("{CONTINUE}{lock}")).await;
    bench.leave("s1", "chunked:40:50").await;
    loop {
        let left = bench.redis.pttl(&key("s1")).await;
        if bench.backend.running("s1") == 0 {
            break;
        }
        assert!(
            left > 0,
            "the lock is there for as long as the turn: {left}"
        );
    }
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "the turn is three times as long as its lease"
    );
    bench.becomes_free("s1", "an extended turn").await;
}

#[tokio::test]
async fn a_lock_that_is_taken_away_ends_a_turn_without_a_client() {
    let lock = "lock_timeout = 60\nextend_lock_interval = \"100ms\"\n";
    let bench = start(&format!("{CONTINUE}{lock}")).await;
    for script in ["gate-head", "gate"] {
        bench.leave(script, script).await;
        let key = key(script);
        let theirs = ["SET", &key, "somebody else", "PX", "60000"];
        bench.redis.command(&theirs).await;
        bench.backend.gone(script).await;
        let value = bench.redis.get(&key).await;
        assert_eq!(
            value.as_deref(),
            Some("somebody else"),
            "and the new holder isn't disturbed"
        );
        bench.redis.command(&["DEL", &key]).await;
        bench.becomes_free(script, "the lock was taken away").await;
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up_and_its_turn_goes_on() {
    let bench = start(&format!("{IMPATIENT}{CONTINUE}")).await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:30000000")).await;
    client.piece().await;
    // It stays connected, and reads no further.
    assert_eq!(
        bench.ending("s1").await,
        Some(Ending::Finished),
        "the backend can say all that it has to say"
    );
    bench
        .becomes_free("s1", "a client that reads nothing")
        .await;
    client.close();
}

// === stopping ===

#[tokio::test]
async fn stopping_waits_for_turns_without_clients() {
    let bench = start(&format!("[timeouts]\ndrain = \"1h\"\n{CONTINUE}")).await;
    for script in ["gate-head", "gate"] {
        bench.leave(script, script).await;
    }
    let addr = bench.app.addr();
    let stopping = tokio::spawn(bench.app.stop());
    let refused = async || Client::try_connect(addr).await.is_err();
    wait_for_async(refused, "the socket is closed").await;
    for script in ["gate-head", "gate"] {
        assert_eq!(
            bench.backend.running(script),
            1,
            "a turn without a client is a turn: {script}"
        );
        bench.backend.open_gate(script);
    }
    let stopped = within("its end", stopping).await.expect("no panic");
    assert!(
        stopped.in_time && stopped.all_released,
        "they end by themselves: {stopped:?}"
    );
    for script in ["gate-head", "gate"] {
        let ending = bench.backend.turns(script)[0].ending;
        assert_eq!(ending, Some(Ending::Finished), "read to the end: {script}");
    }
    assert_eq!(bench.redis.keys().await, [""; 0], "and no key is left");
}

#[tokio::test]
async fn stopping_aborts_turns_without_clients_when_its_time_is_over() {
    let bench = start(&format!("[timeouts]\ndrain = \"300ms\"\n{CONTINUE}")).await;
    for script in ["gate-head", "gate"] {
        bench.leave(script, script).await;
    }
    let stopped = within("its end", bench.app.stop()).await;
    assert!(!stopped.in_time, "that they stayed is reported");
    assert!(stopped.all_released, "every lock was given back");
    assert_eq!(bench.redis.keys().await, [""; 0], "and no key is left");
    for script in ["gate-head", "gate"] {
        bench.backend.gone(script).await;
    }
}

// === what is told ===

#[tokio::test]
async fn a_turn_that_went_on_is_told_of_once_at_its_end() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    // The last two are still there when it stops; they must be, for a while, before.
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[timeouts]\nidle_stream = \"2s\"\n\
         drain = \"100ms\"\n{CONTINUE}{CHAT}\
         [[routes]]\nname = \"short\"\npath = \"/short\"\nlock_timeout = \"1500ms\"\n\
         session_id = [\"{{header:x-test-session}}\"]\n",
        backend.url()
    );
    std::fs::write(&path, text).expect("a file in it");
    let process = Process::start(&path);
    let addr = process.addr();
    let left = async |request: &Request, session: &str, script: &str| {
        let mut client = Client::connect(addr).await;
        client.send(request).await;
        backend.started(session, 1).await;
        if script != "gate-head" {
            client.read_until(&event(0)).await;
        }
        leave(client).await;
    };
    let gone_on = async |session: &str, script: &str| {
        left(&Request::turn(session, script), session, script).await;
    };
    // The client of this one stays, and its backend is silent: nothing goes on.
    let mut silent = begin_turn(addr, "silent", "hang-middle").await;
    gone_on("whole", "gate").await;
    backend.open_gate("whole");
    backend.ended("whole", 1).await;
    gone_on("unanswered", "gate-head").await;
    backend.open_gate("unanswered");
    backend.ended("unanswered", 1).await;
    let short = Request::post("/short")
        .header("x-test-session", "short")
        .header("x-test-script", "gate");
    left(&short, "short", "gate").await;
    backend.gone("short").await;
    gone_on("hanging", "hang-middle").await;
    backend.gone("hanging").await;
    assert!(!silent.answer().await.whole, "its time was over");
    gone_on("stays", "gate").await;
    process.signal("TERM");
    backend.gone("stays").await;
    let (_, events) = process.end();

    let told = |session: &str| {
        let key = key(session).replace(":u1:short", ":unknown:short");
        let of_it = |event: &&Value| event["target"] == "seriatim::access" && event["key"] == *key;
        let told: Vec<_> = events.iter().filter(of_it).collect();
        assert_eq!(told.len(), 1, "one event for each request: {events:#?}");
        told[0].clone()
    };
    for (session, continued) in [
        ("whole", "complete"),
        ("unanswered", "complete"),
        ("short", "lock_lost"),
        ("hanging", "timed_out"),
        ("stays", "drain_aborted"),
    ] {
        let event = told(session);
        assert_eq!(event["outcome"], "client_gone", "its client left: {event}");
        assert_eq!(event["continued"], continued, "what became of it: {event}");
        assert!(event["hold_us"].is_u64(), "the whole hold: {event}");
    }
    let bytes = |session: &str| told(session)["bytes"].as_u64().expect("a number");
    let first = event(0).len() as u64;
    assert_eq!(bytes("whole"), first, "those that the client was handed");
    assert_eq!(bytes("unanswered"), 0, "none, before the head");
    let micros = told("hanging")["hold_us"].as_u64().expect("a number");
    let held = Duration::from_micros(micros);
    assert!(held >= Duration::from_secs(2), "the whole hold: {held:?}");
    let error = &told("short")["error"];
    assert_eq!(*error, "its lease ran out", "how the lock was lost");
    let silent = told("silent");
    assert_eq!(silent["outcome"], "idle_timeout", "no byte moved: {silent}");
    assert!(silent["continued"].is_null(), "nothing went on: {silent}");
}
