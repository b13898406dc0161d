//! Mistakes in a configuration that is otherwise valid: routes that never take a request, loops, ids that are
//! the same for all. What can't be meant is an error, and the rest a warning, in `check` and at the start.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use seriatim::config::Config;
use seriatim::config::presets::PRESETS;
use tempfile::TempDir;

use crate::support::process::{Process, run, seriatim};
use crate::support::wait_for;

const UPSTREAM: &str = "upstream = \"http://127.0.0.1:8000\"\n";

fn read(text: &str) -> Result<Config, String> {
    Config::read("the file", text, &Vec::new()).map_err(|problems| problems.to_string())
}

/// The warnings about values of a valid configuration, one line each.
fn warnings(text: &str) -> Vec<String> {
    let config = read(text).unwrap_or_else(|problems| panic!("{text}\nis valid: {problems}"));
    config.warnings.iter().map(ToString::to_string).collect()
}

/// A route that locks, with these options.
fn route(options: &str) -> String {
    format!("[[routes]]\nsession_id = [\"{{header:x-session}}\"]\n{options}\n")
}

/// A route that doesn't lock, with these options.
fn free(options: &str) -> String {
    format!("[[routes]]\nlock = false\n{options}\n")
}

/// Whether the last of these routes is reported as one that never takes a request.
fn is_hidden(routes: &[String]) -> bool {
    let text = format!("{UPSTREAM}{}", routes.concat());
    let last = format!("routes[{}]", routes.len() - 1);
    match read(&text) {
        Ok(_) => false,
        Err(problems) => {
            let mut lines = problems.lines().skip(1);
            let is_expected =
                |line: &str| line.contains(&last) && line.contains("never takes a request");
            assert!(lines.all(is_expected), "{text}\nhas no other: {problems}");
            true
        }
    }
}

// === routes that never take a request ===

#[test]
fn a_route_is_hidden_by_one_that_takes_all_of_its_requests() {
    for (first, last) in [
        (free(""), route("path = \"/chat\"")),
        (free(""), route("")),
        (route(""), free("path = \"/stop\"")),
        (route(""), route("path = \"/{*rest}\"")),
        (route("path = \"/{*rest}\""), route("")),
        (
            route("path = \"/chat\""),
            route("path = \"/Chat/\"\nmethods = [\"POST\"]"),
        ),
        (
            route("path = \"/chat\""),
            route("path = \"/chat\"\nwhen = { \"{query:x}\" = \"a\" }"),
        ),
        (
            route("path = \"/chat\""),
            free("path = \"/chat.json\"\nheaders = { x = \"*\" }"),
        ),
        (
            route("path = \"/chat/{*rest}\""),
            free("path = \"/chat/stop\""),
        ),
        (route("path = \"/{a}/{b}\""), free("path = \"/{x}/stop\"")),
        (
            route("path = \"/{*any}/chat\""),
            free("path = \"/v1/{id}/chat\""),
        ),
        (
            route("path = \"/{*any}/{id}\""),
            free("path = \"/v1/{*x}/chat\""),
        ),
        (
            route("methods = [\"GET\", \"POST\"]"),
            route("methods = [\"GET\", \"HEAD\"]"),
        ),
        (
            route("host = [\"*.example.com\", \"a.example\"]"),
            route("host = [\"*.b.example.com\", \"c.example.com\", \"a.example\"]"),
        ),
        (
            route("headers = { x = \"*\", y = [\"a\", \"b\"] }"),
            route("headers = { x = \"c\", y = \"a\", z = \"d\" }"),
        ),
    ] {
        assert!(is_hidden(&[first.clone(), last.clone()]), "{first}{last}");
    }
}

