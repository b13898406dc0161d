//! Clients in common use, each against a small real backend of its kind (`tests/clients`): each sees
//! the same with and without the proxy, and can handle the refusal of a second turn.
//!
//! A client's script prints one line of JSON. `observe` prints what must not depend on the proxy,
//! `contend` what happens only with a lock. The scripts wait for conditions and have their own time
//! limits.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::app::App;
use crate::support::{python, within};

/// A backend in its own process. Killed when dropped.
pub(crate) struct Backend {
    port: u16,
    _process: Child,
}

/// A script in `tests/clients`; its first argument is an address.
#[derive(Clone, Copy)]
pub(crate) struct Client(pub(crate) &'static str);

/// A client that has seen the same with and without the proxy.
struct Scene {
    client: Client,
    backend: Backend,
    /// The URL of the proxy.
    url: String,
    _proxy: App,
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// The time limit of a script. It covers many steps, each with the limit of a single wait.
const LIMIT: Duration = Duration::from_secs(90);

/// The default error text of a refused turn.
const BUSY: &str = "AI 正在思考中，请稍后再试";

fn whole_turn() -> Value {
    json!({"retry": "0", "end": "whole"})
}

#[tokio::test]
async fn openai_for_python_works_unchanged_and_retries_a_busy_session() {
    let client = Client("openai_client.py");
    let scene = Scene::set("openai_backend.py", "http", client, OPENAI).await;
    let saw = scene.contend().await;
    assert_eq!(saw["busy"][0], 429, "a second turn is refused at once");
    assert_eq!(
        saw["busy"][3], "session_busy",
        "the RateLimitError names the reason"
    );
    assert_retry_after(&saw["busy"][4]);
    assert_openai(&saw);
}

#[tokio::test]
async fn openai_for_node_works_unchanged_and_retries_a_busy_session() {
    let client = Client("openai_client.js");
    let scene = Scene::set("openai_backend.py", "http", client, OPENAI).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["busy"][0], "RateLimitError",
        "the package raises its own error class"
    );
    assert_eq!(saw["busy"][1], 429, "a second turn is refused at once");
    assert_eq!(saw["busy"][3], "session_busy", "the error names the reason");
    assert_retry_after(&saw["busy"][4]);
    assert_openai(&saw);
}

/// Asserts that a client could read status, reason and `retry-after` of the refusal of a busy session.
fn assert_refused(saw: &Value, what: &str) {
    assert_eq!(
        (&saw[0], &saw[1]),
        (&json!(429), &json!("session_busy")),
        "{what}"
    );
    assert_retry_after(&saw[2]);
}

fn assert_retry_after(saw: &Value) {
    let seconds = saw.as_str().and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(
        seconds.is_some_and(|seconds| (1..=59).contains(&seconds)),
        "the refusal says when to retry: {saw}"
    );
}

const OPENAI: &str = r#"
[[routes]]
preset = "openai-chat"

[[routes]]
preset = "openai-responses"
"#;

fn assert_openai(saw: &Value) {
    let (asked, paused) = (&saw["asked"], &saw["paused"]);
    let refusals = asked.as_array().map_or(0, Vec::len);
    assert!(
        refusals > 0 && asked == paused,
        "the package waits as long as `retry-after-ms` says: {asked} {paused}"
    );
    let is_whole = |time: &Value| time.as_u64().is_some_and(|time| time % 1000 == 0);
    assert!(
        asked
            .as_array()
            .is_some_and(|asked| !asked.iter().all(is_whole)),
        "which is more exact than whole seconds: {asked}"
    );
    let text = "Hello, 世界 👋";
    assert_eq!(saw["first"], text, "the first turn comes to its end");
    assert_eq!(saw["second"], text, "the refused turn runs after it");
    let statuses = saw["statuses"].as_array().expect("a list");
    let (last, refused) = statuses.split_last().expect("at least one");
    assert_eq!(*last, 200, "the second turn runs in the end: {statuses:?}");
    assert!(
        !refused.is_empty() && refused.iter().all(|status| *status == 429),
        "it is refused until the first turn is over: {statuses:?}"
    );
    let retried = json!({"retry": refused.len().to_string(), "end": "whole"});
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole_turn(), retried], "most": 1}),
        "the backend sees one turn after another, the second as a retry"
    );
    assert_eq!(
        saw["after"], text,
        "an abandoned turn lets the next one run"
    );
    assert_eq!(
        saw["gone"]["most"], 1,
        "the abandoned turn has ended by then"
    );
}

