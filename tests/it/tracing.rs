//! Spans of each request, its lock wait, its lock and its backend, in the caller's trace; and
//! exporting them delays no request.

use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::app::{App, CHAT, wait_for_queue_length};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::collector::{Collector, Mood, Span, Tree};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// The attributes that OpenTelemetry's conventions have for a session and its user.
const SESSION: [&str; 3] = ["gen_ai.conversation.id", "session.id", "user.id"];

/// The `traceparent` of a caller that records.
fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A backend, a collector, and a replica with the memory store.
async fn bench(config: &str) -> (Backend, Collector, App) {
    let (backend, collector) = (
        Backend::start("plain:ok").await,
        Collector::start(Mood::Takes).await,
    );
    let app = App::in_memory(&backend, &format!("{config}{}{CHAT}", collector.config()));
    (backend, collector, app)
}

async fn call(addr: SocketAddr, request: &Request) -> u16 {
    Client::connect(addr).await.call(request).await.status
}

// === spans of a request ===

#[tokio::test]
async fn a_turn_has_spans_of_request_lock_wait_lock_hold_and_backend() {
    let (backend, collector, app) = bench("").await;
    let request = Request::turn("s1", "chunked:2:1")
        .header("traceparent", &traceparent())
        .header("tracestate", "congo=t61rcWkgMzE")
        .header("x-request-id", "r1");
    assert_eq!(
        call(app.addr(), &request).await,
        200,
        "the request is served"
    );
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one tree");
    };
    let server = &tree.server;
    assert_eq!(
        (&*server.name, &*server.trace, &*server.parent),
        ("POST chat", TRACE, CALLER),
        "the request's span is a child of the caller's span, named by method and route"
    );
    assert_eq!(
        server.state, "congo=t61rcWkgMzE",
        "the span has the caller's tracestate"
    );
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/chat"),
        ("url.path", "/chat"),
        ("http.response.status_code", "200"),
        ("seriatim.outcome", "complete"),
        ("seriatim.route", "chat"),
        ("seriatim.request_id", "r1"),
        ("seriatim.session_key", "lock:session:u1:s1"),
    ] {
        assert_eq!(server.get(name), value, "the request's {name}");
    }
    assert_eq!(
        tree.parts(),
        ["lock wait", "lock hold", "backend"],
        "the request's span has its three children"
    );
    for span in collector.spans() {
        assert_eq!(
            SESSION.map(|name| span.get(name)),
            ["s1", "s1", "u1"],
            "each span has the session and the user: {span:?}"
        );
    }
    let (wait, hold) = (tree.wait.as_ref().unwrap(), tree.hold.as_ref().unwrap());
    let sent = tree.backend.as_ref().unwrap();
    assert_eq!(
        (wait.kind, hold.kind, sent.kind),
        (SpanKind::Internal, SpanKind::Internal, SpanKind::Client),
        "the backend's span is a client span"
    );
    assert_eq!(wait.to, hold.from, "the hold starts when the wait ends");
    assert!(
        hold.from <= sent.from && sent.to <= hold.to,
        "the backend's span is within the hold: {sent:?} in {hold:?}"
    );
    assert_eq!(
        wait.get("seriatim.granted"),
        "true",
        "the wait ended with a grant"
    );
    let fence = backend.requests()[0]
        .header("x-seriatim-fence")
        .map(str::to_owned);
    assert_eq!(
        Some(hold.get("seriatim.fence")),
        fence.as_deref(),
        "the hold has the fence"
    );
    for (name, value) in [
        ("server.address", "127.0.0.1"),
        ("server.port", &*backend.addr().port().to_string()),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(sent.get(name), value, "the backend's {name}");
    }
    let all = [server, wait, hold, sent];
    assert!(
        all.iter()
            .all(|span| span.error.is_none() && span.get("error.type").is_empty()),
        "no span has an error: {all:?}"
    );
    let seen = &backend.requests()[0];
    assert_eq!(
        seen.header("traceparent"),
        Some(&*format!("00-{TRACE}-{}-01", sent.id)),
        "the backend's traceparent names the backend's span"
    );
    assert_eq!(
        seen.header("tracestate"),
        Some("congo=t61rcWkgMzE"),
        "tracestate is forwarded unchanged"
    );
    let resource = collector.resource();
    assert_eq!(
        (&*resource["service.name"], &*resource["service.version"]),
        ("seriatim", env!("CARGO_PKG_VERSION")),
        "the resource names the service and its version"
    );
    assert!(
        !resource["service.instance.id"].is_empty(),
        "the resource names the instance"
    );
    let head = collector.heads()[0].to_lowercase();
    assert!(
        head.starts_with("post /v1/traces http/1.1\r\n")
            && head.contains("content-type: application/x-protobuf\r\n"),
        "spans are posted to the OTLP path: {head}"
    );
}

