//! Backends of every kind: behind TLS, on a local socket, in HTTP/2; and routes with one of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request as Asked, Response, Version};
use hyper::body::Incoming;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::h2::{Fed, Feed, Relay, Server, body, whole};
use crate::support::wait_for_async;

/// An authority of the tests' own, and a server's certificate from it.
struct Certified {
    folder: TempDir,
    acceptor: TlsAcceptor,
}

// === impl Certified ===

impl Certified {
    fn new(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let names: Vec<_> = names.iter().copied().map(str::to_owned).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("a file in it");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("its key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the usual versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a certificate and its key");
        Self {
            folder,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }

    fn trusted(&self) -> String {
        let file = self.folder.path().join("ca.pem");
        format!("upstream_ca_file = \"{}\"\n", file.display())
    }
}

/// What was asked for, in a line.
async fn echo(request: Asked<Incoming>) -> Response<Fed> {
    let (head, body) = request.into_parts();
    let body = http_body_util::BodyExt::collect(body)
        .await
        .expect("a body");
    let body = body.to_bytes();
    let mut headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    headers.sort();
    let version = match head.version {
        Version::HTTP_2 => "HTTP/2",
        _ => "another",
    };
    let body = String::from_utf8_lossy(&body);
    let text = format!(
        "{} {} {version}\n{}\n\n{body}",
        head.method,
        head.uri,
        headers.join("\n")
    );
    Response::new(whole(text))
}

/// A backend in HTTP/2 each of whose answers begins with an event, and hands its feed to the test.
async fn streaming() -> (Server, tokio::sync::mpsc::UnboundedReceiver<Feed>) {
    let (feeds, given) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |_| {
        let feeds = feeds.clone();
        async move {
            let (feed, fed) = body();
            feed.data(event(0)).await;
            feeds.send(feed).expect("the test looks on");
            Response::new(fed)
        }
    })
    .await;
    (server, given)
}

// === a local socket ===

#[tokio::test]
async fn a_backend_on_a_local_socket_is_served_as_any_other() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.sock");
    let _relay = Relay::from_socket(&path, backend.addr());
    let app = App::start(&format!("unix:{}", path.display()), "memory:", "", CHAT);
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        429,
        "its turns are locked"
    );
    first.close();
    backend.gone("s1").await;
    let free = async || turn(app.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "a client that leaves cancels its turn").await;
    assert_eq!(backend.max_overlap("s1"), 1, "and turns never overlap");

    let mut client = Client::connect(app.addr()).await;
    client
        .call(&Request::get("/a").header("host", "agent.example:80"))
        .await;
    let mut old = Client::connect(app.addr()).await;
    old.send_raw(b"GET /b HTTP/1.0\r\n\r\n").await;
    old.answer().await;
    let hosts = backend.requests().into_iter().rev().take(2);
    let hosts: Vec<_> = hosts
        .flat_map(|request| request.headers)
        .filter_map(|(name, value)| (name == "host").then_some(value))
        .collect();
    assert_eq!(
        hosts,
        ["localhost", "agent.example:80"],
        "the client's host, or one that is none"
    );
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_a_backend_that_cannot_be_reached() {
    let app = App::start("unix:/nowhere/agent.sock", "memory:", "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (502, Some("upstream_unreachable")),
        "as any other"
    );
}

// === TLS ===

#[tokio::test]
async fn a_backend_behind_tls_is_verified_and_served_as_any_other() {
    let backend = Backend::start("plain:ok").await;
    let certified = Certified::new(&["localhost", "127.0.0.1"]);
    let (_relay, addr) = Relay::out_of_tls(certified.acceptor.clone(), backend.addr()).await;
    for host in ["localhost", "127.0.0.1"] {
        let upstream = format!("https://{host}:{}", addr.port());
        let config = format!("{}{CHAT}", certified.trusted());
        let app = App::start(&upstream, "memory:", "", &config);
        let mut first = begin_turn(app.addr(), host, "gate").await;
        first.read_until(&event(0)).await;
        let refused = turn(app.addr(), host, "plain:x").await;
        assert_eq!(refused.status, 429, "its turns are locked");
        backend.open_gate(host);
        assert!(first.answer().await.whole, "and its answers arrive whole");
        assert_eq!(
            turn(app.addr(), host, "big:300000").await.body.len(),
            300_000,
            "large ones too"
        );
        let mut gone = begin_turn(app.addr(), host, "hang").await;
        backend.started(host, 3).await;
        gone.half_close().await;
        backend.gone(host).await;
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_the_backends_is_no_backend() {
    let backend = Backend::start("plain:ok").await;
    let (other, known) = (
        Certified::new(&["other.example"]),
        Certified::new(&["localhost"]),
    );
    for (served, trusted, why) in [
        (&other, other.trusted(), "for another name"),
        (&known, other.trusted(), "from another authority"),
        (&known, String::new(), "from no public authority"),
    ] {
        let (_relay, addr) = Relay::out_of_tls(served.acceptor.clone(), backend.addr()).await;
        let upstream = format!("https://localhost:{}", addr.port());
        let app = App::start(&upstream, "memory:", "", &format!("{trusted}{CHAT}"));
        let answer = turn(app.addr(), "s1", "plain:x").await;
        assert_eq!(
            (answer.status, answer.header("x-seriatim-error")),
            (502, Some("upstream_unreachable")),
            "{why}"
        );
        assert!(
            !answer.text().contains("localhost"),
            "which the client needn't know"
        );
    }
    assert_eq!(backend.requests().len(), 0, "and it is sent nothing");
}

#[tokio::test]
async fn a_backend_that_never_greets_is_given_up_as_one_that_never_connects() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("https://{}", silent.local_addr().expect("its address"));
    let app = App::start(
        &upstream,
        "memory:",
        "",
        &format!("[timeouts]\nconnect = \"200ms\"\n{CHAT}"),
    );
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (504, Some("upstream_timeout")),
        "TLS is part of connecting"
    );
}

