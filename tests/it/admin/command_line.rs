//! `seriatim locks`, which works directly on the store.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::{hold_from_python, start};
use crate::support::app::{CHAT, key, wait_for_queue_length, wait_until_no_keys};
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, turn};
use crate::support::process::{Process, run};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};

/// A configuration file in its own folder.
pub(super) struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    pub(super) fn with(store: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        let text = format!(
            "upstream = \"http://127.0.0.1:1\"\n[store]\nurl = \"{store}\"\n{more}\n{CHAT}"
        );
        std::fs::write(&path, text).expect("a file");
        Self {
            _folder: folder,
            path,
        }
    }

    /// The file of a process, with more options of `[store]`.
    fn serving(backend: &Backend, redis: &Redis, store: &str) -> Self {
        Self::serving_route(backend, redis, store, CHAT)
    }

    /// The file of a process with this route.
    fn serving_route(backend: &Backend, redis: &Redis, store: &str, route: &str) -> Self {
        let file = Self::with("memory:", "");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\n{store}\n{route}",
            backend.url(),
            redis.url(),
        );
        std::fs::write(&file.path, text).expect("a file");
        file
    }

    /// Runs `seriatim locks` with this configuration, without blocking the runtime.
    pub(super) async fn locks(&self, arguments: &[&str]) -> Done {
        let path = self.path.to_str().expect("UTF-8");
        let mut all = vec!["locks", "--config", path];
        all.extend(arguments);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let output = tokio::task::spawn_blocking(move || {
            run(&all.iter().map(String::as_str).collect::<Vec<_>>())
        });
        Done::from(output.await.expect("the command ends"))
    }
}

/// Exit code and output of a command.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

#[tokio::test]
async fn locks_are_listed_as_text_and_as_json() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let done = file.locks(&["list"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (
            Some(0),
            "USER  SESSION  INSTANCE  ROUTE  REQUEST  AGE  TTL  WAITERS\n"
        ),
        "without a lock only the heading is printed: {done:?}"
    );
    let _held = bench.hold("s1").await;
    hold_from_python(&bench.redis, &key("py\u{1b}[2J锁")).await;
    let done = file.locks(&["list"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let lines: Vec<_> = done.out.lines().collect();
    assert_eq!(lines.len(), 3, "each lock is one line: {}", done.out);
    assert!(
        lines[1].starts_with("u1    s1 ") && lines[1].contains("  pod-0     chat   "),
        "the columns are aligned, the oldest lock first: {}",
        done.out
    );
    assert!(
        lines[2].contains("(other)") && !done.out.contains('\u{1b}'),
        "control characters do not reach the terminal: {}",
        done.out
    );
    let done = file.locks(&["list", "--json", "--search", "S1"]).await;
    let lock: Value = serde_json::from_str(&done.out).expect("one line of JSON");
    assert_eq!(
        (&lock["key"], &lock["instance"], &lock["holder"]),
        (&Value::from(key("s1")), &"pod-0".into(), &"seriatim".into()),
        "the JSON has one object for each matching lock: {lock}"
    );
}

#[tokio::test]
async fn the_columns_of_chinese_ids_are_aligned() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    hold_from_python(&bench.redis, "lock:session:用户:会话一").await;
    hold_from_python(&bench.redis, "lock:session:user:session").await;
    let done = file.locks(&["list"]).await;
    // Each of these characters is as wide as two others.
    let column = |line: &str| {
        let before = line.split("(other)").next().expect("a holder");
        let wide = before.chars().filter(|c| !c.is_ascii()).count();
        before.chars().count() + wide
    };
    let columns: Vec<_> = done.out.lines().skip(1).map(column).collect();
    let heading = done.out.find("INSTANCE").expect("a heading");
    assert_eq!(columns, [heading; 2], "below their heading: {}", done.out);
}

#[tokio::test]
async fn a_change_is_printed_as_the_admin_interface_returns_it() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let json = |done: &Done| -> Value { serde_json::from_str(&done.out).expect("JSON") };
    let free = json(&file.locks(&["release", "u1", "s1", "--json"]).await);
    let expected = serde_json::json!({"released": false, "key": key("s1")});
    assert_eq!(free, expected, "a free lock");
    let _held = bench.hold("s1").await;
    let released = json(&file.locks(&["release", "u1", "s1", "--json"]).await);
    assert_eq!(released["released"], true, "a release: {released}");
    assert!(released["fence"].is_u64(), "has its fence: {released}");
    let _held = bench.hold("s2").await;
    let done = file.locks(&["interrupt", "u1", "s2", "--json"]).await;
    let expected = serde_json::json!({"interrupted": true, "released": true, "key": key("s2")});
    assert_eq!(json(&done), expected, "an interruption: {done:?}");
}

