//! `keep_alive`: clients that get comments while their turns wait and while the backend's event stream is silent.

use std::collections::BTreeSet;
use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};
use seriatim::config::Config;
use seriatim::proxy::{KeptClient, explain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::support::app::{App, CHAT, wait_for_queue_length};
use crate::support::backend::{Ending, event, events, stream_with};
use crate::support::bench::{Bench, Replicas, Setup, assert_error_response};
use crate::support::client::{Answer, Client, Request, begin_turn};
use crate::support::fault::Mode;
use crate::support::h2_client::{self, H2};
use crate::support::raw::{RawBackend, read_head};
use crate::support::{wait_for_async, within};

/// Turns wait, and their clients are kept.
const KEPT: &str = "[lock]\nblocking = true\nkeep_alive = \"100ms\"\n";

/// What a client gets while the backend is silent.
const SILENT: &str = ": silent\n\n";

/// A turn whose client reads an event stream.
fn kept(session: &str, script: &str) -> Request {
    Request::turn(session, script).header("accept", "application/json, text/event-stream")
}

/// The comments before the rest, and the rest: what the backend has sent, or an error.
fn split(text: &str) -> (Vec<String>, String) {
    let mut comments = Vec::new();
    let mut rest = text;
    while let Some((comment, after)) = rest
        .split_once("\n\n")
        .filter(|(it, _)| it.starts_with(": "))
    {
        comments.push(comment.to_owned());
        rest = after;
    }
    (comments, rest.to_owned())
}

/// The data of the one `error` event behind the comments.
fn error_of(case: &str, answer: &Answer) -> Value {
    let (comments, rest) = split(&answer.text());
    assert_early_head(case, answer);
    assert!(
        comments[0].starts_with(": queued "),
        "{case}: the place comes first: {comments:?}"
    );
    let data = rest.strip_prefix("event: error\ndata: ");
    let data = data.and_then(|data| data.strip_suffix("\n\n"));
    let data = data.unwrap_or_else(|| panic!("{case}: one error event: {rest:?}"));
    assert!(answer.whole, "{case}: the response is complete: {answer:?}");
    serde_json::from_str(data).unwrap_or_else(|error| panic!("{case}: {error}: {data:?}"))
}

/// Asserts that a response began before its turn.
fn assert_early_head(case: &str, answer: &Answer) {
    let names = ["content-type", "cache-control", "x-accel-buffering"];
    assert_eq!(
        (answer.status, names.map(|name| answer.header(name))),
        (
            200,
            [Some("text/event-stream"), Some("no-cache"), Some("no")]
        ),
        "{case}: the head of an event stream that nobody stores: {answer:?}"
    );
}

/// Reads until the received part of the body contains `text`. A client that is kept would get comments for ever.
async fn until(client: &mut Client, text: &str) {
    within(text, client.read_until(text)).await;
}

impl<R, N> Bench<R, N> {
    /// Sends a turn behind a holder, and waits until its client gets comments.
    async fn wait_kept(&self, request: &Request) -> Client {
        let mut client = self.client().await;
        client.send(request).await;
        until(&mut client, ": queued ").await;
        client
    }

    /// The response to a turn that waits behind a holder for a while, and then runs.
    async fn after_waiting(&self, session: &str, request: &Request) -> Answer {
        let mut holder = self.hold(session).await;
        let mut waiter = self.wait_kept(request).await;
        self.backend.open_gate(session);
        assert!(holder.answer().await.whole, "the holder isn't affected");
        within("the end of a kept response", waiter.answer()).await
    }
}

// === while a turn waits ===

async fn assert_kept<R>(bench: Bench<R>) {
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.client().await;
    waiter.send(&kept("s1", "chunked:3:20")).await;
    until(&mut waiter, ": queued position=1 waiting=").await;
    assert_early_head("a waiting turn", waiter.head().await);
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    let answer = waiter.answer().await;
    let (comments, rest) = split(&answer.text());
    assert!(
        comments
            .iter()
            .all(|it| it.starts_with(": queued ") || it == ": running"),
        "a comment says what the turn does: {comments:?}"
    );
    assert_eq!(
        (rest, answer.whole),
        (events(3), true),
        "the backend's stream follows byte for byte"
    );
    let turns = bench.backend.turns("s1");
    assert_eq!(turns.len(), 2, "each turn reaches the backend once");
    assert_eq!(bench.backend.max_overlap("s1"), 1, "turns never overlap");
}

#[tokio::test]
async fn a_waiting_client_gets_its_place_and_then_the_backends_stream() {
    let config = format!("{KEPT}{CHAT}");
    assert_kept(Setup::new(&config).in_memory().await).await;
    assert_kept(Setup::new(&config).on_redis().await).await;
}

#[tokio::test]
async fn every_byte_of_the_backends_stream_follows_the_comments() {
    for framing in ["length:4:10", "until-close", "trailers", "chunked:0:0"] {
        let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
        let answer = bench.after_waiting("s1", &kept("s1", framing)).await;
        let expected = match framing {
            "length:4:10" => events(4),
            "chunked:0:0" => String::new(),
            _ => events(2),
        };
        let (_, rest) = split(&answer.text());
        assert_eq!((rest, answer.whole), (expected, true), "{framing}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_behind_comments_is_cut() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let answer = bench
        .after_waiting("s1", &kept("s1", "break-chunked"))
        .await;
    let (_, rest) = split(&answer.text());
    assert_eq!(
        (rest, answer.whole),
        (events(2), false),
        "a client can tell a stream that broke off from a whole one"
    );
}

#[tokio::test]
async fn the_place_counts_waiters_of_all_replicas_that_are_alive() {
    let replicas = Replicas::on_redis().await;
    let (a, b) = (
        replicas.process("instance = \"a\"\n", KEPT),
        replicas.replica("instance = \"b\"\n", KEPT),
    );
    let mut holder = begin_turn(b.addr(), "s1", "gate").await;
    until(&mut holder, &event(0)).await;
    let mut waiters = Vec::new();
    for (n, replica) in [a.addr(), b.addr(), a.addr(), b.addr()]
        .into_iter()
        .enumerate()
    {
        let mut client = Client::connect(replica).await;
        client.send(&kept("s1", "chunked:1:0")).await;
        wait_for_queue_length(&replicas.redis, "s1", n + 1).await;
        waiters.push(client);
    }
    for (n, waiter) in waiters.iter_mut().enumerate() {
        let place = format!(": queued position={} ", n + 1);
        until(waiter, &place).await;
    }
    a.signal("KILL");
    until(&mut waiters[1], ": queued position=1 ").await;
    until(&mut waiters[3], ": queued position=2 ").await;
    for _ in 0..3 {
        replicas.backend.open_gate("s1");
    }
    for n in [1, 3] {
        let answer = waiters[n].answer().await;
        assert_eq!(
            split(&answer.text()).1,
            events(1),
            "living waiters are served"
        );
    }
}

#[tokio::test]
async fn the_place_may_come_as_an_event() {
    let config = format!("{KEPT}queue_events = \"seriatim.queue\"\n{CHAT}");
    let bench = Bench::start(&config).await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.client().await;
    waiter.send(&kept("s1", "chunked:2:0")).await;
    until(&mut waiter, "\"position\":1").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    let text = waiter.answer().await.text();
    let mut last = 0;
    let mut rest = &*text;
    while let Some(behind) = rest.strip_prefix("event: seriatim.queue\ndata: ") {
        let (data, behind) = behind.split_once("\n\n").expect("the event ends");
        let place: Value = serde_json::from_str(data).expect("its data is JSON");
        let members = place.as_object().expect("an object").keys();
        assert_eq!(
            members.collect::<Vec<_>>(),
            ["position", "waiting_ms"],
            "{data}"
        );
        assert!(
            place["position"] == 1 || place["position"].is_null(),
            "the place, or null as long as it isn't known: {data}"
        );
        let waited = place["waiting_ms"].as_u64().expect("milliseconds");
        assert!(
            waited >= last.max(100),
            "the time since the turn asked for its lock: {text}"
        );
        (last, rest) = (waited, behind);
    }
    assert!(last > 0, "there are such events: {text}");
    let (_, rest) = split(rest);
    assert_eq!(rest, events(2), "the backend's stream follows");
}

/// Reads until a comment or an event of the queue names no place, or this one.
async fn until_place(client: &mut Client, place: Option<u32>) {
    let told = async {
        loop {
            let piece = client.piece().await.expect("the turn waits");
            let text = String::from_utf8(piece).expect("UTF-8");
            let names = |position: u32| {
                text.contains(&format!(" position={position} "))
                    || text.contains(&format!("\"position\":{position},"))
            };
            let names_none =
                text.contains(": queued waiting=") || text.contains("\"position\":null,");
            if place.map_or(names_none, names) {
                return;
            }
        }
    };
    within(&format!("a place {place:?}"), told).await;
}

#[tokio::test]
async fn a_place_is_not_told_any_more_when_the_store_is_away() {
    for events in ["", "queue_events = \"seriatim.queue\"\n"] {
        let config = format!("{KEPT}{events}{CHAT}");
        let bench = Setup::new(&config).on_faulty_network().await;
        let mut holder = bench.hold("s1").await;
        let mut waiter = bench.client().await;
        waiter.send(&kept("s1", "chunked:1:0")).await;
        until_place(&mut waiter, Some(1)).await;
        bench.network.set(Mode::Blackhole).await;
        until_place(&mut waiter, None).await;
        bench.network.set(Mode::Pass).await;
        until_place(&mut waiter, Some(1)).await;
        bench.backend.open_gate("s1");
        holder.answer().await;
        assert!(waiter.answer().await.whole, "the turn is served");
    }
}

/// How long a process is stopped that lets a connection be silent for half a second.
const STOPPED_FOR: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_waiting_client_is_kept_by_a_process_that_was_stopped() {
    let replicas = Replicas::on_redis().await;
    let other = replicas.replica("", "[lock]\nblocking = true\n");
    let lock = format!("{KEPT}[timeouts]\nidle_stream = \"500ms\"\n");
    let process = replicas.process("", &lock);
    let mut holder = begin_turn(other.addr(), "s1", "gate").await;
    until(&mut holder, &event(0)).await;
    let mut waiter = Client::connect(process.addr()).await;
    waiter.send(&kept("s1", "chunked:1:0")).await;
    until(&mut waiter, ": queued ").await;
    let mut over_h2 = H2::connect(process.addr()).await;
    let mut request = h2_client::turn("s1", "chunked:1:0");
    let accept = HeaderValue::from_static("text/event-stream");
    request.headers_mut().insert("accept", accept);
    let mut second = over_h2.send(request).await.expect("a head");
    second.until(": queued ").await;
    for _ in 0..3 {
        process.signal("STOP");
        sleep(STOPPED_FOR).await;
        process.signal("CONT");
        until_place(&mut waiter, Some(1)).await;
    }
    replicas.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    let answer = waiter.answer().await;
    assert_eq!(
        (split(&answer.text()).1, answer.whole),
        (events(1), true),
        "the turn waited on, and was served"
    );
    second.rest().await.expect("a whole response");
    assert_eq!(split(&second.text()).1, events(1), "over HTTP/2 as well");
    replicas.wait_until_no_keys().await;
}

#[tokio::test]
async fn only_a_client_that_can_read_an_event_stream_gets_a_head_early() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}{}", route("/other", ""))).await;
    let mut holder = bench.hold("s1").await;
    let plain = Request::turn("s1", "plain:x");
    let post = |head: &str| {
        let body = r#"{"session_id":"s1","user_id":"u1"}"#;
        format!(
            "{head}\r\nhost: x\r\naccept: text/event-stream\r\nx-test-script: plain:x\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let mut quiet = Vec::new();
    for bytes in [
        plain.bytes(bench.app.addr()),
        plain
            .clone()
            .header("accept", "*/*")
            .bytes(bench.app.addr()),
        plain
            .clone()
            .header("accept", "text/event-streams")
            .bytes(bench.app.addr()),
        plain
            .clone()
            .header("accept", "text/event-stream;q=0, */*")
            .bytes(bench.app.addr()),
        post("POST /chat HTTP/1.0").into_bytes(),
        post("POST /chat HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket").into_bytes(),
    ] {
        let mut client = bench.client().await;
        client.send_raw(&bytes).await;
        quiet.push((bytes, client));
        bench.app.wait_for_waiters(quiet.len()).await;
    }
    // Behind them, a client that is kept gets a comment, and another one.
    let mut last = bench.wait_kept(&kept("s1", "chunked:1:0")).await;
    until(&mut last, ": queued position=7 ").await;
    for (bytes, client) in &quiet {
        let request = String::from_utf8_lossy(bytes);
        assert_eq!(
            client.arrived(),
            0,
            "it gets nothing before its turn: {request}"
        );
    }
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    for (bytes, mut client) in quiet {
        let request = String::from_utf8_lossy(&bytes).into_owned();
        let answer = client.answer().await;
        assert_eq!((answer.status, &*answer.text()), (200, "x"), "{request}");
    }
    assert!(last.answer().await.whole, "the last one is served");
}

/// A route at this path whose sessions are in a header.
fn route(path: &str, options: &str) -> String {
    format!(
        "\n[[routes]]\nname = \"{}\"\npath = \"{path}\"\nsession_id = [\"{{header:x-session}}\"]\n\
         user_id = [\"u1\"]\n{options}\n",
        path.trim_start_matches('/')
    )
}

#[tokio::test]
async fn all_clients_of_a_route_may_be_kept() {
    let bench = Bench::start(&format!("{KEPT}stream = \"sse\"\n{CHAT}")).await;
    let answer = bench
        .after_waiting("s1", &Request::turn("s1", "chunked:1:0"))
        .await;
    assert_early_head("stream = sse", &answer);
    assert_eq!(split(&answer.text()).1, events(1), "the stream follows");
    // A response to HEAD has no body.
    let routes = format!("{KEPT}stream = \"sse\"\n{}", route("/head", ""));
    let bench = Bench::start(&routes).await;
    let head = |method, script| {
        let request = Request::new(method, "/head").header("x-session", "s1");
        request
            .header("x-test-session", "s1")
            .header("x-test-script", script)
    };
    let mut holder = bench.client().await;
    holder.send(&head("GET", "gate")).await;
    until(&mut holder, &event(0)).await;
    let mut quiet = bench.client().await;
    quiet.send(&head("HEAD", "plain:x")).await;
    bench.app.wait_for_waiters(1).await;
    let mut last = bench.wait_kept(&head("GET", "chunked:1:0")).await;
    until(&mut last, ": queued position=2 ").await;
    assert_eq!(quiet.arrived(), 0, "HEAD gets nothing before its turn");
    bench.backend.open_gate("s1");
    let answer = quiet.answer().await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain"),
        "the backend's head: {answer:?}"
    );
}

#[tokio::test]
async fn a_turn_that_begins_in_time_gets_the_backends_own_head() {
    let bench = Bench::start(&format!(
        "[lock]\nblocking = true\nkeep_alive = \"1h\"\n{CHAT}[timeouts]\nidle_stream = \"2h\"\n"
    ))
    .await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.client().await;
    let request = kept("s1", "status:500:x").header("accept-encoding", "gzip");
    waiter.send(&request).await;
    bench.app.wait_for_waiters(1).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    let answer = waiter.answer().await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (500, "x"),
        "the status stays"
    );
    assert!(
        answer.header("server-timing").is_some(),
        "and what the proxy adds"
    );
    let turn = bench.backend.turns("s1").remove(1);
    assert_eq!(
        turn.header("accept-encoding"),
        Some("gzip"),
        "the request is as it was sent"
    );
}

#[tokio::test]
async fn a_kept_turn_asks_for_no_encoding() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let request = kept("s1", "chunked:1:0").header("accept-encoding", "gzip");
    let answer = bench.after_waiting("s1", &request).await;
    assert_eq!(split(&answer.text()).1, events(1), "the stream follows");
    let turn = bench.backend.turns("s1").remove(1);
    assert_eq!(
        turn.header("accept-encoding"),
        None,
        "its head names no encoding"
    );
}