// === HTTP/2 ===

#[tokio::test]
async fn a_backend_in_http2_gets_the_request_that_its_client_sent() {
    let server = Server::start(echo).await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    let mut client = Client::connect(app.addr()).await;
    let ip = "127.0.0.1";
    let get = Request::get("//a%2Fb/../c;v=1?q=%20+&&x=?")
        .header("host", "agent.example:81")
        .header("x-request-id", "r1")
        .header("x-two", "a")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("x-two", "b");
    let expected = format!(
        "GET http://agent.example:81//a%2Fb/../c;v=1?q=%20+&&x=? HTTP/2\nx-forwarded-for: {ip}\n\
         x-forwarded-host: agent.example:81\nx-forwarded-proto: http\nx-request-id: r1\n\
         x-two: a\nx-two: b\n\n"
    );
    assert_eq!(
        client.call(&get).await.text(),
        expected,
        "nothing added, lost or changed"
    );
    for (request, length) in [
        (Request::post("/p").body("hello"), Some("content-length: 5")),
        (Request::post("/p").chunked(&[b"hel", b"lo"]), None),
        (Request::new("DELETE", "/p"), None),
        (Request::post("/p").body(""), Some("content-length: 0")),
    ] {
        let answer = client.call(&request).await.text();
        let said = answer
            .lines()
            .find(|line| line.starts_with("content-length"));
        assert_eq!(said, length, "the length that the client told: {answer}");
        assert!(
            !answer.contains("transfer-encoding"),
            "HTTP/2 has no such thing: {answer}"
        );
    }
    assert_eq!(
        server.connections(),
        1,
        "one connection is kept for one request after the other"
    );
}

#[tokio::test]
async fn turns_in_http2_share_no_connection_and_each_ends_with_its_own() {
    let (server, mut feeds) = streaming().await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    let mut first = begin_turn(app.addr(), "s1", "-").await;
    first.read_until(&event(0)).await;
    let left = feeds.recv().await.expect("its feed");
    let mut second = begin_turn(app.addr(), "s2", "-").await;
    second.read_until(&event(0)).await;
    let whole = feeds.recv().await.expect("its feed");
    assert_eq!(
        server.connections(),
        2,
        "a turn has its connection to itself"
    );
    assert_eq!(
        turn(app.addr(), "s1", "-").await.status,
        429,
        "and its session"
    );
    first.close();
    left.unwanted().await;
    assert!(whole.data(event(1)).await, "another turn isn't disturbed");
    drop(whole);
    let second = second.answer().await;
    assert!(second.whole, "and ends when its backend ends it");
    assert_eq!(
        second.text(),
        format!("{}{}", event(0), event(1)),
        "with all that was sent"
    );
    let mut next = begin_turn(app.addr(), "s1", "-").await;
    next.read_until(&event(0)).await;
    feeds.recv().await.expect("its feed").abort().await;
    assert!(
        !next.answer().await.whole,
        "an answer that is broken off isn't ended as if it were whole"
    );
}

#[tokio::test]
async fn a_turn_in_http2_stops_with_its_lease() {
    let (server, mut feeds) = streaming().await;
    let app = App::start(
        &server.url(),
        "memory:",
        "timeout = \"100ms\"",
        &format!("{CHAT}lock_timeout = \"400ms\"\n"),
    );
    let mut client = begin_turn(app.addr(), "s1", "-").await;
    client.read_until(&event(0)).await;
    feeds.recv().await.expect("its feed").unwanted().await;
    assert!(!client.answer().await.whole, "at the client too");
}

#[tokio::test]
async fn a_backend_in_http2_that_closes_what_is_kept_is_sent_each_request_once() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let server = Server::closing_after_each(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Response::new(whole("ok")) }
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    for number in 0..20 {
        let answer = turn(app.addr(), "s1", "-").await;
        assert_eq!(answer.status, 200, "request {number} is answered");
        // Long enough, now and then, for the closing to have been heard of.
        tokio::time::sleep(Duration::from_millis(number % 3)).await;
    }
    assert_eq!(served.load(Ordering::SeqCst), 20, "and executed once");
}

