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

#[tokio::test]
async fn a_control_character_in_the_path_is_refused_whatever_the_route() {
    let free = "[[routes]]\nname = \"free\"\npath = \"/free/{*rest}\"\nlock = false\n";
    let bench = Bench::start(&format!("{free}{CHAT}")).await;
    for target in [
        "/chat%0A",
        "/chat%0a",
        "/chat%00",
        "/%0Dchat",
        "/free/x%0A",
        "/elsewhere%7F?q",
    ] {
        for method in ["POST", "GET", "PUT"] {
            let request = Request::new(method, target).json(r#"{"session_id":"s1"}"#);
            bench.refused(target, &request, 400, "bad_request").await;
        }
    }
    let query = Request::get("/elsewhere?q=a%0Ab");
    assert_eq!(
        bench.call(&query).await.status,
        200,
        "a message in a query may have lines"
    );
    bench.still_serves().await;
}

#[tokio::test]
async fn a_path_that_is_a_turns_without_bytes_that_are_not_utf8_is_refused() {
    let bench = Bench::start(&format!("{ROUTES}{CHAT}")).await;
    for target in ["/ch%ffat", "/chat%c3", "/%e4%b8chat", "/p/s1%ff/runs"] {
        let request = Request::post(target).json(r#"{"session_id":"s1"}"#);
        bench.refused(target, &request, 400, "bad_request").await;
    }
    bench.call(&Request::get("/caf%e9?x=%ff")).await;
    let seen = bench.backend.requests().pop().expect("it arrived");
    assert_eq!(
        seen.target, "/caf%e9?x=%ff",
        "another one passes as it was sent"
    );
    bench.still_serves().await;
}

#[tokio::test]
async fn formats_methods_and_their_overrides_get_nobody_past_the_lock() {
    const METHODS: &str = r#"
        [[routes]]
        name = "events"
        path = "/events"
        methods = ["GET"]
        session_id = ["{query:s}"]
        [[routes]]
        name = "put"
        path = "/put"
        methods = ["PUT"]
        session_id = ["{query:s}"]
    "#;
    let bench = Bench::start(METHODS).await;
    let get = || Request::get("/events?s=s1");
    for (case, request) in [
        ("a format", Request::get("/events.json?s=s1")),
        (
            "an override",
            Request::post("/put?s=s1").header("x-http-method-override", "PUT"),
        ),
        (
            "another one",
            Request::get("/put.xml?s=s1").header("x_method_override", "put"),
        ),
    ] {
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{case} is a turn to some backend"
        );
    }
    let open = bench.open(&get()).await;
    let head = bench.call(&Request::new("HEAD", "/events?s=s1")).await;
    assert_eq!(
        head.error(),
        (429, "session_busy"),
        "HEAD runs what GET does, and so is a turn"
    );
    let preflight = Request::new("OPTIONS", "/events?s=s1")
        .header("origin", "https://a.example")
        .header("access-control-request-method", "GET");
    assert_eq!(
        bench.call(&preflight).await.status,
        200,
        "what a browser asks before a turn is none"
    );
    bench.end(open).await;
    bench.still_serves().await;
}

#[tokio::test]
async fn a_preflight_passes_where_only_its_request_has_a_route() {
    const ONLY: &str = r#"
        unmatched = "reject"
        [[routes]]
        name = "only"
        path = "/only"
        methods = ["POST"]
        headers = { x-kind = "*" }
        when = { "{body:/method}" = "send" }
        session_id = ["{header:x-kind}"]
        on_missing = "reject"
    "#;
    let bench = Bench::start(ONLY).await;
    let preflight = |path: &str, method: &str| {
        Request::new("OPTIONS", path)
            .header("origin", "https://a.example")
            .header("access-control-request-method", method)
    };
    let answer = bench.call(&preflight("/only", "POST")).await;
    assert_eq!(
        answer.status, 200,
        "its headers and body come later: {answer:?}"
    );
    for (path, method) in [("/only", "GET"), ("/other", "POST")] {
        let request = preflight(path, method);
        bench.refused(path, &request, 404, "no_route").await;
    }
}
