//! A client's connection after a response: it is kept, or the response says that it closes. A response
//! that comes before its request's end reaches its client.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::app::App;
use crate::support::backend::Backend;
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Answer, Client, Request};
use crate::support::h2_client::{self, H2, full};
use crate::support::wire::{chunk, read_some, write_all};
use crate::support::{Reserved, within};

/// A locked route whose session is in a header, so that its refusal needs no body.
const UP: &str = "[[routes]]\nname = \"up\"\npath = \"/up\"\nmethods = [\"POST\"]\n\
                  session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";

/// A route without a lock, whose backend may respond before the request's end.
const FREE: &str = "[[routes]]\nname = \"free\"\npath = \"/free\"\nlock = false\n";

/// The longest rest of a body that is read away.
const LONGEST_REST: usize = 256 << 10;

async fn start(config: &str) -> Bench {
    Setup::new(&format!("{config}{UP}{FREE}")).in_memory().await
}

/// A turn that the route's session refuses while [`occupy`] has it.
fn upload() -> Request {
    Request::post("/up").header("x-test-session", "s1")
}

/// Takes the session until the result is dropped.
async fn occupy(bench: &Bench) -> Client {
    let mut holder = bench.client().await;
    let request = upload().header("x-test-script", "gate").body("x");
    holder.send(&request).await;
    assert_eq!(holder.head().await.status, 200, "the session is taken");
    holder
}

fn says_close(answer: &Answer) -> bool {
    answer.header("connection") == Some("close")
}

/// Asserts that the connection serves another request.
async fn is_kept(client: &mut Client, case: &str) {
    let next = client.call(&Request::get("/free")).await;
    assert_eq!(next.status, 200, "the connection is kept: {case}");
}

#[tokio::test]
async fn a_refusal_reads_a_short_rest_of_the_body_away() {
    // Otherwise a small body is read before its turn asks for the lock.
    let bench = start("[limits]\nread_before_lock = 0\n").await;
    let _holder = occupy(&bench).await;
    for length in [1, 10_000, 100_000, LONGEST_REST] {
        let case = format!("{length} bytes after the response");
        let mut client = bench.client().await;
        let announced = upload().header("content-length", &length.to_string());
        client.send_head(&announced).await;
        let refused = client.answer().await;
        assert_eq!(refused.error(), (429, "session_busy"), "{case}");
        assert!(!says_close(&refused), "{case}: {refused:?}");
        client.send_raw(&vec![b'x'; length]).await;
        is_kept(&mut client, &case).await;
        let whole = upload().body(vec![b'x'; length]);
        let refused = client.call(&whole).await;
        assert_eq!(refused.error(), (429, "session_busy"), "{case}, at once");
        is_kept(&mut client, &format!("{length} bytes at once")).await;
    }
    let requests = bench.backend.requests();
    let free = requests.iter().filter(|request| request.target == "/free");
    assert_eq!(free.count(), 8, "no byte of a body was taken for a request");
}

#[tokio::test]
async fn a_refusal_says_that_a_connection_with_a_long_rest_closes() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    let mut client = bench.client().await;
    let length = LONGEST_REST + 1;
    let announced = upload().header("content-length", &length.to_string());
    client.send_head(&announced).await;
    let refused = client.answer().await;
    assert_eq!(refused.error(), (429, "session_busy"), "it is refused");
    assert!(
        says_close(&refused),
        "nobody waits for so much: {refused:?}"
    );
    client.read_to_close().await;
}

#[tokio::test]
async fn a_refusal_keeps_the_connection_of_a_chunked_body_that_has_arrived() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    for length in [10, 20_000, 200_000] {
        let mut client = bench.client().await;
        let piece = vec![b'x'; length];
        let refused = client.call(&upload().chunked(&[&piece])).await;
        assert_eq!(refused.error(), (429, "session_busy"), "it is refused");
        // On a slow machine the end may come too late; then the response says so.
        if !says_close(&refused) {
            is_kept(&mut client, "a chunked body").await;
        }
    }
}

#[tokio::test]
async fn a_refusal_says_that_a_connection_with_an_endless_body_closes() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    let mut client = bench.client().await;
    let endless = upload().header("transfer-encoding", "chunked");
    client.send_head(&endless).await;
    client.send_raw(&chunk(b"the first of many")).await;
    let refused = client.answer().await;
    assert_eq!(refused.error(), (429, "session_busy"), "it is refused");
    assert!(says_close(&refused), "its end isn't known: {refused:?}");
}

