//! The two halves of a run, each alone: a subject that runs for a profiler, and a load of a fixed number of turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::load::Tally;
use super::measure::driven;
use super::options::Options;
use super::stage::Stage;
use super::statistics::{micros, quantile};
use super::subject::{Kind, Subject};
use super::table::figure;
use crate::Failure;

/// How long a subject may take to end: draining under valgrind is slow, and valgrind then writes a profile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a subject with its backend and Redis, prints its address, and keeps it until a signal comes.
pub(crate) async fn hold(
    options: &Options,
    kind: Kind,
    interrupted: impl Future<Output = ()>,
) -> Result<bool, Failure> {
    let stage = Stage::set(options).await?;
    let subject = Subject::start(&stage, kind, &options.under).await?;
    let (id, addr) = (subject.process.id(), subject.addr);
    println!(
        "{kind}: process {id}, listening on {addr}, backend {}",
        stage.backend
    );
    if let Some(redis) = &stage.redis {
        println!("redis-server: {}", redis.addr);
    }
    println!("drive it: --drive {addr} --requests 2000 --connections 1 --size 300B");
    println!("end it: Ctrl-C, or kill {}", std::process::id());
    interrupted.await;
    // With a SIGTERM rather than by the guard: a profiler writes its file then.
    subject.process.terminate(PATIENCE).await?;
    Ok(true)
}

/// Sends a fixed number of turns to a proxy that runs already.
pub(crate) async fn drive(options: &Options, addr: SocketAddr) -> Result<bool, Failure> {
    let (load, _holder) = driven(Kind::Bare, addr, options).await?;
    let begun = Instant::now();
    let Tally {
        mut latencies,
        errors,
        ..
    } = load.exactly(addr, options.requests).await;
    let took = begun.elapsed();
    let (turns, seconds) = (latencies.len(), took.as_secs_f64());
    let (p50, p99) = (
        quantile(&mut latencies, 0.5),
        quantile(&mut latencies, 0.99),
    );
    println!(
        "{turns} turns in {seconds:.3} s, {} µs each; p50 {} µs, p99 {} µs; {} errors",
        figure(micros(took) / turns as f64),
        figure(p50),
        figure(p99),
        errors.count
    );
    if let Some(example) = &errors.example {
        println!("such as: {example}");
    }
    Ok(errors.count == 0)
}