#[tokio::test]
async fn spans_have_the_ids_of_the_request_and_no_user_that_is_the_same_for_all() {
    const ROUTES: &str = "[[routes]]\nname = \"one user\"\npath = \"/one\"\nsession_id = [\"{query:s}\"]\n\
        [[routes]]\nname = \"own key\"\npath = \"/own\"\nkey = \"chat:{session_id}\"\nsession_id = [\"{query:s}\"]\n";
    let (_backend, collector, app) = bench(ROUTES).await;
    for target in [
        "/one?s=a%3Ab%20%E9%94%81",
        "/own?s=a%3Ab%20%E9%94%81",
        "/free",
    ] {
        let request = Request::get(target);
        assert_eq!(call(app.addr(), &request).await, 200, "it is served");
    }
    let seen = collector.trees(3).await;
    let ids: Vec<_> = seen
        .iter()
        .map(|tree| SESSION.map(|name| tree.server.get(name)))
        .collect();
    assert_eq!(
        ids,
        [
            ["a:b 锁", "a:b 锁", ""],
            ["a:b 锁", "a:b 锁", ""],
            ["", "", ""]
        ],
        "the id as the request has it; `unknown` is no user; a request without a lock has no session"
    );
}

#[tokio::test]
async fn a_request_without_a_valid_traceparent_starts_a_new_trace() {
    let (backend, collector, app) = bench("").await;
    let invalid = traceparent().to_uppercase();
    let requests = [
        Request::turn("s1", "plain:ok"),
        Request::turn("s1", "plain:ok")
            .header("traceparent", &invalid)
            .header("tracestate", "congo=t61rcWkgMzE"),
        Request::turn("s1", "plain:ok")
            .header("traceparent", &traceparent())
            .header("traceparent", &traceparent()),
    ];
    for request in &requests {
        assert_eq!(
            call(app.addr(), request).await,
            200,
            "the request is served"
        );
    }
    let trees = collector.trees(3).await;
    for (tree, seen) in trees.iter().zip(backend.requests()) {
        let (server, sent) = (&tree.server, tree.backend.as_ref().unwrap());
        assert_eq!(server.parent, "", "the span has no parent");
        assert_ne!(
            server.trace.to_uppercase(),
            TRACE.to_uppercase(),
            "the trace is a new one"
        );
        assert_eq!(
            seen.headers
                .iter()
                .filter(|(name, _)| name == "traceparent")
                .map(|(_, value)| &**value)
                .collect::<Vec<_>>(),
            [format!("00-{}-{}-01", server.trace, sent.id)],
            "the backend gets the new trace"
        );
        assert_eq!(
            seen.header("tracestate"),
            None,
            "tracestate is dropped with an invalid traceparent"
        );
    }
    assert_ne!(
        trees[0].server.trace, trees[1].server.trace,
        "each request has its own trace"
    );
}