#[tokio::test]
async fn a_refusal_does_not_ask_for_a_body_that_it_would_throw_away() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    let mut client = bench.client().await;
    let waiting = upload()
        .header("content-length", "100000")
        .header("expect", "100-continue");
    client.send_head(&waiting).await;
    let refused = client.answer().await;
    assert_eq!(refused.error(), (429, "session_busy"), "it is refused");
    assert_eq!(
        refused.interim, [0_u16; 0],
        "the client isn't asked to send"
    );
    // The client may send the body or not (RFC 9110 §10.1.1), so the next bytes could be either.
    assert!(
        says_close(&refused),
        "the connection can't go on: {refused:?}"
    );
}

#[tokio::test]
async fn a_backend_that_refuses_early_leaves_a_usable_connection_or_one_that_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let backend = listener.local_addr().expect("it is bound");
    // It refuses each upload when it has its head, and closes.
    let serving = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = read_some(&socket, &mut request).await;
                assert!(matches!(read, Ok(1..)), "a request");
            }
            let refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
            write_all(&socket, refusal).await.expect("it is read");
        }
    });
    let app = App::start(&format!("http://{backend}"), "memory:", "", FREE);
    for (rest, closes) in [(100_000, false), (LONGEST_REST + 1, true)] {
        let mut client = Client::connect(app.addr()).await;
        let upload = Request::post("/free").header("content-length", &rest.to_string());
        client.send_head(&upload).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.text()), (413, "no"), "the refusal");
        assert_eq!(
            says_close(&answer),
            closes,
            "a connection that closes says so: {rest}, {answer:?}"
        );
        if !closes {
            client.send_raw(&vec![b'x'; rest]).await;
            let next = client.call(&Request::get("/free")).await;
            assert_eq!(next.status, 413, "the connection is kept: {rest}");
        }
    }
    serving.abort();
}

#[tokio::test]
async fn a_turn_without_a_backend_says_that_a_connection_with_a_long_rest_closes() {
    let nobody = Reserved::new();
    let app = App::start(&format!("http://{}", nobody.addr()), "memory:", "", UP);
    for (rest, closes) in [(100_000, false), (LONGEST_REST + 1, true)] {
        let mut client = Client::connect(app.addr()).await;
        let announced = upload().header("content-length", &rest.to_string());
        client.send_head(&announced).await;
        let refused = client.answer().await;
        assert_eq!(refused.error(), (502, "upstream_unreachable"), "{rest}");
        // The body is dropped before the lock is released, and the response comes after that.
        assert_eq!(says_close(&refused), closes, "{rest}: {refused:?}");
    }
}

#[tokio::test]
async fn a_backend_that_streams_before_the_requests_end_keeps_the_connection() {
    let bench = start("").await;
    let mut client = bench.client().await;
    for rest in [100_000, LONGEST_REST + 1] {
        let early = Request::post("/free")
            .header("x-test-script", "early:ok")
            .header("content-length", &rest.to_string());
        client.send_head(&early).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, says_close(&answer)), (200, false), "{rest}");
        // The backend reads it.
        client.send_raw(&vec![b'x'; rest]).await;
        is_kept(&mut client, "the backend has the whole request").await;
    }
}

#[tokio::test]
async fn a_refusal_over_http_2_leaves_the_connection_to_the_other_requests() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    let mut client = H2::connect(bench.app.addr()).await;
    for length in [10, 100_000, 3_000_000] {
        let refused = h2_client::get("/up")
            .method("POST")
            .header("x-test-session", "s1")
            .body(full(vec![b'x'; length]))
            .expect("a request");
        let refused = client.send(refused).await.expect("a response");
        assert_eq!(refused.error(), (429, "session_busy"), "{length} bytes");
        let next = h2_client::get("/free").body(full("")).expect("a request");
        let next = client.call(next).await;
        assert_eq!(next.status(), 200, "the connection goes on: {length} bytes");
    }
}

// === a client that still sends ===

