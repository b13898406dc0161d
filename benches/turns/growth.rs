//! Growth: whether a turn costs more with many routes, many held turns, or many waiters of its session.
//!
//! Two processes of the same subject run side by side and take turns, one with few and one with many. Commands of Redis and,
//! with `valgrind` and without `--quick`, instructions are counted: the difference of two runs, with R and with 3 R turns.

use std::sync::Arc;
use std::time::Duration;

use super::backend;
use super::client::{Connection, request};
use super::count::Counter;
use super::findings::Findings;
use super::load::Load;
use super::measure::load;
use super::options::Plan;
use super::peers::find;
use super::redis::{RedisLoad, connect};
use super::stage::Stage;
use super::statistics::median;
use super::streams::most_streams;
use super::subject::{Kind, Setup, Subject};
use super::table::{Table, beside, figure};
use super::totals::Counted;
use crate::Failure;

const SIZE: usize = 300;

/// R, for the commands per turn.
const TURNS: usize = 2000;

/// R, for the instructions per turn.
const COUNTED: usize = 1000;

/// How long a subject may take to end under valgrind.
const PATIENCE: Duration = Duration::from_secs(60);

/// What there is much or little of.
#[derive(Clone, Copy, Debug)]
enum Grown {
    Routes,
    Held,
    Waiters,
}

/// A subject with as much of it as is measured.
struct Side {
    subject: Subject,
    load: Load,
    /// The streams that hold their sessions.
    held: Vec<Connection>,
}

/// Measures each subject of Seriatim, and adds a table.
pub(crate) async fn run(
    stage: &Stage,
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut table = Table::new(
        "Growth: a turn of 300 bytes with few and with many",
        [
            "subject",
            "of",
            "few",
            "many",
            "CPU with few, µs",
            "with many",
            "instructions with few",
            "with many",
            "Redis commands per turn, few / many",
        ],
    );
    let counts = plan.counts && find("valgrind").is_some();
    if plan.counts && !counts {
        findings.notes.push(
            "valgrind is not installed, so the growth of instructions was not counted.".into(),
        );
    }
    let kinds = findings.cast.iter().copied();
    for kind in kinds.filter(|kind| kind.is_seriatim()).collect::<Vec<_>>() {
        for grown in [Grown::Routes, Grown::Held, Grown::Waiters] {
            let (few, many) = grown.sizes(plan);
            eprintln!("growth: {few} and {many} {} through {kind}", grown.name());
            let mut cells = vec![kind.to_string(), grown.name().to_owned()];
            cells.extend([few.to_string(), many.to_string()]);
            let index = findings.cast.iter().position(|&other| other == kind);
            let errors = &mut findings.errors[index.ok_or("a subject that isn't cast")?];

            let mut sides = Vec::new();
            for size in [few, many] {
                sides.push(Side::start(stage, kind, grown, size, &[]).await?);
            }
            let mut series = [Vec::new(), Vec::new()];
            for _ in 0..plan.slices {
                for (side, series) in sides.iter().zip(&mut series) {
                    let time = plan.slice.max(grown.least_slice());
                    let slice = side.load.slice(&side.subject, time, errors).await?;
                    series.push(slice.cpu);
                }
            }
            cells.push(figure(median(&series[0])));
            cells.push(beside(&series[1], &series[0]));

            let mut commands = Vec::new();
            for side in &sides {
                commands.push(side.commands_per_turn(stage).await?);
            }
            drop(sides);
            if counts {
                let few = instructions(stage, kind, grown, few).await?;
                let many = instructions(stage, kind, grown, many).await?;
                cells.push(figure(few));
                cells.push(beside(&[many], &[few]));
            } else {
                cells.extend(["-".to_owned(), "-".to_owned()]);
            }
            cells.push(format!("{} / {}", figure(commands[0]), figure(commands[1])));
            table.row(cells);
        }
    }
    findings.tables.push(table);
    Ok(())
}

// === impl Grown ===

