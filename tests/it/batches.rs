//! Bodies that are lists of requests (batches), on routes whose `when` reads the body.

use http::request::Parts;
use seriatim::config::Config;
use seriatim::proxy::{ExplainedOutcome, explain};

use crate::support::bench::Bench;
use crate::support::client::Request;

const ROUTES: &str = r#"
[[routes]]
preset = "mcp"
[[routes]]
name = "send"
path = "/rpc"
when = { "{body:/method|/op}" = "send" }
session_id = ["{header:x-session}"]
[[routes]]
name = "tool"
path = "/two"
when = { "{body:/method}" = "call", "{body:/params/name}" = "write" }
session_id = ["{body:/session}"]
[[routes]]
name = "mixed"
path = "/mixed"
when = { "{header:x-kind}-{body:/method}" = "a-send" }
session_id = ["{header:x-session}"]
[[routes]]
name = "by index"
path = "/index"
when = { "{body:/0/method|/method}" = "send" }
session_id = ["{header:x-session}"]
[[routes]]
name = "stop"
path = "/stop"
when = { "{body:/method}" = ["stop", "ping"] }
lock = false
[[routes]]
name = "all but stop"
path = "/stop"
session_id = ["{header:x-session}"]
user_id = ["all"]
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{body:/session_id}"]
"#;

fn call(path: &str, body: &str) -> Request {
    Request::post(path).header("x-session", "s1").json(body)
}

fn mcp(body: &str) -> Request {
    call("/mcp", body).header("mcp-session-id", "s1")
}

/// Whether `explain` says that the request passes without a lock.
async fn is_explained_as_free(path: &str, body: &str) -> bool {
    let config = format!("upstream = \"http://127.0.0.1:1\"\n{ROUTES}");
    let config = Config::read("test", &config, &Vec::new()).expect("the configuration is valid");
    let head: Parts = http::Request::post(path)
        .header("host", "localhost")
        .header("x-session", "s1")
        .header("mcp-session-id", "s1")
        .header("content-type", "application/json")
        .body(())
        .expect("a request")
        .into_parts()
        .0;
    let explained = explain(&config, head, body.to_owned().into()).await;
    matches!(explained.outcome, ExplainedOutcome::Passes)
}

