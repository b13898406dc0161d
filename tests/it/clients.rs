//! The clients that people use, against a small real backend of their kind (`tests/clients`): each
//! sees the same with the proxy between as without, and can live with what a lock makes of a second
//! turn.
//!
//! A client's script prints what it saw as one line of JSON: `observe` what must be the same,
//! `contend` what there is only with a lock. The scripts wait for conditions; their limits are in
//! them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::app::App;
use crate::support::{python, within};

/// One of the backends, in its own process. Killed when it is dropped.
pub(crate) struct Backend {
    port: u16,
    _process: Child,
}

/// A script in `tests/clients` that is told an address.
#[derive(Clone, Copy)]
pub(crate) struct Client(pub(crate) &'static str);

/// A client that has seen its backend with the proxy between and without, and seen the same.
struct Scene {
    client: Client,
    backend: Backend,
    /// Where the proxy is reached.
    url: String,
    _proxy: App,
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// How long a script may take: it does much of which each step has the limit that one wait has.
const LIMIT: Duration = Duration::from_secs(90);

/// What a refused client gets by default.
const BUSY: &str = "AI 正在思考中，请稍后再试";

fn whole_turn() -> Value {
    json!({"retry": "0", "end": "whole"})
}

#[tokio::test]
async fn openai_for_python_sees_no_proxy_and_its_retries_reach_a_busy_session() {
    let client = Client("openai_client.py");
    let scene = Scene::set("openai_backend.py", "http", client, OPENAI).await;
    let saw = scene.contend().await;
    assert_eq!(saw["busy"][0], 429, "a second turn at once is refused");
    assert_eq!(
        saw["busy"][3], "session_busy",
        "and a RateLimitError says why"
    );
    assert_eq!(saw["busy"][4], "1", "and when to come again");
    assert_openai(&saw);
    assert_eq!(
        saw["statuses"],
        json!([429, 200]),
        "without a retry too many"
    );
}

#[tokio::test]
async fn openai_for_node_sees_no_proxy_and_its_retries_reach_a_busy_session() {
    let client = Client("openai_client.js");
    let scene = Scene::set("openai_backend.py", "http", client, OPENAI).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["busy"][0], "RateLimitError",
        "a second turn is refused as the package knows it"
    );
    assert_eq!(saw["busy"][1], 429, "a second turn at once is refused");
    assert_eq!(saw["busy"][3], "session_busy", "and says why");
    assert_eq!(saw["busy"][4], "1", "and when to come again");
    assert_openai(&saw);
    assert_eq!(
        saw["statuses"],
        json!([429, 429, 200]),
        "without a retry too many"
    );
}

const OPENAI: &str = r#"
[[routes]]
preset = "openai-chat"

[[routes]]
preset = "openai-responses"
"#;

fn assert_openai(saw: &Value) {
    let text = "Hello, 世界 👋";
    assert_eq!(saw["first"], text, "the first turn came to its end");
    assert_eq!(saw["second"], text, "and then the one that was refused");
    let retried = json!({"retry": "1", "end": "whole"});
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole_turn(), retried], "most": 1}),
        "the backend saw one after another, the second as a retry"
    );
    assert_eq!(
        saw["after"], text,
        "a turn that was left makes room for the next one"
    );
    assert_eq!(saw["gone"]["most"], 1, "and is over by then");
}

#[tokio::test]
async fn a_browser_sees_no_proxy_and_a_tab_that_is_closed_frees_its_session() {
    let client = Client("browser_client.js");
    let scene = Scene::set("page_backend.py", "http", client, PAGE).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["protocol"], "http/1.1",
        "without TLS browsers speak that"
    );
    assert_page(&saw);
}

#[tokio::test]
async fn a_browser_sees_no_proxy_that_speaks_http_2_over_tls() {
    let client = Client("browser_client.js");
    let config = format!("{}{PAGE}", tls());
    let scene = Scene::set("page_backend.py", "http", client, &config).await;
    let saw = scene.contend().await;
    assert_eq!(saw["protocol"], "h2", "with TLS they are offered HTTP/2");
    assert_page(&saw);
}

/// What has the proxy listen with a certificate.
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
    assert_eq!(
        second["refused"],
        json!([429, "session_busy", "1"]),
        "a second turn is refused"
    );
    assert_eq!(
        second["busy"]["error"], BUSY,
        "in words that a page can show"
    );
    assert_eq!(second["pieces"], pieces, "which does the first no harm");
    assert_eq!(
        second["third"],
        json!([200, pieces]),
        "who has read the end finds the session free"
    );
    assert_eq!(
        second["seen"],
        json!({"turns": [whole, whole], "most": 1}),
        "the backend saw one after another"
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

const PAGE: &str = r#"
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
async fn websockets_see_no_proxy_and_a_session_has_one_connection_at_a_time() {
    let client = Client("websockets_client.py");
    let scene = Scene::set("websockets_backend.py", "http", client, SOCKETS).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["second"],
        json!([429, "session_busy", "1"]),
        "a second connection is refused in its handshake"
    );
    assert_eq!(saw["busy"]["error"], BUSY, "in words");
    assert_eq!(saw["other"], "another session", "another session is free");
    assert_eq!(
        saw["first"], "onetwo",
        "the first goes on, as long as it is open"
    );
    let after = ["after", "then", "gone"].map(|what| saw[what].as_str());
    let said = [
        "after a close",
        "after the backend's close",
        "after it was gone",
    ];
    assert_eq!(
        after,
        said.map(Some),
        "a session is free when its connection is over, however it ended"
    );
}

