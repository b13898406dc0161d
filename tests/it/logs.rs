//! What the log says, read as a user would read it: its fields, and that no id is in it that is to be
//! hidden.
//!
//! A process is driven through every kind of end that there is, for one user and one session whose
//! names occur nowhere else; then all that it has written is looked at.

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

/// In all that names the user, and in nothing else.
const USER: &str = "Zoe7";
/// In all that names the session, and in nothing else.
const SESSION: &str = "Kim9";
const KEY: &str = "lock:session:user-Zoe7:session-Kim9";

const ROUTES: &str = r#"
[[routes]]
name = "line"
path = "/threads/{thread}/runs"
session_id = ["{path:thread}"]
user_id = ["{header:x-user}"]
blocking = true
on_disconnect = "continue"

[[routes]]
name = "watched"
path = "/watched"
session_id = ["{header:x-session}"]
user_id = ["{header:x-user}"]
enforce = false
"#;

/// A running process and all that it has written.
struct Telling {
    child: Child,
    addr: SocketAddr,
    admin: Reserved,
    told: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

/// What all of it was.
struct Heard {
    text: String,
    spans: Vec<Span>,
}

// === impl Telling ===

impl Telling {
    async fn start(config: &std::path::Path) -> Self {
        let admin = Reserved::new();
        let mut child = seriatim()
            .arg("--config")
            .arg(config)
            .env("SERIATIM__ADMIN__LISTEN", admin.addr().to_string())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stderr = child.stderr.take().expect("it is piped");
        let told = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&told);
        let reading = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                let piece = String::from_utf8_lossy(&piece[..count]);
                heard.lock().expect("nobody panicked").push_str(&piece);
            }
        });
        let serving = || {
            let told = told.lock().expect("nobody panicked");
            let line = told
                .split_inclusive('\n')
                .find(|line| line.ends_with('\n') && line.contains("serving"))?;
            let address = &line[line.find("127.0.0.1:")?..];
            let end = address[10..].find(|c: char| !c.is_ascii_digit())? + 10;
            address[..end].parse().ok()
        };
        wait_for(|| serving().is_some(), "it serves").await;
        let addr = serving().expect("it serves");
        Self {
            child,
            addr,
            admin,
            told,
            reading: Some(reading),
        }
    }

    fn text(&self) -> String {
        self.told.lock().expect("nobody panicked").clone()
    }

    async fn says(&self, what: &str) {
        wait_for(|| self.text().contains(what), &format!("it says: {what}")).await;
    }

    fn end(mut self) -> String {
        signal(self.child.id(), "TERM");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "it ends well: {status}");
        let reading = self.reading.take().expect("it was begun");
        reading.join().expect("it read to the end");
        self.text()
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        // An error is a child that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === the drive ===

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

/// A turn whose answer has begun, and goes on until its gate is opened.
async fn holds(addr: SocketAddr, request: &Request) -> Client {
    let mut client = Client::connect(addr).await;
    client.send(request).await;
    client.read_until(&event(0)).await;
    client
}