// === errors ===

#[tokio::test]
async fn another_response_of_the_backend_becomes_an_error_event() {
    let (failed, refused) = ("智能体出错了", "智能体拒绝了请求");
    let no_stream = "智能体没有返回事件流";
    let (error, unfit) = ("upstream_error", "not_an_event_stream");
    let long = "x".repeat(5000);
    for (script, header, status, reason, sentence, detail) in [
        ("status:500:it broke", "", 500, error, failed, "it broke"),
        (
            "status:422:{\"a\":\"b\\nc\"}",
            "",
            422,
            error,
            refused,
            "{\"a\":\"b\\nc\"}",
        ),
        (
            "status:503:x",
            "content-encoding: gzip",
            503,
            error,
            failed,
            "the backend answered with status 503",
        ),
        (
            "nocontent",
            "",
            502,
            unfit,
            no_stream,
            "the backend answered with status 204",
        ),
        (
            "empty",
            "",
            502,
            unfit,
            no_stream,
            "the backend answered with status 200",
        ),
        (
            &format!("plain:{long}"),
            "",
            502,
            unfit,
            no_stream,
            &long[..2048],
        ),
        (
            "chunked:2:0",
            "content-encoding: gzip",
            502,
            unfit,
            "智能体返回了压缩的事件流",
            "the backend's event stream has a content encoding",
        ),
        (
            "break-length",
            "",
            502,
            "upstream_aborted",
            "智能体中断了响应",
            "the backend broke off",
        ),
        (
            "hang-text",
            "",
            504,
            "idle_timeout",
            "智能体响应超时",
            "the backend was silent for too long",
        ),
        ("hang", "", 504, "upstream_timeout", "智能体响应超时", ""),
        (
            "close",
            "",
            502,
            "upstream_unreachable",
            "智能体没有响应",
            "",
        ),
    ] {
        let timeouts = "[timeouts]\nidle_stream = \"600ms\"\nresponse_head = \"600ms\"\n";
        let bench = Bench::start(&format!("{KEPT}{CHAT}{timeouts}")).await;
        let mut request = kept("s1", script);
        if !header.is_empty() {
            request = request.header("x-test-answer", header);
        }
        let answer = bench.after_waiting("s1", &request).await;
        let data = error_of(script, &answer);
        let members: BTreeSet<_> = data.as_object().expect("an object").keys().collect();
        assert!(
            ["detail", "error", "status_code", "success"]
                .iter()
                .all(|it| members.contains(&(*it).to_owned())),
            "{script}: the four members of the contract: {data}"
        );
        assert_eq!(
            (&data["status_code"], &data["success"]),
            (&json!(status), &json!(false)),
            "{script}: the status: {data}"
        );
        assert_eq!(
            (&data["error"], &data["reason"]),
            (&json!(sentence), &json!(reason)),
            "{script}: {data}"
        );
        if !detail.is_empty() {
            assert_eq!(data["detail"], detail, "{script}: {data}");
        }
        bench.assert_still_serves().await;
        let free = bench.call(&Request::turn("s1", "plain:ok")).await;
        assert_eq!(free.status, 200, "{script}: the session is free");
    }
}

