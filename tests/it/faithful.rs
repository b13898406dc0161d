//! The proxy adds, drops and reorders nothing: each side gets what the other sent, except hop-by-hop
//! headers and those that the contract names.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::app::{App, CHAT, wait_until_free};
use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, Request};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for, within};

/// A backend that sends the same bytes to every request and then closes.
struct CannedBackend {
    addr: SocketAddr,
    response: Arc<Mutex<Vec<u8>>>,
    accepting: JoinHandle<()>,
}

// === impl Canned ===

impl CannedBackend {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("the listener's address");
        let response = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&response);
        let accepting = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("the backend accepts");
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match socket.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let bytes = shared.lock().expect("no panic").clone();
                    let _ = socket.write_all(&bytes).await;
                    let _ = socket.shutdown().await;
                    let _ = socket.read(&mut [0; 1]).await;
                });
            }
        });
        Self {
            addr,
            response,
            accepting,
        }
    }

    /// What the client gets when the backend sends this response.
    async fn passed(&self, app: &App, request: &Request, response: &[u8]) -> Answer {
        *self.response.lock().expect("no panic") = response.to_vec();
        Client::connect(app.addr()).await.call(request).await
    }

    fn app(&self, config: &str) -> App {
        App::start(&format!("http://{}", self.addr), "memory:", "", config)
    }
}

impl Drop for CannedBackend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The head that the backend gets of a request with these bytes.
async fn forwarded_head(backend: &Backend, app: &App, bytes: &[u8]) -> String {
    let before = backend.requests().len();
    let mut client = Client::connect(app.addr()).await;
    client.send_raw(bytes).await;
    let answer = client.answer().await;
    let requests = backend.requests();
    assert_eq!(
        requests.len(),
        before + 1,
        "the request reaches the backend: {} {answer:?}",
        bytes.escape_ascii()
    );
    requests[before]
        .raw_head
        .escape_ascii()
        .to_string()
        .replace("\\r\\n", "\n")
}

fn header_lines(head: &str, name: &str) -> Vec<String> {
    let has_name = |line: &&str| {
        line.split_once(':')
            .is_some_and(|(known, _)| known.eq_ignore_ascii_case(name))
    };
    head.lines().filter(has_name).map(str::to_owned).collect()
}

// === requests ===

#[tokio::test]
async fn a_request_head_keeps_its_order_and_letter_case() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let sent = b"GET /a?b HTTP/1.1\r\nuser-agent: x\r\nHOST: agent.example\r\nConnection: keep-alive, X-Hop\r\n\
                 X-Hop: 1\r\nB-second: 1\r\nKeep-Alive: timeout=5\r\na-First: 2\r\nACCEPT: */*\r\nCookie: a=1; b=2\r\n\
                 traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nTraceState: x=1,y=2\r\n\
                 X-Latin: \xe9\r\nX-Empty:\r\nX-Request-Id: r-1\r\nZ: 1\r\nz: 2\r\n\r\n";
    let expected = "GET /a?b HTTP/1.1\nuser-agent: x\nHOST: agent.example\nB-second: 1\na-First: 2\nACCEPT: */*\n\
                    Cookie: a=1; b=2\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\
                    TraceState: x=1,y=2\nX-Latin: \\xe9\nX-Empty: \nX-Request-Id: r-1\nZ: 1\nz: 2\n\
                    x-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\nx-forwarded-host: agent.example\n\n";
    assert_eq!(
        forwarded_head(&backend, &app, sent).await,
        expected,
        "only the headers of the contract are added"
    );
}

