//! Which bodies the proxy buffers and which it streams, how much it buffers, and for how long.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::app::App;
use crate::support::backend::event;
use crate::support::bench::{Bench, assert_error_response, buffered};
use crate::support::client::{Client, Request};
use crate::support::wait_for_async;

/// Routes that find the session in the head, in the body, or in either.
const ROUTES: &str = r#"
[[routes]]
name = "head"
path = "/head"
session_id = ["{header:x-session}", "{query:s}"]
[[routes]]
name = "chain"
path = "/chain"
session_id = ["{header:x-session}", "{body:/s}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:s}"]
[[routes]]
name = "when"
path = "/when"
methods = ["PUT"]
when = { "{body:/method}" = "send" }
session_id = ["{header:x-session}"]
[[routes]]
name = "when by head"
path = "/when"
when = { "{header:x-kind}" = "send" }
session_id = ["{header:x-session}"]
[[routes]]
name = "queue"
path = "/queue"
session_id = ["{body:/s}"]
blocking = true
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
blocking = true
"#;

/// A request that announces a body and does not send it.
fn announced(method: &str, path: &str) -> Request {
    Request::new(method, path).header("content-length", "7")
}

#[tokio::test]
async fn the_proxy_buffers_a_body_only_when_the_route_reads_it() {
    let limits = "[limits]\nread_before_lock = 0\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    for (case, request) in [
        (
            "the head alone",
            announced("POST", "/head").header("x-session", "s"),
        ),
        (
            "the head alone, without a session",
            announced("POST", "/head"),
        ),
        (
            "the first template has a value",
            announced("POST", "/chain").header("x-session", "s"),
        ),
        (
            "a condition of a route that does not match",
            announced("POST", "/when").header("x-session", "s"),
        ),
        (
            "a condition on the head",
            announced("POST", "/when")
                .header("x-kind", "send")
                .header("x-session", "s"),
        ),
        ("no route at all", announced("POST", "/elsewhere")),
    ] {
        let before = bench.backend.requests().len();
        let mut client = bench.client().await;
        let request = request
            .header("x-test-script", "gate")
            .header("x-test-session", case);
        client.send_head(&request).await;
        bench.backend.received(before + 1).await;
        client.send_raw(b"{\"s\":1}").await;
        client.read_until(&event(0)).await;
        bench.backend.open_gate(case);
        let answer = client.answer().await;
        assert!(
            answer.whole,
            "{case}: the backend gets the head before the body has arrived"
        );
    }
    for (case, request) in [
        ("the second template", announced("POST", "/chain")),
        (
            "a field",
            announced("POST", "/form").header("content-type", "application/x-www-form-urlencoded"),
        ),
        (
            "JSON, which may have the field's name",
            announced("POST", "/form").header("content-type", "application/json"),
        ),
        (
            "a condition",
            announced("PUT", "/when").header("x-session", "s"),
        ),
    ] {
        let before = bench.backend.requests().len();
        let mut client = bench.client().await;
        client.send_head(&request).await;
        client.send_raw(b"{\"s\":").await;
        wait_for_async(
            async || buffered(&bench).await == "5",
            "the part of the body that has arrived is buffered",
        )
        .await;
        assert_eq!(
            bench.backend.requests().len(),
            before,
            "{case}: the body is read before the backend gets the request"
        );
        client.close();
        wait_for_async(
            async || buffered(&bench).await == "0",
            "the buffer is freed when the client disconnects",
        )
        .await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn the_buffered_bodies_of_all_requests_stay_within_max_buffered() {
    let limits = "[limits]\nmax_body = \"40KiB\"\nmax_buffered = \"64KiB\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let body = format!("{{\"s\":\"{}\"}}", "x".repeat(39 << 10));
    let begun = Request::post("/chain").header("content-length", &body.len().to_string());
    let mut first = bench.client().await;
    first.send_head(&begun).await;
    first.send_raw(&body.as_bytes()[..body.len() - 1]).await;
    let all = (body.len() - 1).to_string();
    wait_for_async(
        async || buffered(&bench).await == all,
        "the first body is buffered",
    )
    .await;

    let small = Request::post("/chain").body(r#"{"s":1}"#);
    assert_eq!(
        bench.call(&small).await.status,
        200,
        "a body that fits is served"
    );
    let streamed = Request::post("/head")
        .header("x-session", "s")
        .body(body.clone());
    assert_eq!(
        bench.call(&streamed).await.status,
        200,
        "a streamed body is not buffered"
    );

    let request = Request::post("/chain").body(body);
    assert_eq!(
        bench.call(&request).await.header("x-seriatim-error"),
        Some("bad_session_id"),
        "a complete body takes the room of an incomplete one"
    );
    let answer = first.answer().await;
    assert_error_response("the incomplete body", &answer, 503, "overloaded");
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
}

#[tokio::test]
async fn a_full_buffer_refuses_waiting_turns_to_serve_others() {
    let limits = "[limits]\nmax_body = \"40KiB\"\nmax_buffered = \"64KiB\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let body = |session: &str| format!("{{\"s\":\"{session}\"{}}}", " ".repeat(39 << 10));
    let turn = |session: &str| Request::post("/queue").body(body(session));
    let open = bench.open(&turn("a")).await;
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the body has been sent",
    )
    .await;
    let mut waiting = bench.client().await;
    waiting.send(&turn("a")).await;
    let all = body("a").len().to_string();
    wait_for_async(
        async || buffered(&bench).await == all,
        "a waiting turn keeps its body",
    )
    .await;

    // There is no room until the turn counts as waiting.
    wait_for_async(
        async || bench.call(&turn("b")).await.status == 200,
        "another session is served",
    )
    .await;
    let answer = waiting.answer().await;
    assert_error_response("the waiting turn", &answer, 503, "overloaded");
    assert_eq!(
        answer.header("retry-after"),
        Some("1"),
        "`retry-after` says when to retry"
    );
    bench.end(open).await;
    assert_eq!(
        bench.call(&turn("a")).await.status,
        200,
        "the refused turn has left the queue"
    );
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
}

#[tokio::test]
async fn a_waiting_turn_is_served_when_the_buffer_has_room() {
    let bench = Bench::start(ROUTES).await;
    let turn = Request::post("/queue").body(r#"{"s":"a"}"#);
    let open = bench.open(&turn).await;
    let mut waiting = bench.client().await;
    waiting.send(&turn).await;
    wait_for_async(
        async || buffered(&bench).await == "9",
        "a waiting turn keeps its body",
    )
    .await;
    // After this time the turn counts as waiting.
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.end(open).await;
    assert_eq!(
        waiting.answer().await.status,
        200,
        "the waiting turn is served"
    );
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
    let got = bench
        .backend
        .requests()
        .pop()
        .expect("the backend got the request");
    assert_eq!(got.body, br#"{"s":"a"}"#, "the backend gets the whole body");
}

#[tokio::test]
async fn a_decoded_body_counts_against_max_buffered() {
    let limits = "[limits]\nmax_body = \"40KiB\"\nmax_buffered = \"40KiB\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let body = format!("{{\"s\":1{}}}", " ".repeat(40_945));
    let encoded = zstd::bulk::compress(body.as_bytes(), 3).expect("memory");
    let request = Request::post("/chain")
        .header("content-encoding", "zstd")
        .body(encoded);
    bench
        .refused(
            "encoded and decoded body together",
            &request,
            503,
            "overloaded",
        )
        .await;
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
}

#[tokio::test]
async fn read_ahead_of_waiting_turns_stays_within_the_limit() {
    let limits = "[limits]\nmax_body = \"1MiB\"\nmax_buffered = \"1MiB\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let turn = Request::post("/line").header("x-session", "s");
    let open = bench.open(&turn).await;
    let large = turn.clone().body(vec![b'x'; 4 << 20]);
    let (bytes, mut client) = (large.bytes(bench.app.addr()), bench.client().await);
    let waiting = tokio::spawn(async move {
        client.send_raw(&bytes).await;
        client.answer().await
    });
    wait_for_async(
        async || {
            let bytes = buffered(&bench).await.parse::<usize>();
            bytes.is_ok_and(|bytes| bytes >= 512 << 10)
        },
        "the body of a waiting turn is read ahead",
    )
    .await;
    // Half of the room stays free for bodies that must be read to find their session.
    let other = Request::post("/chain").body(format!("{{\"s\":1{}}}", " ".repeat(400_000)));
    assert_eq!(
        bench.call(&other).await.status,
        200,
        "waiting turns take no more than half of the room"
    );
    bench.end(open).await;
    let answer = waiting.await.expect("no panic");
    assert_eq!(answer.status, 200, "no byte of it is lost: {answer:?}");
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
    let got = bench.backend.requests();
    assert!(
        got.iter().any(|got| got.body.len() == 4 << 20),
        "the backend gets the whole body"
    );
}

#[tokio::test]
async fn a_body_that_stalls_gets_408() {
    let limits = "[limits]\nread_before_lock = 0\nmin_body_rate = 0\n\
                  [timeouts]\nrequest_body = \"200ms\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let buffered_body = announced("POST", "/chain");
    let streamed = announced("POST", "/head").header("x-session", "s");
    for (case, request, reaches) in [
        ("buffered", buffered_body, false),
        ("streamed", streamed.clone(), true),
        (
            "streamed without a session",
            announced("POST", "/head"),
            true,
        ),
        (
            "streamed without a route",
            announced("POST", "/elsewhere"),
            true,
        ),
    ] {
        let before = bench.backend.requests().len();
        let mut client = bench.client().await;
        client.send_head(&request).await;
        client.send_raw(b"{").await;
        let answer = client.answer().await;
        assert_error_response(case, &answer, 408, "request_timeout");
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "{case}: the response announces the close"
        );
        assert!(
            client.read_to_close().await.is_empty(),
            "{case}: the connection is closed"
        );
        let after = bench.backend.requests().len();
        assert_eq!(
            after > before,
            reaches,
            "{case}: a buffered request does not reach the backend"
        );
    }
    let next = Request::post("/head").header("x-session", "s").body("{}");
    assert_eq!(
        bench.call(&next).await.status,
        200,
        "the session's lock is released"
    );

    // A slow body is not a stalled one.
    for request in [announced("POST", "/chain"), streamed] {
        let mut client = bench.client().await;
        client.send_head(&request).await;
        for byte in br#"{"s":1}"# {
            tokio::time::sleep(Duration::from_millis(60)).await;
            client.send_raw(&[*byte]).await;
        }
        assert_eq!(
            client.answer().await.status,
            200,
            "a byte within the timeout is enough"
        );
    }
}

#[tokio::test]
async fn a_client_may_pause_its_body_while_the_backend_responds() {
    // A backend that responds before it has the whole body, and goes on until the test ends it.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!(
        "http://{}",
        listener.local_addr().expect("the socket is bound")
    );
    let (end, ended) = oneshot::channel();
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n{") {
            head.push(socket.read_u8().await.expect("a head and a byte"));
        }
        let begin = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n";
        socket
            .write_all(begin)
            .await
            .expect("the peer is connected");
        ended.await.expect("the test's end");
        socket
            .write_all(b"0\r\n\r\n")
            .await
            .expect("the peer is connected");
        socket.read_u8().await
    });
    let config = format!("{ROUTES}[timeouts]\nrequest_body = \"100ms\"\n");
    let app = App::start(&url, "memory:", "", &config);
    let mut client = Client::connect(app.addr()).await;
    let request = announced("POST", "/head").header("x-session", "s");
    client.send_head(&request).await;
    client.send_raw(b"{").await;
    client.read_until("hi").await;
    // Several times the body timeout.
    tokio::time::sleep(Duration::from_millis(400)).await;
    end.send(()).expect("the backend is running");
    let answer = client.answer().await;
    assert!(
        answer.whole,
        "a response that has begun goes on: {answer:?}"
    );
    drop(backend);
}

#[tokio::test]
async fn a_body_of_tiny_chunks_counts_with_its_overhead() {
    let limits = "[limits]\nmax_body = \"1MiB\"\nmax_buffered = \"1MiB\"\n";
    let bench = Bench::start(&format!("{ROUTES}{limits}")).await;
    let turn = Request::post("/line").header("x-session", "s");
    let open = bench.open(&turn).await;
    let mut client = bench.client().await;
    let chunked = turn.clone().header("transfer-encoding", "chunked");
    let waiting = tokio::spawn(async move {
        client.send_head(&chunked).await;
        let pieces = "1\r\nx\r\n".repeat(40_000);
        client
            .send_raw(format!("{pieces}0\r\n\r\n").as_bytes())
            .await;
        client.answer().await
    });
    wait_for_async(
        async || {
            let bytes = buffered(&bench).await.parse::<usize>();
            bytes.is_ok_and(|bytes| bytes >= 512 << 10)
        },
        "each chunk counts with the memory it takes",
    )
    .await;
    bench.end(open).await;
    let answer = waiting.await.expect("no panic");
    assert_eq!(answer.status, 200, "no byte of it is lost: {answer:?}");
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
    let got = bench.backend.requests();
    assert!(
        got.iter().any(|got| got.body.len() == 40_000),
        "the backend gets the whole body"
    );
}

#[tokio::test]
async fn a_large_body_is_read_like_a_small_one() {
    let forms = "application/x-www-form-urlencoded";
    let bench = Bench::start(ROUTES).await;
    for size in [1_usize << 10, 200 << 10, 2 << 20] {
        let filler = "x".repeat(size);
        let json = format!("{{\"filler\":\"{filler}\",\"s\":\"s {size}\"}}");
        let form = format!("filler={filler}&s=s+{size}");
        let twice = format!("{{\"s\":1,\"filler\":\"{filler}\",\"s\":2}}");
        let json = Request::post("/chain").body(json);
        let form = Request::post("/form")
            .header("content-type", forms)
            .body(form);
        for request in [&json, &form] {
            let key = bench.key(request).await;
            let expected = format!("lock:session:unknown:s%20{size}");
            assert_eq!(key, Some(expected), "the session is found: {size}");
        }
        let twice = Request::post("/chain").body(twice);
        bench
            .refused("two sessions", &twice, 400, "ambiguous_key")
            .await;
    }
    let zstd = zstd::bulk::compress(format!("{{\"s\":1{}}}", noise()).as_bytes(), 3);
    let encoded = Request::post("/chain")
        .header("content-encoding", "zstd")
        .body(zstd.expect("memory"));
    let key = bench.key(&encoded).await;
    assert_eq!(
        key.as_deref(),
        Some("lock:session:unknown:1"),
        "the session of an encoded body is found"
    );
    wait_for_async(
        async || buffered(&bench).await == "0",
        "the buffer is freed",
    )
    .await;
}

/// 2 MiB of white space that compresses, but not to almost nothing.
fn noise() -> String {
    let mut state = 1_u32;
    let blanks = (0..2 << 20).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if state >> 31 == 0 { ' ' } else { '\t' }
    });
    blanks.collect()
}
