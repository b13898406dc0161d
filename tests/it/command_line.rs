//! The binary: its exit codes, its output, its log, and how it stops.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::support::backend::{Backend, event};
use crate::support::client::{Client, begin_turn, turn};
use crate::support::process::{Process, run, seriatim};
use crate::support::redis::Redis;
use crate::support::wait_for_async;

/// A configuration file in its own folder.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).expect("a file in it");
        Self {
            _folder: folder,
            path,
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}

/// A running `seriatim demo`. Killed when dropped.
struct Demo(Child);

impl Demo {
    fn start() -> Self {
        let child = seriatim()
            .args(["demo", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("the binary starts"))
    }

    /// The lines of its output up to one that begins so.
    fn lines_until(&mut self, last: &str) -> Vec<String> {
        let output = self.0.stdout.take().expect("stdout is piped");
        let mut lines = Vec::new();
        for line in BufReader::new(output).lines() {
            let line = line.expect("UTF-8");
            if line.starts_with(last) {
                return lines;
            }
            lines.push(line);
        }
        panic!("{last} is printed: {lines:?}")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config(backend: &Backend, redis: &Redis) -> File {
    File::with(&format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\n\
         [timeouts]\ndrain = \"1s\"\n{}",
        backend.url(),
        redis.url(),
        crate::support::app::CHAT
    ))
}

#[test]
fn an_invalid_configuration_exits_with_78_and_lists_all_problems() {
    let file = File::with("upsteam = \"http://x\"\n[lock]\nlock_timeout = -1\n");
    for command in [
        &["run", "--config", file.path()][..],
        &["check", "--config", file.path()],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(78), "{command:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        for expected in [
            "3 problems",
            "did you mean `upstream`?",
            "lock.lock_timeout = -1 (line 3)",
        ] {
            assert!(text.contains(expected), "{expected} is printed: {text}");
        }
    }
    let missing = run(&["--config", "/nowhere/config.toml"]);
    assert_eq!(
        missing.status.code(),
        Some(78),
        "a missing file exits with 78"
    );
    let text = String::from_utf8_lossy(&missing.stderr);
    assert!(text.contains("--config"), "the remedy is printed: {text}");
}

#[test]
fn config_is_accepted_before_and_after_a_command_that_reads_it_and_by_no_other() {
    let file = File::with("upsteam = \"http://x\"\n");
    for command in [
        &["check"][..],
        &["explain", "--path", "/"],
        &["locks", "list"],
        &["run"],
    ] {
        let file = ["--config", file.path()];
        for arguments in [[&file, command].concat(), [command, &file].concat()] {
            let output = run(&arguments);
            assert_eq!(output.status.code(), Some(78), "read by {arguments:?}");
        }
        let output = run(&[&file, command, &file].concat());
        assert_eq!(
            output.status.code(),
            Some(2),
            "twice is an error: {command:?}"
        );
    }
    for command in [&["presets"][..], &["options"], &["demo", "--once"]] {
        let file = ["--config", file.path()];
        for arguments in [[&file, command].concat(), [command, &file].concat()] {
            let output = run(&arguments);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
            assert!(text.contains("--config"), "the option is named: {text}");
        }
    }
}

/// The lines of standard output, as JSON.
fn json_lines(arguments: &[&str]) -> Vec<serde_json::Value> {
    let output = run(arguments);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = text.lines().map(serde_json::from_str);
    let lines = lines.collect::<Result<Vec<_>, _>>();
    lines.unwrap_or_else(|error| panic!("{arguments:?} prints JSON, {error}: {text}"))
}

#[test]
fn what_commands_print_is_there_as_json_too() {
    let file = File::with(
        "upstream = \"http://127.0.0.1:8000\"\n[store]\nurl = \"redis://user:geheim@host:6379/1\"\n\
         [[routes]]\nname = \"chat\"\nsession_id = [\"{body:/s}\"]\n",
    );
    let checked = json_lines(&["check", "--json", "--config", file.path()]);
    let [checked] = &*checked else {
        panic!("one object: {checked:?}");
    };
    assert_eq!(checked["valid"], true, "the configuration is valid");
    assert_eq!(
        (
            &checked["config"]["store"]["url"],
            &checked["config"]["routes"][0]["blocking"],
            &checked["notes"],
        ),
        (
            &"redis://user:***@host:6379/1".into(),
            &false.into(),
            &serde_json::json!([]),
        ),
        "options have their names, secrets are masked: {checked}"
    );
    let file = File::with("upsteam = \"http://x\"\n[lock]\nlock_timeout = -1\n");
    let checked = json_lines(&["check", "--json", "--config", file.path()]);
    assert_eq!(checked[0]["valid"], false, "it is not valid");
    let problems = checked[0]["problems"].as_array().expect("a list");
    let found = problems
        .iter()
        .find(|problem| problem["key"] == "lock.lock_timeout");
    let found = found.expect("each problem has its key");
    assert_eq!(
        (&found["value"], &found["line"], &found["variable"]),
        (&"-1".into(), &3.into(), &serde_json::Value::Null),
        "and value and place: {found}"
    );

    let presets = json_lines(&["presets", "--json"]);
    let named = presets.iter().find(|preset| preset["name"] == "a2a");
    let named = named.expect("each preset is a line");
    assert!(
        named["note"]
            .as_str()
            .is_some_and(|note| note.contains("work after the response")),
        "a preset has its note: {named}"
    );
    assert_eq!(
        json_lines(&["presets", "a2a", "--json"]),
        std::slice::from_ref(named),
        "one preset"
    );
    let options = json_lines(&["options", "lock.block", "--json"]);
    assert_eq!(
        (
            &options[0]["name"],
            &options[0]["variable"],
            &options[0]["default"]
        ),
        (
            &"lock.blocking".into(),
            &"SERIATIM__LOCK__BLOCKING".into(),
            &"false".into()
        ),
        "each option is a line: {options:?}"
    );
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for expected in ["explain", "request-id"] {
            assert!(text.contains(expected), "{shell} completes {expected}");
        }
    }
    for (page, expected) in [
        (&["man"][..], "seriatim\\-locks(1)"),
        (&["man", "locks", "release"], "\\-\\-request\\-id"),
        (&["man", "drain"], "78 the file"),
    ] {
        let output = run(page);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{page:?}");
        assert!(text.contains(expected), "{page:?} has {expected}: {text}");
    }
    assert_eq!(
        run(&["man", "nope"]).status.code(),
        Some(1),
        "no such command"
    );
    for empty in [&["man", ""][..], &["man", "locks", ""], &["options", ""]] {
        let code = run(empty).status.code();
        assert_eq!(
            code,
            Some(2),
            "{empty:?}: an empty name is a wrong argument"
        );
    }
}

