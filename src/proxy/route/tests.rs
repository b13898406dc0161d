//! Which route takes a request, and by which spellings.

use super::*;
use crate::config::Config;
use http::{HeaderValue, Request};

mod heads;

fn router(routes: &str) -> Router {
    let text = format!("upstream = \"http://127.0.0.1:1\"\n{routes}");
    Router::new(&Config::read("test", &text, &Vec::new()).unwrap().routes)
}

fn head(method: &str, uri: &str) -> Parts {
    let request = Request::builder().method(method).uri(uri);
    request
        .header("host", "Agent.Example:8080")
        .body(())
        .unwrap()
        .into_parts()
        .0
}

/// The routes that may take a request which is not refused by its head.
fn candidates<'p>(router: &Router, head: &'p Parts) -> Candidates<'p> {
    let found = router.route(head, false);
    found.unwrap_or_else(|unfit| panic!("{} is served: {unfit}", head.uri))
}

fn name(router: &Router, head: &Parts) -> Option<String> {
    let candidates = candidates(router, head);
    let first = candidates.iter().next();
    first.map(|matched| matched.route.name.to_string())
}

const ROUTES: &str = r#"
    [[routes]]
    name = "stop"
    path = "/chat/stop"
    lock = false
    [[routes]]
    name = "chat"
    path = "/chat"
    methods = ["POST"]
    session_id = ["{header:x}"]
    [[routes]]
    name = "run"
    path = "/Threads/{t}/runs/{*rest}"
    session_id = ["{path:t}"]
"#;

#[test]
fn no_spelling_of_a_path_slips_past_its_route() {
    let router = router(ROUTES);
    for spelling in [
        "/chat",
        "/chat/",
        "//chat",
        "/CHAT",
        "/ch%61t",
        "/a/../chat",
        "/./chat",
        "/%2e/chat",
        "/a/%2e%2e/chat",
        "/a/..;/chat",
        "/chat/x/..;v=1/",
        "/chat;v=1",
        "/chat?x=1",
        "/%2Fchat",
        "/a%2f..%2fchat",
        "/chat%5c",
    ] {
        let found = name(&router, &head("POST", spelling));
        assert_eq!(
            found.as_deref(),
            Some("chat"),
            "{spelling} is /chat to some backend"
        );
    }
    for other in ["/chatter", "/chat/x", "/", "/chat%2500"] {
        assert_eq!(
            name(&router, &head("POST", other)),
            None,
            "{other} is not /chat to any"
        );
    }
}

#[test]
fn a_plain_path_is_one_that_every_backend_reads_as_it_is_spelt() {
    for plain in ["/", "/chat", "/chat/", "/a/b.json", "/a b", "/\u{e9}", "*"] {
        assert!(path::is_plain(plain), "{plain}");
        assert!(!path::has_control(plain) && !path::is_ambiguous(plain));
        assert!(path::without_invalid(plain).is_none());
    }
    for other in [
        "//chat", "/a//", "/.", "/a/..", "/a/./b", "/a;b", "/a\\b", "/%41", "/a\u{7f}",
    ] {
        assert!(!path::is_plain(other), "{other}");
    }
}

#[test]
fn the_first_route_whose_conditions_all_hold_takes_the_request() {
    let router = router(ROUTES);
    assert_eq!(
        name(&router, &head("GET", "/chat")),
        None,
        "the method must be named"
    );
    let stop = name(&router, &head("POST", "/chat/stop"));
    assert_eq!(
        stop.as_deref(),
        Some("stop"),
        "literals win by their order in the file"
    );
}

