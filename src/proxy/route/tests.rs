//! Which route takes a request, and by which spellings.

use super::*;
use crate::config::Config;
use http::Request;
use http::request::Builder;

mod heads;
mod patterns;

fn router(routes: &str) -> Router {
    let text = format!("upstream = \"http://127.0.0.1:1\"\n{routes}");
    Router::new(&Config::read("test", &text, &Vec::new()).unwrap().routes)
}

/// A request's head. A header may have several values.
fn head(method: &str, uri: &str, headers: &[(&str, &[u8])]) -> Parts {
    let request = Request::builder().method(method).uri(uri);
    let request = request.header("host", "Agent.Example:8080");
    let add = |request: Builder, (name, value): &(&str, &[u8])| request.header(*name, *value);
    let request = headers.iter().fold(request, add);
    request.body(()).unwrap().into_parts().0
}

/// The routes that may take a request which is not refused by its head.
fn candidates<'p>(router: &Router, head: &'p Parts) -> Candidates<'p> {
    let found = router.route(head, false);
    found.unwrap_or_else(|unfit| panic!("{} is served: {unfit}", head.uri))
}

/// The name of the route that takes a request.
fn taken<'r>(router: &'r Router, head: &Parts) -> Option<&'r str> {
    let index = candidates(router, head).iter().next()?.index;
    Some(&router.routes[index].name)
}

/// The name of the route that takes a POST request for this path.
fn post<'r>(router: &'r Router, uri: &str) -> Option<&'r str> {
    taken(router, &head("POST", uri, &[]))
}

/// Whether the route that takes a POST request could find another id in the path than the backend.
fn is_ambiguous(router: &Router, uri: &str) -> bool {
    let head = head("POST", uri, &[]);
    let candidates = candidates(router, &head);
    candidates.iter().next().unwrap().ambiguity.is_some()
}

/// The value of `{name}` in the path of the route that takes a POST request.
fn segment(router: &Router, uri: &str, name: &str) -> Option<String> {
    let head = head("POST", uri, &[]);
    let candidates = candidates(router, &head);
    let value = candidates.iter().next().unwrap().segment(name)?;
    Some(String::from_utf8(value.into_owned()).unwrap())
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
        let found = post(&router, spelling);
        assert_eq!(found, Some("chat"), "{spelling} is /chat to some backend");
    }
    for other in ["/chatter", "/chat/x", "/", "/chat%2500"] {
        assert_eq!(post(&router, other), None, "{other} is not /chat to any");
    }
}

#[test]
fn a_plain_path_is_one_that_every_backend_reads_as_it_is_spelt() {
    for plain in ["/", "/chat", "/chat/", "/a/b.json", "/a b", "/\u{e9}", "*"] {
        assert!(path::is_plain(plain), "{plain}");
        assert!(!path::has_control(plain) && path::ambiguity(plain).is_none());
        assert!(path::without_invalid(plain).is_none());
        assert_eq!(
            path::of_plain(plain),
            path::as_sent(plain),
            "{plain} needs neither decoding nor resolving"
        );
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
    let get = taken(&router, &head("GET", "/chat", &[]));
    assert_eq!(get, None, "the method must be named");
    let stop = post(&router, "/chat/stop");
    assert_eq!(stop, Some("stop"), "the file's order decides");
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
    let stop = post(&router, "/t/a%20b/stop");
    assert_eq!(stop, Some("stop"), "the stop button passes");
    for odd in [
        "/t/a/x/../stop",
        "/t/a/go%2f..%2fstop",
        "/t/a/STOP",
        "/t/a//stop",
        "/t/a%2fstop",
        "/t/a/stop;v=1",
        "/t/a/stop/",
    ] {
        let found = post(&router, odd);
        assert_eq!(found, Some("all"), "{odd} may be a turn to some backend");
    }
    let with = |kinds: &[(&str, &[u8])]| taken(&router, &head("POST", "/t/a/list", kinds));
    let one = with(&[("x-kind", b"list")]);
    assert_eq!(one, Some("list"), "its header is there");
    let two = with(&[("x-kind", b"list"), ("x-kind", b"chat")]);
    assert_eq!(two, Some("all"), "but another value is there too");
}

#[test]
fn a_segment_is_decoded_once_and_keeps_its_case() {
    let router = router(ROUTES);
    for (name, value, why) in [
        ("t", Some("A%2Fb "), "percent-decoded once"),
        ("rest", Some("stream/now"), "the rest is all that follows"),
        ("other", None, "a name that isn't in the pattern is nothing"),
    ] {
        let found = segment(&router, "/threads/A%252Fb%20/runs/stream/now", name);
        assert_eq!(found.as_deref(), value, "{why}");
    }
}

#[test]
fn an_encoded_slash_is_matched_both_ways() {
    let router = router(ROUTES);
    let found = segment(&router, "/threads/a%2Fb/runs/stream", "t");
    let why = "a backend that splits first sees one segment";
    assert_eq!(found.as_deref(), Some("a/b"), "{why}");
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
    let both: [(&str, &[u8]); 2] = [("x-kind", b"b"), ("x-any", b"")];
    for (headers, expected, why) in [
        (&[][..], "host", "case and port don't count"),
        (&both[..1], "host", "every header must be there"),
        (&both, "header", "one of the values is enough"),
    ] {
        let found = taken(&router, &head("GET", "/", headers));
        assert_eq!(found, Some(expected), "{why}");
    }
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
        assert_eq!(
            post(&router, odd),
            Some("chat"),
            "{odd} is /chat to `new URL`"
        );
        assert!(is_ambiguous(&router, odd), "{odd}: and not to others");
    }
    for other in ["/x/chat", "/a//x/chat", "//x/y/chat", "/x\\chat"] {
        assert_eq!(post(&router, other), None, "{other} isn't");
    }
}

