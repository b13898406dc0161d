//! Which methods a request is taken for, what a preflight is, and which trailers are announced.

use super::*;

const METHODS: &str = r#"
    [[routes]]
    name = "free"
    path = "/t"
    methods = ["GET", "DELETE"]
    lock = false
    [[routes]]
    name = "put"
    path = "/t"
    methods = ["PUT"]
    session_id = ["{header:x}"]
    [[routes]]
    name = "get"
    path = "/events"
    methods = ["GET"]
    headers = { x-kind = "*" }
    when = { "{query:q}" = "1" }
    session_id = ["{header:x}"]
    [[routes]]
    name = "any"
    path = "/any"
    session_id = ["{header:x}"]
"#;

#[test]
fn a_method_is_each_that_a_backend_may_take_it_for() {
    let router = router(METHODS);
    let of = |method: &str, path: &str, headers: &[(&'static str, &str)]| {
        let mut head = head(method, path);
        head.headers.insert("x-kind", "a".parse().unwrap());
        for (name, value) in headers {
            head.headers.append(*name, value.parse().unwrap());
        }
        name(&router, &head)
    };
    assert_eq!(
        of("HEAD", "/events", &[]).as_deref(),
        Some("get"),
        "HEAD runs what GET does"
    );
    assert_eq!(
        of("head", "/events", &[]).as_deref(),
        Some("get"),
        "in any case"
    );
    assert_eq!(
        of("HEAD", "/t", &[]),
        None,
        "a route that doesn't lock takes its own"
    );
    assert_eq!(of("POST", "/t", &[]), None, "POST is none of them");
    for name in [
        "x-http-method-override",
        "x-method-override",
        "x-http-method",
        "x_http_method_override",
        "x.http.method.override",
    ] {
        for value in ["PUT", "put", "PATCH, PUT"] {
            assert_eq!(
                of("POST", "/t", &[(name, value)]).as_deref(),
                Some("put"),
                "{name}: {value} makes it a PUT"
            );
        }
        assert_eq!(
            of("GET", "/t", &[(name, "PUT")]).as_deref(),
            Some("put"),
            "{name} leads away from a route that doesn't lock"
        );
        assert_eq!(
            of("POST", "/t", &[(name, "GET")]),
            None,
            "and not to one: {name}"
        );
        assert_eq!(
            of("DELETE", "/t", &[(name, "GET")]).as_deref(),
            Some("free"),
            "unless it has both: {name}"
        );
    }
}

#[test]
fn a_preflight_goes_where_its_request_will_and_is_no_turn() {
    let router = router(METHODS);
    let preflight = |path: &str, asks: &str| {
        let mut head = head("OPTIONS", path);
        let headers = &mut head.headers;
        headers.insert("origin", "https://a.example".parse().unwrap());
        headers.insert("access-control-request-method", asks.parse().unwrap());
        head
    };
    for (path, asks, expected) in [
        ("/t", "PUT", Some("put")),
        ("/t", "GET", Some("free")),
        ("/t", "POST", None),
        ("/events", "GET", Some("get")),
        ("/any", "POST", Some("any")),
        ("/other", "POST", None),
    ] {
        let head = preflight(path, asks);
        let candidates = candidates(&router, &head);
        let found: Vec<_> = candidates.iter().collect();
        assert_eq!(
            found.first().map(|matched| &*matched.route.name),
            expected,
            "{asks} {path}"
        );
        assert!(
            found
                .iter()
                .all(|matched| matched.route.turn.is_none() && matched.route.when.is_empty()),
            "{asks} {path}: nothing is asked of it"
        );
    }
    for (header, value) in [
        ("origin", None),
        ("access-control-request-method", None),
        ("x-http-method-override", Some("POST")),
        ("x", Some("s1")),
        ("cookie", Some("x=s1")),
        ("authorization", Some("Bearer x")),
        ("content-type", Some("text/plain")),
    ] {
        let mut head = preflight("/any", "POST");
        match value {
            Some(value) => drop(head.headers.insert(header, HeaderValue::from_static(value))),
            None => drop(head.headers.remove(header)),
        }
        let candidates = candidates(&router, &head);
        let first = candidates.iter().next().unwrap();
        assert!(first.route.turn.is_some(), "no browser sends it: {header}");
    }
    let with_body = preflight("/any", "POST");
    let found = router.route(&with_body, true).unwrap();
    let first = found.iter().next().unwrap();
    assert!(first.route.turn.is_some(), "no browser sends a body in it");
    let mut post = preflight("/any", "POST");
    post.method = http::Method::POST;
    let candidates = candidates(&router, &post);
    let first = candidates.iter().next().unwrap();
    assert!(
        first.route.turn.is_some(),
        "its headers alone make no preflight"
    );
}

#[test]
fn a_trailer_that_would_be_a_header_is_not_announced() {
    let router = router(
        r#"
        [[routes]]
        name = "a"
        path = "/a"
        headers = { x-kind = "*" }
        when = { "{header:x-when}" = "1" }
        session_id = ["{header:x-session-id}", "{hash:header:x-hashed}"]
        "#,
    );
    let announcing = |names: &'static str| {
        let mut head = head("POST", "/elsewhere");
        head.headers
            .append("trailer", HeaderValue::from_static("x-sum"));
        head.headers
            .append("trailer", HeaderValue::from_static(names));
        router.route(&head, false).err()
    };
    for names in [
        "x-session-id",
        "X-Session-Id",
        "x_session_id",
        "x.session.id",
        "x-a, x-hashed",
        "x-when",
        "x-kind",
        "x-forwarded-for",
        "x_forwarded_host",
        "Forwarded",
        "x-real-ip",
        "x-seriatim-fence",
        "x-http-method-override",
        "authorization",
        "cookie",
    ] {
        assert_eq!(announcing(names), Some(TRAILER), "{names} means something");
    }
    for names in ["x-checksum", "x-session", "", ","] {
        assert_eq!(announcing(names), None, "{names:?} means nothing here");
    }
}

