//! The configuration: all problems are reported at once, a valid one prints as it is, environment
//! variables override the file, and secrets stay secret.
//!
//! Each file in `tests/config/invalid` opens with the problems it must get, one a line, behind `# `.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use seriatim::config::reader::{self, Variables};
use seriatim::config::{Config, StoreAddress};
use seriatim::lock::RedisUrl;

/// The password in the files. No message may show it.
const SECRET: &str = "hunter2";

const UPSTREAM: &str = "upstream = \"http://127.0.0.1:8000\"\n";

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The TOML files of a folder below `tests/config` with their text, sorted by path.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = manifest().join("tests/config").join(folder);
    let entries = fs::read_dir(&folder).expect("the folder exists");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("the entry can be read").path())
        .collect();
    paths.sort();
    let text = |path: &PathBuf| fs::read_to_string(path).expect("the file can be read");
    paths
        .iter()
        .map(|path| (path.clone(), text(path)))
        .collect()
}

fn variables(pairs: &[(&str, &str)]) -> Variables {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// Reads a valid configuration from a file's text and these variables.
fn read(text: &str, set: &[(&str, &str)]) -> Config {
    match Config::read("test", text, &variables(set)) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}\n{set:?}\n{text}"),
    }
}

/// The store at this URL.
fn redis(url: &str) -> StoreAddress {
    StoreAddress::Redis(RedisUrl::parse(url).expect("a URL"))
}

/// Reads an invalid configuration; gives its problems, one line each.
fn problems(text: &str, set: &[(&str, &str)]) -> Vec<String> {
    let problems = match Config::read("the file", text, &variables(set)) {
        Ok(config) => panic!("{text}\n{set:?} must be invalid: {config}"),
        Err(problems) => problems,
    };
    let (report, count) = (problems.to_string(), problems.problems.len());
    let mut lines = report.lines();
    let plural = if count == 1 { "" } else { "s" };
    assert_eq!(
        lines.next(),
        Some(&*format!("the file: {count} problem{plural}")),
        "the heading names the file and counts the problems"
    );
    let lines: Vec<_> = lines
        .map(|line| line.trim_start_matches(' ').to_owned())
        .collect();
    assert_eq!(lines.len(), count, "a problem is one line: {report}");
    lines
}

// === files ===

#[test]
fn all_problems_of_a_file_are_reported_at_once_and_in_order() {
    let files = files("invalid");
    let different: Vec<_> = files
        .iter()
        .filter_map(|(path, text)| {
            let opening = text.lines().map_while(|line| line.strip_prefix("# "));
            let (expected, reported): (Vec<_>, _) = (opening.collect(), problems(text, &[]));
            let report = || {
                let (reported, expected) = (reported.join("\n"), expected.join("\n"));
                format!(
                    "{}\nsays\n{reported}\ninstead of\n{expected}\n",
                    path.display()
                )
            };
            (reported != expected).then(report)
        })
        .collect();
    assert!(!files.is_empty(), "the folder has files");
    assert!(
        different.is_empty(),
        "an invalid file opens with all its problems:\n{}",
        different.join("\n")
    );
}

#[test]
fn no_message_shows_a_password() {
    for (path, text) in files("invalid") {
        let message = problems(&text, &[]).join("\n");
        assert!(
            !message.contains(SECRET),
            "the problems of {} do not show its password: {message}",
            path.display()
        );
    }
    let url = format!("redis://agent:{SECRET}@127.0.0.1:6379");
    for (name, value) in [
        ("SERIATIM__STORE__URL", format!("{url}/x")),
        ("SERIATIM__STORE__ULR", url.clone()),
        ("SERIATIM__STORE__PASSWORD", SECRET.to_owned()),
        ("SERIATIM__STORE", url.clone()),
        ("SERIATIM__STORE", format!("{{ url = {url} }}")),
        ("SERIATIM__UPSTREAM", url.clone()),
        ("SERIATIM__LISTEN", url.clone()),
        ("SERIATIM__LOG__LEVEL", url.clone()),
    ] {
        let message = problems(UPSTREAM, &[(name, &value)]).join("\n");
        assert!(
            message.contains(name) && !message.contains(SECRET),
            "the problem names {name} and does not show its value: {message}"
        );
    }
    let config = read(UPSTREAM, &[("SERIATIM__STORE__URL", &url)]);
    for printed in [config.to_string(), format!("{config:?}")] {
        assert!(
            printed.contains("redis://agent:***@127.0.0.1:6379") && !printed.contains(SECRET),
            "a configuration prints with its secrets masked: {printed}"
        );
    }
}