#[test]
fn a_spelling_may_lock_a_request_and_not_free_it() {
    let router = router(
        r#"
        [[routes]]
        name = "stop"
        path = "/t/{id}/stop"
        lock = false
        [[routes]]
        name = "list"
        path = "/t/{id}/list"
        headers = { x-kind = "list" }
        lock = false
        [[routes]]
        name = "all"
        path = "/t/{id}/{*rest}"
        session_id = ["{header:x}"]
        "#,
    );
    let of = |uri| name(&router, &head("POST", uri));
    assert_eq!(
        of("/t/a%20b/stop").as_deref(),
        Some("stop"),
        "the stop button passes"
    );
    for odd in [
        "/t/a/x/../stop",
        "/t/a/go%2f..%2fstop",
        "/t/a/STOP",
        "/t/a//stop",
        "/t/a%2fstop",
        "/t/a/stop;v=1",
        "/t/a/stop/",
    ] {
        assert_eq!(
            of(odd).as_deref(),
            Some("all"),
            "{odd} may be a turn to some backend"
        );
    }
    let mut head = head("POST", "/t/a/list");
    head.headers
        .insert("x-kind", HeaderValue::from_static("list"));
    assert_eq!(
        name(&router, &head).as_deref(),
        Some("list"),
        "its header is there"
    );
    head.headers
        .append("x-kind", HeaderValue::from_static("chat"));
    assert_eq!(
        name(&router, &head).as_deref(),
        Some("all"),
        "but another value is there too"
    );
}

#[test]
fn a_segment_is_decoded_once_and_keeps_its_case() {
    let router = router(ROUTES);
    let head = head("POST", "/threads/A%252Fb%20/runs/stream/now");
    let candidates = candidates(&router, &head);
    let matched = candidates.iter().next().unwrap();
    let segment = |name| matched.segment(name).map(Cow::into_owned);
    assert_eq!(
        segment("t"),
        Some(b"A%2Fb ".to_vec()),
        "percent-decoded once"
    );
    assert_eq!(
        segment("rest"),
        Some(b"stream/now".to_vec()),
        "the rest is all that follows"
    );
    assert_eq!(
        segment("other"),
        None,
        "a name that isn't in the pattern is nothing"
    );
}

#[test]
fn an_encoded_slash_is_matched_both_ways() {
    let router = router(ROUTES);
    let head = head("POST", "/threads/a%2Fb/runs/stream");
    let candidates = candidates(&router, &head);
    let matched = candidates.iter().next().unwrap();
    let segment = matched.segment("t").map(Cow::into_owned);
    assert_eq!(
        segment,
        Some(b"a/b".to_vec()),
        "a backend that splits first sees one segment"
    );
}

#[test]
fn host_and_headers_are_conditions() {
    let router = router(
        r#"
        [[routes]]
        name = "other"
        host = "other.example"
        lock = false
        [[routes]]
        name = "header"
        headers = { x-kind = ["a", "b"], x-any = "*" }
        lock = false
        [[routes]]
        name = "host"
        host = ["*.nowhere", "agent.example"]
        lock = false
        "#,
    );
    let mut head = head("GET", "/");
    assert_eq!(
        name(&router, &head).as_deref(),
        Some("host"),
        "case and port don't count"
    );
    head.headers.insert("x-kind", "b".parse().unwrap());
    assert_eq!(
        name(&router, &head).as_deref(),
        Some("host"),
        "every header must be there"
    );
    head.headers.insert("x-any", "".parse().unwrap());
    assert_eq!(
        name(&router, &head).as_deref(),
        Some("header"),
        "one of the values is enough"
    );
}

const LOOKALIKES: &str = r#"
    [[routes]]
    name = "free"
    path = "/p/{sid}/stop"
    lock = false
    [[routes]]
    name = "chat"
    path = "/chat"
    session_id = ["{header:x}"]
    [[routes]]
    name = "runs"
    path = "/p/{sid}/runs"
    session_id = ["{path:sid}"]
    [[routes]]
    name = "message"
    path = "/m/{a}/{b}/runs"
    session_id = ["{path:a}"]
"#;

