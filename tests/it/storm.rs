//! All faults at once: three replicas behind three faulty networks, one of them killed repeatedly,
//! thirty clients of which some disconnect, and a backend that aborts. The test counts forbidden
//! outcomes.
//!
//! Runs for [`LASTING`], or for `SERIATIM_STORM_SECONDS` seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::support::app::{App, CHAT, key, wait_until_no_keys};
use crate::support::backend::{Backend, events};
use crate::support::client::{Client, Request, turn};
use crate::support::fault::{FaultProxy, Mode};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::time_limit::restart_limit;
use crate::support::{LIMIT, wait_for_async};

const LASTING: Duration = Duration::from_secs(15);
const CLIENTS: usize = 30;
const SESSIONS: usize = 8;

/// Times short enough for every kind of end to occur many times.
const STORE: &str = "timeout = \"300ms\"\ncrash_recovery = \"1500ms\"";
const LOCK: &str = "[lock]\nlock_timeout = \"2s\"\nextend_lock_interval = \"500ms\"\n\
                    blocking = true\nblocking_timeout = \"4s\"\n";

/// Pseudo-random numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn number_below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX generator; the high bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.number_below(to - from))
    }
}

#[derive(Default)]
struct Counts {
    served: AtomicUsize,
    refused: AtomicUsize,
    cut: AtomicUsize,
    left: AtomicUsize,
}