#[tokio::test]
async fn a_target_is_forwarded_byte_for_byte() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for target in [
        "/",
        "//",
        "/?",
        "/a?",
        "/a?b=c&&d",
        "/a??b",
        "/%7e%2F%2f",
        "/a/../b/./c//",
        "/a;v=1/b",
        "/a?q=%20+%2B&x=/?:@!$'()*,",
        "/~user/a_b-c.d",
        "/\u{4e2d}\u{6587}?q=\u{4e2d}",
        "/a%zz",
        "/a{b}",
        "/a\"b",
        "/a|b",
        "/a?{b}",
        "/a[b]?c[]=1",
        "/a:8080/b",
        "/http://x/y",
        "/a\\b",
    ] {
        let sent = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
        forwarded_head(&backend, &app, sent.as_bytes()).await;
        let seen = backend
            .requests()
            .pop()
            .expect("the request reached the backend");
        assert_eq!(seen.target, target, "the target is unchanged");
    }
    let head = forwarded_head(
        &backend,
        &app,
        b"GET http://other.example:81/x?y HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert!(
        head.starts_with("GET /x?y HTTP/1.1\nhost: other.example:81\n"),
        "an absolute target sets the host (RFC 9112 §3.2.2): {head}"
    );
    let head = forwarded_head(&backend, &app, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(
        head.starts_with("OPTIONS * HTTP/1.1\n"),
        "the target `*` is forwarded: {head}"
    );
}

#[tokio::test]
async fn a_body_keeps_its_framing() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let chat = "content-type: application/json\r\n";
    let json = r#"{"session_id": "s1"}"#;
    for (sent, length, coding, body) in [
        ("GET /a HTTP/1.1\r\n\r\n".to_owned(), None, None, ""),
        ("POST /a HTTP/1.1\r\n\r\n".to_owned(), None, None, ""),
        ("DELETE /a HTTP/1.1\r\n\r\n".to_owned(), None, None, ""),
        (
            "POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n".to_owned(),
            Some("Content-Length: 0"),
            None,
            "",
        ),
        (
            "GET /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
            Some("content-length: 2"),
            None,
            "hi",
        ),
        (
            "GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_owned(),
            None,
            Some("Transfer-Encoding: chunked"),
            "hi",
        ),
        (
            "PUT /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            None,
            Some("transfer-encoding: chunked"),
            "",
        ),
        (
            format!(
                "POST /chat HTTP/1.1\r\n{chat}content-length: {}\r\n\r\n{json}",
                json.len()
            ),
            Some("content-length: 20"),
            None,
            json,
        ),
        (
            format!(
                "POST /chat HTTP/1.1\r\n{chat}transfer-encoding: chunked\r\n\r\n14\r\n{json}\r\n0\r\n\r\n"
            ),
            None,
            Some("transfer-encoding: chunked"),
            json,
        ),
    ] {
        let with_host = sent.replacen("\r\n", "\r\nhost: a\r\n", 1);
        let head = forwarded_head(&backend, &app, with_host.as_bytes()).await;
        assert_eq!(
            header_lines(&head, "content-length"),
            length.into_iter().collect::<Vec<_>>(),
            "{sent}"
        );
        assert_eq!(
            header_lines(&head, "transfer-encoding"),
            coding.into_iter().collect::<Vec<_>>(),
            "{sent}"
        );
        let seen = backend
            .requests()
            .pop()
            .expect("the request reached the backend");
        assert_eq!(seen.body, body.as_bytes(), "{sent}");
    }
}

#[tokio::test]
async fn trailers_of_a_response_pass_and_those_of_a_request_are_dropped() {
    let backend = Backend::start("trailers").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    client
        .send_raw(b"POST /a HTTP/1.1\r\nhost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\ntransfer-encoding: chunked\r\n\r\n\
                    2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!(
        answer.header("trailer"),
        Some("x-checksum"),
        "the trailers are announced"
    );
    assert_eq!(
        answer.trailers,
        [("x-checksum".to_owned(), "abc".to_owned())],
        "the trailers reach a client that accepts them"
    );
    let seen = &backend.requests()[0];
    assert!(
        seen.trailers.is_empty(),
        "request trailers are dropped, because some servers turn them into headers"
    );
    assert!(
        seen.headers
            .iter()
            .all(|(name, _)| !name.eq_ignore_ascii_case("trailer")),
        "the `trailer` header is dropped, too"
    );
    assert_eq!(seen.body, b"hi", "the body is whole");
    let te: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("te"))
        .collect();
    assert_eq!(
        te,
        [&("TE".to_owned(), "trailers".to_owned())],
        "the backend learns that the client accepts trailers"
    );
}

