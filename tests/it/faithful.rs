//! Nothing added, lost or re-ordered: what one side sends is what the other gets, hop-by-hop headers
//! and those that the contract names aside.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::app::{App, CHAT, becomes_free};
use crate::support::backend::Backend;
use crate::support::client::{Answer, Client, Request};
use crate::support::redis::Redis;
use crate::support::within;

/// A backend that says the same to everybody, to the byte, and closes.
struct Canned {
    addr: SocketAddr,
    says: Arc<Mutex<Vec<u8>>>,
    accepting: JoinHandle<()>,
}

// === impl Canned ===

impl Canned {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address");
        let says = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&says);
        let accepting = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.expect("it accepts");
                let said = Arc::clone(&said);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match socket.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let said = said.lock().expect("no panic").clone();
                    let _ = socket.write_all(&said).await;
                    let _ = socket.shutdown().await;
                    let _ = socket.read(&mut [0; 1]).await;
                });
            }
        });
        Self {
            addr,
            says,
            accepting,
        }
    }

    /// What the client gets when the backend says this.
    async fn passed(&self, app: &App, request: &Request, says: &[u8]) -> Answer {
        *self.says.lock().expect("no panic") = says.to_vec();
        Client::connect(app.addr()).await.call(request).await
    }

    fn app(&self, config: &str) -> App {
        App::start(&format!("http://{}", self.addr), "memory:", "", config)
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// What the backend got of a request that says this to the byte.
async fn arrived(backend: &Backend, app: &App, bytes: &[u8]) -> String {
    let before = backend.requests().len();
    let mut client = Client::connect(app.addr()).await;
    client.send_raw(bytes).await;
    let answer = client.answer().await;
    let requests = backend.requests();
    assert_eq!(
        requests.len(),
        before + 1,
        "it arrives: {} {answer:?}",
        bytes.escape_ascii()
    );
    requests[before]
        .raw_head
        .escape_ascii()
        .to_string()
        .replace("\\r\\n", "\n")
}

fn lines(head: &str, name: &str) -> Vec<String> {
    let of_it = |line: &&str| {
        line.split_once(':')
            .is_some_and(|(known, _)| known.eq_ignore_ascii_case(name))
    };
    head.lines().filter(of_it).map(str::to_owned).collect()
}

// === requests ===

#[tokio::test]
async fn the_head_of_a_request_arrives_in_its_order_and_its_letters() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let sent = b"GET /a?b HTTP/1.1\r\nuser-agent: x\r\nHOST: agent.example\r\nConnection: keep-alive, X-Hop\r\n\
                 X-Hop: 1\r\nB-second: 1\r\nKeep-Alive: timeout=5\r\na-First: 2\r\nACCEPT: */*\r\nCookie: a=1; b=2\r\n\
                 traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nTraceState: x=1,y=2\r\n\
                 X-Latin: \xe9\r\nX-Empty:\r\nX-Request-Id: r-1\r\nZ: 1\r\nz: 2\r\n\r\n";
    let expected = "GET /a?b HTTP/1.1\nuser-agent: x\nHOST: agent.example\nB-second: 1\na-First: 2\nACCEPT: */*\n\
                    Cookie: a=1; b=2\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n\
                    TraceState: x=1,y=2\nX-Latin: \\xe9\nX-Empty:\nX-Request-Id: r-1\nZ: 1\nz: 2\n\
                    x-forwarded-for: 127.0.0.1\nx-forwarded-proto: http\nx-forwarded-host: agent.example\n\n";
    assert_eq!(
        arrived(&backend, &app, sent).await,
        expected,
        "and what the contract adds"
    );
}

#[tokio::test]
async fn a_target_arrives_byte_for_byte() {
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
        arrived(&backend, &app, sent.as_bytes()).await;
        let seen = backend.requests().pop().expect("it arrived");
        assert_eq!(seen.target, target, "as it was sent");
    }
    let head = arrived(
        &backend,
        &app,
        b"GET http://other.example:81/x?y HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert!(
        head.starts_with("GET /x?y HTTP/1.1\nhost: other.example:81\n"),
        "an absolute one names its host (RFC 9112 3.2.2): {head}"
    );
    let head = arrived(&backend, &app, b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(
        head.starts_with("OPTIONS * HTTP/1.1\n"),
        "one for the whole server, too: {head}"
    );
}

#[tokio::test]
async fn a_body_arrives_in_its_framing() {
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
        let head = arrived(&backend, &app, with_host.as_bytes()).await;
        assert_eq!(
            lines(&head, "content-length"),
            length.into_iter().collect::<Vec<_>>(),
            "{sent}"
        );
        assert_eq!(
            lines(&head, "transfer-encoding"),
            coding.into_iter().collect::<Vec<_>>(),
            "{sent}"
        );
        let seen = backend.requests().pop().expect("it arrived");
        assert_eq!(seen.body, body.as_bytes(), "{sent}");
    }
}