/// The subcommands of a command, each with what its help says of it.
fn subcommands(command: &[&str]) -> Vec<(String, String)> {
    let output = run(&[command, &["--help"]].concat());
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let listed = help
        .split_once("\nCommands:\n")
        .map_or("", |(_, rest)| rest);
    let listed = listed.split("\n\n").next().unwrap_or_default();
    let listed = listed.lines().filter_map(|line| {
        let (name, about) = line.trim().split_once(' ')?;
        Some((name.to_owned(), about.trim().to_owned()))
    });
    listed.filter(|(name, _)| name != "help").collect()
}

#[test]
fn the_help_and_the_docs_name_each_subcommand() {
    let doc = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/command-line.md");
    let doc = std::fs::read_to_string(doc).expect("the page");
    let commands = subcommands(&[]);
    assert!(commands.len() > 10, "the help lists them: {commands:?}");
    for (command, about) in commands {
        let quoted = |name: &str| {
            let mut words = doc.split(|c: char| c.is_whitespace() || matches!(c, '`' | ','));
            words.any(|word| word == name)
        };
        assert!(quoted(&command), "{command} stands in the page");
        for (name, own) in subcommands(&[&command]) {
            assert!(!own.is_empty(), "{command} {name} has a description");
            assert!(
                about.to_lowercase().contains(&name),
                "what the help says of {command} names {name}: {about}"
            );
            assert!(quoted(&name), "{command} {name} stands in the page");
        }
    }
}

#[test]
fn a_failed_start_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("the listener's address");
    let file = File::with(&format!(
        "listen = \"{address}\"\nupstream = \"http://127.0.0.1:1\"\n"
    ));
    let output = run(&["run", "--config", file.path()]);
    assert_eq!(output.status.code(), Some(1), "a port in use exits with 1");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains(&address.to_string()),
        "the error names the address: {text}"
    );
}

#[test]
fn check_prints_the_configuration_with_secrets_masked() {
    let file = File::with(
        "upstream = \"http://127.0.0.1:8000\"\n[store]\nurl = \"redis://user:ge:heim@host:6379/1\"\n",
    );
    let output = run(&["check", "--config", file.path()]);
    let (text, notes) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{notes}");
    assert!(
        text.contains("url = \"redis://user:***@host:6379/1\""),
        "the URL is masked: {text}"
    );
    assert!(
        !text.contains("heim") && !notes.contains("heim"),
        "no secret is printed: {text}{notes}"
    );
    assert!(
        notes.contains("no route takes a lock"),
        "a configuration without a lock gets a note: {notes}"
    );
}

