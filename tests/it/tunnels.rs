//! Upgraded connections: WebSockets and other protocols. On a locked route the turn lasts as long as
//! the connection, within the limits of any turn.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::app::{App, key, wait_until_no_keys};
use crate::support::backend::{Backend, Ending};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{wait_for_async, within};

const ROUTE: &str = "[[routes]]\nname = \"talk\"\npath = \"/talk\"\n\
                     session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";

/// A request to upgrade to `protocol`.
fn upgrade(session: &str, protocol: &str) -> Request {
    Request::get("/talk")
        .header("x-test-session", session)
        .header("x-test-script", "upgrade")
        .header("Connection", "keep-alive, Upgrade")
        .header("Upgrade", protocol)
}

// === impl Bench ===

async fn start(config: &str) -> Bench<Redis> {
    Setup::new(config)
        .store("timeout = \"200ms\"")
        .on_redis()
        .await
}

impl Bench<Redis> {
    /// Opens a tunnel and sends data through it in both directions.
    async fn open_tunnel(&self, session: &str, protocol: &str) -> Client {
        let mut client = Client::connect(self.app.addr()).await;
        client.send(&upgrade(session, protocol)).await;
        assert_eq!(
            client.head().await.status,
            101,
            "the backend accepts the upgrade"
        );
        client.send_raw(b"hello").await;
        client.read_until("hello").await;
        client
    }

    async fn is_free(&self, session: &str) {
        let free = async || self.redis.get(&key(session)).await.is_none();
        wait_for_async(free, "the session is free").await;
    }
}

// === opening and using a tunnel ===

#[tokio::test]
async fn an_upgraded_connection_holds_its_session_until_it_closes() {
    let bench = start(ROUTE).await;
    let mut first = bench.open_tunnel("s1", "websocket").await;
    let head = first.head().await;
    assert_eq!(
        head.headers_named("upgrade"),
        ["websocket"],
        "the response names the protocol"
    );
    assert_eq!(
        head.headers_named("connection"),
        ["upgrade"],
        "the response has its own connection header"
    );
    let seen = bench.backend.requests()[0].clone();
    let seen = |name: &str| {
        let named = seen
            .headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        seen("upgrade"),
        ["websocket"],
        "the backend gets the upgrade header"
    );
    assert_eq!(
        seen("connection"),
        ["upgrade"],
        "the backend gets its own connection header"
    );
    for protocol in ["websocket", "other"] {
        let mut second = Client::connect(bench.app.addr()).await;
        let refused = second.call(&upgrade("s1", protocol)).await;
        assert_eq!(
            refused.error(),
            (429, "session_busy"),
            "the session is busy"
        );
    }
    let other = bench.open_tunnel("s2", "websocket").await;
    assert_eq!(bench.backend.running("s2"), 1, "another session is free");
    other.close();
    first.send_raw(b"bye").await;
    let first = first.answer().await;
    assert!(first.whole, "an orderly close of the backend is passed on");
    assert_eq!(first.text(), "hellobye", "all data arrives");
    bench.backend.gone("s2").await;
    bench.is_free("s2").await;
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn the_session_is_free_when_the_client_sees_its_tunnel_close() {
    let bench = start(ROUTE).await;
    for number in 0..200 {
        let mut client = Client::connect(bench.app.addr()).await;
        client.send(&upgrade("s1", "websocket")).await;
        assert_eq!(
            client.head().await.status,
            101,
            "tunnel {number} finds the session free"
        );
        client.send_raw(b"bye").await;
        assert!(client.answer().await.whole, "the backend closes the tunnel");
    }
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "tunnels never overlapped"
    );
}