#[tokio::test]
async fn comments_go_on_while_another_response_is_read() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.wait_kept(&kept("s1", "hang-text")).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    until(&mut waiter, ": running\n\n: running\n\n: running\n\n").await;
    let freed = release(&bench.app, "s1").await;
    assert_eq!(
        freed.status, 200,
        "an operator releases the lock: {freed:?}"
    );
    let data = error_of("a lost lock", &waiter.answer().await);
    assert_eq!(
        (
            &data["status_code"],
            &data["reason"],
            &data["retry_after_ms"]
        ),
        (&json!(503), &json!("lock_lost"), &json!(1000)),
        "the lock was lost: {data}"
    );
    assert_ne!(
        data["detail"], "first words",
        "and the agent is not to blame: {data}"
    );
}

async fn release(app: &App, session: &str) -> Answer {
    let mut operator = Client::connect(app.admin()).await;
    operator
        .call(&Request::new("DELETE", &format!("/locks/u1/{session}")))
        .await
}

#[tokio::test]
async fn an_error_of_the_queue_becomes_an_error_event() {
    for (busy, place, reason, members) in [
        (
            "",
            "",
            "/reason",
            ["retry_after_ms", "busy_since", "queue"].as_slice(),
        ),
        ("explain = false", "", "/reason", &[]),
        ("format = \"json-rpc\"", "/error/data", "/reason", &[]),
        ("format = \"openai\"", "", "/error/code", &[]),
    ] {
        let config = format!("{KEPT}blocking_timeout = \"400ms\"\n[busy]\n{busy}\n{CHAT}");
        let bench = Bench::start(&config).await;
        let _holder = bench.hold("s1").await;
        let answer = bench.client().await.call(&kept("s1", "plain:x")).await;
        let data = error_of(busy, &answer);
        let content = data.pointer(place).expect("the contract's members");
        assert_eq!(
            (content.pointer("/status_code"), content.pointer(reason)),
            (Some(&json!(429)), Some(&json!("wait_timeout"))),
            "{busy}: a turn that waited too long: {data}"
        );
        for member in ["retry_after_ms", "busy_since", "queue"] {
            assert_eq!(
                content.get(member).is_some(),
                members.contains(&member),
                "{busy}: `explain` decides on {member}: {data}"
            );
        }
    }
}