#[tokio::test]
async fn a_connection_header_removes_no_header_of_the_proxy() {
    let backend = Backend::start("plain:ok").await;
    let route = "[[routes]]\nname = \"a\"\npath = \"/a\"\nsession_id = [\"{header:x-session}\", \"none\"]\n";
    let app = App::in_memory(&backend, route);
    let head = forwarded_head(
        &backend,
        &app,
        b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nauthorization: secret\r\nx-session: s1\r\n\
          x-forwarded-for: 9.9.9.9\r\nx-seriatim-fence: 1\r\nx_seriatim_fence: 2\r\nx-request-id: r1\r\n\
          connection: x-seriatim-fence, host, content-length, x-forwarded-for, x-request-id\r\n\
          connection: authorization,, x-session , te\r\nte: gzip\r\nproxy-connection: x\r\n\r\nhi",
    )
    .await;
    for (name, expected) in [
        ("host", vec!["host: a"]),
        ("content-length", vec!["content-length: 2"]),
        ("x-forwarded-for", vec!["x-forwarded-for: 127.0.0.1"]),
        ("authorization", vec![]),
        ("x-session", vec![]),
        ("te", vec![]),
        ("connection", vec![]),
        ("proxy-connection", vec![]),
        ("x_seriatim_fence", vec![]),
    ] {
        assert_eq!(header_lines(&head, name), expected, "{name}: {head}");
    }
    let fence = header_lines(&head, "x-seriatim-fence");
    assert!(
        fence.len() == 1 && fence[0].len() > 20,
        "the fence is the proxy's: {fence:?}"
    );
    assert_eq!(
        header_lines(&head, "x-request-id").len(),
        1,
        "a new request id replaces the one that `connection` names"
    );
}

#[tokio::test]
async fn forwarded_headers_of_a_client_are_trusted_or_replaced() {
    let backend = Backend::start("plain:ok").await;
    let sent = b"GET /a HTTP/1.1\r\nhost: a\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\n\
                 x-forwarded-proto: https\r\nx-forwarded-host: public.example\r\nx-forwarded-port: 443\r\n\
                 forwarded: for=1.1.1.1\r\n\r\n";
    for (config, expected) in [
        (
            "",
            [
                "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1",
                "x-forwarded-proto: https",
                "x-forwarded-host: public.example",
                "x-forwarded-port: 443",
                "forwarded: for=1.1.1.1",
            ],
        ),
        (
            "forwarded = \"replace\"\n",
            [
                "x-forwarded-for: 127.0.0.1",
                "x-forwarded-proto: http",
                "x-forwarded-host: a",
                "",
                "",
            ],
        ),
    ] {
        let app = App::in_memory(&backend, &format!("{config}{CHAT}"));
        let head = forwarded_head(&backend, &app, sent).await;
        let names = [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "forwarded",
        ];
        let seen = names.map(|name| header_lines(&head, name).join("\n"));
        // A replaced line may keep the client's letter case.
        assert_eq!(
            seen.map(|line| line.to_lowercase()),
            expected.map(str::to_lowercase),
            "{config}"
        );
    }
}

#[tokio::test]
async fn each_of_several_requests_on_a_connection_keeps_its_own_letter_case() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let names = ["x-a", "X-A", "x-A", "x-a", "X-a"];
    let heads = names.map(|name| {
        format!("POST /a HTTP/1.1\r\nhost: a\r\n{name}: 1\r\ncontent-length: 3\r\n\r\nx-a")
    });
    client.send_raw(heads.concat().as_bytes()).await;
    for name in names {
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
    }
    let requests = backend.requests();
    assert_eq!(requests.len(), names.len(), "each request arrives once");
    for (request, name) in requests.iter().zip(names) {
        let head = String::from_utf8_lossy(&request.raw_head);
        let expected = [format!("{name}: 1")];
        assert_eq!(header_lines(&head, "x-a"), expected, "pipelined requests");
        assert_eq!(request.body, b"x-a", "the body passes as it is");
    }
}

// === responses ===