#[tokio::test]
async fn an_answers_trailers_pass_and_a_requests_are_dropped() {
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
        "they are announced"
    );
    assert_eq!(
        answer.trailers,
        [("x-checksum".to_owned(), "abc".to_owned())],
        "and passed to a client that takes them"
    );
    let seen = &backend.requests()[0];
    assert!(
        seen.trailers.is_empty(),
        "a request's don't: some servers show them to the application as headers"
    );
    assert!(
        seen.headers
            .iter()
            .all(|(name, _)| !name.eq_ignore_ascii_case("trailer")),
        "and the backend isn't told of any"
    );
    assert_eq!(seen.body, b"hi", "its body is whole");
    let te: Vec<_> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("te"))
        .collect();
    assert_eq!(
        te,
        [&("TE".to_owned(), "trailers".to_owned())],
        "and the backend knows that it may send some"
    );
}

#[tokio::test]
async fn a_connection_header_takes_away_nothing_that_the_proxy_says() {
    let backend = Backend::start("plain:ok").await;
    let route = "[[routes]]\nname = \"a\"\npath = \"/a\"\nsession_id = [\"{header:x-session}\", \"none\"]\n";
    let app = App::in_memory(&backend, route);
    let head = arrived(
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
        assert_eq!(lines(&head, name), expected, "{name}: {head}");
    }
    let fence = lines(&head, "x-seriatim-fence");
    assert!(
        fence.len() == 1 && fence[0].len() > 20,
        "the proxy's own: {fence:?}"
    );
    assert_eq!(
        lines(&head, "x-request-id").len(),
        1,
        "a new one, where the client's doesn't pass"
    );
}

#[tokio::test]
async fn what_a_client_says_of_its_way_is_trusted_or_replaced() {
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
        let head = arrived(&backend, &app, sent).await;
        let names = [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-port",
            "forwarded",
        ];
        let seen = names.map(|name| lines(&head, name).join("\n"));
        // A replaced line may be spelt as the client spelt it.
        assert_eq!(
            seen.map(|line| line.to_lowercase()),
            expected.map(str::to_lowercase),
            "{config}"
        );
    }
}

// === answers ===

#[tokio::test]
async fn the_head_of_an_answer_arrives_in_its_order_and_its_letters() {
    let canned = Canned::start().await;
    let app = canned.app(CHAT);
    let says = b"HTTP/1.1 299 So La La\r\nServer: x\r\nSet-Cookie: a=1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nZ-Last: 1\r\n\
                 Content-Length: 2\r\nset-cookie: b=2\r\nA-First: \xe9\r\nx-seriatim-error: forged\r\nX-EMPTY:\r\n\r\nok";
    let answer = canned.passed(&app, &Request::get("/"), says).await;
    assert_eq!(
        answer
            .raw_head
            .escape_ascii()
            .to_string()
            .replace("\\r\\n", "\n"),
        "HTTP/1.1 299 So La La\nServer: x\nSet-Cookie: a=1\nset-cookie: b=2\nZ-Last: 1\nContent-Length: 2\n\
         A-First: \\xe9\nX-EMPTY: \n\n",
        "lines of one name together, nothing added, and nothing of a hop"
    );
    assert_eq!(answer.body, b"ok", "with its body");
}

