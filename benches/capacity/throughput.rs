//! Turns: what each costs Redis, and how many of them one Redis does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use seriatim::lock::{AcquireError, Locks};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::replica::{INTERRUPTING, REFUSED_IF_BUSY, Replica, WAITING, acquire};
use super::servers::Servers;
use super::table::{Table, bytes, count, micros};
use super::usage::{Reading, Usage};
use crate::{Failure, Options};

/// What clients do in a case.
#[derive(Clone, Copy)]
enum Load {
    /// Each worker takes and releases free sessions, this many at a time.
    Free(usize),
    /// All workers together begin this many turns per second, in free sessions.
    Paced(u32),
    /// Turns of busy sessions wait, and each session always has one that waits.
    Waiting,
    /// Each turn interrupts the one before it.
    Interrupting,
    /// Each turn finds its session busy, and is refused.
    Refused,
}

struct Case {
    name: &'static str,
    replicas: usize,
    load: Load,
}

/// A part of a load. Parts count their turns together.
#[derive(Clone)]
struct Part {
    end: Instant,
    turns: Arc<AtomicU64>,
    next_session: Arc<AtomicUsize>,
}

const CASES: [Case; 7] = [
    Case {
        name: "free session, one turn at a time",
        replicas: 1,
        load: Load::Free(1),
    },
    Case {
        name: "free session, 2,000 turns/s on 200 connections",
        replicas: 100,
        load: Load::Paced(2000),
    },
    Case {
        name: "free session, 200 connections, 1 turn at a time each",
        replicas: 100,
        load: Load::Free(1),
    },
    Case {
        name: "free session, 20 connections, 20 turns at a time each",
        replicas: 10,
        load: Load::Free(20),
    },
    Case {
        name: "busy session, the turn waits and gets the lock",
        replicas: 100,
        load: Load::Waiting,
    },
    Case {
        name: "busy session, the turn interrupts",
        replicas: 100,
        load: Load::Interrupting,
    },
    Case {
        name: "busy session, the turn is refused",
        replicas: 100,
        load: Load::Refused,
    },
];

/// The workers of each replica.
pub(crate) const WORKERS: usize = 2;

/// After how long a load has connections with buffers of their usual size.
const WARM_UP: Duration = Duration::from_secs(3);

/// How many sessions have turns that wait or interrupt.
const BUSY_SESSIONS: usize = 200;

/// How many turns want each session of those that have waiting turns.
const CONTENDERS: usize = 4;

/// How many sessions are held while turns are refused, for each second.
const HELD_PER_SECOND: f64 = 10_000.0;

/// Where the numbers of sessions begin that turns hold for a whole slice.
const HELD: usize = 1_000_000_000;

/// Measures all cases, and prints a table.
pub(crate) async fn measure(servers: &mut Servers, options: &Options) -> Result<(), Failure> {
    let mut table = Table::new([
        "turn",
        "turns/s",
        "Redis busy",
        "turns per second of CPU",
        "CPU µs/turn",
        "scripts/turn",
        "messages/turn",
        "bytes in",
        "bytes out",
    ]);
    for case in &CASES {
        servers.clear().await?;
        let replicas = Replica::start_all(servers, case.replicas, WORKERS).await?;
        let mut slices = Vec::new();
        for slice in 0..=options.slices {
            let (turns, usage) = measure_slice(servers, &replicas, case.load, options).await?;
            // The first one connects, loads the scripts and grows the tables.
            if slice > 0 {
                slices.push((turns, usage));
            }
        }
        let median = |value: &dyn Fn(f64, &Usage) -> f64| {
            let all: Vec<_> = slices
                .iter()
                .map(|(turns, usage)| value(*turns, usage))
                .collect();
            crate::turns::statistics::median(&all)
        };
        table.row([
            case.name.to_owned(),
            count(median(&|turns, usage| turns / usage.seconds)),
            format!("{:.0} %", median(&|_, usage| usage.busy())),
            count(median(&|turns, usage| turns * 1e6 / usage.cpu)),
            micros(median(&|turns, usage| usage.cpu / turns)),
            format!("{:.2}", median(&|turns, usage| usage.scripts / turns)),
            format!("{:.2}", median(&|turns, usage| usage.messages / turns)),
            bytes(median(&|turns, usage| usage.received / turns)),
            bytes(median(&|turns, usage| usage.sent / turns)),
        ]);
    }
    table.print(&format!("Turns, {}", servers.kind()));
    Ok(())
}

/// Runs turns of free sessions on all workers, this many per second, for a while. Gives what the servers had allocated
/// in the middle of it.
pub(crate) async fn reading_under_load(
    servers: &mut Servers,
    replicas: &[Replica],
    per_second: u32,
) -> Result<Reading, Failure> {
    let part = Part::until(Instant::now() + 2 * WARM_UP);
    let mut tasks = JoinSet::new();
    part.pace(&mut tasks, replicas, per_second);
    sleep(WARM_UP).await;
    let reading = Reading::take(servers).await?;
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(reading)
}

