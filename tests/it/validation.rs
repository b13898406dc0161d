//! Malformed and refused requests over HTTP/1, and the error responses to them.

use std::time::Duration;

use serde_json::Value;

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::client::{Client, Request, turn};
use crate::support::process::Process;
use crate::support::{wait_for, within};

/// A route whose session stands in a header, so that the body is streamed and not read before.
const UP: &str =
    "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";

async fn bench(config: &str) -> (Backend, App) {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, &format!("{config}{CHAT}{UP}"));
    (backend, app)
}

#[tokio::test]
async fn a_malformed_request_gets_an_error_response_and_the_connection_is_closed() {
    let (backend, app) = bench("").await;
    let long = "a".repeat(33 * 1024);
    for (bytes, status, reason) in [
        ("GET / HTTP/1.1\nhost: a\n\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi",
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "unsupported_transfer_coding",
        ),
        (
            "GET / HTTP/3.0\r\nhost: a\r\n\r\n",
            505,
            "unsupported_http_version",
        ),
        (
            &format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"),
            414,
            "uri_too_long",
        ),
        (
            &format!(
                "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
                "x: y\r\n".repeat(101)
            ),
            431,
            "head_too_large",
        ),
        (
            &format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}{long}\r\n\r\n"),
            431,
            "head_too_large",
        ),
    ] {
        let mut client = Client::connect(app.addr()).await;
        client.send_raw(bytes.as_bytes()).await;
        let answer = client.answer().await;
        let begins = &bytes[..bytes.len().min(80)];
        assert_eq!(answer.error(), (status, reason), "{begins:?}");
        assert_eq!(
            answer.json()["status_code"],
            status,
            "the body is that of every error response: {answer:?}"
        );
        assert_eq!(
            answer.header("connection"),
            Some("close"),
            "the response announces the close"
        );
        assert!(
            client.read_to_close().await.is_empty(),
            "the connection is closed: {begins:?}"
        );
    }
    assert!(
        backend.requests().is_empty(),
        "no refused request reaches the backend"
    );
}