#[tokio::test]
async fn pipelined_responses_keep_their_own_letter_case() {
    let backend = Backend::start("plain:x-a: 1").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let names = ["X-A", "x-a", "X-a", "X-A"];
    for name in names {
        let request = Request::get("/a").header("x-test-answer", &format!("{name}: X-a"));
        client.send(&request).await;
    }
    for name in names {
        let answer = client.answer().await;
        let head = String::from_utf8_lossy(&answer.raw_head).into_owned();
        let expected = [format!("{name}: X-a")];
        assert_eq!(header_lines(&head, "x-a"), expected, "in {head}");
        assert!(
            answer.text().contains("x-a: 1"),
            "the body passes as it is: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_response_head_keeps_its_order_and_letter_case() {
    let canned = CannedBackend::start().await;
    let app = canned.app(CHAT);
    let response = b"HTTP/1.1 299 So La La\r\nServer: x\r\nSet-Cookie: a=1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nZ-Last: 1\r\n\
                 Content-Length: 2\r\nset-cookie: b=2\r\nA-First: \xe9\r\nx-seriatim-error: forged\r\nX-EMPTY:\r\n\r\nok";
    let answer = canned.passed(&app, &Request::get("/"), response).await;
    assert_eq!(
        answer
            .raw_head
            .escape_ascii()
            .to_string()
            .replace("\\r\\n", "\n"),
        "HTTP/1.1 299 So La La\nServer: x\nSet-Cookie: a=1\nset-cookie: b=2\nZ-Last: 1\nContent-Length: 2\n\
         A-First: \\xe9\nX-EMPTY: \n\n",
        "lines of one name are grouped, nothing is added, hop-by-hop headers are dropped"
    );
    assert_eq!(answer.body, b"ok", "the body is whole");
}

#[tokio::test]
async fn a_response_without_a_body_keeps_its_headers() {
    let canned = CannedBackend::start().await;
    let app = canned.app(CHAT);
    let (get, head) = (Request::get("/"), Request::new("HEAD", "/"));
    for (request, response, expected) in [
        (
            &head,
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nEtag: x\r\n\r\n",
            vec!["Content-Length: 1000", "Etag: x"],
        ),
        (
            &head,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nEtag: x\r\n\r\n",
            vec!["Etag: x"],
        ),
        (&head, "HTTP/1.1 200 OK\r\nEtag: x\r\n\r\n", vec!["Etag: x"]),
        (
            &get,
            "HTTP/1.1 204 No Content\r\nEtag: x\r\n\r\n",
            vec!["Etag: x"],
        ),
        (
            &get,
            "HTTP/1.1 304 Not Modified\r\nEtag: x\r\nCache-Control: y\r\n\r\n",
            vec!["Etag: x", "Cache-Control: y"],
        ),
        (
            &get,
            "HTTP/1.1 200 OK\r\nEtag: x\r\ncontent-length: 0\r\n\r\n",
            vec!["Etag: x", "content-length: 0"],
        ),
    ] {
        let answer = canned.passed(&app, request, response.as_bytes()).await;
        let seen = String::from_utf8_lossy(&answer.raw_head).into_owned();
        let seen: Vec<_> = seen
            .lines()
            .skip(1)
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(seen, expected, "{response}");
        assert!(
            answer.whole && answer.body.is_empty(),
            "the response has no body: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_response_with_conflicting_framing_is_a_502() {
    let canned = CannedBackend::start().await;
    let app = canned.app(CHAT);
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (head, body, expected) in [
        (
            format!("{chunked}Content-Length: 5\r\n"),
            "2\r\nok\r\n0\r\n\r\n",
            Some("ok"),
        ),
        (
            format!("Content-Length: 5\r\n{chunked}"),
            "2\r\nok\r\n0\r\n\r\n",
            Some("ok"),
        ),
        (
            "Content-Length: 2\r\nContent-Length: 2\r\n".into(),
            "ok",
            Some("ok"),
        ),
        ("Transfer-Encoding: identity\r\n".into(), "ok", Some("ok")),
        (String::new(), "ok", Some("ok")),
        (
            "Content-Length: 2\r\nContent-Length: 3\r\n".into(),
            "ok!",
            None,
        ),
        ("Content-Length: -2\r\n".into(), "ok", None),
        ("Content-Length: 2, 3\r\n".into(), "ok!", None),
        (
            "Transfer-Encoding: gzip, chunked\r\n".into(),
            "2\r\nok\r\n0\r\n\r\n",
            None,
        ),
        ("Transfer-Encoding: chunked, gzip\r\n".into(), "ok", None),
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
        let answer = canned
            .passed(&app, &Request::get("/"), response.as_bytes())
            .await;
        match expected {
            Some(body) => {
                assert!(answer.whole && answer.text() == body, "{head}: {answer:?}");
                let framings = ["content-length", "transfer-encoding"];
                let count: usize = framings
                    .iter()
                    .map(|name| answer.headers_named(name).len())
                    .sum();
                assert_eq!(
                    count, 1,
                    "the client gets one framing header: {head} {answer:?}"
                );
            }
            None => assert_eq!(answer.error(), (502, "upstream_malformed"), "{head}"),
        }
    }
    let old = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end";
    let answer = canned.passed(&app, &Request::get("/"), old).await;
    assert!(
        answer.whole && answer.text() == "to the end",
        "an HTTP/1.0 body ends with the connection: {answer:?}"
    );
    assert_eq!(
        answer.header("transfer-encoding"),
        Some("chunked"),
        "the client gets it chunked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_no_http_is_logged_as_such() {
    let canned = CannedBackend::start().await;
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("config.toml");
    let config = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"http://{}\"\n[store]\nurl = \"memory:\"\n{CHAT}",
        canned.addr
    );
    std::fs::write(&path, config).expect("the file can be written");
    let process = Process::start(&path);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
    for (response, reason) in [
        (
            "junk\r\n\r\n".into(),
            "sent a response that can't be read: ",
        ),
        (
            format!("{chunked}zz\r\n"),
            "the backend's response can't be read: ",
        ),
        (chunked.into(), "the backend broke off: "),
    ] {
        *canned.response.lock().expect("no panic") = response.into_bytes();
        let mut client = Client::connect(process.addr()).await;
        client.send(&Request::get("/")).await;
        let _ = client.try_answer().await;
        wait_for(|| process.has_logged(reason), reason).await;
        assert_eq!(process.times_logged(reason), 1, "only then: {reason}");
    }
}

#[tokio::test]
async fn a_response_may_have_up_to_255_headers() {
    let canned = CannedBackend::start().await;
    let app = canned.app(CHAT);
    for (count, passes) in [
        (99, true),
        (200, true),
        (255, true),
        (300, false),
        (20_000, false),
    ] {
        let header_lines: String = (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let response = format!("HTTP/1.1 200 OK\r\n{header_lines}Content-Length: 2\r\n\r\nok");
        let answer = canned
            .passed(&app, &Request::get("/"), response.as_bytes())
            .await;
        match passes {
            true => assert_eq!(
                (answer.status, answer.headers.len()),
                (200, count + 1),
                "all headers reach the client"
            ),
            false => assert_eq!(
                answer.error(),
                (502, "upstream_malformed"),
                "{count} headers are too many"
            ),
        }
    }
}

#[tokio::test]
async fn interim_responses_pass_before_the_response() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!(
        "http://{}",
        listener.local_addr().expect("the listener's address")
    );
    let app = App::start(&upstream, "memory:", "", CHAT);
    let mut client = Client::connect(app.addr()).await;
    client.send(&Request::get("/")).await;
    let (mut backend, _) = within("the proxy to connect", listener.accept())
        .await
        .expect("one");
    for _ in 0..2 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(backend.read_u8().await.expect("a head"));
        }
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                        HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-seriatim-x: 1\r\nlink: </b>\r\n\r\n";
        backend
            .write_all(interim)
            .await
            .expect("the backend can write");
        let passed = b"HTTP/1.1 102 Processing\r\n\r\n\
                       HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n";
        let seen = client.raw(passed.len()).await;
        assert_eq!(
            seen.escape_ascii().to_string(),
            passed.escape_ascii().to_string(),
            "each interim response passes at once and unchanged"
        );
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        backend
            .write_all(answer)
            .await
            .expect("the backend can write");
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "ok"),
            "the response follows them"
        );
        assert_eq!(
            answer.header("link"),
            None,
            "the interim headers are not in the response"
        );
        client.send(&Request::get("/")).await;
    }
}

