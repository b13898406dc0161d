//! Routes that ask for a value in the request (`when`), through the whole proxy.

use seriatim::config::Config;

use crate::support::bench::Bench;
use crate::support::client::Request;

/// Sending, stopping and the rest at one URL, as JSON-RPC has it; and each source once.
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
async fn a_route_takes_what_has_the_value_that_it_asks_for() {
    let bench = Bench::start(WHEN).await;
    for (case, request, key) in [
        (
            "the value",
            rpc(r#"{"method":"message/send","params":{"id":"s"}}"#),
            Some("send:s"),
        ),
        (
            "another of the values, spelt with escapes",
            rpc(r#"{"params":{"id":"s"},"meth\u006fd":"message\/stream"}"#),
            Some("send:s"),
        ),
        (
            "the value between what some backends take off",
            rpc(r#"{"method":"\u00a0message/send\u0001","params":{"id":"s"}}"#),
            Some("send:s"),
        ),
        (
            "which frees nothing",
            rpc(r#"{"method":"tasks/cancel "}"#)
                .header("x-kind", "stop")
                .header("x-session", "s"),
            Some("rest:s"),
        ),
        (
            "all of several",
            rpc(r#"{"method":"tasks/cancel"}"#)
                .header("x-kind", "stop")
                .header("x-session", "s"),
            None,
        ),
        (
            "one of several is not enough",
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
            "a batch of what no route asks for",
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
            "the other spelling is missing",
            json(r#"{"a":null,"b":"x"}"#),
            Some("unknown:either"),
        ),
        (
            "what another route takes",
            lax(r#"{"method":"x"}"#).header("x-session", "s"),
            Some("unknown:s"),
        ),
    ] {
        let expected = key.map(|key| format!("lock:session:{key}"));
        assert_eq!(bench.key(&request).await, expected, "{case}");
    }
    for (case, request) in [
        ("a method that no route is for", Request::get("/rpc")),
        ("a value that no route asks for", json(r#"{"a":"y"}"#)),
        ("false where true is asked for", json(r#"{"a":false}"#)),
        ("a form without the field", form("id=s")),
        ("JSON for a form", json(r#"{"action":"stop"}"#)),
    ] {
        bench.refused(case, &request, 404, "no_route").await;
    }
    bench.refused("nothing", &lax("{}"), 404, "no_route").await;
}

#[tokio::test]
async fn what_could_be_the_value_to_another_reader_is_refused() {
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
    let what = "JSON with the value that a field of a form is asked for";
    bench.refused(what, &both, 400, "ambiguous_key").await;
    let query = Request::post("/rpc?method=tasks/cancel")
        .header("x-session", "s")
        .body(r#"{"method":"message/send","params":{"id":"s"}}"#);
    let what = "a value in the query, which some read before the body";
    bench.refused(what, &query, 400, "ambiguous_key").await;
    let two = json(r#"{"a":true,"b":"x"}"#);
    bench
        .refused("two spellings", &two, 400, "ambiguous_key")
        .await;
    let two = rpc(r#"{"method":"tasks/cancel"}"#)
        .header("x-kind", "stop")
        .header("x-kind", "go")
        .header("x-session", "s");
    bench
        .refused("a header that is there twice", &two, 400, "ambiguous_key")
        .await;
}

#[tokio::test]
async fn a_body_that_cannot_be_read_frees_nothing() {
    let bench = Bench::start(WHEN).await;
    let request = lax("{").header("x-session", "s");
    assert_eq!(
        bench.key(&request).await.as_deref(),
        Some("lock:session:unknown:s"),
        "a route that lets pass what it can't read leaves it to another that locks"
    );
    assert_eq!(
        bench.key(&lax("{")).await,
        None,
        "what no other route takes passes there, whatever is done with what no route takes"
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
            "{body}: a route that doesn't lock takes only what it can read"
        );
    }
    let twice = rpc(r#"{"method":"stop","method":"send"}"#).header("x-session", "s");
    bench
        .refused("a stop that may be none", &twice, 400, "ambiguous_key")
        .await;
    let stop = rpc(r#"{"method":"stop"}"#).header("x-session", "s");
    assert_eq!(bench.key(&stop).await, None, "a stop passes");
}

#[test]
fn conditions_are_printed_as_they_came() {
    let text = include_str!("../config/valid/conditions.toml");
    let config = Config::read("test", text, &Vec::new()).expect("nothing is wrong with it");
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
