//! Paths with `{*rest}` at the beginning, in the middle or at the end, and a model of all patterns.

use proptest::prelude::*;

use super::*;

const LITELLM: &str = r#"
    [[routes]]
    name = "models"
    path = "/{*any}/models"
    lock = false
    [[routes]]
    name = "completions"
    path = "/{*any}/chat/completions"
    session_id = ["{header:x}"]
    [[routes]]
    name = "runs"
    path = "/api/{*mount}/threads/{thread}/runs/{run}"
    session_id = ["{path:thread}"]
    user_id = ["{path:mount}", "unknown"]
"#;

#[test]
fn a_rest_may_be_at_the_beginning_or_in_the_middle() {
    let router = router(LITELLM);
    for (path, expected) in [
        ("/chat/completions", Some("completions")),
        ("/v1/chat/completions", Some("completions")),
        (
            "/openai/deployments/d1/chat/completions",
            Some("completions"),
        ),
        ("/models", Some("models")),
        ("/v1/models", Some("models")),
        ("/api/threads/t/runs/r", Some("runs")),
        ("/api/a/b/threads/t/runs/r", Some("runs")),
        ("/api/threads/threads/t/runs/r", Some("runs")),
        ("/completions", None),
        ("/chat/completions/x", None),
        ("/v1/chat/x/completions", None),
        ("/api/threads/runs/r", None),
        ("/x/api/threads/t/runs/r", None),
        ("/api/threads/t/runs", None),
        ("/", None),
    ] {
        assert_eq!(post(&router, path), expected, "{path}");
    }
}

#[test]
fn no_spelling_of_a_path_slips_past_a_rest() {
    let router = router(LITELLM);
    for spelling in [
        "/v1/CHAT/completions",
        "/v1/chat/completions/",
        "//v1//chat//completions",
        "//x/chat/completions",
        "/v1/ch%61t/completions;v=1",
        "/v1/chat%2fcompletions",
        "/v1/chat\\completions",
        "/v1/chat/x/../completions",
        "/v1/chat/completions.json",
        "/chat/completions.JSON",
        "/%ff/chat/completions",
    ] {
        let head = head("POST", spelling, &[]);
        let found = router.route(&head, false);
        // A path that isn't UTF-8 is refused, as with any other pattern.
        let is_locked = found.map_or_else(
            |refused| refused == NOT_UTF8,
            |found| found.iter().next().is_some_and(|first| first.index == 1),
        );
        assert!(is_locked, "{spelling} is a turn to some backend");
    }
    for other in ["/v1/chat.json/completions", "/v1/models.json"] {
        assert_eq!(post(&router, other), None, "{other} is none to any");
    }
    let free = |path| post(&router, path) == Some("models");
    assert!(free("/v1/models/"), "no route that locks is for this path");
    let router = self::router(&format!(
        "{LITELLM}[[routes]]\nname = \"all\"\nsession_id = [\"{{header:x}}\"]\n"
    ));
    for odd in ["/v1/Models", "/v1//models", "/v1/models/", "/v1/%2e/models"] {
        assert_eq!(post(&router, odd), Some("all"), "{odd} frees nothing");
    }
    assert_eq!(post(&router, "/v1/models"), Some("models"), "as it is");
}

#[test]
fn segments_around_a_rest_have_their_values() {
    let router = router(LITELLM);
    for (path, mount, thread) in [
        ("/api/threads/T1/runs/r", "", "T1"),
        ("/api/a/threads/T2/runs/r", "a", "T2"),
        ("/api/a/b%2Fc/threads/T3/runs/r", "a/b/c", "T3"),
    ] {
        let value = |name| segment(&router, path, name);
        assert_eq!(value("mount").as_deref(), Some(mount), "{path}");
        assert_eq!(value("thread").as_deref(), Some(thread), "{path}");
        assert_eq!(value("run").as_deref(), Some("r"), "{path}");
        assert_eq!(value("any"), None, "{path}");
    }
}

/// Whether a pattern takes a path, by the definition: each way to divide the path is tried.
fn takes(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, first) => first.is_none(),
        (Some((first, behind)), _) if first.starts_with("{*") => {
            (0..=path.len()).any(|taken| takes(behind, &path[taken..]))
        }
        (Some((first, behind)), Some((segment, rest))) => {
            (first.starts_with('{') || first == segment) && takes(behind, rest)
        }
        (Some(_), None) => false,
    }
}

