//! Kept answers: requests that attach to a turn read its answer from the first byte and then live, and requests that
//! stop it end it for everybody.
//!
//! All tests have one replica with locks in memory.

use seriatim::config::Config;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::app::{App, CHAT};
use crate::support::backend::{Backend, Ending, TRAILER, event, events, stream_with};
use crate::support::bench::{Bench, assert_error_response};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::h2_client::{self, H2};
use crate::support::kept::{RESUME, assert_whole, attach, attached, streaming, wait_for_viewers};
use crate::support::process::Process;
use crate::support::raw::RawBackend;
use crate::support::{wait_for_async, within};

async fn start(tables: &str) -> Bench {
    Bench::start(&format!("{tables}{RESUME}{CHAT}")).await
}

fn stop(session: &str) -> Request {
    Request::new("DELETE", &format!("/chat/{session}/stream"))
}

impl Bench {
    /// A client that attaches to the session's turn, and reads nothing yet.
    async fn attached(&self, session: &str) -> Client {
        attached(self.app.addr(), session).await
    }

    async fn wait_for_viewers(&self, count: usize) {
        wait_for_viewers(&self.app, count).await;
    }
}

// === attaching ===

#[tokio::test]
async fn a_client_that_comes_back_gets_the_answer_from_its_first_byte_and_then_live() {
    let bench = start("").await;
    let text = stream_with("\n");
    // In the middle of the response, and before its head.
    for (session, script, begins) in [("s1", "cut:30:lf", true), ("s2", "gate-head", false)] {
        let request = Request::turn(session, script).header("accept-encoding", "gzip");
        let mut first = bench.client().await;
        first.send(&request).await;
        bench.backend.started(session, 1).await;
        if begins {
            first.read_until("id: 1").await;
        }
        first.half_close().await;
        first.read_to_close().await;
        let mut again = bench.attached(session).await;
        if begins {
            again.read_until("id: 1").await;
        }
        assert_eq!(
            bench.backend.running(session),
            1,
            "the turn goes on: {script}"
        );
        bench.backend.open_gate(session);
        let answer = again.answer().await;
        let text = if begins { &*text } else { "open" };
        assert_whole(script, &answer, text);
        let later = bench.call(&attach(session)).await;
        assert_whole("an answer that has ended", &later, text);
        assert_eq!(
            later.header("content-type"),
            answer.header("content-type"),
            "with the same head"
        );
        assert_eq!(
            bench.backend.turns(session).len(),
            1,
            "the backend saw one turn"
        );
        assert!(
            bench.backend.turns(session)[0]
                .header("accept-encoding")
                .is_none(),
            "in a form that anybody can read"
        );
    }
}

#[tokio::test]
async fn any_number_of_viewers_read_beside_the_first_client() {
    let bench = start("").await;
    let mut first = begin_turn(bench.app.addr(), "s1", "cut:30:lf").await;
    first.read_until("id: 1").await;
    let mut viewers = Vec::new();
    for _ in 0..5 {
        let mut viewer = bench.attached("s1").await;
        viewer.read_until("id: 1").await;
        viewers.push(viewer);
    }
    bench.wait_for_viewers(5).await;
    // One that leaves is missed by nobody.
    viewers.remove(2).reset();
    bench.wait_for_viewers(4).await;
    bench.backend.open_gate("s1");
    let text = stream_with("\n");
    assert_whole("the first client", &first.answer().await, &text);
    for mut viewer in viewers {
        assert_whole("a viewer", &viewer.answer().await, &text);
    }
    bench.wait_for_viewers(0).await;
    let metrics = Client::connect(bench.app.admin())
        .await
        .get("/metrics")
        .await;
    let line = "seriatim_replays_total{route=\"attach\",kind=\"live\"} 5";
    assert!(metrics.text().contains(line), "{}", metrics.text());
}