#[tokio::test]
async fn what_was_not_done_is_one_json_object_too() {
    let bench = start(&format!("[lock]\nblocking = true\n{CHAT}")).await;
    let file = File::with(&bench.redis.url(), "");
    hold_from_python(&bench.redis, &key("py")).await;
    let nowhere = crate::support::Reserved::new();
    let nowhere = File::with(&format!("redis://{}/0", nowhere.addr()), "");
    let in_memory = File::with("memory:", "");
    for (file, arguments, members, reason) in [
        (&file, "dequeue u1 s1 r", "dequeued", "not_waiting"),
        (
            &file,
            "interrupt u1 s1",
            "interrupted released",
            "not_locked",
        ),
        (
            &file,
            "interrupt u1 py",
            "interrupted released",
            "not_interruptible",
        ),
        (
            &file,
            "release u1 py --request-id r",
            "released",
            "holder_changed",
        ),
        (&file, "release --key x", "released", "invalid_key"),
        (&file, "dequeue --key x r", "dequeued", "invalid_key"),
        (&nowhere, "dequeue u1 s1 r", "dequeued", "store_unavailable"),
        (&nowhere, "show u1 s1", "", "store_unavailable"),
        (&in_memory, "dequeue u1 s1 r", "dequeued", "memory_store"),
        (&in_memory, "show u1 s1", "", "memory_store"),
    ] {
        let mut all: Vec<_> = arguments.split(' ').collect();
        all.push("--json");
        let done = file.locks(&all).await;
        assert_eq!(done.code, Some(1), "{arguments}: {done:?}");
        let object: Value = serde_json::from_str(&done.out)
            .unwrap_or_else(|error| panic!("{arguments} is one JSON document: {error}: {done:?}"));
        assert_eq!(object["reason"], reason, "{arguments}: {object}");
        for member in members.split_whitespace() {
            assert_eq!(object[member], false, "{arguments} has {member}: {object}");
        }
        let detail = object["detail"].as_str().expect("a sentence");
        assert!(done.err.contains(detail), "people read the same: {done:?}");
    }
}

#[tokio::test]
async fn the_audit_event_of_what_was_not_done_names_the_request() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let mut held = Client::connect(bench.replica(0)).await;
    let request = Request::turn("s1", "gate").header("x-request-id", "r-1");
    held.send(&request).await;
    held.read_until(&event(0)).await;
    for (arguments, fields) in [
        ("dequeue u1 free r-7", " request_id=\"r-7\""),
        ("dequeue u1 s1 r-7", " request_id=\"r-7\""),
        ("release u1 free --request-id r-7", " request_id=\"r-7\""),
        ("interrupt u1 free --request-id r-7", " request_id=\"r-7\""),
        (
            "release u1 s1 --request-id r-7",
            " request_id=\"r-1\" named_request_id=\"r-7\"",
        ),
        (
            "interrupt u1 s1 --request-id r-7",
            " request_id=\"r-1\" named_request_id=\"r-7\"",
        ),
    ] {
        let done = file.locks(&arguments.split(' ').collect::<Vec<_>>()).await;
        let line = done
            .err
            .lines()
            .find(|line| line.contains("seriatim::audit"));
        assert!(
            line.is_some_and(|line| line.contains(fields)),
            "{arguments} logs{fields}: {done:?}"
        );
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "no turn was touched");
}

#[tokio::test]
async fn thousands_of_locks_are_listed_once_each() {
    let bench = start(CHAT).await;
    let fill = "for n = 1, 2500 do \
                  redis.call('SET', 'lock:session:u:s' .. n, 'x', 'PX', 600000) \
                end";
    bench.redis.command(&["EVAL", fill, "0"]).await;
    let done = File::with(&bench.redis.url(), "")
        .locks(&["list", "--json"])
        .await;
    let mut keys: Vec<_> = done
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["key"].to_string())
        .collect();
    assert_eq!(keys.len(), 2500, "every lock is listed");
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2500, "no lock is listed twice");
}