#[tokio::test]
async fn a_tunnel_carries_large_data_in_both_directions() {
    const SIZE: usize = 3_000_000;
    let backend = Backend::start("plain:ok").await;
    for (protocol, config) in [("websocket", ROUTE), ("other", "")] {
        let app = App::in_memory(&backend, config);
        let mut client = Client::connect(app.addr()).await;
        // Sent together with the request, before the tunnel is open.
        let mut bytes = upgrade(protocol, protocol).bytes(app.addr());
        bytes.extend_from_slice(b"early");
        client.send_raw(&bytes).await;
        client.read_until("early").await;
        let mut sent = b"early".to_vec();
        let text: Vec<u8> = (0..SIZE).map(|n| b'a' + (n / 7 % 25) as u8).collect();
        client.send_raw(&text).await;
        client.send_raw(b"bye").await;
        sent.extend_from_slice(&text);
        sent.extend_from_slice(b"bye");
        let answer = client.answer().await;
        assert!(
            answer.whole && answer.body == sent,
            "all data arrives byte for byte: {protocol}"
        );
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_response() {
    let bench = start(ROUTE).await;
    let mut client = Client::connect(bench.app.addr()).await;
    for script in ["plain:no", "status:426:no", "chunked:2:0"] {
        let request = Request::get("/talk")
            .header("x-test-session", "s1")
            .header("x-test-script", script)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        let answer = client.call(&request).await;
        assert!(answer.whole && answer.status != 101, "{script}: {answer:?}");
    }
    assert_eq!(
        client.get("/x").await.status,
        200,
        "the connection is still usable"
    );
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_not_forwarded() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, "");
    let mut client = Client::connect(app.addr()).await;
    for (offered, asked) in [
        ("h2c", None),
        ("H2C", None),
        ("h2c, websocket", Some("websocket")),
        ("a, h2c,b", Some("a, b")),
    ] {
        let request = Request::get("/x")
            .header("connection", "Upgrade, HTTP2-Settings")
            .header("upgrade", offered)
            .header("http2-settings", "AAMAAABkAAQAAP__");
        assert_eq!(
            client.call(&request).await.status,
            200,
            "the request is served without the upgrade"
        );
        let seen = backend
            .requests()
            .pop()
            .expect("the backend received the request");
        let seen = |name: &str| {
            let mut named = seen.headers.iter().filter(|(known, _)| known == name);
            named.next().map(|(_, value)| value.clone())
        };
        assert_eq!(
            seen("upgrade").as_deref(),
            asked,
            "the other protocols of {offered:?} are forwarded"
        );
        assert_eq!(
            seen("connection").is_some(),
            asked.is_some(),
            "the other protocols of {offered:?} are forwarded"
        );
        assert_eq!(
            seen("http2-settings"),
            None,
            "http2-settings isn't forwarded"
        );
    }
    // An upgrade that `connection` doesn't name isn't requested (RFC 9110 §7.8).
    client
        .call(&Request::get("/x").header("upgrade", "websocket"))
        .await;
    let seen = backend
        .requests()
        .pop()
        .expect("the backend received the request");
    assert!(
        seen.headers.iter().all(|(name, _)| name != "upgrade"),
        "a hop-by-hop header isn't forwarded"
    );
}

#[tokio::test]
async fn an_unrequested_upgrade_by_the_backend_is_an_upstream_error() {
    let bench = start(ROUTE).await;
    let mut client = Client::connect(bench.app.addr()).await;
    let request = Request::get("/talk")
        .header("x-test-session", "s1")
        .header("x-test-script", "upgrade");
    let answer = client.call(&request).await;
    assert_eq!(
        answer.error(),
        (502, "upstream_malformed"),
        "an unrequested 101 is an upstream error"
    );
    bench.backend.gone("s1").await;
    wait_until_no_keys(&bench.redis).await;
}

// === ends of tunnels ===

#[tokio::test]
async fn a_client_that_disconnects_ends_its_tunnel() {
    for on_disconnect in ["cancel", "continue"] {
        let bench = start(&format!("{ROUTE}on_disconnect = \"{on_disconnect}\"\n")).await;
        let closed = bench.open_tunnel("closed", "websocket").await;
        closed.close();
        let reset = bench.open_tunnel("reset", "websocket").await;
        reset.reset();
        let other = bench.open_tunnel("other", "other").await;
        other.close();
        for session in ["closed", "reset", "other"] {
            bench.backend.gone(session).await;
            bench.is_free(session).await;
        }
    }
}

#[tokio::test]
async fn a_backend_that_ignores_the_disconnect_does_not_keep_the_lock() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("its address"));
    let redis = Redis::start().await;
    let app = App::start(&upstream, &redis.url(), "", ROUTE);
    let mut client = Client::connect(app.addr()).await;
    client.send(&upgrade("s1", "websocket")).await;
    let mut backend = switched(&listener).await;
    assert_eq!(client.head().await.status, 101, "the tunnel is open");
    client.close();
    let end = within("the end of the client's data", backend.read(&mut [0; 8])).await;
    assert_eq!(
        end.expect("an orderly end"),
        0,
        "the backend sees the disconnect"
    );
    // The backend doesn't react, and the session is free all the same.
    wait_until_no_keys(&redis).await;
}