#[tokio::test]
async fn a_viewer_that_reads_nothing_delays_nobody() {
    let bench = start("").await;
    let script = "big:3000000";
    let mut first = begin_turn(bench.app.addr(), "s1", script).await;
    first.head().await;
    let mut idle = Client::connect_narrow(bench.app.addr(), 4096).await;
    idle.send(&attach("s1")).await;
    bench.wait_for_viewers(1).await;
    let mut viewer = bench.attached("s1").await;
    let text = "x".repeat(3_000_000);
    assert_whole("the first client", &first.answer().await, &text);
    assert_whole("another viewer", &viewer.answer().await, &text);
    assert_whole("late, but whole", &idle.answer().await, &text);
}

#[tokio::test]
async fn whoever_sees_the_end_may_send_the_next_turn() {
    let bench = start("").await;
    for _ in 0..50 {
        let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
        first.read_until(&event(0)).await;
        let mut viewer = bench.attached("s1").await;
        viewer.read_until(&event(0)).await;
        bench.backend.open_gate("s1");
        assert!(viewer.answer().await.whole, "the answer ends");
        let next = turn(bench.app.addr(), "s1", "plain:next").await;
        assert_eq!(next.status, 200, "the session is free: {next:?}");
    }
}

#[tokio::test]
async fn an_answer_of_any_form_can_be_read_again() {
    let bench = start("").await;
    for (script, status, text) in [
        ("plain:{}", 200, "{}".to_owned()),
        ("length:3:0", 200, events(3)),
        ("chunked:3:0", 200, events(3)),
        ("until-close", 200, events(2)),
        ("empty", 200, String::new()),
        ("nocontent", 204, String::new()),
        ("status:404:no", 404, "no".to_owned()),
    ] {
        let first = turn(bench.app.addr(), script, script).await;
        assert_eq!(first.status, status, "{script}");
        let again = bench.call(&attach(script)).await;
        assert_eq!(
            (again.status, again.text(), again.whole),
            (status, text, true),
            "{script}"
        );
    }
    turn(bench.app.addr(), "t", "trailers").await;
    let again = bench.call(&attach("t").header("te", "trailers")).await;
    assert_whole("with trailers", &again, &events(2));
    let trailers = [(TRAILER.0.to_owned(), TRAILER.1.to_owned())];
    assert_eq!(again.trailers, trailers, "the trailers, too");
}

#[tokio::test]
async fn a_viewer_may_speak_http_2() {
    let bench = start("").await;
    let mut h2 = H2::connect(bench.app.addr()).await;
    let mut first = h2
        .send(h2_client::turn("s1", "cut:30:lf"))
        .await
        .expect("a response");
    first.until("id: 1").await;
    let request = || {
        let request = h2_client::get("/chat/s1/stream");
        request.body(h2_client::full("")).expect("a request")
    };
    let mut viewer = h2.send(request()).await.expect("a response");
    viewer.until("id: 1").await;
    bench.backend.open_gate("s1");
    viewer.rest().await.expect("it is whole");
    assert_eq!((viewer.status(), viewer.text()), (200, stream_with("\n")));
    let mut broken = h2
        .send(h2_client::turn("s2", "hang-middle"))
        .await
        .expect("a response");
    broken.until(&event(0)).await;
    let request = h2_client::get("/chat/s2/stream");
    let request = request.body(h2_client::full("")).expect("a request");
    let mut viewer = h2.send(request).await.expect("a response");
    viewer.until(&event(0)).await;
    bench.call(&stop("s2")).await;
    assert!(
        viewer.rest().await.is_err(),
        "what isn't whole ends with a reset"
    );
}

#[tokio::test]
async fn without_an_answer_there_is_204() {
    let bench = start("").await;
    let none = bench.call(&attach("s1")).await;
    assert_eq!(
        (none.status, none.header("cache-control"), none.whole),
        (204, Some("no-store"), true),
        "no turn of the session: {none:?}"
    );
    // A turn that gets no response of its backend.
    let mut first = begin_turn(bench.app.addr(), "s1", "gate-head").await;
    bench.backend.started("s1", 1).await;
    let mut viewer = bench.attached("s1").await;
    bench.wait_for_viewers(1).await;
    assert_eq!(viewer.arrived(), 0, "it waits for the head");
    let stopped = bench.call(&stop("s1")).await;
    assert_eq!(stopped.text(), "{\"stopped\":true}");
    assert_eq!(first.answer().await.error(), (409, "superseded"));
    assert_eq!(viewer.answer().await.status, 204, "there is none any more");
    turn(bench.app.addr(), "s1", "plain:x").await;
    let other = Request::get("/chat/s2/stream");
    assert_eq!(bench.call(&other).await.status, 204, "of another session");
}

