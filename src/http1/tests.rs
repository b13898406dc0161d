//! Connections whose clients and handlers do each step when a test says so.

use std::future::pending;
use std::time::Duration;

use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::drain::{self, DrainWatch};
use crate::listen::{self, ListenEndpoint, Listener, ServeSettings};
use crate::service::{DEFAULT_IDLE, FnService, HeadBudget};

/// A client's connection, and the requests that hyper hands out.
struct Connection {
    client: DuplexStream,
    requests: mpsc::UnboundedReceiver<Received>,
    serving: JoinHandle<bool>,
}

/// A request that waits for its response.
struct Received {
    body: ClientBody,
    response: oneshot::Sender<StatusCode>,
}

/// The end of a head whose body has no length.
const CHUNKED: &str = "transfer-encoding: chunked\r\n\r\n";

// === impl Connection ===

impl Connection {
    fn new() -> Self {
        let (client, near) = duplex(1 << 20);
        let (received, requests) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let handler = FnService(move |_: ClientConnection, request: Request<ClientBody>| {
                let (response, status) = oneshot::channel();
                let body = request.into_body();
                let _ = received.send(Received { body, response });
                async move {
                    let mut response = Response::new(Full::new(Bytes::new()));
                    *response.status_mut() = status.await.expect("the test responds");
                    response.headers_mut().insert(CONTENT_LENGTH, 0.into());
                    response
                }
            });
            let (heads, (_never, drain)) = (HeadBudget::default(), drain::channel());
            let connection = served(handler, &heads, drain);
            serve(near, connection, pin!(pending()), || ()).await
        });
        Self {
            client,
            requests,
            serving,
        }
    }

    async fn send(&mut self, bytes: &str) {
        let sent = self.client.write_all(bytes.as_bytes()).await;
        sent.expect("the connection is open");
    }

    async fn request(&mut self) -> Received {
        let request = self.requests.recv().await;
        request.expect("hyper hands out a request")
    }

    /// Reads the head of a response without a body, and says whether it announces a close.
    async fn says_close(&mut self) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.client.read_u8().await.expect("a response"));
        }
        let head = String::from_utf8(head).expect("text");
        head.contains("connection: close")
    }

    /// Lets the handler refuse the next request without reading its body.
    async fn refuse(&mut self) {
        let Received { body, response } = self.request().await;
        drop(body);
        response.send(StatusCode::NOT_FOUND).expect("it waits");
    }
}

/// A connection whose requests `handler` answers.
fn served<H>(handler: H, heads: &HeadBudget, drain: DrainWatch) -> ServedConnection<'_, H> {
    ServedConnection {
        handler,
        client: ClientConnection {
            ip: None,
            ip_value: None,
            scheme: Scheme::HTTP,
            bounds: Bounds::default(),
            link: None,
        },
        request_head: Duration::from_secs(60),
        idle: DEFAULT_IDLE,
        unreachable: Duration::ZERO,
        heads,
        first_head_due: Instant::now() + Duration::from_secs(60),
        drain,
        early: BytesMut::new(),
    }
}

