//! The cost of a turn: Seriatim beside a bare reverse proxy of the same stack, a naive lock, and nginx, HAProxy and Envoy, on
//! loopback, in one run.
//!
//! ```text
//! cargo bench --bench turns                                 # everything, well over half an hour
//! cargo bench --bench turns -- --quick                      # fewer and shorter slices, about four minutes
//! cargo bench --bench turns -- --only 300B,c16              # one case; see "What is measured" for the words
//! cargo bench --bench turns -- --subjects memory,redis      # bare always runs: it is the baseline
//! cargo bench --bench turns -- --slices 12 --slice-ms 2000
//! cargo bench --bench turns -- --output tables.md           # the file for the tables: by default, target/turns.md
//! cargo bench --bench turns -- --seriatim target/release/seriatim    # another build of the proxy
//! ```
//!
//! Cargo compiles the proxy for a benchmark with the features that its dev-dependencies add (tokio's `full`, hence its
//! parking_lot). `--seriatim` measures the binary that is shipped. A subject may be any other proxy that takes
//! `run --config FILE`.
//!
//! # Who takes part
//! | process | is |
//! | --- | --- |
//! | backend | a child of this binary, hyper on one thread: reads the whole body, then a short answer or a stream of events |
//! | `bare` | a child of this binary: hyper and hyper-util's pooled client on tokio's default runtime, no lock |
//! | `naive` | a child of this binary: `bare` with SET NX and a Lua release in Redis, which runs after the answer has ended |
//! | `memory` | `seriatim` with its locks in the process |
//! | `redis` | `seriatim` with its locks in a `redis-server` that this run starts |
//! | `redis-quiet` | the same with `log.level = "warn"`: `bare` writes no access log either |
//! | `nginx`, `haproxy`, `envoy` | the products, without a lock: one worker, kept connections to the backend, no access log |
//!
//! nginx and HAProxy come from Debian. Envoy comes from PyPI (`tests/proxies/requirements.txt`, in `target/test-proxies-venv` or
//! the folder of `SERIATIM_TEST_PROXIES`). What isn't installed is named in the report and left out. CPU and memory of a subject
//! are the sums over its processes; memory that nginx's master and worker share counts twice.
//!
//! The load generator is this process, on one thread: keep-alive connections, one session each, prebuilt requests; an answer
//! with any other status than the expected one is an error. Errors are counted, printed, and make the run fail. Only `naive` may
//! refuse a client because of the client's own last turn: the client waits a millisecond and repeats the turn, the cost of the
//! refusal is part of the turn's, and a table shows how often it happens. A slow run doesn't fail: no time is asserted.
//!
//! # What is measured
//! The subjects take turns (A B C D A B C D ...), so that noise of the machine affects all alike. The tables show medians over
//! the slices; the ratio to `bare` is the median of the ratios in each round, with half its interquartile range after ±. The
//! first lines show the machine, the versions, and how much CPU other processes used: above a few per cent, times mean little
//! (most of all with one client), and only counts are reliable. More and shorter slices help against noise that lasts seconds
//! (`--slices 32 --slice-ms 250`).
//!
//! | words for `--only` | |
//! | --- | --- |
//! | `300B` `16KiB` `256KiB` `c1` `c16` `c64` | turns: CPU of the proxy and of Redis, commands, requests per second, latency |
//! | `refusals` | CPU of a 429, while a stream holds the session |
//! | `streams` | resident memory per idle open stream (`--streams`), and CPU per event that passes (`--event-streams`) |
//! | `handover` | 8 and 200 waiters of one session, on one instance: turns per second, gaps between them, order, commands |
//! | `growth` | a turn with 1 and 1,000 routes, 10 and 10,000 held turns (`--held`), 1 and 1,000 waiters of its session |
//! | `process` | size of the program, time of a start, memory and CPU without load |
//!
//! The latency with `c1` is that of a client that sends its next turn as soon as it has read the last. Idle and loaded memory
//! come with every load; the round trip to Redis (a PING on a plain connection) with the cases of `c1`. Growth counts
//! instructions, too, where `valgrind` is installed, but not with `--quick`. A start is over when the listener accepts a
//! connection; that of Envoy includes Python, which its package starts first. The size is that of the file, with the symbols
//! that it has. Each stream takes two open files of the proxy, so the limit of open files bounds the streams: the report says
//! so (`ulimit -Hn`).
//!
//! # Counting
//! Counts have almost no noise. With `valgrind` and `strace` installed,
//!
//! ```text
//! cargo bench --bench turns -- --count [--connections 1] [--size 300B] [--requests 1000] [--refused]
//! cargo bench --bench turns -- --budget benches/budget.toml
//! ```
//!
//! `--count` runs each subject but Envoy twice, with R and with 3 R requests, and prints the difference divided by 2 R, without the
//! cost of start and end. nginx is one process then. With `--refused`, a stream holds the session, and each turn gets a 429. `--budget` counts the subjects of a budget, and fails if a turn costs more than its budget (`.ci/cost`).
//!
//! | counted | is | by |
//! | --- | --- | --- |
//! | instructions | in user space, of all threads | callgrind |
//! | allocations, frees | calls of `malloc`, `calloc`, `realloc` and the like; calls of `free` | callgrind |
//! | copies | calls of `memcpy` and `memmove` | callgrind |
//! | clock reads | calls of `clock_gettime` | callgrind |
//! | task polls | polls of tokio's tasks; a stripped program has none | callgrind |
//! | system calls | all of them; callgrind adds some of its own, so they have a run of their own | strace |
//!
//! Under callgrind every x86-64 processor with AVX2 looks the same, so the machine doesn't matter. The compiler does, and so do the
//! versions of libc and of the dependencies.
//!
//! For a profile, by hand (`--hold` starts the backend, Redis and one subject, and keeps them running):
//!
//! ```text
//! cargo bench --bench turns -- --hold redis --under "valgrind --tool=callgrind --callgrind-out-file=/tmp/turns.out"
//! cargo bench --bench turns -- --drive 127.0.0.1:PORT --requests 2000 --connections 1 --size 300B
//! callgrind_annotate /tmp/turns.out | head -60            # after Ctrl-C on the first
//!
//! cargo bench --bench turns -- --hold redis
//! strace -c -f -p PID & sleep 1; cargo bench --bench turns -- --drive 127.0.0.1:PORT --requests 2000; kill -INT %1
//! ```
#![expect(
    clippy::print_stdout,
    reason = "tables on standard output are what a benchmark is for"
)]