/// A route whose turns are in the same sessions, and aren't kept.
const UNKEPT: &str = r#"
[[routes]]
name = "not kept"
path = "/chat/unkept"
replay = false
session_id = ["{body:/session_id}"]
user_id = ["u1"]
"#;

#[tokio::test]
async fn nobody_gets_the_answer_before_the_last_turn() {
    let bench = start(UNKEPT).await;
    turn(bench.app.addr(), "s1", "plain:first").await;
    let mut unkept = bench.client().await;
    let request = Request::post("/chat/unkept").header("x-test-script", "gate");
    let request = request.header("x-test-session", "s1");
    unkept.send(&request.json(r#"{"session_id":"s1"}"#)).await;
    unkept.read_until(&event(0)).await;
    let answer = bench.call(&attach("s1")).await;
    assert_eq!(answer.status, 204, "the turn isn't kept: {answer:?}");
    bench.backend.open_gate("s1");
    assert!(unkept.answer().await.whole);
    let failed = turn(bench.app.addr(), "s1", "close").await;
    assert_eq!(failed.status, 502);
    let answer = bench.call(&attach("s1")).await;
    assert_eq!(answer.status, 204, "the last turn has none: {answer:?}");
    turn(bench.app.addr(), "s1", "plain:next").await;
    assert_whole("the next", &bench.call(&attach("s1")).await, "next");
}

#[tokio::test]
async fn a_route_may_leave_out_answers_that_have_ended() {
    let config = RESUME.replace("attach = true", "attach = true\nattach_ended = false");
    let bench = Bench::start(&format!("{config}{CHAT}")).await;
    let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let mut viewer = bench.attached("s1").await;
    viewer.read_until(&event(0)).await;
    bench.backend.open_gate("s1");
    assert_whole("a turn that runs", &viewer.answer().await, &event(0));
    assert_eq!(bench.call(&attach("s1")).await.status, 204, "it has ended");
}

#[tokio::test]
async fn an_answer_is_kept_for_some_time() {
    let bench = start("[replay]\nkeep = \"1s\"\n").await;
    turn(bench.app.addr(), "s1", "plain:x").await;
    assert_eq!(bench.app.metric("seriatim_kept_answers").await, "1");
    assert_eq!(bench.app.metric("seriatim_kept_answer_bytes").await, "1");
    let gone = async || bench.call(&attach("s1")).await.status == 204;
    wait_for_async(gone, "its time is over").await;
    let is_free = async || bench.app.metric("seriatim_kept_answer_bytes").await == "0";
    wait_for_async(is_free, "its memory is free").await;
}

#[tokio::test]
async fn an_answer_that_broke_off_never_looks_whole() {
    let bench = start("").await;
    for script in ["break-chunked", "break-length"] {
        let first = turn(bench.app.addr(), script, script).await;
        assert!(!first.whole, "{script}: it breaks off");
        let again = bench.call(&attach(script)).await;
        assert!(!again.whole, "{script}: for later readers, too: {again:?}");
        assert_eq!(again.text(), first.text(), "{script}: with what there is");
    }
}

#[tokio::test]
async fn a_request_without_a_session_is_refused() {
    let config = RESUME.replace("{path:id}", "{header:x-session}");
    let bench = Bench::start(&format!("{config}{CHAT}")).await;
    for request in [attach("s1"), stop("s1")] {
        bench
            .refused("no session", &request, 400, "missing_session")
            .await;
    }
}

// === Last-Event-ID ===

fn app(backend: &RawBackend, tables: &str) -> App {
    let config = format!("{tables}{RESUME}{CHAT}");
    App::start(&backend.url(), "memory:", "", &config)
}

#[tokio::test]
async fn an_event_source_goes_on_behind_the_last_event_that_it_got() {
    let (more, rest) = watch::channel(None);
    let backend = streaming("id: 1\ndata: a\n\nid: 2\ndata: b\n\n".into(), rest).await;
    let app = app(&backend, "");
    let mut first = begin_turn(app.addr(), "s1", "").await;
    first.read_until("data: b\n\n").await;
    let call = async |id: &str| {
        let mut client = Client::connect(app.addr()).await;
        client.send(&attach("s1").header("last-event-id", id)).await;
        client
    };
    let mut second = call("1").await;
    second.read_until("data: b\n\n").await;
    let mut last = call("2").await;
    let mut unknown = call("x").await;
    let _ = more.send(Some("id: 3\ndata: c\n\n".into()));
    let rest = "id: 2\ndata: b\n\nid: 3\ndata: c\n\n";
    assert_whole("behind the first", &second.answer().await, rest);
    assert_whole(
        "behind the last",
        &last.answer().await,
        "id: 3\ndata: c\n\n",
    );
    let whole = first.answer().await.text();
    assert_whole("an unknown event", &unknown.answer().await, &whole);
    assert_eq!(
        call("3").await.answer().await.status,
        204,
        "nothing follows"
    );
    assert_whole("an empty id", &call("").await.answer().await, &whole);
}

// === bounds ===

#[tokio::test]
async fn an_answer_over_its_limit_is_refused_or_goes_on_live() {
    let long = event(0).repeat(40_000);
    for (over_limit, goes_on) in [("reject", false), ("live", true)] {
        let (more, rest) = watch::channel(None);
        let backend = streaming(format!("{long}data: h"), rest).await;
        let tables = format!("[replay]\nmax_turn = \"1KiB\"\nover_limit = \"{over_limit}\"\n");
        let app = app(&backend, &tables);
        let mut first = begin_turn(app.addr(), "s1", "").await;
        first.read_until("data: h").await;
        let mut viewer = Client::connect(app.addr()).await;
        viewer.send(&attach("s1")).await;
        if goes_on {
            viewer.read_until("data: h").await;
        }
        let _ = more.send(Some("alf\n\n".into()));
        let answer = viewer.answer().await;
        match goes_on {
            true => assert_whole("from a whole event on", &answer, "data: half\n\n"),
            false => assert_error_response("too long", &answer, 409, "answer_too_long"),
        }
        let whole = first.answer().await;
        assert_whole("the first client", &whole, &format!("{long}data: half\n\n"));
        let answer = Client::connect(app.addr()).await.call(&attach("s1")).await;
        assert_error_response("it has ended", &answer, 409, "answer_too_long");
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        assert_eq!(app.metric("seriatim_long_answers_total").await, "1");
        let bytes: usize = app
            .metric("seriatim_kept_answer_bytes")
            .await
            .parse()
            .expect("a number");
        assert!(bytes < 300_000, "only a window is in memory: {bytes}");
    }
}

#[tokio::test]
async fn a_viewer_that_falls_out_of_the_window_is_aborted() {
    let (more, rest) = watch::channel(None);
    let backend = streaming("data: a\n\n".into(), rest).await;
    let app = app(&backend, "[replay]\nmax_turn = \"1KiB\"\n");
    let mut first = begin_turn(app.addr(), "s1", "").await;
    first.read_until("data: a").await;
    let mut idle = Client::connect_narrow(app.addr(), 4096).await;
    idle.send(&attach("s1")).await;
    idle.head().await;
    let mut live = Client::connect(app.addr()).await;
    live.send(&attach("s1")).await;
    live.read_until("data: a").await;
    // More than all buffers on the way and the window have room for.
    let rest = event(1).repeat(600_000);
    let _ = more.send(Some(rest.clone()));
    let (first, live) = tokio::join!(first.answer(), live.answer());
    let text = format!("data: a\n\n{rest}");
    assert_whole("the first client", &first, &text);
    assert!(
        live.text() == text || !live.whole,
        "all, or an end that is none"
    );
    let answer = idle.answer().await;
    assert!(!answer.whole, "it has lost bytes, and can tell");
}

// === repeats ===

/// As [`RESUME`], with turns that are recognised by their idempotency key.
async fn start_once(tables: &str) -> Bench {
    start_once_with(tables, "").await
}

/// As [`start_once`], with `options` of the route for turns.
async fn start_once_with(tables: &str, options: &str) -> Bench {
    let chat = format!("{CHAT}once = [\"{{header:idempotency-key}}\"]\non_repeat = \"attach\"\n");
    let chat = format!("{chat}{options}blocking = true\n");
    Bench::start(&format!("{tables}{RESUME}{chat}")).await
}

fn keyed(session: &str, script: &str, key: &str) -> Request {
    Request::turn(session, script).header("idempotency-key", key)
}

#[tokio::test]
async fn a_repeat_gets_the_answer_of_the_turn_that_it_repeats() {
    let bench = start_once("").await;
    let request = keyed("s1", "cut:30:lf", "k1");
    let mut first = bench.client().await;
    first.send(&request).await;
    first.read_until("id: 1").await;
    // The connection is cut, and the client library sends the request again.
    first.reset();
    let mut repeat = bench.client().await;
    repeat.send(&request).await;
    repeat.read_until("id: 1").await;
    bench.backend.open_gate("s1");
    let text = stream_with("\n");
    assert_whole("of a turn that runs", &repeat.answer().await, &text);
    assert_whole("of one that has ended", &bench.call(&request).await, &text);
    let next = bench.call(&keyed("s1", "plain:next", "k2")).await;
    assert_whole("the next turn", &next, "next");
    assert_whole("not the newest answer", &bench.call(&request).await, &text);
    assert_eq!(bench.backend.turns("s1").len(), 2, "each turn ran once");
    let other = Request::post("/chat").header("idempotency-key", "k1");
    let other = other.json("{\"session_id\":\"s1\",\"user_id\":\"u1\",\"x\":1}");
    bench
        .refused("another request", &other, 422, "key_reused")
        .await;
}

#[tokio::test]
async fn a_repeat_of_a_turn_that_waits_joins_it_or_takes_its_place() {
    let bench = start_once("").await;
    for is_left in [false, true] {
        let session = format!("s-{is_left}");
        let mut holder = bench.client().await;
        holder.send(&keyed(&session, "gate", "k0")).await;
        holder.read_until(&event(0)).await;
        let request = keyed(&session, "plain:once", "k1");
        let mut first = bench.client().await;
        first.send(&request).await;
        bench.app.wait_for_waiters(1).await;
        let mut repeat = bench.client().await;
        repeat.send(&request).await;
        if is_left {
            // The repeat is the turn as soon as the first one is gone.
            first.half_close().await;
            first.read_to_close().await;
        }
        bench.backend.open_gate(&session);
        assert!(holder.answer().await.whole, "the turn before it");
        assert_whole("the repeat", &repeat.answer().await, "once");
        if !is_left {
            assert_whole("the first", &first.answer().await, "once");
        }
        assert_eq!(
            bench.backend.turns(&session).len(),
            2,
            "it ran once: {is_left}"
        );
    }
}

#[tokio::test]
async fn a_repeat_that_waits_for_its_answer_is_kept_as_a_waiting_turn() {
    let bench = start_once_with("", "stream = \"sse\"\nkeep_alive = \"100ms\"\n").await;
    let no_stream = "event: error\ndata: {\"success\":false,";
    for (script, expected) in [("gate", &*event(0)), ("gate-head", no_stream)] {
        let mut holder = bench.client().await;
        holder.send(&keyed(script, "gate", "k0")).await;
        holder.read_until(&event(0)).await;
        let request = keyed(script, script, "k1");
        let mut first = bench.client().await;
        first.send(&request).await;
        bench.app.wait_for_waiters(1).await;
        let mut repeat = bench.client().await;
        repeat.send(&request).await;
        // It has no place in the queue of its own.
        within("a comment", repeat.read_until(": queued waiting=")).await;
        bench.backend.open_gate(script);
        assert!(holder.answer().await.whole, "the turn before it");
        bench.backend.started(script, 2).await;
        if script == "gate-head" {
            within("a comment", repeat.read_until(": running\n\n")).await;
            // One that comes while the turn runs has not waited for another.
            let mut late = bench.client().await;
            late.send(&request).await;
            within("a comment", late.read_until(": running\n\n")).await;
            assert!(!late.head().await.text().contains(": queued"), "none waits");
        }
        bench.backend.open_gate(script);
        let answer = repeat.answer().await;
        assert!(answer.whole && answer.status == 200, "{script}: {answer:?}");
        let text = answer.text();
        assert!(text.contains(expected), "{script}: what it got: {text}");
        assert!(first.answer().await.whole, "the first one isn't affected");
        assert_eq!(bench.backend.turns(script).len(), 2, "it ran once");
    }
}

#[tokio::test]
async fn a_repeat_whose_answer_is_not_kept_any_more_is_refused() {
    let bench = start_once("[replay]\nkeep = \"1s\"\n").await;
    let request = keyed("s1", "plain:x", "k1");
    assert_whole("the turn", &bench.call(&request).await, "x");
    let gone = async || bench.call(&attach("s1")).await.status == 204;
    wait_for_async(gone, "its answer isn't kept any more").await;
    bench
        .refused("a repeat", &request, 409, "already_answered")
        .await;
}

#[tokio::test]
async fn a_repeat_that_has_seen_all_of_the_answer_gets_204() {
    let (more, rest) = watch::channel(None);
    let backend = streaming("id: 1\ndata: a\n\n".into(), rest).await;
    let _ = more.send(Some("id: 2\ndata: b\n\n".into()));
    let chat = format!("{CHAT}once = [\"{{header:idempotency-key}}\"]\n");
    let app = App::start(&backend.url(), "memory:", "", &format!("{RESUME}{chat}"));
    let behind = async |id: &str| {
        let request = keyed("s1", "", "k1").header("last-event-id", id);
        Client::connect(app.addr()).await.call(&request).await
    };
    assert!(behind("").await.whole, "the turn");
    assert_whole("a part", &behind("1").await, "id: 2\ndata: b\n\n");
    let seen = behind("2").await;
    assert_eq!((seen.status, seen.text()), (204, String::new()), "{seen:?}");
}

// === stopping ===

#[tokio::test]
async fn a_stop_ends_the_turn_for_everybody() {
    let bench = start("").await;
    for with_client in [true, false] {
        let session = format!("s-{with_client}");
        let mut first = begin_turn(bench.app.addr(), &session, "gate").await;
        first.read_until(&event(0)).await;
        let mut viewer = bench.attached(&session).await;
        viewer.read_until(&event(0)).await;
        if !with_client {
            first.half_close().await;
            first.read_to_close().await;
        }
        let stopped = bench.call(&stop(&session)).await;
        assert_eq!(
            (
                stopped.status,
                &*stopped.text(),
                stopped.header("content-type")
            ),
            (200, "{\"stopped\":true}", Some("application/json")),
            "with its client: {with_client}"
        );
        bench.backend.ended(&session, 1).await;
        let ending = bench.backend.turns(&session)[0].ending;
        assert_eq!(
            ending,
            Some(Ending::PeerGone),
            "the backend's request is cancelled"
        );
        assert!(!viewer.answer().await.whole, "it isn't whole for viewers");
        if with_client {
            assert!(!first.answer().await.whole, "nor for its own client");
        }
        let again = bench.call(&stop(&session)).await;
        assert_eq!(again.text(), "{\"stopped\":false}", "nothing runs");
        let next = turn(bench.app.addr(), &session, "plain:x").await;
        assert_eq!(next.status, 200, "the session is free: {next:?}");
    }
}

#[tokio::test]
async fn a_stop_says_so_only_of_a_turn_that_it_stopped() {
    let observed = RESUME.replace("replay = true", "replay = true\nenforce = false");
    let bench = Bench::start(&format!("{observed}{CHAT}")).await;
    let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let stopped = bench.call(&stop("s1")).await;
    assert_eq!(stopped.text(), "{\"stopped\":false}", "it is only observed");
    bench.backend.open_gate("s1");
    assert_whole("the observed turn", &first.answer().await, &event(0));

    let settling = RESUME.replace("replay = true", "replay = true\nsettle = \"1s\"");
    let bench = Bench::start(&format!("{settling}{CHAT}")).await;
    let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    bench.backend.open_gate("s1");
    bench.backend.ended("s1", 1).await;
    // Its lock stays for a second.
    let stopped = bench.call(&stop("s1")).await;
    assert_eq!(stopped.text(), "{\"stopped\":false}", "it is complete");
    assert_whole("the complete turn", &first.answer().await, &event(0));
}

// === beside all that ===

#[tokio::test]
async fn a_silent_answer_has_comments_for_its_viewers() {
    let config = RESUME.replace("attach = true", "attach = true\nkeep_alive = \"100ms\"");
    let bench = Bench::start(&format!("{config}{CHAT}")).await;
    let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let mut viewer = bench.attached("s1").await;
    viewer.read_until(": silent\n\n: silent\n\n").await;
    bench.backend.open_gate("s1");
    assert_eq!(first.answer().await.text(), event(0), "as its route says");
    let later = bench.call(&attach("s1")).await;
    assert_whole("comments aren't kept", &later, &event(0));
}

#[tokio::test]
async fn a_page_of_another_origin_may_read_what_the_backend_lets_it_read() {
    let bench = start("").await;
    let allow = "access-control-allow-origin: https://a.example";
    let request = Request::turn("s1", "plain:x").header("x-test-answer", allow);
    bench
        .call(&request.header("origin", "https://a.example"))
        .await;
    let call = async |origin: &str| {
        let answer = bench.call(&attach("s1").header("origin", origin)).await;
        let allowed = answer.header("access-control-allow-origin");
        allowed.map(str::to_owned)
    };
    let allowed = call("https://a.example").await;
    assert_eq!(allowed.as_deref(), Some("https://a.example"));
    assert_eq!(call("https://b.example").await, None, "nobody else");
}

#[tokio::test]
async fn a_process_that_stops_lets_viewers_read_to_the_end_of_a_turn_that_ends_in_time() {
    let bench = start("").await;
    let mut first = begin_turn(bench.app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let mut viewer = bench.attached("s1").await;
    viewer.read_until(&event(0)).await;
    let mut silent = begin_turn(bench.app.addr(), "s2", "gate-head").await;
    bench.backend.started("s2", 1).await;
    let mut waiting = bench.attached("s2").await;
    bench.wait_for_viewers(2).await;
    let Bench { app, backend, .. } = bench;
    let stopping = tokio::spawn(app.stop());
    let answer = waiting.answer().await;
    assert_error_response("one that waits for a head", &answer, 503, "draining");
    backend.open_all_gates();
    assert_whole("a viewer", &viewer.answer().await, &event(0));
    assert!(first.answer().await.whole && silent.answer().await.whole);
    within("the process to stop", stopping)
        .await
        .expect("it stops");
}

#[tokio::test]
async fn the_access_log_names_the_turn_and_the_audit_log_who_stopped_it() {
    let backend = Backend::start("plain:ok").await;
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("config.toml");
    let head = "listen = \"127.0.0.1:0\"\nupstream = ";
    let text = format!("{head}\"{}\"\n{RESUME}{CHAT}", backend.url());
    std::fs::write(&path, text).expect("it can be written");
    let process = Process::start(&path);
    let mut first = begin_turn(process.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let mut viewer = Client::connect(process.addr()).await;
    viewer.send(&attach("s1")).await;
    viewer.read_until(&event(0)).await;
    let mut client = Client::connect(process.addr()).await;
    let stopping = stop("s1").header("x-request-id", "stop-1");
    assert_eq!(client.call(&stopping).await.status, 200);
    first.answer().await;
    viewer.answer().await;
    process.signal("TERM");
    let (_, events) = process.end();
    let of_route = |route: &str| {
        let found = events.iter().find(|event| event["route"] == route);
        found.unwrap_or_else(|| panic!("it is logged: {events:?}"))
    };
    let viewer = of_route("attach");
    assert_eq!(viewer["outcome"], "upstream_aborted", "{viewer}");
    assert!(viewer["attached_to"].is_string(), "{viewer}");
    assert_eq!(viewer["bytes"], event(0).len(), "{viewer}");
    assert_eq!(of_route("chat")["outcome"], "superseded");
    assert!(of_route("chat")["attached_to"].is_null(), "a turn is none");
    assert_eq!(of_route("stop")["outcome"], "complete");
    let audit = events.iter().find(|event| event["message"] == "stop");
    let audit = audit.expect("a stop is in the audit log");
    assert_eq!(
        (&audit["by"], &audit["result"]),
        (&"client of request stop-1".into(), &"released".into()),
        "{audit}"
    );
}

// === mistakes ===

#[test]
fn options_that_contradict_each_other_are_named() {
    let turns = "[[routes]]\nname = \"chat\"\npath = \"/chat\"\nsession_id = [\"{body:/id}\"]\n";
    let stream =
        "[[routes]]\nname = \"stream\"\npath = \"/stream/{id}\"\nsession_id = [\"{path:id}\"]\n";
    for (text, key, why) in [
        (
            format!("{turns}replay = true\non_disconnect = \"cancel\"\n"),
            "routes[0].on_disconnect",
            "contradicts replay = true",
        ),
        (
            format!("[lock]\non_disconnect = \"cancel\"\n{turns}replay = true\n"),
            "routes[0].replay",
            "contradicts on_disconnect",
        ),
        (
            format!("{turns}{stream}attach = true\n"),
            "routes[1].attach",
            "no route with the same `key` keeps its answers",
        ),
        (
            format!("{turns}replay = true\n{stream}attach = true\nstop = true\n"),
            "routes[1].stop",
            "write two routes",
        ),
        (
            format!("{turns}replay = true\n{stream}attach = true\nblocking = true\n"),
            "routes[1].blocking",
            "whose requests take no lock",
        ),
        (
            format!("{turns}{stream}stop = true\nkeep_alive = \"15s\"\n"),
            "routes[1].keep_alive",
            "contradicts stop = true",
        ),
        (
            format!("{turns}{stream}lock = false\nstop = true\n"),
            "routes[1].stop",
            "contradicts `lock = false`",
        ),
        (
            format!("{turns}replay = true\non_repeat = \"attach\"\n"),
            "routes[0].on_repeat",
            "only with once of a route and replay = true",
        ),
        (
            format!("{turns}attach_ended = false\n"),
            "routes[0].attach_ended",
            "only with attach = true",
        ),
        (
            format!("[replay]\nkeep = \"5m\"\n{turns}"),
            "replay.keep",
            "only with replay = true",
        ),
        (
            format!("[replay]\nmax_total = \"1MiB\"\n{turns}replay = true\n"),
            "replay.max_total",
            "at least max_turn",
        ),
    ] {
        let text = format!("upstream = \"http://127.0.0.1:1\"\n{}", text);
        let problems = Config::read("test", &text, &Vec::new()).expect_err(&text);
        let mut found = problems.problems.iter();
        assert!(
            found.any(|problem| problem.key == key && problem.why.contains(why)),
            "{key}: {why}: {:?}",
            problems.problems
        );
    }
    let text = format!(
        "upstream = \"http://127.0.0.1:1\"\n{turns}replay = true\nblocking = true\ninterrupt = true\n"
    );
    let config = Config::read("test", &text, &Vec::new());
    assert!(
        config.is_ok(),
        "an answer that is kept can be interrupted: {config:?}"
    );
}
