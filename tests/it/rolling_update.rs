//! Two versions on one Redis, as in a rolling update: this version beside a process of format 1, which runs the
//! scripts that were kept in `tests/kept`.
//!
//! What a process of a newer format writes is known only as far as it has another number.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::app::{App, CHAT, key, wait_for_queue_length};
use crate::support::backend::{Backend, event};
use crate::support::bench::{Replicas, hold};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::redis::Redis;
use crate::support::{wait_for, wait_for_async};
use old_process::{OldProcess, OldReply, OldWait};

mod old_process;

const BLOCKING: &str = "[lock]\nblocking = true\n";
const INTERRUPT: &str = "[lock]\nblocking = true\ninterrupt = true\n";
/// With these options of `[store]`, a lost instance is noticed within a second.
const QUICK: &str = "timeout = \"200ms\"\ncrash_recovery = \"1s\"";
/// Scripts that the older version doesn't have, and does without.
const NEWER: [&str; 4] = ["dequeue", "find_answer", "read_answer", "write_answer"];

impl Replicas {
    /// The value of the session's lock.
    async fn holder(&self, session: &str) -> String {
        let holder = self.redis.get(&key(session)).await;
        holder.expect("the session is locked")
    }

    /// The fence of the session's last turn at this version.
    fn last_fence(&self, session: &str) -> u64 {
        let turns = self.backend.turns(session);
        let fence = turns
            .last()
            .and_then(|turn| turn.header("x-seriatim-fence"));
        fence.expect("a turn has one").parse().expect("a number")
    }
}

#[tokio::test]
async fn turns_of_both_versions_wait_in_one_queue_and_are_served_in_their_order() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", BLOCKING);
    let old = OldProcess::start(&bench.redis, "old").await;
    let held = old.hold("s1").await;
    let mut first = begin_turn(new.addr(), "s1", "gate").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let (second, ticket) = old.join("s1").await;
    let mut third = begin_turn(new.addr(), "s1", "plain:third").await;
    wait_for_queue_length(&bench.redis, "s1", 3).await;
    assert!(old.extend(&held, "1800000").await, "it has the lock");
    assert!(
        bench.redis.pttl(&key("s1")).await <= 1_800_000,
        "it has the new lease"
    );
    let (_, waiters) = old.inspect("s1").await;
    assert_eq!(waiters.len(), 3, "an old operator sees all waiters");
    assert_eq!(waiters[1], second.token, "in their order: {waiters:?}");

    assert!(old.release(&held).await, "it had the lock");
    first.read_until(&event(0)).await;
    let (is_waiting, holder) = old.watch(&second, "").await;
    assert_eq!(
        (is_waiting, &*holder),
        (true, &*waiters[0]),
        "it has its place behind the new turn"
    );
    assert!(old.sees_alive(&holder).await, "the new turn is alive");
    bench.backend.open_gate("s1");
    assert!(first.answer().await.whole, "the turn is complete");

    old.wait_for_message("granted", &second, "").await;
    let wait = OldWait {
        ticket,
        interrupts: false,
    };
    let OldReply::Fence(fence) = old.acquire(&second, "", Some(wait)).await else {
        panic!("the lock was offered to it");
    };
    assert!(fence > bench.last_fence("s1"), "the fence rises");
    assert!(old.release(&second).await, "it had the lock");
    assert_eq!(third.answer().await.text(), "third", "it is served, too");
    assert!(bench.last_fence("s1") > fence, "the fence rises again");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_release_by_an_older_version_wakes_a_waiter() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", BLOCKING);
    let old = OldProcess::start(&bench.redis, "old").await;
    // Looks at the queue serve the waiter, too, if the message doesn't.
    let looks = async || {
        new.metric("seriatim_store_command_seconds_count{command=\"watch\"}")
            .await
    };
    let woken = async || {
        let held = old.hold("s1").await;
        let mut waiter = begin_turn(new.addr(), "s1", "plain:x").await;
        wait_for_queue_length(&bench.redis, "s1", 1).await;
        let before = looks().await;
        assert!(old.release(&held).await, "it had the lock");
        assert_eq!(waiter.answer().await.status, 200, "the waiter is served");
        before == looks().await
    };
    wait_for_async(woken, "a waiter is served without a look at the queue").await;
}

