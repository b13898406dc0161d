//! HTTP/2: many turns on one connection, each with its own lock, limits and end.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::app::{App, CHAT, key};
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup};
use crate::support::h2_client::{H2, full, get, turn};
use crate::support::redis::Redis;
use crate::support::{wait_for_async, within};

/// A lease that ends within a test. Other turns stay far below it.
const SHORT_LEASE: &str = "[lock]\nlock_timeout = \"1500ms\"\n";

async fn start(config: &str) -> Bench<Redis> {
    // Less than the short lease, and enough for Redis on a busy machine.
    let store = "timeout = \"1s\"";
    let config = format!("{config}{CHAT}");
    Setup::new(&config).store(store).on_redis().await
}

impl Bench<Redis> {
    async fn h2_client(&self) -> H2 {
        H2::connect(self.app.addr()).await
    }
}

#[tokio::test]
async fn turns_on_one_connection_stream_concurrently_and_take_locks() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let mut one = client.send(turn("s1", "gate")).await.expect("a response");
    one.until(&event(0)).await;
    let mut two = client.send(turn("s2", "gate")).await.expect("a response");
    two.until(&event(0)).await;
    let busy = client.call(turn("s1", "plain:x")).await;
    assert_eq!(
        busy.error(),
        (429, "session_busy"),
        "one turn of a session at a time"
    );
    bench.backend.open_gate("s2");
    two.rest()
        .await
        .expect("the second turn ends while the first one streams");
    bench.backend.open_gate("s1");
    one.rest().await.expect("the first turn ends");
    for _ in 0..20 {
        let next = client.call(turn("s1", "chunked:2:0")).await;
        assert_eq!(
            next.status(),
            200,
            "the lock is released before the client sees the end of the response"
        );
    }
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlap");
}

#[tokio::test]
async fn turns_wait_in_the_queue_while_others_stream() {
    let bench = start("[lock]\nblocking = true\n").await;
    let mut client = bench.h2_client().await;
    let mut first = client.send(turn("s1", "gate")).await.expect("a response");
    first.until(&event(0)).await;
    let waiting: Vec<_> = (0..20)
        .map(|_| client.begin(turn("s1", "plain:x")))
        .collect();
    for _ in 0..5 {
        let other = client.call(turn("s2", "plain:y")).await;
        assert_eq!(other.text(), "y", "another session does not wait");
    }
    bench.backend.open_gate("s1");
    first.rest().await.expect("the first turn ends");
    for answer in waiting {
        let answer = within("a waiting turn", answer).await.expect("a response");
        assert_eq!(answer.status(), 200, "each waiting turn is served");
    }
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "turns run one at a time"
    );
}

#[tokio::test]
async fn a_client_that_cancels_one_turn_keeps_the_others() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    for script in ["gate", "hang"] {
        let mut stays = client
            .send(turn("stays", "gate"))
            .await
            .expect("a response");
        let cancelled = client.begin(turn(script, script));
        let cancelled = tokio::spawn(async move {
            let answer = cancelled.await.expect("a response");
            // Keeps the response until the task is aborted.
            std::future::pending::<()>().await;
            drop(answer);
        });
        bench.backend.started(script, 1).await;
        cancelled.abort();
        bench.backend.gone(script).await;
        let free = async || bench.redis.get(&key(script)).await.is_none();
        wait_for_async(free, "the lock of the cancelled turn is released").await;
        let next = client.call(turn(script, "plain:next")).await;
        assert_eq!(next.status(), 200, "its session is free: {script}");
        bench.backend.open_gate("stays");
        stays.rest().await.expect("the other turns go on");
    }
}

#[tokio::test]
async fn a_lost_connection_cancels_all_its_turns() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let mut answers = Vec::new();
    for session in ["s1", "s2", "s3"] {
        let mut answer = client
            .send(turn(session, "gate"))
            .await
            .expect("a response");
        answer.until(&event(0)).await;
        answers.push(answer);
    }
    let waits = client.begin(turn("s4", "hang"));
    bench.backend.started("s4", 1).await;
    client.lose();
    for session in ["s1", "s2", "s3", "s4"] {
        bench.backend.gone(session).await;
        bench
            .wait_until_free(session, "the connection was lost")
            .await;
    }
    drop((answers, waits));
}

#[tokio::test]
async fn an_aborted_response_resets_its_stream() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    for script in ["break-chunked", "break-length"] {
        let mut answer = client.send(turn(script, script)).await.expect("a response");
        let error = answer.rest().await.expect_err(script);
        assert!(!error.is_closed(), "the stream is reset: {error:?}");
        let next = client.call(turn(script, "plain:ok")).await;
        assert_eq!(next.status(), 200, "the connection goes on: {script}");
    }
}