#[tokio::test]
async fn the_error_inside_a_stream_is_one_of_the_protocol() {
    let text = "的".repeat(2000);
    for (format, expected) in [
        (
            "ai-sdk",
            format!("data: {{\"type\":\"error\",\"errorText\":\"{text}\"}}\n\n"),
        ),
        (
            "ag-ui",
            format!(
                "data: {{\"type\":\"RUN_ERROR\",\"message\":\"{text}\",\"code\":\"wait_timeout\"}}\n\n"
            ),
        ),
    ] {
        let busy = format!("format = \"{format}\"\nerror = \"{text}\"");
        let config =
            format!("{KEPT}blocking_timeout = \"400ms\"\nmax_waiters = 1\n[busy]\n{busy}\n{CHAT}");
        let bench = Bench::start(&config).await;
        let _holder = bench.hold("s1").await;
        let mut waiter = bench.wait_kept(&kept("s1", "plain:x")).await;
        let full = bench.call(&kept("s1", "plain:x")).await;
        assert_error_response(format, &full, 429, "queue_full");
        let json = full.json();
        assert_eq!(
            (&json["error"], json["retry_after_ms"].is_u64()),
            (&json!(text), true),
            "{format}: the body of a response is that of `json`: {json}"
        );
        let answer = waiter.answer().await;
        let (_, rest) = split(&answer.text());
        assert_eq!(
            (&rest, answer.whole),
            (&expected, true),
            "{format}: an event without a name, whole however long its sentence is"
        );
    }
}

#[tokio::test]
async fn a_refusal_that_is_known_before_the_first_byte_keeps_its_status() {
    let config = "[lock]\nblocking = true\nkeep_alive = \"1m\"\nmax_waiters = 1\n\
                  blocking_timeout = \"500ms\"\n";
    let bench = Bench::start(&format!("{config}{CHAT}")).await;
    let _holder = bench.hold("s1").await;
    let mut first = bench.client().await;
    first.send(&kept("s1", "plain:x")).await;
    bench.app.wait_for_waiters(1).await;
    let full = bench.call(&kept("s1", "plain:x")).await;
    assert_error_response("a full queue", &full, 429, "queue_full");
    let late = first.answer().await;
    assert_error_response("a wait that is over before", &late, 429, "wait_timeout");
}

#[tokio::test]
async fn a_kept_client_is_told_that_a_newer_turn_replaces_its_own() {
    // The interrupted holder keeps its lock for a while, and the next turn waiting.
    let config = "[lock]\nblocking = true\nkeep_alive = \"100ms\"\ninterrupt = true\nsettle_cancelled = \"3s\"\n";
    let slow = Bench::start(&format!("{config}{CHAT}")).await;
    let mut holder = slow.hold("s1").await;
    let mut second = slow.wait_kept(&kept("s1", "chunked:1:0")).await;
    let mut newest = slow.client().await;
    newest.send(&kept("s1", "chunked:1:0")).await;
    let data = error_of("superseded", &second.answer().await);
    assert_eq!(data["status_code"], 409, "it was replaced: {data}");
    assert!(!holder.answer().await.whole, "the running turn is aborted");
    let answer = newest.answer().await;
    assert_eq!(
        split(&answer.text()).1,
        events(1),
        "the newest turn is served"
    );
}

#[tokio::test]
async fn a_kept_client_is_told_that_an_operator_took_its_turn_out_of_the_queue() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let _holder = bench.hold("s1").await;
    let request = kept("s1", "plain:x").header("x-request-id", "r-1");
    let mut waiter = bench.wait_kept(&request).await;
    let mut operator = Client::connect(bench.app.admin()).await;
    let target = "/locks/u1/s1/queue/r-1";
    let taken = operator.call(&Request::new("DELETE", target)).await;
    assert_eq!(taken.status, 200, "an operator takes it out: {taken:?}");
    let data = error_of("dequeued", &waiter.answer().await);
    assert_eq!(
        (
            &data["status_code"],
            &data["reason"],
            data.get("retry_after_ms")
        ),
        (&json!(409), &json!("dequeued"), None),
        "it was taken out: {data}"
    );
}

