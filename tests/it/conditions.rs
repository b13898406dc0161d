//! Routes with a condition on a value of the request (`when`), through the whole proxy.

use seriatim::config::Config;

use crate::support::bench::Bench;
use crate::support::client::Request;

/// Sending, cancelling and other calls at one URL, as in JSON-RPC; and each source once.
const WHEN: &str = r#"
unmatched = "reject"
[[routes]]
name = "send"
path = "/rpc"
when = { "{body:/method}" = ["message/send", "message/stream"] }
session_id = ["{body:/params/id}"]
user_id = ["send"]
[[routes]]
name = "cancel"
path = "/rpc"
when = { "{body:/method}" = "tasks/cancel", "{header:x-kind}" = "stop" }
lock = false
[[routes]]
name = "rest"
path = "/rpc"
methods = ["POST"]
session_id = ["{header:x-session}"]
user_id = ["rest"]

[[routes]]
name = "lax"
path = "/lax"
when = { "{body:/method}" = "send" }
session_id = ["{body:/id}"]
on_malformed = "pass"
[[routes]]
name = "lax by header"
path = "/lax"
headers = { x-session = "*" }
session_id = ["{header:x-session}"]

[[routes]]
name = "form"
path = "/form"
when = { "{query:q}-{cookie:c}" = ["1-a", "2-b"] }
session_id = ["{body:/id}"]
[[routes]]
name = "either"
path = "/form"
when = { "{body:/a|/b}" = [true, 7, "x"] }
session_id = ["either"]
[[routes]]
name = "field"
path = "/form"
when = { "{form:action}" = "sendMessage" }
session_id = ["{form:id}"]
"#;

fn rpc(body: &str) -> Request {
    Request::post("/rpc")
        .header("content-type", "application/json")
        .body(body)
}

fn form(body: &str) -> Request {
    Request::post("/form")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body)
}

fn lax(body: &str) -> Request {
    Request::post("/lax").body(body)
}

fn json(body: &str) -> Request {
    Request::post("/form").body(body)
}