/// One client that sends turns, in session after session, until `end`.
async fn take_turns(
    n: usize,
    replicas: watch::Receiver<Vec<SocketAddr>>,
    end: Instant,
    counts: Arc<Counts>,
) {
    let mut dice = Dice(n as u64 + 1);
    while Instant::now() < end {
        let session = format!("s{}", dice.number_below(SESSIONS as u64));
        let addr = {
            let replicas = replicas.borrow();
            replicas[dice.number_below(replicas.len() as u64) as usize]
        };
        let script = match dice.number_below(12) {
            0 => "break-chunked",
            1 => "reset",
            2 => "hang",
            3..6 => "plain:ok",
            _ => "chunked:6:15",
        };
        let Ok(mut client) = Client::try_connect(addr).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        client.send(&Request::turn(&session, script)).await;
        // Some clients disconnect at any point; none stays with a backend that hangs.
        if script == "hang" || dice.number_below(8) == 0 {
            let _ = timeout(dice.millis(1, 200), client.try_answer()).await;
            counts.left.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let Ok(answer) = client.try_answer().await else {
            counts.cut.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let counter = match answer.status {
            200 if answer.whole => {
                let whole = if script == "plain:ok" {
                    "ok".to_owned()
                } else {
                    events(6)
                };
                assert_eq!(
                    answer.text(),
                    whole,
                    "a response that ends properly is complete ({script})"
                );
                &counts.served
            }
            200 => &counts.cut,
            429 | 502 | 503 => {
                assert!(
                    answer.header("x-seriatim-error").is_some() && answer.whole,
                    "an error response has its reason: {answer:?}"
                );
                &counts.refused
            }
            other => panic!("no other status occurs: {other}: {answer:?}"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Changes the faults of one network until `end`.
async fn disturb(n: usize, network: Arc<FaultProxy>, end: Instant) {
    let mut dice = Dice(1000 + n as u64);
    while Instant::now() < end {
        sleep(dice.millis(50, 800)).await;
        let (mode, lasting) = match dice.number_below(5) {
            0 => (Mode::Delay(dice.millis(1, 120)), dice.millis(200, 1000)),
            // Longer than a command timeout; some last longer than a lease.
            1 => (Mode::Blackhole, dice.millis(100, 2500)),
            2 => (Mode::DropReplies, dice.millis(50, 600)),
            3 => (Mode::Reset, dice.millis(20, 600)),
            _ => {
                for _ in 0..5 {
                    network.cut().await;
                    sleep(dice.millis(1, 50)).await;
                }
                continue;
            }
        };
        network.set(mode).await;
        sleep(lasting).await;
        if mode == Mode::DropReplies {
            // Replies are matched by their order: a connection that lost one is useless.
            network.set(Mode::Reset).await;
        }
        network.set(Mode::Pass).await;
    }
}

fn config(backend: &Backend, network: &FaultProxy, instance: &str) -> String {
    format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"redis://{}/0\"\n{STORE}\n{instance}\n{LOCK}{CHAT}",
        backend.url(),
        network.addr()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(
    clippy::print_stdout,
    reason = "the counts show how severe the faults were; see them with --nocapture"
)]
async fn under_all_faults_turns_never_overlap_and_no_session_is_stuck() {
    let seconds = std::env::var("SERIATIM_STORM_SECONDS").ok();
    let lasting = seconds.map_or(LASTING, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    });
    let (backend, redis) = (Backend::start("plain:ok").await, Redis::start().await);
    let mut networks = Vec::new();
    for _ in 0..3 {
        networks.push(Arc::new(FaultProxy::start(redis.addr()).await));
    }
    let apps = [0, 1].map(|n: usize| {
        let through = format!("redis://{}/0", networks[n].addr());
        App::start(&backend.url(), &through, STORE, &format!("{LOCK}{CHAT}"))
    });
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("config.toml");
    std::fs::write(
        &file,
        config(&backend, &networks[2], "instance = \"victim\""),
    )
    .expect("the file is written");
    let addresses = |process: &Process| vec![apps[0].addr(), apps[1].addr(), process.addr()];
    let mut process = Process::start(&file);
    let (replicas, known) = watch::channel(addresses(&process));

    let end = Instant::now() + lasting;
    let counts = Arc::new(Counts::default());
    let mut tasks = Vec::new();
    for n in 0..CLIENTS {
        let counts = Arc::clone(&counts);
        tasks.push(tokio::spawn(take_turns(n, known.clone(), end, counts)));
    }
    for (n, network) in networks.iter().enumerate() {
        tasks.push(tokio::spawn(disturb(n, Arc::clone(network), end)));
    }
    let mut dice = Dice(7);
    let mut kills = 0;
    while Instant::now() < end {
        restart_limit();
        sleep(dice.millis(1500, 4000)).await;
        process.signal("KILL");
        drop(process);
        kills += 1;
        sleep(dice.millis(0, 2500)).await;
        process = tokio::task::block_in_place(|| Process::start(&file));
        replicas.send_replace(addresses(&process));
    }
    for task in tasks {
        timeout(LIMIT, task)
            .await
            .expect("every client has its response")
            .expect("every response is correct");
    }
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        for addr in addresses(&process) {
            let free = async || turn(addr, &session, "plain:x").await.status == 200;
            wait_for_async(free, &format!("no session is stuck: {session} at {addr}")).await;
        }
    }
    wait_until_no_keys(&redis).await;
    assert_eq!(
        backend.overlaps(),
        [],
        "turns of a session never overlapped"
    );
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        let mut turns = backend.turns(&session);
        turns.retain(|turn| turn.began.is_some());
        turns.sort_by_key(|turn| turn.began);
        let fences = turns.iter().flat_map(|turn| &turn.headers);
        let fences: Vec<u64> = fences
            .filter(|(name, _)| name == "x-seriatim-fence")
            .map(|(_, fence)| fence.parse().expect("a number"))
            .collect();
        assert!(
            fences.windows(2).all(|pair| pair[0] < pair[1]),
            "fences always rise: {} {fences:?}",
            key(&session)
        );
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{lasting:?}: {} served, {} refused, {} cut, {} left, {kills} kills",
        count(&counts.served),
        count(&counts.refused),
        count(&counts.cut),
        count(&counts.left)
    );
    for (counter, what) in [
        (&counts.served, "served"),
        (&counts.cut, "cut"),
        (&counts.left, "left"),
    ] {
        assert!(
            count(counter) > 0,
            "the faults leave some turns of every kind: no turn was {what}"
        );
    }
}
