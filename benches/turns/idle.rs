//! What a process costs before its first turn: the size of its program, the time of its start, its memory, and its CPU while
//! nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::findings::Findings;
use super::options::Plan;
use super::stage::Stage;
use super::statistics::{median, micros};
use super::subject::{Kind, Setup, Starting, Subject};
use super::table::{Table, figure};
use crate::Failure;

/// The pause in which a process does what is left of its start.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures all subjects, and adds a table.
pub(crate) async fn run(
    stage: &Stage,
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let title = format!(
        "Processes without load (start-up: median of {}; CPU: over {} s)",
        plan.starts,
        plan.idle.as_secs_f64()
    );
    let mut table = Table::new(
        &title,
        [
            "subject",
            "program, MB",
            "start-up, ms",
            "resident memory, MiB",
            "idle CPU, ms per second",
        ],
    );
    let mut subjects = Vec::new();
    for &kind in &findings.cast {
        eprintln!("process: {} starts of {kind}", plan.starts);
        let mut starts = Vec::new();
        for _ in 0..plan.starts {
            starts.push(start_up(stage, kind).await?);
        }
        let subject = Subject::start(stage, kind, &[]).await?;
        subjects.push((subject, median(&starts)));
    }
    eprintln!("process: idle for {:?}", plan.idle);
    tokio::time::sleep(SETTLE).await;
    let mut before = Vec::new();
    for (subject, _) in &subjects {
        before.push(subject.cpu()?);
    }
    tokio::time::sleep(plan.idle).await;
    for ((subject, start_up), before) in subjects.iter().zip(before) {
        let cpu = subject.cpu()?.since(before);
        // bare and naive are this benchmark's own program.
        let size = match subject.kind {
            Kind::Bare | Kind::Naive => f64::NAN,
            _ => fs::metadata(format!("/proc/{}/exe", subject.process.id()))?.len() as f64,
        };
        table.row([
            subject.kind.to_string(),
            figure(size / 1e6),
            figure(start_up / 1000.0),
            figure(subject.resident_kib()? / 1024.0),
            figure(micros(cpu) / 1000.0 / plan.idle.as_secs_f64()),
        ]);
    }
    findings.tables.push(table);
    Ok(())
}

/// The time from the start of a process until it accepts a connection, in µs.
async fn start_up(stage: &Stage, kind: Kind) -> Result<f64, Failure> {
    let begun = Instant::now();
    let mut starting = Starting::spawn(stage, kind, &Setup::usual(stage), &[], true)?;
    loop {
        if TcpStream::connect(starting.addr).await.is_ok() {
            return Ok(micros(begun.elapsed()));
        }
        if let Some(status) = starting.process.ended()? {
            return Err(format!("{kind} ended at its start: {status}").into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
