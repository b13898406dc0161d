//! Clients in common use whose turn waits behind another one on a route with `keep_alive`
//! (`tests/clients/waiting_*`): each shows the same as without waiting, and an error that comes inside the stream is
//! an error for its caller.
//!
//! A script lets the other turn end after its client has got the head of a response, and reports which turns the agent
//! had seen at that moment. So the client did wait, and its response began before its turn.

use serde_json::{Value, json};

use crate::clients::{Backend, Client};
use crate::support::app::App;

/// What clients of one script saw.
struct Seen {
    /// Directly at the backend.
    plain: Value,
    /// With comments while they waited.
    comments: Value,
    /// With events while they waited.
    events: Value,
    /// When they waited for too long.
    failed: Value,
}

const ANSWER: &str = "Hello, 世界 👋";

/// The sentence of a turn that waited for too long.
const BUSY: &str = "AI 正在思考中，请稍后再试";

/// The presets of clients that don't ask for an event stream say that they read one.
const ROUTES: &str = r#"
[[routes]]
name = "hold"
path = "/hold/{session}"
session_id = ["{path:session}"]

[[routes]]
preset = "openai-chat"

[[routes]]
preset = "openai-responses"

[[routes]]
preset = "langgraph"

[[routes]]
preset = "ag-ui"
path = "/agent"

[[routes]]
preset = "vercel-ai"

[[routes]]
name = "events"
path = "/events"
session_id = ["{query:session}"]

[[routes]]
name = "chat"
path = "/chat"
session_id = ["{body:/session_id}"]
"#;

#[tokio::test]
async fn clients_for_python_show_the_same_after_waiting() {
    let seen = Seen::by(Client("waiting_client.py")).await;
    for client in ["openai_chat", "openai_responses", "langgraph"] {
        seen.assert_same(client);
    }
    for client in ["openai_chat", "openai_responses"] {
        assert_eq!(
            seen.failed[client]["error"],
            json!(["APIError", BUSY, "wait_timeout"]),
            "{client}: openai raises the error of the stream"
        );
    }
    assert_eq!(
        seen.failed["langgraph"]["error"],
        json!(["StreamPart", BUSY, 409]),
        "langgraph-sdk gives the error to its caller as a part"
    );
    seen.assert_events_are_skipped("langgraph");
    seen.assert_events_are_errors("openai_chat");
}

#[tokio::test]
async fn clients_from_npm_show_the_same_after_waiting() {
    let seen = Seen::by(Client("waiting_client.js")).await;
    for client in ["openai", "ag_ui"] {
        seen.assert_same(client);
    }
    assert_eq!(
        seen.failed["openai"]["error"],
        json!(["APIError", BUSY, "wait_timeout"]),
        "openai throws the error of the stream"
    );
    let failed = &seen.failed["ag_ui"];
    assert_eq!(
        (&failed["told"], &failed["error"]),
        (
            &json!({"runErrorEvent": [BUSY, "wait_timeout"]}),
            &Value::Null
        ),
        "@ag-ui/client gives its subscribers RUN_ERROR, as one of the agent, and rejects nothing: {failed}"
    );
    seen.assert_events_are_errors("openai");
    seen.assert_events_are_errors("ag_ui");
}

#[tokio::test]
async fn clients_in_a_browser_show_the_same_after_waiting() {
    let seen = Seen::in_a_browser(Client("waiting_browser.js")).await;
    for client in ["viaUseChat", "viaEventSource", "viaFetch"] {
        seen.assert_same(client);
    }
    let comments = seen.comments["viaFetch"]["comments"].as_u64();
    assert!(
        comments >= Some(1),
        "a reader of the bytes sees the comments: {}",
        seen.comments["viaFetch"]
    );
    assert_eq!(
        (
            &seen.plain["viaUseChat"]["page"],
            &seen.comments["viaUseChat"]["page"]
        ),
        (&json!(ANSWER), &json!(ANSWER)),
        "useChat's page shows the whole answer"
    );
    let failed = &seen.failed;
    assert_eq!(
        failed["viaUseChat"]["error"],
        json!(["Error", BUSY]),
        "useChat has the status `error`, and its message is the sentence"
    );
    assert_eq!(
        failed["viaUseChat"]["page"], BUSY,
        "the page shows it as it shows other errors"
    );
    assert_eq!(
        failed["viaEventSource"]["error"],
        json!([BUSY, 1]),
        "an EventSource calls its error listeners with the data of the event"
    );
    assert_eq!(
        failed["viaFetch"]["error"],
        json!([BUSY, 429]),
        "a reader sees the error and its status"
    );
    seen.assert_events_are_skipped("viaEventSource");
    seen.assert_events_are_skipped("viaFetch");
    seen.assert_events_are_errors("viaUseChat");
}

