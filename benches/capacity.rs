//! What one Redis carries: the cost of turns, held locks, waiting turns and replicas, in CPU, memory and bytes.
//!
//! ```text
//! cargo bench --bench capacity                             # everything, about ten minutes
//! cargo bench --bench capacity -- --only turns             # or memory, upkeep
//! cargo bench --bench capacity -- --servers 1,cluster:3    # one Redis, and a cluster of three masters
//! cargo bench --bench capacity -- --server PATH            # another redis-server or valkey-server
//! cargo bench --bench capacity -- --slices 5 --slice-ms 3000
//! ```
//!
//! The benchmark starts its own servers. Replicas of Seriatim, without HTTP, run in this process on one thread: their
//! locks, heartbeats, messages and queues are the real ones. Sessions, users and requests have UUIDs, and replicas have names as
//! long as those of pods. It prints tables in Markdown; docs/capacity.md explains them.
//!
//! Other programs on the machine change the turns per second. They change the CPU time of Redis little, and memory, commands
//! and bytes not at all. The figures about turns are medians of the slices.
#![expect(
    clippy::print_stdout,
    reason = "tables on standard output are what a benchmark is for"
)]

/// The parts of `benches/turns/` that this benchmark uses.
// Without the path, rustfmt looks for them in `benches/capacity/`.
#[path = "turns"]
mod turns {
    #![allow(dead_code, reason = "each benchmark uses what it needs")]
    pub(crate) mod process;
    pub(crate) mod procfs;
    pub(crate) mod statistics;
}

/// The parts, in `benches/capacity/`.
mod capacity {
    pub(crate) mod memory;
    pub(crate) mod replica;
    pub(crate) mod servers;
    pub(crate) mod table;
    pub(crate) mod throughput;
    pub(crate) mod upkeep;
    pub(crate) mod usage;
}

use std::path::PathBuf;
use std::time::Duration;

use capacity::servers::Servers;
use capacity::{memory, throughput, upkeep};
use turns::procfs::MachineTime;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    /// The program of the servers.
    server: PathBuf,
    /// `1` for one server, or `cluster:MASTERS`.
    kinds: Vec<String>,
    parts: Vec<String>,
    slices: usize,
    slice: Duration,
    /// How many locks are held, and how many turns wait, to measure memory.
    sizes: Vec<usize>,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&options))
}

fn options() -> Result<Options, Failure> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut options = Options {
        server: "redis-server".into(),
        kinds: list("1,cluster:1,cluster:3"),
        parts: list("memory,turns,upkeep"),
        slices: 5,
        slice: Duration::from_secs(2),
        sizes: vec![10_000, 100_000],
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            // Cargo passes this.
            "--bench" => {}
            "--server" => options.server = value()?.into(),
            "--servers" => options.kinds = list(&value()?),
            "--only" => options.parts = list(&value()?),
            "--slices" => options.slices = value()?.parse()?,
            "--slice-ms" => options.slice = Duration::from_millis(value()?.parse()?),
            "--sizes" => {
                let sizes = value()?;
                let sizes = sizes.split(',').map(str::parse).collect::<Result<_, _>>();
                options.sizes = sizes?;
            }
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<(), Failure> {
    let began = MachineTime::now()?;
    for kind in &options.kinds {
        for part in &options.parts {
            let mut servers = match (kind.as_str(), kind.strip_prefix("cluster:")) {
                (_, Some(masters)) => Servers::cluster(&options.server, masters.parse()?).await?,
                ("1", None) => Servers::single(&options.server).await?,
                _ => return Err(format!("unknown servers {kind}: 1 or cluster:MASTERS").into()),
            };
            if part == &options.parts[0] {
                println!("\n{}, {}", servers.version().await?, servers.kind());
            }
            match part.as_str() {
                "memory" => memory::measure(&mut servers, &options.sizes).await?,
                "turns" => throughput::measure(&mut servers, options).await?,
                "upkeep" => upkeep::measure(&mut servers, options).await?,
                other => {
                    return Err(format!("unknown part {other}: memory, turns or upkeep").into());
                }
            }
        }
    }
    // The servers have ended: their time is this process's own.
    let others = MachineTime::now()?.others_since(began);
    println!("\nOther programs used {others:.0} % of the machine's CPU.");
    Ok(())
}
