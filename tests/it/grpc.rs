//! gRPC over HTTP/2 without TLS: trailers, and streams in both directions at once.

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::app::{App, wait_for_locks};
use crate::support::backend::Backend;
use crate::support::h2::{Fed, Feed, Server, body, whole};
use crate::support::within;

const ROUTE: &str = "[[routes]]\nname = \"rpc\"\npath = \"/agent.Agent/{method}\"\n\
                     session_id = [\"{header:x-session}\"]\n";

/// An HTTP/2 client.
struct Client {
    sender: SendRequest<Fed>,
    app: String,
}

// === impl Client ===

impl Client {
    async fn connect(app: &App) -> Self {
        let socket = TcpStream::connect(app.addr()).await.expect("a connection");
        socket.set_nodelay(true).expect("TCP_NODELAY");
        let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(socket))
            .await
            .expect("HTTP/2");
        tokio::spawn(driver);
        let app = format!("http://{}", app.addr());
        Self { sender, app }
    }

    async fn call(&mut self, method: &str, session: &str, body: Fed) -> Response<Incoming> {
        let request = Request::post(format!("{}/agent.Agent/{method}", self.app))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "10S")
            .header("x-session", session);
        self.send(request.body(body).expect("a request")).await
    }

    async fn send(&mut self, request: Request<Fed>) -> Response<Incoming> {
        let answer = within("a response", self.sender.send_request(request)).await;
        answer.expect("a response")
    }
}

/// A body without data.
fn nothing() -> Fed {
    body().1
}

fn status(code: &str) -> HeaderMap {
    let code = HeaderValue::from_str(code).expect("a number");
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), code)])
}

/// The next data frame of a body, as text.
async fn next(body: &mut Incoming) -> Option<String> {
    let frame = within("a frame of the body", body.frame()).await?;
    let data = frame.expect("the body is not aborted").into_data().ok()?;
    Some(String::from_utf8_lossy(&data).into_owned())
}

/// The rest of a body: its data, and its trailers.
async fn rest(answer: Response<Incoming>) -> (String, Option<HeaderMap>) {
    let whole = within("the end of the response", answer.into_body().collect()).await;
    let whole = whole.expect("the response is complete");
    let trailers = whole.trailers().cloned();
    let text = String::from_utf8_lossy(&whole.to_bytes()).into_owned();
    (text, trailers)
}

/// Sends each message back, and ends with a status when the client has ended.
async fn echo(request: Request<Incoming>) -> Response<Fed> {
    let (feed, fed) = body();
    tokio::spawn(async move {
        let mut messages = request.into_body();
        while let Some(Ok(frame)) = messages.frame().await {
            if let Ok(data) = frame.into_data() {
                feed.data(data).await;
            }
        }
        feed.trailers(status("0")).await;
    });
    let mut answer = Response::new(fed);
    let kind = HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert("content-type", kind);
    answer
}

#[tokio::test]
async fn a_call_passes_with_its_trailers_and_no_added_header() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |request| {
        let (head, body) = request.into_parts();
        heads
            .send((head.uri.to_string(), head.headers.clone()))
            .expect("the test receives it");
        echo(Request::from_parts(head, body))
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    for (sent, expected) in [(whole("message"), "message"), (nothing(), "")] {
        let answer = client.call("Chat", "s1", sent).await;
        assert_eq!(answer.status(), 200, "the call gets a response");
        let names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
        assert!(
            names
                .iter()
                .all(|name| ["content-type", "date"].contains(name)),
            "the response has only the backend's headers: {names:?}"
        );
        let (text, trailers) = rest(answer).await;
        assert_eq!(text, expected, "the messages pass");
        assert_eq!(trailers, Some(status("0")), "the status trailer passes");
        let (uri, headers) = seen.recv().await.expect("the call reached the backend");
        assert_eq!(
            uri,
            format!("{}/agent.Agent/Chat", client.app),
            "the authority and path are unchanged"
        );
        let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-type",
                "grpc-timeout",
                "te",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto",
                "x-request-id",
                "x-seriatim-fence",
                "x-seriatim-turn",
                "x-session"
            ],
            "the backend gets no content-length, host or connection header"
        );
        assert_eq!(
            headers["te"], "trailers",
            "the backend learns that trailers are accepted"
        );
    }
}