#[test]
fn a_route_that_may_take_a_request_is_not_hidden() {
    for (first, last) in [
        (free("path = \"/chat/stop\""), route("path = \"/chat\"")),
        (free("path = \"/Chat\""), route("path = \"/chat\"")),
        (free("path = \"/chat\""), route("path = \"/chat.json\"")),
        (free("path = \"/{*rest}\""), route("path = \"/\"")),
        (
            route("path = \"/chat/stop\""),
            route("path = \"/chat/{x}\""),
        ),
        (route("path = \"/{x}\""), route("path = \"/{*x}\"")),
        (
            route("path = \"/{*any}/chat\""),
            route("path = \"/{*any}\""),
        ),
        (
            route("path = \"/{*any}/a/{x}\""),
            route("path = \"/a/{*any}/b\""),
        ),
        (
            route("path = \"/chat\"\nwhen = { \"{query:x}\" = \"a\" }"),
            route("path = \"/chat\""),
        ),
        (
            route("methods = [\"POST\"]"),
            route("methods = [\"POST\", \"PUT\"]"),
        ),
        (route("methods = [\"POST\"]"), route("")),
        // A route that locks takes HEAD as GET, and one that doesn't lock takes GET alone.
        (free("methods = [\"GET\"]"), route("methods = [\"GET\"]")),
        (
            route("host = \"*.example.com\""),
            route("host = \"example.com\""),
        ),
        (route("host = \"a.example\""), route("")),
        (route("host = \"a.example\""), route("host = \"*.example\"")),
        (route("headers = { x = \"a\" }"), route("")),
        (
            route("headers = { x = \"a\" }"),
            route("headers = { x = \"*\" }"),
        ),
        (
            route("headers = { x = \"a\" }"),
            route("headers = { x = [\"a\", \"b\"] }"),
        ),
    ] {
        assert!(!is_hidden(&[first.clone(), last.clone()]), "{first}{last}");
    }
}

#[test]
fn a_route_with_another_problem_hides_none() {
    for wrong in ["path = \"chat\"", "pth = \"/chat\"", "methods = [\"post\"]"] {
        let text = format!("{UPSTREAM}{}{}", free(wrong), route("path = \"/chat\""));
        let problems = read(&text).expect_err(wrong);
        let count = problems.lines().count() - 1;
        assert_eq!(count, 1, "{wrong} is the only problem: {problems}");
    }
}

#[test]
fn no_preset_is_a_mistake() {
    for preset in PRESETS {
        for options in [
            "",
            "prefix = \"/api/{mount}\"",
            "key = \"agent:{session_id}\"",
            "methods = [\"POST\", \"PURGE\"]",
        ] {
            let name = preset.name;
            if name == "vercel-ai-resume" && options.starts_with("methods") {
                // Its routes differ in them.
                continue;
            }
            let text = format!("{UPSTREAM}[[routes]]\npreset = \"{name}\"\n{options}\n");
            assert_eq!(warnings(&text), [""; 0], "{text}");
        }
    }
}

#[test]
fn a_prefix_may_take_any_path_in_front_of_a_presets_own() {
    let with = |preset: &str| {
        let prefix = "prefix = \"/{*mount}/v2/\"";
        let text = format!("{UPSTREAM}[[routes]]\npreset = \"{preset}\"\n{prefix}\n");
        read(&text).map(|config| config.routes[0].path.as_ref().map(ToString::to_string))
    };
    let path = "/{*mount}/v2/threads/{thread}/runs/stream";
    assert_eq!(with("langgraph"), Ok(Some(path.into())));
    let problems = with("ag-ui").expect_err("its route is for any path behind the prefix");
    let why = "routes[0].prefix = \"/{*mount}/v2/\" (line 4): a path of the preset has a {*...} of its own, \
               and a path has at most one: write the prefix without, as \"/agents/{agent}\"";
    assert!(problems.contains(why), "{problems}");
}

// === loops ===

#[test]
fn a_backend_at_which_requests_would_come_back_is_a_mistake() {
    for (listen, upstream, is_loop) in [
        ("0.0.0.0:8000", "http://127.0.0.1:8000", true),
        ("0.0.0.0:8000", "http://127.0.0.2:8000", true),
        ("0.0.0.0:8000", "http://LOCALHOST:8000", true),
        ("0.0.0.0:8000", "h2c://0.0.0.0:8000", true),
        ("0.0.0.0:80", "http://localhost", true),
        ("[::]:8000", "http://127.0.0.1:8000", true),
        ("[::]:8000", "http://[::1]:8000", true),
        ("[::]:8000", "http://[::ffff:127.0.0.1]:8000", true),
        ("127.0.0.1:8000", "http://0.0.0.0:8000", true),
        ("127.0.0.1:443", "https://localhost", true),
        ("10.0.0.7:8000", "http://10.0.0.7:8000", true),
        ("unix:/run/a.sock", "unix:/run/a.sock", true),
        ("0.0.0.0:8000", "http://127.0.0.1:8001", false),
        ("0.0.0.0:8000", "http://agent:8000", false),
        ("0.0.0.0:8000", "http://10.0.0.7:8000", false),
        ("0.0.0.0:8000", "http://[::1]:8000", false),
        ("127.0.0.1:8000", "http://127.0.0.2:8000", false),
        ("10.0.0.7:8000", "http://127.0.0.1:8000", false),
        ("10.0.0.7:8000", "http://localhost:8000", false),
        ("unix:/run/a.sock", "unix:/run/b.sock", false),
        ("unix:/run/a.sock", "http://127.0.0.1:80", false),
    ] {
        let text = format!("listen = \"{listen}\"\nupstream = \"{upstream}\"\n");
        let found = read(&text).err();
        assert_eq!(found.is_some(), is_loop, "{text}{found:?}");
        let problems = found.unwrap_or_default();
        let line = format!(
            "upstream = \"{upstream}\" (line 2): is where Seriatim itself listens, since listen is \"{listen}\""
        );
        assert!(!is_loop || problems.contains(&line), "{problems}");
    }
    let default = read("upstream = \"http://localhost:8080\"\n");
    assert!(default.is_err(), "the default of listen has its port");
}

