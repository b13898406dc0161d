//! The command line: what Cargo passes, what a user asks for, and what a child process gets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::subject::Kind;
use crate::Failure;

/// The body sizes, and the numbers of connections for each size.
const CASES: [(&str, usize, &[usize]); 3] = [
    ("300B", 300, &[1, 16, 64]),
    ("16KiB", 16 * 1024, &[1, 16, 64]),
    ("256KiB", 256 * 1024, &[16]),
];

/// The parts of a run that aren't turns.
const SECTIONS: [&str; 5] = ["refusals", "streams", "handover", "growth", "process"];

/// Cargo runs a benchmark in the folder of its package.
const OUTPUT: &str = "target/turns.md";

/// The options of libtest. Cargo and users' aliases pass these to every benchmark.
const HARNESS: [&str; 9] = [
    "--nocapture",
    "--no-capture",
    "--show-output",
    "--exact",
    "--quiet",
    "-q",
    "--ignored",
    "--include-ignored",
    "--verbose",
];

/// The smallest body that holds the ids and one message, in bytes.
const LEAST_SIZE: usize = 160;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) subjects: Vec<Kind>,
    pub(crate) seriatim: PathBuf,
    pub(crate) plan: Plan,
    pub(crate) only: Vec<String>,
    /// The file for the tables.
    pub(crate) output: PathBuf,
    /// The command that starts the subject, such as `valgrind`.
    pub(crate) under: Vec<String>,
    pub(crate) requests: usize,
    pub(crate) connections: usize,
    pub(crate) size: usize,
    /// Whether the turns that are counted or driven are refused, because a stream holds their session.
    pub(crate) refused: bool,
}

#[derive(Debug)]
pub(crate) enum Mode {
    /// Prints a text and measures nothing.
    Say(String),
    Measure,
    Count,
    /// Counts, and compares with the budget in a file.
    Budget(PathBuf),
    Hold(Kind),
    Drive(SocketAddr),
    Role(Role),
}

/// The role of a child process.
#[derive(Debug)]
pub(crate) enum Role {
    Backend,
    Bare {
        upstream: SocketAddr,
    },
    Naive {
        upstream: SocketAddr,
        redis: SocketAddr,
    },
}

/// How long, how often and with how many connections a run measures.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The number of rounds. Each subject has one slice in a round.
    pub(crate) slices: usize,
    pub(crate) slice: Duration,
    /// How many idle streams are open at once.
    pub(crate) streams: usize,
    /// How many streams are open at once while events pass.
    pub(crate) event_streams: usize,
    /// How many turns are held while others run, for their growth.
    pub(crate) held: usize,
    /// Whether instructions are counted, for the growth of turns. It takes minutes.
    pub(crate) counts: bool,
    /// How often each subject is started, for the time of a start.
    pub(crate) starts: usize,
    /// How long the CPU time of idle processes is measured.
    pub(crate) idle: Duration,
}

impl Plan {
    fn whole() -> Self {
        Self {
            slices: 8,
            slice: Duration::from_secs(1),
            streams: 10_000,
            event_streams: 1000,
            held: 10_000,
            counts: true,
            starts: 9,
            idle: Duration::from_secs(10),
        }
    }

    fn quick() -> Self {
        Self {
            slices: 3,
            slice: Duration::from_millis(300),
            streams: 200,
            event_streams: 50,
            held: 1000,
            counts: false,
            starts: 3,
            idle: Duration::from_secs(2),
        }
    }
}

/// A body size and a number of connections.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) size: usize,
    pub(crate) connections: usize,
}