#[tokio::test]
async fn many_interim_responses_do_not_hide_the_response() {
    let canned = CannedBackend::start().await;
    let app = canned.app(CHAT);
    let many = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(3000);
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        &many,
    ] {
        let response = format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let answer = canned
            .passed(&app, &Request::get("/"), response.as_bytes())
            .await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "ok"),
            "the response follows, however many interim responses there are"
        );
        assert!(
            answer.interim.iter().all(|status| *status == 103),
            "only the proxy itself sends 100"
        );
    }
    // A client of HTTP/1.0 gets no interim responses.
    let mut old = Client::connect(app.addr()).await;
    old.send_raw(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    let answer = old.answer().await;
    assert!(
        answer.interim.is_empty() && answer.text() == "ok",
        "the client gets the response: {answer:?}"
    );
}

#[tokio::test]
async fn the_proxy_itself_answers_expect_100_continue() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/a")
        .header("expect", "100-continue")
        .header("content-length", "2");
    client.send_head(&request).await;
    // The client waits for the 100 before it sends its body.
    let mut interim = Vec::new();
    while !interim.ends_with(b"\r\n\r\n") {
        interim.extend_from_slice(&client.raw(1).await);
    }
    assert_eq!(
        interim, b"HTTP/1.1 100 Continue\r\n\r\n",
        "the proxy sends 100"
    );
    client.send_raw(b"hi").await;
    assert_eq!(client.answer().await.text(), "ok", "the response follows");
    let seen = &backend.requests()[0];
    assert_eq!(seen.body, b"hi", "the body is whole");
    assert!(
        seen.headers.iter().all(|(name, _)| name != "expect"),
        "the `expect` header is not forwarded"
    );
}