#[test]
fn a_header_that_names_another_path_leads_to_no_turn() {
    let router = router(PATHS);
    let with = |path: &str, name: &str, value: &str| {
        let mut head = head("POST", path);
        let name: HeaderName = name.parse().unwrap();
        head.headers.insert(name, value.parse().unwrap());
        head
    };
    for (path, name, value) in [
        ("/x/chat", "script_name", "/x"),
        ("/a/x/chat", "script-name", "/x"),
        ("/", "x-original-url", "/chat"),
        ("/", "x_rewrite_url", "http://agent.example/chat?x=1"),
        ("/threads/a/runs", "x-original-url", "/threads/b/runs"),
        ("/", "x-original-url", "/chat?a b"),
        ("/", "x-original-url", "/chat#a^b"),
        ("/", "x-original-url", "http:/chat"),
        ("/", "x-original-url", "//agent.example/chat"),
        ("/", "x-original-url", "/ch%ffat"),
        ("/", "x-original-url", "/chat%0a"),
    ] {
        let head = with(path, name, value);
        let refused = router.route(&head, false).is_err();
        assert!(refused, "{path} with {name}: {value}");
    }
    for (path, name, value, why) in [
        ("/chat", "script_name", "/x", "another prefix"),
        ("/chat", "x-original-url", "/chat", "the path itself"),
        ("/chat", "x-original-url", "/api/chat", "no turn's"),
        ("/x/chat", "x-original-uri", "/chat", "no backend's"),
        ("/", "x-original-url", "/?to=/chat", "a query"),
        (
            "/chat",
            "x-original-url",
            "http://a.example/chat?a b",
            "the same",
        ),
    ] {
        let head = with(path, name, value);
        assert!(router.route(&head, false).is_ok(), "{path}: {why}");
    }
    let mut head = head("POST", "/");
    let value = HeaderValue::from_bytes(b"/ch\xffat").unwrap();
    head.headers.insert("x-original-url", value);
    let refused = router.route(&head, false).is_err();
    assert!(refused, "some leave out what isn't UTF-8");
}

#[test]
fn a_header_is_each_that_a_backend_may_take_it_for() {
    let router = router(
        r#"
        [[routes]]
        name = "stop"
        path = "/t"
        headers = { x-mode = ["stop", "stop, now"] }
        lock = false
        [[routes]]
        name = "chat"
        path = "/t"
        headers = { x-mode = ["chat", "a, b"] }
        session_id = ["{header:x}"]
        [[routes]]
        name = "json"
        path = "/t"
        headers = { content-type = "application/json" }
        session_id = ["{header:x}"]
        [[routes]]
        name = "there"
        path = "/there"
        headers = { x-mode = "*" }
        session_id = ["{header:x}"]
        [[routes]]
        name = "free"
        path = "/free"
        headers = { x-mode = "*" }
        lock = false
        "#,
    );
    let of = |path: &str, headers: &[(&str, &str)]| {
        let mut head = head("POST", path);
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            head.headers.append(name, value);
        }
        name(&router, &head)
    };
    for headers in [
        &[("x-mode", "chat")][..],
        &[("x_mode", "chat")],
        &[("x.mode", "Chat")],
        &[("x-mode", "chat;v=1")],
        &[("x-mode", "\u{3000}chat")],
        &[("x-mode", "a, chat")],
        &[("x-mode", "stop"), ("x-mode", "chat")],
        &[("x-mode", "stop"), ("x_mode", "chat")],
        &[("x_mode", "chat"), ("x-mode", "stop")],
        &[("x-mode", "a,b")],
        &[("x-mode", "a"), ("x-mode", "b")],
    ] {
        let found = of("/t", headers);
        assert_eq!(found.as_deref(), Some("chat"), "{headers:?}");
    }
    for kind in ["Application/JSON", "application/json ; charset=utf-8"] {
        let found = of("/t", &[("content-type", kind)]);
        assert_eq!(found.as_deref(), Some("json"), "{kind}");
    }
    for headers in [&[("x-mode", "stop")][..], &[("x-mode", "stop, now")]] {
        let found = of("/t", headers);
        assert_eq!(found.as_deref(), Some("stop"), "{headers:?}");
    }
    for headers in [
        &[][..],
        &[("x-mode", "Stop")],
        &[("x-mode", "stop;v=1")],
        &[("x-mode", "stop,now")],
        &[("x_mode", "stop")],
        &[("x-mode", "stop"), ("x-mode", "stop")],
        &[("x-mode", "stop"), ("x_mode", "stop")],
        &[("x-mode", "a")],
        &[("x-mode", "chatter")],
        &[("x-modes", "chat")],
        &[("content-type", "application/json5")],
    ] {
        assert_eq!(of("/t", headers), None, "{headers:?}");
    }
    let named = |path: &str, name: &str| of(path, &[(name, "any")]);
    assert_eq!(named("/there", "x_mode").as_deref(), Some("there"));
    assert_eq!(named("/free", "x-mode").as_deref(), Some("free"));
    assert_eq!(named("/free", "x_mode"), None, "not to every backend");
}

const PATHS: &str = r#"
    [[routes]]
    name = "chat"
    path = "/chat"
    session_id = ["{header:x}"]
    [[routes]]
    name = "runs"
    path = "/threads/{t}/runs"
    session_id = ["{path:t}"]
"#;