/// A pattern of a path with at most one rest. Names differ by their places.
fn pattern() -> impl Strategy<Value = Vec<&'static str>> {
    const NAMES: [&str; 4] = ["{p}", "{q}", "{r}", "{s}"];
    let segment = prop_oneof![3 => Just("a"), 2 => Just("b"), 2 => Just("{}")];
    let segments = prop::collection::vec(segment, 0..4);
    (segments, prop::option::of(0_usize..4)).prop_map(|(mut segments, rest)| {
        for (segment, name) in segments.iter_mut().zip(NAMES) {
            if *segment == "{}" {
                *segment = name;
            }
        }
        if let Some(at) = rest {
            segments.insert(at.min(segments.len()), "{*rest}");
        }
        segments
    })
}

proptest! {
    #[test]
    fn a_request_goes_to_the_first_route_whose_pattern_takes_its_path(
        patterns in prop::collection::vec(pattern(), 1..6),
        path in prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 0..6),
    ) {
        let mut paths = SegmentPosition::default();
        for (index, pattern) in patterns.iter().enumerate() {
            let pattern = PathPattern::parse(&format!("/{}", pattern.join("/"))).unwrap();
            paths.add(&pattern, index, true);
        }
        let sent = format!("/{}", path.join("/"));
        let mut found = Vec::new();
        paths.collect(&path::as_sent(&sent), &mut found);
        found.sort_unstable();
        let expected: Vec<_> = patterns
            .iter()
            .enumerate()
            .filter(|(_, pattern)| takes(pattern, &path))
            .map(|(index, _)| index)
            .collect();
        prop_assert_eq!(found, expected, "{} of {:?}", sent, patterns);
    }
}

/// Paths of up to four segments, without the one that ends with its only slash.
fn short_paths() -> Vec<String> {
    let mut paths = vec![String::new()];
    let mut from = 0;
    for _ in 0..4 {
        let to = paths.len();
        for index in from..to {
            let longer =
                ["a", "A", "a.x", "b"].map(|segment| format!("{}/{segment}", paths[index]));
            paths.extend(longer);
        }
        from = to;
    }
    paths.split_off(1)
}

/// A route's table without a name, and its pattern.
fn short_route() -> impl Strategy<Value = (Vec<&'static str>, bool)> {
    const NAMES: [&str; 2] = ["{p}", "{q}"];
    let segment = prop_oneof![3 => Just("a"), 1 => Just("A"), 1 => Just("a.x"), 2 => Just("{}")];
    let segments = prop::collection::vec(segment, 1..3);
    let pattern = (segments, prop::option::of(0_usize..3)).prop_map(|(mut segments, rest)| {
        for (segment, name) in segments.iter_mut().zip(NAMES) {
            if *segment == "{}" {
                *segment = name;
            }
        }
        if let Some(at) = rest {
            segments.insert(at.min(segments.len()), "{*rest}");
        }
        segments
    });
    (pattern, any::<bool>())
}

fn table((pattern, locks): &(Vec<&str>, bool)) -> String {
    let lock = match locks {
        true => "session_id = [\"{header:x}\"]",
        false => "lock = false",
    };
    format!("[[routes]]\npath = \"/{}\"\n{lock}\n", pattern.join("/"))
}

proptest! {
    #[test]
    fn a_hidden_route_is_one_that_the_router_never_chooses(
        first in short_route(),
        second in short_route(),
    ) {
        // Each file has one route: a file with a hidden route is an error.
        let routes = [&first, &second].map(|route| {
            let text = format!("upstream = \"http://127.0.0.1:1\"\n{}", table(route));
            Config::read("test", &text, &Vec::new()).unwrap().routes.remove(0)
        });
        let router = Router::new(&routes);
        let takes = |path: &String| {
            let head = head("POST", path, &[]);
            candidates(&router, &head).iter().next().is_some_and(|first| first.index == 1)
        };
        let taken: Vec<_> = short_paths().into_iter().filter(takes).collect();
        // A route that locks has paths of its own behind one that doesn't: those in another spelling.
        let is_odd = |path: &String| {
            !first.1 && second.1 && path.split('/').any(|segment| segment == "A" || segment == "a.x")
        };
        match routes[0].hides(&routes[1]) {
            true => prop_assert!(taken.iter().all(is_odd), "{:?} of {:?}", taken, second),
            false => prop_assert!(!taken.is_empty(), "{:?} hides {:?}", first, second),
        }
    }
}
