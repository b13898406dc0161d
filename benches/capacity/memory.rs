//! Memory: what held locks, waiting turns and replicas take in Redis.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use seriatim::lock::redis::RedisStore;
use seriatim::lock::{
    AcquireReply, AcquireRequest, Claim, ClaimIssuer, Dispatcher, Fence, QueueOptions, Store,
    WatchedQueue,
};
use tokio::time::sleep;

use super::replica::{LEASE, ROUTE, Replica, issuer, request_id, session};
use super::servers::Servers;
use super::table::{Table, count};
use super::throughput::{WORKERS, reading_under_load};
use super::usage::{Reading, Usage};
use crate::Failure;

/// A store that receives messages, and the claims of its instance.
pub(crate) struct Client {
    pub(crate) store: RedisStore,
    issuer: ClaimIssuer,
}

/// How many commands are sent together.
const TOGETHER: usize = 100;

/// After how long Redis has given the buffers of idle connections back.
const CALM: Duration = Duration::from_secs(5);

/// How many replicas are measured.
const REPLICAS: usize = 100;

/// How many turns per second all replicas together have.
const TURNS: u32 = 2000;

/// Measures all kinds, and prints a table.
pub(crate) async fn measure(servers: &mut Servers, sizes: &[usize]) -> Result<(), Failure> {
    let mut table = Table::new(["what", "how many", "bytes each"]);
    let mut row = |what: &str, how_many: usize, usage: &Usage| {
        let each = count(usage.memory / how_many as f64);
        table.row([what.to_owned(), count(how_many as f64), each]);
    };
    let mut totals = Vec::new();
    let client = Client::connect(servers, 0)?;
    // Connects and loads the scripts.
    client.hold(0..1).await?;
    for &size in sizes {
        servers.clear().await?;
        let empty = Reading::take(servers).await?;
        let mut held = client.hold(0..size).await?;
        let full = Reading::take(servers).await?;
        row("held lock", size, &full.since(&empty));
        totals.push((size, full.used_mebibytes(), full.resident_mebibytes()));
        for waiters_each in [1, 10, 1000] {
            if waiters_each > 1 {
                servers.clear().await?;
                held = client.hold(0..size / waiters_each).await?;
            }
            let before = Reading::take(servers).await?;
            client.wait_for(&held, waiters_each).await?;
            let after = Reading::take(servers).await?;
            let what = format!("waiting turn, {waiters_each} in each session");
            row(&what, size, &after.since(&before));
        }
    }
    drop(client);
    servers.clear().await?;
    sleep(CALM).await;
    let before = Reading::take(servers).await?;
    let replicas = Replica::start_all(servers, REPLICAS, WORKERS).await?;
    sleep(CALM).await;
    let idle = Reading::take(servers).await?;
    let loaded = reading_under_load(servers, &replicas, TURNS).await?;
    let each = (idle.clients() - before.clients()) / REPLICAS as f64;
    let what = format!("idle replica with {WORKERS} workers, {each:.1} connections to each server");
    row(&what, REPLICAS, &idle.since(&before));
    let what = format!("the same, all replicas together with {TURNS} turns/s");
    row(&what, REPLICAS, &loaded.since(&before));
    drop(replicas);
    table.print(&format!("Memory, {}", servers.kind()));
    for (size, used, resident) in totals {
        let size = count(size as f64);
        println!("\n{size} held locks in all: {used:.1} MiB used, {resident:.1} MiB resident.");
    }
    if servers.nodes.len() == 1 {
        keys(servers).await?;
    }
    Ok(())
}

/// Prints what `MEMORY USAGE` says about each key of a session with one waiting turn.
async fn keys(servers: &mut Servers) -> Result<(), Failure> {
    servers.clear().await?;
    let client = Client::connect(servers, 0)?;
    let held = client.hold(0..1).await?;
    client.wait_for(&held, 1).await?;
    let mut table = Table::new(["key", "bytes of its name", "MEMORY USAGE"]);
    let node = &mut servers.nodes[0];
    let mut keys: Vec<String> = node.query(cmd("KEYS").arg("*")).await?;
    keys.sort_by_key(|key| (key.len(), key.clone()));
    for key in keys {
        let mut command = cmd("MEMORY");
        command.arg("USAGE").arg(&key).arg("SAMPLES").arg(0);
        let bytes: f64 = node.query(&command).await?;
        table.row([format!("`{key}`"), key.len().to_string(), count(bytes)]);
    }
    table.print("Keys of a session with one waiting turn");
    let token = held.first().map_or("", |claim| claim.token.as_str());
    println!("\nThe lock's value has {} bytes: `{token}`", token.len());
    Ok(())
}

// === impl Client ===

impl Client {
    pub(crate) fn connect(servers: &Servers, number: usize) -> Result<Self, Failure> {
        let issuer = issuer(number);
        let dispatcher = Arc::new(Dispatcher::new(&issuer));
        let store = servers.stores()?.listen(issuer.instance(), dispatcher);
        Ok(Self { store, issuer })
    }

    /// Takes the locks of the sessions with these numbers.
    pub(crate) async fn hold(
        &self,
        sessions: std::ops::Range<usize>,
    ) -> Result<Vec<Arc<Claim>>, Failure> {
        let claims: Vec<_> = sessions.map(|number| self.claim(number, number)).collect();
        let request = AcquireRequest::default();
        for some in claims.chunks(TOGETHER) {
            let sent = some.iter().map(|claim| self.store.acquire(claim, &request));
            for reply in join_all(sent).await {
                if !matches!(reply?, AcquireReply::Granted(Fence(_))) {
                    return Err("a free lock was not given".into());
                }
            }
        }
        Ok(claims)
    }

    /// Lets turns wait for these locks, and gives the queues.
    pub(crate) async fn wait_for(
        &self,
        held: &[Arc<Claim>],
        waiters_each: usize,
    ) -> Result<Vec<WatchedQueue>, Failure> {
        let request = AcquireRequest {
            take_over: None,
            queue: Some(QueueOptions {
                ticket: None,
                max_waiters: u32::MAX,
                interrupts: false,
            }),
        };
        let mut claims = Vec::new();
        for number in 0..waiters_each {
            claims.extend((0..held.len()).map(|session| self.claim(session, number)));
        }
        for some in claims.chunks(TOGETHER) {
            let sent = some.iter().map(|claim| self.store.acquire(claim, &request));
            for reply in join_all(sent).await {
                if !matches!(reply?, AcquireReply::Waiting(..)) {
                    return Err("a turn does not wait for a held lock".into());
                }
            }
        }
        let queues = (0..held.len()).map(|session| WatchedQueue {
            key: held[session].key.clone(),
            take_over: None,
            wants_places: false,
            waiters: claims
                .iter()
                .skip(session)
                .step_by(held.len())
                .map(|claim| claim.id)
                .collect(),
        });
        Ok(queues.collect())
    }

    /// The name of the instance.
    pub(crate) fn instance(&self) -> &str {
        self.issuer.instance()
    }

    fn claim(&self, number: usize, request: usize) -> Arc<Claim> {
        let (key, request) = (session(number), request_id(request));
        Arc::new(self.issuer.issue(key, ROUTE, &request, LEASE))
    }
}