#[tokio::test]
async fn a_new_turn_interrupts_turns_of_an_older_version() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", INTERRUPT);
    let old = OldProcess::start(&bench.redis, "old").await;
    let held = old.hold("s1").await;
    let (waiting, _) = old.join("s1").await;
    let mut newest = begin_turn(new.addr(), "s1", "plain:newest").await;
    old.wait_for_message("superseded", &waiting, "").await;
    old.wait_for_message("interrupt", &held, "").await;
    assert!(old.release(&held).await, "it had the lock");
    assert_eq!(newest.answer().await.text(), "newest", "it is served next");
}

#[tokio::test]
async fn a_turn_of_an_older_version_interrupts_new_turns() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", BLOCKING);
    let old = OldProcess::start(&bench.redis, "old").await;
    let mut running = hold(new.addr(), "s1").await;
    let mut waiting = begin_turn(new.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let newest = old.claim("s1");
    let wait = |ticket| OldWait {
        ticket,
        interrupts: true,
    };
    let reply = old.acquire(&newest, "", Some(wait(0))).await;
    let OldReply::Place(ticket, holder) = reply else {
        panic!("the session is busy: {reply:?}");
    };
    assert_eq!(
        waiting.answer().await.error(),
        (409, "superseded"),
        "the waiter is replaced"
    );
    old.send("interrupt", &holder, "").await;
    assert!(!running.answer().await.whole, "the running turn is aborted");
    old.wait_for_message("granted", &newest, "").await;
    let reply = old.acquire(&newest, "", Some(wait(ticket))).await;
    assert!(matches!(reply, OldReply::Fence(_)), "it is next: {reply:?}");
}

#[tokio::test]
async fn a_waiter_of_an_older_version_is_taken_out_unless_it_misses_the_message() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", BLOCKING);
    let old = OldProcess::start(&bench.redis, "old").await;
    let mut running = hold(new.addr(), "s1").await;
    let (waiting, ticket) = old.join("s1").await;
    let token: serde_json::Value = serde_json::from_str(&waiting.token).expect("a token is JSON");
    let request = token["request"].as_str().expect("a request id");
    let delete = Request::new("DELETE", &format!("/locks/u1/s1/queue/{request}"));
    let answer = Client::connect(new.admin()).await.call(&delete).await;
    assert_eq!(answer.json()["dequeued"], true, "{}", answer.text());
    old.wait_for_message("superseded", &waiting, "").await;
    let (_, waiters) = old.inspect("s1").await;
    assert!(waiters.is_empty(), "it waits no more: {waiters:?}");
    // It asks only if the message was lost.
    let wait = OldWait {
        ticket,
        interrupts: false,
    };
    let reply = old.acquire(&waiting, "", Some(wait)).await;
    assert!(
        matches!(reply, OldReply::Place(again, _) if again == ticket),
        "it has its place again: {reply:?}"
    );
    bench.backend.open_gate("s1");
    assert!(running.answer().await.whole, "the running turn goes on");
    old.wait_for_message("granted", &waiting, "").await;
}

