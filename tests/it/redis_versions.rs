//! The contract of the store on other servers than Debian's Redis: the oldest and the newest version that is
//! supported, and Valkey.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::store_contract::{Rule, StoreSetup, assert_keys_expire, rules};
use crate::support::redis::Redis;

/// How many rules run at a time. Most of them wait.
const AT_ONCE: usize = 4;

/// The program that `.ci/test` has installed under this name.
fn program(name: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-redis");
    let folder = std::env::var_os("SERIATIM_TEST_REDIS_SERVERS").map_or(own.into(), PathBuf::from);
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: run .ci/test, which installs it",
        program.display()
    );
    program
}

/// Runs a future to its end on this thread.
fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

/// Runs each rule on an own server of this program, whose INFO has to have `field` with a value that begins with
/// `version`.
fn keeps_the_contract(name: &str, field: &str, version: &str) {
    let program = program(name);
    let found = run(async {
        let redis = Redis::start_with_program(&program).await;
        redis.info("server").await.remove(field)
    });
    let found = found.unwrap_or_default();
    assert!(
        found.starts_with(version),
        "{name} is of version {version}: {found:?}"
    );
    // Past the capture of the test's output: the log of a run names the versions.
    let ran = format!("{name}: {field} {found}\n");
    let _ = std::io::stderr().write_all(ran.as_bytes());
    let keeps = |rule: &Rule| {
        let rule = || {
            run(async {
                let redis = Arc::new(Redis::start_with_program(&program).await);
                (rule.run)(StoreSetup::on_redis(&redis).await).await;
                assert_keys_expire(&redis).await;
            });
        };
        catch_unwind(AssertUnwindSafe(rule)).is_ok()
    };
    let (waiting, broken) = (Mutex::new(rules()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let rule = waiting.lock().expect("no panic with the lock held").next();
            let Some(rule) = rule else { return };
            if !keeps(rule) {
                let mut broken = broken.lock().expect("no panic with the lock held");
                broken.push(rule.name);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            // The limit on a test's time counts on threads with such a name.
            let thread = thread::Builder::new().name(format!("redis_versions::{name}"));
            thread.spawn_scoped(scope, work).expect("a thread");
        }
    });
    let broken = broken.into_inner().expect("no panic with the lock held");
    assert!(broken.is_empty(), "{name} {found} breaks: {broken:#?}");
}

#[test]
fn redis_6_2_keeps_the_contract() {
    keeps_the_contract("redis-6.2", "redis_version", "6.2.");
}

#[test]
fn redis_8_keeps_the_contract() {
    keeps_the_contract("redis-8", "redis_version", "8.");
}

#[test]
fn valkey_9_keeps_the_contract() {
    keeps_the_contract("valkey-9", "valkey_version", "9.");
}
