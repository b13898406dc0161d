//! Metrics: each request is counted once with its outcome, gauges follow the state, Prometheus' own
//! tool accepts the text, and the dashboard, the alerts and the documentation name every metric
//! that exists, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use seriatim::metrics::{ExpositionFormat, Metrics};

use crate::support::app::{App, CHAT, key, wait_for_queue_length};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Bench, Setup};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// The number of ended requests, by route and outcome.
type Ends = BTreeMap<(String, String), u64>;

/// Routes of every kind, and low limits.
const ROUTES: &str = r#"
unmatched = "reject"
[limits]
max_body = "1KiB"
[timeouts]
request_body = "700ms"
response_head = "1500ms"
idle_stream = "1500ms"
request_head = "1s"
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{body:/session_id}"]
user_id = ["{body:/user_id}", "unknown"]
on_missing = "reject"
[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-test-session}"]
user_id = ["u1"]
blocking = true
max_waiters = 1
[[routes]]
name = "impatient"
path = "/impatient"
session_id = ["{header:x-test-session}"]
user_id = ["u1"]
blocking = true
blocking_timeout = "300ms"
keep_alive = "100ms"
stream = "sse"
[[routes]]
name = "newest"
path = "/newest"
session_id = ["{header:x-test-session}"]
user_id = ["u1"]
blocking = true
interrupt = true
[[routes]]
name = "again"
path = "/again"
session_id = ["{header:x-test-session}"]
replay = true
[[routes]]
name = "attach"
path = "/again/stream"
session_id = ["{header:x-test-session}"]
attach = true
[[routes]]
name = "short"
path = "/short"
session_id = ["{header:x-test-session}"]
user_id = ["u1"]
lock_timeout = "700ms"
[[routes]]
name = "a \"stop\" \\ button"
path = "/stop"
lock = false
"#;

// === impl Bench ===

/// A bench, and the requests that its metrics counted so far.
struct CountingBench {
    bench: Bench<Redis, FaultProxy>,
    metrics: Metrics,
    known: Ends,
}

impl Deref for CountingBench {
    type Target = Bench<Redis, FaultProxy>;

    fn deref(&self) -> &Self::Target {
        &self.bench
    }
}

impl CountingBench {
    async fn start(config: &str) -> Self {
        let setup = Setup::new(config).store("timeout = \"500ms\"");
        let bench = setup.on_faulty_network().await;
        let metrics = bench.app.metrics();
        Self {
            bench,
            metrics,
            known: Ends::new(),
        }
    }

    fn post(&self, path: &str, session: &str, script: &str) -> Request {
        Request::post(path)
            .header("x-test-session", session)
            .header("x-test-script", script)
            .body("")
    }

    async fn begin(&self, path: &str, session: &str, script: &str) -> Client {
        let mut client = Client::connect(self.app.addr()).await;
        client.send(&self.post(path, session, script)).await;
        client
    }

    /// Starts a turn that runs until its gate is opened.
    async fn hold(&self, path: &str, session: &str) -> Client {
        let mut client = self.begin(path, session, "gate").await;
        client.read_until(&event(0)).await;
        client
    }

    /// Asserts that exactly these requests ended since the last call.
    async fn counts(&mut self, what: &str, expected: &[(&str, &str)]) {
        let wanted = expected.len() as u64;
        let before: u64 = self.known.values().sum();
        let metrics = self.metrics.clone();
        let sum = || ends(&metrics).values().sum::<u64>();
        wait_for(
            || sum() >= before + wanted,
            &format!("{what}: {wanted} ended requests are counted"),
        )
        .await;
        let now = ends(&self.metrics);
        let mut new: Vec<_> = Vec::new();
        for ((route, outcome), count) in &now {
            let was = self.known.get(&(route.clone(), outcome.clone()));
            let more = count - was.unwrap_or(&0);
            new.extend((0..more).map(|_| (route.as_str(), outcome.as_str())));
        }
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(new, expected, "{what}: each request is counted once");
        self.known = now;
    }

    async fn gauge(&self, name: &str, value: &str) {
        let line = format!("{name} {value}");
        let is_so = || text(&self.metrics).lines().any(|sample| sample == line);
        wait_for(is_so, &line).await;
    }
}

