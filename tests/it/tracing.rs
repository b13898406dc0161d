//! Spans: of each request, its wait, its lock and its backend, in the caller's trace; and that nobody
//! ever waits for them.

use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::app::{App, CHAT, is_waiting};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::collector::{Collector, Mood, Span, Tree};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A caller's header, recorded.
fn traceparent() -> String {
    format!("00-{TRACE}-{CALLER}-01")
}

/// A replica with its locks in memory.
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

// === what there is of a request ===

#[tokio::test]
async fn a_turn_gives_spans_of_its_request_its_wait_its_lock_and_its_backend() {
    let (backend, collector, app) = bench("").await;
    let request = Request::turn("s1", "chunked:2:1")
        .header("traceparent", &traceparent())
        .header("tracestate", "congo=t61rcWkgMzE")
        .header("x-request-id", "r1");
    assert_eq!(call(app.addr(), &request).await, 200, "it is served");
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one");
    };
    let server = &tree.server;
    assert_eq!(
        (&*server.name, &*server.trace, &*server.parent),
        ("POST chat", TRACE, CALLER),
        "the request is below its caller's span, by its method and its route's name"
    );
    assert_eq!(server.state, "congo=t61rcWkgMzE", "with its caller's state");
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
        "and what it is made of is below it"
    );
    let (wait, hold) = (tree.wait.as_ref().unwrap(), tree.hold.as_ref().unwrap());
    let sent = tree.backend.as_ref().unwrap();
    assert_eq!(
        (wait.kind, hold.kind, sent.kind),
        (SpanKind::Internal, SpanKind::Internal, SpanKind::Client),
        "of which one is a request"
    );
    assert_eq!(
        wait.to, hold.from,
        "the lock is held from its being granted"
    );
    assert!(
        hold.from <= sent.from && sent.to <= hold.to,
        "the backend works while the lock is held: {sent:?} in {hold:?}"
    );
    assert_eq!(wait.get("seriatim.granted"), "true", "it was granted");
    let fence = backend.requests()[0]
        .header("x-seriatim-fence")
        .map(str::to_owned);
    assert_eq!(
        Some(hold.get("seriatim.fence")),
        fence.as_deref(),
        "its fence"
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
        "nothing has failed: {all:?}"
    );
    let seen = &backend.requests()[0];
    assert_eq!(
        seen.header("traceparent"),
        Some(&*format!("00-{TRACE}-{}-01", sent.id)),
        "the backend hangs its spans below the one of its request"
    );
    assert_eq!(
        seen.header("tracestate"),
        Some("congo=t61rcWkgMzE"),
        "untouched"
    );
    let resource = collector.resource();
    assert_eq!(
        (&*resource["service.name"], &*resource["service.version"]),
        ("seriatim", env!("CARGO_PKG_VERSION")),
        "whose spans they are"
    );
    assert!(
        !resource["service.instance.id"].is_empty(),
        "and of which process"
    );
    let head = collector.heads()[0].to_lowercase();
    assert!(
        head.starts_with("post /v1/traces http/1.1\r\n")
            && head.contains("content-type: application/x-protobuf\r\n"),
        "they go where collectors take them: {head}"
    );
}

#[tokio::test]
async fn without_a_caller_that_traces_a_new_trace_is_begun() {
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
        assert_eq!(call(app.addr(), request).await, 200, "it is served");
    }
    let trees = collector.trees(3).await;
    for (tree, seen) in trees.iter().zip(backend.requests()) {
        let (server, sent) = (&tree.server, tree.backend.as_ref().unwrap());
        assert_eq!(server.parent, "", "nobody is above it");
        assert_ne!(
            server.trace.to_uppercase(),
            TRACE.to_uppercase(),
            "it is another trace"
        );
        assert_eq!(
            seen.headers
                .iter()
                .filter(|(name, _)| name == "traceparent")
                .map(|(_, value)| &**value)
                .collect::<Vec<_>>(),
            [format!("00-{}-{}-01", server.trace, sent.id)],
            "which the backend joins"
        );
        assert_eq!(
            seen.header("tracestate"),
            None,
            "what belonged to one that can't be read goes with it"
        );
    }
    assert_ne!(
        trees[0].server.trace, trees[1].server.trace,
        "each has its own"
    );
}