#[tokio::test]
async fn a_browser_works_unchanged_and_a_closed_tab_frees_its_session() {
    let client = Client("browser_client.js");
    let scene = Scene::set("page_backend.py", "http", client, PAGE).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["protocol"], "http/1.1",
        "without TLS a browser speaks HTTP/1.1"
    );
    assert_page(&saw);
}

#[tokio::test]
async fn a_browser_works_unchanged_over_http_2_with_tls() {
    let client = Client("browser_client.js");
    let config = format!("{}{PAGE}", tls());
    let scene = Scene::set("page_backend.py", "http", client, &config).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["protocol"], "h2",
        "with TLS a browser negotiates HTTP/2"
    );
    assert_page(&saw);
}

/// The configuration of a proxy that listens with TLS.
fn tls() -> String {
    let path = |name| format!("{}/tests/config/tls/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let (cert, key) = (path("cert"), path("key"));
    format!("\n[tls]\ncert_file = {cert:?}\nkey_file = {key:?}\n")
}

fn assert_page(saw: &Value) {
    let pieces = json!([
        "data: {\"n\": 0}\n\n",
        "data: {\"n\": 1}\n\n",
        "data: {\"n\": 2}\n\n"
    ]);
    let (whole, left) = (json!({"end": "whole"}), json!({"end": "left"}));
    let second = &saw["second"];
    assert_refused(&second["refused"], "a second turn is refused");
    assert_eq!(
        second["busy"]["error"], BUSY,
        "the error has a text that a page can show"
    );
    assert_eq!(second["pieces"], pieces, "the first turn is not disturbed");
    assert_eq!(
        second["third"],
        json!([200, pieces]),
        "the session is free for a client that has read the end"
    );
    assert_eq!(
        second["seen"],
        json!({"turns": [whole, whole], "most": 1}),
        "the backend sees one turn after another"
    );
    for (how, saw) in [("aborted", &saw["aborted"]), ("closed", &saw["closed"])] {
        let seen = json!({"turns": [left, whole], "most": 1});
        assert_eq!(
            *saw,
            json!([pieces, seen]),
            "a turn that was {how} frees its session"
        );
    }
}

/// The routes of the pages that `page_backend.py` serves, and of its sockets.
pub(crate) const PAGE: &str = r#"
[[routes]]
name = "chat"
path = "/chat"
methods = ["POST"]
session_id = ["{body:/session_id}"]

[[routes]]
name = "events"
path = "/events"
session_id = ["{query:session}"]

[[routes]]
name = "socket"
path = "/ws/{session}"
session_id = ["{path:session}"]
"#;

#[tokio::test]
async fn websockets_work_unchanged_and_a_session_has_one_connection() {
    let client = Client("websockets_client.py");
    let scene = Scene::set("websockets_backend.py", "http", client, SOCKETS).await;
    let saw = scene.contend().await;
    assert_refused(
        &saw["second"],
        "a second connection is refused in its handshake",
    );
    assert_eq!(
        saw["busy"]["error"], BUSY,
        "the error has a text for the user"
    );
    assert_eq!(saw["other"], "another session", "another session is free");
    assert_eq!(
        saw["first"], "onetwo",
        "the first connection goes on while it is open"
    );
    let after = ["after", "then", "gone"].map(|what| saw[what].as_str());
    let texts = [
        "after a close",
        "after the backend's close",
        "after it was gone",
    ];
    assert_eq!(
        after,
        texts.map(Some),
        "a session is free after its connection ends, however it ends"
    );
}

const SOCKETS: &str = r#"
[[routes]]
name = "socket"
path = "/ws/{session}"
session_id = ["{path:session}"]
"#;

#[tokio::test]
async fn mcp_works_unchanged_and_a_second_tool_call_is_refused() {
    let client = Client("mcp_client.py");
    let scene = Scene::set("mcp_backend.py", "http", client, MCP).await;
    let saw = scene.contend().await;
    let busy = &saw["busy"];
    assert_eq!(
        busy[1], BUSY,
        "the call's error has the text for the user: {busy}"
    );
    let greeted = json!(["Hi, Ada!"]);
    assert_eq!(saw["other session"], greeted, "another session is free");
    let done = json!(["done"]);
    assert_eq!(saw["first"], done, "the first call comes to its end");
    assert_eq!(saw["after"], done, "the next call runs after it");
    let whole = json!({"end": "whole"});
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole], "most": 1}),
        "the tools run one after another"
    );
    let left = json!({"turns": [{"end": "left"}], "most": 1});
    assert_eq!(
        (&saw["cancelled"], &saw["next"]),
        (&left, &done),
        "a cancelled call lets the next one run"
    );

    let upstream = scene.backend.url();
    let blocking = "[[routes]]\npreset = \"mcp\"\n";
    let waiting = App::start(&upstream, "memory:", "", blocking);
    let saw = client.run(&url(&waiting, blocking), "wait").await;
    assert_eq!(
        saw["results"],
        json!([done, done, done]),
        "the preset's calls wait for each other"
    );
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole, whole], "most": 1}),
        "the calls run one after another"
    );
}