#[tokio::test]
async fn a_request_that_its_caller_does_not_sample_has_no_spans() {
    let (backend, collector, app) = bench("").await;
    let silent = format!("00-{TRACE}-{CALLER}-00");
    let request = Request::turn("s1", "plain:ok")
        .header("traceparent", &silent)
        .header("tracestate", "congo=t61rcWkgMzE");
    assert_eq!(
        call(app.addr(), &request).await,
        200,
        "the request is served"
    );
    assert_eq!(
        turn(app.addr(), "s2", "plain:ok").await.status,
        200,
        "another request is served"
    );
    let [other] = &collector.trees(1).await[..] else {
        unreachable!("there is one tree");
    };
    assert_eq!(
        other.server.get("seriatim.session_key"),
        "lock:session:u1:s2",
        "the only tree belongs to the other request"
    );
    assert!(
        collector.spans().iter().all(|span| span.trace != TRACE),
        "an unsampled request has no spans"
    );
    let seen = &backend.requests()[0];
    assert_eq!(
        (seen.header("traceparent"), seen.header("tracestate")),
        (Some(&*silent), Some("congo=t61rcWkgMzE")),
        "its headers are forwarded unchanged"
    );
}

#[tokio::test]
async fn without_a_collector_trace_headers_are_forwarded_unchanged() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for value in [&*traceparent(), "whatever this is"] {
        let request = Request::turn("s1", "plain:ok")
            .header("TraceParent", value)
            .header("tracestate", "a=b");
        assert_eq!(
            call(app.addr(), &request).await,
            200,
            "the request is served"
        );
        let seen = backend
            .requests()
            .pop()
            .expect("the backend received the request");
        assert_eq!(
            (seen.header("traceparent"), seen.header("tracestate")),
            (Some(value), Some("a=b")),
            "trace headers are forwarded byte for byte"
        );
    }
}

// === refused, waiting and failed turns ===

#[tokio::test]
async fn a_refused_turn_has_an_ungranted_wait_and_no_backend_span() {
    let (_backend, collector, app) = bench("").await;
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let refused = turn(app.addr(), "s1", "plain:ok").await;
    assert_eq!(refused.status, 429, "the session is busy");
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one tree");
    };
    assert_eq!(
        tree.parts(),
        ["lock wait"],
        "a refused turn has a wait span only"
    );
    let wait = tree.wait.as_ref().unwrap();
    assert_eq!(
        wait.get("seriatim.granted"),
        "false",
        "the wait ended without a grant"
    );
    assert_eq!(
        tree.server.get("seriatim.outcome"),
        "session_busy",
        "the request's span has the outcome"
    );
    assert_eq!(
        tree.server.get("http.response.status_code"),
        "429",
        "the request's span has the status"
    );
    assert_eq!(
        (&tree.server.error, &wait.error),
        (&None, &None),
        "a refusal is not an error"
    );
}

#[tokio::test]
async fn the_wait_span_lasts_until_the_lock_is_granted() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let collector = Collector::start(Mood::Takes).await;
    let config = format!("[lock]\nblocking = true\n{}{CHAT}", collector.config());
    let app = App::on_redis(&backend, &redis, &config);
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let second = begin_turn(app.addr(), "s1", "plain:ok").await;
    let gone = begin_turn(app.addr(), "s1", "plain:ok").await;
    wait_for_queue_length(&redis, "s1", 2).await;
    gone.close();
    wait_for_queue_length(&redis, "s1", 1).await;
    backend.open_gate("s1");
    assert!(first.answer().await.whole, "the first turn is complete");
    let mut second = second;
    assert_eq!(
        second.answer().await.status,
        200,
        "the second turn is served next"
    );
    let trees = collector.trees(3).await;
    let (first, waited) = (&trees[0], &trees[1..]);
    let waited = |outcome: &str| {
        let mut found = waited.iter();
        found
            .find(|tree| tree.server.get("seriatim.outcome") == outcome)
            .unwrap()
    };
    let (second, gone) = (waited("complete"), waited("client_gone"));
    assert!(
        second.wait.as_ref().unwrap().to > first.backend.as_ref().unwrap().to,
        "the wait lasts until the first turn's backend is done"
    );
    assert!(
        second.backend.as_ref().unwrap().from >= first.backend.as_ref().unwrap().to,
        "backend spans of a session never overlap"
    );
    assert_eq!(
        gone.parts(),
        ["lock wait"],
        "a disconnected waiter has a wait span"
    );
    assert_eq!(gone.server.error, None, "a disconnect is not an error");
}

