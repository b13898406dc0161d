//! Clients in common use that come back to an answer (`tests/clients/resuming_*`): a page that is reloaded, a second
//! tab, a stop button, a library that sends its request again, and an `EventSource` that reconnects.
//!
//! There are two replicas on one Redis. A script lets the agent send each piece of an answer when it has seen the piece
//! before it.

use serde_json::{Value, json};

use crate::clients::{Backend, Client};
use crate::support::app::App;
use crate::support::redis::Redis;

const ANSWER: &str = "Hello, 世界 👋";

/// The SDK's quickstart, the same with an abort signal, chat completions, and an agent whose events have ids.
const ROUTES: &str = r#"
[[routes]]
preset = "vercel-ai-resume"

[[routes]]
preset = "vercel-ai-resume"
name = "stoppable"
prefix = "/stoppable"

[[routes]]
name = "openai"
methods = ["POST"]
path = "/v1/chat/completions"
session_id = ["{header:x-session-id}"]
once = ["{header:idempotency-key}"]
replay = true
on_repeat = "attach"

[[routes]]
name = "agent"
methods = ["POST"]
path = "/agent"
session_id = ["{body:/session_id}"]
replay = true

[[routes]]
name = "agent-attach"
methods = ["GET"]
path = "/agent/{session}/stream"
session_id = ["{path:session}"]
attach = true
"#;

/// A backend behind two replicas.
struct Scene {
    _backend: Backend,
    replicas: [App; 2],
    _redis: Redis,
}

impl Scene {
    async fn set() -> Self {
        let backend = Backend::start("resuming_backend.js").await;
        let redis = Redis::start().await;
        let start = || App::start(&backend.url(), &redis.url(), "", ROUTES);
        Self {
            replicas: [start(), start()],
            _backend: backend,
            _redis: redis,
        }
    }

    fn url(&self, replica: usize) -> String {
        format!("http://{}", self.replicas[replica].addr())
    }
}

#[tokio::test]
async fn pages_in_a_browser_go_on_where_they_were() {
    let scene = Scene::set().await;
    let client = Client("resuming_browser.js");
    let saw = client.call(&scene.url(0), &[&scene.url(1)]).await;
    assert_eq!(
        saw["undisturbed"],
        json!({"shows": [ANSWER], "came": [["GET", 204, null]]}),
        "useChat asks for an answer when it begins, and there is none"
    );
    assert_reloaded(&saw["reloaded"]);
    let tabs = &saw["twoTabs"];
    assert_eq!(
        (&tabs["one"], &tabs["two"]),
        (&json!([ANSWER]), &json!([ANSWER])),
        "two tabs show the same answer"
    );
    assert_eq!(
        tabs["turns"],
        json!([{"end": "whole"}]),
        "which is of one turn"
    );
    assert_stopped(&saw["stopped"]);
    let again = &saw["regenerated"];
    assert_eq!(
        (&again["shows"], &again["turns"]),
        (
            &json!([ANSWER]),
            &json!([{"end": "whole"}, {"end": "whole"}, {"end": "whole"}])
        ),
        "a regenerated answer is a turn of its own, and no repeat"
    );
    assert_event_source(&saw["eventSource"]);
}

fn assert_reloaded(saw: &Value) {
    assert_eq!(
        (&saw["shows"], &saw["status"]),
        (&json!([ANSWER]), &json!("ready")),
        "a page that was reloaded shows the whole answer, as without the reload"
    );
    assert_eq!(
        saw["turns"],
        json!([{"end": "whole"}]),
        "the backend saw one turn"
    );
    assert_eq!(
        saw["came"],
        json!([["GET", 204, null], ["GET", 200, null], ["GET", 204, null]]),
        "the other replica has the answer while the turn runs"
    );
    assert_eq!(
        saw["after"],
        json!([]),
        "an answer that has ended isn't given to a page that has it with its history"
    );
}

fn assert_stopped(saw: &Value) {
    assert_eq!(
        saw["response"],
        json!({"stopped": true}),
        "the other replica stops the turn"
    );
    assert_eq!(
        saw["shows"],
        json!([["Hel"], ["Hel"]]),
        "both tabs keep what they have of the answer"
    );
    assert_eq!(
        saw["status"],
        json!(["error", "ready"]),
        "an answer that was stopped elsewhere doesn't look whole"
    );
    assert_eq!(
        saw["next"],
        json!(["Hel", ANSWER]),
        "the chat goes on with the next turn"
    );
    assert_eq!(
        saw["turns"],
        json!([{"end": "left"}, {"end": "whole"}]),
        "the backend saw the stop"
    );
}

fn assert_event_source(saw: &Value) {
    assert_eq!(
        saw["got"],
        json!([["0", "Hel"], ["1", "lo, "], ["2", "世界"], ["3", " 👋"]]),
        "an EventSource that lost its connection twice gets each event once"
    );
    assert_eq!(
        saw["came"],
        json!([
            ["GET", 200, null],
            ["GET", 200, "1"],
            ["GET", 200, "2"],
            ["GET", 204, "3"]
        ]),
        "it says which event it has, and stops at 204"
    );
    assert_eq!(
        saw["turns"],
        json!([{"end": "whole"}]),
        "the backend saw one turn"
    );
}

#[tokio::test]
async fn openai_for_python_gets_the_answer_of_the_turn_whose_connection_broke() {
    let scene = Scene::set().await;
    let saw = Client("resuming_client.py").call(&scene.url(0), &[]).await;
    for (case, connections) in [("running", 2), ("ended", 2), ("streamed", 1)] {
        let saw = &saw[case];
        assert_eq!(saw["shows"], ANSWER, "{case}: the whole answer: {saw}");
        assert_eq!(
            saw["turns"],
            json!([{"retry": "0", "end": "whole"}]),
            "{case}: the backend saw one turn"
        );
        assert_eq!(
            saw["connections"], connections,
            "{case}: the package itself sends an answer's request again, unless it is streamed"
        );
    }
    assert_eq!(
        saw["streamed"]["error"], "APIConnectionError",
        "the caller of a stream gets the error"
    );
}