impl Grown {
    fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Held => "held turns",
            Self::Waiters => "waiters of one session",
        }
    }

    fn sizes(self, plan: &Plan) -> (usize, usize) {
        match self {
            Self::Routes | Self::Waiters => (1, 1000),
            Self::Held => (10, plan.held.min(most_streams())),
        }
    }

    /// A turn that a thousand others are before takes long: a slice has to be longer than that.
    fn least_slice(self) -> Duration {
        match self {
            Self::Routes | Self::Held => Duration::ZERO,
            Self::Waiters => Duration::from_secs(1),
        }
    }
}

// === impl Side ===

impl Side {
    async fn start(
        stage: &Stage,
        kind: Kind,
        grown: Grown,
        size: usize,
        under: &[String],
    ) -> Result<Self, Failure> {
        let mut setup = Setup::usual(stage);
        let (mut held, mut clients) = (0, 1);
        match grown {
            Grown::Routes => setup.routes = size,
            Grown::Held => held = size,
            Grown::Waiters => (setup.queues, clients) = (true, size + 1),
        }
        let subject = Subject::start_with(stage, kind, &setup, under).await?;
        // Streams and turns of the two sides share a Redis, so their sessions have names of their own.
        let name = format!("{kind}-{}", subject.addr.port());
        let mut open = Vec::new();
        for n in 0..held {
            let mut stream = Connection::open(subject.addr).await?;
            let target = format!("/chat?{}", backend::HOLD);
            let turn = request(&target, &format!("{name}-held-{n}"), SIZE);
            stream.begin_stream(&turn).await?;
            open.push(stream);
        }
        let turn: Arc<[u8]> = request("/chat", &name, SIZE).into();
        let load = Load {
            requests: vec![turn; clients],
            ..load(kind, SIZE, 0)
        };
        Ok(Self {
            subject,
            load,
            held: open,
        })
    }

    /// Redis's commands per turn; NaN: the subject has no Redis.
    async fn commands_per_turn(&self, stage: &Stage) -> Result<f64, Failure> {
        let Some(addr) = stage.redis_addr(self.subject.kind)? else {
            return Ok(f64::NAN);
        };
        let mut redis = connect(addr).await?;
        let mut counts = [0.0; 2];
        for (count, times) in counts.iter_mut().zip([1, 3]) {
            let before = RedisLoad::read(&mut redis).await?;
            self.turns(TURNS * times).await?;
            *count = RedisLoad::read(&mut redis).await?.scripts - before.scripts;
        }
        // What a run takes to fill the queue is in both.
        Ok((counts[1] - counts[0]) / (TURNS * 2) as f64)
    }

    /// Sends this many turns, of which none may fail.
    async fn turns(&self, turns: usize) -> Result<(), Failure> {
        let tally = self.load.exactly(self.subject.addr, turns).await;
        match tally.errors.example {
            None => Ok(()),
            Some(example) => {
                let (kind, count) = (self.subject.kind, tally.errors.count);
                Err(format!("{kind}: {count} of {turns} turns failed, such as: {example}").into())
            }
        }
    }
}

/// Instructions per turn.
async fn instructions(
    stage: &Stage,
    kind: Kind,
    grown: Grown,
    size: usize,
) -> Result<f64, Failure> {
    let file = stage.directory.path().join("grown");
    let mut totals = [0_u64, 0];
    for (total, times) in totals.iter_mut().zip([1, 3]) {
        let under = Counter::Callgrind.command(&file);
        let side = Side::start(stage, kind, grown, size, &under).await?;
        side.turns(COUNTED * times).await?;
        // A process that is to end waits for the turns that it has.
        drop(side.held);
        side.subject.process.terminate(PATIENCE).await?;
        let counted = Counter::Callgrind.totals(&file).await?;
        *total = counted
            .get(&Counted::Instructions)
            .copied()
            .unwrap_or_default();
    }
    Ok(totals[1].saturating_sub(totals[0]) as f64 / (COUNTED * 2) as f64)
}