#[tokio::test]
async fn each_direction_of_a_tunnel_can_close_on_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("its address"));
    let redis = Redis::start().await;
    let app = App::start(&upstream, &redis.url(), "", ROUTE);
    let mut client = Client::connect(app.addr()).await;
    client.send(&upgrade("s1", "a-shell")).await;
    let mut backend = switched(&listener).await;
    assert_eq!(client.head().await.status, 101, "the tunnel is open");
    client.send_raw(b"input").await;
    client.half_close().await;
    let mut input = String::new();
    let read = within("the end of the input", backend.read_to_string(&mut input));
    read.await.expect("an orderly end");
    assert_eq!(input, "input", "the backend sees the end of its input");
    let held = redis.get(&key("s1")).await;
    assert!(held.is_some(), "the turn goes on after a half close");
    backend
        .write_all(b"output")
        .await
        .expect("the backend can still write");
    drop(backend);
    let answer = client.answer().await;
    assert!(answer.whole, "the response ends properly");
    assert_eq!(answer.text(), "output", "the last byte arrives");
    assert_eq!(
        redis.get(&key("s1")).await,
        None,
        "the session is free when the client sees the end"
    );

    // The other direction, on a route without a lock.
    let mut client = Client::connect(app.addr()).await;
    let free = Request::get("/free").header("connection", "upgrade");
    client.send(&free.header("upgrade", "a-shell")).await;
    let mut backend = switched(&listener).await;
    backend
        .write_all(b"output")
        .await
        .expect("the socket is writable");
    backend
        .shutdown()
        .await
        .expect("the backend closes its half");
    assert_eq!(
        client.answer().await.text(),
        "output",
        "the client sees the end of the output"
    );
    client.send_raw(b"input").await;
    client.half_close().await;
    let mut input = String::new();
    let read = within("the end of the input", backend.read_to_string(&mut input));
    read.await.expect("an orderly end");
    assert_eq!(input, "input", "the client can still write");
}

/// Accepts a connection, reads the head of a request, and accepts its upgrade.
async fn switched(listener: &TcpListener) -> TcpStream {
    let accepted = within("a connection", listener.accept()).await;
    let (mut socket, _) = accepted.expect("a connection");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let protocol = head.lines().find(|line| line.starts_with("upgrade:"));
    let protocol = protocol.expect("an upgrade header");
    let answer = format!("HTTP/1.1 101 x\r\nconnection: upgrade\r\n{protocol}\r\n\r\n");
    let answered = socket.write_all(answer.as_bytes()).await;
    answered.expect("the socket is writable");
    socket
}

#[tokio::test]
async fn a_tunnel_ends_with_its_lease() {
    let bench = start(&format!("{ROUTE}lock_timeout = \"600ms\"\n")).await;
    for protocol in ["websocket", "other"] {
        let mut client = bench.open_tunnel(protocol, protocol).await;
        bench.backend.gone(protocol).await;
        client.answer().await;
    }
}

#[tokio::test]
async fn a_tunnel_that_loses_its_lock_ends() {
    let lock = "lock_timeout = 60\nextend_lock_interval = \"100ms\"\n";
    let bench = start(&format!("{ROUTE}{lock}")).await;
    let mut client = bench.open_tunnel("s1", "websocket").await;
    let foreign = ["SET", &key("s1"), "somebody else", "PX", "60000"];
    bench.redis.command(&foreign).await;
    bench.backend.gone("s1").await;
    client.answer().await;
    let value = bench.redis.get(&key("s1")).await;
    assert_eq!(
        value.as_deref(),
        Some("somebody else"),
        "the new holder keeps its lock"
    );
}