/// The worker with this number, counted over all replicas: one after another is on different replicas.
fn worker(replicas: &[Replica], number: usize) -> Arc<Locks> {
    let replica = &replicas[number % replicas.len()];
    Arc::clone(&replica.workers[number / replicas.len() % WORKERS])
}

/// Runs a load for one slice. Gives the number of turns.
async fn measure_slice(
    servers: &mut Servers,
    replicas: &[Replica],
    load: Load,
    options: &Options,
) -> Result<(f64, Usage), Failure> {
    let worker = |number| worker(replicas, number);
    let workers = replicas.len() * WORKERS;
    let mut held = Vec::new();
    let refused = (HELD_PER_SECOND * options.slice.as_secs_f64()) as usize;
    if matches!(load, Load::Refused) {
        for number in 0..refused {
            held.push(acquire(&worker(number), HELD + number, &REFUSED_IF_BUSY).await?);
        }
    }
    let before = Reading::take(servers).await?;
    let part = Part::until(Instant::now() + options.slice);
    let mut tasks = JoinSet::new();
    match load {
        Load::Free(at_a_time) => {
            for number in 0..workers * at_a_time {
                tasks.spawn(part.clone().free(worker(number), Duration::ZERO));
            }
        }
        Load::Paced(per_second) => part.pace(&mut tasks, replicas, per_second),
        Load::Waiting => {
            for number in 0..BUSY_SESSIONS * CONTENDERS {
                tasks.spawn(part.clone().waiting(worker(number), number / CONTENDERS));
            }
        }
        Load::Interrupting => {
            for number in 0..BUSY_SESSIONS {
                let two = [worker(number), worker(number + 1)];
                tasks.spawn(part.clone().interrupting(two, number));
            }
        }
        Load::Refused => {
            for number in 0..workers {
                // Each session is held by another replica than the one that wants it.
                tasks.spawn(
                    part.clone()
                        .refused(worker(number), number, workers, refused),
                );
            }
        }
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let usage = Reading::take(servers).await?.since(&before);
    for guard in held {
        guard.release().await;
    }
    Ok((part.turns.load(Ordering::Relaxed) as f64, usage))
}

// === impl Part ===

impl Part {
    fn until(end: Instant) -> Self {
        Self {
            end,
            turns: Arc::default(),
            next_session: Arc::default(),
        }
    }

    /// Starts turns of free sessions on all workers, this many per second.
    fn pace(
        &self,
        tasks: &mut JoinSet<Result<(), Failure>>,
        replicas: &[Replica],
        per_second: u32,
    ) {
        let workers = replicas.len() * WORKERS;
        let pause = Duration::from_secs(1) * workers as u32 / per_second;
        for number in 0..workers {
            let (part, worker) = (self.clone(), worker(replicas, number));
            let first = pause * number as u32 / workers as u32;
            tasks.spawn(async move {
                sleep(first).await;
                part.free(worker, pause).await
            });
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    fn count(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns of new sessions, one after the other, each this long after the one before.
    async fn free(self, locks: Arc<Locks>, pause: Duration) -> Result<(), Failure> {
        let mut due = tokio::time::Instant::now();
        while !self.is_over() {
            let number = self.next_session.fetch_add(1, Ordering::Relaxed);
            let guard = acquire(&locks, number, &REFUSED_IF_BUSY).await?;
            guard.release().await;
            self.count();
            if !pause.is_zero() {
                due += pause;
                sleep_until(due).await;
            }
        }
        Ok(())
    }

    /// Turns of one session, which wait for each other.
    async fn waiting(self, locks: Arc<Locks>, session: usize) -> Result<(), Failure> {
        while !self.is_over() {
            let guard = acquire(&locks, session, &WAITING).await?;
            guard.release().await;
            self.count();
        }
        Ok(())
    }

    /// Turns of one session, each of which interrupts the one before it, on the other worker.
    async fn interrupting(self, workers: [Arc<Locks>; 2], session: usize) -> Result<(), Failure> {
        let mut guard = acquire(&workers[0], session, &INTERRUPTING).await?;
        for worker in workers.iter().cycle().skip(1) {
            if self.is_over() {
                break;
            }
            let interrupted = async {
                guard.lost().await;
                guard.release().await;
            };
            let (next, ()) = tokio::join!(acquire(worker, session, &INTERRUPTING), interrupted);
            guard = next?;
            self.count();
        }
        guard.release().await;
        Ok(())
    }

    /// Turns of every `step`th session that another replica holds.
    async fn refused(
        self,
        locks: Arc<Locks>,
        first: usize,
        step: usize,
        sessions: usize,
    ) -> Result<(), Failure> {
        for number in (first..sessions).step_by(step) {
            // Session `number` is held by the worker `number % step`.
            let other = (number + 1) % sessions;
            match acquire(&locks, HELD + other, &REFUSED_IF_BUSY).await {
                Err(AcquireError::Busy(..)) => self.count(),
                Err(error) => return Err(error.into()),
                Ok(_) => return Err("a busy session was given".into()),
            }
        }
        Ok(())
    }
}
