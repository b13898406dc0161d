//! The log as a user reads it: its fields, and that hidden ids occur nowhere in it.
//!
//! A process ends requests in every possible way, for one user and one session whose names occur
//! nowhere else. Then the tests read all of its output.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::app::CHAT;
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request};
use crate::support::collector::{Collector, Mood, Span};
use crate::support::h2_client::{self, H2};
use crate::support::process::{seriatim, signal};
use crate::support::redis::Redis;
use crate::support::{Reserved, wait_for, wait_for_async};

/// Part of every name of the user, and of nothing else.
const USER: &str = "Zoe7";
/// Part of every name of the session, and of nothing else.
const SESSION: &str = "Kim9";
const KEY: &str = "lock:session:user-Zoe7:session-Kim9";

const ROUTES: &str = r#"
[[routes]]
name = "line"
path = "/threads/{thread}/runs"
session_id = ["{path:thread}"]
user_id = ["{header:x-user}"]
blocking = true
keep_alive = "100ms"
replay = true

[[routes]]
name = "again"
path = "/threads/{thread}/stream"
session_id = ["{path:thread}"]
user_id = ["{header:x-user}"]
attach = true

[[routes]]
name = "watched"
path = "/watched"
session_id = ["{header:x-session}"]
user_id = ["{header:x-user}"]
enforce = false
"#;

/// A running process and its log so far.
struct LoggedProcess {
    child: Child,
    addr: SocketAddr,
    admin: Reserved,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// The complete log of a process, and its spans.
struct Recorded {
    text: String,
    spans: Vec<Span>,
}

// === impl LoggedProcess ===

impl LoggedProcess {
    async fn start(config: &std::path::Path) -> Self {
        let admin = Reserved::new();
        let mut child = seriatim()
            .arg("--config")
            .arg(config)
            .env("SERIATIM__ADMIN__LISTEN", admin.addr().to_string())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::<Mutex<String>>::default();
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                let piece = String::from_utf8_lossy(&piece[..count]);
                sink.lock().expect("no panic").push_str(&piece);
            }
        });
        let serving = || {
            let log = log.lock().expect("no panic");
            let line = log
                .split_inclusive('\n')
                .find(|line| line.ends_with('\n') && line.contains("serving"))?;
            let address = &line[line.find("127.0.0.1:")?..];
            let end = address[10..].find(|c: char| !c.is_ascii_digit())? + 10;
            address[..end].parse().ok()
        };
        wait_for(|| serving().is_some(), "the process logs its address").await;
        let addr = serving().expect("the process logs its address");
        Self {
            child,
            addr,
            admin,
            log,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    async fn logs(&self, what: &str) {
        wait_for(
            || self.text().contains(what),
            &format!("the log contains: {what}"),
        )
        .await;
    }

    fn end(mut self) -> String {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().expect("the process can be waited for");
        assert!(status.success(), "the process exits with success: {status}");
        let reader = self.reader.take().expect("the reader was started");
        reader.join().expect("the reader doesn't panic");
        self.text()
    }
}