#[tokio::test]
async fn a_kept_client_is_told_that_the_process_stops() {
    let replicas = Replicas::on_redis().await;
    let process = replicas.process("", KEPT);
    let mut holder = begin_turn(process.addr(), "s1", "gate").await;
    until(&mut holder, &event(0)).await;
    let mut waiter = Client::connect(process.addr()).await;
    waiter.send(&kept("s1", "plain:x")).await;
    until(&mut waiter, ": queued ").await;
    process.signal("TERM");
    let data = error_of("draining", &waiter.answer().await);
    assert_eq!(
        (&data["reason"], &data["retry_after_ms"]),
        (&json!("draining"), &json!(1000)),
        "what the headers of a response would say: {data}"
    );
    assert_eq!(
        data["status_code"], 503,
        "another replica can serve it: {data}"
    );
    replicas.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the running turn may end");
    let (status, log) = process.end();
    assert!(status.success(), "the process ends: {status}");
    let told = log.iter().find(|event| event["outcome"] == "draining");
    let told = told.expect("the access log has the waiter");
    assert_eq!(
        (&told["status"], &told["early"]),
        (&json!(503), &json!(true)),
        "the log has the status that the client was told: {told}"
    );
    replicas.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_kept_client_is_told_that_the_store_did_not_come_back() {
    let config = format!("{KEPT}blocking_timeout = \"1500ms\"\n{CHAT}");
    let bench = Setup::new(&config).on_faulty_network().await;
    let _holder = bench.hold("s1").await;
    let mut waiter = bench.wait_kept(&kept("s1", "plain:x")).await;
    bench.network.set(Mode::Reset).await;
    until(&mut waiter, ": queued waiting=1s").await;
    let data = error_of("the store is lost", &waiter.answer().await);
    assert_eq!(
        (&data["reason"], &data["retry_after_ms"]),
        (&json!("store_unavailable"), &json!(1000)),
        "what the headers of a response would say: {data}"
    );
    assert_eq!(data["status_code"], 503, "the store failed: {data}");
    bench.network.set(Mode::Pass).await;
}

// === clients that leave, and that send late ===

#[tokio::test]
async fn a_kept_client_that_leaves_takes_its_turn_out_of_the_queue() {
    let config = format!("{KEPT}{CHAT}");
    let bench = Setup::new(&config).replicas(2).on_redis().await;
    let mut holder = bench.hold("s1").await;
    let leaver = bench
        .wait_kept(&kept("s1", "chunked:1:0").header("x-n", "leaver"))
        .await;
    let mut last = bench.wait_kept(&kept("s1", "chunked:1:0")).await;
    leaver.close();
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    until(&mut last, ": queued position=1 ").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    assert!(last.answer().await.whole, "the turns behind it move up");
    let turns = bench.backend.turns("s1");
    assert!(
        turns.iter().all(|turn| turn.header("x-n").is_none()),
        "its turn never reaches the backend"
    );
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_kept_turn_whose_client_leaves_while_it_runs_is_cancelled_or_goes_on() {
    for (option, ending) in [
        ("", Ending::PeerGone),
        ("on_disconnect = \"continue\"\n", Ending::Finished),
    ] {
        for script in ["gate-head", "gate"] {
            let config = format!("{KEPT}{option}{CHAT}");
            let bench = Setup::new(&config).on_redis().await;
            let mut holder = bench.hold("s1").await;
            let waiter = bench.wait_kept(&kept("s1", script)).await;
            bench.backend.open_gate("s1");
            assert!(holder.answer().await.whole, "the holder isn't affected");
            bench.backend.started("s1", 2).await;
            waiter.close();
            if ending == Ending::Finished {
                // It holds its lock meanwhile.
                let left = async || bench.redis.keys().await.len() == 2;
                wait_for_async(left, "the turn goes on").await;
                bench.backend.open_gate("s1");
            }
            bench.backend.ended("s1", 2).await;
            let turn = bench.backend.turns("s1").remove(1);
            assert_eq!(turn.ending, Some(ending), "{option}{script}");
            bench.wait_until_no_keys().await;
        }
    }
}

#[tokio::test]
async fn a_body_may_arrive_while_its_client_is_kept() {
    let options = "blocking = true\nkeep_alive = \"100ms\"";
    let bench = Bench::start(&route("/upload", options)).await;
    let upload = |script| {
        let request = Request::post("/upload").header("x-session", "s1");
        let request = request
            .header("x-test-session", "s1")
            .header("x-test-script", script);
        request
            .header("accept", "text/event-stream")
            .header("transfer-encoding", "chunked")
    };
    let mut holder = bench.client().await;
    holder.send_head(&upload("gate")).await;
    holder.send_raw(b"0\r\n\r\n").await;
    until(&mut holder, &event(0)).await;
    let mut waiter = bench.client().await;
    waiter.send_head(&upload("chunked:1:0")).await;
    waiter.send_raw(b"3\r\none\r\n").await;
    until(&mut waiter, ": queued position=1").await;
    waiter.send_raw(b"3\r\ntwo\r\n").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    until(&mut waiter, ": running").await;
    waiter.send_raw(b"5\r\nthree\r\n0\r\n\r\n").await;
    let answer = waiter.answer().await;
    assert_eq!(split(&answer.text()).1, events(1), "the stream follows");
    let turn = bench.backend.turns("s1").remove(1);
    assert_eq!(
        turn.text(),
        "onetwothree",
        "the backend gets the whole body"
    );
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked_before_the_head() {
    let options = "blocking = true\nkeep_alive = \"100ms\"";
    // No room to read a body ahead, so nobody asks for it while the turn waits.
    let limits = "[limits]\nmax_buffered = \"64KiB\"\nmax_body = \"64KiB\"\nread_before_lock = 0\n";
    let bench = Bench::start(&format!("{limits}{}", route("/upload", options))).await;
    let upload = |script: &str| {
        let request = Request::post("/upload").header("x-session", "s1");
        request
            .header("x-test-session", "s1")
            .header("x-test-script", script)
    };
    let mut holder = bench.client().await;
    holder.send(&upload("gate").body("x")).await;
    until(&mut holder, &event(0)).await;
    // Its body takes the room.
    let mut large = bench.client().await;
    let request = upload("chunked:1:0").header("accept", "text/event-stream");
    large
        .send(&request.clone().body(vec![b'x'; 40 << 10]))
        .await;
    until(&mut large, ": queued position=1 ").await;
    let mut waiter = bench.client().await;
    let asking = request
        .clone()
        .header("expect", "100-continue")
        .header("content-length", "3");
    waiter.send_head(&asking).await;
    bench.app.wait_for_waiters(2).await;
    until(&mut large, "waiting=1s").await;
    assert_eq!(
        waiter.arrived(),
        0,
        "no head before the client is asked for its body"
    );
    bench.backend.open_gate("s1");
    assert!(large.answer().await.whole, "the other one is served");
    let asked = waiter.raw(25).await;
    assert_eq!(
        asked, b"HTTP/1.1 100 Continue\r\n\r\n",
        "the client is asked first"
    );
    waiter.send_raw(b"abc").await;
    assert!(waiter.answer().await.whole, "and gets its response");
}

#[tokio::test]
async fn no_interim_response_follows_an_early_head() {
    let backend = RawBackend::start(|mut socket, number| async move {
        let head = read_head(&mut socket).await.expect("a turn");
        assert!(head.contains("content-length: 34\r\n"), "a turn's body: {head}");
        socket.read_exact(&mut [0; 34]).await.expect("a body");
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let written = socket.write_all(interim.as_bytes()).await;
        written.expect("the proxy reads");
        // The proxy handles the interim response first.
        sleep(Duration::from_millis(50)).await;
        let response = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
                        data: x\n\n";
        let written = socket.write_all(response.as_bytes()).await;
        written.expect("the proxy reads");
        if number == 0 {
            // Long enough for the other turn to be kept.
            sleep(Duration::from_millis(700)).await;
        }
    })
    .await;
    let app = App::start(&backend.url(), "memory:", "", &format!("{KEPT}{CHAT}"));
    let mut holder = Client::connect(app.addr()).await;
    holder.send(&kept("s1", "-")).await;
    until(&mut holder, "data: x").await;
    let mut waiter = Client::connect(app.addr()).await;
    waiter.send(&kept("s1", "-")).await;
    until(&mut waiter, ": queued ").await;
    let answer = waiter.answer().await;
    assert_eq!(
        holder.answer().await.interim,
        [103],
        "it passes before a response"
    );
    assert_early_head("interim", &answer);
    assert_eq!(
        (
            split(&answer.text()).1.as_str(),
            answer.whole,
            &*answer.interim
        ),
        ("data: x\n\n", true, &[][..]),
        "and is dropped behind an early head"
    );
}

// === other ways to be a client ===

#[tokio::test]
async fn clients_of_http2_are_kept_too() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let mut holder = bench.hold("s1").await;
    let mut client = H2::connect(bench.app.addr()).await;
    let mut request = h2_client::turn("s1", "chunked:3:10");
    let accept = HeaderValue::from_static("text/event-stream");
    request.headers_mut().insert("accept", accept);
    let mut answer = client.send(request).await.expect("a head");
    answer.until(": queued position=1 ").await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    answer.rest().await.expect("a whole response");
    assert_eq!(split(&answer.text()).1, events(3), "the stream follows");
    assert_eq!(
        answer.head.headers()["content-type"],
        "text/event-stream",
        "the head is that of an event stream"
    );
    // A client that resets its stream leaves the queue.
    let _holder = bench.hold("s2").await;
    let mut request = h2_client::turn("s2", "chunked:3:10");
    request
        .headers_mut()
        .insert("accept", HeaderValue::from_static("text/event-stream"));
    let mut leaver = client.send(request).await.expect("a head");
    leaver.until(": queued ").await;
    bench.app.wait_for_waiters(1).await;
    drop(leaver);
    bench.app.wait_for_waiters(0).await;
}

#[tokio::test]
async fn a_page_of_another_origin_is_kept_once_it_is_known_that_it_can_read_the_head() {
    const PAGE: &str = "https://page.example";
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let mut holder = bench.hold("s1").await;
    let other = kept("s1", "chunked:1:0").header("origin", PAGE);
    let mut unknown = bench.client().await;
    unknown.send(&other).await;
    bench.app.wait_for_waiters(1).await;
    let host = bench.app.addr().to_string();
    let own = kept("s1", "chunked:1:0").header("origin", &format!("http://{host}"));
    let mut own = bench.wait_kept(&own).await;
    until(&mut own, ": queued position=2 ").await;
    assert_eq!(
        unknown.arrived(),
        0,
        "the page could not read an early head"
    );
    let preflight = Request::new("OPTIONS", "/chat")
        .header("origin", PAGE)
        .header("access-control-request-method", "POST")
        .header("x-test-session", "-")
        .header(
            "x-test-answer",
            &format!("access-control-allow-origin: {PAGE}"),
        );
    assert_eq!(
        bench.call(&preflight).await.status,
        200,
        "the backend allows it"
    );
    let mut allowed = bench.wait_kept(&other).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    assert!(
        unknown.answer().await.whole && own.answer().await.whole,
        "all are served"
    );
    let answer = allowed.answer().await;
    assert_eq!(
        (
            answer.header("access-control-allow-origin"),
            answer.header("vary")
        ),
        (Some(PAGE), Some("origin")),
        "the early head allows what the backend allows: {answer:?}"
    );
    assert_eq!(split(&answer.text()).1, events(1), "the stream follows");
}

// === while the backend is silent ===

/// What a client got behind the comments of its wait: `stream` with [`SILENT`] in some places. Asserts that these places
/// are among `ends`, and that the backend's silence at the byte `at` is filled if it is one of them.
fn assert_silence_filled(case: &str, got: &[u8], stream: &str, at: usize, ends: &[usize]) {
    let text = std::str::from_utf8(got).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(
        text.replace(SILENT, ""),
        stream,
        "{case}: without the comments it is the backend's stream"
    );
    let places: BTreeSet<_> = text
        .match_indices(SILENT)
        .map(|(place, _)| text[..place].replace(SILENT, "").len())
        .collect();
    assert_eq!(
        places.contains(&at),
        ends.contains(&at),
        "{case}: comments fill the silence, unless it is inside an event"
    );
    assert!(
        places.iter().all(|place| ends.contains(place)),
        "{case}: no comment is inside an event: {text:?}"
    );
}

/// Where comments may stand in this stream.
fn ends_of_events(stream: &str, eol: &str) -> Vec<usize> {
    let ends = (0..=stream.len()).filter(|at| {
        let before = stream.as_bytes().get(..*at).unwrap_or_default();
        *at == 0 || before.ends_with(format!("{eol}{eol}").as_bytes())
    });
    let ends: Vec<usize> = ends.collect();
    assert_eq!(
        ends.len(),
        4,
        "the beginning, and the ends of two events and a comment"
    );
    ends
}

#[tokio::test]
async fn comments_stand_only_where_an_event_has_ended() {
    let bench = Bench::start(&format!("[lock]\nkeep_alive = \"100ms\"\n{CHAT}")).await;
    for (name, eol) in [("lf", "\n"), ("crlf", "\r\n")] {
        let stream = stream_with(eol);
        let ends = ends_of_events(&stream, eol);
        let mut turns = Vec::new();
        for at in 0..=stream.len() {
            let session = format!("{name} {at}");
            let client = begin_turn(bench.app.addr(), &session, &format!("cut:{at}:{name}")).await;
            turns.push((at, session, client));
        }
        for (at, _, client) in &mut turns {
            if ends.contains(at) {
                until(client, SILENT).await;
            }
        }
        // Each of the others has been silent for as long and longer.
        sleep(Duration::from_millis(250)).await;
        for (at, session, mut client) in turns {
            bench.backend.open_gate(&session);
            let answer = client.answer().await;
            assert!(answer.whole, "{session}: {answer:?}");
            assert_silence_filled(&session, &answer.body, &stream, at, &ends);
        }
    }
}

#[tokio::test]
async fn behind_a_wait_comments_stand_only_where_an_event_has_ended() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    for (script, name, eol) in [
        ("cut", "lf", "\n"),
        ("cut", "crlf", "\r\n"),
        ("cut-length", "lf", "\n"),
    ] {
        let stream = stream_with(eol);
        let ends = ends_of_events(&stream, eol);
        let mut turns = Vec::new();
        // With all its announced bytes, a response is over.
        let cuts = stream.len() + usize::from(script == "cut");
        for at in 0..cuts {
            let session = format!("{script} {name} {at}");
            let holder = bench.hold(&session).await;
            let request = kept(&session, &format!("{script}:{at}:{name}"));
            let mut waiter = bench.client().await;
            waiter.send(&request).await;
            turns.push((at, session, holder, waiter));
        }
        for (_, _, _, waiter) in &mut turns {
            until(waiter, ": queued ").await;
        }
        for (_, session, holder, _) in &mut turns {
            bench.backend.open_gate(session);
            assert!(holder.answer().await.whole, "{session}: the holder");
        }
        for (at, session, _, waiter) in &mut turns {
            bench.backend.started(session, 2).await;
            if ends.contains(at) {
                until(waiter, SILENT).await;
            }
        }
        // Each of the others has been silent for as long and longer.
        sleep(Duration::from_millis(250)).await;
        for (at, session, _, mut waiter) in turns {
            bench.backend.open_gate(&session);
            let answer = waiter.answer().await;
            assert!(answer.whole, "{session}: {answer:?}");
            assert_early_head(&session, &answer);
            assert_eq!(
                (
                    answer.header("content-length"),
                    answer.header("transfer-encoding")
                ),
                (None, Some("chunked")),
                "{session}: the early head has announced no length"
            );
            let of_wait = |rest: &[u8]| {
                let starts = [&b": queued "[..], b": running\n"];
                starts.iter().any(|start| rest.starts_with(start))
            };
            let mut rest = &*answer.body;
            while of_wait(rest) {
                let end = rest.windows(2).position(|pair| pair == b"\n\n");
                rest = &rest[end.expect("the comment ends") + 2..];
            }
            assert_silence_filled(&session, rest, &stream, at, &ends);
        }
    }
}

#[tokio::test]
async fn comments_stand_behind_a_wait_as_well() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let mut holder = bench.hold("s1").await;
    let mut waiter = bench.wait_kept(&kept("s1", "gate")).await;
    bench.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    until(&mut waiter, &format!("{}{SILENT}{SILENT}", event(0))).await;
    bench.backend.open_gate("s1");
    let answer = waiter.answer().await;
    let (_, rest) = split(&answer.text());
    assert_eq!(rest.replace(SILENT, ""), event(0), "the stream is whole");
}

