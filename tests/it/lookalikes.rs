//! Requests whose session some backends read in another way: none of them gets past the lock.

use crate::support::app::CHAT;
use crate::support::bench::Bench;
use crate::support::client::Request;

const ROUTES: &str = r#"
[[routes]]
name = "cookie"
path = "/cookie"
session_id = ["{cookie:session_id}"]
[[routes]]
name = "runs"
path = "/p/{sid}/runs"
session_id = ["{path:sid}"]
[[routes]]
name = "message"
path = "/m/{a}/{b}/runs"
session_id = ["{path:a}"]
[[routes]]
name = "form"
path = "/form"
session_id = ["{form:session_id}"]
"#;

#[tokio::test]
async fn a_cookie_that_some_backends_find_elsewhere_is_refused() {
    let bench = Bench::start(ROUTES).await;
    let with = |line: &str| Request::get("/cookie").header("cookie", line);
    for line in [
        "x=y session_id=AAA",
        "x=y, session_id=AAA",
        "session_id=A B",
        r#"session_id="\101AA""#,
        r#"session_id="A\,B""#,
        "session_id=\"A",
        "session_id=A\"",
        "session_id=A; Session_ID=B",
    ] {
        bench.refused(line, &with(line), 400, "ambiguous_key").await;
    }
    let lines = with("session_id=A").header("cookie", "x=y");
    bench
        .refused("two lines", &lines, 400, "ambiguous_key")
        .await;
    for line in [
        r#"prefs={"a":"b, c"}; session_id=a%3Ab; x="y"#,
        "session_id=a:b",
    ] {
        assert_eq!(
            bench.key(&with(line)).await.as_deref(),
            Some("lock:session:unknown:a%3Ab"),
            "{line}: other cookies don't matter, and both spellings are one session"
        );
    }
    bench.still_serves().await;
}

#[tokio::test]
async fn an_id_in_a_path_that_few_backends_would_find_is_refused() {
    let bench = Bench::start(ROUTES).await;
    for target in [
        "/p/../runs",
        "/p/./runs",
        "/p/%2e%2e/runs",
        "/p/..;/runs",
        "//x/p/s1/runs",
        "/m/p%2fa\\b/runs",
    ] {
        bench
            .refused(target, &Request::get(target), 400, "ambiguous_key")
            .await;
    }
    bench.still_serves().await;
}

#[tokio::test]
async fn a_host_in_front_of_the_path_gets_nobody_past_the_lock() {
    let bench = Bench::start(CHAT).await;
    for target in ["//x/chat", "/\\x/chat", "/\\/x/chat", "///x/chat"] {
        let request = Request::post(target).json(r#"{"session_id":"s1"}"#);
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{target} is /chat to `new URL`"
        );
    }
    bench.still_serves().await;
}

#[tokio::test]
async fn a_form_behind_a_byte_order_mark_is_refused() {
    let bench = Bench::start(ROUTES).await;
    let multipart =
        "--b\r\ncontent-disposition: form-data; name=\"session_id\"\r\n\r\ns1\r\n--b--\r\n";
    for (content_type, body) in [
        ("application/x-www-form-urlencoded", "session_id=s1"),
        ("multipart/form-data; boundary=b", multipart),
    ] {
        let request = Request::post("/form")
            .header("content-type", content_type)
            .body(format!("\u{feff}{body}"));
        bench
            .refused(content_type, &request, 400, "malformed_body")
            .await;
    }
    bench.still_serves().await;
}
