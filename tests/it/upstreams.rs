//! Backends of every kind: TLS, Unix sockets, HTTP/2, and routes with their own upstream.

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

use crate::support::app::{App, CHAT, wait_for_locks};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::h2::{Fed, Feed, Relay, Server, body, whole};

/// A certificate authority of the test, and a server certificate that it signed.
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

/// Responds with a text that describes the request.
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

/// An HTTP/2 backend whose responses begin with one event; the test gets the feed of each.
async fn streaming() -> (Server, tokio::sync::mpsc::UnboundedReceiver<Feed>) {
    let (feeds, given) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |_| {
        let feeds = feeds.clone();
        async move {
            let (feed, fed) = body();
            feed.data(event(0)).await;
            feeds.send(feed).expect("the test receives the feed");
            Response::new(fed)
        }
    })
    .await;
    (server, given)
}

// === Unix sockets ===

#[tokio::test]
async fn a_backend_on_a_unix_socket_works_like_any_other() {
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
        "its turns take locks"
    );
    first.close();
    backend.gone("s1").await;
    wait_for_locks(&app, 0, "a disconnect cancels the turn").await;
    let next = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(next.status, 200, "the session is free");
    assert_eq!(backend.max_overlap("s1"), 1, "turns never overlapped");

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
        "the client's host is forwarded, or localhost without one"
    );
}

#[tokio::test]
async fn a_missing_unix_socket_is_an_unreachable_upstream() {
    let app = App::start("unix:/nowhere/agent.sock", "memory:", "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (502, Some("upstream_unreachable")),
        "a missing socket is unreachable"
    );
}

// === TLS ===

#[tokio::test]
async fn a_backend_with_tls_is_verified_and_works_like_any_other() {
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
        assert_eq!(refused.status, 429, "its turns take locks");
        backend.open_gate(host);
        assert!(first.answer().await.whole, "its responses are complete");
        assert_eq!(
            turn(app.addr(), host, "big:300000").await.body.len(),
            300_000,
            "large responses are complete"
        );
        let mut gone = begin_turn(app.addr(), host, "hang").await;
        backend.started(host, 3).await;
        gone.half_close().await;
        backend.gone(host).await;
    }
}

#[tokio::test]
async fn an_untrusted_backend_certificate_is_an_unreachable_upstream() {
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
            "a certificate {why} is not trusted"
        );
        assert!(
            !answer.text().contains("localhost"),
            "the error response doesn't name the upstream"
        );
    }
    assert_eq!(backend.requests().len(), 0, "the backend gets no request");
}

#[tokio::test]
async fn the_connect_timeout_includes_the_tls_handshake() {
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
        "a handshake without a reply times out"
    );
}

// === HTTP/2 ===

#[tokio::test]
async fn an_http2_backend_gets_the_request_unchanged() {
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
        "nothing is added, lost or changed"
    );
    for (request, length) in [
        (Request::post("/p").body("hello"), Some("content-length: 5")),
        (Request::post("/p").chunked(&[b"hel", b"lo"]), None),
        (Request::new("DELETE", "/p"), None),
        (Request::post("/p").body(""), Some("content-length: 0")),
    ] {
        let answer = client.call(&request).await.text();
        let length_header = answer
            .lines()
            .find(|line| line.starts_with("content-length"));
        assert_eq!(
            length_header, length,
            "content-length is the client's: {answer}"
        );
        assert!(
            !answer.contains("transfer-encoding"),
            "HTTP/2 has no transfer-encoding: {answer}"
        );
    }
    assert_eq!(
        server.connections(),
        1,
        "sequential requests share one connection"
    );
}

