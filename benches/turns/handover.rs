//! The hand-over: a turn holds a session while others wait for it, and each is served as soon as the one before it has ended.
//!
//! One instance. `benches/queue.rs` measures three replicas, and beside redis-py's lock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::findings::Findings;
use super::options::Plan;
use super::redis::{RedisLoad, connect};
use super::served::{HOLDER, Served, begin, gaps, is_in_order, serve};
use super::stage::Stage;
use super::statistics::{median, quantile};
use super::subject::{Kind, Setup, Subject};
use super::table::{Table, figure};
use crate::Failure;

/// How many turns wait.
const WAITERS: [usize; 2] = [8, 200];

/// How long the backend takes for a turn.
const TURN: Duration = Duration::from_millis(20);

/// How long a turn may take to be in the queue, and all of them to be served.
const PATIENCE: Duration = Duration::from_secs(60);

/// The metric that counts the waiters of a process.
const METRIC: &str = "seriatim_waiters ";

/// What the rounds with one subject and one number of waiters found.
#[derive(Debug, Default)]
struct Found {
    /// Turns per second, one figure for each round.
    per_second: Vec<f64>,
    /// All gaps between turns, in µs.
    gaps: Vec<f64>,
    /// Scripts per hand-over, one figure for each round. Empty without Redis.
    scripts: Vec<f64>,
    /// CPU time of Redis per hand-over in µs, one figure for each round. Empty without Redis.
    cpu: Vec<f64>,
    is_in_order: bool,
}

/// A subject, and what the backend behind it has served.
struct Scene<'a> {
    subject: &'a Subject,
    admin: SocketAddr,
    served: &'a Served,
    redis: Option<MultiplexedConnection>,
}

/// Measures each subject that has a queue, and adds a table.
pub(crate) async fn run(
    stage: &Stage,
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let title = format!(
        "Hand-over: waiters of one session, turns of {} ms (ideal: {} turns per second)",
        TURN.as_millis(),
        Duration::from_secs(1).as_millis() / TURN.as_millis()
    );
    let mut table = Table::new(
        &title,
        [
            "subject",
            "waiters",
            "turns per second",
            "gap p50, µs",
            "gap p99, µs",
            "in order",
            "Redis commands per turn",
            "CPU of Redis per turn, µs",
        ],
    );
    let served = Arc::new(Served::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let setup = Setup {
        queues: true,
        backend: listener.local_addr()?,
        ..Setup::usual(stage)
    };
    let backend = tokio::spawn(serve(listener, TURN, Arc::clone(&served)));
    let kinds = findings.cast.iter().copied();
    for kind in kinds.filter(|kind| kind.is_seriatim()).collect::<Vec<_>>() {
        let subject = Subject::start_with(stage, kind, &setup, &[]).await?;
        let redis = match stage.redis_addr(kind)? {
            Some(addr) => Some(connect(addr).await?),
            None => None,
        };
        let mut scene = Scene {
            admin: subject
                .admin
                .ok_or("a build without an admin interface has no queue to look at")?,
            subject: &subject,
            served: &served,
            redis,
        };
        for waiters in WAITERS {
            let rounds = if waiters > 50 {
                plan.slices.div_ceil(4)
            } else {
                plan.slices
            };
            let found = rounds_of(&mut scene, waiters, rounds).await?;
            if !found.is_in_order {
                let problem = format!("{kind}: {waiters} waiters were not served in order");
                findings.problems.push(problem);
            }
            table.row(found.row(kind, waiters));
        }
    }
    backend.abort();
    findings.tables.push(table);
    Ok(())
}

async fn rounds_of(scene: &mut Scene<'_>, waiters: usize, rounds: usize) -> Result<Found, Failure> {
    let mut found = Found {
        is_in_order: true,
        ..Found::default()
    };
    for round in 1..=rounds {
        let kind = scene.subject.kind;
        eprintln!("handover: {waiters} waiters through {kind}, round {round} of {rounds}");
        let session = format!("{kind}-{waiters}-{round}");
        let once = tokio::time::timeout(PATIENCE, scene.round(&session, waiters, &mut found));
        once.await
            .map_err(|_| format!("{kind}: {waiters} waiters took more than {PATIENCE:?}"))??;
    }
    Ok(found)
}

// === impl Scene ===

impl Scene<'_> {
    async fn round(
        &mut self,
        session: &str,
        waiters: usize,
        found: &mut Found,
    ) -> Result<(), Failure> {
        let mut answers = JoinSet::new();
        answers.spawn(answer(begin(self.subject.addr, session, HOLDER).await?));
        self.served.holder().await;
        for n in 0..waiters {
            answers.spawn(answer(begin(self.subject.addr, session, n).await?));
            await_waiters(self.admin, n + 1).await?;
        }
        let before = self.load().await?;
        self.served.release();
        while let Some(answered) = answers.join_next().await {
            answered??;
        }
        if let (Some(before), Some(after)) = (before, self.load().await?) {
            let each = |all: f64| all / waiters as f64;
            found.scripts.push(each(after.scripts - before.scripts));
            found.cpu.push(each(after.cpu - before.cpu) * 1e6);
        }
        let turns = self.served.take();
        found.is_in_order &= is_in_order(&turns, waiters);
        found.gaps.extend(gaps(&turns));
        if let [first, .., last] = &turns[..] {
            let took = last.ended - first.began;
            found
                .per_second
                .push(turns.len() as f64 / took.as_secs_f64());
        }
        Ok(())
    }

    /// What its Redis has done; `None`: the subject has no Redis.
    async fn load(&mut self) -> Result<Option<RedisLoad>, Failure> {
        match &mut self.redis {
            Some(redis) => Ok(Some(RedisLoad::read(redis).await?)),
            None => Ok(None),
        }
    }
}

// === impl Found ===

impl Found {
    fn row(mut self, kind: Kind, waiters: usize) -> [String; 8] {
        [
            kind.to_string(),
            waiters.to_string(),
            figure(median(&self.per_second)),
            figure(quantile(&mut self.gaps, 0.5)),
            figure(quantile(&mut self.gaps, 0.99)),
            (if self.is_in_order { "yes" } else { "NO" }).to_owned(),
            figure(median(&self.scripts)),
            figure(median(&self.cpu)),
        ]
    }
}

/// Reads the response of a turn, which must be the backend's.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"done") {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Err(std::io::Error::other(format!("a waiter got: {answer}")))
}

/// Waits until this many turns are in the queue.
async fn await_waiters(admin: SocketAddr, count: usize) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        let mut stream = TcpStream::connect(admin).await?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            .await?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await?;
        let text = String::from_utf8_lossy(&text);
        let value = text.lines().find_map(|line| line.strip_prefix(METRIC));
        let value = value.ok_or("the metrics don't say how many turns wait")?;
        if value.trim().parse::<usize>()? >= count {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{count} turns did not wait within {PATIENCE:?}").into());
        }
        sleep(Duration::from_millis(1)).await;
    }
}