/// Has a process told whatever there is to tell.
async fn drive(format: &str, ids: &str) -> Heard {
    let (backend, mut redis) = (Backend::start("plain:ok").await, Redis::start().await);
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
    std::fs::write(&path, text).expect("it can be written");
    let process = Telling::start(&path).await;
    let addr = process.addr;

    // Without an answer of its own, and with one.
    let unmatched = Request::get("/users/user-Zoe7/sessions/session-Kim9?x=session-Kim9");
    assert_eq!(status(addr, &unmatched).await, 200, "it passes");
    let served = async || status(addr, &chat("plain:ok")).await == 200;
    wait_for_async(served, "Redis is connected, and a turn is served").await;
    let mut h2 = H2::connect(addr).await;
    let request = h2_client::turn("session-Kim9", "plain:ok");
    assert_eq!(h2.call(request).await.status(), 200, "over HTTP/2, too");
    drop(h2);

    // A session that is busy, and one that is waited for.
    let mut held = holds(addr, &chat("gate")).await;
    assert_eq!(status(addr, &chat("plain:ok")).await, 429, "it is busy");
    backend.open_gate("session-Kim9");
    assert!(held.answer().await.whole, "it ends well");
    let mut held = holds(addr, &run("gate")).await;
    let mut waiting = Client::connect(addr).await;
    waiting.send(&run("plain:ok")).await;
    let line = format!("{{{KEY}}}:queue");
    let stands = async || {
        let count = redis.command(&["ZCARD", &line]).await;
        redis::from_redis_value::<usize>(count).expect("a count") == 1
    };
    wait_for_async(stands, "it stands in line").await;
    backend.open_gate("session-Kim9");
    assert!(held.answer().await.whole, "it ends well");
    assert_eq!(waiting.answer().await.status, 200, "it is served next");

    // Clients that leave: one turn is cancelled, and one goes on.
    let cancelled = holds(addr, &chat("gate")).await;
    cancelled.close();
    process.says("client_gone").await;
    let continued = holds(addr, &run("gate")).await;
    continued.close();
    backend.open_all_gates();
    process.says("continued").await;

    // Operators, who ask for both, and may not.
    let admin = process.admin.addr();
    let locked = chat("hang-middle");
    let mut freed = holds(addr, &locked).await;
    let one = "/locks/user-Zoe7/session-Kim9";
    assert_eq!(
        status(admin, &Request::get(one)).await,
        200,
        "it is looked at"
    );
    assert_eq!(
        status(admin, &Request::new("DELETE", one)).await,
        200,
        "and freed"
    );
    assert!(!freed.answer().await.whole, "its turn is stopped");
    process.says("seriatim::audit").await;
    let elsewhere = Request::get(one).header("sec-fetch-site", "cross-site");
    assert_eq!(status(admin, &elsewhere).await, 403, "another site may not");
    process.says("operator refused").await;

    // What can't be read, or read in two ways.
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
        "in no encoding that is known"
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
    assert_eq!(status(addr, &chat("close")).await, 502, "the backend fails");
    let broken = Client::connect(addr)
        .await
        .call(&chat("break-chunked"))
        .await;
    assert!(!broken.whole, "and breaks off");

    // A lock that is lost, one that isn't Seriatim's, and one whose holder is gone.
    let free = async || redis.get(KEY).await.is_none();
    wait_for_async(free, "the session is free").await;
    let mut lost = holds(addr, &chat("hang-middle")).await;
    redis
        .command(&["SET", KEY, "python-session-Kim9", "PX", "60000"])
        .await;
    assert!(!lost.answer().await.whole, "its lock was taken away");
    let beside = holds(addr, &watched()).await;
    process.says("two turns of one session run at once").await;
    beside.close();
    let gone = r#"{"token":"00000000000000ff-1","instance":"gone","heartbeat":true}"#;
    redis.command(&["SET", KEY, gone, "PX", "60000"]).await;
    wait_for_async(served, "the lock is taken over").await;
    process.says("its lock was taken over").await;

    // A store that is no good.
    redis.command(&["DEL", KEY]).await;
    redis.command(&["SADD", KEY, "session-Kim9"]).await;
    assert_eq!(
        status(addr, &chat("plain:ok")).await,
        200,
        "it runs without"
    );
    process.says("WRONGTYPE").await;
    let channels = redis.command(&["PUBSUB", "CHANNELS"]).await;
    let channels: Vec<String> = redis::from_redis_value(channels).expect("names");
    for channel in &channels {
        redis
            .command(&["PUBLISH", channel, "of session-Kim9"])
            .await;
    }
    process.says("a message that can't be read").await;
    redis.kill();
    process.says("store not usable").await;
    assert_eq!(
        status(addr, &chat("plain:ok")).await,
        200,
        "it runs without"
    );

    let text = process.end();
    Heard {
        text,
        spans: collector.spans(),
    }
}