#[tokio::test]
async fn concurrent_http2_turns_have_their_own_connections() {
    let (server, mut feeds) = streaming().await;
    let app = App::start(&server.url(), "memory:", "", CHAT);
    let mut first = begin_turn(app.addr(), "s1", "-").await;
    first.read_until(&event(0)).await;
    let left = feeds.recv().await.expect("the feed of the turn");
    let mut second = begin_turn(app.addr(), "s2", "-").await;
    second.read_until(&event(0)).await;
    let whole = feeds.recv().await.expect("the feed of the turn");
    assert_eq!(
        server.connections(),
        2,
        "concurrent turns have separate connections"
    );
    assert_eq!(
        turn(app.addr(), "s1", "-").await.status,
        429,
        "its session is busy"
    );
    first.close();
    left.unwanted().await;
    assert!(whole.data(event(1)).await, "another turn isn't affected");
    drop(whole);
    let second = second.answer().await;
    assert!(second.whole, "a turn ends when its backend ends it");
    assert_eq!(
        second.text(),
        format!("{}{}", event(0), event(1)),
        "all data arrives"
    );
    let mut next = begin_turn(app.addr(), "s1", "-").await;
    next.read_until(&event(0)).await;
    feeds
        .recv()
        .await
        .expect("the feed of the turn")
        .abort()
        .await;
    assert!(
        !next.answer().await.whole,
        "an aborted response is cut at the client"
    );
}

#[tokio::test]
async fn an_http2_turn_stops_when_its_lease_expires() {
    let (server, mut feeds) = streaming().await;
    let app = App::start(
        &server.url(),
        "memory:",
        "timeout = \"100ms\"",
        &format!("{CHAT}lock_timeout = \"400ms\"\n"),
    );
    let mut client = begin_turn(app.addr(), "s1", "-").await;
    client.read_until(&event(0)).await;
    feeds
        .recv()
        .await
        .expect("the feed of the turn")
        .unwanted()
        .await;
    assert!(!client.answer().await.whole, "the client's response is cut");
}

#[tokio::test]
async fn an_http2_backend_that_closes_connections_gets_each_request_once() {
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
        // Sometimes long enough for the proxy to notice the close.
        tokio::time::sleep(Duration::from_millis(number % 3)).await;
    }
    assert_eq!(
        served.load(Ordering::SeqCst),
        20,
        "each request is executed once"
    );
}

#[tokio::test]
async fn an_h2c_backend_without_http2_is_an_upstream_error() {
    let backend = Backend::start("plain:ok").await;
    let app = App::start(&format!("h2c://{}", backend.addr()), "memory:", "", CHAT);
    let answer = turn(app.addr(), "s1", "plain:x").await;
    assert_eq!(
        (answer.status, answer.header("x-seriatim-error")),
        (502, Some("upstream_unreachable")),
        "a backend without HTTP/2 is unreachable"
    );
    assert_eq!(
        turn(app.addr(), "s1", "plain:x").await.status,
        502,
        "the session is free for the next turn"
    );
}

// === routes ===

#[tokio::test]
async fn a_route_may_have_its_own_upstream() {
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
            "{path} goes to its own upstream"
        );
    }
    assert_eq!(
        client.turn("s1", "plain:turn").await.text(),
        "turn",
        "a request on another route goes to the default upstream"
    );
    assert_eq!(
        (one.connections(), two.connections(), three.connections()),
        (1, 1, 1),
        "each upstream keeps its connection"
    );
}

// === HTTP/1.1 before HTTP/2 ===

#[tokio::test]
async fn request_and_response_stream_at_once_to_an_http2_backend() {
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
        for data in ["one", "two"] {
            client
                .send_raw(&crate::support::wire::chunk(data.as_bytes()))
                .await;
            client.read_until(data).await;
        }
        client.send_raw(b"0\r\n\r\n").await;
        let answer = client.answer().await;
        assert!(
            answer.whole,
            "neither direction blocks the other: {answer:?}"
        );
        assert_eq!(
            answer.text(),
            "beginonetwoend",
            "exchange {number} has all data"
        );
    }
    assert_eq!(server.connections(), 1, "the connection is used again");
}

#[tokio::test]
async fn http2_trailers_are_forwarded_to_a_client_that_accepts_them() {
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
        "the response is complete: {answer:?}"
    );
    let expected = [("grpc-status".to_owned(), "0".to_owned())];
    assert_eq!(answer.trailers, expected, "the trailers follow the body");
    let answer = client.turn("s1", "-").await;
    assert!(
        answer.whole && answer.trailers.is_empty(),
        "a client without te: trailers gets none: {answer:?}"
    );
}

#[tokio::test]
async fn a_response_that_ends_before_its_request_gives_up_the_connection() {
    let server = Server::start(|request| async {
        // The request's body is neither read nor dropped.
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
            "an early response is forwarded"
        );
        assert_eq!(
            server.connections(),
            number,
            "no other request uses the connection"
        );
    }
}
