//! Bodies that some backends can read and others can't: none of them bypasses the lock.

use crate::support::bench::Bench;
use crate::support::client::Request;

const ROUTES: &str = r#"
[[routes]]
name = "anywhere"
methods = ["POST"]
session_id = ["{body:/threadId}"]
on_malformed = "pass_non_json"
user_id = ["any"]
"#;

const FORM: &str = r#"
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}"]
[[routes]]
name = "json"
path = "/json"
session_id = ["{body:/session_id}"]
[[routes]]
preset = "adk"
key = "own:{session_id}"
"#;

const EITHER: &str = r#"
[[routes]]
name = "either"
path = "/either"
session_id = ["{body:/session_id}", "{form:session_id}"]
on_missing = "pass"
[[routes]]
name = "JSON chat"
path = "/action"
session_id = ["{body:/session_id}"]
when = { "{body:/action}" = "chat" }
[[routes]]
name = "form chat"
path = "/action"
session_id = ["{form:session_id}"]
when = { "{form:action}" = "chat" }
[[routes]]
name = "anything else"
path = "/action"
lock = false
"#;

fn post(path: &str, body: impl Into<Vec<u8>>) -> Request {
    Request::post(path).body(body)
}

#[tokio::test]
async fn on_malformed_pass_non_json_still_refuses_what_may_be_json() {
    let bench = Bench::start(ROUTES).await;
    let nested = format!(
        "{{\"threadId\":\"t\",\"x\":{}{}}}",
        "[".repeat(200),
        "]".repeat(200)
    );
    let cases: [(&str, Vec<u8>); _] = [
        (
            "an invalid number",
            b"{\"threadId\":\"t\",\"x\":NaN}".to_vec(),
        ),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"threadId\":\"t\"}".to_vec(),
        ),
        ("deep nesting", nested.into_bytes()),
        ("a comment", b"/* */ {\"threadId\":\"t\"}".to_vec()),
        ("a line comment", b"// x\n{\"threadId\":\"t\"}".to_vec()),
        (
            "UTF-16",
            "{\"threadId\":\"t\"}"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect(),
        ),
        (
            "UTF-16, big endian",
            "{\"threadId\":\"t\"}"
                .encode_utf16()
                .flat_map(u16::to_be_bytes)
                .collect(),
        ),
        ("an incomplete document", b" {\"threadId\":\"t\"".to_vec()),
        ("a vertical tab", b"\x0b{\"threadId\":\"t\"}".to_vec()),
        (
            "a space of Unicode",
            b"\xc2\xa0{\"threadId\":\"t\"}".to_vec(),
        ),
        (
            "a byte order mark after a space",
            b" \xef\xbb\xbf\xef\xbb\xbf {\"threadId\":\"t\"}".to_vec(),
        ),
        ("a space of Latin-1", b"\xa0{\"threadId\":\"t\"}".to_vec()),
    ];
    for (what, body) in cases {
        bench
            .refused(what, &post("/agent", body), 400, "malformed_body")
            .await;
    }
    let plain = post("/agent", r#"{"threadId":"t"}"#);
    let unknown = plain.clone().header("content-encoding", "utf-8");
    bench
        .refused(
            "an encoding that backends ignore",
            &unknown,
            415,
            "unsupported_encoding",
        )
        .await;
    let broken = plain.header("content-encoding", "gzip");
    bench
        .refused(
            "an encoding that isn't there",
            &broken,
            400,
            "malformed_body",
        )
        .await;
    for charset in ["utf-7", "UTF_16", "cp037", "hz", "iso-2022-jp", "utf-8-sig"] {
        for kind in ["application/json", "text/plain"] {
            let kind = format!("{kind}; charset={charset}");
            let request = post("/agent", "+AHs-...").header("content-type", &kind);
            bench.refused(&kind, &request, 400, "malformed_body").await;
        }
    }
    for kind in ["application/json", "application/x+json", "text/JSON"] {
        let declared = post("/agent", "?{\"threadId\":\"t\"}").header("content-type", kind);
        bench.refused(kind, &declared, 400, "malformed_body").await;
    }
    for body in [
        "a=b",
        "--x\r\n",
        "\u{1f600}",
        "<xml/>",
        "// x\nint main() {}",
        "/* x",
        "\0\0\0\u{18}ftypmp42",
    ] {
        let key = bench.key(&post("/upload", body)).await;
        assert_eq!(
            key, None,
            "a body that clearly isn't JSON is forwarded: {body:?}"
        );
    }
    let latin = post("/upload", &b"<p>\xe9</p>"[..]);
    let latin = latin.header("content-type", "text/html; charset=iso-8859-1");
    let key = bench.key(&latin).await;
    assert_eq!(key, None, "a charset that extends ASCII is forwarded too");
}

