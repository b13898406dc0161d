//! `explain`: its result is that of the proxy's own code, for single requests and for hundreds of them.

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

#[tokio::test]
async fn a_request_is_explained_by_route_templates_and_key() {
    let config = Config::read("test", CONFIG, &Vec::new()).expect("nothing is wrong with it");
    let explained = explain(
        &config,
        head("/rpc"),
        br#"{"method":"send","b":"x:y"}"#[..].into(),
    )
    .await;
    assert_eq!(
        explained.route.as_deref(),
        Some("send"),
        "the route that takes it"
    );
    let ExplainedOutcome::Locks(key) = &explained.outcome else {
        panic!("it locks: {explained:?}");
    };
    assert_eq!(key.as_str(), "lock:session:unknown:x%3Ay", "its key");
    let templates = explained.templates.iter();
    let results: Vec<_> = templates
        .map(|one| (one.option, &*one.template, one.result.clone()))
        .collect();
    assert_eq!(
        results,
        [
            ("session_id", "{header:x-session}", TemplateResult::Missing),
            (
                "session_id",
                "{body:/a|/b}",
                TemplateResult::Found("x:y".into())
            ),
            (
                "user_id",
                "unknown",
                TemplateResult::Found("unknown".into())
            ),
        ],
        "the value of each template"
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
        let explained = explain(&config, head(path), body.into()).await;
        let code = match &explained.outcome {
            ExplainedOutcome::Refused { code, .. } => Some(*code),
            ExplainedOutcome::Passes => None,
            ExplainedOutcome::Locks(_) => Some("locks"),
        };
        assert_eq!(
            (explained.route.as_deref(), code),
            (route, outcome),
            "{path} {body}"
        );
    }
}
