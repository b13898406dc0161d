//! One slice of load: a fixed number of clients, each with its own connection and request. A client sends its next request as
//! soon as it has the response.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::client::Connection;
use super::statistics::{micros, quantile};
use super::subject::Subject;
use crate::Failure;

/// The time of the warm-up, in which connections, pools and caches fill. It isn't counted.
const WARM_UP: Duration = Duration::from_millis(150);

/// A response that takes longer than this counts as an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client waits after a tolerated refusal.
const PAUSE: Duration = Duration::from_millis(1);

/// After this many errors a client stops: the slice is worthless.
const ERRORS_PER_CLIENT: usize = 100;

/// What the clients of a slice send and expect.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// One request for each client.
    pub(crate) requests: Vec<Arc<[u8]>>,
    /// The expected status. Any other is an error.
    pub(crate) expected: u16,
    /// A status that is counted, and after which the client pauses and sends the request again.
    pub(crate) tolerated: Option<u16>,
}

/// The results of a slice.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) per_second: f64,
    /// CPU time of the proxy per expected response, in µs. That of tolerated refusals is part of it.
    pub(crate) cpu: f64,
    /// CPU time of Redis per expected response, in µs; NaN: the subject has no Redis.
    pub(crate) redis_cpu: f64,
    /// The share of requests that were refused and then sent again, in per cent.
    pub(crate) refused: f64,
    /// Latency, in µs.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// The errors: their number, and one of them as an example.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    pub(crate) count: usize,
    pub(crate) example: Option<String>,
}

/// The results of one client.
#[derive(Default)]
pub(crate) struct Tally {
    /// The latency, in µs, of each expected response that ended while the slice was measured.
    pub(crate) latencies: Vec<f64>,
    /// How many of these requests were refused at first.
    pub(crate) refused: usize,
    /// How many tolerated refusals there were in all.
    pub(crate) refusals: usize,
    pub(crate) errors: Errors,
}

/// When a client stops, and which of its turns count.
#[derive(Debug, Default)]
struct Gate {
    measuring: AtomicBool,
    over: AtomicBool,
    /// How many turns are left, if their number is fixed.
    left: Option<AtomicUsize>,
}

// === impl Load ===

impl Load {
    /// Sends load for `time` after a warm-up, and measures the proxy's process meanwhile.
    ///
    /// Waits for every turn that has begun, so that no session is locked when the next slice begins.
    pub(crate) async fn slice(
        &self,
        subject: &Subject,
        time: Duration,
        errors: &mut Errors,
    ) -> Result<Slice, Failure> {
        let gate = Arc::new(Gate::default());
        let clients = self.begin(subject.addr, &gate);
        tokio::time::sleep(WARM_UP).await;
        gate.measuring.store(true, Ordering::Relaxed);
        let (begun, before) = (Instant::now(), subject.cpu()?);
        let redis_before = subject.redis_cpu()?;
        tokio::time::sleep(time).await;
        gate.over.store(true, Ordering::Relaxed);
        let (took, cpu) = (begun.elapsed(), subject.cpu()?.since(before));
        let redis_cpu = match (subject.redis_cpu()?, redis_before) {
            (Some(now), Some(before)) => micros(now.since(before)),
            _ => f64::NAN,
        };
        let mut tally = finish(clients).await;
        errors.add(tally.errors);
        let turns = tally.latencies.len() as f64;
        Ok(Slice {
            per_second: turns / took.as_secs_f64(),
            cpu: micros(cpu) / turns,
            redis_cpu: redis_cpu / turns,
            refused: tally.refused as f64 * 100.0 / turns,
            p50: quantile(&mut tally.latencies, 0.5),
            p99: quantile(&mut tally.latencies, 0.99),
        })
    }

    /// Sends exactly `turns` turns, and counts all of them.
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
                (self.expected, self.tolerated),
                Arc::clone(gate),
            ));
        }
        clients
    }
}

/// Sends turn after turn on one connection, and opens a new one after an error.
async fn client(
    addr: SocketAddr,
    request: Arc<[u8]>,
    (expected, tolerated): (u16, Option<u16>),
    gate: Arc<Gate>,
) -> Tally {
    let mut tally = Tally::default();
    let mut open = None;
    let mut repeats = false;
    while tally.errors.count < ERRORS_PER_CLIENT && gate.goes_on(repeats) {
        let begun = Instant::now();
        let is_repeat = std::mem::take(&mut repeats);
        match turn(&mut open, addr, &request).await {
            Ok(status) if Some(status) == tolerated => {
                tally.refusals += 1;
                repeats = true;
                tokio::time::sleep(PAUSE).await;
            }
            Ok(status) if status != expected => tally
                .errors
                .one(format!("status {status} instead of {expected}")),
            Ok(_) if gate.measuring.load(Ordering::Relaxed) => {
                tally.refused += usize::from(is_repeat);
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

/// Waits for the last responses of the clients.
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
    /// Whether a client may send: the turn that was refused again, or one more.
    fn goes_on(&self, repeats: bool) -> bool {
        (repeats && !self.over.load(Ordering::Relaxed)) || self.admits()
    }

    /// Whether one more turn may begin. If so, it is subtracted from the turns that are left.
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
                    self.refused += tally.refused;
                    self.refusals += tally.refusals;
                    self.errors.add(tally.errors);
                }
                Err(panic) => self.errors.one(format!("a client broke: {panic}")),
            }
        }
    }
}