#[tokio::test]
async fn a_backend_that_does_not_speak_http2_is_a_broken_one() {
    let backend = Backend::start("plain:ok").await;
    let app = App::start(&format!("h2c://{}", backend.addr()), "memory:", "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (502, Some("upstream_unreachable")),
        "and its session isn't stuck"
    );
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        502,
        "the next one gets as far"
    );
}

// === routes ===

#[tokio::test]
async fn a_route_may_have_a_backend_of_its_own() {
    let (one, two) = (
        Backend::start("plain:one").await,
        Backend::start("plain:two").await,
    );
    let three = Server::start(|_| async { Response::new(whole("three")) }).await;
    let route = |name: &str, upstream: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\npath = \"/{name}\"\nupstream = \"{upstream}\"\nlock = false\n"
        )
    };
    let routes = format!(
        "{}{}",
        route("two", &two.url()),
        route("three", &three.url())
    );
    let app = App::in_memory(&one, &format!("{routes}{CHAT}"));
    let mut client = Client::connect(app.addr()).await;
    for (path, text) in [
        ("/two", "two"),
        ("/three", "three"),
        ("/one", "one"),
        ("/two", "two"),
    ] {
        assert_eq!(
            client.get(path).await.text(),
            text,
            "{path} goes to its own backend"
        );
    }
    assert_eq!(
        client.turn("s1", "plain:turn").await.text(),
        "turn",
        "and all else to the other"
    );
    assert_eq!(
        (one.connections(), two.connections(), three.connections()),
        (1, 1, 1),
        "each keeps its connection"
    );
}

// === HTTP/1.1 before HTTP/2 ===

#[tokio::test]
async fn both_bodies_stream_at_the_same_time_to_a_backend_in_http2() {
    let server = Server::start(|request| async {
        let (feed, fed) = body();
        tokio::spawn(async move {
            let mut asked = request.into_body();
            feed.data("begin").await;
            while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut asked).await {
                if let Ok(data) = frame.into_data() {
                    feed.data(data).await;
                }
            }
            feed.data("end").await;
        });
        Response::new(fed)
    })
    .await;
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let app = App::start(&server.url(), "memory:", "", route);
    let mut client = Client::connect(app.addr()).await;
    for number in 0..3 {
        let request = Request::post("/up")
            .header("x-test-session", "s1")
            .header("transfer-encoding", "chunked");
        client.send_head(&request).await;
        client.read_until("begin").await;
        for said in ["one", "two"] {
            client
                .send_raw(&crate::support::wire::chunk(said.as_bytes()))
                .await;
            client.read_until(said).await;
        }
        client.send_raw(b"0\r\n\r\n").await;
        let answer = client.answer().await;
        assert!(
            answer.whole,
            "neither is cut off, nor waits for the other: {answer:?}"
        );
        assert_eq!(answer.text(), "beginonetwoend", "conversation {number}");
    }
    assert_eq!(
        server.connections(),
        1,
        "and the connection can be used again"
    );
}

#[tokio::test]
async fn trailers_in_http2_pass_to_a_client_that_takes_them() {
    let server = Server::start(|_| async {
        let (feed, fed) = body();
        feed.data("text").await;
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        feed.trailers(trailers).await;
        let mut answer = Response::new(fed);
        let announced = http::HeaderValue::from_static("grpc-status");
        answer.headers_mut().insert("trailer", announced);
        answer
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    let mut client = Client::connect(app.addr()).await;
    let answer = client
        .call(&Request::turn("s1", "-").header("te", "trailers"))
        .await;
    assert!(
        answer.whole && answer.text() == "text",
        "the answer: {answer:?}"
    );
    let expected = [("grpc-status".to_owned(), "0".to_owned())];
    assert_eq!(answer.trailers, expected, "and what is behind it");
    let answer = client.turn("s1", "-").await;
    assert!(
        answer.whole && answer.trailers.is_empty(),
        "no other client gets any: {answer:?}"
    );
}

#[tokio::test]
async fn an_answer_that_is_over_before_its_request_does_not_keep_its_connection() {
    let server = Server::start(|request| async {
        // The request's body is neither read nor given up.
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(request);
        });
        Response::new(whole("no thanks"))
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    for number in 1..=3 {
        let mut client = Client::connect(app.addr()).await;
        let request = Request::post("/up").header("content-length", "1000000");
        client.send_head(&request).await;
        client.send_raw(&[b'x'; 1000]).await;
        assert_eq!(
            client.answer().await.text(),
            "no thanks",
            "it is passed all the same"
        );
        assert_eq!(
            server.connections(),
            number,
            "and nobody else meets what is left of it"
        );
    }
}
