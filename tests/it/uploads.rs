//! Slow request bodies: when they keep a session busy, and for how long.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::app::App;
use crate::support::bench::{Bench, assert_error_response, buffered};
use crate::support::client::{Answer, Client, Request};
use crate::support::h2_client::H2;
use crate::support::{wait_for_async, within};

/// Routes with the session in the head, in the body, or without one.
const ROUTES: &str = r#"
[[routes]]
name = "head"
path = "/head"
session_id = ["{header:x-session}"]
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
blocking = true
[[routes]]
name = "watched"
path = "/watched"
session_id = ["{header:x-session}"]
enforce = false
[[routes]]
name = "body"
path = "/body"
session_id = ["{body:/s}"]
[[routes]]
name = "free"
path = "/free"
lock = false
"#;

/// A body that contains the session.
const BODY: &str = r#"{"s":1}"#;

fn announced(path: &str, length: usize) -> Request {
    let request = Request::post(path).header("content-length", &length.to_string());
    request.header("x-session", "s1")
}

/// A request with its whole body.
fn whole(path: &str, body: &str) -> Request {
    Request::post(path).header("x-session", "s1").body(body)
}

fn chunked(path: &str) -> Request {
    let request = Request::post(path).header("transfer-encoding", "chunked");
    request.header("x-session", "s1")
}

/// Sends `piece` every 10 ms until the proxy answers.
async fn drip(bench: &Bench, request: &Request, piece: &[u8]) -> Answer {
    let mut client = bench.client().await;
    client.send_head(request).await;
    let dripping = async {
        while client.arrived() == 0 {
            client.send_raw(piece).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the proxy to refuse the body", dripping).await;
    client.answer().await
}

/// Sends a request and a part of its body, and waits until the proxy has read that ahead.
async fn stalled(bench: &Bench, request: &Request, part: &str) -> Client {
    let mut client = bench.client().await;
    client.send_head(request).await;
    client.send_raw(part.as_bytes()).await;
    wait_for_async(
        async || buffered(bench).await != "0",
        "the part is read ahead",
    )
    .await;
    client
}

/// Asserts that other turns of the session are served.
async fn owner_is_served(bench: &Bench, case: &str) {
    for _ in 0..3 {
        let answer = bench.call(&whole("/head", BODY)).await;
        assert_eq!(
            answer.status, 200,
            "{case}: the session is free: {answer:?}"
        );
    }
}

/// Asserts that a body for which no other turn waits may be slow.
async fn may_drip(bench: &Bench) {
    let drip = async |path| {
        let mut client = bench.client().await;
        client.send_head(&announced(path, 100)).await;
        for _ in 0..100 {
            client.send_raw(b"x").await;
            // The whole body takes longer than any limit of the tests.
            tokio::time::sleep(Duration::from_millis(35)).await;
        }
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "no turn waits at {path}: {answer:?}");
    };
    tokio::join!(drip("/free"), drip("/watched"));
}

#[tokio::test]
async fn a_small_body_is_read_before_the_lock_is_acquired() {
    let bench = Bench::start(ROUTES).await;
    for path in ["/head", "/line"] {
        let before = bench.backend.requests().len();
        let mut stranger = stalled(&bench, &announced(path, BODY.len()), &BODY[..1]).await;
        owner_is_served(&bench, path).await;
        assert_eq!(
            bench.backend.requests().len(),
            before + 3,
            "{path}: the backend gets no request before the body is complete"
        );
        stranger.send_raw(&BODY.as_bytes()[1..]).await;
        let answer = stranger.answer().await;
        assert_eq!(
            answer.status, 200,
            "{path}: the turn is served when its body is complete: {answer:?}"
        );
        let got = bench
            .backend
            .requests()
            .pop()
            .expect("the backend received the request");
        assert_eq!(
            got.body,
            BODY.as_bytes(),
            "{path}: the body arrives complete"
        );
        assert_eq!(
            got.header("content-length"),
            Some("7"),
            "{path}: the length is forwarded"
        );
        assert_eq!(
            got.header("transfer-encoding"),
            None,
            "{path}: no transfer coding is added"
        );
    }
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is released",
    )
    .await;
}

#[tokio::test]
async fn a_body_that_ends_early_before_the_lock_reaches_no_backend() {
    let bench = Bench::start(ROUTES).await;
    for path in ["/head", "/line"] {
        let before = bench.backend.requests().len();
        let stranger = stalled(&bench, &announced(path, BODY.len()), &BODY[..1]).await;
        stranger.close();
        wait_for_async(
            async || buffered(&bench).await == "0",
            "the buffer is released",
        )
        .await;
        owner_is_served(&bench, path).await;
        assert_eq!(
            bench.backend.requests().len(),
            before + 3,
            "{path}: only complete bodies reach the backend"
        );
    }
}

