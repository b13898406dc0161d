//! Which methods a request is taken for, what a preflight is, and which trailers are announced.

use super::*;
use http::HeaderValue;

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
    let taken = |method: &str, path: &str, name: &str, value: &str| {
        let headers: [(&str, &[u8]); 2] = [("x-kind", b"a"), (name, value.as_bytes())];
        taken(&router, &head(method, path, &headers))
    };
    for (method, path, expected, why) in [
        ("HEAD", "/events", Some("get"), "HEAD runs what GET does"),
        ("head", "/events", Some("get"), "in any case"),
        ("HEAD", "/t", None, "unless the route doesn't lock"),
        ("POST", "/t", None, "POST is none of them"),
    ] {
        assert_eq!(taken(method, path, "x-other", ""), expected, "{why}");
    }
    for name in [
        "x-http-method-override",
        "x-method-override",
        "x-http-method",
        "x_http_method_override",
        "x.http.method.override",
    ] {
        for value in ["PUT", "put", "PATCH, PUT"] {
            let found = taken("POST", "/t", name, value);
            assert_eq!(found, Some("put"), "{name}: {value} makes it a PUT");
        }
        for (method, value, expected, why) in [
            ("GET", "PUT", Some("put"), "it may lock a request"),
            ("POST", "GET", None, "and not free it"),
            ("DELETE", "GET", Some("free"), "unless it has both"),
        ] {
            assert_eq!(taken(method, "/t", name, value), expected, "{name}: {why}");
        }
    }
}

#[test]
fn a_preflight_goes_where_its_request_will_and_is_no_turn() {
    let router = router(METHODS);
    let preflight = |path: &str, asks: &str| {
        let origin: (&str, &[u8]) = ("origin", b"https://a.example");
        let asks = ("access-control-request-method", asks.as_bytes());
        head("OPTIONS", path, &[origin, asks])
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
        let name = found.first().map(|matched| &*matched.route.name);
        assert_eq!(name, expected, "{asks} {path}");
        let is_free = |it: &&RouteMatch<'_>| it.route.turn.is_none() && it.route.when.is_empty();
        assert!(
            found.iter().all(is_free),
            "{asks} {path}: nothing is asked of it"
        );
    }
    let is_turn = |head: &Parts, has_body: bool| {
        let found = router.route(head, has_body).unwrap();
        found.iter().next().unwrap().route.turn.is_some()
    };
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
        assert!(is_turn(&head, false), "no browser sends it: {header}");
    }
    let mut head = preflight("/any", "POST");
    assert!(is_turn(&head, true), "no browser sends a body in it");
    head.method = http::Method::POST;
    assert!(is_turn(&head, false), "its headers alone make no preflight");
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
    let announcing = |names: &str| {
        let trailers: [(&str, &[u8]); 2] = [("trailer", b"x-sum"), ("trailer", names.as_bytes())];
        router
            .route(&head("POST", "/elsewhere", &trailers), false)
            .err()
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
    let is_refused = |path: &str, name: &str, value: &[u8]| {
        router
            .route(&head("POST", path, &[(name, value)]), false)
            .is_err()
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
        let refused = is_refused(path, name, value.as_bytes());
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
        assert!(!is_refused(path, name, value.as_bytes()), "{path}: {why}");
    }
    let refused = is_refused("/", "x-original-url", b"/ch\xffat");
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
    let taken = |path: &str, headers: &[(&str, &str)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()));
        taken(&router, &head("POST", path, &headers.collect::<Vec<_>>()))
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
        assert_eq!(taken("/t", headers), Some("chat"), "{headers:?}");
    }
    for kind in ["Application/JSON", "application/json ; charset=utf-8"] {
        let found = taken("/t", &[("content-type", kind)]);
        assert_eq!(found, Some("json"), "{kind}");
    }
    for headers in [&[("x-mode", "stop")][..], &[("x-mode", "stop, now")]] {
        assert_eq!(taken("/t", headers), Some("stop"), "{headers:?}");
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
        assert_eq!(taken("/t", headers), None, "{headers:?}");
    }
    let named = |path: &str, name: &str| taken(path, &[(name, "any")]);
    assert_eq!(named("/there", "x_mode"), Some("there"));
    assert_eq!(named("/free", "x-mode"), Some("free"));
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
