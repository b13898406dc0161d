//! The ways a turn ends. Each of them releases, before its end can be seen where there is one.

use std::time::Duration;

use crate::support::app::{App, CHAT, key};
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for_async};

/// Short, so that tests of hanging backends end; a turn that doesn't hang is far from it.
const IMPATIENT: &str = "[timeouts]\nresponse_head = \"700ms\"\nidle_stream = \"700ms\"\n";

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config).on_redis().await
}

impl Bench<Redis> {
    /// The session is free as soon as the end of the turn before was seen.
    async fn assert_free(&self, session: &str, after: &str) {
        let next = turn(self.app.addr(), session, "plain:next").await;
        assert_eq!(
            next.status, 200,
            "the session is free at once after {after}"
        );
        assert_eq!(
            self.backend.max_overlap(session),
            1,
            "and turns never overlapped: {after}"
        );
        assert_eq!(
            self.redis.keys().await,
            [""; 0],
            "and no key is left after {after}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_over_releases_before_its_end_is_seen() {
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
        assert!(answer.whole, "{script} is an answer: {answer:?}");
        bench.assert_free(&session, script).await;
    }
}

#[tokio::test]
async fn trailers_pass_and_are_the_end() {
    let bench = start(CHAT).await;
    let mut client = Client::connect(bench.app.addr()).await;
    let request = Request::turn("s1", "trailers")
        .header("te", "trailers")
        .header("x-test-answer", "trailer: x-checksum");
    for number in 0..50 {
        let answer = client.call(&request).await;
        assert_eq!(
            answer.status, 200,
            "turn {number}: released before its trailers are seen"
        );
        let trailers = [("x-checksum".to_owned(), "abc".to_owned())];
        assert_eq!(answer.trailers, trailers, "trailers included");
    }
    assert_eq!(
        bench.backend.connections(),
        1,
        "and the backend's connection is kept"
    );
}

#[tokio::test]
async fn an_answer_to_http_1_0_that_is_aborted_is_reset() {
    let bench = start(&format!("{IMPATIENT}{CHAT}")).await;
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
            "a close would be an end to it: {script}, {answer:?}"
        );
        bench.becomes_free("s1", script).await;
    }
}

#[tokio::test]
async fn an_answer_without_a_body_releases_before_its_head_is_seen() {
    let route = "[[routes]]\nname = \"any\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let bench = start(route).await;
    let head = Request::new("HEAD", "/x").header("x-test-session", "s1");
    let mut client = Client::connect(bench.app.addr()).await;
    for _ in 0..20 {
        let answer = client.call(&head).await;
        assert_eq!(
            answer.status, 200,
            "the answer to HEAD is over with its head"
        );
    }
    assert_eq!(bench.redis.keys().await, [""; 0], "and so is the lock");
}

#[tokio::test]
async fn a_backend_that_breaks_off_before_its_answer_gets_a_502() {
    let bench = start(CHAT).await;
    for script in ["close", "reset", "garbage"] {
        let answer = turn(bench.app.addr(), script, script).await;
        assert_eq!(answer.status, 502, "the backend gave no answer: {script}");
        let reason = answer.header("x-seriatim-error");
        assert_eq!(
            reason,
            Some("upstream_unreachable"),
            "and the reason is said: {script}"
        );
        assert_eq!(
            answer.json()["status_code"],
            502,
            "in the body of the contract too"
        );
        bench.assert_free(script, script).await;
        assert_eq!(
            bench.backend.turns(script).len(),
            2,
            "it was sent once, and then the next"
        );
    }
}

#[tokio::test]
async fn a_backend_that_breaks_off_in_the_middle_aborts_the_answer() {
    let bench = start(CHAT).await;
    for script in ["break-length", "break-chunked"] {
        let answer = turn(bench.app.addr(), script, script).await;
        assert_eq!(answer.status, 200, "its answer had begun: {script}");
        assert!(
            !answer.whole,
            "a broken answer is never ended as if it were whole: {script}"
        );
        bench.assert_free(script, script).await;
    }
}

#[tokio::test]
async fn a_backend_that_takes_no_connection_gets_a_502() {
    let redis = Redis::start().await;
    let nobody = Reserved::new();
    let upstream = format!("http://{}", nobody.addr());
    let app = App::start(&upstream, &redis.url(), "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(answer.status, 502, "there is no backend");
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("upstream_unreachable"),
        "and it is said"
    );
    assert!(
        !answer.text().contains("127.0.0.1"),
        "but not where it should have been"
    );
    // An answer of the proxy's own isn't the backend's: the release may come a moment later.
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "no lock outlives its turn").await;
}

