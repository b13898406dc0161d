//! All faults at once: three replicas behind faulty networks, one of them killed repeatedly, thirty clients of which
//! some disconnect, a backend that aborts, and servers that fail over. The test counts forbidden outcomes.
//!
//! Runs for a [`StormStore`]'s own time, or for `SERIATIM_STORM_SECONDS` seconds.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::support::app::{App, CHAT, key};
use crate::support::backend::{Backend, events};
use crate::support::client::{Client, Request, turn};
use crate::support::cluster_redis::ClusterRedis;
use crate::support::fault::{FaultProxy, Mode};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::sentinel_redis::{SERVERS, SentinelRedis};
use crate::support::time_limit::restart_limit;
use crate::support::{LIMIT, wait_for_async};

const CLIENTS: usize = 30;
const SESSIONS: usize = 8;
const REPLICAS: usize = 3;

/// Times short enough for every kind of end to occur many times.
const STORE: &str = "timeout = \"300ms\"\ncrash_recovery = \"1500ms\"";
const LOCK: &str = "[lock]\nlock_timeout = \"2s\"\nextend_lock_interval = \"500ms\"\n\
                    blocking = true\nblocking_timeout = \"4s\"\n";

/// The Redis of a storm, and what breaks it.
trait StormStore {
    /// For how long it is broken again and again.
    const LASTING: Duration;

    /// The URL of the store for the replica with this number.
    fn url(&self, replica: usize) -> String;

    /// Breaks it and mends it until `end`, or a little longer. It is in order afterwards.
    async fn disturb(&self, end: Instant);

    /// All keys except those of running instances and of self-tests.
    async fn keys(&self) -> Vec<String>;
}

/// One Redis, and a faulty network before it for each replica.
struct FaultyNetworks {
    redis: Redis,
    networks: Vec<FaultProxy>,
}

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

// === impl Counts ===