#[tokio::test]
async fn a_request_that_its_caller_does_not_record_has_no_spans_and_passes_as_it_is() {
    let (backend, collector, app) = bench("").await;
    let silent = format!("00-{TRACE}-{CALLER}-00");
    let request = Request::turn("s1", "plain:ok")
        .header("traceparent", &silent)
        .header("tracestate", "congo=t61rcWkgMzE");
    assert_eq!(call(app.addr(), &request).await, 200, "it is served");
    assert_eq!(
        turn(app.addr(), "s2", "plain:ok").await.status,
        200,
        "another is"
    );
    let [other] = &collector.trees(1).await[..] else {
        unreachable!("there is one");
    };
    assert_eq!(
        other.server.get("seriatim.session_key"),
        "lock:session:u1:s2",
        "of the other"
    );
    assert!(
        collector.spans().iter().all(|span| span.trace != TRACE),
        "nothing is told of the first"
    );
    let seen = &backend.requests()[0];
    assert_eq!(
        (seen.header("traceparent"), seen.header("tracestate")),
        (Some(&*silent), Some("congo=t61rcWkgMzE")),
        "its headers pass as they came"
    );
}

#[tokio::test]
async fn without_a_collector_the_headers_pass_as_they_came() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    for value in [&*traceparent(), "whatever this is"] {
        let request = Request::turn("s1", "plain:ok")
            .header("TraceParent", value)
            .header("tracestate", "a=b");
        assert_eq!(call(app.addr(), &request).await, 200, "it is served");
        let seen = backend.requests().pop().expect("it was sent");
        assert_eq!(
            (seen.header("traceparent"), seen.header("tracestate")),
            (Some(value), Some("a=b")),
            "byte for byte"
        );
    }
}

// === ends of all kinds ===

#[tokio::test]
async fn a_refused_turn_has_a_wait_that_came_to_nothing_and_no_backend() {
    let (_backend, collector, app) = bench("").await;
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let refused = turn(app.addr(), "s1", "plain:ok").await;
    assert_eq!(refused.status, 429, "the session is busy");
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one");
    };
    assert_eq!(tree.parts(), ["lock wait"], "it got no further");
    let wait = tree.wait.as_ref().unwrap();
    assert_eq!(wait.get("seriatim.granted"), "false", "it was refused");
    assert_eq!(
        tree.server.get("seriatim.outcome"),
        "session_busy",
        "and why"
    );
    assert_eq!(
        tree.server.get("http.response.status_code"),
        "429",
        "and how"
    );
    assert_eq!(
        (&tree.server.error, &wait.error),
        (&None, &None),
        "which is no failure, but what the lock is for"
    );
}

#[tokio::test]
async fn a_turn_that_waited_shows_for_how_long() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let collector = Collector::start(Mood::Takes).await;
    let config = format!("[lock]\nblocking = true\n{}{CHAT}", collector.config());
    let app = App::on_redis(&backend, &redis, &config);
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    let second = begin_turn(app.addr(), "s1", "plain:ok").await;
    let gone = begin_turn(app.addr(), "s1", "plain:ok").await;
    is_waiting(&redis, "s1", 2).await;
    gone.close();
    is_waiting(&redis, "s1", 1).await;
    backend.open_gate("s1");
    assert!(first.answer().await.whole, "the first ends well");
    let mut second = second;
    assert_eq!(
        second.answer().await.status,
        200,
        "the second is served next"
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
        "it waited until the first one's backend was done"
    );
    assert!(
        second.backend.as_ref().unwrap().from >= first.backend.as_ref().unwrap().to,
        "two backends' spans never overlap"
    );
    assert_eq!(gone.parts(), ["lock wait"], "one that left still waited");
    assert_eq!(gone.server.error, None, "to leave is no failure");
}