// === impl Options ===

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            mode: Mode::Say(
                "turns is a benchmark: cargo bench --bench turns (its source's head says more)"
                    .to_owned(),
            ),
            subjects: Kind::ALL.to_vec(),
            seriatim: PathBuf::from(env!("CARGO_BIN_EXE_seriatim")),
            plan: Plan::whole(),
            output: PathBuf::from(OUTPUT),
            only: Vec::new(),
            under: Vec::new(),
            requests: 1000,
            connections: 1,
            size: CASES[0].1,
            refused: false,
        };
        let mut test = false;
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                // `cargo bench` passes it; `cargo test --benches` doesn't, and then nothing is measured.
                "--bench" if matches!(options.mode, Mode::Say(_)) => options.mode = Mode::Measure,
                "--bench" => {}
                "--test" => test = true,
                // nextest asks every target for its tests; this one has none.
                "--list" => options.mode = Mode::Say(String::new()),
                "--quick" => options.plan = Plan::quick(),
                "--slices" => options.plan.slices = value()?.parse::<usize>()?.max(1),
                "--slice-ms" => {
                    options.plan.slice = Duration::from_millis(value()?.parse::<u64>()?.max(50))
                }
                "--streams" => options.plan.streams = value()?.parse::<usize>()?.max(1),
                "--event-streams" => options.plan.event_streams = value()?.parse::<usize>()?.max(1),
                "--held" => options.plan.held = value()?.parse::<usize>()?.max(1),
                "--output" => options.output = value()?.into(),
                "--only" => options.restrict(&value()?)?,
                "--subjects" => options.subjects = cast(&value()?)?,
                "--seriatim" => options.seriatim = value()?.into(),
                "--count" => options.mode = Mode::Count,
                "--budget" => options.mode = Mode::Budget(value()?.into()),
                "--hold" => options.mode = Mode::Hold(Kind::named(&value()?)?),
                "--under" => {
                    options.under = value()?.split_whitespace().map(str::to_owned).collect()
                }
                "--drive" => options.mode = Mode::Drive(value()?.parse()?),
                "--requests" => options.requests = value()?.parse()?,
                "--connections" => options.connections = value()?.parse::<usize>()?.max(1),
                "--size" => options.size = size(&value()?)?,
                "--refused" => options.refused = true,
                "--role" => options.mode = Mode::Role(role(&value()?, &mut arguments)?),
                "--color" | "--format" | "--test-threads" | "--skip" | "-Z" => drop(value()?),
                flag if HARNESS.contains(&flag)
                    || flag.starts_with("--color=")
                    || flag.starts_with("--format=") => {}
                flag if flag.starts_with('-') => {
                    return Err(format!("no flag {flag}; they are in the source's head").into());
                }
                // `cargo bench turns` passes its filter to the benchmark of that name.
                name if "turns".contains(name) => {}
                words => options.restrict(words)?,
            }
        }
        if options.refused && !matches!(options.mode, Mode::Count | Mode::Drive(_)) {
            return Err("--refused goes with --count or --drive".into());
        }
        if test {
            options.mode = Mode::Say("turns is a benchmark, and has no tests".to_owned());
        }
        Ok(options)
    }

    fn restrict(&mut self, words: &str) -> Result<(), Failure> {
        for word in words.split(',').map(str::trim) {
            if !known(word) {
                let sizes = CASES.map(|(name, ..)| name).join(", ");
                let sections = SECTIONS.join(", ");
                return Err(format!(
                    "nothing is called {word:?}; there are {sizes}, c1, c16, c64, {sections}"
                )
                .into());
            }
            self.only.push(word.to_owned());
        }
        Ok(())
    }

    /// The cases that are asked for: all, or those with a named size (if one is named) and a named number of connections.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let named = |word: &str| self.only.iter().any(|only| only == word);
        let any_size = !CASES.iter().any(|(size, ..)| named(size));
        let any_count = !self.only.iter().any(|word| connections(word).is_some());
        if any_size && any_count && !self.only.is_empty() {
            return Vec::new();
        }
        let mut cases = Vec::new();
        for (size_name, size, counts) in CASES.iter().filter(|(size, ..)| any_size || named(size)) {
            for &connections in counts
                .iter()
                .filter(|count| any_count || named(&format!("c{count}")))
            {
                cases.push(Case {
                    name: format!("{size_name} c{connections}"),
                    size: *size,
                    connections,
                });
            }
        }
        cases
    }

    pub(crate) fn wants(&self, section: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| word == section)
    }
}

fn known(word: &str) -> bool {
    let sized = CASES.iter().any(|(size, ..)| *size == word);
    let counted = connections(word)
        .is_some_and(|wanted| CASES.iter().any(|(.., counts)| counts.contains(&wanted)));
    sized || counted || SECTIONS.contains(&word)
}

/// The number in a word such as "c16".
fn connections(word: &str) -> Option<usize> {
    word.strip_prefix('c')?.parse().ok()
}

fn size(text: &str) -> Result<usize, Failure> {
    let number = |digits: &str| {
        digits
            .parse::<usize>()
            .map_err(|_| format!("{text:?} is no size; write 300B or 16KiB"))
    };
    let size = match text.strip_suffix("KiB") {
        Some(digits) => number(digits)? * 1024,
        None => number(text.strip_suffix('B').unwrap_or(text))?,
    };
    if size < LEAST_SIZE {
        Err(format!("a body of {text} has no room for its ids; {LEAST_SIZE}B has").into())
    } else {
        Ok(size)
    }
}

/// The named subjects in their usual order, after the baseline.
fn cast(names: &str) -> Result<Vec<Kind>, Failure> {
    let mut wanted = vec![Kind::Bare];
    for name in names.split(',') {
        wanted.push(Kind::named(name.trim())?);
    }
    Ok(Kind::ALL
        .into_iter()
        .filter(|kind| wanted.contains(kind))
        .collect())
}

fn role(name: &str, arguments: &mut impl Iterator<Item = String>) -> Result<Role, Failure> {
    let mut addr = |flag: &str| -> Result<SocketAddr, Failure> {
        let value = arguments.nth(1);
        let value = value.ok_or_else(|| format!("the role {name} needs {flag} ADDRESS"))?;
        Ok(value.parse()?)
    };
    match name {
        "backend" => Ok(Role::Backend),
        "bare" => Ok(Role::Bare {
            upstream: addr("--upstream")?,
        }),
        "naive" => Ok(Role::Naive {
            upstream: addr("--upstream")?,
            redis: addr("--redis")?,
        }),
        _ => Err(format!("no role {name:?}; roles are for this program's own children").into()),
    }
}