fn text(metrics: &Metrics) -> String {
    metrics.text(ExpositionFormat::Classic)
}

fn ends(metrics: &Metrics) -> Ends {
    let text = text(metrics);
    let samples = text
        .lines()
        .filter_map(|line| line.strip_prefix("seriatim_requests_total{"));
    let ends = samples.map(|sample| {
        let (labels, count) = sample.rsplit_once("} ").expect("a sample");
        let labels = labels.strip_prefix("route=\"").expect("the route's label");
        let (route, outcome) = labels
            .split_once("\",outcome=\"")
            .expect("the outcome's label");
        let outcome = outcome.trim_end_matches('"').to_owned();
        let count = count.parse().expect("a count");
        ((route.to_owned(), outcome), count)
    });
    ends.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_counted_once_with_its_outcome() {
    let mut bench = CountingBench::start(ROUTES).await;
    let addr = bench.app.addr();
    turn(addr, "s1", "plain:x").await;
    bench
        .counts("a complete response", &[("chat", "complete")])
        .await;
    for path in ["/stop", "/STOP/"] {
        let stop = bench.post(path, "-", "empty");
        Client::connect(addr).await.call(&stop).await;
        let route = "a \\\"stop\\\" \\\\ button";
        bench
            .counts("a route without a lock", &[(route, "complete")])
            .await;
    }
    Client::connect(addr).await.get("/nowhere").await;
    bench
        .counts("a request without a route", &[("", "no_route")])
        .await;

    for (body, outcome) in [
        ("{", "malformed_body"),
        ("{}", "missing_session"),
        (r#"{"session_id":true}"#, "bad_session_id"),
        (r#"{"session_id":"a","session_id":"b"}"#, "ambiguous_key"),
        (&"x".repeat(2000), "body_too_large"),
    ] {
        let request = Request::post("/chat").json(body);
        Client::connect(addr).await.call(&request).await;
        bench.counts(body, &[("chat", outcome)]).await;
    }
    let twice = bench
        .post("/short", "a", "empty")
        .header("x-test-session", "b");
    Client::connect(addr).await.call(&twice).await;
    bench
        .counts("a header twice", &[("short", "ambiguous_key")])
        .await;
    let encoded = Request::turn("s1", "empty").header("content-encoding", "lzma");
    Client::connect(addr).await.call(&encoded).await;
    bench
        .counts("an encoding", &[("chat", "unsupported_encoding")])
        .await;
    let mut silent = Client::connect(addr).await;
    let announced = Request::post("/chat").header("content-length", "9");
    silent.send_head(&announced).await;
    silent.answer().await;
    bench
        .counts("a body that doesn't arrive", &[("chat", "request_timeout")])
        .await;

    for (script, outcome) in [
        ("close", "upstream_unreachable"),
        ("hang", "upstream_timeout"),
        ("break-chunked", "upstream_aborted"),
        ("hang-middle", "idle_timeout"),
    ] {
        let _ = begin_turn(addr, script, script).await.try_answer().await;
        bench.counts(script, &[("chat", outcome)]).await;
    }
    let mut leaves = begin_turn(addr, "leaves", "gate").await;
    leaves.read_until(&event(0)).await;
    leaves.reset();
    bench
        .counts("a disconnect", &[("chat", "client_gone")])
        .await;
    let unanswered = begin_turn(addr, "hung up", "hang").await;
    bench.backend.started("hung up", 1).await;
    unanswered.reset();
    bench
        .counts(
            "a disconnect before the response",
            &[("chat", "client_gone")],
        )
        .await;

    for raw in [
        ("nonsense\r\n\r\n".to_owned(), "bad_request"),
        (
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(100_000)),
            "uri_too_long",
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
                "x".repeat(100_000)
            ),
            "head_too_large",
        ),
        (
            "GET / HTTP/1.2\r\nhost: a\r\n\r\n".to_owned(),
            "unsupported_http_version",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n".to_owned(),
            "unsupported_transfer_coding",
        ),
        ("GET / HTTP/1.1\r\nho".to_owned(), "request_timeout"),
    ] {
        let mut client = Client::connect(addr).await;
        client.send_raw(raw.0.as_bytes()).await;
        client.read_to_close().await;
        bench.counts("a malformed request", &[("", raw.1)]).await;
    }

    let mut held = bench.hold("/line", "s2").await;
    let mut waits = bench.begin("/line", "s2", "empty").await;
    wait_for_queue_length(&bench.redis, "s2", 1).await;
    bench.begin("/line", "s2", "empty").await.answer().await;
    bench
        .counts("a turn beyond max_waiters", &[("line", "queue_full")])
        .await;
    let busy = turn(addr, "s2", "empty").await;
    assert_eq!(busy.status, 429, "a session is busy across routes");
    bench
        .counts("a non-blocking turn", &[("chat", "session_busy")])
        .await;
    bench.backend.open_gate("s2");
    held.answer().await;
    waits.answer().await;
    let both = [("line", "complete"), ("line", "complete")];
    bench.counts("the holder and the waiter", &both).await;

    let mut held = bench.hold("/line", "s2").await;
    bench
        .begin("/impatient", "s2", "empty")
        .await
        .answer()
        .await;
    bench
        .counts("a waiter that timed out", &[("impatient", "wait_timeout")])
        .await;
    bench.backend.open_gate("s2");
    held.answer().await;
    bench.counts("the holder", &[("line", "complete")]).await;

    let mut held = bench.hold("/newest", "s3").await;
    let mut newer = bench.begin("/newest", "s3", "gate").await;
    let _ = held.try_answer().await;
    bench
        .counts("a superseded holder", &[("newest", "superseded")])
        .await;
    newer.read_until(&event(0)).await;
    bench.backend.open_all_gates();
    newer.answer().await;
    bench
        .counts("the newer turn", &[("newest", "complete")])
        .await;

    let _ = bench.begin("/short", "s4", "hang").await.try_answer().await;
    bench
        .counts("an expired lease", &[("short", "lock_lost")])
        .await;
    bench
        .gauge("seriatim_locks_lost_total{reason=\"expired\"}", "1")
        .await;
    bench.network.set(Mode::Blackhole).await;
    turn(addr, "s5", "empty").await;
    bench
        .counts("a store outage", &[("chat", "store_unavailable")])
        .await;
    bench.network.set(Mode::Pass).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hold_time_is_recorded_if_the_client_disconnects_early() {
    let bench = CountingBench::start(ROUTES).await;
    let unanswered = bench.begin("/newest", "s1", "hang").await;
    bench.backend.started("s1", 1).await;
    unanswered.reset();
    bench
        .gauge("seriatim_lock_hold_seconds_count{route=\"newest\"}", "1")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_drain_aborts_are_counted() {
    let config = "[timeouts]\ndrain = \"300ms\"\n[[routes]]\nname = \"line\"\npath = \"/line\"\n\
                  session_id = [\"{header:x-test-session}\"]\nuser_id = [\"u1\"]\nblocking = true\n";
    let bench = CountingBench::start(config).await;
    let _held = bench.hold("/line", "s1").await;
    let _waits = bench.begin("/line", "s1", "empty").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    bench.gauge("seriatim_draining", "0").await;
    let CountingBench { bench, metrics, .. } = bench;
    bench.app.stop().await;
    let ended = |outcome: &str| (("line".to_owned(), outcome.to_owned()), 1);
    let expected = [ended("draining"), ended("drain_aborted")];
    assert_eq!(
        ends(&metrics),
        expected.into(),
        "each request is counted once"
    );
    for gone in [
        "seriatim_locks_held 0",
        "seriatim_waiters 0",
        "seriatim_draining 1",
    ] {
        assert!(
            text(&metrics).contains(&format!("\n{gone}\n")),
            "{gone} after the stop"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_beyond_the_limit_is_counted() {
    let config = format!("[limits]\nmax_connections = 1\n{CHAT}");
    let mut bench = CountingBench::start(&config).await;
    let mut first = Client::connect(bench.app.addr()).await;
    first.turn("s1", "plain:x").await;
    bench
        .counts("the served request", &[("chat", "complete")])
        .await;
    Client::connect(bench.app.addr())
        .await
        .read_to_close()
        .await;
    bench
        .counts("the connection beyond the limit", &[("", "overloaded")])
        .await;
    bench.gauge("seriatim_connections_limit", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_follow_held_locks_and_waiters() {
    let bench = CountingBench::start(ROUTES).await;
    bench.gauge("seriatim_store_up", "1").await;
    let mut held = bench.hold("/newest", "s1").await;
    bench.gauge("seriatim_locks_held", "1").await;
    bench.gauge("seriatim_waiters", "0").await;
    // A Python holder can't be interrupted, so the newer turn waits.
    bench
        .redis
        .command(&["SET", &key("s2"), "python", "PX", "60000"])
        .await;
    let waiter = bench.begin("/newest", "s2", "gate").await;
    bench.gauge("seriatim_waiters", "1").await;
    waiter.reset();
    bench.gauge("seriatim_waiters", "0").await;
    bench.backend.open_gate("s1");
    held.answer().await;
    bench.gauge("seriatim_locks_held", "0").await;
    bench.gauge("seriatim_store_errors_total", "0").await;
    bench.network.set(Mode::Blackhole).await;
    turn(bench.app.addr(), "s3", "empty").await;
    let failed = || !text(&bench.metrics).contains("seriatim_store_errors_total 0\n");
    wait_for(failed, "a command without a reply counts as an error").await;
    bench.network.set(Mode::Reset).await;
    bench.gauge("seriatim_store_up", "0").await;
    bench.network.set(Mode::Pass).await;
    bench.gauge("seriatim_store_up", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_with_a_local_and_a_store_lock_counts_as_one() {
    let bench = CountingBench::start("").await;
    let through = format!("redis://{}/0", bench.network.addr());
    let app = App::start(&bench.backend.url(), &through, "on_error = \"local\"", CHAT);
    let metrics = app.metrics();
    let counted = async |held: &str| {
        let line = format!("seriatim_locks_held {held}");
        let is_so = || text(&metrics).lines().any(|sample| sample == line);
        wait_for(is_so, &line).await;
    };
    let mut held = begin_turn(app.addr(), "s1", "gate").await;
    held.read_until(&event(0)).await;
    counted("1").await;
    bench.backend.open_gate("s1");
    held.answer().await;
    counted("0").await;
    // A turn that starts during an outage, and takes its lock in the store later.
    bench.network.set(Mode::Reset).await;
    let mut held = begin_turn(app.addr(), "s2", "gate").await;
    held.read_until(&event(0)).await;
    bench.network.set(Mode::Pass).await;
    let there = async || bench.redis.get(&key("s2")).await.is_some();
    wait_for_async(there, "the lock is taken in the store later").await;
    counted("1").await;
    bench.backend.open_gate("s2");
    held.answer().await;
    counted("0").await;
}

#[tokio::test]
async fn the_memory_store_is_always_up() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    let text = text(&app.metrics());
    assert!(
        text.contains("\nseriatim_store_up 1\n"),
        "the memory store is up from the start: {text}"
    );
}

#[tokio::test]
async fn the_accept_header_selects_the_text_format() {
    let backend = Backend::start("plain:ok").await;
    let app = App::in_memory(&backend, CHAT);
    turn(app.addr(), "s1", "plain:x").await;
    let mut client = Client::connect(app.admin()).await;
    let classic = client.get("/metrics").await;
    assert_eq!(
        classic.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8"),
        "the classic format is the default"
    );
    let request = Request::get("/metrics").header(
        "accept",
        "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
    );
    let open = client.call(&request).await;
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "OpenMetrics is sent on request"
    );
    assert!(
        open.text().ends_with("# EOF\n"),
        "OpenMetrics text ends with # EOF"
    );
    assert!(
        !classic.text().contains("# EOF"),
        "the classic format has no # EOF"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_lists_recent_refusals_and_lost_locks() {
    let mut bench = CountingBench::start(ROUTES).await;
    let mut admin = Client::connect(bench.app.admin()).await;
    bench.gauge("seriatim_store_up", "1").await;
    let addr = bench.app.addr();
    let mut held = begin_turn(addr, "s1", "gate").await;
    held.read_until(&event(0)).await;
    let busy = Request::turn("s1", "empty").header("x-request-id", "r-1");
    Client::connect(addr).await.call(&busy).await;
    let _ = bench.begin("/short", "s2", "hang").await.try_answer().await;
    let ended = [("chat", "session_busy"), ("short", "lock_lost")];
    bench.counts("a refusal and a lost lock", &ended).await;
    let answer = admin.get("/status").await;
    assert_eq!(
        answer.header("content-type"),
        Some("application/json; charset=utf-8"),
        "the status needs no token on a loopback address"
    );
    let status = answer.json();
    assert_eq!(
        status["store"],
        json!({"kind": "redis", "up": true}),
        "the status names the store"
    );
    assert_eq!(
        status["version"],
        env!("CARGO_PKG_VERSION"),
        "the status names the version"
    );
    assert_eq!(
        (&status["draining"], &status["held"], &status["waiting"]),
        (&json!(false), &json!(1), &json!(0)),
        "the status has the current counts"
    );
    assert_eq!(
        status["history"]["step_s"], 10,
        "the history has steps of 10 s"
    );
    let recent = status["recent"]
        .as_array()
        .expect("a list of recent events");
    assert_eq!(
        recent.len(),
        2,
        "successful requests are not listed: {recent:?}"
    );
    let fields =
        |event: &Value| ["outcome", "route", "key", "status"].map(|name| event[name].clone());
    assert_eq!(
        fields(&recent[0]),
        [
            json!("lock_lost"),
            json!("short"),
            json!(key("s2")),
            json!(503)
        ],
        "the newest event comes first"
    );
    assert_eq!(
        fields(&recent[1]),
        [
            json!("session_busy"),
            json!("chat"),
            json!(key("s1")),
            json!(429)
        ],
        "older events follow"
    );
    assert_eq!(
        recent[1]["request_id"], "r-1",
        "the request id links an event to the log"
    );
    assert!(
        recent[0]["wait_ms"].is_u64(),
        "an event has the time that the request waited for its lock"
    );
    let at = recent[0]["at"].as_str().expect("a timestamp");
    assert!(
        at.ends_with('Z') && at.len() == 24,
        "the timestamp is in UTC, in milliseconds: {at}"
    );
    bench.backend.open_gate("s1");
    held.answer().await;
}

// === metrics for operators ===

/// The metrics of a process that served, refused and lost turns.
async fn loaded() -> String {
    let mut bench = CountingBench::start(ROUTES).await;
    let addr = bench.app.addr();
    let _ = bench.begin("/short", "s1", "hang").await.try_answer().await;
    let mut held = begin_turn(addr, "s2", "gate").await;
    held.read_until(&event(0)).await;
    turn(addr, "s2", "empty").await;
    Client::connect(addr).await.get("/nowhere").await;
    let stop = bench.post("/stop", "-", "empty");
    Client::connect(addr).await.call(&stop).await;
    bench
        .begin("/impatient", "s2", "empty")
        .await
        .answer()
        .await;
    bench.backend.open_gate("s2");
    held.answer().await;
    bench.begin("/again", "s3", "empty").await.answer().await;
    let attach = Request::get("/again/stream").header("x-test-session", "s3");
    Client::connect(addr).await.call(&attach).await;
    let ended = [
        ("again", "complete"),
        ("attach", "complete"),
        ("short", "lock_lost"),
        ("chat", "session_busy"),
        ("", "no_route"),
        ("a \\\"stop\\\" \\\\ button", "complete"),
        ("impatient", "wait_timeout"),
        ("chat", "complete"),
    ];
    bench
        .counts("a process with all kinds of metrics", &ended)
        .await;
    let mut client = Client::connect(bench.app.admin()).await;
    client.get("/metrics").await.text()
}

/// The names and types of all metrics in a text of the classic format.
fn described(text: &str) -> BTreeMap<String, String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let types = types.map(|line| line.split_once(' ').expect("a name and a type"));
    types
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// The names of the metrics that occur in a text.
fn named(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c));
    let names = words.filter(|word| word.starts_with("seriatim_"));
    names
        .map(|name| {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|ending| name.strip_suffix(ending));
            base.unwrap_or(name).to_owned()
        })
        .collect()
}

fn top(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(top(path)).expect("a file of the repository")
}

/// Runs Debian's promtool with `input` on its standard input; returns whether it succeeded, and its
/// output.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(top(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus: .ci/test installs it");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // promtool may exit before it has read everything.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("promtool exits");
    let report = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&report).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_no_problem_in_the_metrics() {
    let text = loaded().await;
    let report = promtool(&["check", "metrics"], &text);
    assert_eq!(
        report,
        (true, String::new()),
        "promtool accepts the metrics: {text}"
    );
    let report = promtool(&["check", "metrics"], "# TYPE a counter\na 1\n");
    assert!(
        !report.0 && !report.1.is_empty(),
        "promtool rejects bad metrics"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_alerts_and_documentation_name_the_existing_metrics() {
    let text = loaded().await;
    let there = described(&text);
    let names: BTreeSet<_> = there.keys().cloned().collect();
    let dashboard = read("helm/seriatim/files/dashboard.json");
    let parsed: Value = serde_json::from_str(&dashboard).expect("the dashboard is JSON");
    let panels = parsed["panels"].as_array().expect("panels");
    let queries = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| target["expr"].as_str().expect("a query"));
    let queries: Vec<_> = queries.collect();
    assert_eq!(
        named(&queries.join("\n")),
        names,
        "the dashboard shows every metric, and no other"
    );
    let alerts = read("helm/seriatim/files/alerts.yaml");
    let rules: Vec<_> = alerts
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let unknown: Vec<_> = named(&rules.join("\n"))
        .difference(&names)
        .cloned()
        .collect();
    assert_eq!(unknown, [""; 0], "alerts use existing metrics");
    let documented: BTreeMap<_, _> = read("docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `seriatim_"))
        .map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let name = cells.next().unwrap_or_default().trim_end_matches('`');
            let kind = cells.next().unwrap_or_default();
            (format!("seriatim_{name}"), kind.to_owned())
        })
        .collect();
    assert_eq!(
        documented, there,
        "docs/metrics.md has a row for each metric, with its type"
    );
    let panels: Vec<_> = panels
        .iter()
        .filter(|panel| panel["type"] != "row")
        .collect();
    for panel in &panels {
        assert_eq!(
            panel["datasource"]["uid"], "${datasource}",
            "every panel uses the selected data source: {}",
            panel["title"]
        );
    }
    let rules = queries.iter().map(|query| {
        let query = Value::from(query.replace("$__rate_interval", "1m"));
        format!("  - {{ record: \"r\", expr: {query} }}\n")
    });
    let rules: String = rules.collect();
    let mut file = tempfile::NamedTempFile::new().expect("a file for rules");
    file.write_all(format!("groups:\n- name: g\n  rules:\n{rules}").as_bytes())
        .expect("the file is written");
    let path = file.path().to_str().expect("its name is text");
    let (is_fine, report) = promtool(&["check", "rules", "--lint=none", path], "");
    assert!(is_fine, "Prometheus accepts every query: {report}");
}

#[test]
fn each_alert_is_tested_and_has_a_runbook() {
    let alerts = "helm/seriatim/files/alerts.yaml";
    let (is_fine, report) = promtool(&["check", "rules", alerts], "");
    assert!(is_fine, "promtool accepts the rules: {report}");
    let folder = std::fs::read_dir(top("tests/alerts")).expect("tests of alerts");
    let files = folder.map(|entry| entry.expect("a readable entry").path());
    let files: Vec<_> = files
        .map(|path| path.to_str().expect("its name is text").to_owned())
        .collect();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(String::as_str));
    let (is_fine, report) = promtool(&arguments, "");
    assert!(is_fine, "each test of an alert passes: {report}");
    let tests: String = files
        .iter()
        .map(|path| std::fs::read_to_string(path).expect("the file is readable"))
        .collect();
    let (text, runbook) = (read(alerts), read("docs/alerts.md"));
    let names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names.clone() {
        for what in ["fires", "is silent"] {
            let test = format!("- name: {name} {what}\n");
            assert!(
                tests.contains(&test),
                "a test checks that the alert {what}: {name}"
            );
        }
        let link = format!("runbook: docs/alerts.md#{}\n", name.to_lowercase());
        assert!(
            text.contains(&link),
            "the alert links to its runbook: {name}"
        );
        let section = format!("\n## {name}\n");
        assert!(
            runbook.contains(&section),
            "the runbook has a section for the alert: {name}"
        );
    }
    assert!(names.count() > 10, "there are alerts");
}
