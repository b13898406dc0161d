//! Once ids: what a route's `once` gives for a request, and what it costs the request.

use bytes::Bytes;
use http::Request as HttpRequest;
use seriatim::config::Config;
use seriatim::key::OnceKey;
use seriatim::proxy::{ExplainedOutcome, ExplainedRequest, TemplateResult, explain};

use crate::support::bench::{Bench, assert_error_response};
use crate::support::client::Request;

const CONFIG: &str = r#"
upstream = "http://127.0.0.1:1"
[limits]
max_body = 1000
max_id_bytes = 40
[[routes]]
name = "chat"
path = "/chat"
session_id = ["{header:x-session-id}"]
once = ["{header:idempotency-key}", "{body:/messages/-1/id}"]
[[routes]]
name = "in body"
path = "/body"
session_id = ["{body:/id}"]
once = ["{hash:body:/messages/-1}"]
[[routes]]
name = "lax"
path = "/lax"
session_id = ["{header:x-session-id}"]
once = ["{body:/messages/-1/id}"]
on_malformed = "pass"
[[routes]]
name = "last"
path = "/last"
session_id = ["{body:/messages/-1/thread}"]
[[routes]]
name = "rpc"
path = "/rpc"
session_id = ["{header:x-session-id}"]
once = ["{header:idempotency-key}"]
busy = { format = "json-rpc" }
"#;

const JSON: (&str, &str) = ("content-type", "application/json");
const SESSION: (&str, &str) = ("x-session-id", "s1");
const K1: (&str, &str) = ("idempotency-key", "k1");
/// printf %s k1 | sha256sum | cut -c1-32
const K1_ID: &str = "6ab9f1eb8f7d3388f4f9d586f66e99fd";

