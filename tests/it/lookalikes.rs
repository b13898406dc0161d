//! Requests in which some backends find another session: none of them bypasses the lock.

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
[[routes]]
name = "query"
path = "/query"
session_id = ["{query:session_id}"]
[[routes]]
name = "json"
path = "/json"
when = { "{body:/action|/meta/action}" = ["send"] }
session_id = ["{body:/session_id|/meta/id}"]
[[routes]]
name = "either"
path = "/either"
session_id = ["{body:/session_id}", "{query:session_id}"]
"#;

#[tokio::test]
async fn a_cookie_that_backends_parse_differently_is_refused() {
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
        "session_id=A; session_id=A",
        "session.id=A",
        "session_id[]=A",
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
            "{line}: other cookies don't matter, and both spellings name one session"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn an_ambiguous_query_is_refused() {
    let bench = Bench::start(ROUTES).await;
    for query in [
        "session_id[]=s1",
        "session_id%5B0%5D=s1",
        "[session_id]=s1",
        "[[session_id=s1",
        "session[id=s1",
        "session_id]=s1",
        "session.id=s1",
        "session+id=s1",
        "+session_id=s1",
        "SESSION_ID=s1",
        "session_id%00x=s1",
        "session_id%ff=s1",
        "x=1;session_id=s1",
        "session_id=s1;x=1",
        "session_id=s1&session_id=s1",
        "session_id=s1&session_id",
        "session_id=%zz",
        "session_id%=s1",
        "session_id=é",
    ] {
        let request = Request::get(&format!("/query?{query}"));
        bench.refused(query, &request, 400, "ambiguous_key").await;
    }
    for query in ["x[]=1&x[]=2;y&session_id=s1&id=2&%zz", "%73ession_id=s%31"] {
        let request = Request::get(&format!("/query?{query}"));
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{query}: unusual other fields don't matter"
        );
    }
    for target in [
        "/query;?session_id=s1",
        "/query;session_id=s2?session_id=s1",
        "/query%3bx",
    ] {
        let request = Request::get(target);
        bench.refused(target, &request, 400, "ambiguous_key").await;
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_query_field_that_may_override_the_body_is_refused() {
    let bench = Bench::start(ROUTES).await;
    let body = r#"{"action":"send","session_id":"s1"}"#;
    let form = |target: &str| {
        Request::post(target)
            .header("content-type", "application/x-www-form-urlencoded")
            .body("session_id=s1")
    };
    for target in [
        "/json?session_id=s2",
        "/json?session_id=s1",
        "/json?session_id",
        "/json?Session.Id[]=s2",
        "/json?meta[id]=s2",
        "/json?action=stop",
        "/json?meta.action=send",
    ] {
        let request = Request::post(target).json(body);
        bench.refused(target, &request, 400, "ambiguous_key").await;
    }
    let without = Request::post("/json?session_id=s2").json(r#"{"action":"send"}"#);
    bench
        .refused("not in the body", &without, 400, "ambiguous_key")
        .await;
    let another = Request::post("/json?action=send").json(r#"{"session_id":"s1"}"#);
    bench
        .refused("the action", &another, 400, "ambiguous_key")
        .await;
    let request = form("/form?session_id=s1");
    bench
        .refused("a form", &request, 400, "ambiguous_key")
        .await;
    for (case, request) in [
        (
            "other fields",
            Request::post("/json?id=2&meta=1&stream=true").json(body),
        ),
        (
            "the same action",
            Request::post("/json?action=send").json(body),
        ),
        ("of a form", form("/form?id=2")),
        (
            "a route names body and query, and the body comes first",
            Request::post("/either?session_id=s2").json(body),
        ),
        (
            "the query counts if the body has no id",
            Request::post("/either?session_id=s1").json("{}"),
        ),
    ] {
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{case}"
        );
    }
    let declined = Request::post("/json?action=stop").json(r#"{"session_id":"s1"}"#);
    assert_eq!(
        bench.key(&declined).await,
        None,
        "a condition that neither body nor query meets isn't met"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn json_without_a_session_that_also_parses_as_a_form_is_refused() {
    let bench = Bench::start(ROUTES).await;
    let json = |body: &str| {
        let request = Request::post("/either").header("content-type", "application/json");
        request.body(body)
    };
    for body in [
        r#"{"x":"&session_id=s1&"}"#,
        r#"{"session_id":"","x":"a;session_id[]=s1"}"#,
        r#"["&session_id=s1&"]"#,
    ] {
        bench.refused(body, &json(body), 400, "ambiguous_key").await;
    }
    for (body, key) in [
        (
            r#"{"session_id":"s1","x":"&session_id=s2&"}"#,
            Some("lock:session:unknown:s1"),
        ),
        (r#"{"x":"&user_id=u1&"}"#, None),
    ] {
        let found = bench.key(&json(body)).await;
        assert_eq!(
            found.as_deref(),
            key,
            "an unambiguous body is accepted: {body}"
        );
    }
}

#[tokio::test]
async fn a_path_that_backends_normalise_differently_is_refused() {
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
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_host_before_the_path_does_not_bypass_the_lock() {
    let bench = Bench::start(CHAT).await;
    for target in ["//x/chat", "/\\x/chat", "/\\/x/chat", "///x/chat"] {
        let request = Request::post(target).json(r#"{"session_id":"s1"}"#);
        assert_eq!(
            bench.key(&request).await.as_deref(),
            Some("lock:session:unknown:s1"),
            "{target} takes the lock of /chat, as `new URL` reads it"
        );
    }
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_form_with_a_byte_order_mark_is_refused() {
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
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_control_character_in_the_path_is_refused_on_every_route() {
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
        "a query may contain line breaks"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_path_that_matches_without_its_invalid_utf8_is_refused() {
    let bench = Bench::start(&format!("{ROUTES}{CHAT}")).await;
    for target in ["/ch%ffat", "/chat%c3", "/%e4%b8chat", "/p/s1%ff/runs"] {
        let request = Request::post(target).json(r#"{"session_id":"s1"}"#);
        bench.refused(target, &request, 400, "bad_request").await;
    }
    bench.call(&Request::get("/caf%e9?x=%ff")).await;
    let seen = bench
        .backend
        .requests()
        .pop()
        .expect("the backend received the request");
    assert_eq!(
        seen.target, "/caf%e9?x=%ff",
        "any other path is forwarded unchanged"
    );
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn format_suffixes_and_method_overrides_do_not_bypass_the_lock() {
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
            "{case} takes the lock, as some backends run the turn"
        );
    }
    let open = bench.open(&get()).await;
    let head = bench.call(&Request::new("HEAD", "/events?s=s1")).await;
    assert_eq!(
        head.error(),
        (429, "session_busy"),
        "HEAD counts as GET, so it takes the lock"
    );
    let preflight = Request::new("OPTIONS", "/events?s=s1")
        .header("origin", "https://a.example")
        .header("access-control-request-method", "GET");
    assert_eq!(
        bench.call(&preflight).await.status,
        200,
        "a CORS preflight takes no lock"
    );
    bench.end(open).await;
    bench.assert_still_serves().await;
}

#[tokio::test]
async fn a_preflight_is_forwarded_if_its_request_would_match_a_route() {
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
        "conditions on headers and body don't apply to a preflight: {answer:?}"
    );
    for (path, method) in [("/only", "GET"), ("/other", "POST")] {
        let request = preflight(path, method);
        bench.refused(path, &request, 404, "no_route").await;
    }
}
