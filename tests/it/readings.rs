//! Bodies that some backends can read and others can't: none of them bypasses the lock.

use std::collections::BTreeSet;

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

/// Each source once.
const AMBIGUOUS: &str = r#"
[[routes]]
name = "header"
path = "/header"
session_id = ["{header:x-id}"]
[[routes]]
name = "cookie"
path = "/cookie"
session_id = ["{cookie:sid}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}"]
[[routes]]
name = "path"
path = "/path/{id}/c"
session_id = ["{path:id}"]
[[routes]]
name = "query"
path = "/query"
session_id = ["{query:q}"]
[[routes]]
name = "json"
path = "/json"
session_id = ["{body:/session_id}"]
[[routes]]
name = "cases"
path = "/cases"
session_id = ["{body:/a|/A}"]
[[routes]]
name = "two"
path = "/two"
session_id = ["{body:/a|/b}"]
[[routes]]
name = "when"
path = "/when"
when = { "{body:/method}" = "send" }
session_id = ["{header:x-id}"]
[[routes]]
name = "any"
path = "/any"
session_id = ["{body:/session_id}"]
on_malformed = "pass_non_json"
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

/// A multipart body with one part of this head and content.
fn part(disposition: &str, more: &str, content: &str) -> Request {
    let body = format!(
        "--b\r\ncontent-disposition: form-data; {disposition}\r\n{more}\r\n{content}\r\n--b--\r\n"
    );
    post("/form", body).header("content-type", "multipart/form-data; boundary=b")
}

