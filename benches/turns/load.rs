//! One slice of load: a fixed number of clients, each with its own connection and request, as fast as they are answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::client::Connection;
use super::procfs::CpuTime;
use super::statistics::{micros, quantile};
use super::subject::Subject;
use crate::Failure;

/// Connections, pools and caches are warm after this long; what happens meanwhile isn't counted.
const WARM_UP: Duration = Duration::from_millis(150);

/// An answer that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// After so many errors a client gives up: the slice is worthless, and its end is waited for.
const ERRORS_PER_CLIENT: usize = 100;

/// What the clients of a slice do.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// One for each client.
    pub(crate) requests: Vec<Arc<[u8]>>,
    /// The status that isn't an error.
    pub(crate) expected: u16,
}

/// What a slice came to.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) per_second: f64,
    /// CPU of the proxy's process per request, µs.
    pub(crate) cpu: f64,
    /// Latency, µs.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// What went wrong: how often, and an example.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    pub(crate) count: usize,
    pub(crate) example: Option<String>,
}

/// What one client saw.
#[derive(Default)]
pub(crate) struct Tally {
    /// µs, of the answers as expected that ended while measuring.
    pub(crate) latencies: Vec<f64>,
    pub(crate) errors: Errors,
}

/// When a client stops, and which of its turns count.
#[derive(Debug, Default)]
struct Gate {
    measuring: AtomicBool,
    over: AtomicBool,
    /// Turns left, when their number is fixed.
    left: Option<AtomicUsize>,
}

// === impl Load ===

impl Load {
    /// Drives the proxy for `time`, after a warm-up, and measures its process meanwhile.
    ///
    /// Every turn that was begun is waited for: no session is still locked when the next slice begins.
    pub(crate) async fn slice(
        &self,
        subject: &Subject,
        time: Duration,
        errors: &mut Errors,
    ) -> Result<Slice, Failure> {
        let pid = subject.process.id();
        let gate = Arc::new(Gate::default());
        let clients = self.begin(subject.addr, &gate);
        tokio::time::sleep(WARM_UP).await;
        gate.measuring.store(true, Ordering::Relaxed);
        let (begun, before) = (Instant::now(), CpuTime::of(pid)?);
        tokio::time::sleep(time).await;
        gate.over.store(true, Ordering::Relaxed);
        let (took, cpu) = (begun.elapsed(), CpuTime::of(pid)?.since(before));
        let mut tally = finish(clients).await;
        errors.add(tally.errors);
        let turns = tally.latencies.len() as f64;
        Ok(Slice {
            per_second: turns / took.as_secs_f64(),
            cpu: micros(cpu) / turns,
            p50: quantile(&mut tally.latencies, 0.5),
            p99: quantile(&mut tally.latencies, 0.99),
        })
    }

    /// Drives the proxy with exactly `turns` turns, all of them counted.
    pub(crate) async fn exactly(&self, addr: SocketAddr, turns: usize) -> Tally {
        let gate = Arc::new(Gate {
            measuring: true.into(),
            over: false.into(),
            left: Some(turns.into()),
        });
        let mut clients = self.begin(addr, &gate);
        let mut total = Tally::default();
        total.add_all(&mut clients).await;
        total
    }

    fn begin(&self, addr: SocketAddr, gate: &Arc<Gate>) -> JoinSet<Tally> {
        let mut clients = JoinSet::new();
        for request in &self.requests {
            clients.spawn(client(
                addr,
                Arc::clone(request),
                self.expected,
                Arc::clone(gate),
            ));
        }
        clients
    }
}

/// Turn after turn on one connection; on a new one after an error.
async fn client(addr: SocketAddr, request: Arc<[u8]>, expected: u16, gate: Arc<Gate>) -> Tally {
    let mut tally = Tally::default();
    let mut open = None;
    while tally.errors.count < ERRORS_PER_CLIENT && gate.admits() {
        let begun = Instant::now();
        match turn(&mut open, addr, &request).await {
            Ok(status) if status != expected => tally
                .errors
                .one(format!("status {status} instead of {expected}")),
            Ok(_) if gate.measuring.load(Ordering::Relaxed) => {
                tally.latencies.push(micros(begun.elapsed()))
            }
            Ok(_) => {}
            Err(error) => {
                tally.errors.one(error.to_string());
                open = None;
            }
        }
    }
    tally
}

async fn turn(open: &mut Option<Connection>, addr: SocketAddr, request: &[u8]) -> io::Result<u16> {
    let connection = match open {
        Some(connection) => connection,
        None => open.insert(Connection::open(addr).await?),
    };
    connection.turn(request).await
}

/// Waits for the clients' last answers.
async fn finish(mut clients: JoinSet<Tally>) -> Tally {
    let mut total = Tally::default();
    if tokio::time::timeout(PATIENCE, total.add_all(&mut clients))
        .await
        .is_err()
    {
        // Dropping the set ends them.
        total.errors.one(format!(
            "{} clients still without an answer after {PATIENCE:?}",
            clients.len()
        ));
    }
    total
}

// === impl Gate ===

impl Gate {
    /// Whether one more turn may begin; it is taken from those left.
    fn admits(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        !self.over.load(Ordering::Relaxed)
            && self.left.as_ref().is_none_or(|left| {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                    .is_ok()
            })
    }
}

// === impl Errors ===

impl Errors {
    pub(crate) fn one(&mut self, what: String) {
        self.count += 1;
        self.example.get_or_insert(what);
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.example = self.example.take().or(other.example);
    }
}

// === impl Tally ===

impl Tally {
    async fn add_all(&mut self, clients: &mut JoinSet<Self>) {
        while let Some(ended) = clients.join_next().await {
            match ended {
                Ok(tally) => {
                    self.latencies.extend(tally.latencies);
                    self.errors.add(tally.errors);
                }
                Err(panic) => self.errors.one(format!("a client broke: {panic}")),
            }
        }
    }
}