/// The parts, in `benches/turns/`.
mod turns {
    pub(crate) mod backend;
    pub(crate) mod bare;
    pub(crate) mod budget;
    pub(crate) mod client;
    pub(crate) mod commands;
    pub(crate) mod count;
    pub(crate) mod drive;
    pub(crate) mod findings;
    pub(crate) mod growth;
    pub(crate) mod handover;
    pub(crate) mod idle;
    pub(crate) mod load;
    pub(crate) mod machine;
    pub(crate) mod measure;
    pub(crate) mod naive;
    pub(crate) mod options;
    pub(crate) mod peers;
    pub(crate) mod process;
    pub(crate) mod procfs;
    pub(crate) mod redis;
    pub(crate) mod refusals;
    pub(crate) mod served;
    pub(crate) mod stage;
    pub(crate) mod statistics;
    pub(crate) mod streams;
    pub(crate) mod subject;
    pub(crate) mod table;
    pub(crate) mod totals;
}

use std::process::ExitCode;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use turns::options::{Mode, Options, Role};
use turns::procfs::raise_open_files_limit;
use turns::{backend, bare, count, drive, measure, naive};

/// A failure, which the benchmark only prints.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let outcome = Options::parse(std::env::args().skip(1)).and_then(|options| match options.mode {
        Mode::Say(text) => {
            println!("{text}");
            Ok(true)
        }
        Mode::Role(Role::Backend) => backend::run(),
        Mode::Role(Role::Bare { upstream }) => bare::run(upstream),
        Mode::Role(Role::Naive { upstream, redis }) => naive::run(upstream, redis),
        _ => coordinate(&options),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("turns: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the options ask for, until it is done or a signal comes. Returns whether all responses were as expected.
///
/// It uses one thread, because waking other threads would be measured, too. A signal ends the future and not the process, so
/// that each child is ended by its guard.
fn coordinate(options: &Options) -> Result<bool, Failure> {
    raise_open_files_limit();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let interrupted = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let work = async {
            match &options.mode {
                Mode::Count => count::run(options).await,
                Mode::Budget(file) => count::hold_budget(options, file).await,
                Mode::Drive(addr) => drive::drive(options, *addr).await,
                _ => measure::run(options).await,
            }
        };
        if let Mode::Hold(kind) = options.mode {
            return drive::hold(options, kind, interrupted).await;
        }
        tokio::select! {
            outcome = Box::pin(work) => outcome,
            () = interrupted => Err("interrupted; every process that it started has ended".into()),
        }
    })
}