#[tokio::test]
async fn a_small_body_is_read_before_the_lock_over_http_2_too() {
    let bench = Bench::start(ROUTES).await;
    let mut client = H2::connect(bench.app.addr()).await;
    let (pieces, body) = unbounded_channel();
    let stream = unfold(body, async |mut body: UnboundedReceiver<_>| {
        Some((body.recv().await?, body))
    });
    let request = http::Request::post("http://agent.example/head")
        .header("content-length", "7")
        .header("x-session", "s1");
    let body = StreamBody::new(stream).boxed();
    let stranger = client.begin(request.body(body).expect("a request"));
    let stranger = tokio::spawn(stranger);
    let piece = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
    pieces.send(piece("{")).expect("the body is read");
    wait_for_async(
        async || buffered(&bench).await != "0",
        "the part is read ahead",
    )
    .await;
    owner_is_served(&bench, "HTTP/2").await;
    pieces.send(piece("\"s\":1}")).expect("the body is read");
    drop(pieces);
    let answer = stranger.await.expect("no panic").expect("an answer");
    assert_eq!(
        answer.status(),
        200,
        "the turn is served when its body is complete"
    );
    let got = bench
        .backend
        .requests()
        .pop()
        .expect("the backend received the request");
    assert_eq!(got.body, BODY.as_bytes(), "the body arrives complete");
}

#[tokio::test]
async fn large_unannounced_and_unenforced_bodies_are_streamed() {
    let large = announced("/head", 101);
    let small = announced("/head", BODY.len());
    for (case, limit, request) in [
        ("more than is read before", "100", large),
        ("no length", "\"64KiB\"", chunked("/head")),
        ("nothing is read before", "0", small),
    ] {
        let config = format!("{ROUTES}[limits]\nread_before_lock = {limit}\n");
        let bench = Bench::start(&config).await;
        let mut client = bench.client().await;
        client.send_head(&request).await;
        bench.backend.received(1).await;
        let answer = bench.call(&whole("/head", BODY)).await;
        assert_error_response(case, &answer, 429, "session_busy");
    }
    let bench = Bench::start(ROUTES).await;
    let mut client = bench.client().await;
    client.send_head(&announced("/watched", BODY.len())).await;
    // Without enforcement nothing is delayed.
    bench.backend.received(1).await;
}

#[tokio::test]
async fn a_small_body_is_streamed_if_the_buffer_is_full() {
    let limits = "[limits]\nmax_body = 100\nmax_buffered = 100\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let request = Request::post("/body").header("content-length", "100");
    let _reader = stalled(&bench, &request, &" ".repeat(99)).await;
    let body = "x".repeat(1_000);
    let answer = bench.call(&whole("/head", &body)).await;
    assert_eq!(
        answer.status, 200,
        "the body is streamed under the lock: {answer:?}"
    );
}

#[tokio::test]
async fn min_body_rate_ends_a_slow_body_that_blocks_other_turns() {
    let limits = "[limits]\nmin_body_rate = \"1MiB\"\nread_before_lock = 10\n\
                  [timeouts]\nrequest_body = \"3s\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let read = announced("/body", 1_000_000);
    for (case, request, piece) in [
        ("read for its session", read, &b" "[..]),
        ("under a lock", announced("/head", 1_000_000), b"x"),
        (
            "under a lock, without a length",
            chunked("/head"),
            b"1\r\nx\r\n",
        ),
    ] {
        let answer = drip(&bench, &request, piece).await;
        assert_error_response(case, &answer, 408, "request_timeout");
        let detail = answer.json()["detail"].to_string();
        assert!(
            detail.contains("1048576 bytes per second") && detail.contains("limits.min_body_rate"),
            "{case}: the error response names the limit: {detail}"
        );
        owner_is_served(&bench, case).await;
    }
    may_drip(&bench).await;
}

#[tokio::test]
async fn request_body_total_ends_a_long_body_that_blocks_other_turns() {
    let limits = "[limits]\nmin_body_rate = 0\nread_before_lock = 10\n\
                  [timeouts]\nrequest_body_total = \"3s\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    for (case, path) in [("read for its session", "/body"), ("under a lock", "/head")] {
        let answer = drip(&bench, &announced(path, 1_000_000), b"      ").await;
        assert_error_response(case, &answer, 408, "request_timeout");
        let detail = answer.json()["detail"].to_string();
        assert!(
            detail.contains("3s (timeouts.request_body_total)"),
            "{case}: the error response names the limit: {detail}"
        );
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "{case}: the connection is closed"
        );
        owner_is_served(&bench, case).await;
    }
    may_drip(&bench).await;
}

#[tokio::test]
async fn a_slow_backend_does_not_count_against_the_upload_limits() {
    const BODY: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("a head"));
        }
        // Longer than both limits of the request body.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut body = vec![0; BODY];
        socket.read_exact(&mut body).await.expect("a body");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        socket.write_all(answer).await.expect("a peer");
        socket
    });
    let limits = "[timeouts]\nrequest_body = \"2s\"\nrequest_body_total = \"2s\"\n";
    let app = App::start(&url, "memory:", "", &format!("{ROUTES}{limits}"));
    let request = Request::post("/head").header("x-session", "s1");
    let answer = Client::connect(app.addr())
        .await
        .call(&request.body(vec![b'x'; BODY]))
        .await;
    assert_eq!(
        answer.status, 200,
        "the client sent its body as fast as it could: {answer:?}"
    );
    backend.await.expect("no panic");
}
