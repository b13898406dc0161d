//! The ways in which a turn ends. Each releases the lock, and does so before the client can see the
//! end.

use std::time::Duration;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::Mode;
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for_async};

/// Short timeouts for tests of hanging backends. Other turns stay far below them.
const SHORT_TIMEOUTS: &str = "[timeouts]\nresponse_head = \"700ms\"\nidle_stream = \"700ms\"\n";

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config).on_redis().await
}

impl Bench<Redis> {
    /// Waits until the lock is gone, though nobody asks for it, and asserts that the next turn is served.
    /// That the lock is gone before the client sees the end of a turn is asserted with two replicas, in
    /// `road`.
    async fn assert_free(&self, session: &str, after: &str) {
        let is_released = async || self.redis.get(&key(session)).await.is_none();
        wait_for_async(is_released, &format!("the lock is released after {after}")).await;
        let next = turn(self.app.addr(), session, "plain:next").await;
        assert_eq!(next.status, 200, "the session is free after {after}");
        assert_eq!(
            self.backend.max_overlap(session),
            1,
            "turns never overlap: {after}"
        );
        assert_eq!(
            self.redis.keys().await,
            [""; 0],
            "no key is left after {after}"
        );
    }
}

#[tokio::test]
async fn a_complete_response_releases_before_the_client_sees_its_end() {
    let bench = start(CHAT).await;
    let scripts = [
        "plain:hello",
        "plain:",
        "chunked:3:1",
        "length:3:1",
        "empty",
        "nocontent",
        "until-close",
        "trailers",
        "status:500:oops",
        "status:304:",
        "big:1000000",
    ];
    for (number, script) in scripts.into_iter().enumerate() {
        let session = format!("s{number}");
        let answer = turn(bench.app.addr(), &session, script).await;
        assert!(
            answer.whole,
            "the response of {script} is complete: {answer:?}"
        );
        bench.assert_free(&session, script).await;
    }
}

#[tokio::test]
async fn a_response_that_has_arrived_as_a_whole_leaves_in_one_piece() {
    let bench = Setup::new(CHAT).on_faulty_network().await;
    let answer = turn(bench.app.addr(), "s1", "plain:first").await;
    assert_eq!(answer.status, 200, "there are connections now");
    let late = Mode::Delay(Duration::from_millis(100));
    bench.network.set(late).await;
    let mut client = Client::connect(bench.app.addr()).await;
    client.send(&Request::turn("s1", "plain:hello")).await;
    let first = client.raw(1).await;
    let rest = client.arrived();
    let rest = client.raw(rest).await;
    let text = String::from_utf8_lossy(&rest);
    assert_eq!(first, b"H", "it begins with its head");
    assert!(
        text.ends_with("\r\n\r\nhello"),
        "the body comes with the head, behind the release: {text:?}"
    );
    bench.wait_until_free("s1", "a whole response").await;
}

#[tokio::test]
async fn trailers_are_forwarded_after_the_release() {
    let bench = start(CHAT).await;
    let mut client = Client::connect(bench.app.addr()).await;
    let request = Request::turn("s1", "trailers")
        .header("te", "trailers")
        .header("x-test-answer", "trailer: x-checksum");
    for number in 0..50 {
        let answer = client.call(&request).await;
        assert_eq!(
            answer.status, 200,
            "turn {number}: the lock is released before the client sees the trailers"
        );
        let trailers = [("x-checksum".to_owned(), "abc".to_owned())];
        assert_eq!(answer.trailers, trailers, "the trailers are forwarded");
    }
    assert_eq!(
        bench.backend.connections(),
        1,
        "the connection to the backend is reused"
    );
}

#[tokio::test]
async fn an_aborted_response_to_http_1_0_resets_the_connection() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CHAT}")).await;
    let body = r#"{"session_id":"s1","user_id":"u1"}"#;
    for (script, is_whole) in [
        ("chunked:3:1", true),
        ("break-chunked", false),
        ("hang-middle", false),
    ] {
        let mut client = Client::connect(bench.app.addr()).await;
        let length = body.len();
        let head = format!(
            "POST /chat HTTP/1.0\r\nx-test-script: {script}\r\ncontent-length: {length}\r\n\r\n"
        );
        client.send_raw(format!("{head}{body}").as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(
            answer.whole, is_whole,
            "a close would look like a complete response: {script}, {answer:?}"
        );
        bench.wait_until_free("s1", script).await;
    }
}