#[test]
fn a_printed_configuration_reads_back_as_the_same() {
    let files = files("valid");
    assert!(!files.is_empty(), "the folder has files");
    for (path, text) in files {
        let printed = read(&text, &[]).to_string();
        let again = read(&printed, &[]).to_string();
        assert_eq!(
            printed,
            again,
            "{} prints the same after a second reading",
            path.display()
        );
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let text =
        format!("{UPSTREAM}[[routes]]\nname = \"chat\"\nsession_id = [\"{{body:/session_id}}\"]\n");
    let expected = r#"listen = "0.0.0.0:8080"
upstream = "http://127.0.0.1:8000"
upstream_host = "client"
forwarded = "trust"
unmatched = "pass"

[store]
url = "memory:"
timeout = "1s"

[errors]
language = "zh"

[limits]
max_body = 10485760
max_buffered = 268435456
read_before_lock = 65536
min_body_rate = 240
max_id_bytes = 512
max_connections = 10000

[timeouts]
request_head = "10s"
request_body = "30s"
request_body_total = "5m"
connect = "5s"
response_head = "5m"
idle_stream = "5m"
keep_alive = "10m 20s"
client_unreachable = "30s"
drain = "30s"

[admin]
listen = "127.0.0.1:9901"

[log]
format = "text"
level = "info"
ids = "plain"

[[routes]]
name = "chat"
session_id = ["{body:/session_id}"]
user_id = ["unknown"]
key = "lock:session:{user_id}:{session_id}"
lock_timeout = "5m"
blocking = false
on_lost = "abort"
settle = "0s"
enforce = true
on_disconnect = "cancel"
replay = false
on_missing = "pass"  # a request that names no session or no user passes without a lock, as no_session
on_malformed = "reject"
nested_calls = "header"
busy = { status = 429, format = "json", error = "AI 正在思考中，请稍后再试", retry_after = "auto" }
"#;
    assert_eq!(
        read(&text, &[]).to_string(),
        expected,
        "options that are not set have the defaults of the contract"
    );
}

#[test]
fn every_option_is_read_as_written() {
    let path = manifest().join("tests/config/valid/every_option.toml");
    let text = fs::read_to_string(path).expect("the file can be read");
    let expected = r#"listen = "unix:/run/seriatim.sock"
upstream = "http://agent.example:8000"
upstream_host = "upstream"
forwarded = "replace"
unmatched = "reject"

[tls]
cert_file = "tests/config/tls/cert.pem"
key_file = "tests/config/tls/key.pem"

[store]
url = "rediss-sentinel://agent:***@127.0.0.1:26379,[::1]:26380/my-master.1/1"
sentinel_user = "watcher"
sentinel_password_file = "tests/config/password"
ca_file = "tests/config/ca.pem"
cert_file = "tests/config/tls/cert.pem"
key_file = "tests/config/tls/key.pem"
server_name = "redis.internal"
timeout = "250ms"
on_error = "reject"
crash_recovery = "1m 30s"
failover_grace = "1s 500ms"
wait_replicas = 2
instance = "agent-0.eu_1"
prefix = "eu.1:stag_ing-"
unready_after = "1m 30s"

[errors]
language = "auto"
help_url = "https://Wiki.example.com/errors?v=1"

[cors]
allow_origins = ["https://app.example.com", "http://localhost:3000"]
allow_credentials = true

[limits]
max_body = 1048576
max_buffered = 2097152
read_before_lock = 0
min_body_rate = 1024
max_id_bytes = 128
max_connections = 1

[timeouts]
request_head = "1m"
request_body = "1m"
request_body_total = "1h"
connect = "500ms"
response_head = "1h 30m"
idle_stream = "1m 30s"
keep_alive = "1m 15s"
client_unreachable = "0s"
drain = "1ms"

[replay]
max_turn = 1048576
keep = "1m 30s"
max_total = 2097152
over_limit = "live"

[admin]
listen = "[::1]:9902"
token_file = "tests/config/token"

[log]
format = "json"
level = "trace"
ids = "hash"

[tracing]
otlp = "https://otlp.example/base/v1/traces"
ca_file = "tests/config/ca.pem"
service = "agent"

[[routes]]
name = 'all of "it"'
host = ["*.example.com", "agent.example", "[::1]"]
methods = ["POST", "PUT"]
path = "/Threads/{thread}/runs/{*rest}"
headers = { "x-any" = "*", "x-kind" = ["a", 'b \ "c"'] }
upstream = "https://other.example:444"
upstream_host = "client"
session_id = ["{path:thread}-{header:x-session}", "{cookie:sid}", "{query:a b}", "{hash:lower:body:/a~1b/~0/0}"]
user_id = ["{path:rest}", "{body:/user/id}"]
once = ["{header:idempotency-key}", "{path:thread}-{hash:body:/messages/-1}"]
key = "{session_id}:{user_id}"
lock_timeout = "1h"
extend_lock_interval = "30m"
blocking = false
on_lost = "abort"
settle = "1m"
settle_cancelled = "500ms"
enforce = true
on_disconnect = "continue"
replay = true
on_missing = "pass"  # a request that names no session or no user passes without a lock, as no_session
on_malformed = "reject"
nested_calls = "traceparent"
keep_alive = "20s"
stream = "sse"
on_repeat = "attach"
once_for = "1day"
busy = { status = 409, format = "json", error = "busy", retry_after = 86400, explain = false }

[[routes]]
name = "route-1"
path = "/{*any}/constant"
session_id = ["a constant"]
user_id = ["unknown"]
key = "agent:{user_id}:{session_id}"
lock_timeout = "1m"
extend_lock_interval = "20s"
blocking = true
blocking_timeout = "30s"
interrupt = true
max_waiters = 8
on_lost = "continue"
settle = "250ms"
settle_cancelled = "500ms"
enforce = false
on_disconnect = "cancel"
replay = false
on_missing = "reject"  # a request that names no session or no user is refused as missing_session
on_malformed = "pass"
nested_calls = "header"
keep_alive = "20s"
stream = "sse"
queue_events = "seriatim.queue"
busy = { status = 503, format = "openai", error = { en = 'Say "please"', pt-br = "ocupado", zh = "忙" }, retry_after = 0, explain = true }

[[routes]]
name = "line"
path = "/line"
session_id = ["{header:x-session}"]
user_id = ["unknown"]
key = "agent:{user_id}:{session_id}"
lock_timeout = "1m"
extend_lock_interval = "20s"
blocking = true
blocking_timeout = "10ms"
interrupt = false
max_waiters = 10000
on_lost = "continue"
settle = "250ms"
settle_cancelled = "500ms"
enforce = false
on_disconnect = "continue"
replay = false
on_missing = "reject"  # a request that names no session or no user is refused as missing_session
on_malformed = "pass"
nested_calls = "header"
busy = { status = 503, format = "openai", error = { en = 'Say "please"', pt-br = "ocupado", zh = "忙" }, retry_after = 0, explain = true }

[[routes]]
name = "stream"
path = "/{session}/{user}/stream"
session_id = ["{path:session}"]
user_id = ["{path:user}"]
attach = true
attach_ended = false
key = "{session_id}:{user_id}"
on_missing = "reject"  # a request that names no session or no user is refused as missing_session
on_malformed = "pass"
keep_alive = "15s"
busy = { status = 503, format = "openai", error = { en = 'Say "please"', pt-br = "ocupado", zh = "忙" }, retry_after = 0, explain = true }

[[routes]]
name = "stop a turn"
methods = ["DELETE"]
path = "/{session}/stop"
session_id = ["{path:session}"]
user_id = ["unknown"]
stop = true
key = "agent:{user_id}:{session_id}"
on_missing = "reject"  # a request that names no session or no user is refused as missing_session
on_malformed = "pass"
busy = { status = 503, format = "openai", error = { en = 'Say "please"', pt-br = "ocupado", zh = "忙" }, retry_after = 0, explain = true }

[[routes]]
name = "stop"
host = ["agent.example"]
path = "/"
lock = false
"#;
    assert_eq!(
        read(&text, &[]).to_string(),
        expected,
        "no option is accepted and then ignored, and a route overrides [lock] and [busy]"
    );
}

#[test]
fn the_example_is_valid_and_shows_all_options_with_their_defaults() {
    let path = manifest().join("config.toml");
    let text = fs::read_to_string(path).expect("the repository has an example");
    let config = read(&text, &[]);
    let turns: Vec<_> = config
        .routes
        .iter()
        .map(|route| (&*route.name, route.turn.is_some()))
        .collect();
    assert_eq!(
        turns,
        [("chat", true), ("stop", false)],
        "the example locks one route and passes another"
    );
    // In the example, an option that is not set is a comment without a space after `#`.
    let line = |line: &str| match line.strip_prefix('#') {
        Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase()) => option.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<_> = text.lines().map(line).collect();
    let all = all.join("\n");
    let name = |line: &str| {
        let line = line.trim_start_matches('[');
        line.split([' ', ']']).next().map(str::to_owned)
    };
    let names: Vec<_> = all.lines().map(name).collect();
    // Some options print only with Redis, or with a queue.
    let with_all = [
        ("SERIATIM__STORE__URL", "redis://127.0.0.1:6379/0"),
        ("SERIATIM__LOCK__BLOCKING", "true"),
    ];
    for set in [&[][..], &with_all] {
        let printed = read(&text, set).to_string();
        assert_eq!(
            read(&all, set).to_string(),
            printed,
            "the commented options are valid, and are the defaults: {set:?}"
        );
        for option in printed.lines() {
            assert!(
                names.contains(&name(option)),
                "the example has every option: {option}"
            );
        }
    }
}

#[test]
fn the_example_of_the_contract_spells_out_the_defaults() {
    let valid = |name: &str| {
        let path = manifest().join("tests/config/valid").join(name);
        fs::read_to_string(path).expect("the file can be read")
    };
    let short = [
        ("SERIATIM__UPSTREAM", "http://127.0.0.1:8000"),
        ("SERIATIM__STORE__URL", "redis://127.0.0.1:6379/0"),
        // The example names a fixed time. Without one, the time goes by how long turns take.
        ("SERIATIM__BUSY__RETRY_AFTER", "1"),
    ];
    assert_eq!(
        read(&valid("the_contracts_example.toml"), &[]).to_string(),
        read(&valid("the_usual_route.toml"), &short).to_string(),
        "the implemented options are read as written, also those without effect"
    );
}

// === the environment ===

#[test]
fn a_variable_may_be_a_number_or_the_word_for_none() {
    let text = format!(
        "{UPSTREAM}[busy]\nretry_after = 5\n{}",
        crate::support::app::CHAT
    );
    for (value, expected) in [("auto", "\"auto\""), ("7", "7")] {
        let printed = read(&text, &[("SERIATIM__BUSY__RETRY_AFTER", value)]).to_string();
        assert!(
            printed.contains(&format!("retry_after = {expected} }}")),
            "{value} overrides the file: {printed}"
        );
    }
    let wrong = problems(&text, &[("SERIATIM__BUSY__RETRY_AFTER", "soon")]);
    assert!(
        wrong[0].ends_with("write a whole number from 0 to 86400, or \"auto\""),
        "another word is refused: {wrong:?}"
    );
}

#[test]
fn variables_override_the_file() {
    let text = format!("{UPSTREAM}[store]\nurl = \"redis://in.file:6379\"\ntimeout = \"2s\"\n");
    let config = read(&text, &[("SERIATIM__STORE__URL", "redis://in.env:6379/1")]);
    assert_eq!(
        config.store.url,
        redis("redis://in.env:6379/1"),
        "a variable overrides the file"
    );
    assert_eq!(
        config.store.timeout.as_secs(),
        2,
        "the variable changes only its own option"
    );
    let set = [
        ("SERIATIM__UPSTREAM", "http://agent:8000"),
        ("SERIATIM__LISTEN", "127.0.0.1:1"),
    ];
    let config = read("", &set);
    let upstream = config.upstream.map(|upstream| upstream.to_string());
    assert_eq!(
        (upstream.as_deref(), &*config.listen.to_string()),
        (Some("http://agent:8000"), "127.0.0.1:1"),
        "variables can replace the file"
    );
}

#[test]
fn a_variable_is_read_as_the_type_of_its_option() {
    let defaults = read(UPSTREAM, &[]).to_string();
    for (name, value, line) in [
        ("LIMITS__MAX_BODY", "1024", "max_body = 1024"),
        ("LIMITS__MAX_BODY", "2KiB", "max_body = 2048"),
        ("LIMITS__MAX_BODY", "\"2KiB\"", "max_body = 2048"),
        ("TIMEOUTS__DRAIN", "5", "drain = \"5s\""),
        ("TIMEOUTS__DRAIN", "0.5", "drain = \"500ms\""),
        ("TIMEOUTS__DRAIN", "5m", "drain = \"5m\""),
        ("TIMEOUTS__DRAIN", "\"250ms\"", "drain = \"250ms\""),
        ("LOG__LEVEL", "debug", "level = \"debug\""),
        ("STORE", "{ timeout = \"3s\" }", "timeout = \"3s\""),
        ("store__timeout", "4s", "timeout = \"4s\""),
        ("STORE__INSTANCE", "007", "instance = \"007\""),
    ] {
        let name = format!("SERIATIM__{name}");
        let printed = read(UPSTREAM, &[(&name, value)]).to_string();
        let changed: Vec<_> = printed
            .lines()
            .filter(|line| !defaults.lines().any(|default| default == *line))
            .collect();
        assert_eq!(
            changed,
            [line],
            "{name}={value} sets its option and no other"
        );
    }
}

#[test]
fn a_variable_can_set_the_routes() {
    let routes = r#"[
        { name = "stop", path = "/stop", lock = false },
        { name = "007", methods = ["POST"], session_id = ["{header:x-session}"], lock_timeout = 20, busy = { status = 409 } },
    ]"#;
    let file = format!("{UPSTREAM}[[routes]]\nname = \"in the file\"\nlock = false\n");
    let config = read(&file, &[("SERIATIM__ROUTES", routes)]);
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(
        names,
        ["stop", "007"],
        "the variable's routes replace those of the file"
    );
    let turn = config.routes[1]
        .turn
        .as_ref()
        .expect("the route takes a lock");
    assert_eq!(
        (
            turn.lock.options.lock_timeout.as_secs(),
            turn.busy.status.as_u16()
        ),
        (20, 409),
        "numbers and tables in the variable keep their types"
    );
}