// === warnings ===

#[test]
fn an_id_that_is_the_same_for_all_is_warned_of() {
    let ids = |session: &str, rest: &str| {
        let text = format!("{UPSTREAM}[[routes]]\nsession_id = {session}\n{rest}\n");
        warnings(&text)
    };
    assert_eq!(
        ids("[\"all\"]", ""),
        [
            "routes[0].session_id[0] = \"all\" (line 3): is the same for every request, so all requests of the \
             route share one lock: write where the id comes from, as \"{body:/session_id}\", unless that is \
             what you want"
        ]
    );
    assert_eq!(
        ids("[\"{header:x}\", \"none\"]", ""),
        [
            "routes[0].session_id[1] = \"none\" (line 3): is the same for all requests without an id, so they \
             share one lock: leave it out, and on_missing says what happens to them, unless that is what you \
             want"
        ]
    );
    let user = "user_id = [\"{header:x-user}\", \"unknown\"]";
    for (session, rest) in [
        ("[\"all\"]", user),
        ("[\"{header:x}\", \"none\"]", user),
        ("[\"{header:x}\"]", ""),
        ("[\"{header:x}\", \"session_{hash:body:/input}\"]", ""),
    ] {
        assert_eq!(ids(session, rest), [""; 0], "{session} {rest}");
    }
    for rest in ["key = \"{session_id}\"", "user_id = [\"me\"]"] {
        assert_eq!(ids("[\"all\"]", rest).len(), 1, "{rest}: no user is in it");
    }
}

#[test]
fn check_says_who_can_attach_and_who_never_finds_a_turn() {
    let notes = |chat: &str, aside: &str| {
        let text = format!(
            "{UPSTREAM}[[routes]]\nname = \"chat\"\nmethods = [\"POST\"]\nsession_id = [\"{{header:x}}\"]\nreplay = true\n{chat}\n\
             [[routes]]\nname = \"aside\"\nsession_id = [\"{{header:x}}\"]\n{aside}\n"
        );
        let config = read(&text).unwrap_or_else(|problems| panic!("{text}{problems}"));
        let notes = config.remarks().into_iter().map(|note| note.to_string());
        let notes: Vec<_> = notes.filter(|note| note.contains("\"aside\"")).collect();
        notes.concat()
    };
    let user = "user_id = [\"{header:u}\"]";
    let (attach, stop) = ("attach = true\n", "stop = true\n");
    let other = "its user_id is not that of \"chat\", so it never finds a turn of it";
    let open = "its user_id is the same for everybody";
    for (chat, aside, expected) in [
        ("", attach.to_owned(), open),
        ("", stop.to_owned(), ""),
        (user, attach.to_owned(), other),
        (user, stop.to_owned(), other),
        ("", format!("{attach}{user}"), other),
        ("", format!("{attach}user_id = [\"me\"]"), other),
        (user, format!("{attach}{user}"), ""),
        // Two sources may give one user.
        (user, format!("{attach}user_id = [\"{{query:u}}\"]"), ""),
        // Nobody is told to name a user that no lock has.
        (
            "key = \"k:{session_id}\"",
            format!("{attach}key = \"k:{{session_id}}\""),
            "",
        ),
    ] {
        let found = notes(chat, &aside);
        let is_right = match expected {
            "" => found.is_empty(),
            expected => found.contains(expected),
        };
        assert!(is_right, "{chat} | {aside}: {found:?}, not {expected:?}");
    }
    let text = format!("{UPSTREAM}[[routes]]\nsession_id = [\"{{header:x}}\"]\n{user}\n");
    for (replay, expected) in [
        ("", "locks are in the"),
        ("replay = true\n", "locks and answers are in the"),
    ] {
        let config = read(&format!("{text}{replay}")).expect("it is valid");
        let note = config.remarks().remove(0).to_string();
        assert!(note.starts_with(expected), "{note}");
    }
}