#[test]
fn check_warns_about_an_open_admin_listener_without_a_token() {
    let token = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(token.path(), "geheim").expect("written");
    let token = format!("token_file = \"{}\"", token.path().display());
    for (listen, token, warns) in [
        ("0.0.0.0:9901", "", true),
        ("[::]:9901", "", true),
        ("127.0.0.1:9901", "", false),
        ("0.0.0.0:9901", &*token, false),
    ] {
        let upstream = "upstream = \"http://127.0.0.1:1\"";
        let text = format!("{upstream}\n[admin]\nlisten = \"{listen}\"\n{token}\n");
        let file = File::with(&text);
        let output = run(&["check", "--config", file.path()]);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(0),
            "the configuration is valid: {notes}"
        );
        assert_eq!(
            notes.contains("admin.token_file"),
            warns,
            "{listen} {token}: {notes}"
        );
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains(token), "the file's name is printed: {shown}");
        assert!(
            !shown.contains("geheim"),
            "the file's content is not printed: {shown}"
        );
    }
}

#[test]
fn the_demo_shows_a_stream_a_refusal_and_the_next_turn() {
    let output = run(&["demo", "--once", "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("{what} is printed: {text}"))
    };
    let first = at("turn 1: data: {\"text\": \"One\"}");
    let refused = at("turn 2: HTTP/1.1 429 Too Many Requests");
    let last = at("turn 1: data: {\"text\": \"another.\"}");
    let next = at("turn 3: HTTP/1.1 200 OK");
    at("turn 2: {\"success\":false,\"error\":\"AI 正在思考中，请稍后再试\"");
    at("turn 3: data: {\"text\": \"another.\"}");
    assert!(
        first < refused && refused < last && last < next,
        "the demo prints them in this order: {text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_prints_the_address_of_a_status_page_that_knows_its_turns() {
    let mut demo = Demo::start();
    let lines = demo.lines_until("Press Ctrl-C");
    let page = lines
        .iter()
        .find_map(|line| line.strip_prefix("Status page: http://"));
    let page = page.and_then(|page| page.strip_suffix('/'));
    let page = page.unwrap_or_else(|| panic!("the address is printed: {lines:?}"));
    let mut client = Client::connect(page.parse().expect("an address")).await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, 200, "the page is there");
    let status = client.get("/status").await.json();
    assert_eq!(
        status["recent"][0]["outcome"], "session_busy",
        "it shows the refused turn: {status}"
    );
}

#[tokio::test]
async fn every_request_gets_one_access_event_with_its_outcome() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = config(&backend, &redis);
    let process = Process::start(&file.path);
    let addr = process.addr();

    assert_eq!(
        turn(addr, "s1", "chunked:2:1").await.status,
        200,
        "a turn is served"
    );
    let mut held = begin_turn(addr, "s1", "gate").await;
    held.read_until(&event(0)).await;
    assert_eq!(
        turn(addr, "s1", "plain:x").await.status,
        429,
        "a busy session is refused"
    );
    backend.open_gate("s1");
    held.answer().await;
    let mut client = Client::connect(addr).await;
    assert_eq!(
        client.get("/free?token=geheim").await.status,
        200,
        "a request without a lock passes"
    );
    assert_eq!(
        client.post_json("/chat", "{").await.status,
        400,
        "a body that is not JSON is refused"
    );
    assert_eq!(
        turn(addr, "s2", "close").await.status,
        502,
        "a backend that closes before the response head is a 502"
    );
    assert!(
        !turn(addr, "s2", "break-chunked").await.whole,
        "a backend that closes in the middle breaks the response"
    );
    let leaves = begin_turn(addr, "s3", "hang").await;
    backend.started("s3", 1).await;
    leaves.close();
    backend.gone("s3").await;
    let mut leaves = begin_turn(addr, "s4", "hang-middle").await;
    leaves.read_until(&event(0)).await;
    leaves.close();
    backend.gone("s4").await;
    let quiet = async || redis.keys().await.is_empty();
    wait_for_async(quiet, "every lock is released").await;
    redis.kill();
    assert_eq!(
        turn(addr, "s5", "plain:x").await.status,
        503,
        "without Redis no turn runs"
    );
    process.signal("TERM");
    let (status, events) = process.end();
    assert_eq!(status.code(), Some(0), "SIGTERM exits with 0");

    let mut outcomes: Vec<_> = events
        .iter()
        .filter(|event| event["target"] == "seriatim::access")
        .map(|event| {
            assert!(
                !event.to_string().contains("geheim"),
                "no query string is logged: {event}"
            );
            assert!(
                event["request_id"].is_string() && event["total_us"].is_number(),
                "{event}"
            );
            (
                event["outcome"].as_str().unwrap_or("none"),
                event["status"].as_u64(),
            )
        })
        .collect();
    outcomes.sort_unstable();
    let mut expected = vec![
        ("complete", Some(200)),
        ("complete", Some(200)),
        ("session_busy", Some(429)),
        ("complete", Some(200)),
        ("malformed_body", Some(400)),
        ("upstream_unreachable", Some(502)),
        ("upstream_aborted", Some(200)),
        ("client_gone", None),
        ("client_gone", Some(200)),
        ("store_unavailable", Some(503)),
    ];
    expected.sort_unstable();
    assert_eq!(outcomes, expected, "each request has one access event");
    let served = events
        .iter()
        .find(|event| event["outcome"] == "complete")
        .expect("a complete turn has an event");
    for field in [
        "route", "key", "fence", "bytes", "wait_us", "hold_us", "head_us", "path",
    ] {
        assert!(
            !served[field].is_null(),
            "the event of a turn has {field}: {served}"
        );
    }
}

