//! Reloading the configuration of a running process: it applies to new requests, an invalid one is
//! refused as a whole, and running turns aren't affected.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use crate::support::app::CHAT;
use crate::support::backend::{Backend, event};
use crate::support::client::{Client, Request, begin_turn, turn};
use crate::support::process::Process;
use crate::support::{wait_for, wait_for_async};

const APPLIED: &str = "new configuration applied";
const REFUSED: &str = "new configuration refused";

struct Reloading {
    backend: Backend,
    folder: TempDir,
}

// === impl Reloading ===

impl Reloading {
    async fn start() -> Self {
        Self {
            backend: Backend::start("plain:ok").await,
            folder: TempDir::new().expect("a folder for configurations"),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The text of the file: `top` before the tables, then `tables`.
    fn text(&self, top: &str, tables: &str) -> String {
        let upstream = self.backend.url();
        format!("listen = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n{top}\n{tables}")
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).expect("the file is written");
    }

    fn process(&self) -> Process {
        self.write(&self.text("", CHAT));
        Process::start(&self.path())
    }
}

/// Waits until the process has logged the message so many times.
async fn is_told(process: &Process, message: &str, times: usize) {
    let logged = || process.times_logged(message) >= times;
    wait_for(logged, &format!("{message:?} is logged {times} times")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_applies_to_new_requests() {
    let bench = Reloading::start().await;
    let process = bench.process();
    let mut running = begin_turn(process.addr(), "s1", "gate").await;
    running.read_until(&event(0)).await;
    // A connection that is open before and after the change.
    let mut kept = Client::connect(process.addr()).await;
    assert_eq!(
        kept.turn("s1", "plain:x").await.status,
        429,
        "the session is busy"
    );
    bench.write(&bench.text(
        "",
        &CHAT.replace("\nuser_id", "\nbusy.status = 409\nuser_id"),
    ));
    is_told(&process, APPLIED, 1).await;
    assert_eq!(
        kept.turn("s1", "plain:x").await.status,
        409,
        "a new request has the new configuration and sees the locks of running turns"
    );
    bench.backend.open_gate("s1");
    assert!(
        running.answer().await.whole,
        "a running turn isn't affected"
    );
    assert_eq!(
        kept.turn("s1", "plain:x").await.status,
        200,
        "the turn released its session"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_stays_at_its_backend_when_the_upstream_changes() {
    let bench = Reloading::start().await;
    let other = Backend::start("plain:other").await;
    let process = bench.process();
    let mut running = begin_turn(process.addr(), "s1", "gate").await;
    running.read_until(&event(0)).await;
    let text = bench.text("", CHAT);
    bench.write(&text.replace(&bench.backend.url(), &other.url()));
    is_told(&process, APPLIED, 1).await;
    assert_eq!(
        turn(process.addr(), "s2", "plain:x").await.status,
        200,
        "a new turn is served"
    );
    assert_eq!(
        other.turns("s2").len(),
        1,
        "a new turn goes to the new backend"
    );
    bench.backend.open_gate("s1");
    assert!(
        running.answer().await.whole,
        "the running turn ends at the old backend"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_configuration_is_refused_as_a_whole_and_logged() {
    let bench = Reloading::start().await;
    let process = bench.process();
    let wrong = CHAT.replace("\nuser_id", "\nblocking = 1\nuser_id");
    bench.write(&bench.text("unmatcht = 1", &wrong));
    is_told(&process, REFUSED, 2).await;
    assert!(
        process.has_logged("unmatcht") && process.has_logged("blocking"),
        "each problem is logged with its key"
    );
    let mut running = begin_turn(process.addr(), "s1", "gate").await;
    running.read_until(&event(0)).await;
    assert_eq!(
        turn(process.addr(), "s1", "plain:x").await.status,
        429,
        "nothing of an invalid configuration applies"
    );
    std::fs::remove_file(bench.path()).expect("the file existed");
    is_told(&process, "can't read the configuration", 1).await;
    bench.write(&bench.text("unmatched = \"reject\"", CHAT));
    is_told(&process, APPLIED, 1).await;
    let mut client = Client::connect(process.addr()).await;
    assert_eq!(
        client.get("/elsewhere").await.status,
        404,
        "the next valid configuration applies"
    );
    bench.backend.open_gate("s1");
    assert!(
        running.answer().await.whole,
        "the running turn isn't affected"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_needs_a_restart_is_refused_by_name() {
    let bench = Reloading::start().await;
    let process = bench.process();
    let tables = format!(
        "[store]\ntimeout = \"2s\"\n[admin]\nlisten = \"127.0.0.1:1\"\n\
         [tracing]\notlp = \"http://127.0.0.1:1\"\n{CHAT}"
    );
    let text = bench.text("unmatched = \"reject\"", &tables);
    bench.write(&text.replace("127.0.0.1:0", "127.0.0.1:2"));
    is_told(&process, REFUSED, 3).await;
    for (option, before) in [
        (
            r#"listen = \"127.0.0.1:2\" (line 1)"#,
            r#"write \"127.0.0.1:0\" again"#,
        ),
        (
            r#"store.timeout = \"2s\" (line 5)"#,
            r#"write \"1s\" again"#,
        ),
        (
            r#"tracing.otlp = \"http://127.0.0.1:1/v1/traces\" (line 9)"#,
            "leave it out",
        ),
    ] {
        let problem =
            format!("{option}: can't be changed while the process runs: restart it, or {before}");
        assert!(
            process.has_logged(&problem),
            "the log has key, value, line and remedy: {problem}"
        );
    }
    let mut client = Client::connect(process.addr()).await;
    assert_eq!(
        client.get("/elsewhere").await.status,
        200,
        "nothing else of the file applies"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_symlink_to_the_configuration_is_followed() {
    let bench = Reloading::start().await;
    // As Kubernetes mounts a ConfigMap: the file is a link into a folder that is itself a link.
    let folder = bench.folder.path();
    let write = |name: &str, text: String| {
        std::fs::create_dir(folder.join(name)).expect("the folder is created");
        std::fs::write(folder.join(name).join("config.toml"), text).expect("the file is written");
    };
    write("first", bench.text("", CHAT));
    symlink("first", folder.join("..data")).expect("a link");
    symlink("..data/config.toml", bench.path()).expect("a link");
    let process = Process::start(&bench.path());
    write("second", bench.text("unmatched = \"reject\"", CHAT));
    symlink("second", folder.join("..new")).expect("a link");
    std::fs::rename(folder.join("..new"), folder.join("..data")).expect("the link is swapped");
    is_told(&process, APPLIED, 1).await;
    let mut client = Client::connect(process.addr()).await;
    assert_eq!(
        client.get("/elsewhere").await.status,
        404,
        "the file behind the new link applies"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_log_level() {
    let bench = Reloading::start().await;
    let process = bench.process();
    bench.write(&bench.text(
        "unmatched = \"reject\"",
        &format!("[log]\nlevel = \"error\"\n{CHAT}"),
    ));
    let in_force = async || {
        let mut client = Client::connect(process.addr()).await;
        client.get("/elsewhere").await.status == 404
    };
    wait_for_async(in_force, "the new configuration applies").await;
    assert_eq!(turn(process.addr(), "silent", "plain:x").await.status, 200);
    bench.write(&bench.text("", CHAT));
    is_told(&process, APPLIED, 1).await;
    assert_eq!(turn(process.addr(), "loud", "plain:x").await.status, 200);
    is_told(&process, "lock:session:u1:loud", 1).await;
    assert!(
        !process.has_logged("lock:session:u1:silent"),
        "events below the level are not logged, and the others keep their order"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_hides_ids_in_the_log() {
    let bench = Reloading::start().await;
    let process = bench.process();
    assert_eq!(turn(process.addr(), "s1", "plain:x").await.status, 200);
    is_told(&process, "lock:session:u1:s1", 1).await;
    bench.write(&bench.text("", &format!("[log]\nids = \"hash\"\n{CHAT}")));
    is_told(&process, APPLIED, 1).await;
    assert_eq!(turn(process.addr(), "s1", "plain:x").await.status, 200);
    // printf %s lock:session:u1:s1 | sha256sum | cut -c1-16
    is_told(&process, "#6193102075c36b1a", 1).await;
    assert_eq!(
        process.times_logged("lock:session:u1:s1"),
        1,
        "no later event contains the session id"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reloading_fifty_times_under_load_loses_no_request() {
    let bench = Reloading::start().await;
    let process = Arc::new(bench.process());
    let done = Arc::new(AtomicBool::new(false));
    let clients = (0..8).map(|n| {
        let (process, done) = (Arc::clone(&process), Arc::clone(&done));
        tokio::spawn(async move {
            let session = format!("s{n}");
            let mut kept = Client::connect(process.addr()).await;
            let mut served = 0;
            while !done.load(Ordering::Relaxed) {
                let script = if served % 2 == 0 {
                    "chunked:3:1"
                } else {
                    "plain:x"
                };
                let answer = kept.call(&Request::turn(&session, script)).await;
                assert!(
                    answer.status == 200 && answer.whole,
                    "every request on a kept connection is served: {answer:?}"
                );
                let answer = turn(process.addr(), &session, script).await;
                assert!(
                    answer.status == 200 && answer.whole,
                    "every request on a new connection is served: {answer:?}"
                );
                served += 2;
            }
            served
        })
    });
    let clients: Vec<_> = clients.collect();
    for n in 1..=50 {
        bench.write(&bench.text(
            "",
            &format!(
                "[lock]\nmax_waiters = 64\nlock_timeout = {}\n{CHAT}",
                100 + n
            ),
        ));
        process.signal("HUP");
        is_told(&process, APPLIED, n).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        let served = client.await.expect("no assertion of a client fails");
        assert!(served > 0, "each client was served");
    }
    assert_eq!(bench.backend.overlaps(), [], "turns never overlapped");
}