#[tokio::test]
async fn the_locks_of_an_older_version_are_taken_over_only_without_its_heartbeat() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica(QUICK, "");
    let [alive, dead] = ["alive", "dead"];
    let (alive, dead) = (
        OldProcess::start(&bench.redis, alive).await,
        OldProcess::start(&bench.redis, dead).await,
    );
    let (held, left) = (alive.hold("s1").await, dead.hold("s2").await);
    let busy = async |session: &str| turn(new.addr(), session, "plain:x").await.status == 429;
    assert!(busy("s1").await && busy("s2").await, "both are alive");
    dead.unregister().await;
    let free = async || !busy("s2").await;
    wait_for_async(free, "the lock of the dead one is taken over").await;
    assert!(!dead.release(&left).await, "it has lost the lock");
    assert!(busy("s1").await, "the lock of the other one is not");
    assert_eq!(bench.holder("s1").await, held.token, "it is still there");
    assert!(alive.release(&held).await, "its process has it");
    bench.wait_until_no_keys().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_takes_over_the_lock_of_a_killed_replica() {
    let bench = Replicas::on_redis().await;
    let new = bench.process(QUICK, "");
    let old = OldProcess::start(&bench.redis, "old").await;
    let _client = hold(new.addr(), "s1").await;
    let token = bench.holder("s1").await;
    assert!(old.sees_alive(&token).await, "the replica is alive");
    new.signal("KILL");
    let is_dead = async || !old.sees_alive(&token).await;
    wait_for_async(is_dead, "the replica's heartbeat is gone").await;
    let claim = old.claim("s1");
    let reply = old.acquire(&claim, &token, None).await;
    let OldReply::TookOver(fence) = reply else {
        panic!("the holder is dead: {reply:?}");
    };
    assert!(fence > bench.last_fence("s1"), "the fence rises");
}

#[tokio::test]
async fn operators_of_both_versions_release_the_locks_of_the_other() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", "");
    let old = OldProcess::start(&bench.redis, "old").await;
    let held = old.hold("s1").await;
    let delete = Request::new("DELETE", "/locks/u1/s1");
    let answer = Client::connect(new.admin()).await.call(&delete).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    old.wait_for_message("taken", &held, "").await;
    assert!(!old.release(&held).await, "it has lost the lock");

    let mut running = hold(new.addr(), "s1").await;
    let (holder, _) = old.inspect("s1").await;
    old.force_release("s1", &holder).await;
    assert!(!running.answer().await.whole, "the turn is aborted");
}

#[tokio::test]
async fn both_versions_ask_the_other_whether_a_lock_is_in_use() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica("", "");
    let old = OldProcess::start(&bench.redis, "old").await;
    let about = format!(" {}", key("s1"));
    let held = old.hold("s1").await;
    assert_eq!(turn(new.addr(), "s1", "plain:x").await.status, 429, "busy");
    old.wait_for_message("in_use", &held, &about).await;
    assert!(old.release(&held).await, "it had the lock");

    let mut over = hold(new.addr(), "s1").await;
    let token = bench.holder("s1").await;
    bench.backend.open_gate("s1");
    assert!(over.answer().await.whole, "the turn is over");
    let put_back = ["SET", &key("s1"), &*token, "PX", "3600000"];
    bench.redis.command(&put_back).await;
    old.send("in_use", &token, &about).await;
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_lock_of_a_newer_format_is_held_until_it_is_released() {
    let bench = Replicas::on_redis().await;
    let new = bench.replica(QUICK, BLOCKING);
    let old = OldProcess::start(&bench.redis, "old").await;
    // Neither instance has a heartbeat. That of the older one has to be found dead; the other can't be.
    let newer = r#"{"format":2,"claim":"00000000000000aa-1","instance":"newer","heartbeat":true}"#;
    // The lock is so old that nobody waits for another heartbeat.
    let fence = format!("{{{}}}:fence", key("s1"));
    for (name, value) in [(key("s1"), newer), (fence, "1")] {
        let set = ["SET", &name, value, "PX", "3600000"];
        bench.redis.command(&set).await;
    }
    old.hold("s2").await;
    old.unregister().await;
    let mut waiter = begin_turn(new.addr(), "s1", "plain:x").await;
    wait_for_queue_length(&bench.redis, "s1", 1).await;
    let served = turn(new.addr(), "s2", "plain:x").await;
    assert_eq!(
        served.status, 200,
        "the lock of the older one is taken over"
    );
    assert_eq!(
        bench.holder("s1").await,
        newer,
        "the other one is still held"
    );
    bench.redis.command(&["DEL", &key("s1")]).await;
    assert_eq!(waiter.answer().await.status, 200, "the waiter notices it");
    bench.wait_until_no_keys().await;
}