// === both directions at once ===

#[tokio::test]
async fn a_backend_may_respond_before_it_has_the_whole_request() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let route = "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";
    let app = App::on_redis(&backend, &redis, &format!("{route}{CHAT}"));
    for number in 0..5 {
        let mut client = Client::connect(app.addr()).await;
        let request = Request::post("/up")
            .header("x-test-session", "s1")
            .header("x-test-script", "early:no thanks")
            .header("content-length", "1000000");
        client.send_head(&request).await;
        client.send_raw(&[b'x'; 1000]).await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "no thanks"),
            "request {number}"
        );
        wait_until_free(&app, &backend, &redis, "s1", "an early answer").await;
    }
}

#[tokio::test]
async fn an_upload_in_progress_does_not_run_into_response_head() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(
        &backend,
        &format!("[timeouts]\nresponse_head = \"600ms\"\n{CHAT}"),
    );
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/up").header("content-length", "20");
    client.send_head(&request).await;
    for _ in 0..20 {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        client.send_raw(b"x").await;
    }
    assert_eq!(
        client.answer().await.status,
        200,
        "each byte restarts the timeout"
    );
    let hanging = client
        .call(&Request::get("/x").header("x-test-script", "hang"))
        .await;
    assert_eq!(
        hanging.error(),
        (504, "upstream_timeout"),
        "the timeout applies once the backend has the whole request"
    );
}

#[tokio::test]
async fn both_bodies_stream_at_the_same_time() {
    let backend = Backend::start("plain:ok").await;
    let route =
        "[[routes]]\nname = \"up\"\npath = \"/up\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let app = App::in_memory(&backend, route);
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/up")
        .header("x-test-session", "s1")
        .header("x-test-script", "early:first")
        .header("transfer-encoding", "chunked");
    client.send_head(&request).await;
    client.read_until("first").await;
    assert_eq!(
        backend.requests()[0].body,
        b"",
        "the response came before the body"
    );
    client.send_raw(b"5\r\nlater\r\n0\r\n\r\n").await;
    assert!(
        client.answer().await.whole,
        "the request body is not cut off"
    );
}