#[tokio::test]
async fn a_batch_without_a_turn_reaches_the_backend_without_a_lock() {
    let bench = Bench::start(ROUTES).await;
    let long = format!(
        r#"[{}{{"method":"ping"}}]"#,
        r#"{"method":"ping"},"#.repeat(20_000)
    );
    let batches = [
        (
            "/mcp",
            r#"[{"id":1,"method":"tools/list"},{"id":2,"method":"ping"}]"#,
        ),
        ("/mcp", r#"[{"id":1,"result":{"method":"tools/call"}}]"#),
        ("/mcp", r#" [ {"method" : "ping"} , {} ] "#),
        (
            "/mcp",
            r#"[{"method":null},{"method":["tools/call"]},{"method":7}]"#,
        ),
        ("/mcp", "[]"),
        ("/mcp", "[[]]"),
        ("/mcp", &long),
        (
            "/rpc",
            r#"[{"op":"list"},{"method":"ping"},{"method":"a","op":"a"}]"#,
        ),
        (
            "/two",
            r#"[{"method":"call","params":{"name":"read"},"session":"s"}]"#,
        ),
        // Each of its requests is for the route without a lock.
        ("/stop", r#"[{"method":"stop"},{"method":"ping"}]"#),
    ];
    for (number, (path, body)) in batches.into_iter().enumerate() {
        let shown = &body[..body.len().min(80)];
        let tag = format!("batch {number}");
        let request = mcp(body);
        let request = match path {
            "/mcp" => request,
            _ => call(path, body),
        };
        let answer = bench.call(&request.header("x-test-session", &tag)).await;
        assert_eq!(answer.status, 200, "{shown} passes: {answer:?}");
        let got = &bench.backend.turns(&tag)[0];
        assert_eq!(got.body, body.as_bytes(), "{shown} passes as it was sent");
        let fence = got.header("x-seriatim-fence");
        assert_eq!(fence, None, "{shown} takes no lock");
        assert!(
            is_explained_as_free(path, body).await,
            "{shown}: explain says the same"
        );
    }
}

#[tokio::test]
async fn a_batch_with_a_turn_never_reaches_the_backend() {
    let bench = Bench::start(ROUTES).await;
    const ALONE: &str = "send the turn alone, not in a batch";
    const TWICE: &str = "occurs more than once";
    const CASE: &str = "in another case";
    for (path, body, cause) in [
        (
            "/mcp",
            r#"[{"method":"ping"},{"method":"tools/call"}]"#,
            ALONE,
        ),
        (
            "/mcp",
            r#"[{"method":"tools/call"},{"method":"ping"}]"#,
            ALONE,
        ),
        ("/mcp", r#"[{"method":"tools/call"}]"#, ALONE),
        (
            "/mcp",
            r#"[{"method":"ping"},{"meth\u006fd":"tools\/call"}]"#,
            ALONE,
        ),
        ("/mcp", r#"[{"method":" tools/call\u0000"}]"#, ALONE),
        ("/mcp", r#"[{"method":"ping","method":"ping"}]"#, TWICE),
        (
            "/mcp",
            r#"[{"method":"ping"},{"Method":"tools/call"}]"#,
            CASE,
        ),
        ("/mcp", r#"[{"method":"ping"},{"METHOD":"ping"}]"#, CASE),
        // Elements that aren't requests.
        (
            "/mcp",
            r#"[{"method":"ping"},[{"method":"tools/call"}]]"#,
            ALONE,
        ),
        (
            "/mcp",
            r#"[[{"method":"tools/call"}],{"method":"ping"}]"#,
            ALONE,
        ),
        ("/mcp", r#"[7,{"method":"ping"}]"#, ALONE),
        ("/mcp", r#"[{"method":"ping"},null]"#, ALONE),
        ("/rpc", r#"[{"method":"ping"},{"op":"send"}]"#, ALONE),
        (
            "/rpc",
            r#"[{"method":"ping","op":"send"}]"#,
            "different values",
        ),
        // Each condition may hold, though not for the same request.
        (
            "/two",
            r#"[{"method":"call"},{"params":{"name":"write"}}]"#,
            ALONE,
        ),
        (
            "/two",
            r#"[{"method":"call","params":{"name":"read","name":"read"}}]"#,
            ALONE,
        ),
        // An index says which request counts.
        ("/index", r#"[{"op":"ping"},{"method":"ping"}]"#, ALONE),
        // The route takes its session from the body.
        ("/chat", r#"[{"session_id":"s1"}]"#, ALONE),
        ("/stop", r#"[{"method":"stop"},7]"#, ALONE),
    ] {
        let request = match path {
            "/mcp" => mcp(body),
            _ => call(path, body),
        };
        let before = bench.backend.requests().len();
        let answer = bench.call(&request).await;
        let code = answer.header("x-seriatim-error");
        assert_eq!(code, Some("ambiguous_key"), "{body}: {answer:?}");
        let text = answer.text();
        assert!(text.contains(cause), "{body}: {cause}: {text}");
        let after = bench.backend.requests().len();
        assert_eq!(after, before, "{body} never reaches the backend");
        assert!(
            !is_explained_as_free(path, body).await,
            "{body}: explain says the same"
        );
    }
    let mixed = call("/mixed", r#"[{"method":"ping"}]"#).header("x-kind", "b");
    let what = "a condition on more than a member";
    bench.refused(what, &mixed, 400, "ambiguous_key").await;
    let query = call("/rpc?method=send", r#"[{"method":"ping"}]"#);
    let what = "a backend may read the value in the query";
    bench.refused(what, &query, 400, "ambiguous_key").await;
    let form = Request::post("/rpc")
        .header("x-session", "s1")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(r#"[{"method":"ping","x":"&method=send&"}]"#);
    let what = "a backend may read the body as a form";
    bench.refused(what, &form, 400, "ambiguous_key").await;
}

#[tokio::test]
async fn a_route_without_a_lock_takes_a_batch_only_for_each_of_its_requests() {
    let bench = Bench::start(ROUTES).await;
    for body in [
        r#"[{"method":"stop"},{"method":"send"}]"#,
        r#"[{"method":"send"},{"method":"stop"}]"#,
        r#"[{"method":"stop"},{}]"#,
        r#"[{"method":"stop "}]"#,
    ] {
        assert_eq!(
            bench.key(&call("/stop", body)).await.as_deref(),
            Some("lock:session:all:s1"),
            "{body}: the next route locks it"
        );
    }
}