const MCP: &str = r#"
[[routes]]
preset = "mcp"
blocking = false
"#;

#[tokio::test]
async fn a2a_works_unchanged_and_cancels_a_task_at_its_stream_address() {
    let client = Client("a2a_client.py");
    let scene = Scene::set("a2a_backend.py", "http", client, A2A).await;
    let saw = scene.contend().await;
    for interface in ["JSONRPC 1.0", "HTTP+JSON 1.0", "JSONRPC 0.3"] {
        // A client of the HTTP interface knows only A2A's own errors, and shows the status of others.
        let says = if interface.starts_with("HTTP") {
            "429"
        } else {
            BUSY
        };
        let refused = &saw[&format!("refused {interface}")];
        assert!(
            refused[1].as_str().is_some_and(|text| text.contains(says)),
            "a second message is refused with a text that the client shows: {interface} {refused}"
        );
        let session = format!("busy {interface}");
        let begun = [
            json!(["task", session, "TASK_STATE_SUBMITTED"]),
            json!("TASK_STATE_WORKING"),
            json!("one"),
        ];
        let cancelled = [&begun[..], &[json!("TASK_STATE_CANCELED")]].concat();
        let whole = [&begun[..], &[json!("两"), json!("TASK_STATE_COMPLETED")]].concat();
        let seen = json!({"turns": [{"end": "left"}, {"end": "whole"}], "most": 1});
        assert_eq!(
            saw[&session],
            json!([cancelled, "TASK_STATE_CANCELED", whole, seen]),
            "a cancelled task ends its stream and frees its session: {interface}"
        );
    }
}

const A2A: &str = r#"
[[routes]]
preset = "a2a"
"#;

#[tokio::test]
async fn grpcio_works_unchanged_and_a_busy_session_is_unavailable() {
    let client = Client("grpc_client.py");
    let scene = Scene::set("grpc_backend.py", "h2c", client, GRPC).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["busy"][0], "UNAVAILABLE",
        "a second call gets a status that callers retry: {}",
        saw["busy"]
    );
    assert_eq!(saw["other"], "another", "another session is free");
    assert_eq!(
        saw["first"],
        json!(["0", "1"]),
        "the first call comes to its end"
    );
    assert_eq!(saw["after"], "after", "the next call runs after it");
    let (whole, left) = (json!({"end": "whole"}), json!({"end": "left"}));
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole], "most": 1, "deadline": [false]}),
        "the backend sees one call after another"
    );
    assert_eq!(
        saw["left"],
        json!({"turns": [left, whole], "most": 1, "deadline": [false]}),
        "a cancelled call frees its session"
    );
}