#[tokio::test]
async fn a_turn_that_outlives_its_lease_resets_only_its_stream() {
    let bench = start(SHORT_LEASE).await;
    let mut client = bench.h2_client().await;
    let mut expired = client
        .send(turn("cut", "hang-middle"))
        .await
        .expect("a response");
    expired.until(&event(0)).await;
    expired.rest().await.expect_err("its lease has expired");
    let next = client.call(turn("cut", "plain:ok")).await;
    assert_eq!(
        next.status(),
        200,
        "the session is free, and the connection goes on"
    );
    bench.wait_until_free("cut", "its lease expired").await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_keep_its_session() {
    let bench = start(SHORT_LEASE).await;
    let mut client = bench.h2_client().await;
    let stalled = client
        .send(turn("s1", "big:10000000"))
        .await
        .expect("a response");
    // The client reads nothing, so its flow-control window fills up.
    bench.wait_until_free("s1", "its lease expired").await;
    drop(stalled);
}

#[tokio::test]
async fn an_idle_turn_is_aborted_and_active_ones_are_not() {
    let bench = start("[timeouts]\nidle_stream = \"700ms\"\n").await;
    let mut client = bench.h2_client().await;
    let mut silent = client
        .send(turn("silent", "hang-middle"))
        .await
        .expect("a response");
    let mut moving = client
        .send(turn("moving", "chunked:12:150"))
        .await
        .expect("a response");
    silent.rest().await.expect_err("no byte moved");
    moving.rest().await.expect("bytes moved all the time");
    bench.wait_until_free("silent", "it was idle").await;
    client.closed().await;
}

#[tokio::test]
async fn a_stop_lets_turns_end_and_accepts_no_new_ones() {
    let bench = start("[timeouts]\ndrain = \"15s\"\n").await;
    let mut client = bench.h2_client().await;
    let mut idle = bench.h2_client().await;
    idle.call(turn("s2", "plain:ok")).await;
    let mut running = client.send(turn("s1", "gate")).await.expect("a response");
    running.until(&event(0)).await;
    let stopping = tokio::spawn(bench.app.stop());
    idle.closed().await;
    bench.backend.open_gate("s1");
    running
        .rest()
        .await
        .expect("a running turn comes to its end");
    let stopped = within("the stop", stopping)
        .await
        .expect("the process stops");
    assert!(
        stopped.in_time && stopped.all_released,
        "within the drain timeout: {stopped:?}"
    );
}

#[tokio::test]
async fn a_stop_aborts_turns_that_do_not_end() {
    let bench = start("[timeouts]\ndrain = \"300ms\"\n").await;
    let mut client = bench.h2_client().await;
    let mut running = client.send(turn("s1", "gate")).await.expect("a response");
    running.until(&event(0)).await;
    let stopped = bench.app.stop().await;
    assert!(
        !stopped.in_time && stopped.all_released,
        "the lock is released: {stopped:?}"
    );
    running.rest().await.expect_err("the response is aborted");
}

#[tokio::test]
async fn a_request_that_a_backend_may_read_differently_is_refused() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let value = |bytes: &[u8]| HeaderValue::from_bytes(bytes).expect("a value");
    for (name, bytes) in [
        ("host", &b"other.example"[..]),
        ("x-padded", b" a"),
        ("x-padded", b"a\t"),
    ] {
        let request = get("/x").header(name, value(bytes)).body(full(""));
        let answer = client.call(request.expect("a request")).await;
        assert_eq!(answer.error(), (400, "bad_request"), "{name}: {bytes:?}");
        let body: serde_json::Value = serde_json::from_slice(&answer.read).expect("JSON");
        assert_eq!(body["status_code"], 400, "the JSON body has the status");
    }
    for authority in ["user@agent.example", "a,b", "a!b@c", "a:123456"] {
        let request = Request::get(format!("http://{authority}/x")).body(full(""));
        let answer = client.call(request.expect("a request")).await;
        assert_eq!(answer.error(), (400, "bad_request"), "to {authority}");
    }
    // h2 sends no authority for a request whose version is not HTTP/2.
    for host in ["a/b", "a, b", "user@a", "a b", "a:x", "a%20", "a\\b", "a?b"] {
        let request = Request::get("/x").header("host", host).body(full(""));
        let answer = client.call(request.expect("a request")).await;
        assert_eq!(answer.error(), (400, "bad_request"), "host: {host}");
    }
    for length in ["05", "00000000005"] {
        let request = Request::post("http://agent.example/x").header("content-length", length);
        let request = request.body(full("hello")).expect("a request");
        let answer = client.call(request).await;
        assert_eq!(
            answer.error(),
            (400, "bad_request"),
            "{length} is 5 or octal"
        );
    }
    let hosts = Request::get("/x").header("host", "a").header("host", "a");
    let answer = client.call(hosts.body(full("")).expect("a request")).await;
    assert_eq!(answer.error(), (400, "ambiguous_key"), "two host headers");
    let long = get(&format!("/{}", "a".repeat(32 * 1024))).body(full(""));
    let answer = client.call(long.expect("a request")).await;
    assert_eq!(answer.error(), (414, "uri_too_long"), "as over HTTP/1");
    let with = |name: &str, count: usize| {
        let fields = (0..count).map(|n| (name.replace('#', &n.to_string()), "a=1"));
        let request = fields.fold(get("/x"), |request, (name, value)| {
            request.header(name, value)
        });
        request.body(full("")).expect("a request")
    };
    let answer = client.call(with("x-#", 101)).await;
    assert_eq!(answer.error(), (431, "head_too_large"), "as over HTTP/1");
    for odd in ["/chat%0A", "/%00", "/ch%ffat"] {
        let request = get(odd).method("POST").body(full(""));
        let answer = client.call(request.expect("a request")).await;
        assert_eq!(answer.error(), (400, "bad_request"), "{odd}");
    }
    assert!(
        bench.backend.requests().is_empty(),
        "no refused request reached the backend"
    );
    let answer = client.call(with("cookie", 150)).await;
    assert_eq!(answer.status(), 200, "split cookies count as one field");
}