#[tokio::test]
async fn a_superseded_turn_is_not_an_error() {
    let (_backend, collector, app) = bench("[lock]\nblocking = true\ninterrupt = true\n").await;
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:ok").await.status,
        200,
        "the newer turn is served"
    );
    let trees = collector.trees(2).await;
    let hold = trees[0].hold.as_ref().unwrap();
    assert_eq!(
        (
            trees[0].server.get("seriatim.outcome"),
            hold.get("seriatim.lost")
        ),
        ("superseded", "interrupted"),
        "the spans have the outcome and the loss"
    );
    assert_eq!(
        (&trees[0].server.error, &hold.error),
        (&None, &None),
        "a superseded turn has no error"
    );
}

#[tokio::test]
async fn a_failed_turn_has_an_error_with_its_type() {
    let backend = Backend::start("plain:ok").await;
    let collector = Collector::start(Mood::Takes).await;
    let config = format!("[lock]\nlock_timeout = 1\n{}{CHAT}", collector.config());
    let app = App::start(&backend.url(), "memory:", "timeout = \"200ms\"", &config);
    let broken = turn(app.addr(), "s1", "break-chunked").await;
    assert!(!broken.whole, "the backend aborted the response");
    let unreachable = turn(app.addr(), "s2", "close").await;
    assert_eq!(unreachable.status, 502, "the backend sent no response");
    let refusing = turn(app.addr(), "s3", "status:404:no").await;
    assert_eq!(refusing.status, 404, "the backend answers with 404");
    let lost = turn(app.addr(), "s4", "hang-middle").await;
    assert!(
        !lost.whole,
        "the lease expires in the middle of the response"
    );
    let kinds = |tree: &Tree| {
        let of = |span: &Span| {
            let kind = span.get("error.type").to_owned();
            assert_eq!(
                span.error.is_some(),
                !kind.is_empty(),
                "an error has a type: {span:?}"
            );
            kind
        };
        let part = |span: &Option<_>| span.as_ref().map(of).unwrap_or_default();
        [of(&tree.server), part(&tree.hold), part(&tree.backend)]
    };
    let trees = collector.trees(4).await;
    assert_eq!(
        trees.iter().map(kinds).collect::<Vec<_>>(),
        [
            ["upstream_aborted", "", "upstream_aborted"],
            ["upstream_unreachable", "", "upstream_unreachable"],
            ["", "", "404"],
            ["lock_lost", "lock_lost", "lock_lost"],
        ],
        "error types of the request, its lock and its backend"
    );
    assert_eq!(
        trees[1]
            .backend
            .as_ref()
            .unwrap()
            .get("http.response.status_code"),
        "",
        "the backend's span has no status without a response"
    );
    let hold = trees[3].hold.as_ref().unwrap();
    assert_eq!(
        hold.get("seriatim.lost"),
        "expired",
        "the hold has the reason of the loss"
    );
}

#[tokio::test]
async fn an_error_behind_an_early_head_is_an_error_with_its_status() {
    let (backend, collector, app) =
        bench("[lock]\nblocking = true\nkeep_alive = \"100ms\"\n").await;
    for script in ["status:500:x", "plain:x"] {
        let mut holder = begin_turn(app.addr(), "s1", "gate").await;
        holder.read_until(&event(0)).await;
        let mut waiter = Client::connect(app.addr()).await;
        let request = Request::turn("s1", script).header("accept", "text/event-stream");
        waiter.send(&request).await;
        waiter.read_until(": queued ").await;
        backend.open_gate("s1");
        assert!(holder.answer().await.whole, "the holder isn't affected");
        assert_eq!(waiter.answer().await.status, 200, "{script}: an early head");
    }
    let trees = collector.trees(4).await;
    let waited = trees
        .iter()
        .filter(|tree| tree.server.get("http.response.status_code") != "200");
    let seen: Vec<_> = waited
        .map(|tree| {
            let backend = tree.backend.as_ref().expect("the backend has responded");
            [
                tree.server.get("http.response.status_code"),
                tree.server.get("error.type"),
                backend.get("http.response.status_code"),
            ]
        })
        .collect();
    assert_eq!(
        seen,
        [
            ["500", "complete", "500"],
            ["502", "not_an_event_stream", "200"]
        ],
        "what the client was told, and what the backend said"
    );
}