const SOCKETS: &str = r#"
[[routes]]
name = "socket"
path = "/ws/{session}"
session_id = ["{path:session}"]
"#;

#[tokio::test]
async fn mcp_sees_no_proxy_and_a_second_call_of_a_tool_is_told_that_it_is_too_early() {
    let client = Client("mcp_client.py");
    let scene = Scene::set("mcp_backend.py", "http", client, MCP).await;
    let saw = scene.contend().await;
    let busy = &saw["busy"];
    assert_eq!(
        busy[1], BUSY,
        "what the user is told is the error of the call: {busy}"
    );
    let greeted = json!(["Hi, Ada!"]);
    assert_eq!(saw["other session"], greeted, "another session is free");
    let done = json!(["done"]);
    assert_eq!(saw["first"], done, "the first call comes to its end");
    assert_eq!(saw["after"], done, "and then another may come");
    let whole = json!({"end": "whole"});
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole], "most": 1}),
        "the tools ran one after another"
    );
    let left = json!({"turns": [{"end": "left"}], "most": 1});
    assert_eq!(
        (&saw["cancelled"], &saw["next"]),
        (&left, &done),
        "a call that its client cancels makes room for the next one"
    );

    let upstream = scene.backend.url();
    let blocking = "[lock]\nblocking = true\n[[routes]]\npreset = \"mcp\"\n";
    let waiting = App::start(&upstream, "memory:", "", blocking);
    let saw = client.run(&url(&waiting, blocking), "wait").await;
    assert_eq!(
        saw["results"],
        json!([done, done, done]),
        "with blocking, calls wait for each other"
    );
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole, whole], "most": 1}),
        "and run one after another"
    );
}

const MCP: &str = r#"
[[routes]]
preset = "mcp"
"#;

#[tokio::test]
async fn a2a_sees_no_proxy_and_cancels_a_task_at_the_address_that_it_streams_from() {
    let client = Client("a2a_client.py");
    let scene = Scene::set("a2a_backend.py", "http", client, A2A).await;
    let saw = scene.contend().await;
    for interface in ["JSONRPC 1.0", "HTTP+JSON 1.0", "JSONRPC 0.3"] {
        // A client of the HTTP interface knows A2A's own errors only, and says what the status was.
        let says = if interface.starts_with("HTTP") {
            "429"
        } else {
            BUSY
        };
        let refused = &saw[&format!("refused {interface}")];
        assert!(
            refused[1].as_str().is_some_and(|text| text.contains(says)),
            "a second message is refused in words that the client shows: {interface} {refused}"
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
            "a task that is cancelled ends its stream and frees its session: {interface}"
        );
    }
}

const A2A: &str = r#"
[[routes]]
preset = "a2a"
"#;

#[tokio::test]
async fn grpcio_sees_no_proxy_and_a_busy_session_is_unavailable() {
    let client = Client("grpc_client.py");
    let scene = Scene::set("grpc_backend.py", "h2c", client, GRPC).await;
    let saw = scene.contend().await;
    assert_eq!(
        saw["busy"][0], "UNAVAILABLE",
        "a second call is refused with a status that callers try again after: {}",
        saw["busy"]
    );
    assert_eq!(saw["other"], "another", "another session is free");
    assert_eq!(
        saw["first"],
        json!(["0", "1"]),
        "the first comes to its end"
    );
    assert_eq!(saw["after"], "after", "and then another may come");
    let (whole, left) = (json!({"end": "whole"}), json!({"end": "left"}));
    assert_eq!(
        saw["seen"],
        json!({"turns": [whole, whole], "most": 1, "deadline": [false]}),
        "the backend saw one after another"
    );
    assert_eq!(
        saw["left"],
        json!({"turns": [left, whole], "most": 1, "deadline": [false]}),
        "a call that is cancelled frees its session"
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
    /// Has `client` observe the backend without and with a proxy of this configuration between,
    /// which talks to it by `scheme`, and asserts that it sees the same.
    async fn set(backend: &str, scheme: &str, client: Client, config: &str) -> Self {
        // Each run has a backend of its own: the scripts look at what it has counted.
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
        assert_eq!(with.len(), without.len(), "and nothing else is there");
        Self {
            client,
            backend: behind,
            url: through,
            _proxy: proxy,
        }
    }

    /// What the client sees of a session that is locked.
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
        let mut told = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let port = within("a backend to tell its port", told.next_line()).await;
        let port = port.expect("it can be read").expect("the backend starts");
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
    /// Runs it to its end, and returns what it saw.
    async fn run(self, url: &str, what: &str) -> Value {
        self.call(url, &[what]).await
    }

    /// The same, told more than that.
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
        let told = serde_json::from_slice(&output.stdout);
        told.expect("a script prints one line of JSON")
    }
}

/// What runs the script, as its name ends.
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
    // Only this machine is talked to, whatever stands between it and others.
    command.env("NO_PROXY", "127.0.0.1");
    command
}

/// The packages that `.ci/test` has installed.
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
