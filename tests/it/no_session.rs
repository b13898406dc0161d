//! Requests of a locking route that name no session, and pass without a lock: each has an outcome of its own,
//! and a route whose requests name no session at all is warned of, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::backend::Backend;
use crate::support::bench::chat;
use crate::support::client::{Client, Request};
use crate::support::process::{Process, run};
use crate::support::wait_for;

/// Routes that let a request without a session pass, for different reasons, and routes that don't.
const ROUTES: &str = r#"
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{body:/session_id}", "{header:x-session}"]
user_id = ["unknown"]
on_missing = "pass"
[[routes]]
name = "users"
path = "/users"
session_id = ["{header:x-session}"]
user_id = ["{header:x-user}"]
[[routes]]
name = "any-body"
path = "/any-body"
session_id = ["{body:/session_id}"]
on_malformed = "pass"
[[routes]]
name = "calls"
path = "/calls"
when = { "{body:/method}" = ["send"] }
session_id = ["{header:x-session}"]
on_malformed = "pass_non_json"
[[routes]]
name = "strict"
path = "/strict"
session_id = ["{header:x-session}"]
on_missing = "reject"
[[routes]]
name = "stop"
path = "/stop"
lock = false
"#;

/// A part of the warning's text.
const WARNING: &str = "no request of this route has named a session";

/// How many requests without a session a route lets pass before the warning.
const WARNS_AFTER: usize = 20;

struct Unnamed {
    backend: Backend,
    folder: TempDir,
}

// === impl Unnamed ===

impl Unnamed {
    async fn new() -> Self {
        Self {
            backend: Backend::start("plain:ok").await,
            folder: TempDir::new().expect("a folder for the configuration"),
        }
    }

    fn write(&self, routes: &str) -> PathBuf {
        let (path, upstream) = (self.folder.path().join("config.toml"), self.backend.url());
        let text = format!("listen = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n{routes}");
        std::fs::write(&path, text).expect("the file is written");
        path
    }
}

/// A process, and two connections to it, which different workers serve if there are two.
struct Served {
    process: Process,
    clients: [Client; 2],
}

// === impl Served ===

impl Served {
    async fn start(config: &Path) -> Self {
        let process = Process::start(config);
        let clients = [
            Client::connect(process.addr()).await,
            Client::connect(process.addr()).await,
        ];
        Self { process, clients }
    }

    /// Sends so many requests, half of them over each connection, and waits until they are logged. Gives
    /// the number of warnings so far.
    async fn send(&mut self, request: &Request, times: usize) -> usize {
        let process = &self.process;
        let before = process.times_logged("seriatim::access");
        for n in 0..times {
            let answer = self.clients[n % 2].call(request).await;
            assert_eq!(answer.status, 200, "it passes: {answer:?}");
        }
        let logged = || process.times_logged("seriatim::access") >= before + times;
        wait_for(logged, "each request is logged").await;
        process.times_logged(WARNING)
    }