/// The start of a request, and behind it the `rest` of its head and what follows.
fn post(rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{rest}")
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_late_changes_nothing_for_the_next_request() {
    crate::time_limit::limit_this_test();
    let firsts = [
        ("content-length: 3\r\n\r\n", "abc"),
        (CHUNKED, "3\r\nabc\r\n0\r\n\r\n"),
    ];
    let endless = format!("{CHUNKED}5\r\nhello\r\n");
    let seconds = [
        ("content-length: 100000\r\n\r\n", false),
        ("content-length: 3000000\r\n\r\n", true),
        (&*endless, true),
    ];
    let all = firsts.iter().flat_map(|first| {
        let seconds = seconds.iter().map(move |second| (first, second));
        seconds.flat_map(|(first, second)| [true, false].map(|sooner| (first, second, sooner)))
    });
    for ((head, body), (next, closes), sooner) in all {
        let case = format!("{head}{body} before {next}, dropped sooner: {sooner}");
        let mut connection = Connection::new();
        connection.send(&post(head)).await;
        let mut first = connection.request().await;
        first.response.send(StatusCode::OK).expect("it waits");
        assert!(!connection.says_close().await, "it may be read: {case}");
        connection.send(&format!("{body}{}", post(next))).await;
        first.body.frame().await.expect("the data").expect("valid");
        let second = connection.request().await;
        match sooner {
            true => drop((first.body, second.body)),
            false => drop((second.body, first.body)),
        }
        second
            .response
            .send(StatusCode::TOO_MANY_REQUESTS)
            .expect("it waits");
        assert_eq!(connection.says_close().await, *closes, "{case}");
        if !closes {
            connection.send(&"x".repeat(100_000)).await;
            let third = post("content-length: 0\r\n\r\n");
            connection.send(&third).await;
            connection.refuse().await;
            assert!(!connection.says_close().await, "it is kept: {case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_pipelined_request_is_not_the_rest_of_the_one_before_it() {
    crate::time_limit::limit_this_test();
    let seconds = ["content-length: 1000000\r\n\r\n", CHUNKED];
    for second in seconds {
        let mut connection = Connection::new();
        let first = post("content-length: 10\r\n\r\n0123456789");
        connection.send(&format!("{first}{}", post(second))).await;
        connection.refuse().await;
        assert!(!connection.says_close().await, "it is complete: {second}");
        connection.refuse().await;
        assert!(connection.says_close().await, "it is long: {second}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_rest_is_not_read_away() {
    crate::time_limit::limit_this_test();
    for (before, after) in [("5\r\nhelloXX\r\n", ""), ("5\r\nhello\r\n", "zz\r\n")] {
        let case = format!("{before}{after}");
        let mut connection = Connection::new();
        connection.send(&post(&format!("{CHUNKED}{before}"))).await;
        connection.refuse().await;
        // The response waits for the end of the body in the second case.
        tokio::time::sleep(Duration::from_millis(10)).await;
        connection.send(after).await;
        assert!(connection.says_close().await, "it closes: {case:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_body_does_not_belong_to_the_request_before_it() {
    crate::time_limit::limit_this_test();
    let mut connection = Connection::new();
    let first = post("content-length: 3\r\n\r\nabc");
    let second = post(&format!("{CHUNKED}zz\r\n"));
    connection.send(&format!("{first}{second}")).await;
    connection.refuse().await;
    assert!(!connection.says_close().await, "the first is complete");
    connection.refuse().await;
    assert!(connection.says_close().await, "the second never is");
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_body_has_its_time_once() {
    crate::time_limit::limit_this_test();
    for (pause, limit) in [(Duration::MAX, 5), (Duration::from_secs(1), 30)] {
        let mut connection = Connection::new();
        connection.send(&post("content-length: 1000\r\n\r\n")).await;
        connection.refuse().await;
        assert!(!connection.says_close().await, "the rest is short");
        let begun = Instant::now();
        let Connection {
            mut client,
            serving,
            ..
        } = connection;
        let sends = async {
            loop {
                tokio::time::sleep(pause).await;
                // It fails once the connection is closed.
                let _ = client.write_all(b"x").await;
            }
        };
        tokio::select! {
            served = serving => { served.expect("it serves"); }
            () = sends => {}
        }
        let took = begun.elapsed().as_secs();
        assert_eq!(took, limit, "a byte every {pause:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_gives_up_the_memory_of_its_large_head() {
    crate::time_limit::limit_this_test();
    let any = ListenEndpoint::Tcp(([127, 0, 0, 1], 0).into());
    let listener = Listener::bind(&any).expect("a free port");
    let address = listener.address().tcp().expect("TCP");
    let (heads, (_never, watch)) = (HeadBudget::default(), drain::channel());
    let (serving, mut settings) = (watch.clone(), ServeSettings::default());
    settings.heads = heads.clone();
    tokio::spawn(listener.accept(watch, move |accepted| {
        let (settings, watch) = (settings.clone(), serving.clone());
        tokio::spawn(async move {
            let handler = FnService(|_: ClientConnection, _| async {
                Response::new(http_body_util::Full::new(Bytes::from_static(b"ok")))
            });
            listen::serve(accepted, &settings, watch, handler).await;
        });
    }));
    let mut client = TcpStream::connect(address).await.expect("a connection");
    let large = "a".repeat(40 << 10);
    for _ in 0..2 {
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx-large: {large}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("it is read");
        let mut response = Vec::new();
        while !response.ends_with(b"ok") {
            let read = client.read_buf(&mut response).await.expect("a response");
            assert!(read > 0, "it stays open");
        }
    }
    let mut others = Vec::new();
    let all_fit = async {
        while others.len() < 4096 {
            let mut other = heads.reserve();
            match other.reserve_request(0) {
                true => others.push(other),
                false => tokio::task::yield_now().await,
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), all_fit).await;
    in_time.expect("the other connections get all of the memory");
    let rest = client.read(&mut [0; 1]).await.expect("an orderly end");
    assert_eq!(rest, 0, "the idle connection is closed");
}

#[test]
fn an_open_stream_has_no_room_for_the_future_that_began_it() {
    fn room<R, S: Service<R>>(_: &S) -> usize {
        size_of::<S::Future>()
    }
    let handler = FnService(|_: ClientConnection, _: Request<ClientBody>| async {
        let large = [0_u8; 4096];
        std::future::ready(()).await;
        Response::new(Full::new(Bytes::copy_from_slice(&large)))
    });
    let (heads, (_never, drain)) = (HeadBudget::default(), drain::channel());
    let connection = served(handler, &heads, drain);
    let state = ConnectionState::new(&connection);
    let service = request_service(connection.handler, connection.client, state);
    assert!(room(&service) <= size_of::<[usize; 2]>(), "it is boxed");
}