#[tokio::test]
async fn the_backend_gets_the_request_as_http_1() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let request = get("/x?a=%20b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-twice", "1")
        .header("x-twice", "2");
    let answer = client
        .call(request.body(full("")).expect("a request"))
        .await;
    assert_eq!(answer.status(), 200, "the request is served");
    let seen = &bench.backend.requests()[0];
    assert_eq!(seen.target, "/x?a=%20b", "the target is unchanged");
    let values = |name: &str| {
        let headers = seen.headers.iter().filter(|(known, _)| known == name);
        headers.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        values("cookie"),
        ["a=1; b=2"],
        "cookies are joined into one line (RFC 9113 §8.2.3)"
    );
    assert_eq!(values("x-twice"), ["1", "2"], "other headers are unchanged");
    assert_eq!(
        values("host"),
        ["agent.example"],
        "the authority becomes the host"
    );
    assert_eq!(
        values("x-forwarded-proto"),
        ["http"],
        "the protocol is forwarded"
    );
}

#[tokio::test]
async fn response_trailers_pass_and_request_trailers_are_dropped() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let answer = client.call(turn("s1", "trailers")).await;
    let trailers = answer.trailers.expect("trailers");
    assert_eq!(trailers["x-checksum"], "abc", "the backend's trailers pass");
    let ends_with = |name: &'static str| {
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            HeaderValue::from_static("1"),
        )]);
        // Without a known length, because HTTP/1 can carry trailers only with chunks.
        let frames = [
            Ok(Frame::data(Bytes::from("hello"))),
            Ok(Frame::trailers(trailers)),
        ];
        StreamBody::new(futures_util::stream::iter(frames)).boxed()
    };
    let post = || Request::post("http://agent.example/x");
    let requests = [
        post().header("trailer", "x-sum").body(ends_with("x-sum")),
        post().body(ends_with("x-forwarded-for")),
    ];
    for (number, request) in requests.into_iter().enumerate() {
        client.call(request.expect("a request")).await;
        let seen = bench.backend.requests().pop().expect("a request");
        assert_eq!(seen.body, b"hello", "the body of request {number} is whole");
        assert!(
            seen.trailers.is_empty(),
            "the trailers are dropped: {seen:?}"
        );
        assert_eq!(
            seen.header("trailer"),
            None,
            "the `trailer` header is dropped"
        );
    }
    let before = bench.backend.requests().len();
    let announced = post().header("trailer", "x-sum, x-forwarded-for");
    let announced = announced.body(ends_with("x-forwarded-for"));
    let answer = client.call(announced.expect("a request")).await;
    assert_eq!(
        answer.error(),
        (400, "bad_request"),
        "a request that announces a forbidden trailer is refused"
    );
    assert_eq!(
        bench.backend.requests().len(),
        before,
        "the refused request does not reach the backend"
    );
}

