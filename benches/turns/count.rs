//! What a turn costs, in counts: the cost of a change, without the noise of a clock.
//!
//! Each figure is the difference of two runs of the same proxy, with R and with 3 R turns, divided by 2 R. Instructions are
//! those in user space, of all threads, under the serialised scheduling of valgrind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::budget::{Budget, Verdict, short};
use super::measure::driven;
use super::options::Options;
use super::stage::{Stage, on_path};
use super::statistics::median;
use super::subject::{Kind, Subject};
use super::table::{Table, figure};
use super::totals::{Counted, Totals, read_callgrind, read_strace};
use crate::Failure;

/// How long a subject may take to end: draining under valgrind is slow, and valgrind then writes a file.
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for more freed chunks in each thread's cache. With libc's default it depends on the process how many don't fit. Merging these
/// costs more than one instruction in a hundred, and two processes would differ by as much.
const STEADY_MALLOC: &str = "glibc.malloc.tcache_count=1000";

/// How often a subject with a budget is counted. A process that does something else once, such as to connect anew because the machine is
/// busy, makes one round wrong.
const ROUNDS: usize = 3;

/// A program that runs another program and counts something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    Callgrind,
    Strace,
}

/// The costs of one turn.
type PerTurn = BTreeMap<Counted, f64>;

/// Counts what the options ask for, and prints it. Returns whether all subjects were counted.
pub(crate) async fn run(options: &Options) -> Result<bool, Failure> {
    let stage = Stage::set(options).await?;
    let (mut cast, skipped) = stage.castable(&options.subjects);
    // Envoy starts under callgrind, but the file for its totals stayed empty when it was tried.
    cast.retain(|kind| *kind != Kind::Envoy && (!options.refused || kind.locks()));
    if cast.is_empty() {
        return Err("no subject refuses a turn; name memory or redis".into());
    }
    let mut problems: Vec<String> = skipped.into_iter().collect();
    let mut costs = vec![PerTurn::new(); cast.len()];
    for counter in [Counter::Callgrind, Counter::Strace] {
        if !on_path(counter.program()) {
            problems.push(format!(
                "skipped {}: no {} on PATH",
                counter.name(),
                counter.program()
            ));
            continue;
        }
        for (&kind, costs) in cast.iter().zip(&mut costs) {
            eprintln!("{}: {kind}", counter.name());
            costs.extend(per_turn(&stage, kind, counter, options).await?);
        }
    }
    print(
        options,
        "× is the multiple of the first column",
        &cast,
        &costs,
        |counted, cost, _| match costs[0].get(&counted) {
            Some(first) => format!("×{:.2}", cost / first),
            None => String::new(),
        },
    );
    for problem in &problems {
        println!("INCOMPLETE: {problem}");
    }
    Ok(problems.is_empty())
}

/// Counts the subjects that have a budget, and compares. Returns whether no count is above its figure.
pub(crate) async fn hold_budget(options: &Options, file: &Path) -> Result<bool, Failure> {
    let name = file.display().to_string();
    let text = fs::read_to_string(file).map_err(|error| format!("{name}: {error}"))?;
    let budgets = Budget::read_all(&text).map_err(|error| format!("{name}: {error}"))?;
    let kinds = budgets.iter().map(|budget| Kind::named(&budget.subject));
    let kinds: Vec<_> = kinds.collect::<Result<_, _>>()?;
    let stage = Stage::set(options).await?;
    let (cast, skipped) = stage.castable(&kinds);
    if let Some(problem) = skipped {
        return Err(problem.into());
    }
    let mut costs = Vec::new();
    for &kind in &cast {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(per_turn(&stage, kind, Counter::Callgrind, options).await?);
        }
        costs.push(medians(&rounds));
    }
    print(
        options,
        "% is the difference from the budget",
        &cast,
        &costs,
        |counted, cost, subject| match budgets[subject].figure(counted) {
            Some(figure) => format!("{:+.1} %", (cost / figure - 1.0) * 100.0),
            None => String::new(),
        },
    );
    let mut passes = true;
    for (Budget { subject, figures }, costs) in budgets.iter().zip(&costs) {
        for &(counted, figure) in figures {
            let count = costs.get(&counted).copied().unwrap_or_default();
            let verdict = Verdict::new(count, figure);
            passes &= verdict.passes();
            if let Some(advice) = verdict.advice(&name) {
                let (count, figure, counted) = (short(count), short(figure), counted.name());
                println!("{subject}: {count} {counted} a turn, the budget is {figure}. {advice}");
            }
        }
    }
    Ok(passes)
}