const GRPC: &str = r#"
[[routes]]
name = "agent"
path = "/tests.Agent/{method}"
session_id = ["{header:x-session-id}"]
"#;

// === impl Scene ===

impl Scene {
    /// Starts the backend twice, once behind a proxy that connects to it with `scheme`, and asserts
    /// that `client` observes the same both ways.
    async fn set(backend: &str, scheme: &str, client: Client, config: &str) -> Self {
        // Each run has its own backend, because the scripts read its counters.
        let (alone, behind) = tokio::join!(Backend::start(backend), Backend::start(backend));
        let upstream = format!("{scheme}://127.0.0.1:{}", behind.port);
        let proxy = App::start(&upstream, "memory:", "", config);
        let (direct, through) = (alone.url(), url(&proxy, config));
        let (without, with) = tokio::join!(
            client.run(&direct, "observe"),
            client.run(&through, "observe")
        );
        let (without, with) = (members(&without), members(&with));
        for (what, saw) in without {
            assert_eq!(
                with.get(what),
                Some(saw),
                "{}: {what} is the same through the proxy",
                client.0
            );
        }
        assert_eq!(with.len(), without.len(), "the proxy adds no observation");
        Self {
            client,
            backend: behind,
            url: through,
            _proxy: proxy,
        }
    }

    /// What the client sees of a locked session.
    async fn contend(&self) -> Value {
        self.client.run(&self.url, "contend").await
    }
}

fn url(proxy: &App, config: &str) -> String {
    let tls = if config.contains("[tls]") { "s" } else { "" };
    format!("http{tls}://{}", proxy.addr())
}

fn members(saw: &Value) -> &serde_json::Map<String, Value> {
    saw.as_object().expect("a script prints an object")
}

// === impl Backend ===

impl Backend {
    pub(crate) async fn start(script: &str) -> Self {
        let mut process = interpreter(script)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the interpreter starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let port = within("a backend to print its port", lines.next_line()).await;
        let port = port.expect("it is readable").expect("the backend starts");
        Self {
            port: port.parse().expect("a port"),
            _process: process,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

// === impl Client ===

impl Client {
    /// Runs the script with one argument after the URL, and returns what it saw.
    async fn run(self, url: &str, what: &str) -> Value {
        self.call(url, &[what]).await
    }

    /// Runs the script with these arguments after the URL, and returns what it saw.
    pub(crate) async fn call(self, url: &str, what: &[&str]) -> Value {
        let run = interpreter(self.0)
            .arg(url)
            .args(what)
            .kill_on_drop(true)
            .output();
        let output = timeout(LIMIT, run).await;
        let output =
            output.unwrap_or_else(|_| panic!("{} {url} {what:?}: no end in {LIMIT:?}", self.0));
        let output = output.expect("the interpreter starts");
        assert!(
            output.status.success(),
            "{} {url} {what:?} failed:\n{}",
            self.0,
            String::from_utf8_lossy(&output.stderr)
        );
        let value = serde_json::from_slice(&output.stdout);
        value.expect("a script prints one line of JSON")
    }
}

/// The interpreter for the script's file name extension.
fn interpreter(script: &str) -> Command {
    let mut command = if script.ends_with(".py") {
        Command::from(python::python())
    } else {
        let mut node = Command::new("node");
        node.env("NODE_PATH", node_modules());
        node.env("SERIATIM_TEST_CHROMIUM", chromium());
        node
    };
    command.current_dir(SCRIPTS).arg(script);
    // The tests talk to this machine only, whatever proxy the environment sets.
    command.env("NO_PROXY", "127.0.0.1");
    command
}

/// The Node packages that `.ci/test` installs.
fn node_modules() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-node/node_modules");
    prepared("SERIATIM_TEST_NODE_MODULES", own)
}

fn chromium() -> PathBuf {
    prepared("SERIATIM_TEST_CHROMIUM", "/usr/bin/chromium")
}

fn prepared(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| Path::new(default).into(), PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: run .ci/test, which installs it",
        path.display()
    );
    path
}