#[test]
fn a_host_in_front_of_a_path_is_none_of_it_to_some_backends() {
    let router = router(LOOKALIKES);
    for odd in [
        "//x/chat",
        "///x/chat",
        "/\\x/chat",
        "/\\/x/chat",
        "/\\x\\chat",
        "//x:8/../%2e/chat/",
        "//x/a%2f..%2fchat",
        "http://z//x/chat",
    ] {
        let head = head("POST", odd);
        let candidates = candidates(&router, &head);
        let first = candidates.iter().next();
        assert!(
            first.is_some_and(|matched| &*matched.route.name == "chat" && matched.is_ambiguous()),
            "{odd} is /chat to `new URL`"
        );
    }
    for other in ["/x/chat", "/a//x/chat", "//x/y/chat", "/x\\chat"] {
        assert_eq!(name(&router, &head("POST", other)), None, "{other} isn't");
    }
}

#[test]
fn dots_are_an_id_to_some_backends() {
    let router = router(LOOKALIKES);
    for id in ["..", ".", "%2e%2e", "%2E", "..;", ".;v=1", ".%2e"] {
        let odd = format!("/p/{id}/runs");
        let head = head("POST", &odd);
        let candidates = candidates(&router, &head);
        let first = candidates.iter().next();
        assert!(
            first.is_some_and(|matched| &*matched.route.name == "runs" && matched.is_ambiguous()),
            "{odd} has an id to whoever doesn't resolve dots"
        );
    }
}

#[test]
fn dots_take_back_an_empty_segment_for_some_backends() {
    let router = router(ROUTES);
    for odd in [
        "/threads/t//../runs/x",
        "/threads/t/%2f../runs/x",
        "/threads//../t/runs/x",
    ] {
        let found = name(&router, &head("POST", odd));
        assert_eq!(found.as_deref(), Some("run"), "{odd} is to `new URL`");
    }
}

#[test]
fn slashes_may_hide_in_one_way_and_not_in_the_other() {
    let router = router(LOOKALIKES);
    for odd in [
        "/m/p%2fa\\b/runs",
        "/m/p\\a%2fb/runs",
        "/m/p%2fa%5cb/runs",
        "/m/p%5ca/runs",
        "/m/p%2fa/runs",
        "/m/p\\a/runs",
    ] {
        let found = name(&router, &head("POST", odd));
        assert_eq!(found.as_deref(), Some("message"), "{odd}");
    }
}

#[test]
fn what_few_backends_make_of_a_path_frees_nothing() {
    let router = router(LOOKALIKES);
    for odd in ["//x/p/a/stop", "/p/../stop", "/p/%2e/stop"] {
        assert_eq!(name(&router, &head("POST", odd)), None, "{odd}");
    }
    let found = name(&router, &head("POST", "/p/a%2fstop"));
    assert_eq!(found.as_deref(), Some("free"), "what many do is as it was");
}

#[test]
fn a_path_with_a_control_character_is_refused_whatever_the_route() {
    let router = router(ROUTES);
    for odd in [
        "/chat%0A",
        "/chat%0a/",
        "/mcp%0d",
        "/chat%00",
        "/%09chat",
        "/chat/stop%0A",
        "/else%1Fwhere",
        "/elsewhere%7f",
        "/a%0A?x",
    ] {
        for method in ["POST", "GET", "OPTIONS"] {
            let found = router.route(&head(method, odd), false).err();
            assert_eq!(found, Some(CONTROL), "{odd} ends early for some framework");
        }
    }
    for plain in [
        "/chat?q=a%0Ab",
        "/chat%250A",
        "/chat%C2%85",
        "/chat%E2%80%A8",
        "/chat%0",
        "/chat%",
    ] {
        candidates(&router, &head("POST", plain));
    }
}