#[tokio::test]
async fn a_lock_is_shown_and_released_and_its_turn_interrupted() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let done = file.locks(&["show", "u1", "s1"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (Some(0), "lock:session:u1:s1 is not locked\n"),
        "a free lock is not an error: {done:?}"
    );
    let done = file.locks(&["interrupt", "u1", "s1"]).await;
    assert_eq!(done.code, Some(1), "no turn is left to interrupt: {done:?}");
    assert!(
        done.err.contains("not locked"),
        "the error says why: {done:?}"
    );
    let caller = caller();
    for (verb, output) in [
        ("release", "lock:session:u1:s1 is released\n"),
        (
            "interrupt",
            "the turn that held lock:session:u1:s1 has stopped and released it\n",
        ),
    ] {
        let mut held = Client::connect(bench.replica(0)).await;
        let request = Request::turn("s1", "gate").header("x-request-id", "r-1");
        held.send(&request).await;
        held.read_until(&event(0)).await;
        let done = file.locks(&["show", "u1", "s1"]).await;
        assert!(
            done.out.starts_with(
                "lock:session:u1:s1 is locked\n  by instance pod-0, route chat, request r-1, since "
            ),
            "the text names the holder: {done:?}"
        );
        let done = file.locks(&["show", "--key", &key("s1"), "--json"]).await;
        let shown: Value = serde_json::from_str(&done.out).expect("JSON");
        assert_eq!(shown["locked"], true, "the JSON has the lock: {shown}");
        let done = file.locks(&[verb, "u1", "s1", "--request-id", "r-0"]).await;
        assert_eq!(
            done.code,
            Some(1),
            "the request id names another turn: {done:?}"
        );
        let done = file.locks(&[verb, "u1", "s1", "--request-id", "r-1"]).await;
        assert_eq!((done.code, &*done.out), (Some(0), output), "{done:?}");
        for part in ["seriatim::audit", &caller, "pod-0", "r-1", "released"] {
            assert!(
                done.err.contains(part),
                "the command writes an audit event: {done:?}"
            );
        }
        assert!(!held.answer().await.whole, "{verb} aborts the turn");
    }
    let done = file.locks(&["release", "u1", "s1"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (Some(0), "lock:session:u1:s1 is not locked\n"),
        "releasing a free lock is not an error: {done:?}"
    );
    bench.is_clean("s1").await;
    wait_until_no_keys(&bench.redis).await;
}

#[tokio::test]
async fn a_waiter_is_taken_out_of_the_queue() {
    let bench = start(&format!("[lock]\nblocking = true\n{CHAT}")).await;
    let file = File::with(&bench.redis.url(), "");
    let mut held = bench.hold("s1").await;
    let key = key("s1");
    for (arguments, output) in [
        (
            &["dequeue", "u1", "s1", "r-1"][..],
            format!("took request r-1 out of the queue of {key}\n"),
        ),
        (
            &["dequeue", "--key", &key, "r-1", "--json"],
            format!("{{\"dequeued\":true,\"key\":\"{key}\"}}\n"),
        ),
    ] {
        let mut waits = Client::connect(bench.replica(0)).await;
        let request = Request::turn("s1", "plain:x").header("x-request-id", "r-1");
        waits.send(&request).await;
        wait_for_queue_length(&bench.redis, "s1", 1).await;
        let done = file.locks(arguments).await;
        assert_eq!((done.code, &*done.out), (Some(0), &*output), "{done:?}");
        for part in ["seriatim::audit", &caller(), "pod-0", "r-1", "dequeued"] {
            assert!(
                done.err.contains(part),
                "the command writes an audit event: {done:?}"
            );
        }
        assert_eq!(
            waits.answer().await.error(),
            (409, "dequeued"),
            "its client"
        );
    }
    let done = file.locks(&["dequeue", "u1", "s1", "r-1"]).await;
    assert_eq!(done.code, Some(1), "nobody waits: {done:?}");
    for part in ["no turn of request \"r-1\" waits", "not_waiting", &key] {
        assert!(done.err.contains(part), "{part} is printed: {done:?}");
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the running turn goes on");
}

/// This user and this machine, as the commands `id` and `uname` name them.
fn caller() -> String {
    let output = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = String::from_utf8(output.expect("the command exists").stdout);
        text.expect("UTF-8").trim().to_owned()
    };
    format!("{}@{}", output("id", "-un"), output("uname", "-n"))
}

/// A process of this file whose session `s1` is held by a turn.
async fn process_with_a_turn(file: &File) -> (Process, Client) {
    let process = Process::start(&file.path);
    let mut held = Client::connect(process.addr()).await;
    let request = Request::turn("s1", "gate").header("x-request-id", "held-1");
    held.send(&request).await;
    held.read_until(&event(0)).await;
    (process, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_the_holder_names_the_operator() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = File::serving(&backend, &redis, "");
    for (verb, message) in [
        ("release", "lock released by an operator"),
        ("interrupt", "turn interrupted by an operator"),
    ] {
        let (process, mut held) = process_with_a_turn(&file).await;
        let done = file.locks(&[verb, "u1", "s1"]).await;
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(!held.answer().await.whole, "{verb} aborts the turn");
        wait_for(|| process.has_logged(message), message).await;
        process.signal("TERM");
        let (_, events) = process.end();
        let event = events.iter().find(|event| event["message"] == message);
        let event = event.expect("it was logged");
        assert_eq!(
            ["by", "key", "request_id", "target"].map(|name| event[name].as_str()),
            [
                Some(&*caller()),
                Some(&*key("s1")),
                Some("held-1"),
                Some("seriatim::audit"),
            ],
            "the event says who, which lock and which turn: {event}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_waiters_replica_names_the_operator_and_the_outcome() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let blocking = CHAT.replace("name = \"chat\"", "name = \"chat\"\nblocking = true");
    let file = File::serving_route(&backend, &redis, "", &blocking);
    let (process, _held) = process_with_a_turn(&file).await;
    let mut waits = Client::connect(process.addr()).await;
    let request = Request::turn("s1", "plain:x").header("x-request-id", "r-1");
    waits.send(&request).await;
    wait_for_queue_length(&redis, "s1", 1).await;
    let done = file.locks(&["dequeue", "u1", "s1", "r-1"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(
        waits.answer().await.error(),
        (409, "dequeued"),
        "its client"
    );
    let message = "waiting turn taken out of the queue by an operator";
    wait_for(|| process.has_logged(message), message).await;
    process.signal("KILL");
    let (_, events) = process.end();
    let event = events.iter().find(|event| event["message"] == message);
    let event = event.expect("it was logged");
    assert_eq!(
        ["by", "key", "request_id"].map(|name| event[name].as_str()),
        [Some(&*caller()), Some(&*key("s1")), Some("r-1")],
        "the event says who, which session and which turn: {event}"
    );
    let of_waiter =
        |event: &&Value| event["target"] == "seriatim::access" && event["request_id"] == "r-1";
    let access = events.iter().find(of_waiter);
    let access = access.expect("the request was logged");
    assert_eq!(
        (&access["outcome"], &access["status"]),
        (&"dequeued".into(), &409.into()),
        "the access log has the outcome: {access}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_says_that_the_replica_has_crashed() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = File::serving(&backend, &redis, "");
    let (process, _held) = process_with_a_turn(&file).await;
    process.signal("KILL");
    let done = file.locks(&["interrupt", "u1", "s1"]).await;
    assert_eq!(done.code, Some(1), "nothing was interrupted: {done:?}");
    for part in [
        "is gone",
        "store.crash_recovery",
        " s on",
        "not_interruptible",
    ] {
        assert!(done.err.contains(part), "{part} is printed: {done:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_lock_that_was_taken_over() {
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let file = File::serving(
        &backend,
        &redis,
        "crash_recovery = \"1s\"\ntimeout = \"300ms\"",
    );
    let (process, _held) = process_with_a_turn(&file).await;
    process.signal("KILL");
    let process = Process::start(&file.path);
    let served = async || turn(process.addr(), "s1", "plain:x").await.status == 200;
    wait_for_async(served, "the lock is taken over").await;
    process.signal("TERM");
    let (_, events) = process.end();
    let taken = events.iter().find(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        message.starts_with("lock taken over")
    });
    let taken = taken.unwrap_or_else(|| panic!("it is logged: {events:?}"));
    assert_eq!(taken["key"], key("s1"), "the event has the key: {taken}");
}

#[tokio::test]
async fn a_failed_command_prints_why_and_exits_with_an_error() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    hold_from_python(&bench.redis, &key("py")).await;
    let done = file.locks(&["interrupt", "u1", "py"]).await;
    assert_eq!(
        done.code,
        Some(1),
        "a turn of Python code cannot be interrupted: {done:?}"
    );
    let done = file
        .locks(&["release", "--key", "seriatim:instance:1:pod-0"])
        .await;
    assert_eq!(done.code, Some(1), "the key is not a lock: {done:?}");
    for wrong in [
        &["show"][..],
        &["show", "u1"],
        &["release", "u1", "s1", "--key", "k"],
        &["steal", "u1", "s1"],
        &["list", "u1"],
        &["dequeue", "u1", "s1"],
        &["dequeue", "--key", "k"],
        &["dequeue", "--key", "k", "s1", "r"],
        &["dequeue", "u1", "s1", "r", "x"],
        &["dequeue", "u1", "s1", ""],
        &["dequeue", "", "s1", "r"],
        &["dequeue", "--key", "", "r"],
        &["show", "u1", ""],
        &["release", "", "s1"],
        &["release", "--key", ""],
        &["interrupt", "u1", "s1", "--request-id", ""],
        &[],
    ] {
        let done = file.locks(wrong).await;
        assert_eq!(done.code, Some(2), "{wrong:?} is a usage error: {done:?}");
    }
    let nowhere = crate::support::Reserved::new();
    let file = File::with(&format!("redis://:geheim@{}/0", nowhere.addr()), "");
    for call in [
        &["list"][..],
        &["show", "u1", "s1"],
        &["release", "u1", "s1"],
        &["interrupt", "u1", "s1"],
        &["dequeue", "u1", "s1", "r"],
    ] {
        let done = file.locks(call).await;
        assert_eq!(done.code, Some(1), "{call:?}: {done:?}");
        assert!(
            done.err.contains(&nowhere.addr().to_string()) && !done.err.contains("geheim"),
            "the error names the address without the password: {done:?}"
        );
        if matches!(call[0], "release" | "interrupt" | "dequeue") {
            assert!(
                done.err.contains(&key("s1")),
                "a failed call writes an audit event with its lock: {done:?}"
            );
        }
    }
}

#[tokio::test]
async fn with_the_memory_store_the_command_prints_the_admin_request() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "geheim").expect("written");
    let path = token.path().display();
    let open = File::with("memory:", "");
    let guarded = format!("[admin]\nlisten = \"0.0.0.0:9\"\ntoken_file = \"{path}\"");
    let guarded = File::with("memory:", &guarded);
    let header = format!("curl -H \"authorization: Bearer $(cat {path})\"");
    for (file, arguments, line) in [
        (
            &open,
            &["list"][..],
            "curl 'http://127.0.0.1:9901/locks'".to_owned(),
        ),
        (
            &open,
            &["list", "--search", "a b"],
            "curl 'http://127.0.0.1:9901/locks?search=a%20b'".into(),
        ),
        (
            &open,
            &["interrupt", "u/1", "s1", "--request-id", "r"],
            "curl -X POST 'http://127.0.0.1:9901/locks/u%2F1/s1/interrupt?request_id=r'".into(),
        ),
        (
            &guarded,
            &["show", "u1", "s1"],
            format!("{header} 'http://127.0.0.1:9/locks/u1/s1'"),
        ),
        (
            &guarded,
            &["release", "--key", "k:1"],
            format!("{header} -X DELETE 'http://127.0.0.1:9/locks/-/-?key=k%3A1'"),
        ),
        (
            &open,
            &["dequeue", "u/1", "s1", "r/1"],
            "curl -X DELETE 'http://127.0.0.1:9901/locks/u%2F1/s1/queue/r%2F1'".into(),
        ),
        (
            &open,
            &["dequeue", "--key", "k", "r"],
            "curl -X DELETE 'http://127.0.0.1:9901/locks/-/-/queue/r?key=k'".into(),
        ),
    ] {
        let done = file.locks(arguments).await;
        assert_eq!((done.code, &*done.out), (Some(1), ""), "{done:?}");
        assert!(
            done.err.contains(&line),
            "the remedy is {line}: {}",
            done.err
        );
        assert!(
            !done.err.contains("geheim"),
            "the token is not shown: {}",
            done.err
        );
    }
}