#[tokio::test]
async fn a_request_that_arrives_byte_by_byte_is_served() {
    let (_backend, app) = bench("").await;
    let mut client = Client::connect(app.addr()).await;
    let request = Request::turn("s1", "plain:yes").bytes(app.addr());
    for _ in 0..2 {
        for byte in &request {
            client.send_raw(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(
            client.answer().await.text(),
            "yes",
            "a head may arrive in pieces"
        );
    }
}

#[tokio::test]
async fn a_request_before_a_malformed_one_is_answered_first() {
    let (backend, app) = bench("").await;
    let mut client = Client::connect(app.addr()).await;
    client.send(&Request::turn("s1", "gate")).await;
    client
        .send_raw(b"GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n")
        .await;
    backend.started("s1", 1).await;
    backend.open_gate("s1");
    let first = client.answer().await;
    assert!(
        first.whole && first.status == 200,
        "the turn ends as usual: {first:?}"
    );
    assert_eq!(
        client.answer().await.error(),
        (400, "bad_request"),
        "then the next request is refused"
    );
    assert!(
        client.read_to_close().await.is_empty(),
        "then the connection is closed"
    );
}

#[tokio::test]
async fn no_error_response_follows_a_response_that_ends_with_its_connection() {
    let (_backend, app) = bench("").await;
    let mut client = Client::connect(app.addr()).await;
    let request = "GET /x HTTP/1.0\r\nhost: a\r\nx-test-script: chunked:3:50\r\n\r\nno request\r\n";
    client.send_raw(request.as_bytes()).await;
    let all = String::from_utf8(client.read_to_close().await).expect("text");
    assert!(
        all.ends_with("data: {\"n\":2}\n\n"),
        "nothing follows the last event: {all:?}"
    );
}

#[tokio::test]
async fn a_head_that_takes_too_long_gets_a_408() {
    let (_backend, app) = bench("[timeouts]\nrequest_head = \"300ms\"\n").await;
    for begun in ["G", "PRI", "GET / HTTP/1.1\r\nhost: a\r\n"] {
        let mut client = Client::connect(app.addr()).await;
        client.send_raw(begun.as_bytes()).await;
        let answer = client.answer().await;
        assert_eq!(answer.error(), (408, "request_timeout"), "{begun:?}");
    }
    let mut client = Client::connect(app.addr()).await;
    assert!(
        client.read_to_close().await.is_empty(),
        "a connection without a byte is closed without a response"
    );
    let mut client = Client::connect(app.addr()).await;
    assert_eq!(
        client.turn("s1", "plain:ok").await.status,
        200,
        "a connection that is kept alive"
    );
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(
        client.turn("s1", "plain:ok").await.status,
        200,
        "a client may pause between two requests"
    );
    client.send_raw(b"GET").await;
    assert_eq!(
        client.answer().await.error(),
        (408, "request_timeout"),
        "a client may not pause in a head"
    );
}

#[tokio::test]
async fn a_body_with_malformed_chunks_never_looks_complete_to_a_backend() {
    let (backend, app) = bench("").await;
    for path in ["/up", "/chat", "/other"] {
        let mut client = Client::connect(app.addr()).await;
        let request = Request::post(path).header("transfer-encoding", "chunked");
        client
            .send_head(&request.header("x-test-session", "s1"))
            .await;
        client.send_raw(b"5\r\nhello\r\n").await;
        client.send_raw(b"5\nhello\r\n0\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 400, "{path}");
        assert!(
            client.read_to_close().await.is_empty(),
            "the connection is closed: {path}"
        );
    }
    assert!(
        backend.turns("s1").is_empty(),
        "the backend saw no complete turn: {backend:?}"
    );
    assert_eq!(
        turn(app.addr(), "s1", "plain:ok").await.status,
        200,
        "no lock is left"
    );
}

#[tokio::test]
async fn an_error_response_arrives_although_the_rest_of_the_request_is_not_used() {
    let (_backend, app) = bench("[limits]\nmax_body = 1000\n").await;
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/chat").header("content-length", "900000");
    client.send_head(&request).await;
    client.send_raw(&vec![b'x'; 900_000]).await;
    assert_eq!(
        client.answer().await.status,
        413,
        "the response is read, and not lost with a reset"
    );
}

#[tokio::test]
async fn what_follows_an_upgrade_that_the_backend_ignores_is_the_next_request() {
    let (_backend, app) = bench("").await;
    let mut client = Client::connect(app.addr()).await;
    let upgrade = Request::turn("s1", "plain:one").header("connection", "upgrade, http2-settings");
    client
        .send(
            &upgrade
                .header("upgrade", "h2c")
                .header("http2-settings", ""),
        )
        .await;
    client.send(&Request::turn("s1", "plain:two")).await;
    assert_eq!(
        client.answer().await.text(),
        "one",
        "the backend has not switched"
    );
    assert_eq!(
        client.answer().await.text(),
        "two",
        "the early bytes are the next request"
    );
}

#[tokio::test]
async fn an_upgrade_that_is_answered_before_its_body_ends_delays_nothing() {
    let (backend, app) = bench("[limits]\nread_before_lock = 0\n").await;
    let mut client = Client::connect(app.addr()).await;
    let upgrade = Request::post("/up")
        .header("x-test-session", "s1")
        .header("x-test-script", "early:one")
        .header("connection", "upgrade, http2-settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "")
        .header("content-length", "5");
    client.send_head(&upgrade).await;
    client.read_until("one").await;
    client.send_raw(b"later").await;
    assert!(client.answer().await.whole, "the response came first");
    wait_for(|| backend.requests()[0].body == b"later", "the body passes").await;
    client.send(&Request::turn("s1", "plain:two")).await;
    assert_eq!(
        within("the next answer", client.answer()).await.text(),
        "two",
        "there is no tunnel, and the next bytes are a request"
    );
}

#[tokio::test]
async fn a_connection_without_a_complete_head_does_not_delay_the_stop() {
    let (_backend, app) = bench("[timeouts]\ndrain = \"15s\"\n").await;
    let mut half = Client::connect(app.addr()).await;
    half.send_raw(b"GET / HTTP/1.1\r\nho").await;
    let mut kept = Client::connect(app.addr()).await;
    kept.turn("s1", "plain:ok").await;
    kept.send_raw(b"GET / HTTP/1.1\r\nho").await;
    let mut preface = Client::connect(app.addr()).await;
    preface.send_raw(b"PRI * HTTP").await;
    let silent = Client::connect(app.addr()).await;
    let stopped = app.stop().await;
    assert!(
        stopped.in_time,
        "the stop waits for complete requests alone"
    );
    drop(silent);
    for mut client in [half, kept, preface] {
        client.read_to_close().await;
    }
}

#[tokio::test]
async fn a_refused_request_is_logged() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n",
        backend.url()
    );
    std::fs::write(&config, text).expect("it can be written");
    let process = Process::start(&config);
    let mut client = Client::connect(process.addr()).await;
    client
        .send_raw(b"POST /a?secret HTTP/1.1\r\nhost: a\r\nx y\r\n\r\n")
        .await;
    client.answer().await;
    wait_for(
        || process.has_logged("bad_request"),
        "the event of a refused head",
    )
    .await;
    process.signal("TERM");
    let (_, events) = process.end();
    let event = events
        .iter()
        .find(|event| event["outcome"] == "bad_request")
        .expect("an event");
    assert_eq!(
        event["target"], "seriatim::access",
        "the event is in the access log"
    );
    let read = ["method", "path", "status"].map(|field| &event[field]);
    let expected: [Value; 3] = ["POST".into(), "/a".into(), 400.into()];
    assert_eq!(
        read,
        expected.each_ref(),
        "the event has what could be read: {event}"
    );
}

#[tokio::test]
async fn one_connection_too_many_gets_a_503() {
    let (backend, app) = bench("[limits]\nmax_connections = 2\n").await;
    let mut one = Client::connect(app.addr()).await;
    one.turn("s1", "plain:ok").await;
    let mut other = Client::connect(app.addr()).await;
    other.turn("s2", "plain:ok").await;
    let answer = turn(app.addr(), "s3", "plain:ok").await;
    assert_eq!(
        answer.error(),
        (503, "overloaded"),
        "a third connection is refused"
    );
    assert_eq!(
        answer.json()["status_code"],
        503,
        "the body is that of every error response"
    );
    assert_eq!(
        answer.header("retry-after"),
        Some("1"),
        "the client may retry"
    );
    assert!(
        backend.turns("s3").is_empty(),
        "no backend sees the request"
    );
    let mut admin = Client::connect(app.admin()).await;
    let metrics = admin.get("/metrics").await.text();
    assert!(
        metrics.contains("\nseriatim_connections 2\n"),
        "operators don't count: {metrics}"
    );
    one.close();
    let free = async || turn(app.addr(), "s3", "plain:ok").await.status == 200;
    crate::support::wait_for_async(free, "a connection is free again").await;
}