#[tokio::test]
async fn a_turn_in_whose_place_a_newer_one_runs_has_not_failed() {
    let (_backend, collector, app) = bench("[lock]\nblocking = true\ninterrupt = true\n").await;
    let mut first = begin_turn(app.addr(), "s1", "gate").await;
    first.read_until(&event(0)).await;
    assert_eq!(
        turn(app.addr(), "s1", "plain:ok").await.status,
        200,
        "the newer one is served"
    );
    let trees = collector.trees(2).await;
    let hold = trees[0].hold.as_ref().unwrap();
    assert_eq!(
        (
            trees[0].server.get("seriatim.outcome"),
            hold.get("seriatim.lost")
        ),
        ("superseded", "interrupted"),
        "how it ended"
    );
    assert_eq!(
        (&trees[0].server.error, &hold.error),
        (&None, &None),
        "which is what its route wants"
    );
}

#[tokio::test]
async fn what_fails_is_an_error_and_says_of_what_kind() {
    let backend = Backend::start("plain:ok").await;
    let collector = Collector::start(Mood::Takes).await;
    let config = format!("[lock]\nlock_timeout = 1\n{}{CHAT}", collector.config());
    let app = App::start(&backend.url(), "memory:", "timeout = \"200ms\"", &config);
    let broken = turn(app.addr(), "s1", "break-chunked").await;
    assert!(!broken.whole, "the backend broke off");
    let unreachable = turn(app.addr(), "s2", "close").await;
    assert_eq!(unreachable.status, 502, "the backend gave no answer");
    let refusing = turn(app.addr(), "s3", "status:404:no").await;
    assert_eq!(refusing.status, 404, "the backend knows no such thing");
    let lost = turn(app.addr(), "s4", "hang-middle").await;
    assert!(!lost.whole, "its lease ran out in the middle of the answer");
    let kinds = |tree: &Tree| {
        let of = |span: &Span| {
            let kind = span.get("error.type").to_owned();
            assert_eq!(
                span.error.is_some(),
                !kind.is_empty(),
                "an error has a kind: {span:?}"
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
        "of the request, of its lock, and of its backend"
    );
    assert_eq!(
        trees[1]
            .backend
            .as_ref()
            .unwrap()
            .get("http.response.status_code"),
        "",
        "what the proxy answers instead is not the backend's"
    );
    let hold = trees[3].hold.as_ref().unwrap();
    assert_eq!(
        hold.get("seriatim.lost"),
        "expired",
        "how the lock was lost"
    );
}

#[tokio::test]
async fn what_passes_without_a_lock_has_a_backend_only_and_what_no_route_takes_no_route() {
    let stop = "[[routes]]\nname = \"stop\"\npath = \"/stop/{id}\"\nlock = false\n";
    let (_backend, collector, app) = bench(stop).await;
    for request in [Request::get("/stop/s1?x=y"), Request::get("/other")] {
        assert_eq!(call(app.addr(), &request).await, 200, "it passes");
    }
    let trees = collector.trees(2).await;
    assert_eq!(
        trees
            .iter()
            .map(|tree| &*tree.server.name)
            .collect::<Vec<_>>(),
        ["GET stop", "GET"],
        "by the route, where there is one"
    );
    assert_eq!(
        (
            trees[0].server.get("http.route"),
            trees[0].server.get("url.path")
        ),
        ("/stop/{id}", "/stop/s1"),
        "the route's path and the request's; not its query"
    );
    for tree in &trees {
        assert_eq!(
            tree.parts(),
            ["backend"],
            "nothing was waited for: {tree:?}"
        );
    }
}

#[tokio::test]
async fn a_turn_that_goes_on_without_its_client_and_one_that_leaves_http_end_with_their_backend() {
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
    let mut left = begin_turn(app.addr(), "s1", "gate").await;
    left.read_until(&event(0)).await;
    left.half_close().await;
    left.read_to_close().await;
    backend.open_gate("s1");
    backend.ended("s1", 1).await;
    let [tree] = &collector.trees(1).await[..] else {
        unreachable!("there is one");
    };
    assert_eq!(
        tree.parts(),
        ["lock wait", "lock hold", "backend"],
        "all of it"
    );
    assert_eq!(
        tree.server.get("seriatim.outcome"),
        "client_gone",
        "as the log has it"
    );

    let mut tunnel = Client::connect(app.addr()).await;
    let request = Request::get("/talk")
        .header("x-test-session", "s2")
        .header("x-test-script", "upgrade")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket");
    tunnel.send(&request).await;
    assert_eq!(tunnel.head().await.status, 101, "it leaves HTTP");
    assert_eq!(
        collector.spans().len(),
        4,
        "nothing is told before it is over"
    );
    tunnel.send_raw(b"bye").await;
    tunnel.read_to_close().await;
    let tree = collector.trees(2).await.pop().unwrap();
    assert_eq!(
        tree.parts(),
        ["lock wait", "lock hold", "backend"],
        "all of it"
    );
    assert_eq!(
        (
            tree.server.get("seriatim.outcome"),
            tree.server.get("http.response.status_code")
        ),
        ("complete", "101"),
        "how it ended"
    );
}

// === nobody waits for them ===

/// A configuration in a folder.
fn config(backend: &Backend, telemetry: &str) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n{telemetry}{CHAT}",
        backend.url()
    );
    std::fs::write(&path, text).expect("it can be written");
    (folder, path)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_the_last_turns_are_sent_before_the_process_ends() {
    let (backend, collector) = (
        Backend::start("plain:ok").await,
        Collector::start(Mood::Takes).await,
    );
    let (_folder, path) = config(&backend, &collector.config());
    let process = Process::start(&path);
    let mut last = begin_turn(process.addr(), "s1", "gate").await;
    last.read_until(&event(0)).await;
    process.signal("TERM");
    wait_for(|| process.told("draining"), "it says that it drains").await;
    backend.open_gate("s1");
    assert!(last.answer().await.whole, "it ends well");
    let (status, _) = process.end();
    assert_eq!(status.code(), Some(0), "the process ends well");
    assert_eq!(
        collector.spans().len(),
        4,
        "and nothing of its last turn is missing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_or_hangs_or_refuses_holds_nothing_up() {
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
                "a turn is served whose collector {what}"
            );
        }
        const LOST: &str = "spans not sent and dropped";
        if why.is_some() {
            wait_for(|| process.told(LOST), &format!("it is told that it {what}")).await;
            // More of them, and more failures.
            assert_eq!(
                turn(process.addr(), "s1", "plain:ok").await.status,
                200,
                "as before"
            );
        } else {
            wait_for(|| !hanging.heads().is_empty(), "it hangs with spans").await;
        }
        process.signal("TERM");
        let (status, events) = process.end();
        assert_eq!(status.code(), Some(0), "the process ends well: it {what}");
        let said = |message: &str| {
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
                said("the last spans").len(),
                1,
                "in time, without them: {events:?}"
            ),
            Some(why) => {
                let told = said(LOST);
                assert_eq!(
                    told.len(),
                    1,
                    "it is told once, and not each time: {told:?}"
                );
                assert!(told[0].to_string().contains(why), "and why: {told:?}");
                assert!(told[0]["requests"].is_u64(), "and of how many: {told:?}");
                let rest = said("spans dropped");
                assert_eq!(
                    rest.len(),
                    1,
                    "what came after it is told at the end: {events:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_collector_with_tls_is_believed_by_its_certificate() {
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
    std::fs::write(&ca, cert.pem()).expect("it can be written");
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
        "it is served"
    );
    assert_eq!(collector.trees(1).await.len(), 1, "its spans come");
    assert_eq!(
        collector.resource()["service.name"],
        "shop",
        "under the name that was set"
    );
    assert!(
        collector.heads()[0].starts_with("POST /base/v1/traces "),
        "a base's path stays before the rest"
    );
}
