//! The run itself: each subject in turn, case by case.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Connection, request};
use super::findings::{Findings, Turns};
use super::load::{Load, Slice};
use super::options::{Case, Options, Plan};
use super::procfs::MachineTime;
use super::stage::Stage;
use super::subject::{Kind, Subject};
use super::{commands, growth, handover, idle, machine, redis, refusals, streams};
use crate::Failure;

/// How long the round trip to Redis is measured in a round.
const PINGING: Duration = Duration::from_millis(150);

/// Measures everything that the options ask for. Returns whether all responses were as expected and nothing is missing.
pub(crate) async fn run(options: &Options) -> Result<bool, Failure> {
    let began = MachineTime::now()?;
    let stage = Stage::set(options).await?;
    let (cast, skipped) = stage.castable(&options.subjects);
    let mut findings = Findings::of(cast);
    findings.problems.extend(skipped);
    findings.notes = machine::describe(&stage, &findings.cast);
    findings.notes.extend(stage.absent(&options.subjects));
    // What was found before a failure is worth its minutes.
    if let Err(failure) = gather(&stage, options, &mut findings).await {
        findings
            .problems
            .push(format!("the run broke off: {failure}"));
    }
    // Only children that have ended count as this process's own time.
    drop(stage);
    findings.others = MachineTime::now()?.others_since(began);
    let report = findings.report(&options.plan);
    println!("\n{report}");
    if let Some(folder) = options.output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let written = std::fs::write(&options.output, report);
    written.map_err(|error| format!("{}: {error}", options.output.display()))?;
    println!("Written to {}", options.output.display());
    Ok(findings.sound())
}

async fn gather(stage: &Stage, options: &Options, findings: &mut Findings) -> Result<(), Failure> {
    let plan = &options.plan;
    let mut subjects = Vec::new();
    let has_load = !options.cases().is_empty() || options.wants("refusals");
    for &kind in findings.cast.iter().filter(|_| has_load) {
        let subject = Subject::start(stage, kind, &[]).await?;
        findings.idle_kib.push(subject.resident_kib()?);
        subjects.push(subject);
    }
    for case in options.cases() {
        in_turn(stage, &subjects, case, plan, findings).await?;
    }
    if options.wants("refusals") {
        refusals::run(&subjects, plan, findings).await?;
    }
    for subject in &subjects {
        findings.loaded_kib.push(subject.resident_kib()?);
    }
    for subject in subjects.iter().filter(|subject| subject.redis.is_some()) {
        let commands = commands::per_turn(stage, subject).await?;
        findings.commands.push((subject.kind, commands));
    }
    // Their timers would take CPU from the streams' subjects, which are processes of their own.
    drop(subjects);
    if options.wants("streams") {
        streams::run(stage, plan, findings).await?;
    }
    if options.wants("handover") {
        handover::run(stage, plan, findings).await?;
    }
    if options.wants("growth") {
        growth::run(stage, plan, findings).await?;
    }
    if options.wants("process") {
        idle::run(stage, plan, findings).await?;
    }
    Ok(())
}

/// Measures one case: in each round, each subject once.
async fn in_turn(
    stage: &Stage,
    subjects: &[Subject],
    case: Case,
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Case {
        name,
        size,
        connections,
    } = case;
    let loads: Vec<Load> = subjects
        .iter()
        .map(|subject| load(subject.kind, size, connections))
        .collect();
    let mut series: Vec<Vec<Slice>> = subjects.iter().map(|_| Vec::new()).collect();
    let mut round_trips = Vec::new();
    for round in 1..=plan.slices {
        eprintln!("{name}: round {round} of {}", plan.slices);
        for (index, subject) in subjects.iter().enumerate() {
            let errors = &mut findings.errors[index];
            series[index].push(loads[index].slice(subject, plan.slice, errors).await?);
        }
        if let (1, Some(redis)) = (connections, &stage.redis) {
            round_trips.push(redis::round_trip(redis.addr, PINGING).await?);
        }
    }
    findings.turns.push(Turns {
        name,
        series,
        round_trips,
    });
    Ok(())
}

/// Clients that each send turns of a session of their own.
pub(crate) fn load(kind: Kind, size: usize, connections: usize) -> Load {
    let requests = (0..connections)
        .map(|client| Arc::from(request("/chat", &format!("{kind}-{client}"), size)));
    Load {
        requests: requests.collect(),
        expected: 200,
        // It releases after its response has ended, and so refuses some of its own clients.
        tolerated: (kind == Kind::Naive).then_some(refusals::BUSY),
    }
}

/// The load that `options` ask for on one connection or more, and the holder of its session if its turns are to be refused.
pub(crate) async fn driven(
    kind: Kind,
    addr: SocketAddr,
    options: &Options,
) -> Result<(Load, Option<Connection>), Failure> {
    Ok(match options.refused {
        false => (load(kind, options.size, options.connections), None),
        true => {
            let holder = refusals::hold(addr).await?;
            (refusals::load(addr, options.connections), Some(holder))
        }
    })
}