#[test]
fn dots_are_an_id_to_some_backends() {
    let router = router(LOOKALIKES);
    for id in ["..", ".", "%2e%2e", "%2E", "..;", ".;v=1", ".%2e"] {
        let odd = format!("/p/{id}/runs");
        let found = post(&router, &odd);
        assert_eq!(
            found,
            Some("runs"),
            "{odd} has an id to whoever doesn't resolve dots"
        );
        assert!(is_ambiguous(&router, &odd), "{odd}: and not to others");
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
        assert_eq!(post(&router, odd), Some("run"), "{odd} is to `new URL`");
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
        assert_eq!(post(&router, odd), Some("message"), "{odd}");
    }
}

#[test]
fn what_few_backends_make_of_a_path_frees_nothing() {
    let router = router(LOOKALIKES);
    for odd in ["//x/p/a/stop", "/p/../stop", "/p/%2e/stop"] {
        assert_eq!(post(&router, odd), None, "{odd}");
    }
    let found = post(&router, "/p/a%2fstop");
    assert_eq!(found, Some("free"), "what many do is as it was");
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
            let found = router.route(&head(method, odd, &[]), false).err();
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
        candidates(&router, &head("POST", plain, &[]));
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
        let found = router.route(&head("POST", odd, &[]), false).err();
        assert_eq!(found, Some(NOT_UTF8), "{odd} is a turn to Bottle");
    }
    for other in [
        "/caf%e9",
        "/%ff",
        "/chat/st%ffop",
        "/ch%ffatter",
        "/chat%25ff",
    ] {
        let found = post(&router, other);
        assert_eq!(
            found, None,
            "{other} leads to no turn, and passes as it was sent"
        );
    }
    let anywhere = self::router("[[routes]]\nname = \"any\"\nsession_id = [\"{header:x}\"]\n");
    let found = post(&anywhere, "/caf%e9");
    assert_eq!(
        found,
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
        assert_eq!(post(&router, path), expected, "{path}");
    }
    let id = segment(&router, "/one/u.name", "id");
    assert_eq!(id.as_deref(), Some("u.name"), "an id keeps its dots");
    assert!(!is_ambiguous(&router, "/one/u.name"), "and is clear");
}

#[test]
fn letters_that_are_alike_in_capitals_are_one() {
    let router = router(
        "[[routes]]\nname = \"a\"\npath = \"/task/\u{df}\"\nsession_id = [\"{header:x}\"]\n",
    );
    for path in ["/TA%C5%BFk/%C3%9F", "/tas%E2%84%AA/ss", "/task/SS"] {
        assert_eq!(post(&router, path), Some("a"), "{path}");
    }
}