// === impl Heard ===

impl Heard {
    /// All events, of a log in JSON.
    fn events(&self) -> Vec<Value> {
        let lines = self.text.lines();
        let events = lines.map(|line| match serde_json::from_str(line) {
            Ok(event) => event,
            Err(error) => panic!("a line is an event in JSON: {line}: {error}"),
        });
        events.collect()
    }

    fn access(&self) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["target"] == "seriatim::access");
        events
    }

    /// Fails if the user or the session is named, in whatever letters.
    fn assert_names_nobody(&self) {
        let spans = format!("{:?}", self.spans);
        for (what, text) in [("the log", &self.text), ("a span", &spans)] {
            let lower = text.to_lowercase();
            for id in [USER, SESSION].map(str::to_lowercase) {
                let line = lower.lines().find(|line| line.contains(&id));
                assert_eq!(line, None, "no id is in {what}");
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
            "a session's lines can be joined"
        );
        assert!(
            self.spans
                .iter()
                .any(|span| span.get("seriatim.session_key") == shown),
            "with its spans, too"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_ids_are_in_no_line_of_json_and_in_no_span() {
    let heard = drive("json", "hash").await;
    heard.assert_names_nobody();
    let access = heard.access();
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
            "it came to this, too: {outcome}"
        );
    }
    let paths = of("path");
    assert!(
        paths.contains("/chat") && paths.contains("/threads/{thread}/runs"),
        "a path is its route's: {paths:?}"
    );
    assert!(
        paths
            .iter()
            .all(|path| path.starts_with('#') || !path.contains("Kim")),
        "or a digest: {paths:?}"
    );
    assert!(
        of("method").contains("_OTHER"),
        "nobody's own words are methods"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_ids_are_in_no_line_for_people() {
    drive("text", "hash").await.assert_names_nobody();
}

// === fields ===

/// The tables of a page below `docs`, from `heading` to the next: first cell to second cell.
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
async fn every_field_is_documented_and_is_what_it_is_said_to_be() {
    let heard = drive("json", "plain").await;
    assert!(
        heard.text.contains(KEY),
        "where ids aren't hidden, they are shown"
    );
    let common = table("logs.md", "# Logs");
    let own = table(
        "logs.md",
        "## `seriatim::access`: one event for each request",
    );
    let mut seen = BTreeSet::new();
    for event in heard.access() {
        for (name, value) in event.as_object().expect("an object") {
            let known = own.get(name).or_else(|| common.get(name));
            let is = match value {
                Value::String(_) => "text",
                Value::Number(number) if number.is_u64() => "number",
                Value::Bool(_) => "true or false",
                other => panic!("{name} is of a simple kind: {other}"),
            };
            assert_eq!(known.map(String::as_str), Some(is), "{name} in {event}");
            seen.insert(name.clone());
        }
        assert!(
            event["outcome"].is_string() && event["bytes"].is_u64(),
            "always: {event}"
        );
    }
    let unseen: Vec<_> = own.keys().filter(|name| !seen.contains(*name)).collect();
    assert_eq!(
        unseen,
        Vec::<&String>::new(),
        "no field is documented that there isn't"
    );
    let outcomes = table("logs.md", "### Outcomes");
    let page = format!("{}/docs/logs.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(page).expect("the page is there");
    for event in heard.access() {
        let outcome = event["outcome"].as_str().expect("a word");
        assert!(
            outcomes.contains_key(outcome) || page.contains(&format!("`{outcome}`")),
            "{outcome} is documented"
        );
    }
    for event in heard.events() {
        let time = event["timestamp"].as_str().expect("each has a time");
        assert!(
            humantime::parse_rfc3339(time).is_ok(),
            "in RFC 3339: {time}"
        );
    }
    let attributes = table("tracing.md", "## The spans of a request");
    for span in &heard.spans {
        for name in span.attributes.keys() {
            assert!(attributes.contains_key(name), "{name} is documented");
        }
    }
}