impl Counts {
    fn each(&self) -> [(usize, &'static str); 4] {
        [
            (&self.served, "served"),
            (&self.refused, "refused"),
            (&self.cut, "cut"),
            (&self.left, "left"),
        ]
        .map(|(counter, what)| (counter.load(Ordering::Relaxed), what))
    }

    /// Asserts that the faults left some turns of every kind.
    fn assert_all_kinds(&self) {
        for (count, what) in self.each() {
            assert!(
                count > 0 || what == "refused",
                "the faults leave some turns of every kind: no turn was {what}"
            );
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.each().map(|(count, what)| format!("{count} {what}"));
        f.write_str(&each.join(", "))
    }
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
            3..5 => "plain:ok",
            // Long enough to be held while servers fail over.
            5..7 => "chunked:6:400",
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

// === impl StormStore ===

impl StormStore for FaultyNetworks {
    const LASTING: Duration = Duration::from_secs(15);

    fn url(&self, replica: usize) -> String {
        format!("redis://{}/0", self.networks[replica].addr())
    }

    async fn disturb(&self, end: Instant) {
        let networks = self.networks.iter().enumerate();
        join_all(networks.map(|(n, network)| disturb_network(n, network, end))).await;
    }

    async fn keys(&self) -> Vec<String> {
        self.redis.keys().await
    }
}

impl StormStore for SentinelRedis {
    const LASTING: Duration = Duration::from_secs(8);

    fn url(&self, _: usize) -> String {
        self.url()
    }

    async fn disturb(&self, end: Instant) {
        let mut dice = Dice(2000);
        while Instant::now() < end {
            sleep(dice.millis(500, 1500)).await;
            self.failover().await;
            sleep(dice.millis(500, 1500)).await;
            let network = self.proxy(self.master().await);
            // The servers and the Sentinels notice nothing.
            network.set_for(SERVERS, Some(Mode::Pass));
            disturb_once(&mut dice, network, Mode::Blackhole, 800).await;
            let delay = Mode::Delay(dice.millis(1, 120));
            disturb_once(&mut dice, network, delay, 800).await;
            network.set_for(SERVERS, None);
            network.cut().await;
            self.wait_until_ready().await;
            let old = self.master().await;
            self.cut_off(old);
            self.wait_for_another_master(old).await;
            sleep(dice.millis(0, 500)).await;
            self.reconnect(old);
            self.wait_until_ready().await;
            let master = self.master().await;
            for replica in (0..3).filter(|index| *index != master) {
                forget_writes(self.server(replica)).await;
            }
            let old = self.kill_master().await;
            self.wait_for_another_master(old).await;
            sleep(dice.millis(0, 1500)).await;
            self.restart(old).await;
            self.wait_until_ready().await;
        }
    }

    async fn keys(&self) -> Vec<String> {
        self.keys().await
    }
}

impl StormStore for ClusterRedis {
    const LASTING: Duration = Duration::from_secs(8);

    fn url(&self, _: usize) -> String {
        self.url()
    }

    async fn disturb(&self, end: Instant) {
        let mut dice = Dice(3000);
        let shards = 3;
        while Instant::now() < end {
            sleep(dice.millis(200, 1000)).await;
            self.failover(dice.number_below(shards) as usize).await;
            sleep(dice.millis(200, 1000)).await;
            let session = format!("s{}", dice.number_below(SESSIONS as u64));
            let slot = self.slot_of(&key(&session)).await;
            let to = (self.shard(self.owner(slot).await) + 1) % shards as usize;
            self.move_slot(slot, self.master(to).await).await;
            let silent = self.node(self.master(to).await);
            silent.stop_cont(true).await;
            // Too short for the other nodes to take it for dead.
            sleep(dice.millis(50, 600)).await;
            silent.stop_cont(false).await;
            self.wait_until_ok().await;
            let old = self.master(dice.number_below(shards) as usize).await;
            let mut nodes = self.nodes();
            let shard = self.shard(old);
            let replica = nodes.find(|node| *node != old && self.shard(*node) == shard);
            forget_writes(self.node(replica.expect("each shard has a replica"))).await;
            self.kill(old);
            self.wait_for_another_master(old).await;
            sleep(dice.millis(0, 1000)).await;
            self.restart(old).await;
            self.wait_until_ok().await;
        }
    }

    async fn keys(&self) -> Vec<String> {
        self.keys().await
    }
}

/// Removes all keys from a replica, as if it were far behind its master.
async fn forget_writes(replica: &Redis) {
    for command in [
        &["CONFIG", "SET", "replica-read-only", "no"][..],
        &["FLUSHALL"],
        &["CONFIG", "SET", "replica-read-only", "yes"],
    ] {
        replica.command(command).await;
    }
}

/// Puts one network into this mode for a time of up to `most` milliseconds.
async fn disturb_once(dice: &mut Dice, network: &FaultProxy, mode: Mode, most: u64) {
    network.set(mode).await;
    sleep(dice.millis(50, most)).await;
    network.set(Mode::Pass).await;
}

/// Changes the faults of one network until `end`.
async fn disturb_network(n: usize, network: &FaultProxy, end: Instant) {
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

/// Kills the process again and again until `end`, starts it again with this file, and tells its address. Gives the
/// last one, and how many were killed.
async fn kill_again_and_again(
    mut process: Process,
    file: &Path,
    replicas: &watch::Sender<Vec<SocketAddr>>,
    end: Instant,
) -> (Process, usize) {
    let mut dice = Dice(7);
    let mut kills = 0;
    while Instant::now() < end {
        restart_limit();
        sleep(dice.millis(1500, 4000)).await;
        process.signal("KILL");
        drop(process);
        kills += 1;
        sleep(dice.millis(0, 2500)).await;
        let file = file.to_owned();
        let starting = tokio::task::spawn_blocking(move || Process::start(&file));
        process = starting.await.expect("the process starts");
        let addr = process.addr();
        replicas.send_modify(|replicas| replicas[REPLICAS - 1] = addr);
    }
    (process, kills)
}

#[expect(
    clippy::print_stdout,
    reason = "the counts show how severe the faults were; see them with --nocapture"
)]
async fn storm<S: StormStore>(store: S) {
    let seconds = std::env::var("SERIATIM_STORM_SECONDS").ok();
    let lasting = seconds.map_or(S::LASTING, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    });
    let backend = Backend::start("plain:ok").await;
    let apps: Vec<_> = (0..REPLICAS - 1)
        .map(|n| {
            let config = format!("{LOCK}{CHAT}");
            App::start(&backend.url(), &store.url(n), STORE, &config)
        })
        .collect();
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("config.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{}\"\n{STORE}\n\
         instance = \"victim\"\n{LOCK}{CHAT}",
        backend.url(),
        store.url(REPLICAS - 1)
    );
    std::fs::write(&file, text).expect("the file is written");
    let process = Process::start(&file);
    let addresses = apps.iter().map(App::addr).chain([process.addr()]);
    let (replicas, known) = watch::channel(addresses.collect());

    let end = Instant::now() + lasting;
    let counts = Arc::new(Counts::default());
    let clients = (0..CLIENTS).map(|n| {
        let turns = take_turns(n, known.clone(), end, Arc::clone(&counts));
        tokio::spawn(turns)
    });
    let clients: Vec<_> = clients.collect();
    let killing = kill_again_and_again(process, &file, &replicas, end);
    let ((_process, kills), ()) = tokio::join!(killing, store.disturb(end));
    for client in clients {
        timeout(LIMIT, client)
            .await
            .expect("every client has its response")
            .expect("every response is correct");
    }
    for n in 0..SESSIONS {
        let session = format!("s{n}");
        for addr in known.borrow().clone() {
            let free = async || turn(addr, &session, "plain:x").await.status == 200;
            wait_for_async(free, &format!("no session is stuck: {session} at {addr}")).await;
        }
    }
    let quiet = async || store.keys().await.is_empty();
    wait_for_async(quiet, "no key is left at the end").await;
    assert_eq!(
        backend.overlaps(),
        [],
        "turns of a session never overlapped"
    );
    assert_fences_rise(&backend);
    println!("{lasting:?}: {counts}, {kills} kills");
    counts.assert_all_kinds();
}

fn assert_fences_rise(backend: &Backend) {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_all_faults_turns_never_overlap_and_no_session_is_stuck() {
    let redis = Redis::start().await;
    let networks = (0..REPLICAS).map(|_| FaultProxy::start(redis.addr()));
    let networks = join_all(networks).await;
    storm(FaultyNetworks { redis, networks }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_sentinels_that_fail_over_turns_never_overlap_and_no_session_is_stuck() {
    storm(SentinelRedis::start_behind_proxies().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_that_fails_over_turns_never_overlap_and_no_session_is_stuck() {
    storm(ClusterRedis::start(3, 1).await).await;
}
