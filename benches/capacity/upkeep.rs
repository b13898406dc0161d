//! What Redis does without new turns: for locks that are held, turns that wait, and replicas that are idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use seriatim::lock::Store as _;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::memory::Client;
use super::replica::{REFUSED_IF_BUSY, Replica, WAITING, acquire};
use super::servers::Servers;
use super::table::{Table, count, micros};
use super::throughput::WORKERS;
use super::usage::Reading;
use crate::{Failure, Options};

/// How many locks are held, and how many turns wait, for the cost of one command.
const SESSIONS: usize = 10_000;

/// How many locks one command extends at most, and how many queues one command watches: as in `src/lock`.
const EXTENDED: usize = 200;
const WATCHED: usize = 100;

/// The replicas of the second table.
const REPLICAS: usize = 100;

/// How many turns wait in the second table, each for another session.
const WAITERS: usize = 2000;

/// How long the replicas are left alone for a row of the second table.
const QUIET: Duration = Duration::from_secs(10);

/// Measures both, and prints two tables.
pub(crate) async fn measure(servers: &mut Servers, options: &Options) -> Result<(), Failure> {
    commands(servers, options).await?;
    replicas(servers).await
}

/// The cost of extending locks and of watching queues.
async fn commands(servers: &mut Servers, options: &Options) -> Result<(), Failure> {
    let columns = [
        "one call about",
        "CPU µs of Redis each",
        "scripts for each",
        "one call, µs",
    ];
    let mut table = Table::new(columns);
    servers.clear().await?;
    let client = Client::connect(servers, 0)?;
    let held = client.hold(0..SESSIONS).await?;
    for together in [1, EXTENDED] {
        let before = Reading::take(servers).await?;
        let (began, mut extended) = (Instant::now(), 0);
        for claims in held.chunks(together).cycle() {
            if began.elapsed() > options.slice {
                break;
            }
            let reply = client.store.extend(claims).await?;
            if !reply.iter().all(|is_held| *is_held == Some(true)) {
                return Err("a held lock was not extended".into());
            }
            extended += claims.len();
        }
        let usage = Reading::take(servers).await?.since(&before);
        let each = |all: f64| all / extended as f64;
        table.row([
            format!("{together} held locks: extended"),
            micros(each(usage.cpu)),
            format!("{:.3}", each(usage.scripts)),
            micros(usage.script_time / usage.scripts),
        ]);
    }
    for (together, waiters_each) in [(1, 1), (WATCHED, 1), (WATCHED, 10)] {
        servers.clear().await?;
        let held = client.hold(0..SESSIONS / waiters_each).await?;
        let queues = client.wait_for(&held, waiters_each).await?;
        let before = Reading::take(servers).await?;
        let (began, mut watched) = (Instant::now(), 0);
        for some in queues.chunks(together).cycle() {
            if began.elapsed() > options.slice {
                break;
            }
            let reply = client.store.watch(client.instance(), some).await?;
            for state in reply {
                if state.is_none_or(|state| !state.missing.is_empty()) {
                    return Err("a waiting turn has no place in its queue".into());
                }
            }
            watched += some.len();
        }
        let usage = Reading::take(servers).await?.since(&before);
        let each = |all: f64| all / watched as f64;
        table.row([
            format!("{together} queues of {waiters_each}: watched"),
            micros(each(usage.cpu)),
            format!("{:.3}", each(usage.scripts)),
            micros(usage.script_time / usage.scripts),
        ]);
    }
    table.print(&format!("Calls about many sessions, {}", servers.kind()));
    Ok(())
}

/// What replicas cost in which nothing happens.
async fn replicas(servers: &mut Servers) -> Result<(), Failure> {
    let columns = [
        "replicas",
        "scripts/s",
        "messages/s",
        "CPU of Redis, ms/s",
        "bytes/s in",
        "bytes/s out",
    ];
    let mut table = Table::new(columns);
    servers.clear().await?;
    let replicas = Replica::start_all(servers, REPLICAS, WORKERS).await?;
    let worker =
        |session: usize| &replicas[session % REPLICAS].workers[session / REPLICAS % WORKERS];
    for waiters in [0, WAITERS] {
        let (mut held, mut waiting) = (Vec::new(), JoinSet::new());
        for session in 0..waiters {
            held.push(acquire(worker(session), session, &REFUSED_IF_BUSY).await?);
            // On another replica, and not on the same one for all sessions of a holder.
            let other = Arc::clone(worker(session + 1 + session / REPLICAS));
            waiting.spawn(async move { acquire(&other, session, &WAITING).await.map(drop) });
        }
        sleep(Duration::from_secs(2)).await;
        let before = Reading::take(servers).await?;
        sleep(QUIET).await;
        let usage = Reading::take(servers).await?.since(&before);
        if waiting.try_join_next().is_some() {
            return Err("a turn did not wait for its session".into());
        }
        let per_second = |all: f64| all / usage.seconds;
        table.row([
            format!(
                "{REPLICAS} with {WORKERS} workers each, {} turns wait",
                count(waiters as f64)
            ),
            count(per_second(usage.scripts)),
            count(per_second(usage.messages)),
            format!("{:.1}", per_second(usage.cpu / 1000.0)),
            count(per_second(usage.received)),
            count(per_second(usage.sent)),
        ]);
        drop(waiting);
        for guard in held {
            guard.release().await;
        }
    }
    table.print(&format!("Waiting and idle replicas, {}", servers.kind()));
    Ok(())
}