/// One request for each way to be ambiguous, and the words that only its text has.
fn ambiguous() -> Vec<(Request, &'static str, &'static str)> {
    let urlencoded = "application/x-www-form-urlencoded";
    let form = |body: &str| post("/form", body).header("content-type", urlencoded);
    let json = |body: &str| post("/json", body);
    let cookie = |line: &str| Request::get("/cookie").header("cookie", line);
    let header = |name: &str| Request::get("/header").header(name, "a");
    let (name, field) = (r#"name="session_id""#, "{form:session_id}");
    let (member, sid) = ("{body:/session_id}", "{cookie:sid}");
    vec![
        (
            header("x-id").header("x-id", "a"),
            "{header:x-id}",
            "the header occurs more than once",
        ),
        (header("x_id"), "{header:x-id}", "another header has a name"),
        (
            cookie("sid=a; sid=a"),
            sid,
            "the cookie occurs more than once",
        ),
        (cookie("SID=a"), sid, "a cookie has another name"),
        (cookie("x=y, sid=a"), sid, "in the middle of a cookie"),
        (
            cookie("sid =a"),
            sid,
            "white space is between its name and the =",
        ),
        (
            cookie("x=\"y; sid=a; z\""),
            sid,
            "between quotes that another cookie opens",
        ),
        (
            cookie("sid=a").header("cookie", "x=y"),
            sid,
            "several cookie headers",
        ),
        (
            cookie("sid=a,b"),
            sid,
            "its value has white space, a comma, a quote or a backslash",
        ),
        (
            cookie("sid=a\u{a0}"),
            sid,
            "begins or ends with what some servers take for white space",
        ),
        (cookie("sid=j%3A1"), sid, "its value begins with j:"),
        (
            cookie("sid=%41%zz"),
            sid,
            "its value has a % that begins no escape",
        ),
        (
            cookie("sid=a%20b"),
            sid,
            "its value has an encoded space or an encoded quote",
        ),
        (cookie("sid=a%ff"), sid, "its decoded value is not UTF-8"),
        (
            form("session_id=a&session_id=a"),
            field,
            "the field occurs more than once",
        ),
        (form("session_id[]=a"), field, "a field has another name"),
        (
            form("x=1;session_id=a"),
            field,
            "a semicolon is next to the field",
        ),
        (form("session_id=\u{e9}"), field, "characters beyond ASCII"),
        (
            form("session_id=%zz"),
            field,
            "the field has a % that begins no escape",
        ),
        (form("session_id=a]=b"), field, "the field's value has ]="),
        (
            post("/form", r#"{"x":"&session_id=a"}"#),
            field,
            "the field is in the middle of JSON",
        ),
        (
            part(&format!(r#"{name}; filename="f""#), "", "a"),
            field,
            "the field is a file",
        ),
        (
            part(name, "content-transfer-encoding: base64\r\n", "YQ=="),
            field,
            "has a content-transfer-encoding",
        ),
        (
            part(name, "content-type: image/png\r\n", "a"),
            field,
            "other than text in UTF-8",
        ),
        (
            part(name, "", "\u{feff}a"),
            field,
            "begins with a byte order mark",
        ),
        (
            Request::get("/path/a%2Fb/c"),
            "{path:id}",
            "an encoded slash or a backslash",
        ),
        (Request::get("/path//a/c"), "{path:id}", "a doubled slash"),
        (
            Request::get("/path/./a/c"),
            "{path:id}",
            "a segment of dots",
        ),
        (
            Request::get("/path/a;v=1/c"),
            "{path:id}",
            "some servers cut off",
        ),
        (Request::get("/path/a%20b/c"), "{path:id}", "a space"),
        (
            Request::get("/query;v=1?q=a"),
            "{query:q}",
            "as fields of the query",
        ),
        (
            json(r#"{"session_id":"a","session_id":"a"}"#),
            member,
            "the member, or one on the path to it, occurs more than once",
        ),
        (
            json(r#"{"Session_ID":"a"}"#),
            member,
            "has its name in another case",
        ),
        (
            post("/cases", r#"{"a":"1"}"#),
            "{body:/a|/A}",
            "two members whose names differ only in case",
        ),
        (
            post("/two", r#"{"a":"1","b":"2"}"#),
            "{body:/a|/b}",
            "have different values",
        ),
        (
            json(r#"[{"session_id":"a"}]"#),
            member,
            "the member may be in any of them",
        ),
        (
            post("/when", r#"[{"method":"send"}]"#),
            "{body:/method}",
            "one of them may be a turn",
        ),
        (
            post("/json?session_id=b", r#"{"session_id":"a"}"#),
            member,
            "the query has a field in its place",
        ),
        (
            json(r#"{"session_id":"a","x":"&session_id=b&"}"#).header("content-type", urlencoded),
            member,
            "send JSON with content-type: application/json",
        ),
        (
            json(r#"{"x":"&session_id=b&"}"#).header("content-type", "application/json"),
            member,
            "the JSON doesn't have it",
        ),
        (post("/any", "session_id=a"), member, "the body isn't JSON"),
        (
            post("/form", r#"{"session_id":"a"}"#),
            field,
            "the body is JSON with a member",
        ),
    ]
}

#[tokio::test]
async fn each_kind_of_ambiguity_is_refused_with_its_own_text() {
    let bench = Bench::start(AMBIGUOUS).await;
    let cases = ambiguous();
    let mut texts = BTreeSet::new();
    for (request, place, cause) in &cases {
        bench.refused(cause, request, 400, "ambiguous_key").await;
        let answer = bench.call(request).await.json();
        let text = answer["detail"].as_str().expect("a text").to_owned();
        let reason = text.strip_prefix(&format!("{place} is ambiguous: "));
        let reason = reason.unwrap_or_else(|| panic!("{place} is ambiguous: {text}"));
        assert!(reason.contains(cause), "{cause}: {reason}");
        texts.insert(reason.to_owned());
    }
    assert_eq!(texts.len(), cases.len(), "no two kinds have the same text");
    let sources = [
        include_str!("../../src/proxy/session/ambiguity.rs"),
        include_str!("../../src/proxy/route/path.rs"),
    ];
    let kinds = sources.iter().flat_map(|source| source.lines());
    let kinds = kinds.filter(|line| line.trim_start().starts_with("#[error("));
    // Not here: the kind that has the path's kinds in it, and the one that no valid configuration gets.
    assert_eq!(texts.len(), kinds.count() - 2, "each kind has its row");
}

#[tokio::test]
async fn an_ambiguous_header_that_seriatim_itself_reads_is_refused_with_the_cause() {
    const TWICE: &str = "the header occurs more than once";
    const ALIKE: &str = "another header has a name";
    let bench = Bench::start(AMBIGUOUS).await;
    let json = || post("/json", r#"{"session_id":"a"}"#);
    let kind = "application/json";
    for (request, place, cause) in [
        (
            json().header("host", "a").header("host", "a"),
            "host",
            TWICE,
        ),
        (
            json()
                .header("content-type", kind)
                .header("content-type", kind),
            "content-type",
            TWICE,
        ),
        (
            json()
                .header("content-type", kind)
                .header("content_type", kind),
            "content-type",
            ALIKE,
        ),
        (
            json().header("content_encoding", "identity"),
            "content-encoding",
            ALIKE,
        ),
    ] {
        bench.refused(place, &request, 400, "ambiguous_key").await;
        let answer = bench.call(&request).await.json();
        let expected = format!("{{header:{place}}} is ambiguous: {cause}");
        let text = answer["detail"].as_str().expect("a text");
        assert!(text.starts_with(&expected), "{expected}: {text}");
    }
    let lines = json()
        .header("content-encoding", "identity")
        .header("content-encoding", "identity");
    let key = bench.key(&lines).await;
    let expected = Some("lock:session:unknown:a");
    assert_eq!(
        key.as_deref(),
        expected,
        "encodings may be on several lines"
    );
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