async fn explained(
    target: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> ExplainedRequest {
    let config = Config::read("test", CONFIG, &Vec::new()).expect("the configuration is valid");
    let mut request = HttpRequest::post(target).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let head = request.body(()).expect("a request").into_parts().0;
    explain(&config, head, body.into()).await
}

/// The once key of a request that takes a lock.
async fn once(target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Option<OnceKey> {
    let explained = explained(target, headers, body).await;
    assert!(
        matches!(explained.outcome, ExplainedOutcome::Locks(_)),
        "it takes a lock: {explained:?}"
    );
    explained.once
}

/// The error code of a request that is refused.
async fn refused(target: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> &'static str {
    match explained(target, headers, body).await.outcome {
        ExplainedOutcome::Refused { code, .. } => code,
        other => panic!("it is refused: {other:?}"),
    }
}

#[tokio::test]
async fn the_first_template_with_a_value_gives_the_once_id() {
    const MESSAGES: &str = r#"{"messages":[{"id":"k0"},{"id":"k1"}]}"#;
    let header = once("/chat", &[SESSION, K1], "").await.expect("an id");
    assert_eq!(&*header.id, K1_ID, "the id is hashed");
    let body = once("/chat", &[SESSION, JSON], MESSAGES)
        .await
        .expect("an id");
    assert_eq!(&*body.id, K1_ID, "the id of the last message");
    let other = [SESSION, JSON, ("idempotency-key", "k2")];
    let both = once("/chat", &other, MESSAGES).await.expect("an id");
    assert_ne!(both.id, body.id, "the header comes first");
    for body in [
        "",
        "{}",
        r#"{"messages":[]}"#,
        r#"{"messages":[{"id":"k1"},{}]}"#,
        r#"{"messages":[{"id":null}]}"#,
        r#"{"messages":{"0":{"id":"k1"}}}"#,
    ] {
        let none = once("/chat", &[SESSION, JSON], body).await;
        assert_eq!(none, None, "{body:?} has no once id, and takes its lock");
    }
    let explained = explained("/chat", &[SESSION, JSON], MESSAGES).await;
    let results = explained
        .templates
        .iter()
        .filter(|one| one.option == "once");
    let results: Vec<_> = results
        .map(|one| (&*one.template, one.result.clone()))
        .collect();
    assert_eq!(
        results,
        [
            ("{header:idempotency-key}", TemplateResult::Missing),
            ("{body:/messages/-1/id}", TemplateResult::Found("k1".into())),
        ],
        "the value of each template is shown"
    );
}

#[tokio::test]
async fn a_fingerprint_is_that_of_the_request_as_it_was_sent() {
    let one = once("/chat?a=1", &[SESSION, K1], "x").await.expect("an id");
    // printf 'POST\0/chat?a=1\0x' | sha256sum | cut -c1-16
    assert_eq!(&*one.fingerprint, "0330c9069c1f22e8", "on every replica");
    let traced = [
        SESSION,
        K1,
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    let again = once("/chat?a=1", &traced, "x").await.expect("an id");
    assert_eq!(again, one, "whatever its other headers say");
    for (target, body) in [
        ("/chat?a=2", "x"),
        ("/chat", "x"),
        ("/chat?a=1", "y"),
        ("/chat?a=1", ""),
    ] {
        let other = once(target, &[SESSION, K1], body).await.expect("an id");
        assert_eq!(other.id, one.id, "the id is the same");
        assert_ne!(other.fingerprint, one.fingerprint, "{target} {body:?}");
    }
    let unknown = [SESSION, K1, ("content-encoding", "x-unknown")];
    let encoded = once("/chat?a=1", &unknown, "x").await.expect("an id");
    assert_eq!(
        encoded.fingerprint, one.fingerprint,
        "a body that isn't decoded is hashed, too"
    );
}

#[tokio::test]
async fn an_object_is_hashed_as_its_text() {
    let id = async |message: &str| {
        let body = format!(r#"{{"id":"s1","messages":[{{"x":1}},{message}]}}"#);
        let once = once("/body", &[JSON], body).await;
        once.map(|once| once.id)
    };
    let one = id(r#"{"text":"yes"}"#).await;
    assert!(one.is_some(), "an object has a hash");
    assert_eq!(
        id(r#" {"text":"yes"} "#).await,
        one,
        "without white space around it"
    );
    for other in [
        r#"{"text":"no"}"#,
        r#"{"text": "yes"}"#,
        r#"[{"text":"yes"}]"#,
        "7",
    ] {
        let other = id(other).await;
        assert!(
            other.is_some() && other != one,
            "other texts have other hashes"
        );
    }
    assert_eq!(id("null").await, None, "null is missing");
}

#[tokio::test]
async fn a_session_id_may_be_in_the_last_element() {
    let body = r#"{"messages":[{"thread":"s1"},{"thread":"s2"}]}"#;
    let explained_last = explained("/last", &[JSON], body).await;
    let ExplainedOutcome::Locks(key) = &explained_last.outcome else {
        panic!("it takes a lock: {explained_last:?}");
    };
    assert_eq!(key.as_str(), "lock:session:unknown:s2", "that of the last");
    for body in [
        r#"{"messages":[{"thread":"s1"},{"thread":"s2","thread":"s3"}]}"#,
        r#"{"messages":[{"thread":"s1"},{"Thread":"s2"}]}"#,
        r#"{"messages":[{"thread":"s1"}],"messages":[{"thread":"s1"}]}"#,
    ] {
        assert_eq!(
            refused("/last", &[JSON], body).await,
            "ambiguous_key",
            "{body}"
        );
    }
    assert_eq!(
        refused("/last?messages[0][thread]=s3", &[JSON], body).await,
        "ambiguous_key",
        "a field that some backends put there"
    );
}

#[tokio::test]
async fn a_once_id_that_cannot_be_told_is_refused() {
    let long = "k".repeat(41);
    for (headers, body, code) in [
        (&[SESSION, K1, K1][..], "", "ambiguous_key"),
        (
            &[SESSION, ("trailer", "idempotency-key")],
            "",
            "bad_request",
        ),
        (&[SESSION, ("idempotency-key", &long)], "", "bad_session_id"),
        (
            &[SESSION, JSON],
            r#"{"messages":[{"id":1.5}]}"#,
            "bad_session_id",
        ),
        (
            &[SESSION, JSON],
            r#"{"messages":[{"id":{}}]}"#,
            "bad_session_id",
        ),
        (
            &[SESSION, JSON],
            r#"{"messages":[{"id":1,"id":2}]}"#,
            "ambiguous_key",
        ),
        (
            &[SESSION, JSON],
            r#"{"messages":[{"id":1}"#,
            "malformed_body",
        ),
    ] {
        assert_eq!(
            refused("/chat", headers, body).await,
            code,
            "{headers:?} {body}"
        );
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_never_frees_a_turn_whose_session_is_known() {
    for (headers, body) in [
        (&[SESSION, JSON][..], r#"{"messages":[{"id":1}"#),
        (&[SESSION, ("content-type", "text/plain")], "hello"),
        (&[SESSION, JSON, ("content-encoding", "x-unknown")], "{}"),
    ] {
        let none = once("/lax", headers, body).await;
        assert_eq!(none, None, "it takes its lock, and has no once id: {body}");
    }
}

#[tokio::test]
async fn a_request_with_a_once_id_is_read_to_its_end_before_its_lock() {
    let bench = Bench::start(&CONFIG.replace("upstream = \"http://127.0.0.1:1\"", "")).await;
    let (large, half) = ("x".repeat(1001), "x".repeat(501));
    let post = |target: &str| Request::post(target).header("x-session-id", "s1");
    let once = |target: &str| post(target).header("idempotency-key", "k1");
    let whole = bench.call(&once("/chat").body(&*large)).await;
    assert_error_response("a body above max_body", &whole, 413, "body_too_large");
    let chunks = [half.as_bytes(), half.as_bytes()];
    let chunked = bench.call(&once("/chat").chunked(&chunks)).await;
    assert_error_response(
        "its length isn't announced",
        &chunked,
        413,
        "body_too_large",
    );
    assert_eq!(bench.backend.requests().len(), 0, "the backend saw nothing");
    // Without an id, nothing has to be read: the route's only template is in the head.
    let free = bench.call(&post("/rpc").body(&*large)).await;
    assert_eq!(
        free.status, 200,
        "a request without a once id may have any body: {free:?}"
    );
    let passed = bench.call(&once("/chat").chunked(&[half.as_bytes()])).await;
    assert_eq!(passed.status, 200, "{passed:?}");
    let seen = bench.backend.requests().pop().expect("a request");
    assert_eq!(
        seen.body,
        half.as_bytes(),
        "the backend gets the body as it was sent"
    );
}

#[tokio::test]
async fn a_body_that_is_read_for_its_fingerprint_names_its_call() {
    let bench = Bench::start(&CONFIG.replace("upstream = \"http://127.0.0.1:1\"", "")).await;
    let gated = Request::turn("s1", "gate").header("x-session-id", "s1");
    let held = bench.open(&gated).await;
    let call = Request::post("/rpc").header("x-session-id", "s1");
    let call = call.chunked(&[br#"{"jsonrpc":"2.0","#, br#""id":"call 7"}"#]);
    let named = async |call: Request| bench.call(&call).await.json()["id"].clone();
    let id = named(call.clone()).await;
    assert_eq!(
        id,
        serde_json::Value::Null,
        "only for its call, no body of unknown length is read"
    );
    let id = named(call.header("idempotency-key", "k1")).await;
    assert_eq!(id, "call 7", "the busy response names the call");
    bench.end(held).await;
}

#[tokio::test]
async fn a_large_body_has_the_fingerprint_of_its_bytes() {
    let large = CONFIG.replace("max_body = 1000", "max_body = \"10MiB\"");
    let config = Config::read("test", &large, &Vec::new()).expect("the configuration is valid");
    let mut fingerprints = Vec::new();
    for size in [1 << 10, 100 << 10, 5 << 20] {
        let body = vec![b'x'; size];
        let request = HttpRequest::put("/chat").header("host", "localhost");
        let request = request.header(SESSION.0, SESSION.1).header(K1.0, K1.1);
        let head = request.body(()).expect("a request").into_parts().0;
        let explained = explain(&config, head, body.clone().into()).await;
        let found = explained.once.expect("an id").fingerprint;
        let expected = seriatim::key::OnceId::new("k1").with_request("PUT", "/chat", &body);
        assert_eq!(found, expected.fingerprint, "{size} bytes");
        fingerprints.push(found);
    }
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 3, "each has its own");
}