#[tokio::test]
async fn a_request_without_a_lock_has_a_backend_span_only() {
    let stop = "[[routes]]\nname = \"stop\"\npath = \"/stop/{id}\"\nlock = false\n";
    let (_backend, collector, app) = bench(stop).await;
    for request in [Request::get("/stop/s1?x=y"), Request::get("/other")] {
        assert_eq!(
            call(app.addr(), &request).await,
            200,
            "the request is forwarded"
        );
    }
    let trees = collector.trees(2).await;
    assert_eq!(
        trees
            .iter()
            .map(|tree| &*tree.server.name)
            .collect::<Vec<_>>(),
        ["GET stop", "GET"],
        "the span is named by the route if there is one"
    );
    assert_eq!(
        (
            trees[0].server.get("http.route"),
            trees[0].server.get("url.path")
        ),
        ("/stop/{id}", "/stop/s1"),
        "the span has the route's pattern and the path, without the query"
    );
    for tree in &trees {
        assert_eq!(tree.parts(), ["backend"], "there is no wait span: {tree:?}");
    }
}

#[tokio::test]
async fn spans_of_continued_turns_and_tunnels_end_with_the_backend() {
    let talk = "[[routes]]\nname = \"talk\"\npath = \"/talk\"\nsession_id = [\"{header:x-test-session}\"]\n";
    let (backend, collector) = (
        Backend::start("plain:ok").await,
        Collector::start(Mood::Takes).await,
    );
    let config = format!(
        "[lock]\non_disconnect = \"continue\"\n{}{CHAT}{talk}",
        collector.config()
    );
    let app = App::in_memory(&backend, &config);
    let mut left = begin_turn(app.addr(), "s1", "chunked:3:300").await;
    left.read_until(&event(0)).await;
    left.half_close().await;
    left.read_to_close().await;
    backend.ended("s1", 1).await;
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one tree");
    };
    assert_eq!(
        tree.parts(),
        ["lock wait", "lock hold", "backend"],
        "the turn has all its spans"
    );
    assert_eq!(
        tree.server.get("seriatim.outcome"),
        "client_gone",
        "the outcome is that of the log"
    );

    let mut tunnel = Client::connect(app.addr()).await;
    let request = Request::get("/talk")
        .header("x-test-session", "s2")
        .header("x-test-script", "upgrade")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket");
    tunnel.send(&request).await;
    assert_eq!(
        tunnel.head().await.status,
        101,
        "the connection is upgraded"
    );
    assert_eq!(
        collector.spans().len(),
        4,
        "no span is sent before the tunnel ends"
    );
    tunnel.send_raw(b"bye").await;
    tunnel.read_to_close().await;
    let tree = collector.trees(2).await.pop().unwrap();
    assert_eq!(
        tree.parts(),
        ["lock wait", "lock hold", "backend"],
        "the turn has all its spans"
    );
    assert_eq!(
        (
            tree.server.get("seriatim.outcome"),
            tree.server.get("http.response.status_code")
        ),
        ("complete", "101"),
        "the spans have the outcome and the loss"
    );
}

// === exporting delays no request ===