impl Drop for LoggedProcess {
    fn drop(&mut self) {
        // An error means that the child has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === driving the process ===

fn chat(script: &str) -> Request {
    let body = r#"{"session_id":"session-Kim9","user_id":"user-Zoe7"}"#;
    Request::post("/chat?session=session-Kim9")
        .header("x-test-script", script)
        .json(body)
}

fn run(script: &str) -> Request {
    Request::post("/threads/session-Kim9/runs?user=user-Zoe7")
        .header("x-user", "user-Zoe7")
        .header("x-test-session", "session-Kim9")
        .header("x-test-script", script)
}

fn watched() -> Request {
    Request::post("/watched")
        .header("x-user", "user-Zoe7")
        .header("x-session", "session-Kim9")
        .header("x-test-session", "-")
        .header("x-test-script", "hang-middle")
}

async fn status(addr: SocketAddr, request: &Request) -> u16 {
    Client::connect(addr).await.call(request).await.status
}

/// Starts a turn whose response runs until its gate is opened.
async fn start_open(addr: SocketAddr, request: &Request) -> Client {
    let mut client = Client::connect(addr).await;
    client.send(request).await;
    client.read_until(&event(0)).await;
    client
}

/// Makes a process log every kind of event.
async fn drive(format: &str, ids: &str) -> Recorded {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let collector = Collector::start(Mood::Takes).await;
    let folder = TempDir::new().expect("a folder for the configuration");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n\
         [store]\nurl = \"{}\"\ntimeout = \"200ms\"\ncrash_recovery = \"1s\"\non_error = \"allow\"\n\
         [lock]\nlock_timeout = 2\nextend_lock_interval = \"100ms\"\n\
         [log]\nformat = \"{format}\"\nlevel = \"trace\"\nids = \"{ids}\"\n{}{CHAT}{ROUTES}",
        backend.url(),
        redis.url(),
        collector.config()
    );
    std::fs::write(&path, text).expect("the configuration is written");
    let process = LoggedProcess::start(&path).await;
    let addr = process.addr;

    // Without a lock, and with one.
    let unmatched = Request::get("/users/user-Zoe7/sessions/session-Kim9?x=session-Kim9");
    assert_eq!(
        status(addr, &unmatched).await,
        200,
        "a request without a route is forwarded"
    );
    let served = async || status(addr, &chat("plain:ok")).await == 200;
    wait_for_async(served, "Redis is connected and a turn is served").await;
    let mut h2 = H2::connect(addr).await;
    let request = h2_client::turn("session-Kim9", "plain:ok");
    assert_eq!(
        h2.call(request).await.status(),
        200,
        "a turn over HTTP/2 is served"
    );
    drop(h2);

    // A busy session without blocking, and one with.
    let mut held = start_open(addr, &chat("gate")).await;
    assert_eq!(
        status(addr, &chat("plain:ok")).await,
        429,
        "a busy session is refused"
    );
    backend.open_gate("session-Kim9");
    assert!(held.answer().await.whole, "the turn is complete");
    let mut held = start_open(addr, &run("gate")).await;
    let mut waiting = Client::connect(addr).await;
    let kept = run("plain:ok").header("accept", "text/event-stream");
    waiting.send(&kept).await;
    let line = format!("{{{KEY}}}:1:queue");
    let is_queued = async || {
        let count = redis.command(&["ZCARD", &line]).await;
        redis::from_redis_value::<usize>(count).expect("a count") == 1
    };
    wait_for_async(is_queued, "the turn is in the queue").await;
    waiting.read_until(": queued ").await;
    backend.open_gate("session-Kim9");
    assert!(held.answer().await.whole, "the turn is complete");
    assert_eq!(
        waiting.answer().await.status,
        200,
        "the waiter is served next"
    );

    // Clients disconnect: one turn is cancelled, and one continues.
    let cancelled = start_open(addr, &chat("gate")).await;
    cancelled.close();
    process.logs("client_gone").await;
    let continued = start_open(addr, &run("gate")).await;
    continued.close();
    let again = Request::get("/threads/session-Kim9/stream").header("x-user", "user-Zoe7");
    let mut attached = start_open(addr, &again).await;
    backend.open_all_gates();
    assert!(attached.answer().await.whole, "the client reads on");
    process.logs("continued").await;

    // An operator inspects and releases a lock; a request from another site is refused.
    let admin = process.admin.addr();
    let locked = chat("hang-middle");
    let mut freed = start_open(addr, &locked).await;
    let one = "/locks/user-Zoe7/session-Kim9";
    assert_eq!(
        status(admin, &Request::get(one)).await,
        200,
        "the operator inspects the lock"
    );
    assert_eq!(
        status(admin, &Request::new("DELETE", one)).await,
        200,
        "the operator releases the lock"
    );
    assert!(
        !freed.answer().await.whole,
        "a forced release stops the turn"
    );
    process.logs("seriatim::audit").await;
    let elsewhere = Request::get(one).header("sec-fetch-site", "cross-site");
    assert_eq!(
        status(admin, &elsewhere).await,
        403,
        "a request from another site is refused"
    );
    process.logs("access denied").await;

    // Requests that can't be read, or that are ambiguous.
    for (body, refused) in [
        (r#"{"session_id":"session-Kim9""#, 400),
        (r#"{"session_id":"session-Kim9","session_id":"x"}"#, 400),
        (r#"{"session_id":{"of":"session-Kim9"}}"#, 400),
    ] {
        let request = Request::post("/chat").json(body);
        assert_eq!(status(addr, &request).await, refused, "{body}");
    }
    let encoded = chat("plain:ok").header("content-encoding", "session-Kim9");
    assert_eq!(
        status(addr, &encoded).await,
        415,
        "an unknown content encoding is refused"
    );
    for (raw, refused) in [
        ("GET /session-Kim9 HTTP/9.9\r\n\r\n", 505),
        ("GET /session-Kim9 HTTP/1.1\r\nsession-Kim9\r\n\r\n", 400),
        ("user-Zoe7 /session-Kim9 HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ] {
        let mut client = Client::connect(addr).await;
        client.send_raw(raw.as_bytes()).await;
        assert_eq!(client.answer().await.status, refused, "{raw}");
    }
    assert_eq!(
        status(addr, &chat("close")).await,
        502,
        "a failed backend is a 502"
    );
    let broken = Client::connect(addr)
        .await
        .call(&chat("break-chunked"))
        .await;
    assert!(!broken.whole, "an aborted backend response is cut");

    // A lost lock, a lock of other software, and one of a dead holder.
    let free = async || redis.get(KEY).await.is_none();
    wait_for_async(free, "the session is free").await;
    let mut lost = start_open(addr, &chat("hang-middle")).await;
    redis
        .command(&["SET", KEY, "python-session-Kim9", "PX", "60000"])
        .await;
    assert!(
        !lost.answer().await.whole,
        "a turn that loses its lock is cut"
    );
    let unprotected = start_open(addr, &watched()).await;
    process.logs("two turns of one session run at once").await;
    unprotected.close();
    let gone = r#"{"format":1,"claim":"00000000000000ff-1","instance":"gone","heartbeat":true}"#;
    redis.command(&["SET", KEY, gone, "PX", "60000"]).await;
    wait_for_async(served, "the lock of the dead holder is taken over").await;
    process.logs("lock taken over").await;

    // A store that fails.
    redis.command(&["DEL", KEY]).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(
        status(addr, &chat("plain:ok")).await,
        200,
        "the turn runs without its lock"
    );
    process.logs("OOM").await;
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let channels = redis.command(&["PUBSUB", "CHANNELS"]).await;
    let channels: Vec<String> = redis::from_redis_value(channels).expect("names");
    for channel in &channels {
        redis
            .command(&["PUBLISH", channel, "of session-Kim9"])
            .await;
    }
    process.logs("message can't be parsed").await;
    redis.kill();
    process.logs("store not usable").await;
    assert_eq!(
        status(addr, &chat("plain:ok")).await,
        200,
        "the turn runs without its lock"
    );

    let text = process.end();
    Recorded {
        text,
        spans: collector.spans(),
    }
}

// === impl Recorded ===

impl Recorded {
    /// All events of a JSON log.
    fn events(&self) -> Vec<Value> {
        let lines = self.text.lines();
        let events = lines.map(|line| match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => panic!("every line is an event in JSON: {line}: {error}"),
        });
        events.collect()
    }

    fn access(&self) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["target"] == "seriatim::access");
        events
    }

    /// Panics if the log or a span contains an id of the user or the session, in any case.
    fn assert_no_ids(&self) {
        let spans = format!("{:?}", self.spans);
        for (what, text) in [("the log", &self.text), ("a span", &spans)] {
            let lower = text.to_lowercase();
            for id in [USER, SESSION].map(str::to_lowercase) {
                let line = lower.lines().find(|line| line.contains(&id));
                assert_eq!(line, None, "{what} contains no id");
            }
        }
        let digest = Sha256::digest(KEY);
        let hex: String = digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let shown = format!("#{hex}");
        assert!(
            self.text.contains(&shown),
            "the digest of the session key joins its lines"
        );
        assert!(
            self.spans
                .iter()
                .any(|span| span.get("seriatim.session_key") == shown),
            "spans carry the same digest"
        );
        assert!(
            self.spans
                .iter()
                .any(|span| span.get("session.id").starts_with('#')),
            "and a digest of the session's id"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_ids_occur_in_no_json_line_and_no_span() {
    let recorded = drive("json", "hash").await;
    recorded.assert_no_ids();
    let access = recorded.access();
    let of = |name: &str| -> BTreeSet<_> {
        let named = access.iter().filter_map(|event| event[name].as_str());
        named.map(str::to_owned).collect()
    };
    for outcome in [
        "complete",
        "session_busy",
        "client_gone",
        "malformed_body",
        "ambiguous_key",
        "bad_session_id",
        "unsupported_encoding",
        "unsupported_http_version",
        "bad_request",
        "upstream_unreachable",
        "upstream_aborted",
        "lock_lost",
    ] {
        assert!(
            of("outcome").contains(outcome),
            "the log contains the outcome {outcome}"
        );
    }
    let paths = of("path");
    assert!(
        paths.contains("/chat") && paths.contains("/threads/{thread}/runs"),
        "a path is logged as its route's pattern: {paths:?}"
    );
    assert!(
        paths
            .iter()
            .all(|path| path.starts_with('#') || !path.contains("Kim")),
        "any other path is logged as a digest: {paths:?}"
    );
    assert!(
        of("method").contains("_OTHER"),
        "an unknown method is logged as _OTHER"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_ids_occur_in_no_text_line() {
    drive("text", "hash").await.assert_no_ids();
}

// === fields ===

/// The rows of the tables of a page in `docs`, from `heading` to the next one: first cell to second.
fn table(page: &str, heading: &str) -> BTreeMap<String, String> {
    let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the page is there");
    let from = text.find(heading).expect("the heading is there") + heading.len();
    let section = text[from..].split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|row| {
        let mut cells = row.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        Some((
            name.to_owned(),
            cells.next()?.trim_end_matches(" |").to_owned(),
        ))
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_is_documented_with_its_type() {
    let recorded = drive("json", "plain").await;
    assert!(
        recorded.text.contains(KEY),
        "with `ids = \"plain\"` the log contains ids"
    );
    let common = table("logs.md", "# Logs");
    let own = table(
        "logs.md",
        "## `seriatim::access`: one event for each request",
    );
    let mut seen = BTreeSet::new();
    for event in recorded.access() {
        for (name, value) in event.as_object().expect("an object") {
            let known = own.get(name).or_else(|| common.get(name));
            let is = match value {
                Value::String(_) => "text",
                Value::Number(number) if number.is_u64() => "number",
                Value::Bool(_) => "true or false",
                other => panic!("{name} has a simple type: {other}"),
            };
            assert_eq!(
                known.map(String::as_str),
                Some(is),
                "{name} has its documented type in {event}"
            );
            seen.insert(name.clone());
        }
        assert!(
            event["outcome"].is_string() && event["bytes"].is_u64(),
            "every event has an outcome and a byte count: {event}"
        );
    }
    let unseen: Vec<_> = own.keys().filter(|name| !seen.contains(*name)).collect();
    assert_eq!(
        unseen,
        Vec::<&String>::new(),
        "every documented field occurs in the log"
    );
    let outcomes = table("logs.md", "### Outcomes");
    let page = format!("{}/docs/logs.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(page).expect("the page is there");
    for event in recorded.access() {
        let outcome = event["outcome"].as_str().expect("a word");
        assert!(
            outcomes.contains_key(outcome) || page.contains(&format!("`{outcome}`")),
            "{outcome} is documented"
        );
    }
    for event in recorded.events() {
        let time = event["timestamp"]
            .as_str()
            .expect("every event has a timestamp");
        assert!(
            humantime::parse_rfc3339(time).is_ok(),
            "the timestamp follows RFC 3339: {time}"
        );
    }
    let attributes = table("tracing.md", "## The spans of a request");
    for span in &recorded.spans {
        for name in span.attributes.keys() {
            assert!(attributes.contains_key(name), "{name} is documented");
        }
    }
}
