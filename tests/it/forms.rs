//! Session ids in forms, and under one of several names, through the whole proxy.

use crate::support::bench::{Bench, chat};
use crate::support::client::Request;

/// Routes that read JSON or a form, like those of Flowise and n8n; and routes that read only a form.
const FORMS: &str = r#"
[[routes]]
name = "both"
path = "/both"
session_id = ["{body:/sessionId|/session_id}", "{form:sessionId}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}", "{header:x-session}"]
user_id = ["u-{hash:form:user}", "unknown"]
[[routes]]
name = "spelt"
path = "/chat"
session_id = ["{body:/id|/meta/id|/session_id}", "h-{hash:body:/a|/b}"]
[[routes]]
name = "lax"
path = "/lax"
session_id = ["{form:session_id}"]
on_malformed = "pass"
"#;

const MULTIPART: &str = "multipart/form-data; boundary=----b";

/// The first 32 hex digits of the SHA-256 of `1`, by `sha256sum`.
const HASH_OF_1: &str = "6b86b273ff34fce19d6b804eff5a3f57";

fn post(path: &str, content_type: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::post(path)
        .header("content-type", content_type)
        .body(body)
}

fn urlencoded(path: &str, body: &str) -> Request {
    post(path, "application/x-www-form-urlencoded", body)
}

/// A multipart body: a large file, and a field after it.
fn upload(field: &str) -> Vec<u8> {
    let mut body = b"------b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\
        Content-Type: application/octet-stream\r\n\r\n"
        .to_vec();
    body.extend((0..1 << 20).map(|n| (n % 251) as u8));
    body.extend_from_slice(b"\r\n------b\r\nContent-Disposition: form-data; name=\"");
    body.extend_from_slice(field.as_bytes());
    body.extend_from_slice(b"\r\n------b--\r\n");
    body
}