#[tokio::test]
async fn the_preface_may_arrive_byte_by_byte() {
    let bench = start("").await;
    let mut stream = TcpStream::connect(bench.app.addr())
        .await
        .expect("a connection");
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().chain(&settings);
    for byte in preface {
        stream.write_all(&[*byte]).await.expect("the proxy reads");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut frame = [0; 9];
    within("a frame", stream.read_exact(&mut frame))
        .await
        .expect("a frame");
    assert_eq!(frame[3], 4, "the proxy's settings come first");
}

#[tokio::test]
async fn a_head_over_64_kib_is_refused_and_connect_opens_no_tunnel() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    let large = get("/x")
        .header("x-large", "a".repeat(65 * 1024))
        .body(full(""));
    let answer = client.send(large.expect("a request")).await;
    assert!(
        answer.map_or(true, |answer| answer.status() == 431),
        "more than 64 KiB are refused"
    );
    let mut client = bench.h2_client().await;
    let connect = Request::connect("agent.example:80").body(full(""));
    let answer = client
        .send(connect.expect("a request"))
        .await
        .expect("a response");
    assert_eq!(answer.error(), (404, "no_route"), "CONNECT opens no tunnel");
    assert!(
        bench.backend.requests().is_empty(),
        "no refused request reached the backend"
    );
}

#[tokio::test]
async fn a_connection_without_a_complete_request_is_closed() {
    let bench = start("[timeouts]\nrequest_head = \"300ms\"\n").await;
    let half = frame(1, END_STREAM, 1, &head("/x"));
    for (case, sent) in [
        ("only the preface", Vec::new()),
        ("preface and settings", frame(4, 0, 0, &[])),
        (
            "a head without END_HEADERS",
            [frame(4, 0, 0, &[]), half.clone()].concat(),
        ),
        (
            "half a frame",
            [&frame(4, 0, 0, &[])[..], &half[..5]].concat(),
        ),
    ] {
        let mut raw = Raw::connect(&bench).await;
        raw.send(&sent).await;
        raw.closed(case).await;
    }
    assert!(
        bench.backend.requests().is_empty(),
        "no request reached the backend"
    );
}

#[tokio::test]
async fn request_head_limits_later_heads_on_a_connection_too() {
    let bench = start("[timeouts]\nrequest_head = \"300ms\"\n").await;
    for (case, sent) in [
        (
            "a head without END_HEADERS",
            frame(1, END_STREAM, 3, &head("/x")),
        ),
        (
            "half a head",
            frame(1, END_STREAM, 3, &head("/x"))[..12].into(),
        ),
    ] {
        let mut raw = Raw::connect(&bench).await;
        raw.send(&frame(4, 0, 0, &[])).await;
        raw.send(&frame(1, END_STREAM | END_HEADERS, 1, &head("/x")))
            .await;
        raw.ended(1).await;
        raw.send(&sent).await;
        raw.closed(case).await;
    }
    assert_eq!(
        bench.backend.requests().len(),
        2,
        "the first requests passed"
    );
}

#[tokio::test]
async fn a_head_that_has_begun_may_take_longer_than_a_connection_is_kept() {
    let bench = start("[timeouts]\nkeep_alive = \"500ms\"\n").await;
    let mut raw = Raw::connect(&bench).await;
    raw.send(&frame(4, 0, 0, &[])).await;
    let get = |stream| frame(1, END_STREAM | END_HEADERS, stream, &head("/x"));
    raw.send(&get(1)).await;
    raw.ended(1).await;
    let (begin, rest) = (get(3)[..12].to_vec(), get(3)[12..].to_vec());
    raw.send(&begin).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    raw.send(&rest).await;
    // GOAWAY (RFC 9113 §6.8) says that the connection takes no more requests.
    raw.until(|kind, flags, id| {
        assert_ne!(kind, 7, "the connection stays open for the head");
        id == 3 && kind <= 1 && flags & END_STREAM != 0
    })
    .await;
    raw.closed("a connection without a request").await;
}

#[tokio::test]
async fn a_response_that_the_client_never_reads_closes_the_connection() {
    let bench = start("[timeouts]\nkeep_alive = \"300ms\"\n").await;
    let mut raw = Raw::connect(&bench).await;
    // A window of one byte (RFC 9113 §6.5.2), which the test never opens.
    raw.send(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 1])).await;
    raw.send(&frame(1, END_STREAM | END_HEADERS, 1, &head("/x")))
        .await;
    raw.closed("the connection to close").await;
    assert_eq!(bench.backend.requests().len(), 1, "the request was served");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_clients_that_read_nothing() {
    let bench = start("[timeouts]\ndrain = \"5s\"\n").await;
    let mut idle = Raw::connect(&bench).await;
    idle.send(&frame(4, 0, 0, &[])).await;
    idle.send(&frame(1, END_STREAM | END_HEADERS, 1, &head("/x")))
        .await;
    idle.ended(1).await;
    let silent = Raw::connect(&bench).await;
    let stopped = bench.app.stop().await;
    assert!(
        stopped.in_time,
        "neither connection had a turn: {stopped:?}"
    );
    drop((idle, silent));
}