/// Prints a table of the costs, each beside the result of `compare` for what was counted, the cost and the number of the subject.
fn print(
    options: &Options,
    legend: &str,
    cast: &[Kind],
    costs: &[PerTurn],
    compare: impl Fn(Counted, f64, usize) -> String,
) {
    let (size, connections) = (options.size, options.connections);
    let title = match options.refused {
        false => format!("Per turn of {size} bytes on {connections} connection(s); {legend}"),
        true => format!("Per refused turn on {connections} connection(s); {legend}"),
    };
    let names = cast.iter().map(|kind| kind.name());
    let mut table = Table::new(&title, std::iter::once("counted").chain(names));
    for counted in Counted::ALL {
        if costs.iter().any(|costs| costs.contains_key(&counted)) {
            let cells = (0..costs.len()).map(|subject| match costs[subject].get(&counted) {
                Some(&cost) => format!("{}  {}", figure(cost), compare(counted, cost, subject)),
                None => "-".to_owned(),
            });
            table.row(std::iter::once(counted.name().to_owned()).chain(cells));
        }
    }
    table.print();
}

/// The median of each count.
fn medians(rounds: &[PerTurn]) -> PerTurn {
    let mut series = BTreeMap::<_, Vec<_>>::new();
    for (&counted, &cost) in rounds.iter().flatten() {
        series.entry(counted).or_default().push(cost);
    }
    let medians = series.into_iter();
    medians
        .map(|(counted, costs)| (counted, median(&costs)))
        .collect()
}

async fn per_turn(
    stage: &Stage,
    kind: Kind,
    counter: Counter,
    options: &Options,
) -> Result<PerTurn, Failure> {
    let few = total(stage, kind, counter, options, options.requests).await?;
    let many = total(stage, kind, counter, options, options.requests * 3).await?;
    let turns = (options.requests * 2) as f64;
    Ok(many
        .into_iter()
        .map(|(counted, many)| {
            let few = few.get(&counted).copied().unwrap_or_default();
            (counted, many.saturating_sub(few) as f64 / turns)
        })
        .collect())
}

/// What one process counts from its start to its end, if it serves this many turns.
async fn total(
    stage: &Stage,
    kind: Kind,
    counter: Counter,
    options: &Options,
    turns: usize,
) -> Result<Totals, Failure> {
    let file = stage.directory.path().join("counted");
    let subject = Subject::start(stage, kind, &counter.command(&file)).await?;
    let (load, holder) = driven(kind, subject.addr, options).await?;
    let tally = load.exactly(subject.addr, turns).await;
    drop(holder);
    if let Some(example) = tally.errors.example {
        return Err(format!(
            "{kind}: {} of {turns} turns failed, such as: {example}",
            tally.errors.count
        )
        .into());
    }
    subject.process.terminate(PATIENCE).await?;
    counter.totals(&file).await
}

// === impl Counter ===

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Self::Callgrind => "instructions",
            Self::Strace => "system calls",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Callgrind => "valgrind",
            Self::Strace => "strace",
        }
    }

    /// The command that starts the proxy and writes the total to `file`.
    pub(crate) fn command(self, file: &Path) -> Vec<String> {
        let file = file.display();
        let words = match self {
            Self::Callgrind => format!(
                "env GLIBC_TUNABLES={STEADY_MALLOC} valgrind --quiet --tool=callgrind --callgrind-out-file={file}"
            ),
            // -D: the proxy stays our child, so that the guard ends it and not its observer.
            Self::Strace => format!("strace -D -q -c -f -o {file}"),
        };
        words.split(' ').map(str::to_owned).collect()
    }

    /// Waits for the totals of a process that has ended, reads them, and removes the file.
    pub(crate) async fn totals(self, file: &Path) -> Result<Totals, Failure> {
        let begun = Instant::now();
        loop {
            // strace is another process here, and writes when the proxy has ended.
            if let Some(total) = fs::read_to_string(file)
                .ok()
                .and_then(|text| self.read(&text))
            {
                fs::remove_file(file)?;
                return Ok(total);
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} left no total behind", self.program()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The totals in the file's text; `None`: the file isn't complete.
    fn read(self, text: &str) -> Option<Totals> {
        match self {
            Self::Callgrind => read_callgrind(text),
            Self::Strace => read_strace(text),
        }
    }
}