    /// Has the file read again, and waits until each worker serves by it: until a request that no route
    /// takes gets this status.
    async fn reload(&mut self, status: u16) {
        self.process.signal("HUP");
        for client in &mut self.clients {
            while client.get("/elsewhere").await.status != status {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_session_has_an_outcome_of_its_own() {
    let bench = Unnamed::new().await;
    let process = Process::start(&bench.write(ROUTES));
    let post = Request::post;
    let preflight = Request::new("OPTIONS", "/chat")
        .header("origin", "https://page.example")
        .header("access-control-request-method", "POST");
    let no_session = "the request has no session id; it was looked for in {header:x-session}";
    let unreadable = "the body can't be read to find its session";
    let cases = [
        (chat(r#"{"session_id":"s1"}"#), "chat", "complete", ""),
        (
            chat(r#"{"sessionId":"s1"}"#),
            "chat",
            "no_session",
            "the request has no session id; it was looked for in {body:/session_id}, {header:x-session}",
        ),
        (preflight, "chat", "complete", ""),
        (
            post("/users").header("x-session", "s1").body(""),
            "users",
            "no_session",
            "the request has no user id; it was looked for in {header:x-user}",
        ),
        (
            post("/any-body").json("{nonsense"),
            "any-body",
            "no_session",
            unreadable,
        ),
        (
            post("/calls").body("nonsense"),
            "calls",
            "no_session",
            unreadable,
        ),
        (
            post("/calls").json(r#"{"method":"send"}"#),
            "calls",
            "no_session",
            no_session,
        ),
        (
            post("/strict").body(""),
            "strict",
            "missing_session",
            no_session,
        ),
        (post("/stop").body(""), "stop", "complete", ""),
        (post("/elsewhere").body(""), "", "complete", ""),
        // The end of a request that fails says more than its session.
        (
            chat("{}").header("x-test-script", "break-chunked"),
            "chat",
            "upstream_aborted",
            "the request has no session id",
        ),
    ];
    let mut counts = BTreeMap::new();
    for (request, route, outcome, _) in &cases {
        let mut client = Client::connect(process.addr()).await;
        let _ = client.call(request).await;
        *counts.entry((*route, *outcome)).or_insert(0) += 1;
    }
    let all_logged = || process.times_logged("seriatim::access") == cases.len();
    wait_for(all_logged, "each request is logged").await;
    let mut admin = Client::connect(process.admin()).await;
    let metrics = admin.get("/metrics").await.text();
    for ((route, outcome), count) in counts {
        let line =
            format!("seriatim_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}} {count}");
        assert!(
            metrics.lines().any(|sample| sample == line),
            "each request is counted by its route and outcome: {line} is in {metrics}"
        );
    }
    process.signal("TERM");
    let (_, events) = process.end();
    let is_access = |event: &&Value| event["target"] == "seriatim::access";
    let events: Vec<_> = events.iter().filter(is_access).collect();
    assert_eq!(events.len(), cases.len(), "one event for each request");
    for (event, (_, route, outcome, error)) in events.iter().zip(&cases) {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        assert_eq!(
            (text("route"), text("outcome")),
            (*route, *outcome),
            "the event has the outcome: {event}"
        );
        assert!(
            text("error").starts_with(error) && (error.is_empty() == text("error").is_empty()),
            "the event says why there is no lock, {error:?}: {event}"
        );
        let has_lock = *outcome == "complete" && error.is_empty() && event["key"].is_string();
        assert_eq!(
            event["fence"].is_u64(),
            has_lock,
            "a request without a session has no lock: {event}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_whose_requests_name_no_session_is_warned_of_once() {
    let bench = Unnamed::new().await;
    let mut served = Served::start(&bench.write(ROUTES)).await;
    let (unnamed, many) = (chat("{}"), 2 * WARNS_AFTER);
    let warnings = served.send(&unnamed, WARNS_AFTER - 1).await;
    assert_eq!(warnings, 0, "fewer may be first messages of new sessions");
    let warnings = served.send(&unnamed, 1).await;
    assert_eq!(warnings, 1, "so many that name no session are reported");
    let warnings = served.send(&unnamed, many).await;
    assert_eq!(warnings, 1, "and only once");
    let half = Request::post("/users").header("x-session", "s1").body("");
    served.send(&half, WARNS_AFTER - 1).await;
    served.send(&half.clone().header("x-user", "u1"), 1).await;
    let warnings = served.send(&half, many).await;
    assert_eq!(warnings, 1, "a route that once found a session works");
    let warnings = served.send(&Request::post("/stop").body(""), many).await;
    assert_eq!(warnings, 1, "a route with lock = false needs no session");

    let other = ROUTES.replace("/stop", "/other");
    bench.write(&format!("unmatched = \"reject\"\n{other}"));
    served.reload(404).await;
    let warnings = served.send(&unnamed, many).await;
    assert_eq!(warnings, 1, "an unchanged route is not reported again");
    bench.write(&other.replace(
        "{header:x-session}\"]\nuser_id = [\"unknown",
        "{header:x-other}",
    ));
    served.reload(200).await;
    let warnings = served.send(&unnamed, many).await;
    assert_eq!(warnings, 2, "a changed route is reported again, once");

    let process = served.process;
    process.signal("TERM");
    let (_, events) = process.end();
    let is_warning = |event: &&Value| {
        event["message"]
            .as_str()
            .is_some_and(|text| text.starts_with(WARNING))
    };
    let found: Vec<_> = events.iter().filter(is_warning).collect();
    for (event, places) in found.iter().zip(["x-session", "x-other"]) {
        assert_eq!(
            (&event["level"], &event["route"]),
            (&"WARN".into(), &"chat".into()),
            "the warning names the route"
        );
        assert_eq!(
            event["reason"],
            format!(
                "the request has no session id; it was looked for in {{body:/session_id}}, {{header:{places}}}"
            ),
            "the warning says where the session was looked for"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_becomes_of_requests_without_a_session() {
    let bench = Unnamed::new().await;
    let path = bench.write(ROUTES);
    let path = path.to_str().expect("UTF-8");
    let printed = run(&["check", "--config", path]);
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    let routes = printed.split("[[routes]]").skip(1);
    let said = routes.map(|route| {
        let name = route.lines().find(|line| line.starts_with("name"));
        let said = route.lines().find(|line| line.starts_with("on_missing"));
        (name.unwrap_or_default(), said)
    });
    let pass = r#"on_missing = "pass"  # a request that names no session or no user passes without a lock, as no_session"#;
    let reject = r#"on_missing = "reject"  # a request that names no session or no user is refused as missing_session"#;
    assert_eq!(
        said.collect::<Vec<_>>(),
        [
            ("name = \"chat\"", Some(pass)),
            ("name = \"users\"", Some(pass)),
            ("name = \"any-body\"", Some(pass)),
            ("name = \"calls\"", Some(pass)),
            ("name = \"strict\"", Some(reject)),
            ("name = \"stop\"", None),
        ],
        "the listing of each locking route says it"
    );
    let copy = bench.folder.path().join("copy.toml");
    std::fs::write(&copy, &printed).expect("the file is written");
    let again = run(&["check", "--config", copy.to_str().expect("UTF-8")]);
    assert_eq!(
        String::from_utf8(again.stdout).expect("UTF-8"),
        printed,
        "what is printed reads as the same configuration"
    );
}