#[tokio::test]
async fn an_idle_tunnel_keeps_its_extended_lease() {
    let lock = "lock_timeout = \"600ms\"\nextend_lock_interval = \"200ms\"\n";
    let bench = start(&format!("{ROUTE}{lock}")).await;
    let mut client = bench.open_tunnel("s1", "websocket").await;
    // Longer than three leases.
    for _ in 0..40 {
        let left = bench.redis.pttl(&key("s1")).await;
        assert!(left > 0, "the lock exists while the tunnel is open: {left}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    client.send_raw(b"bye").await;
    assert!(
        client.answer().await.text().ends_with("bye"),
        "the tunnel still works"
    );
}

#[tokio::test]
async fn an_interrupting_turn_replaces_a_tunnel() {
    let bench = start(&format!("{ROUTE}blocking = true\ninterrupt = true\n")).await;
    let mut first = bench.open_tunnel("s1", "websocket").await;
    let mut second = bench.open_tunnel("s1", "websocket").await;
    first.answer().await;
    assert_eq!(
        bench.backend.max_overlap("s1"),
        1,
        "the first tunnel is closed before the second opens"
    );
    second.send_raw(b"bye").await;
    assert!(second.answer().await.whole, "the second tunnel is complete");
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn an_idle_tunnel_times_out() {
    let bench = start(&format!("[timeouts]\nidle_stream = \"1s\"\n{ROUTE}")).await;
    let mut client = bench.open_tunnel("s1", "websocket").await;
    // A tunnel with data lives longer than the idle timeout.
    for _ in 0..15 {
        client.send_raw(b".").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(
        bench.backend.running("s1"),
        1,
        "each byte restarts the idle timeout"
    );
    bench.backend.gone("s1").await;
    client.answer().await;
    bench.is_free("s1").await;
}

// === draining ===

#[tokio::test]
async fn a_drain_lets_tunnels_end_and_aborts_them_at_its_timeout() {
    for (drain, ends) in [("1h", true), ("300ms", false)] {
        let bench = start(&format!("[timeouts]\ndrain = \"{drain}\"\n{ROUTE}")).await;
        let mut client = bench.open_tunnel("s1", "websocket").await;
        let addr = bench.app.addr();
        let stopping = tokio::spawn(bench.app.stop());
        let refused = async || Client::try_connect(addr).await.is_err();
        wait_for_async(refused, "the socket is closed").await;
        if ends {
            client.send_raw(b"still here").await;
            client.read_until("still here").await;
            client.send_raw(b"bye").await;
        }
        let stopped = within("the end of the stop", stopping)
            .await
            .expect("no panic");
        assert_eq!(
            stopped.in_time, ends,
            "the drain waits for a tunnel as for a turn: {stopped:?}"
        );
        assert!(stopped.all_released, "every lock is released");
        assert_eq!(bench.redis.keys().await, [""; 0], "no key is left");
        client.answer().await;
        bench.backend.ended("s1", 1).await;
        let ending = bench.backend.turns("s1")[0].ending;
        let expected = if ends {
            Ending::Finished
        } else {
            Ending::PeerGone
        };
        assert_eq!(
            ending,
            Some(expected),
            "the backend's side ends as the drain allows"
        );
    }
}

// === logging ===

#[tokio::test]
async fn a_tunnel_is_logged_once_with_its_bytes_and_its_hold_time() {
    let backend = Backend::start("plain:ok").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\ntimeout = \"100ms\"\n{ROUTE}[[routes]]\nname = \"short\"\n\
         path = \"/short\"\nlock_timeout = \"400ms\"\nsession_id = [\"{{header:x-test-session}}\"]\n",
        backend.url()
    );
    std::fs::write(&path, text).expect("a file in it");
    let process = Process::start(&path);
    let open = async |request: &Request| {
        let mut client = Client::connect(process.addr()).await;
        client.send(request).await;
        client.send_raw(b"0123456789").await;
        client.read_until("0123456789").await;
        client
    };
    let mut whole = open(&upgrade("whole", "websocket")).await;
    whole.send_raw(b"bye").await;
    whole.answer().await;
    open(&upgrade("left", "other")).await.reset();
    backend.gone("left").await;
    let short = Request::get("/short")
        .header("x-test-session", "short")
        .header("x-test-script", "upgrade")
        .header("connection", "upgrade")
        .header("upgrade", "other");
    open(&short).await.answer().await;
    process.signal("TERM");
    let (_, events) = process.end();
    for (session, outcome, bytes) in [
        ("u1:whole", "complete", 13),
        ("u1:left", "client_gone", 10),
        ("unknown:short", "lock_lost", 10),
    ] {
        let key = format!("lock:session:{session}");
        let of_it = |event: &&serde_json::Value| {
            event["target"] == "seriatim::access" && event["key"] == *key
        };
        let logged: Vec<_> = events.iter().filter(of_it).collect();
        assert_eq!(logged.len(), 1, "one event per tunnel: {events:#?}");
        assert_eq!(
            logged[0]["outcome"], outcome,
            "the event has the outcome: {}",
            logged[0]
        );
        assert_eq!(
            logged[0]["status"], 101,
            "the event has the status: {}",
            logged[0]
        );
        assert_eq!(
            logged[0]["bytes"], bytes,
            "the event has the bytes sent to the client: {}",
            logged[0]
        );
        assert!(
            logged[0]["hold_us"].is_u64(),
            "the event has the hold time: {}",
            logged[0]
        );
    }
}