#[tokio::test]
async fn a_response_without_a_body_releases_before_the_client_sees_it() {
    let route = "[[routes]]\nname = \"any\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let bench = start(route).await;
    let head = Request::new("HEAD", "/x").header("x-test-session", "s1");
    let mut client = Client::connect(bench.app.addr()).await;
    for _ in 0..20 {
        let answer = client.call(&head).await;
        assert_eq!(answer.status, 200, "a response to HEAD ends with its head");
    }
    assert_eq!(bench.redis.keys().await, [""; 0], "the lock is released");
}

#[tokio::test]
async fn a_backend_that_closes_before_its_response_is_a_502() {
    let bench = start(CHAT).await;
    for (script, expected) in [
        ("close", "upstream_unreachable"),
        ("reset", "upstream_unreachable"),
        ("garbage", "upstream_malformed"),
    ] {
        let answer = turn(bench.app.addr(), script, script).await;
        assert_eq!(answer.status, 502, "the backend sent no response: {script}");
        let reason = answer.header("x-seriatim-error");
        assert_eq!(
            reason,
            Some(expected),
            "the error response has the reason: {script}"
        );
        assert_eq!(
            answer.json()["status_code"],
            502,
            "the JSON body has the status"
        );
        bench.assert_free(script, script).await;
        assert_eq!(
            bench.backend.turns(script).len(),
            2,
            "the turn was sent once, then the next one"
        );
    }
}

#[tokio::test]
async fn a_backend_that_closes_in_the_middle_aborts_the_response() {
    let bench = start(CHAT).await;
    for script in ["break-length", "break-chunked"] {
        let answer = turn(bench.app.addr(), script, script).await;
        assert_eq!(answer.status, 200, "the response had begun: {script}");
        assert!(
            !answer.whole,
            "an aborted response never looks complete: {script}"
        );
        bench.assert_free(script, script).await;
    }
}

#[tokio::test]
async fn a_backend_that_refuses_connections_is_a_502() {
    let redis = Redis::start().await;
    let nobody = Reserved::new();
    let upstream = format!("http://{}", nobody.addr());
    let app = App::start(&upstream, &redis.url(), "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(answer.status, 502, "the backend is not reachable");
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("upstream_unreachable"),
        "the error response has the reason"
    );
    assert!(
        !answer.text().contains("127.0.0.1"),
        "the error response does not show the backend's address"
    );
    // The release may come a moment after an error response; only a backend's response waits for it.
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "the lock is released").await;
}

#[tokio::test]
async fn a_backend_that_hangs_before_its_response_is_a_504() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "hang").await;
    assert_eq!(
        answer.status, 504,
        "no response head within timeouts.response_head"
    );
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("upstream_timeout"),
        "the error response has the reason"
    );
    bench.backend.gone("s1").await;
    bench.wait_until_free("s1", "a hanging backend").await;
}

#[tokio::test]
async fn a_response_that_stalls_is_aborted() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "hang-middle").await;
    assert!(
        !answer.whole,
        "a stall of timeouts.idle_stream aborts the response"
    );
    bench.backend.gone("s1").await;
    bench.wait_until_free("s1", "a silent backend").await;
}

#[tokio::test]
async fn a_turn_whose_client_reads_nothing_is_aborted() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CHAT}")).await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:100000000")).await;
    client.piece().await;
    // The client stays connected but reads nothing more, so no byte moves.
    bench.backend.gone("s1").await;
    bench
        .wait_until_free("s1", "a client that reads nothing")
        .await;
    client.close();
}