#[tokio::test]
async fn an_answer_without_a_body_says_of_it_what_the_backend_says() {
    let canned = Canned::start().await;
    let app = canned.app(CHAT);
    let (get, head) = (Request::get("/"), Request::new("HEAD", "/"));
    for (request, says, expected) in [
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
        let answer = canned.passed(&app, request, says.as_bytes()).await;
        let seen = String::from_utf8_lossy(&answer.raw_head).into_owned();
        let seen: Vec<_> = seen
            .lines()
            .skip(1)
            .filter(|line| !line.is_empty())
            .collect();
        assert_eq!(seen, expected, "{says}");
        assert!(
            answer.whole && answer.body.is_empty(),
            "and no body: {answer:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_has_one_framing_or_is_none() {
    let canned = Canned::start().await;
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
        let says = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
        let answer = canned
            .passed(&app, &Request::get("/"), says.as_bytes())
            .await;
        match expected {
            Some(body) => {
                assert!(answer.whole && answer.text() == body, "{head}: {answer:?}");
                let framings = ["content-length", "transfer-encoding"];
                let count: usize = framings
                    .iter()
                    .map(|name| answer.headers_named(name).len())
                    .sum();
                assert_eq!(count, 1, "one framing for the client: {head} {answer:?}");
            }
            None => assert_eq!(answer.error(), (502, "upstream_unreachable"), "{head}"),
        }
    }
    let old = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end";
    let answer = canned.passed(&app, &Request::get("/"), old).await;
    assert!(
        answer.whole && answer.text() == "to the end",
        "until it closes: {answer:?}"
    );
    assert_eq!(
        answer.header("transfer-encoding"),
        Some("chunked"),
        "which the client learns otherwise"
    );
}

#[tokio::test]
async fn an_answer_may_have_many_headers_but_not_without_end() {
    let canned = Canned::start().await;
    let app = canned.app(CHAT);
    for (count, passes) in [
        (99, true),
        (200, true),
        (255, true),
        (300, false),
        (20_000, false),
    ] {
        let lines: String = (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let says = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok");
        let answer = canned
            .passed(&app, &Request::get("/"), says.as_bytes())
            .await;
        match passes {
            true => assert_eq!(
                (answer.status, answer.headers.len()),
                (200, count + 1),
                "all of them pass"
            ),
            false => assert_eq!(
                answer.error(),
                (502, "upstream_unreachable"),
                "{count} are too many"
            ),
        }
    }
}

#[tokio::test]
async fn interim_answers_pass_before_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("its address"));
    let app = App::start(&upstream, "memory:", "", CHAT);
    let mut client = Client::connect(app.addr()).await;
    client.send(&Request::get("/")).await;
    let (mut backend, _) = within("a connection", listener.accept())
        .await
        .expect("one");
    for _ in 0..2 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(backend.read_u8().await.expect("a head"));
        }
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
                        HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nx-seriatim-x: 1\r\nlink: </b>\r\n\r\n";
        backend.write_all(interim).await.expect("it can write");
        let passed = b"HTTP/1.1 102 Processing\r\n\r\n\
                       HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nlink: </b>\r\n\r\n";
        let seen = client.raw(passed.len()).await;
        assert_eq!(
            seen.escape_ascii().to_string(),
            passed.escape_ascii().to_string(),
            "at once, each as it was"
        );
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        backend.write_all(answer).await.expect("it can write");
        let answer = client.answer().await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "ok"),
            "the answer is the one behind them"
        );
        assert_eq!(answer.header("link"), None, "and not mixed with them");
        client.send(&Request::get("/")).await;
    }
}

#[tokio::test]
async fn interim_answers_do_not_get_in_the_way() {
    let canned = Canned::start().await;
    let app = canned.app(CHAT);
    let many = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(3000);
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        &many,
    ] {
        let says = format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let answer = canned
            .passed(&app, &Request::get("/"), says.as_bytes())
            .await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "ok"),
            "however many, the answer is the one behind them"
        );
        assert!(
            answer.interim.iter().all(|status| *status == 103),
            "100 is the proxy's own to say"
        );
    }
    // One that knows of no interim answers gets none.
    let mut old = Client::connect(app.addr()).await;
    old.send_raw(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    let answer = old.answer().await;
    assert!(
        answer.interim.is_empty() && answer.text() == "ok",
        "but its answer: {answer:?}"
    );
}

#[tokio::test]
async fn the_proxy_itself_says_that_a_client_may_go_on() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let mut client = Client::connect(app.addr()).await;
    let request = Request::post("/a")
        .header("expect", "100-continue")
        .header("content-length", "2");
    client.send_head(&request).await;
    // Not before it is told to does this client send its body: the answer behind shows that it was.
    let mut told = Vec::new();
    while !told.ends_with(b"\r\n\r\n") {
        told.extend_from_slice(&client.raw(1).await);
    }
    assert_eq!(
        told, b"HTTP/1.1 100 Continue\r\n\r\n",
        "it is told to go on"
    );
    client.send_raw(b"hi").await;
    assert_eq!(client.answer().await.text(), "ok", "and then answered");
    let seen = &backend.requests()[0];
    assert_eq!(seen.body, b"hi", "with its body");
    assert!(
        seen.headers.iter().all(|(name, _)| name != "expect"),
        "which the backend isn't asked again"
    );
}

// === at the same time ===

#[tokio::test]
async fn a_backend_may_answer_before_it_has_the_request() {
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
        becomes_free(&app, &backend, &redis, "s1", "an early answer").await;
    }
}

#[tokio::test]
async fn an_upload_that_moves_may_take_longer_than_the_answer_may() {
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
        "each byte begins the time anew"
    );
    let hanging = client
        .call(&Request::get("/x").header("x-test-script", "hang"))
        .await;
    assert_eq!(
        hanging.error(),
        (504, "upstream_timeout"),
        "as it is for a backend that has it all"
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
    assert_eq!(backend.requests()[0].body, b"", "the answer came first");
    client.send_raw(b"5\r\nlater\r\n0\r\n\r\n").await;
    assert!(
        client.answer().await.whole,
        "and the request's body isn't cut off"
    );
}
