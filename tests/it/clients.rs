//! The clients that people use, against a small real backend of their kind (`tests/clients`): each
//! sees the same with the proxy between as without, and can live with what a lock makes of a second
//! turn.
//!
//! A client's script prints what it saw as one line of JSON: `observe` what must be the same,
//! `contend` what there is only with a lock. The scripts wait for conditions; their limits are in
//! them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::app::App;
use crate::support::{python, within};

/// One of the backends, in its own process. Killed when it is dropped.
struct Backend {
    port: u16,
    _process: Child,
}

/// A script in `tests/clients` that is told an address.
#[derive(Clone, Copy)]
struct Client(&'static str);

/// What a kind of client sees, beginning with the comparison.
struct Scene {
    client: Client,
    backend: Backend,
    proxy: App,
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

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
name = "chat"
path = "/v1/chat/completions"
methods = ["POST"]
session_id = ["{header:x-session-id}"]

[[routes]]
name = "responses"
path = "/v1/responses"
methods = ["POST"]
session_id = ["{body:/conversation}"]
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
"#;

// === impl Scene ===

impl Scene {
    /// Has `client` observe the backend without and with a proxy of this configuration between,
    /// which talks to it by `scheme`, and asserts that it sees the same.
    async fn set(backend: &str, scheme: &str, client: Client, config: &'static str) -> Self {
        // Each run has a backend of its own: the scripts look at what it has counted.
        let (alone, behind) = tokio::join!(Backend::start(backend), Backend::start(backend));
        let upstream = format!("{scheme}://127.0.0.1:{}", behind.port);
        let proxy = App::start(&upstream, "memory:", "", config);
        let (direct, through) = (alone.url(), format!("http://{}", proxy.addr()));
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
            proxy,
        }
    }

    /// What the client sees of a session that is locked.
    async fn contend(&self) -> Value {
        let through = format!("http://{}", self.proxy.addr());
        self.client.run(&through, "contend").await
    }
}

fn members(saw: &Value) -> &serde_json::Map<String, Value> {
    saw.as_object().expect("a script prints an object")
}

// === impl Backend ===

impl Backend {
    async fn start(script: &str) -> Self {
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

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

// === impl Client ===

impl Client {
    /// Runs it to its end, and returns what it saw.
    async fn run(self, url: &str, what: &str) -> Value {
        let run = interpreter(self.0)
            .args([url, what])
            .kill_on_drop(true)
            .output();
        let output = run.await.expect("the interpreter starts");
        assert!(
            output.status.success(),
            "{} {url} {what} failed:\n{}",
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