#[tokio::test]
async fn a_form_field_names_the_session() {
    let bench = Bench::start(FORMS).await;
    for (case, request, session) in [
        (
            "urlencoded",
            urlencoded("/form", "a=b&session_id=s+1%2F2"),
            "unknown:s%201/2",
        ),
        (
            "a hashed field",
            urlencoded("/form", "user=1&session_id=s"),
            &*format!("u-{HASH_OF_1}:s"),
        ),
        (
            "a field after a large file",
            post("/form", MULTIPART, upload("session_id\"\r\n\r\ns1")),
            "unknown:s1",
        ),
        (
            "a form where both kinds are allowed",
            urlencoded("/both", "sessionId=s1"),
            "unknown:s1",
        ),
        (
            "JSON where both kinds are allowed",
            post("/both", "application/json", r#"{"session_id": "s1"}"#),
            "unknown:s1",
        ),
        (
            "a body without a content type, as JSON",
            Request::post("/both").body(r#"{"sessionId": "s1"}"#),
            "unknown:s1",
        ),
        (
            "an empty field, and the next template",
            urlencoded("/form", "session_id=").header("x-session", "s1"),
            "unknown:s1",
        ),
        (
            "JSON without a member of the field's name",
            post("/form", "application/json", r#"{"id":"s2"}"#).header("x-session", "s1"),
            "unknown:s1",
        ),
        (
            "JSON with the content type of a form, as curl sends it",
            urlencoded("/both", r#"{"session_id":"s1","x":"a&b=c;d"}"#),
            "unknown:s1",
        ),
        (
            "a form without a content type",
            Request::post("/form").body("session_id=s1"),
            "unknown:s1",
        ),
    ] {
        let expected = Some(format!("lock:session:{session}"));
        assert_eq!(bench.key(&request).await, expected, "{case}");
    }
    for (case, request) in [
        ("a form without the field", urlencoded("/both", "id=s1")),
        (
            "JSON without the member",
            post("/both", "application/json", "{}"),
        ),
        ("no body", Request::post("/form")),
        ("a malformed form", post("/lax", MULTIPART, "session_id=1")),
    ] {
        assert_eq!(
            bench.key(&request).await,
            None,
            "{case}: a request without a session passes"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_form_that_two_parsers_may_read_differently_is_refused() {
    let bench = Bench::start(FORMS).await;
    for (case, request) in [
        (
            "two values",
            urlencoded("/form", "session_id=a&session_id=b"),
        ),
        (
            "twice the same value",
            urlencoded("/form", "session_id=a&session_id=a"),
        ),
        (
            "JSON for a parser of members, a form for others",
            urlencoded("/both", r#"{"session_id":"s1","x":"&session_id=s2&"}"#),
        ),
        (
            "the same, with a name that the route has as member and field",
            urlencoded("/both", r#"{"sessionId":"s1","x":"&sessionId=s2&"}"#),
        ),
        (
            "the same, without a content type",
            Request::post("/both").body(r#"{"session_id":"s1","x":"&session_id=s2&"}"#),
        ),
        (
            "JSON with a member of the field's name",
            urlencoded("/form", r#"{"session_id":"s1"}"#),
        ),
        (
            "JSON with such a member, with the content type of JSON",
            post("/form", "application/json", r#"{"session_id":"s1"}"#).header("x-session", "s"),
        ),
        (
            "a form in JSON, with the content type of JSON, as Bottle reads it",
            post("/form", "application/json", r#"{"x":"&session_id=s1&"}"#),
        ),
        (
            "a form with a field of a member's name",
            urlencoded("/both", "session_id=s1"),
        ),
        (
            "a part with a member's name",
            post("/both", MULTIPART, upload("session_id\"\r\n\r\ns1")),
        ),
        (
            "brackets of PHP and qs",
            urlencoded("/form", "session_id[]=a"),
        ),
        ("another letter case", urlencoded("/form", "Session_Id=a")),
        (
            "python-multipart splits at ;",
            urlencoded("/form", "x=1;session_id=a"),
        ),
        (
            "a file with the field's name",
            post(
                "/form",
                MULTIPART,
                upload("session_id\"; filename=\"\"\r\n\r\ns1"),
            ),
        ),
        (
            "two content types",
            urlencoded("/form", "session_id=a").header("content-type", "text/plain"),
        ),
    ] {
        bench.refused(case, &request, 400, "ambiguous_key").await;
    }
    for (case, request) in [
        (
            "no boundary in the body",
            post("/form", MULTIPART, "session_id=1"),
        ),
        (
            "a truncated body",
            post("/form", MULTIPART, &upload("x\"\r\n\r\ns1")[..1 << 20]),
        ),
        (
            "bare line feeds",
            post(
                "/form",
                MULTIPART,
                upload(
                    "x\"\r\n\r\na\n------b\nContent-Disposition: form-data; name=session_id\n\nx",
                ),
            ),
        ),
        (
            "truncated JSON with the content type of a form",
            urlencoded("/both", r#"{"sessionId":"s1""#),
        ),
        (
            "JSON with a multipart content type and its boundary",
            post("/both", MULTIPART, r#"{"sessionId":"s1","x":"------b"}"#),
        ),
        (
            "a form with the content type of JSON",
            post("/both", "application/json", "sessionId=s1"),
        ),
        (
            "multipart/mixed",
            post("/form", "multipart/mixed; boundary=x", "--x--"),
        ),
        (
            "a charset other than UTF-8",
            post(
                "/form",
                "application/x-www-form-urlencoded; charset=latin1",
                "session_id=a",
            ),
        ),
    ] {
        bench.refused(case, &request, 400, "malformed_body").await;
    }
    let binary = urlencoded("/form", "session_id=%ff");
    bench
        .refused("a value that is not text", &binary, 400, "bad_session_id")
        .await;
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn any_of_several_names_can_name_the_session() {
    let bench = Bench::start(FORMS).await;
    for (body, session) in [
        (r#"{"id":"s"}"#, "s"),
        (r#"{"meta":{"id":"s"}}"#, "s"),
        (r#"{"session_id":"s"}"#, "s"),
        (r#"{"id":null,"meta":{"id":""},"session_id":"s"}"#, "s"),
        (r#"{"id":7,"session_id":"7"}"#, "7"),
        (r#"{"id":"\u0073","session_id":"s"}"#, "s"),
        (r#"{"b":1}"#, &*format!("h-{HASH_OF_1}")),
        (r#"{"a":1,"b":1}"#, &*format!("h-{HASH_OF_1}")),
        (r#"{"a":0,"b":1}"#, &*format!("h-{HASH_OF_1}")),
    ] {
        let expected = Some(format!("lock:session:unknown:{session}"));
        assert_eq!(bench.key(&chat(body)).await, expected, "{body}");
    }
    for body in [
        r#"{"id":"a","session_id":"b"}"#,
        r#"{"id":"a","meta":{"id":null},"session_id":"b"}"#,
        r#"{"id":"a","session_id":{}}"#,
        r#"{"id":"a","ID":"a"}"#,
        r#"{"a":1,"b":2}"#,
        r#"{"a":"x","b":"\u0078"}"#,
        r#"[{"id":"a"}]"#,
    ] {
        bench.refused(body, &chat(body), 400, "ambiguous_key").await;
    }
    bench
        .refused(
            "neither value is an id",
            &chat(r#"{"id":{},"session_id":{}}"#),
            400,
            "bad_session_id",
        )
        .await;
    bench.assert_still_serves().await;
}