#[tokio::test]
async fn nothing_is_added_to_other_responses() {
    let config = format!(
        "[lock]\nkeep_alive = \"100ms\"\n{CHAT}{}",
        route("/plain", "lock_timeout = 60")
    );
    let bench = Bench::start(&config).await;
    // `length` has announced its bytes; the other two are no event streams that a client can read as they are.
    for (script, header, expected) in [
        ("length:2:400", "x: y", events(2)),
        ("chunked:2:400", "content-encoding: x", events(2)),
        ("gate-head", "x: y", "open".into()),
    ] {
        let request = kept("s1", script).header("x-test-answer", header);
        let mut client = bench.client().await;
        client.send(&request).await;
        if script == "gate-head" {
            bench.backend.started("s1", 3).await;
            sleep(Duration::from_millis(300)).await;
            bench.backend.open_gate("s1");
        }
        let answer = client.answer().await;
        assert_eq!(
            (answer.text(), answer.whole),
            (expected, true),
            "{script} {header}"
        );
    }
}

#[tokio::test]
async fn comments_do_not_keep_a_backend_that_is_silent_for_too_long() {
    let config = format!("{KEPT}{CHAT}[timeouts]\nidle_stream = \"500ms\"\n");
    let bench = Bench::start(&config).await;
    let mut first = begin_turn(bench.app.addr(), "s1", "hang-middle").await;
    until(&mut first, SILENT).await;
    let mut waiter = bench.wait_kept(&kept("s1", "hang-middle")).await;
    let answer = within("the end of a silent backend", first.answer()).await;
    assert!(
        !answer.whole && answer.text().starts_with(&event(0)),
        "a silent backend is left: {answer:?}"
    );
    let answer = within("the end of a silent backend", waiter.answer()).await;
    assert!(!answer.whole, "also behind a wait: {answer:?}");
    bench.assert_still_serves().await;
}

