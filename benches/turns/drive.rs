//! The halves of a run, each by itself: a subject that is held for a profiler, and a load of a fixed number of turns.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::load::Tally;
use super::measure::load;
use super::options::Options;
use super::stage::Stage;
use super::statistics::{micros, quantile};
use super::subject::{Kind, Subject};
use super::table::figure;
use crate::Failure;

/// A drain under valgrind is slow, and a profile is written after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a subject and what it stands on, says where it is, and keeps it until it is told to end.
pub(crate) async fn hold(
    options: &Options,
    kind: Kind,
    told_to_end: impl Future<Output = ()>,
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
    told_to_end.await;
    // With a SIGTERM rather than by the guard: a profiler writes its file then.
    subject.process.terminate(PATIENCE).await?;
    Ok(true)
}

/// Drives a proxy that is running already with a fixed number of turns.
pub(crate) async fn drive(options: &Options, addr: SocketAddr) -> Result<bool, Failure> {
    let load = load(Kind::Bare, options.size, options.connections);
    let begun = Instant::now();
    let Tally {
        mut latencies,
        errors,
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
