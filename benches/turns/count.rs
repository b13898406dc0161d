//! Instructions and system calls per turn: the cost of a change, without the noise of a clock.
//!
//! Each figure is the difference of two runs of the same proxy, with R and with 3 R turns, divided by 2 R. Instructions are
//! those in user space, of all threads, under the serialised scheduling of valgrind.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::measure::load;
use super::options::Options;
use super::stage::{Stage, on_path};
use super::subject::{Kind, Subject};
use super::table::{Table, figure};
use crate::Failure;

/// How long a subject may take to end: draining under valgrind is slow, and valgrind then writes a file.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that runs another program and counts something.
#[derive(Clone, Copy, Debug)]
enum Counter {
    Callgrind,
    Strace,
}

pub(crate) async fn run(options: &Options) -> Result<bool, Failure> {
    let stage = Stage::set(options).await?;
    let (cast, skipped) = stage.castable(&options.subjects);
    let mut problems: Vec<String> = skipped.into_iter().collect();
    let title = format!(
        "Per turn of {} bytes on {} connection(s); × is the multiple of bare",
        options.size, options.connections
    );
    let mut table = Table::new(
        &title,
        std::iter::once("counted").chain(cast.iter().map(|kind| kind.name())),
    );
    for counter in [Counter::Callgrind, Counter::Strace] {
        if !on_path(counter.program()) {
            problems.push(format!(
                "skipped {}: no {} on PATH",
                counter.name(),
                counter.program()
            ));
            continue;
        }
        let mut counts = Vec::new();
        for &kind in &cast {
            eprintln!("{}: {kind}", counter.name());
            counts.push(per_turn(&stage, kind, counter, options).await?);
        }
        let cells = counts
            .iter()
            .map(|count| format!("{}  ×{:.2}", figure(*count), count / counts[0]));
        table.row(std::iter::once(counter.name().to_owned()).chain(cells));
    }
    table.print();
    for problem in &problems {
        println!("INCOMPLETE: {problem}");
    }
    Ok(problems.is_empty())
}

async fn per_turn(
    stage: &Stage,
    kind: Kind,
    counter: Counter,
    options: &Options,
) -> Result<f64, Failure> {
    let few = total(stage, kind, counter, options, options.requests).await?;
    let many = total(stage, kind, counter, options, options.requests * 3).await?;
    Ok(many.saturating_sub(few) as f64 / (options.requests * 2) as f64)
}

/// What one process counts from its start to its end, if it serves this many turns.
async fn total(
    stage: &Stage,
    kind: Kind,
    counter: Counter,
    options: &Options,
    turns: usize,
) -> Result<u64, Failure> {
    let file = stage.directory.path().join("counted");
    let subject = Subject::start(stage, kind, &counter.command(&file)).await?;
    let tally = load(kind, options.size, options.connections)
        .exactly(subject.addr, turns)
        .await;
    if let Some(example) = tally.errors.example {
        return Err(format!(
            "{kind}: {} of {turns} turns failed, such as: {example}",
            tally.errors.count
        )
        .into());
    }
    subject.process.terminate(PATIENCE).await?;
    let begun = Instant::now();
    loop {
        // strace is another process here, and writes when the proxy has ended.
        if let Some(total) = fs::read_to_string(&file)
            .ok()
            .and_then(|text| counter.read(&text))
        {
            fs::remove_file(&file)?;
            return Ok(total);
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} left no total behind", counter.program()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    fn command(self, file: &Path) -> Vec<String> {
        let file = file.display();
        let words = match self {
            Self::Callgrind => {
                format!("valgrind --quiet --tool=callgrind --callgrind-out-file={file}")
            }
            // -D: the proxy stays our child, so that the guard ends it and not its observer.
            Self::Strace => format!("strace -D -q -c -f -o {file}"),
        };
        words.split(' ').map(str::to_owned).collect()
    }

    /// The total in the file's text; `None`: the file isn't complete.
    fn read(self, text: &str) -> Option<u64> {
        match self {
            Self::Callgrind => text
                .lines()
                .find_map(|line| line.strip_prefix("totals:"))?
                .trim()
                .parse()
                .ok(),
            // % time, seconds, usecs/call, calls, errors, "total"
            Self::Strace => text
                .lines()
                .find(|line| line.ends_with(" total"))?
                .split_whitespace()
                .nth(3)?
                .parse()
                .ok(),
        }
    }
}