#[tokio::test]
async fn a_message_of_another_format_is_ignored() {
    let bench = Replicas::on_redis().await;
    let new = bench.process("instance = \"pod-0\"", "[log]\nlevel = \"debug\"\n");
    let mut held = hold(new.addr(), "s1").await;
    let holder: serde_json::Value =
        serde_json::from_str(&bench.holder("s1").await).expect("a value is JSON");
    let id = holder["claim"].as_str().expect("an id");
    for (count, format) in ["2 ", ""].into_iter().enumerate() {
        let message = format!("{format}taken {id}");
        let publish = ["PUBLISH", "seriatim:instance:1:pod-0", &message];
        bench.redis.command(&publish).await;
        let ignored = || new.times_logged("message can't be parsed") > count;
        wait_for(ignored, "the message is ignored").await;
    }
    bench.backend.open_gate("s1");
    assert!(held.answer().await.whole, "the turn isn't stopped");
}

/// Writes the scripts of this version where `tests/kept/README.md` says, and compares them with the kept ones as
/// far as the other tests can't.
#[tokio::test]
async fn the_kept_scripts_have_the_names_and_constants_of_the_current_ones() {
    let redis = Redis::start().await;
    let monitor = redis.monitor().await;
    let backend = Backend::start("plain:ok").await;
    let _app = App::on_redis(&backend, &redis, CHAT);
    redis.is_connected().await;
    let current = loaded_scripts(&monitor.lines().await);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kept-scripts");
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, text) in &current {
        let hash = redis::Script::new(text).get_hash().to_owned();
        let exists = redis.command(&["SCRIPT", "EXISTS", &hash]).await;
        let is_there = redis::Value::Array(vec![redis::Value::Int(1)]);
        assert_eq!(exists, is_there, "{name} is as Redis has it");
        std::fs::write(folder.join(format!("{name}.lua")), text).expect("a file");
    }
    let old = OldProcess::start(&redis, "old").await;
    assert_eq!(old.server().await.len(), 40, "the old one knows the server");
    let kept = scripts_in("tests/kept/format-1");
    let names = |scripts: &BTreeMap<String, String>| {
        let names = scripts.keys().cloned();
        names.collect::<BTreeSet<_>>()
    };
    let mut known = names(&kept);
    known.extend(NEWER.map(str::to_owned));
    assert_eq!(
        known,
        names(&current),
        "each script is kept, or known to be newer: see tests/kept/README.md"
    );
    let constants = |text: &str| {
        let first = text.lines().next().map(str::to_owned);
        first.filter(|line| line.starts_with("local "))
    };
    for (name, text) in &kept {
        assert_eq!(
            constants(&current[name]),
            constants(text),
            "older versions have these constants in {name}: see tests/kept/README.md"
        );
    }
}

/// The complete scripts that a replica has loaded, by the names of their files.
fn loaded_scripts(lines: &[String]) -> BTreeMap<String, String> {
    let loaded = lines.iter().filter_map(|line| {
        let (_, text) = line.split_once("\"SCRIPT\" \"LOAD\" \"")?;
        Some(unescaped(text.strip_suffix('"')?))
    });
    let loaded: BTreeSet<String> = loaded.collect();
    let mut sources = scripts_in("src/lock/redis/scripts");
    for part in ["clock", "common", "acquire_free", "release_alone"] {
        sources.remove(part);
    }
    let complete = |(name, source): (String, String)| {
        let text = loaded.iter().find(|text| text.ends_with(&source));
        let text = text.unwrap_or_else(|| panic!("{name} is loaded"));
        (name, text.clone())
    };
    sources.into_iter().map(complete).collect()
}

/// The scripts in a folder of the repository, by their names.
fn scripts_in(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(folder).expect("a folder");
    let scripts = files.map(|file| {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let name = path.file_stem().and_then(|name| name.to_str());
        (name.expect("a name").to_owned(), text)
    });
    scripts.collect()
}

/// A text that MONITOR has escaped.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next().expect("an escape has two bytes") {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'x' => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two digits")
            }
            other => other,
        });
    }
    String::from_utf8(bytes).expect("scripts are UTF-8")
}