// === what operators see ===

#[tokio::test]
async fn the_log_and_the_metrics_say_which_responses_began_early() {
    let replicas = Replicas::on_redis().await;
    let process = replicas.process("", KEPT);
    let mut holder = begin_turn(process.addr(), "s1", "gate").await;
    until(&mut holder, &event(0)).await;
    let mut waiters = Vec::new();
    for script in [
        "chunked:1:0",
        "status:500:x",
        "status:404:x",
        "plain:x",
        "nocontent",
        "break-length",
        "close",
        "gate",
        "-",
    ] {
        let mut client = Client::connect(process.addr()).await;
        client.send(&kept("s1", script)).await;
        until(&mut client, ": queued ").await;
        waiters.push(client);
    }
    // One leaves while it waits, another while it runs.
    waiters.pop().expect("the last one").close();
    wait_for_queue_length(&replicas.redis, "s1", 8).await;
    let leaver = waiters.pop().expect("the one before");
    replicas.backend.open_gate("s1");
    assert!(holder.answer().await.whole, "the holder isn't affected");
    for mut waiter in waiters {
        assert!(waiter.answer().await.whole, "each response is complete");
    }
    replicas.backend.started("s1", 9).await;
    leaver.close();
    replicas.wait_until_no_keys().await;
    let mut operator = Client::connect(process.admin()).await;
    let metrics = operator.get("/metrics").await.text();
    assert!(
        metrics.contains(
            "seriatim_requests_total{route=\"chat\",outcome=\"not_an_event_stream\"} 2\n"
        ),
        "a response that can't be handed on has an outcome of its own: {metrics}"
    );
    assert!(
        metrics.contains("seriatim_early_responses_total{route=\"chat\"} 9\n"),
        "nine responses began early: {metrics}"
    );
    let status = operator.get("/status").await.json();
    let recent = status["recent"].as_array().expect("a list");
    let unfit = recent
        .iter()
        .filter(|event| event["outcome"] == "not_an_event_stream");
    let statuses: Vec<_> = unfit.map(|event| &event["status"]).collect();
    assert_eq!(
        statuses,
        [502, 502],
        "operators see them among refusals: {status}"
    );
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("seriatim_keep_alive_comments_total{route=\"chat\"} "));
    let counted: u64 = counted.expect("comments").parse().expect("a number");
    process.signal("TERM");
    let (_, log) = process.end();
    let access = log
        .iter()
        .filter(|event| event["target"] == "seriatim::access");
    let access: Vec<_> = access.filter(|event| event["key"].is_string()).collect();
    let comments = access.iter().filter_map(|event| event["comments"].as_u64());
    let comments: Vec<_> = comments.collect();
    assert_eq!(
        (comments.len(), comments.iter().sum()),
        (10, counted),
        "each client was kept, and the log and the metrics count the same: {access:?}"
    );
    let mut seen: Vec<_> = access
        .iter()
        .map(|event| {
            let early = event["early"].as_bool().unwrap_or_default();
            let error = event["error"].as_str().unwrap_or_default();
            let status = event["status"].as_u64().unwrap_or_default();
            let outcome = event["outcome"].as_str().expect("an outcome");
            (outcome, status, early, error)
        })
        .collect();
    seen.sort();
    // The causes of these two are told elsewhere.
    for (outcome, _, _, error) in &mut seen {
        if ["upstream_aborted", "upstream_unreachable"].contains(outcome) {
            assert!(!error.is_empty(), "the log has the cause of {outcome}");
            *error = "";
        }
    }
    let expected = [
        ("client_gone", 200, true, ""),
        ("client_gone", 200, true, ""),
        ("complete", 200, false, ""),
        ("complete", 200, true, ""),
        ("complete", 404, true, ""),
        ("complete", 500, true, ""),
        ("not_an_event_stream", 502, true, "content type text/plain"),
        ("not_an_event_stream", 502, true, "status 204"),
        ("upstream_aborted", 502, true, ""),
        ("upstream_unreachable", 502, true, ""),
    ];
    assert_eq!(
        seen, expected,
        "the log has the status that the client was told"
    );
}

