//! `explain` as a function: it says what happens to a request with the code that serves it.

use http::Request;
use http::request::Parts;
use seriatim::config::Config;
use seriatim::proxy::{ExplainedOutcome, TemplateResult, explain};

const CONFIG: &str = r#"
upstream = "http://127.0.0.1:1"
[[routes]]
name = "send"
path = "/rpc"
when = { "{body:/method}" = "send" }
session_id = ["{header:x-session}", "{body:/a|/b}"]
[[routes]]
name = "stop"
path = "/rpc"
lock = false
"#;

fn head(path: &str) -> Parts {
    let request = Request::post(path).body(());
    request.expect("a request").into_parts().0
}

#[test]
fn a_request_is_explained_by_route_templates_and_key() {
    let config = Config::read("test", CONFIG, &Vec::new()).expect("the configuration is valid");
    let explained = explain(&config, head("/rpc"), br#"{"method":"send","b":"x:y"}"#);
    assert_eq!(
        explained.route.as_deref(),
        Some("send"),
        "the route that matches"
    );
    let ExplainedOutcome::Locks(key) = &explained.outcome else {
        panic!("the request must take a lock: {explained:?}");
    };
    assert_eq!(key.as_str(), "lock:session:unknown:x%3Ay", "its key");
    let alternatives = explained.alternatives.iter();
    let came: Vec<_> = alternatives
        .map(|one| (one.option, &*one.template, one.came_to.clone()))
        .collect();
    assert_eq!(
        came,
        [
            ("session_id", "{header:x-session}", TemplateResult::Missing),
            (
                "session_id",
                "{body:/a|/b}",
                TemplateResult::Id("x:y".into())
            ),
            ("user_id", "unknown", TemplateResult::Id("unknown".into())),
        ],
        "the result of each template"
    );
    for (path, body, route, outcome) in [
        ("/rpc", r#"{"method":"stop"}"#, Some("stop"), None),
        ("/rpc", "", Some("stop"), None),
        ("/elsewhere", "", None, None),
        (
            "/rpc",
            r#"{"method":"#,
            Some("send"),
            Some("malformed_body"),
        ),
        (
            "/rpc",
            r#"{"method":"send","a":1,"b":2}"#,
            Some("send"),
            Some("ambiguous_key"),
        ),
    ] {
        let explained = explain(&config, head(path), body.as_bytes());
        let reason = match &explained.outcome {
            ExplainedOutcome::Refused { reason, .. } => Some(*reason),
            ExplainedOutcome::Passes => None,
            ExplainedOutcome::Locks(_) => Some("locks"),
        };
        assert_eq!(
            (explained.route.as_deref(), reason),
            (route, outcome),
            "{path} {body}"
        );
    }
}