/// A proxy with these options of `[lock]`, and its URL.
fn proxy(backend: &Backend, options: &str) -> (App, String) {
    let lock = "[lock]\nblocking = true\nkeep_alive = \"100ms\"";
    let config = format!("{lock}\n{options}\n{ROUTES}");
    let app = App::start(&backend.url(), "memory:", "", &config);
    let url = format!("http://{}", app.addr());
    (app, url)
}

/// The options of the three proxies: patient, patient with events, and impatient.
const PATIENT: &str = "blocking_timeout = \"1m\"";
const EVENTS: &str = "blocking_timeout = \"1m\"\nqueue_events = \"seriatim.queue\"";
const IMPATIENT: &str = "blocking_timeout = \"400ms\"";

// === impl Seen ===

impl Seen {
    async fn by(client: Client) -> Self {
        let backend = Backend::start("waiting_backend.py").await;
        let (_patient, patient) = proxy(&backend, PATIENT);
        let (_events, events) = proxy(&backend, EVENTS);
        let (_impatient, impatient) = proxy(&backend, IMPATIENT);
        Self {
            plain: client.call(&backend.url(), &["plain"]).await,
            comments: client.call(&patient, &["wait"]).await,
            events: client.call(&events, &["wait"]).await,
            failed: client.call(&impatient, &["fail"]).await,
        }
    }

    /// One browser does all of it.
    async fn in_a_browser(client: Client) -> Self {
        let backend = Backend::start("waiting_backend.py").await;
        let (_patient, patient) = proxy(&backend, PATIENT);
        let (_events, events) = proxy(&backend, EVENTS);
        let (_impatient, impatient) = proxy(&backend, IMPATIENT);
        let runs = [
            "plain", &patient, "wait", &events, "wait", &impatient, "fail",
        ];
        let mut all = client.call(&backend.url(), &runs).await;
        let mut next = || all.as_array_mut().expect("a list").remove(0);
        Self {
            plain: next(),
            comments: next(),
            events: next(),
            failed: next(),
        }
    }

    /// Asserts that a client that gets comments shows what it shows without waiting, and that it did wait.
    fn assert_same(&self, client: &str) {
        assert_eq!(
            self.plain[client]["shows"], ANSWER,
            "{client} shows the answer of the agent"
        );
        let waited = &self.comments[client];
        assert_eq!(
            waited["before"],
            json!(["hold"]),
            "the response of {client} begins while the other turn runs"
        );
        assert_eq!(
            (&waited["shows"], &waited["error"]),
            (&json!(ANSWER), &Value::Null),
            "{client} shows the same after waiting"
        );
    }

    /// Asserts that a client skips the events of `queue_events`.
    fn assert_events_are_skipped(&self, client: &str) {
        let saw = &self.events[client];
        assert_eq!(
            (&saw["shows"], &saw["error"]),
            (&json!(ANSWER), &Value::Null),
            "{client} skips events that it doesn't know"
        );
    }

    /// Asserts that a client takes an event of `queue_events` for a broken one of its own, as the docs say.
    fn assert_events_are_errors(&self, client: &str) {
        let saw = &self.events[client];
        assert!(
            saw["error"].is_array(),
            "{client} fails at an event that it doesn't know, so `queue_events` is not for it: {saw}"
        );
    }
}