#[tokio::test]
async fn a_backend_that_hangs_before_its_answer_gets_a_504() {
    let bench = start(&format!("{IMPATIENT}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "hang").await;
    assert_eq!(answer.status, 504, "no head within timeouts.response_head");
    assert_eq!(
        answer.header("x-seriatim-error"),
        Some("upstream_timeout"),
        "and it is said"
    );
    bench.backend.gone("s1").await;
    bench.becomes_free("s1", "a hanging backend").await;
}

#[tokio::test]
async fn an_answer_that_falls_silent_is_aborted() {
    let bench = start(&format!("{IMPATIENT}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "hang-middle").await;
    assert!(
        !answer.whole,
        "silence for timeouts.idle_stream is not an end"
    );
    bench.backend.gone("s1").await;
    bench.becomes_free("s1", "a silent backend").await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up_too() {
    let bench = start(&format!("{IMPATIENT}{CHAT}")).await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:100000000")).await;
    client.piece().await;
    // It stays connected, and reads no further: nobody moves a byte.
    bench.backend.gone("s1").await;
    bench
        .becomes_free("s1", "a client that reads nothing")
        .await;
    client.close();
}

#[tokio::test]
async fn a_slow_stream_is_not_a_silent_one() {
    let bench = start(&format!("{IMPATIENT}{CHAT}")).await;
    let answer = turn(bench.app.addr(), "s1", "chunked:12:100").await;
    assert!(answer.whole, "each event begins the time anew: {answer:?}");
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Closes,
    Resets,
    /// Sends the next request without waiting, and then closes.
    ClosesWithBytesUnread,
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_backend_and_frees_the_session() {
    let bench = start(CHAT).await;
    for leaving in [
        Leaving::Closes,
        Leaving::Resets,
        Leaving::ClosesWithBytesUnread,
    ] {
        // Before the answer, in the middle of it, and while the backend is silent.
        for script in [
            "hang",
            "gate-head",
            "gate",
            "chunked:100000:1",
            "hang-middle",
        ] {
            let (session, after) = (
                format!("{leaving:?}-{script}"),
                format!("{leaving:?}, {script}"),
            );
            let mut client = begin_turn(bench.app.addr(), &session, script).await;
            bench.backend.started(&session, 1).await;
            if !matches!(script, "hang" | "gate-head") {
                client.read_until(&event(0)).await;
            }
            match leaving {
                Leaving::Closes => client.close(),
                Leaving::Resets => client.reset(),
                Leaving::ClosesWithBytesUnread => {
                    client.send(&Request::turn("pipelined", "plain:x")).await;
                    // The proxy has the bytes before it can see the end.
                    tokio::task::yield_now().await;
                    client.close();
                }
            }
            bench.backend.gone(&session).await;
            bench.becomes_free(&session, &after).await;
        }
    }
    assert_eq!(
        bench.backend.turns("pipelined").len(),
        0,
        "what was pipelined is never begun"
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
            "each finds its session free: {answer:?}"
        );
        assert!(
            answer.text().contains(expected),
            "and the answers come in order"
        );
    }
    assert_eq!(bench.backend.max_overlap("s1"), 1, "one after another");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind() {
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let bench = start(&format!("{route}{CHAT}")).await;
    // Of a body that is read for its session, before there is a lock.
    let mut client = Client::connect(bench.app.addr()).await;
    client
        .send_head(&Request::post("/chat").header("content-length", "100"))
        .await;
    client.send_raw(b"{\"session_id\"").await;
    client.close();
    // Of a body that is streamed, under the lock: larger than what is read before it.
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
        "the backend never had the whole request"
    );
}

#[tokio::test]
async fn stopping_lets_turns_end_in_time_and_aborts_the_rest() {
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
        "a connection that is kept"
    );
    for client in [&mut ends, &mut stays] {
        client.read_until(&event(0)).await;
    }
    let addr = app.addr();
    let stopping = tokio::spawn(app.stop());
    // An idle connection is closed at once, and nothing new is taken.
    idle.read_to_close().await;
    let refused = async || Client::try_connect(addr).await.is_err();
    wait_for_async(refused, "the socket is closed").await;
    backend.open_gate("ends");
    assert!(
        ends.answer().await.whole,
        "a turn that ends in time ends whole"
    );
    let stays = stays.answer().await;
    assert!(
        !stays.whole,
        "one that doesn't is aborted, and not ended as if it were whole"
    );
    let unanswered = unanswered.answer().await;
    let reason = unanswered.header("x-seriatim-error");
    assert_eq!(
        reason,
        Some("draining"),
        "one that has no answer yet gets one"
    );
    let stopped = stopping.await.expect("no panic");
    assert!(!stopped.in_time, "the turn that stayed is reported");
    assert!(stopped.all_released, "every lock was given back");
    assert_eq!(redis.keys().await, [""; 0], "and no key is left");
    backend.gone("stays").await;
}

#[tokio::test]
async fn stopping_with_nothing_open_is_over_at_once() {
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
        "a turn that is over"
    );
    let stopped = tokio::time::timeout(Duration::from_secs(20), app.stop()).await;
    let stopped = stopped.expect("it doesn't wait for its limit");
    assert!(
        stopped.in_time && stopped.all_released,
        "everything ended by itself"
    );
    assert_eq!(redis.get(&key("s1")).await, None, "and no lock is left");
}