#[tokio::test]
async fn a_refusal_reaches_a_client_that_still_sends_a_large_body() {
    let bench = start("").await;
    let _holder = occupy(&bench).await;
    for length in [3_000_000, 30_000_000] {
        let socket = TcpStream::connect(bench.app.addr()).await;
        let mut socket = socket.expect("it listens");
        let upload = upload().body(vec![b'x'; length]);
        let upload = upload.bytes(bench.app.addr());
        // As many clients do: it reads nothing before it has sent everything, and gives up at an error.
        let sent = socket.write_all(&upload);
        let sent = within("the proxy to read on", sent).await;
        sent.unwrap_or_else(|error| panic!("{length} bytes can be sent: {error}"));
        let mut response = String::new();
        let read = socket.read_to_string(&mut response);
        let read = within("the end of the connection", read).await;
        read.unwrap_or_else(|error| panic!("an orderly end: {length} bytes, {error}"));
        assert!(
            response.starts_with("HTTP/1.1 429 "),
            "the refusal: {response}"
        );
    }
}

#[tokio::test]
async fn a_client_that_still_sends_does_not_hold_up_a_stop() {
    let backend = Backend::start("plain:ok").await;
    let config = "[timeouts]\ndrain = \"4s\"\n[limits]\nmax_body = 10\n[[routes]]\nname = \"up\"\n\
                  path = \"/up\"\nsession_id = [\"{body:/s}\"]\n";
    let app = App::in_memory(&backend, config);
    let mut client = Client::connect(app.addr()).await;
    let announced = Request::post("/up").header("content-length", "1000000");
    client.send_head(&announced).await;
    let refused = client.answer().await;
    assert!(says_close(&refused), "the connection lingers: {refused:?}");
    // A lingering close would take five seconds.
    let report = app.stop().await;
    assert!(report.in_time, "a process that stops is in a hurry");
}

// === connections without a request ===

/// A response may be silent for a shorter time than a connection is kept without a request.
const IDLE: &str = "[timeouts]\nidle_stream = \"100ms\"\nkeep_alive = \"1s\"\n";

#[tokio::test]
async fn a_connection_without_a_request_is_kept_for_its_own_time() {
    let bench = start(IDLE).await;
    let mut client = bench.client().await;
    for case in ["a response", "an error response"] {
        let request = match case {
            "a response" => Request::get("/free"),
            _ => upload().header("x-test-session", " "),
        };
        client.call(&request).await;
    }
    let begun = Instant::now();
    client.read_to_close().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "the limit of a response doesn't end it: {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn an_http_2_connection_without_a_request_is_kept_for_its_own_time() {
    let bench = start(IDLE).await;
    let mut client = H2::connect(bench.app.addr()).await;
    let request = h2_client::get("/free").body(full("")).expect("a request");
    client.call(request).await;
    let begun = Instant::now();
    client.closed_by_peer().await;
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "the limit of a response doesn't end it: {:?}",
        begun.elapsed()
    );
}

/// A connection is kept for a shorter time than a head may take.
const SHORT_IDLE: &str = "[timeouts]\nkeep_alive = \"500ms\"\n";

/// Longer than [`SHORT_IDLE`] keeps a connection.
const PAUSE: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_head_that_has_begun_may_take_longer_than_a_connection_is_kept() {
    let bench = start(SHORT_IDLE).await;
    let mut client = bench.client().await;
    for case in ["the first request", "a later one"] {
        client.send_raw(b"GET /free HTTP/1.1\r\n").await;
        tokio::time::sleep(PAUSE).await;
        client.send_raw(b"host: a\r\n\r\n").await;
        assert_eq!(client.answer().await.status, 200, "it is served: {case}");
    }
    let rest = client.read_to_close().await;
    assert!(rest.is_empty(), "then nothing begins: {rest:?}");
}

#[tokio::test]
async fn a_head_that_stalls_gets_a_408_although_a_connection_is_kept_for_less() {
    let bench = start(&format!("{SHORT_IDLE}request_head = \"1500ms\"\n")).await;
    for served in [0, 1] {
        let mut client = bench.client().await;
        for _ in 0..served {
            client.call(&Request::get("/free")).await;
        }
        client.send_raw(b"GET /free HTTP/1.1\r\n").await;
        let answer = client.answer().await;
        let expected = (408, "request_timeout");
        assert_eq!(answer.error(), expected, "after {served} requests");
        client.read_to_close().await;
    }
}

#[test]
fn a_connection_is_kept_for_longer_than_a_google_load_balancer_keeps_it() {
    let config = "upstream = \"http://127.0.0.1:1\"\n";
    let config = seriatim::config::Config::read("test", config, &Vec::new());
    let keep_alive = config.expect("it is valid").timeouts.keep_alive;
    assert!(keep_alive > Duration::from_secs(600), "{keep_alive:?}");
}