#[test]
fn a_path_that_leads_to_a_turn_without_its_invalid_bytes_is_refused() {
    let router = router(ROUTES);
    for odd in [
        "/ch%ffat",
        "/chat%c3",
        "/%E4%B8chat",
        "/x%ff/../chat",
        "/ch%ffat%2f",
        "/chat%ff;v=1",
        "/threads/a%ff/runs/x",
        "/thr%ffeads/%ff/a/runs",
        "/CH%FFAT.json",
    ] {
        let found = router.route(&head("POST", odd), false).err();
        assert_eq!(found, Some(NOT_UTF8), "{odd} is a turn to Bottle");
    }
    for other in [
        "/caf%e9",
        "/%ff",
        "/chat/st%ffop",
        "/ch%ffatter",
        "/chat%25ff",
    ] {
        assert_eq!(
            name(&router, &head("POST", other)),
            None,
            "{other} leads to no turn, and passes as it was sent"
        );
    }
    let anywhere = self::router("[[routes]]\nname = \"any\"\nsession_id = [\"{header:x}\"]\n");
    assert_eq!(
        name(&anywhere, &head("POST", "/caf%e9")).as_deref(),
        Some("any"),
        "a route for any path takes it however it is read"
    );
}

#[test]
fn what_is_left_of_a_path_keeps_its_escapes() {
    for (sent, left) in [
        ("/a%ff%2fb%25c%c3%a9", "/a%2fb%25c%c3%a9"),
        ("/%ff%zz%e4%b8%ad%e4%b8", "/%zz%e4%b8%ad"),
        ("/\u{4e2d}%e4\u{4e2d}%", "/\u{4e2d}\u{4e2d}%"),
        ("/%ed%a0%80%c0%af%f0%9f", "/"),
    ] {
        assert_eq!(path::without_invalid(sent).as_deref(), Some(left), "{sent}");
    }
    assert_eq!(path::without_invalid("/a%2fb"), None, "nothing is left out");
}

#[test]
fn a_format_at_the_end_of_a_path_slips_past_no_lock() {
    let router = router(
        r#"
        [[routes]]
        name = "free"
        path = "/free"
        lock = false
        [[routes]]
        name = "chat"
        path = "/Chat"
        session_id = ["{header:x}"]
        [[routes]]
        name = "runs"
        path = "/t/{id}/runs"
        session_id = ["{path:id}"]
        [[routes]]
        name = "below"
        path = "/below/{*rest}"
        session_id = ["{header:x}"]
        [[routes]]
        name = "one"
        path = "/one/{id}"
        session_id = ["{path:id}"]
        "#,
    );
    for (path, expected) in [
        ("/chat.json", Some("chat")),
        ("/CHAT.JSON", Some("chat")),
        ("/chat%2ejson/", Some("chat")),
        ("/chat.json;v=1", Some("chat")),
        ("/chat.", Some("chat")),
        ("/t/a.b/runs.xml", Some("runs")),
        ("/below.json", Some("below")),
        ("/below/x.json", Some("below")),
        ("/one/u.name", Some("one")),
        ("/free.json", None),
        ("/one.json", None),
        ("/chat.json/x", None),
        ("/.json", None),
        ("/chat.a.b", None),
    ] {
        let found = name(&router, &head("POST", path));
        assert_eq!(found.as_deref(), expected, "{path}");
    }
    let head = head("POST", "/one/u.name");
    let candidates = candidates(&router, &head);
    let matched = candidates.iter().next().unwrap();
    let id = matched.segment("id").map(Cow::into_owned);
    assert_eq!(
        (id, matched.is_ambiguous()),
        (Some(b"u.name".to_vec()), false),
        "an id keeps its dots"
    );
}

#[test]
fn letters_that_are_alike_in_capitals_are_one() {
    let router = router(
        "[[routes]]\nname = \"a\"\npath = \"/task/\u{df}\"\nsession_id = [\"{header:x}\"]\n",
    );
    for path in ["/TA%C5%BFk/%C3%9F", "/tas%E2%84%AA/ss", "/task/SS"] {
        let found = name(&router, &head("POST", path));
        assert_eq!(found.as_deref(), Some("a"), "{path}");
    }
}