#[test]
fn a_password_file_is_named_by_the_file_or_by_a_variable() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), format!("{SECRET}\n")).expect("the file can be written");
    let path = file.path().to_str().expect("its name is text");
    let url = "redis://agent@127.0.0.1";
    let in_file = format!("{UPSTREAM}[store]\nurl = {url:?}\npassword_file = {path:?}\n");
    let set = [
        ("SERIATIM__STORE__URL", url),
        ("SERIATIM__STORE__PASSWORD_FILE", path),
    ];
    for config in [read(&in_file, &[]), read(UPSTREAM, &set)] {
        assert_eq!(config.store.url, redis(url), "the URL stays as it is");
        let printed = config.to_string();
        assert!(
            printed.contains(&format!("password_file = {path:?}")) && !printed.contains(SECRET),
            "the path is shown, and not the password: {printed}"
        );
    }
    let digits = read(UPSTREAM, &[("SERIATIM__STORE__URL", "redis://:00123@h")]);
    assert_eq!(
        digits.store.url,
        redis("redis://:00123@h"),
        "a password in a variable is text, too"
    );
}

#[test]
fn a_problem_of_a_variable_names_the_variable() {
    let file =
        format!("{UPSTREAM}[store]\ntimeout = \"2s\"\n[[routes]]\nname = \"chat\"\nlock = false\n");
    for (name, value, line) in [
        (
            "SERIATIM__STORE__TIMEOUT",
            "soon",
            "store.timeout = \"soon\" (environment variable SERIATIM__STORE__TIMEOUT): write a number of seconds, or a duration as \"250ms\", \"30s\", \"5m\"",
        ),
        (
            "SERIATIM__STORE__TIMEOUTS",
            "1s",
            "store.timeouts (environment variable SERIATIM__STORE__TIMEOUTS): unknown key; did you mean `timeout`?",
        ),
        (
            "SERIATIM__STOR__URL",
            "memory:",
            "stor (environment variable SERIATIM__STOR__URL): unknown key; did you mean `store`?",
        ),
        (
            "SERIATIM__LIMITS__max_BODIES",
            "1",
            "limits.max_bodies (environment variable SERIATIM__LIMITS__max_BODIES): unknown key; did you mean `max_body`?",
        ),
        (
            "SERIATIM__BUSY__STATUS",
            "2000",
            "busy.status = \"2000\" (environment variable SERIATIM__BUSY__STATUS): write a whole number from 400 to 599, or 200 with format = \"json-rpc\"",
        ),
        (
            "SERIATIM__LOCK",
            "{ interrupt = true }",
            "lock.interrupt = true (environment variable SERIATIM__LOCK): is used only with blocking = true: write blocking = true too, or leave it out",
        ),
        (
            "SERIATIM__ROUTES",
            r#"[{ name = "chat", lock = false, pth = "/" }]"#,
            "routes[0].pth (environment variable SERIATIM__ROUTES): unknown key; did you mean `path`?",
        ),
        (
            "SERIATIM__ROUTES__0__NAME",
            "chat",
            "routes = {...} (environment variable SERIATIM__ROUTES__0__NAME): write a list in square brackets, not a table",
        ),
        (
            "SERIATIM__ROUTES",
            "chat",
            "routes = \"chat\" (environment variable SERIATIM__ROUTES): write a list in square brackets, not text",
        ),
        (
            "SERIATIM__",
            "1",
            "environment variable SERIATIM__: unknown key; the keys here are listen, upstream, upstream_host, upstream_ca_file, forwarded, unmatched, tls, store, errors, cors, limits, timeouts, admin, log, tracing, replay, lock, busy, routes",
        ),
    ] {
        assert_eq!(
            problems(&file, &[(name, value)]),
            [line],
            "the problem names {name}"
        );
    }
}

#[test]
fn only_variables_with_two_underscores_are_options() {
    for (name, _) in reader::environment() {
        assert!(name.starts_with("SERIATIM_"), "{name} is not read");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), UPSTREAM).expect("the file can be written");
    // Kubernetes sets such variables for a service named `seriatim`; the last two are options.
    let checked = Command::new(env!("CARGO_BIN_EXE_seriatim"))
        .args(["check", "--config"])
        .arg(file.path())
        .env("SERIATIM_SERVICE_HOST", "10.0.0.1")
        .env("SERIATIM_PORT", "tcp://10.0.0.1:8080")
        .env("SERIATIM_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        .env("seriatim__listen", "127.0.0.1:2")
        .env("SERIATIM__UNMATCHED", "reject")
        .output()
        .expect("the binary starts");
    let expected = read(UPSTREAM, &[("SERIATIM__UNMATCHED", "reject")]).to_string();
    assert_eq!(
        String::from_utf8_lossy(&checked.stdout).trim_end(),
        expected.trim_end(),
        "SERIATIM_SERVICE_HOST and the like are ignored: {checked:?}"
    );
}