#[tokio::test]
async fn a_slow_stream_does_not_time_out() {
    let bench = start(&format!("{SHORT_TIMEOUTS}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "chunked:12:100").await;
    assert!(answer.whole, "each event restarts the timeout: {answer:?}");
}

/// How a client disconnects.
#[derive(Clone, Copy, Debug)]
enum Disconnect {
    Closes,
    Resets,
    /// Sends the next request without waiting, and then closes.
    ClosesWithBytesUnread,
}

#[tokio::test]
async fn a_disconnect_cancels_the_backend_request_and_frees_the_session() {
    let bench = start(CHAT).await;
    for disconnect in [
        Disconnect::Closes,
        Disconnect::Resets,
        Disconnect::ClosesWithBytesUnread,
    ] {
        // Before the response, in the middle of it, and while the backend is silent.
        for script in [
            "hang",
            "gate-head",
            "gate",
            "chunked:100000:1",
            "hang-middle",
        ] {
            let (session, after) = (
                format!("{disconnect:?}-{script}"),
                format!("{disconnect:?}, {script}"),
            );
            let mut client = begin_turn(bench.app.addr(), &session, script).await;
            bench.backend.started(&session, 1).await;
            if !matches!(script, "hang" | "gate-head") {
                client.read_until(&event(0)).await;
            }
            match disconnect {
                Disconnect::Closes => client.close(),
                Disconnect::Resets => client.reset(),
                Disconnect::ClosesWithBytesUnread => {
                    client.send(&Request::turn("pipelined", "plain:x")).await;
                    // The proxy reads these bytes before it can see the close.
                    tokio::task::yield_now().await;
                    client.close();
                }
            }
            bench.backend.gone(&session).await;
            bench.wait_until_free(&session, &after).await;
        }
    }
    assert_eq!(
        bench.backend.turns("pipelined").len(),
        0,
        "a pipelined request is not started"
    );
}

#[tokio::test]
async fn pipelined_requests_are_served_one_after_the_other() {
    let bench = start(CHAT).await;
    let mut client = Client::connect(bench.app.addr()).await;
    for script in ["chunked:3:5", "plain:second", "plain:third"] {
        client.send(&Request::turn("s1", script)).await;
    }
    for expected in ["{\"n\":2}", "second", "third"] {
        let answer = client.answer().await;
        assert_eq!(
            answer.status, 200,
            "each request finds its session free: {answer:?}"
        );
        assert!(
            answer.text().contains(expected),
            "the responses come in order"
        );
    }
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "turns run one after another"
    );
}

#[tokio::test]
async fn a_disconnect_in_the_middle_of_the_body_leaves_no_key() {
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let bench = start(&format!("{route}{CHAT}")).await;
    // A body that is read to find the session, before the lock.
    let mut client = Client::connect(bench.app.addr()).await;
    client
        .send_head(&Request::post("/chat").header("content-length", "100"))
        .await;
    client.send_raw(b"{\"session_id\"").await;
    client.close();
    // A body that is streamed under the lock, because it is larger than `read_before_lock`.
    let mut client = Client::connect(bench.app.addr()).await;
    let request = Request::post("/up").header("x-test-session", "s1");
    client
        .send_head(&request.header("content-length", "100000"))
        .await;
    bench.backend.received(1).await;
    client.close();
    let quiet = async || bench.redis.keys().await.is_empty();
    wait_for_async(quiet, "no key is left").await;
    assert_eq!(
        bench.backend.turns("s1").len(),
        0,
        "the backend never got a whole request"
    );
}

#[tokio::test]
async fn a_stop_lets_turns_end_within_the_timeout_and_aborts_the_rest() {
    let config = format!("[timeouts]\ndrain = \"1500ms\"\n{CHAT}");
    let Bench {
        backend,
        redis,
        app,
        ..
    } = start(&config).await;
    let mut ends = begin_turn(app.addr(), "ends", "gate").await;
    let mut stays = begin_turn(app.addr(), "stays", "gate").await;
    let mut unanswered = begin_turn(app.addr(), "unanswered", "hang").await;
    backend.started("unanswered", 1).await;
    let mut idle = Client::connect(app.addr()).await;
    assert_eq!(
        idle.turn("idle", "plain:x").await.status,
        200,
        "an idle keep-alive connection"
    );
    for client in [&mut ends, &mut stays] {
        client.read_until(&event(0)).await;
    }
    let addr = app.addr();
    let stopping = tokio::spawn(app.stop());
    // The proxy closes an idle connection at once, and accepts no new one.
    idle.read_to_close().await;
    let refused = async || Client::try_connect(addr).await.is_err();
    wait_for_async(refused, "the listener is closed").await;
    backend.open_gate("ends");
    assert!(
        ends.answer().await.whole,
        "a turn that ends within the timeout is complete"
    );
    let stays = stays.answer().await;
    assert!(!stays.whole, "a turn that does not is aborted");
    let unanswered = unanswered.answer().await;
    let reason = unanswered.header("x-seriatim-error");
    assert_eq!(
        reason,
        Some("draining"),
        "a turn without a response gets an error response"
    );
    let stopped = stopping.await.expect("no panic");
    assert!(!stopped.in_time, "the aborted turn is reported");
    assert!(stopped.all_released, "every lock is released");
    assert_eq!(redis.keys().await, [""; 0], "no key is left");
    backend.gone("stays").await;
}

#[tokio::test]
async fn a_stop_without_open_turns_ends_at_once() {
    let config = format!("[timeouts]\ndrain = \"1h\"\n{CHAT}");
    let Bench {
        backend: _backend,
        redis,
        app,
        ..
    } = start(&config).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        200,
        "a complete turn"
    );
    let stopped = tokio::time::timeout(Duration::from_secs(20), app.stop()).await;
    let stopped = stopped.expect("the stop does not wait for the timeout");
    assert!(
        stopped.in_time && stopped.all_released,
        "no turn was aborted"
    );
    assert_eq!(redis.get(&key("s1")).await, None, "no lock is left");
}