#[tokio::test]
async fn comments_are_no_bytes_of_the_turn() {
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let quietest = async || {
        let value = bench.app.metric("seriatim_quietest_turn_seconds").await;
        value.parse::<f64>().expect("a number")
    };
    for script in ["hang-middle", "hang"] {
        let mut holder = bench.hold("s1").await;
        let mut waiter = bench.wait_kept(&kept("s1", script)).await;
        bench.backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the holder isn't affected");
        let comment = match script {
            "hang" => ": running\n\n",
            _ => SILENT,
        };
        until(&mut waiter, &comment.repeat(3)).await;
        let name = "seriatim_keep_alive_comments_total{route=\"chat\"}";
        let before: u64 = bench.app.metric(name).await.parse().expect("a number");
        let rises = async || {
            bench
                .app
                .metric(name)
                .await
                .parse::<u64>()
                .is_ok_and(|now| now > before)
        };
        wait_for_async(rises, "a comment is counted when it is sent").await;
        let is_quiet = async || quietest().await > 1.0;
        wait_for_async(is_quiet, "the turn is quiet while comments move").await;
        waiter.close();
        bench.app.wait_for_waiters(0).await;
        let is_over = async || bench.app.metric("seriatim_locks_held").await == "0";
        wait_for_async(is_over, "the turn ends").await;
    }
}

#[tokio::test]
async fn explain_says_whether_a_client_is_kept() {
    let read = |lock: &str| {
        let text = format!("upstream = \"http://127.0.0.1:1\"\n[lock]\n{lock}\n{CHAT}");
        Config::read("test", &text, &Vec::new()).expect("the configuration is valid")
    };
    for (lock, accept, expected) in [
        ("blocking = true", "text/event-stream", None),
        ("keep_alive = 1", "text/event-stream", None),
        (
            "blocking = true\nkeep_alive = 5\nblocking_timeout = 5",
            "text/event-stream",
            None,
        ),
        (
            "blocking = true\nkeep_alive = 1\nenforce = false",
            "text/event-stream",
            None,
        ),
        (
            "blocking = true\nkeep_alive = 1",
            "a/b, Text/Event-Stream;q=0.5",
            Some(KeptClient::Kept),
        ),
        (
            "blocking = true\nkeep_alive = 1",
            "*/*",
            Some(KeptClient::ReadsNoEvents),
        ),
        (
            "blocking = true\nkeep_alive = 1\nstream = \"sse\"",
            "*/*",
            Some(KeptClient::Kept),
        ),
    ] {
        let head = http::Request::post("/chat")
            .header("host", "x")
            .header("accept", accept);
        let (head, ()) = head.body(()).expect("a request").into_parts();
        let explained = explain(&read(lock), head, r#"{"session_id":"s"}"#.into()).await;
        assert_eq!(explained.keeps_client, expected, "{lock}, accept: {accept}");
    }
}

#[tokio::test]
async fn observed_turns_and_calls_of_the_own_session_are_never_kept() {
    let bench = Bench::start(&format!("{KEPT}enforce = false\n{CHAT}")).await;
    let mut holder = bench.hold("s1").await;
    let answer = bench.call(&kept("s1", "plain:x")).await;
    assert_eq!(
        (answer.status, &*answer.text()),
        (200, "x"),
        "an observed turn is not delayed"
    );
    bench.backend.open_gate("s1");
    holder.answer().await;
    let bench = Bench::start(&format!("{KEPT}{CHAT}")).await;
    let _holder = bench.hold("s1").await;
    let turn = bench.backend.turns("s1").remove(0);
    let tag = turn.header("x-seriatim-turn").expect("a turn has a tag");
    let nested = bench
        .call(&kept("s1", "plain:x").header("x-seriatim-turn", tag))
        .await;
    assert_error_response("a nested call", &nested, 409, "would_deadlock");
}

#[tokio::test]
async fn turns_run_without_a_lost_store_behind_an_early_head() {
    let config = format!("{KEPT}{CHAT}");
    let setup = Setup::new(&config).store("on_error = \"allow\"\n");
    let bench = setup.on_faulty_network().await;
    let _holder = bench.hold("s1").await;
    let mut waiter = bench.wait_kept(&kept("s1", "chunked:1:0")).await;
    bench.network.set(Mode::Blackhole).await;
    let answer = waiter.answer().await;
    assert_eq!(
        (split(&answer.text()).1, answer.whole),
        (events(1), true),
        "on_error decides for a kept turn as for any other"
    );
    bench.network.set(Mode::Pass).await;
}