#[tokio::test]
async fn a_call_that_fails_at_once_gets_only_a_response_head() {
    let server = Server::start(|_| async {
        let (feed, fed) = body();
        drop(feed);
        let mut answer = Response::new(fed);
        answer.headers_mut().extend(status("7"));
        answer
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    for number in 0..20 {
        let answer = client.call("Chat", "s1", whole("message")).await;
        assert_eq!(
            answer.headers()["grpc-status"],
            "7",
            "call {number} gets its status"
        );
        assert!(
            hyper::body::Body::is_end_stream(answer.body()),
            "the stream ends with the head"
        );
        assert!(
            !answer.headers().contains_key("content-length"),
            "the response has no content-length"
        );
    }
}

#[tokio::test]
async fn messages_pass_in_both_directions_on_one_call() {
    let server = Server::start(echo).await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    let (feed, sent) = body();
    let answer = client.call("Talk", "s1", sent).await;
    let (mut answer, mut others) = (answer.into_body(), Client::connect(&app).await);
    for number in 0..50 {
        let message = format!("message {number}");
        assert!(feed.data(message.clone()).await, "the call is open");
        assert_eq!(
            next(&mut answer).await,
            Some(message),
            "each message is answered before the next one is sent"
        );
    }
    let busy = others.call("Talk", "s1", whole("x")).await;
    assert_eq!(busy.status(), 429, "a call is a turn");
    assert_eq!(
        busy.headers()["x-seriatim-error"],
        "session_busy",
        "the session is busy"
    );
    let other = others.call("Talk", "s2", whole("x")).await;
    assert_eq!(rest(other).await.0, "x", "another session is free");
    drop(feed);
    let last = within("the end of the call", answer.frame())
        .await
        .expect("trailers");
    let trailers = last.expect("the response is complete").into_trailers();
    assert_eq!(
        trailers.ok(),
        Some(status("0")),
        "the call ends with the backend's status"
    );
    let next = others.call("Talk", "s1", whole("y")).await;
    assert_eq!(
        rest(next).await.0,
        "y",
        "the session is free when the client has seen the end"
    );
}

#[tokio::test]
async fn a_backend_may_end_a_call_before_the_client_does() {
    let server = Server::start(|request: Request<Incoming>| async {
        let (feed, fed) = body();
        tokio::spawn(async move {
            let mut messages = request.into_body();
            let _ = messages.frame().await;
            feed.data("enough").await;
            feed.trailers(status("8")).await;
        });
        Response::new(fed)
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    for number in 0..10 {
        let (feed, sent) = body();
        feed.data("one of many").await;
        let answer = client.call("Talk", "s1", sent).await;
        let (text, trailers) = rest(answer).await;
        assert_eq!(
            (text.as_str(), trailers),
            ("enough", Some(status("8"))),
            "call {number} gets the backend's end"
        );
        drop(feed);
    }
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_on_the_backend() {
    let (feeds, mut given) = tokio::sync::mpsc::unbounded_channel::<Feed>();
    let server = Server::start(move |_| {
        let feeds = feeds.clone();
        async move {
            let (feed, fed) = body();
            feed.data("first").await;
            feeds.send(feed).expect("the test receives it");
            Response::new(fed)
        }
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    let mut cancelled = client.call("Talk", "s1", whole("x")).await.into_body();
    let mut other_call = client.call("Talk", "s2", whole("x")).await.into_body();
    assert_eq!(
        next(&mut cancelled).await.as_deref(),
        Some("first"),
        "the first call streams"
    );
    assert_eq!(
        next(&mut other_call).await.as_deref(),
        Some("first"),
        "the second call streams"
    );
    let (cancelled_feed, other_feed) = (given.recv().await, given.recv().await);
    let (cancelled_feed, other_feed) = (
        cancelled_feed.expect("the call's feed"),
        other_feed.expect("the call's feed"),
    );
    drop(cancelled);
    cancelled_feed.unwanted().await;
    assert!(
        other_feed.data("second").await,
        "another call on the same connection is not disturbed"
    );
    assert_eq!(
        next(&mut other_call).await.as_deref(),
        Some("second"),
        "it streams in both directions"
    );
    wait_for_locks(&app, 1, "one of two calls was cancelled").await;
    let (feed, sent) = body();
    drop(feed);
    let next_call = Client::connect(&app).await.call("Talk", "s1", sent).await;
    assert_eq!(next_call.status(), 200, "the session is free");
}

#[tokio::test]
async fn an_aborted_response_resets_the_stream() {
    let (feeds, mut given) = tokio::sync::mpsc::unbounded_channel::<Feed>();
    let server = Server::start(move |_| {
        let (feed, fed) = body();
        feeds.send(feed).expect("the test receives it");
        async { Response::new(fed) }
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    let mut answer = client.call("Talk", "s1", whole("x")).await.into_body();
    let feed = given.recv().await.expect("the call's feed");
    feed.data("half").await;
    assert_eq!(
        next(&mut answer).await.as_deref(),
        Some("half"),
        "the response streams"
    );
    feed.abort().await;
    let end = within("the end of the stream", answer.frame()).await;
    assert!(
        matches!(end, Some(Err(_))),
        "an aborted response never looks complete: {end:?}"
    );
}

#[tokio::test]
async fn an_http_2_client_is_served_by_an_http_1_backend() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, ROUTE);
    let mut client = Client::connect(&app).await;
    let ask = |method: &str, body: Fed| {
        let request = Request::builder().method(method);
        let request = request
            .uri(format!("{}/x?y", client.app))
            .header("x-test-session", "-");
        request.body(body).expect("a request")
    };
    let requests = [
        (ask("GET", nothing()), None, ""),
        (ask("POST", nothing()), None, ""),
        (ask("POST", whole("hi")), Some("chunked"), "hi"),
        (ask("GET", whole("hi")), Some("chunked"), "hi"),
    ];
    for (number, (request, coding, body)) in requests.into_iter().enumerate() {
        assert_eq!(
            rest(client.send(request).await).await.0,
            "ok",
            "request {number}"
        );
        let seen = &backend.requests()[number];
        let header = |name: &str| {
            let mut named = seen.headers.iter().filter(|(known, _)| known == name);
            named.next().map(|(_, value)| value.as_str())
        };
        assert_eq!(seen.target, "/x?y", "request {number}");
        assert_eq!(
            header("host"),
            Some(&client.app[7..]),
            "the authority becomes the host"
        );
        assert_eq!(header("transfer-encoding"), coding, "request {number}");
        assert_eq!(header("content-length"), None, "request {number}");
        assert_eq!(seen.body, body.as_bytes(), "the body is whole");
    }
}

#[tokio::test]
async fn request_trailers_pass_only_in_grpc() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let server = Server::start(move |request: Request<Incoming>| {
        let heads = heads.clone();
        async move {
            let announced = request.headers().contains_key("trailer");
            let body = request
                .into_body()
                .collect()
                .await
                .expect("the request is complete");
            let trailers = body.trailers().cloned();
            heads
                .send((announced, trailers))
                .expect("the test receives it");
            Response::new(nothing())
        }
    })
    .await;
    let app = App::start(&server.url(), "memory:", "", ROUTE);
    let mut client = Client::connect(&app).await;
    let passes = HeaderMap::from_iter([(
        http::HeaderName::from_static("x-sum"),
        HeaderValue::from_static("1"),
    )]);
    for (kind, expected) in [
        ("application/grpc", Some(passes.clone())),
        ("Application/gRPC+proto", Some(passes)),
        ("application/json", None),
        ("application/gr", None),
    ] {
        let (feed, sent) = body();
        let request = Request::post(format!("{}/agent.Agent/Chat", client.app))
            .header("content-type", kind)
            .header("trailer", "x-sum");
        assert!(feed.data("message").await, "the call is open");
        let mut trailers = HeaderMap::new();
        // A name that a route reads, or that says who the client is, is not allowed as a trailer.
        for name in [
            "x-sum",
            "x-session",
            "x_session",
            "x-forwarded-for",
            "x_real_ip",
        ] {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        feed.trailers(trailers).await;
        drop(feed);
        client.send(request.body(sent).expect("a request")).await;
        let (announced, trailers) = seen.recv().await.expect("the call reached the backend");
        assert_eq!(trailers, expected, "{kind}");
        assert_eq!(
            announced,
            expected.is_some(),
            "{kind}: the `trailer` header passes with the trailers"
        );
    }
}