#[tokio::test]
async fn pass_non_json_refuses_a_form_with_the_session_field() {
    let bench = Bench::start(ROUTES).await;
    let urlencoded = "application/x-www-form-urlencoded";
    let multipart = "multipart/form-data; boundary=b";
    let part = |name: &str, line: &str| {
        format!(
            "--b{line}content-disposition: form-data; name=\"{name}\"{line}{line}t{line}--b--{line}"
        )
    };
    for (kind, body) in [
        (urlencoded, "threadId=t".to_owned()),
        (urlencoded, "x=1&ThreadId[]=t".to_owned()),
        (multipart, part("threadId", "\r\n")),
    ] {
        let request = post("/agent", body.clone()).header("content-type", kind);
        bench.refused(&body, &request, 400, "ambiguous_key").await;
    }
    let latin = "text/plain; charset=iso-8859-1";
    let odd_text = post("/agent", "threadId=t").header("content-type", latin);
    bench.refused(latin, &odd_text, 400, "ambiguous_key").await;
    for kind in [
        "application/x-www-form-urlencoded; charset=iso-8859-1",
        "application/x-www-form-urlencoded;x=y",
        "multipart/form-data; boundary=b; charset=latin1",
        "multipart/form-data; boundary=b; a=b",
        "multipart/form-data; boundary='b'",
    ] {
        let body = match kind.starts_with("multipart") {
            true => part("threadId", "\r\n"),
            false => "threadId=t".to_owned(),
        };
        let request = post("/agent", body).header("content-type", kind);
        bench.refused(kind, &request, 400, "malformed_body").await;
    }
    let undeclared = post("/agent", "threadId=t");
    bench
        .refused("without a content type", &undeclared, 400, "ambiguous_key")
        .await;
    let odd = post("/agent", part("threadId", "\n")).header("content-type", multipart);
    bench
        .refused(
            "parts that only some parsers can read",
            &odd,
            400,
            "malformed_body",
        )
        .await;
    for (kind, body) in [
        (urlencoded, "thread=t".to_owned()),
        (multipart, part("thread", "\r\n")),
    ] {
        let request = post("/upload", body).header("content-type", kind);
        assert_eq!(
            bench.key(&request).await,
            None,
            "a form without the session field is forwarded: {kind}"
        );
    }
}

#[tokio::test]
async fn a_body_that_changes_its_meaning_when_decoded_is_refused() {
    let bench = Bench::start(FORM).await;
    let form = "application/x-www-form-urlencoded";
    // A backend that doesn't decode reads the file name in the gzip header as a field.
    let mut gzip = flate2::GzBuilder::new()
        .filename("&session_id=other&x=")
        .write(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, b"session_id=s").expect("the body is encoded");
    let encoded = gzip.finish().expect("the body is encoded");
    let request = post("/form", encoded)
        .header("content-type", form)
        .header("content-encoding", "gzip");
    bench
        .refused("an encoded form", &request, 415, "unsupported_encoding")
        .await;
    for charset in ["utf-7", "unicode_escape", "utf-16", "latin1"] {
        let kind = format!("application/json; charset={charset}");
        let request = post("/json", r#"{"session_id":"+AEE-"}"#).header("content-type", &kind);
        bench
            .refused(charset, &request, 400, "malformed_body")
            .await;
    }
    for kind in [
        "application/json",
        "application/json; charset=UTF-8",
        "application/json;charset=\"utf-8\"",
        "text/plain",
        // What curl declares by default.
        "application/x-www-form-urlencoded",
    ] {
        let request = post("/json", r#"{"session_id":"s"}"#).header("content-type", kind);
        let key = bench.key(&request).await;
        assert_eq!(
            key.as_deref(),
            Some("lock:session:unknown:s"),
            "JSON is UTF-8: {kind}"
        );
    }
}

#[tokio::test]
async fn a_body_that_may_be_json_is_not_read_as_a_form() {
    let bench = Bench::start(EITHER).await;
    let json = r#"{"session_id":"s","action":"chat"}"#;
    let marked = format!("\u{feff}{json}").into_bytes();
    let wide: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (kind, body) in [
        ("text/plain", &marked),
        ("application/problem+json", &marked),
        ("text/plain", &wide),
        ("application/x-www-form-urlencoded", &wide),
    ] {
        for path in ["/either", "/action"] {
            let request = post(path, body.clone()).header("content-type", kind);
            bench.refused(kind, &request, 400, "malformed_body").await;
        }
    }
    let form = post("/action", "action=stop");
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    assert_eq!(
        bench.key(&form).await,
        None,
        "a plain form is read as a form"
    );
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_with_the_cause() {
    let bench = Bench::start(FORM).await;
    let form = "application/x-www-form-urlencoded";
    for (request, cause) in [
        (
            post("/json?session_id=s2", r#"{"session_id":"s"}"#),
            "the query has a field of its name",
        ),
        (
            post("/json", r#"{"session_id":"s","x":"&session_id=t&"}"#)
                .header("content-type", form),
            "content-type: application/json",
        ),
        (
            post("/json", r#"{"session_id":"s","Session_ID":"s"}"#),
            "in another case",
        ),
        (post("/form", r#"{"session_id":"s"}"#), "the body is JSON"),
        (
            post("/form", "session_id=s&session_id=s"),
            "the field occurs more than once",
        ),
        (
            post("/json", r#"{"session_id":"s"}"#)
                .header("content-type", form)
                .header("content-type", form),
            "the header occurs more than once",
        ),
    ] {
        let answer = bench.call(&request).await;
        assert_eq!(answer.error(), (400, "ambiguous_key"), "{cause}");
        let text = answer.text();
        assert!(text.contains(cause), "{cause}: {text}");
    }
}

#[tokio::test]
async fn a_key_without_the_user_needs_no_user_id() {
    let bench = Bench::start(FORM).await;
    let body = r#"{"appName":"a","sessionId":"s","userId":true}"#;
    let key = bench.key(&post("/run", body)).await;
    assert_eq!(
        key.as_deref(),
        Some("own:s"),
        "the user id isn't needed if the key doesn't contain it"
    );
}
