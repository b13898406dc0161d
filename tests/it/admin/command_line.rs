//! `seriatim locks`, straight on the store.

use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use super::{python_holds, start};
use crate::support::app::{CHAT, is_quiet, key};
use crate::support::client::{Client, Request};
use crate::support::process::run;

/// A configuration file in a folder of its own.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn with(store: &str, more: &str) -> Self {
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

    /// Runs `seriatim locks` with it, beside whatever else runs here.
    async fn locks(&self, arguments: &[&str]) -> Done {
        let path = self.path.to_str().expect("UTF-8");
        let mut all = vec!["locks", "--config", path];
        all.extend(arguments);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let output = tokio::task::spawn_blocking(move || {
            run(&all.iter().map(String::as_str).collect::<Vec<_>>())
        });
        Done::from(output.await.expect("it ends"))
    }
}

/// What it has said.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
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
async fn locks_are_listed_for_people_and_for_programs() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let done = file.locks(&["list"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (
            Some(0),
            "USER  SESSION  INSTANCE  ROUTE  REQUEST  AGE  LEFT  WAITERS\n"
        ),
        "where none is held: {done:?}"
    );
    let _held = bench.hold("s1").await;
    python_holds(&bench.redis, &key("py\u{1b}[2J锁")).await;
    let done = file.locks(&["list"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let lines: Vec<_> = done.out.lines().collect();
    assert_eq!(lines.len(), 3, "a line for each: {}", done.out);
    assert!(
        lines[1].starts_with("u1    s1 ") && lines[1].contains("  pod-0     chat   "),
        "aligned, the oldest first: {}",
        done.out
    );
    assert!(
        lines[2].contains("(other)") && !done.out.contains('\u{1b}'),
        "nothing reaches the terminal that isn't text: {}",
        done.out
    );
    let done = file.locks(&["list", "--json", "--search", "S1"]).await;
    let lock: Value = serde_json::from_str(&done.out).expect("one line of JSON");
    assert_eq!(
        (&lock["key"], &lock["instance"], &lock["holder"]),
        (&Value::from(key("s1")), &"pod-0".into(), &"seriatim".into()),
        "one object for each lock that fits: {lock}"
    );
}

#[tokio::test]
async fn a_thousand_locks_are_listed_each_once() {
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
    assert_eq!(keys.len(), 2500, "all of them");
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 2500, "and none twice");
}

#[tokio::test]
async fn a_lock_is_shown_released_and_its_turn_interrupted() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    let done = file.locks(&["show", "u1", "s1"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (Some(0), "lock:session:u1:s1 is not locked\n"),
        "to be free is an answer: {done:?}"
    );
    let done = file.locks(&["interrupt", "u1", "s1"]).await;
    assert_eq!(done.code, Some(1), "there is nobody to stop: {done:?}");
    assert!(done.err.contains("not locked"), "which is said: {done:?}");
    for (verb, said) in [
        ("release", "lock:session:u1:s1 is released\n"),
        (
            "interrupt",
            "the turn that held lock:session:u1:s1 has let go of it\n",
        ),
    ] {
        let mut held = Client::connect(bench.replica(0)).await;
        let request = Request::turn("s1", "gate").header("x-request-id", "r-1");
        held.send(&request).await;
        held.read_until(&crate::support::backend::event(0)).await;
        let done = file.locks(&["show", "u1", "s1"]).await;
        assert!(
            done.out.starts_with(
                "lock:session:u1:s1 is locked\n  by instance pod-0, route chat, request r-1, since "
            ),
            "who holds it: {done:?}"
        );
        let done = file.locks(&["show", "--key", &key("s1"), "--json"]).await;
        let shown: Value = serde_json::from_str(&done.out).expect("JSON");
        assert_eq!(shown["locked"], true, "for programs: {shown}");
        let done = file.locks(&[verb, "u1", "s1", "--request-id", "r-0"]).await;
        assert_eq!(done.code, Some(1), "another turn was meant: {done:?}");
        let done = file.locks(&[verb, "u1", "s1", "--request-id", "r-1"]).await;
        assert_eq!((done.code, &*done.out), (Some(0), said), "{done:?}");
        for part in [
            "seriatim::audit",
            "command line",
            "pod-0",
            "r-1",
            "released",
        ] {
            assert!(done.err.contains(part), "it is told who did it: {done:?}");
        }
        assert!(!held.answer().await.whole, "{verb} stops the turn");
    }
    let done = file.locks(&["release", "u1", "s1"]).await;
    assert_eq!(
        (done.code, &*done.out),
        (Some(0), "lock:session:u1:s1 is not locked\n"),
        "what is free already is as it should be: {done:?}"
    );
    bench.is_clean("s1").await;
    is_quiet(&bench.redis).await;
}

#[tokio::test]
async fn what_can_not_be_done_is_said_and_is_not_exit_code_0() {
    let bench = start(CHAT).await;
    let file = File::with(&bench.redis.url(), "");
    python_holds(&bench.redis, &key("py")).await;
    let done = file.locks(&["interrupt", "u1", "py"]).await;
    assert_eq!(done.code, Some(1), "Python can't be told: {done:?}");
    let done = file
        .locks(&["release", "--key", "seriatim:instance:pod-0"])
        .await;
    assert_eq!(done.code, Some(1), "no lock: {done:?}");
    for wrong in [
        &["show"][..],
        &["show", "u1"],
        &["release", "u1", "s1", "--key", "k"],
        &["steal", "u1", "s1"],
        &["list", "u1"],
        &[],
    ] {
        let done = file.locks(wrong).await;
        assert_eq!(done.code, Some(2), "{wrong:?} is no call: {done:?}");
    }
    let nowhere = crate::support::Reserved::new();
    let file = File::with(&format!("redis://:geheim@{}/0", nowhere.addr()), "");
    for call in [
        &["list"][..],
        &["show", "u1", "s1"],
        &["release", "u1", "s1"],
        &["interrupt", "u1", "s1"],
    ] {
        let done = file.locks(call).await;
        assert_eq!(done.code, Some(1), "{call:?}: {done:?}");
        assert!(
            done.err.contains(&nowhere.addr().to_string()) && !done.err.contains("geheim"),
            "what can't be reached is said, without its password: {done:?}"
        );
        if matches!(call[0], "release" | "interrupt") {
            assert!(
                done.err.contains(&key("s1")),
                "an order is on record with its lock, whatever came of it: {done:?}"
            );
        }
    }
}

#[tokio::test]
async fn locks_in_a_process_memory_are_that_process_to_ask_for() {
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
    ] {
        let done = file.locks(arguments).await;
        assert_eq!((done.code, &*done.out), (Some(1), ""), "{done:?}");
        assert!(
            done.err.contains(&line),
            "{line} is what to do: {}",
            done.err
        );
        assert!(
            !done.err.contains("geheim"),
            "the token isn't shown: {}",
            done.err
        );
    }
}