#[tokio::test]
async fn the_log_says_why_a_turn_was_aborted() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = config(&backend, &redis);
    let text = std::fs::read_to_string(&file.path).expect("the file");
    let lock = "[lock]\nlock_timeout = \"400ms\"\n[store]\ntimeout = \"300ms\"";
    std::fs::write(&file.path, text.replace("[store]", lock)).expect("the file is written again");
    let process = Process::start(&file.path);
    let answer = turn(process.addr(), "s1", "chunked:100000:5").await;
    assert!(!answer.whole, "the turn outlives its lease");
    process.signal("TERM");
    let (_, events) = process.end();
    let aborted = events.iter().find(|event| event["outcome"] == "lock_lost");
    let aborted = aborted.unwrap_or_else(|| panic!("the abort is logged: {events:#?}"));
    assert_eq!(
        aborted["error"], "its lease ran out",
        "the event has the reason: {aborted}"
    );
    assert_eq!(
        aborted["key"], "lock:session:u1:s1",
        "the event names the key: {aborted}"
    );
}

#[tokio::test]
async fn sigterm_with_open_streams_leaves_no_key_and_exits_with_0() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = config(&backend, &redis);
    let process = Process::start(&file.path);
    let mut streams = Vec::new();
    for n in 0..20 {
        let mut stream = begin_turn(process.addr(), &format!("s{n}"), "gate").await;
        stream.read_until(&event(0)).await;
        streams.push(stream);
    }
    process.signal("TERM");
    for n in 0..10 {
        backend.open_gate(&format!("s{n}"));
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(
            stream.answer().await.whole,
            n < 10,
            "turn {n} ends whole if it ends within the drain timeout"
        );
    }
    let (status, _) = process.end();
    assert_eq!(
        status.code(),
        Some(0),
        "aborting the rest still exits with 0"
    );
    assert_eq!(redis.keys().await, [""; 0], "no key is left");
}

#[tokio::test]
async fn a_killed_replica_leaves_only_keys_with_a_ttl() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = config(&backend, &redis);
    let process = Process::start(&file.path);
    let mut stream = begin_turn(process.addr(), "s1", "gate").await;
    stream.read_until(&event(0)).await;
    process.signal("KILL");
    assert!(
        !stream.answer().await.whole,
        "the killed replica's streams break"
    );
    backend.gone("s1").await;
    let keys = redis.keys().await;
    assert!(!keys.is_empty(), "the killed replica released no lock");
    for key in keys {
        assert!(redis.pttl(&key).await > 0, "every key has a TTL: {key}");
    }
}

#[tokio::test]
async fn the_binary_starts_without_redis_and_serves_once_redis_is_up() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    redis.kill();
    let file = config(&backend, &redis);
    let process = Process::start(&file.path);
    assert_eq!(
        turn(process.addr(), "s1", "plain:x").await.status,
        503,
        "without Redis no turn runs"
    );
    redis.restart().await;
    let served = async || turn(process.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(served, "turns are served once Redis is up").await;
}