#[test]
fn a_presets_turns_can_be_interrupted_with_answers_that_are_kept() {
    let with = |preset: &str, options: &str| {
        let options = format!("replay = true\nblocking = true\ninterrupt = true\n{options}");
        let text = format!("{UPSTREAM}[[routes]]\npreset = \"{preset}\"\n{options}");
        read(&text)
            .map(|_| ())
            .map_err(|problems| problems.to_string())
    };
    let why = with("vercel-ai", "").expect_err("its backend goes on");
    assert!(
        why.contains("write preset = \"vercel-ai-resume\"") && !why.contains("\"cancel\""),
        "it names what helps, and not what contradicts replay: {why}"
    );
    let why = with("vercel-ai", "on_disconnect = \"cancel\"\n").expect_err("not kept then");
    assert!(why.contains("contradicts replay = true"), "{why}");
    assert_eq!(with("vercel-ai-resume", ""), Ok(()), "what helps");
}

#[test]
fn check_says_which_turns_never_wait_because_they_are_observed() {
    let notes = |lock: &str| {
        let text = format!(
            "{UPSTREAM}[lock]\n{lock}\n[[routes]]\nname = \"a\"\nsession_id = [\"{{header:x}}\"]\n"
        );
        let config = read(&text).unwrap_or_else(|problems| panic!("{text}{problems}"));
        let notes = config.remarks().into_iter().map(|note| note.to_string());
        let notes: Vec<_> = notes.filter(|note| note.contains("enforce")).collect();
        notes
    };
    assert_eq!(
        notes("blocking = true\nkeep_alive = 1\nqueue_events = \"q\"\nenforce = false"),
        [
            "enforce = false on \"a\": no turn waits there, so blocking, interrupt and queue_events have no \
             effect until enforce is true"
        ]
    );
    for lock in [
        "blocking = true\nkeep_alive = 1\nqueue_events = \"q\"",
        // An observed event stream gets comments.
        "keep_alive = 1\nenforce = false",
    ] {
        assert_eq!(notes(lock), [""; 0], "{lock}");
    }
}

#[test]
fn a_method_that_is_nearly_one_is_warned_of() {
    let methods = |list: &str| {
        warnings(&format!(
            "{UPSTREAM}{}",
            route(&format!("methods = {list}"))
        ))
    };
    assert_eq!(
        methods("[\"GET\", \"PSOT\", \"DELTE\"]"),
        [
            "routes[0].methods[1] = \"PSOT\" (line 4): is not a known method; did you mean \"POST\"?",
            "routes[0].methods[2] = \"DELTE\" (line 4): is not a known method; did you mean \"DELETE\"?",
        ]
    );
    let known = "[\"GET\", \"QUERY\", \"PURGE\", \"PROPFIND\", \"UNLINK\", \"CHAT\"]";
    assert_eq!(methods(known), [""; 0], "extension methods exist");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_prints_a_warning_with_file_and_line_and_the_start_and_a_reload_log_it_once() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\n{UPSTREAM}[admin]\nlisten = \"127.0.0.1:0\"\n{}",
        route("methods = [\"PSOT\"]")
    );
    std::fs::write(&path, &text).expect("the file is written");
    let file = path.to_str().expect("UTF-8");
    let warning = "routes[0].methods[0] = \"PSOT\" (line 7): is not a known method";
    let checked = run(&["check", "--config", file]);
    let notes = String::from_utf8_lossy(&checked.stderr);
    let line = format!("note: {file}: {warning}");
    assert!(
        checked.status.success() && notes.lines().any(|note| note.starts_with(&line)),
        "{notes}"
    );
    let mut started = seriatim()
        .args(["--config", file])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let log = BufReader::new(started.stderr.take().expect("stderr is piped"));
    let lines = log.lines().map_while(Result::ok);
    let lines = lines.take_while(|line| !line.contains("serving"));
    let told = lines
        .filter(|line| line.contains(warning))
        .collect::<Vec<_>>();
    started.kill().expect("it runs");
    started.wait().expect("it ends");
    assert!(
        told.len() == 1 && told[0].contains(file),
        "the start logs it once, with the file: {told:?}"
    );
    let process = Process::start(&path);
    process.signal("HUP");
    let logged = || process.times_logged("did you mean \\\"POST\\\"?") == 1;
    wait_for(logged, "the reload logs it").await;
}