#[tokio::test]
async fn a_route_matches_a_request_that_has_the_value_in_when() {
    let bench = Bench::start(WHEN).await;
    for (case, request, key) in [
        (
            "the value",
            rpc(r#"{"method":"message/send","params":{"id":"s"}}"#),
            Some("send:s"),
        ),
        (
            "another of the values, with escapes",
            rpc(r#"{"params":{"id":"s"},"meth\u006fd":"message\/stream"}"#),
            Some("send:s"),
        ),
        (
            "the value with characters around it that some backends trim",
            rpc(r#"{"method":"\u00a0message/send\u0001","params":{"id":"s"}}"#),
            Some("send:s"),
        ),
        (
            "a value that matches only trimmed releases no lock",
            rpc(r#"{"method":"tasks/cancel "}"#)
                .header("x-kind", "stop")
                .header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "all of several conditions",
            rpc(r#"{"method":"tasks/cancel"}"#)
                .header("x-kind", "stop")
                .header("x-session", "s"),
            None,
        ),
        (
            "one of several conditions is not enough",
            rpc(r#"{"method":"tasks/cancel"}"#).header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "another value",
            rpc(r#"{"method":"Message/Send","params":{"id":"t"}}"#).header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "no value",
            rpc(r#"{"method":null}"#).header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "an object",
            rpc(r#"{"method":{"message/send":1}}"#).header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "no body",
            Request::post("/rpc").header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "a batch that matches no condition",
            rpc(r#"[{"id":1}]"#).header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "a template of several sources",
            Request::post("/form?q=2")
                .header("cookie", "c=b")
                .body(r#"{"id":"s"}"#),
            Some("unknown:s"),
        ),
        (
            "a field of a form",
            form("action=sendMessage&id=s"),
            Some("unknown:s"),
        ),
        ("true", json(r#"{"a":true}"#), Some("unknown:either")),
        ("a number", json(r#"{"b":7.0}"#), Some("unknown:either")),
        (
            "the text of a number",
            json(r#"{"b":"7"}"#),
            Some("unknown:either"),
        ),
        (
            "the first pointer has no value",
            json(r#"{"a":null,"b":"x"}"#),
            Some("unknown:either"),
        ),
        (
            "the request matches another route",
            lax(r#"{"method":"x"}"#).header("x-session", "s"),
            Some("unknown:s"),
        ),
    ] {
        let expected = key.map(|key| format!("lock:session:{key}"));
        assert_eq!(bench.key(&request).await, expected, "{case}");
    }
    for (case, request) in [
        ("a method without a route", Request::get("/rpc")),
        ("a value without a route", json(r#"{"a":"y"}"#)),
        ("false where the condition is true", json(r#"{"a":false}"#)),
        ("a form without the field", form("id=s")),
        ("JSON for a form", json(r#"{"action":"stop"}"#)),
    ] {
        bench.refused(case, &request, 404, "no_route").await;
    }
    bench
        .refused("an empty object", &lax("{}"), 404, "no_route")
        .await;
}

#[tokio::test]
async fn a_value_that_another_parser_may_read_differently_is_refused() {
    let bench = Bench::start(WHEN).await;
    for body in [
        r#"{"method":"ping","method":"message/send"}"#,
        r#"{"method":"message/send","method":"ping"}"#,
        r#"{"method":"ping","Method":"message/send"}"#,
        r#"{"METHOD":"message/send"}"#,
        r#"[{"method":"ping"},{"method":"message/send"}]"#,
    ] {
        let request = rpc(body).header("x-session", "s");
        bench.refused(body, &request, 400, "ambiguous_key").await;
    }
    for body in [
        "{\"method\":\"message/send\"",
        "method=message/send",
        "{\"method\":\"\u{0}\"}",
    ] {
        let request = rpc(body).header("x-session", "s");
        bench.refused(body, &request, 400, "malformed_body").await;
    }
    let encoded = rpc("x").header("content-encoding", "compress");
    bench
        .refused("an encoding", &encoded, 415, "unsupported_encoding")
        .await;
    let mislabelled = Request::post("/form?q=1")
        .header("cookie", "c=a")
        .header("content-type", "application/x-www-form-urlencoded")
        .body("id=s");
    let what = "a form where a route takes its session from JSON";
    bench
        .refused(what, &mislabelled, 400, "malformed_body")
        .await;
    let both = json(r#"{"action":"sendMessage"}"#);
    let what = "JSON with the value that a form field must have";
    bench.refused(what, &both, 400, "ambiguous_key").await;
    let query = Request::post("/rpc?method=tasks/cancel")
        .header("x-session", "s")
        .body(r#"{"method":"message/send","params":{"id":"s"}}"#);
    let what = "a value in the query, which some backends prefer to the body";
    bench.refused(what, &query, 400, "ambiguous_key").await;
    let two = json(r#"{"a":true,"b":"x"}"#);
    bench
        .refused("two pointers with a value", &two, 400, "ambiguous_key")
        .await;
    let two = rpc(r#"{"method":"tasks/cancel"}"#)
        .header("x-kind", "stop")
        .header("x-kind", "go")
        .header("x-session", "s");
    bench
        .refused("a header that occurs twice", &two, 400, "ambiguous_key")
        .await;
}

#[tokio::test]
async fn an_unreadable_body_bypasses_no_lock() {
    let bench = Bench::start(WHEN).await;
    let request = lax("{").header("x-session", "s");
    assert_eq!(
        bench.key(&request).await.as_deref(),
        Some("lock:session:unknown:s"),
        "a route with on_malformed = pass leaves an unreadable body to a route that locks"
    );
    assert_eq!(
        bench.key(&lax("{")).await,
        None,
        "an unreadable body without another route passes, whatever `unmatched` says"
    );
    let config = r#"
[[routes]]
name = "stop"
path = "/rpc"
when = { "{body:/method}" = "stop" }
lock = false
[[routes]]
name = "all"
path = "/rpc"
session_id = ["{header:x-session}"]
"#;
    let bench = Bench::start(config).await;
    for body in ["{\"method\":\"stop\"", "[", "\u{feff}{\"method\":\"stop\"}"] {
        let request = rpc(body).header("x-session", "s");
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s"),
            "{body}: a route without a lock matches only a readable body"
        );
    }
    let twice = rpc(r#"{"method":"stop","method":"send"}"#).header("x-session", "s");
    bench
        .refused(
            "a cancellation that another parser may not see",
            &twice,
            400,
            "ambiguous_key",
        )
        .await;
    let stop = rpc(r#"{"method":"stop"}"#).header("x-session", "s");
    assert_eq!(
        bench.key(&stop).await,
        None,
        "a cancellation passes without a lock"
    );
}

#[test]
fn check_prints_conditions_as_configured() {
    let text = include_str!("../config/valid/conditions.toml");
    let config = Config::read("test", text, &Vec::new()).expect("the configuration is valid");
    let printed = config.to_string();
    for line in [
        r#"when = { "{body:/method|/x}" = ["a", 'b "c"'], "{form:action}" = ["d"], "{header:x}-{query:y}" = ["true", "7"] }"#,
        r#"when = { "{cookie:a}" = ["b"] }"#,
        r#"session_id = ["{body:/a|/b~1c/0}", "{hash:form:session id}"]"#,
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line} is in {printed}"
        );
    }
}