#[tokio::test]
async fn a_request_without_a_host_is_refused() {
    let bench = start("").await;
    let mut client = bench.h2_client().await;
    // h2 sends no authority for a request whose version is not HTTP/2.
    let answer = client
        .call(Request::get("/x").body(full("")).expect("a request"))
        .await;
    assert_eq!(answer.error(), (400, "bad_request"), "as over HTTP/1.1");
    assert!(
        bench.backend.requests().is_empty(),
        "a request without a host does not reach the backend"
    );
    let named = Request::get("/x").header("host", "agent.example");
    let answer = client.call(named.body(full("")).expect("a request")).await;
    assert_eq!(
        answer.status(),
        200,
        "a host header can replace the authority"
    );
}

#[tokio::test]
async fn one_connection_has_at_most_a_hundred_concurrent_requests() {
    let bench = start("").await;
    let mut raw = Raw::connect(&bench).await;
    raw.send(&frame(4, 0, 0, &[])).await;
    let settings = raw.until(|kind, _, _| kind == 4).await;
    let most = settings.chunks(6).find(|one| one[..2] == [0, 3]);
    assert_eq!(
        most.map(|one| &one[2..]),
        Some(&[0, 0, 0, 100][..]),
        "SETTINGS_MAX_CONCURRENT_STREAMS"
    );
}

#[tokio::test]
async fn a_304_keeps_its_content_length() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = listener.local_addr().expect("the listener's address");
    let app = App::start(&format!("http://{backend}"), "memory:", "", CHAT);
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let _ = socket.read(&mut [0; 4096]).await;
        let response = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: x\r\n\r\n";
        socket.write_all(response).await.expect("the proxy reads");
        let _ = socket.read(&mut [0; 1]).await;
    });
    let mut client = H2::connect(app.addr()).await;
    let request = get("/x").body(full("")).expect("a request");
    let answer = client.call(request).await;
    assert_eq!(answer.status(), 304, "the status is unchanged");
    let length = answer.head.headers().get("content-length");
    assert_eq!(
        length.map(HeaderValue::as_bytes),
        Some(&b"5"[..]),
        "the content-length of a 304 describes the response to a GET"
    );
    backend.abort();
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection on which a test writes its own frames.
struct Raw(TcpStream);

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short payload");
    let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    frame.extend_from_slice(payload);
    frame
}

/// The headers of a GET (RFC 7541): three from the static table, and two with literal values.
fn head(path: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x86];
    for (name, value) in [(0x04, path), (0x01, "agent.example")] {
        head.push(name);
        head.push(u8::try_from(value.len()).expect("a short value"));
        head.extend_from_slice(value.as_bytes());
    }
    head
}

// === impl Raw ===

impl Raw {
    /// Connects and sends the preface.
    async fn connect(bench: &Bench<Redis>) -> Self {
        let stream = TcpStream::connect(bench.app.addr()).await;
        let mut raw = Self(stream.expect("a connection"));
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the proxy reads");
    }

    /// Reads up to the end of a stream's response.
    async fn ended(&mut self, stream: u8) {
        self.until(|kind, flags, id| id == stream && kind <= 1 && flags & END_STREAM != 0)
            .await;
    }

    /// Reads up to the wanted frame, and gives its payload.
    async fn until(&mut self, is_wanted: impl Fn(u8, u8, u8) -> bool) -> Vec<u8> {
        loop {
            let mut header = [0; 9];
            let got = within("a frame", self.0.read_exact(&mut header)).await;
            got.expect("a frame");
            let length = u16::from_be_bytes([header[1], header[2]]);
            let mut payload = vec![0; length.into()];
            let got = within("the frame's payload", self.0.read_exact(&mut payload)).await;
            got.expect("the frame's payload");
            if is_wanted(header[3], header[4], header[8]) {
                return payload;
            }
        }
    }

    /// Reads until the proxy closes the connection.
    async fn closed(mut self, case: &str) {
        let mut all = Vec::new();
        // A reset and a close are both an end.
        let _ = within(case, self.0.read_to_end(&mut all)).await;
    }
}