/// A configuration file in a temporary folder.
fn config(backend: &Backend, telemetry: &str) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{telemetry}{CHAT}",
        backend.url()
    );
    std::fs::write(&path, text).expect("the file is written");
    (folder, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_the_last_turns_are_sent_before_the_process_exits() {
    let (backend, collector) = (
        Backend::start("plain:ok").await,
        Collector::start(Mood::Takes).await,
    );
    let (_folder, path) = config(&backend, &collector.config());
    let process = Process::start(&path);
    let mut last = begin_turn(process.addr(), "s1", "gate").await;
    last.read_until(&event(0)).await;
    process.signal("TERM");
    wait_for(
        || process.has_logged("draining"),
        "the process logs that it drains",
    )
    .await;
    backend.open_gate("s1");
    assert!(last.answer().await.whole, "the turn is complete");
    let (status, _) = process.end();
    assert_eq!(status.code(), Some(0), "the process exits with 0");
    assert_eq!(
        collector.spans().len(),
        4,
        "all spans of the last turn are sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_collector_delays_no_turn() {
    let backend = Backend::start("plain:ok").await;
    let (hanging, refusing) = (
        Collector::start(Mood::Hangs).await,
        Collector::start(Mood::Refuses).await,
    );
    let down = Reserved::new();
    for (what, addr, why) in [
        ("is down", down.addr(), Some("refused")),
        ("refuses", refusing.addr(), Some("503")),
        ("hangs", hanging.addr(), None),
    ] {
        let (_folder, path) = config(&backend, &format!("[tracing]\notlp = \"http://{addr}\"\n"));
        let process = Process::start(&path);
        for n in 0..20 {
            let answer = turn(process.addr(), &format!("s{n}"), "plain:ok").await;
            assert_eq!(
                answer.status, 200,
                "a turn is served if the collector {what}"
            );
        }
        const LOST: &str = "spans not sent and dropped";
        if why.is_some() {
            wait_for(
                || process.has_logged(LOST),
                &format!("the log says that the collector {what}"),
            )
            .await;
            // More spans, and more failures.
            assert_eq!(
                turn(process.addr(), "s1", "plain:ok").await.status,
                200,
                "a turn is served after failures"
            );
        } else {
            wait_for(
                || !hanging.heads().is_empty(),
                "the collector got spans and hangs",
            )
            .await;
        }
        process.signal("TERM");
        let (status, events) = process.end();
        assert_eq!(
            status.code(),
            Some(0),
            "the process exits with 0 if the collector {what}"
        );
        let logged = |message: &str| {
            let told = |event: &serde_json::Value| {
                let text = event["message"].as_str();
                text.is_some_and(|text| text.contains(message))
            };
            events
                .iter()
                .filter(|event| told(event))
                .cloned()
                .collect::<Vec<_>>()
        };
        match why {
            None => assert_eq!(
                logged("the last spans").len(),
                1,
                "the process stops in time without the last spans: {events:?}"
            ),
            Some(why) => {
                let told = logged(LOST);
                assert_eq!(told.len(), 1, "repeated failures are logged once: {told:?}");
                assert!(
                    told[0].to_string().contains(why),
                    "the event has the cause: {told:?}"
                );
                assert!(
                    told[0]["requests"].is_u64(),
                    "the event has the number of requests: {told:?}"
                );
                let rest = logged("spans dropped");
                assert_eq!(
                    rest.len(),
                    1,
                    "later failures are summed up at the end: {events:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_collector_with_tls_is_verified_by_its_certificate() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows them")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .expect("a pair");
    let tls = TlsAcceptor::from(Arc::new(config));
    let collector = Collector::with(Mood::Takes, Some(tls)).await;
    let folder = TempDir::new().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, cert.pem()).expect("the file is written");
    let backend = Backend::start("plain:ok").await;
    let telemetry = format!(
        "[tracing]\notlp = \"https://localhost:{}/base/\"\nca_file = \"{}\"\nservice = \"shop\"\n",
        collector.addr().port(),
        ca.display()
    );
    let app = App::in_memory(&backend, &format!("{telemetry}{CHAT}"));
    assert_eq!(
        turn(app.addr(), "s1", "plain:ok").await.status,
        200,
        "the request is served"
    );
    assert_eq!(collector.trees(1).await.len(), 1, "its spans arrive");
    assert_eq!(
        collector.resource()["service.name"],
        "shop",
        "the resource has the configured service name"
    );
    assert!(
        collector.heads()[0].starts_with("POST /base/v1/traces "),
        "the path of the base URL precedes the OTLP path"
    );
}
