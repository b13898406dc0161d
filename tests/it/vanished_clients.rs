//! Clients that are gone without a word: their machine has lost its network. Nothing says so; it only
//! answers nothing any more.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::app::{CHAT, key, wait_for_queue_length};
use crate::support::backend::event;
use crate::support::bench::{Bench, Setup, hold};
use crate::support::client::{Client, Request, begin_turn, turn, vanish};
use crate::support::h2_client::{self, H2};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async, within};

/// Only what this file is about ends a connection within the time of a test.
const QUICK: &str = "[timeouts]\nclient_unreachable = \"1s\"\n";

/// A locked route whose session is in a header.
const TALK: &str = "[[routes]]\nname = \"talk\"\npath = \"/talk\"\n\
                    session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\n";

async fn start() -> Bench<Redis> {
    Setup::new(&format!("{QUICK}{CHAT}{TALK}")).on_redis().await
}

impl Bench<Redis> {
    /// Waits until the backend has been left and the session is free.
    async fn is_left(&self, session: &str) {
        self.backend.gone(session).await;
        self.wait_until_free(session, "its client vanished").await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_response_is_left() {
    let bench = start().await;
    // Each event goes into the socket's buffer, so bytes seem to move all the time.
    let mut client = begin_turn(bench.app.addr(), "s1", "chunked:1000000:20").await;
    client.read_until(&event(0)).await;
    let _vanished = client.vanish();
    bench.is_left("s1").await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_the_backend_is_silent_is_left() {
    let bench = start().await;
    let mut client = begin_turn(bench.app.addr(), "s1", "gate").await;
    client.read_until(&event(0)).await;
    let _vanished = client.vanish();
    bench.is_left("s1").await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_it_waits_leaves_the_queue() {
    let config = format!("{QUICK}[lock]\nblocking = true\n{CHAT}");
    let bench = Setup::new(&config).on_redis().await;
    let mut holder = hold(bench.app.addr(), "s1").await;
    let waiter = begin_turn(bench.app.addr(), "s1", "plain:nobody").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let _vanished = waiter.vanish();
    wait_for_queue_length(&bench.redis, "s1", 0).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't disturbed");
    let turns = bench.backend.turns("s1");
    assert_eq!(turns.len(), 1, "the vanished client's turn never began");
}

#[tokio::test]
async fn a_client_that_vanishes_from_a_tunnel_is_left() {
    let bench = start().await;
    let mut client = Client::connect(bench.app.addr()).await;
    let upgrade = Request::get("/talk")
        .header("x-test-session", "s1")
        .header("x-test-script", "upgrade")
        .header("connection", "upgrade")
        .header("upgrade", "chat");
    client.send(&upgrade).await;
    assert_eq!(client.head().await.status, 101, "the tunnel is open");
    // What the client sends comes back, into the void.
    let mut vanished = client.vanish();
    vanished.send_raw(b"hello");
    bench.is_left("s1").await;
}

#[tokio::test]
async fn a_client_that_vanishes_over_http_2_is_left() {
    let bench = start().await;
    let socket = TcpStream::connect(bench.app.addr()).await;
    let socket = socket.expect("it listens").into_std().expect("a socket");
    let same = socket.try_clone().expect("a socket");
    let same = TcpStream::from_std(same).expect("a socket");
    let mut client = H2::over(TcpStream::from_std(socket).expect("a socket")).await;
    let turn = h2_client::turn("s1", "chunked:1000000:20");
    let mut answer = client.send(turn).await.expect("a response");
    answer.until(&event(0)).await;
    vanish(&same);
    bench.is_left("s1").await;
}

#[tokio::test]
async fn an_http_2_client_that_answers_no_ping_is_left() {
    let bench = start().await;
    let mut other = H2::connect(bench.app.addr()).await;
    // The client's system acknowledges everything, as a proxy below HTTP does for its own client.
    let mut silent = Client::connect(bench.app.addr()).await;
    silent.send_raw(&http_2_turn("s1", "hang-middle")).await;
    bench.backend.started("s1", 1).await;
    bench.is_left("s1").await;
    silent.read_to_close().await;
    let answer = other.call(h2_client::turn("s2", "plain:ok")).await;
    assert_eq!(
        answer.status(),
        200,
        "who answers pings keeps its connection"
    );
}

/// The bytes of an HTTP/2 connection with one turn, in literals without Huffman coding (RFC 7541 §6.2.2).
fn http_2_turn(session: &str, script: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // `:method: GET` and `:scheme: http` are in the static table, as are the names 1 and 4.
    let mut block = vec![0x82, 0x86, 0x04];
    block.extend(text("/talk"));
    block.push(0x01);
    block.extend(text("test"));
    for (name, value) in [("x-test-session", session), ("x-test-script", script)] {
        block.push(0);
        block.extend(text(name));
        block.extend(text(value));
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // HEADERS with END_STREAM and END_HEADERS, stream 1.
    bytes.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes
}

#[tokio::test]
async fn a_client_that_only_reads_nothing_for_a_while_keeps_its_response() {
    let bench = start().await;
    // Far more than the buffers on the way take, so that the client's window closes.
    let mut paused = Client::connect_narrow(bench.app.addr(), 4096).await;
    paused.send(&Request::turn("s1", "big:50000000")).await;
    bench.backend.started("s1", 1).await;
    // And as much as the buffers take: nothing moves, and something is still to be sent.
    let mut small = Client::connect_narrow(bench.app.addr(), 4096).await;
    small.send(&Request::turn("s2", "big:200000")).await;
    bench.backend.ended("s2", 1).await;
    // Three clients in a row vanish, and each is noticed. In the same time the paused clients aren't.
    for session in ["s3", "s4", "s5"] {
        let mut client = begin_turn(bench.app.addr(), session, "chunked:1000000:20").await;
        client.read_until(&event(0)).await;
        let _vanished = client.vanish();
        let free = async || bench.redis.get(&key(session)).await.is_none();
        wait_for_async(free, "the session of a vanished client is free").await;
    }
    for (client, length) in [(&mut paused, 50_000_000), (&mut small, 200_000)] {
        let answer = client.answer().await;
        assert!(answer.whole, "it reads on where it paused: {answer:?}");
        assert_eq!(answer.body.len(), length, "and gets every byte");
    }
}

#[tokio::test]
async fn a_client_that_stops_to_read_and_then_vanishes_is_left() {
    let bench = start().await;
    let mut client = Client::connect_narrow(bench.app.addr(), 4096).await;
    client.send(&Request::turn("s1", "big:50000000")).await;
    let (server, local) = (bench.app.addr(), client.local_addr());
    // From now on nothing is sent but probes, and keepalive sends none while bytes are queued.
    let is_closed = || is_window_closed(server, local);
    wait_for(is_closed, "the client's window is closed").await;
    let _vanished = client.vanish();
    bench.is_left("s1").await;
}

/// Whether the kernel waits for the window of the connection from `local` to `peer` to open: the first digits
/// of `tr` in `/proc/net/tcp` are then 04 (proc_net_tcp in the kernel's documentation).
fn is_window_closed(local: SocketAddr, peer: SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let ports = [local, peer].map(|address| format!(":{:04X}", address.port()));
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, local, peer, _, _, timer, ..] = &*fields else {
            return false;
        };
        local.ends_with(&ports[0]) && peer.ends_with(&ports[1]) && timer.starts_with("04:")
    })
}

#[tokio::test]
async fn without_a_limit_a_silent_client_is_kept() {
    let config = format!("[timeouts]\nclient_unreachable = 0\n{CHAT}");
    let bench = Bench::start(&config).await;
    let limited = Bench::start(&format!("{QUICK}{CHAT}")).await;
    let begin = async |bench: &Bench| {
        let mut client = begin_turn(bench.app.addr(), "s1", "chunked:1000000:20").await;
        client.read_until(&event(0)).await;
        client.vanish()
    };
    let _kept = begin(&bench).await;
    let _left = begin(&limited).await;
    within("the limited one", limited.backend.gone("s1")).await;
    let busy = turn(bench.app.addr(), "s1", "plain:x").await;
    assert_eq!(busy.status, 429, "nothing but the system's limits ends it");
    let free = async || turn(limited.app.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(free, "the session of the limited one is free").await;
}

/// The default limits together stay below a minute, which the contract promises.
#[test]
fn a_session_is_free_within_a_minute_by_default() {
    let config = "upstream = \"http://127.0.0.1:1\"\n";
    let config = seriatim::config::Config::read("test", config, &Vec::new());
    let limit = config.expect("it is valid").timeouts.client_unreachable;
    let limit = limit.expect("there is a limit");
    // The limit counts from the second check, and is looked at with the last one.
    let longest = limit + 2 * (limit / 6);
    assert!(longest < Duration::from_secs(60), "{longest:?}");
}
