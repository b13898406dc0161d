//! The cost of open streams: memory for each idle one, and CPU for each event.
//!
//! Each process is new: memory that an earlier load has freed would hide what a stream takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::backend;
use super::client::{Connection, request};
use super::findings::Findings;
use super::options::Plan;
use super::procfs::open_files_limit;
use super::stage::Stage;
use super::statistics::micros;
use super::subject::{Kind, Subject};
use crate::Failure;

const SIZE: usize = 300;

/// The pause before and after a measurement, so that opening and closing streams isn't counted.
const SETTLE: Duration = Duration::from_millis(600);

/// The results of one subject.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) kind: Kind,
    /// Resident memory per idle stream, in KiB.
    pub(crate) kib_per_stream: f64,
    /// CPU time of the proxy per event in each slice, in µs.
    pub(crate) cpu_per_event: Vec<f64>,
}

/// How many streams the limit of open files allows. A stream takes two in the proxy, and one each here and in the backend.
pub(crate) fn most_streams() -> usize {
    open_files_limit().saturating_sub(200) / 2
}

/// Starts all subjects anew, and measures them.
pub(crate) async fn run(
    stage: &Stage,
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let streams = plan.streams.min(most_streams());
    let busy_streams = plan.event_streams.min(most_streams());
    if streams < plan.streams {
        findings.notes.push(format!(
            "{streams} streams instead of {}, for the limit of open files (`ulimit -n`).",
            plan.streams
        ));
    }
    findings.open_streams = (streams, busy_streams);
    let mut fresh = Vec::new();
    for &kind in &findings.cast {
        eprintln!("streams: {streams} idle ones through {kind}");
        let subject = Subject::start(stage, kind, &[]).await?;
        let kib_per_stream = idle(&subject, streams).await?;
        findings.streams.push(Streams {
            kind,
            kib_per_stream,
            cpu_per_event: Vec::new(),
        });
        fresh.push(subject);
    }
    for round in 1..=plan.slices {
        eprintln!("streams: events, round {round} of {}", plan.slices);
        for (subject, result) in fresh.iter().zip(&mut findings.streams) {
            // A second has twenty events of each stream; in less, rounding would matter.
            let time = plan.slice.max(Duration::from_secs(1));
            result
                .cpu_per_event
                .push(busy(subject, round, time, busy_streams).await?);
        }
    }
    Ok(())
}

/// Holds idle streams open. Returns how much resident memory grew for each, in KiB.
async fn idle(subject: &Subject, streams: usize) -> Result<f64, Failure> {
    tokio::time::sleep(SETTLE).await;
    let before = subject.resident_kib()?;
    let mut open = Vec::with_capacity(streams);
    for stream in 0..streams {
        open.push(
            begin(
                subject,
                backend::HOLD,
                &format!("{}-idle-{stream}", subject.kind),
            )
            .await?,
        );
    }
    tokio::time::sleep(SETTLE).await;
    let after = subject.resident_kib()?;
    drop(open);
    tokio::time::sleep(SETTLE).await;
    Ok((after - before) / streams as f64)
}

/// Streams events for `time`. Returns the CPU time per event, in µs.
async fn busy(
    subject: &Subject,
    round: usize,
    time: Duration,
    streams: usize,
) -> Result<f64, Failure> {
    let seen = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for stream in 0..streams {
        // A new session in each round: that of the last round may still be locked.
        let session = format!("{}-events-{round}-{stream}", subject.kind);
        let mut open = begin(subject, backend::EVENTS, &session).await?;
        let seen = Arc::clone(&seen);
        readers.spawn(async move {
            loop {
                match open.events().await {
                    Ok(events) => seen.fetch_add(events, Ordering::Relaxed),
                    Err(error) => return error,
                };
            }
        });
    }
    tokio::time::sleep(SETTLE).await;
    let (first, before) = (seen.load(Ordering::Relaxed), subject.cpu()?);
    tokio::time::sleep(time).await;
    let (last, cpu) = (seen.load(Ordering::Relaxed), subject.cpu()?.since(before));
    if let Some(ended) = readers.try_join_next() {
        return Err(format!(
            "{}: a stream that never ends ended: {}",
            subject.kind, ended?
        )
        .into());
    }
    let events = (last - first) as f64;
    Ok(micros(cpu) / events)
}

async fn begin(subject: &Subject, query: &str, session: &str) -> Result<Connection, Failure> {
    let opened = async {
        let mut connection = Connection::open(subject.addr).await?;
        connection
            .begin_stream(&request(&format!("/chat?{query}"), session, SIZE))
            .await?;
        Ok::<_, std::io::Error>(connection)
    };
    match tokio::time::timeout(Duration::from_secs(10), opened).await {
        Ok(opened) => Ok(opened
            .map_err(|error| format!("{}: the stream of {session}: {error}", subject.kind))?),
        Err(_) => Err(format!(
            "{}: the stream of {session} did not begin within 10 s",
            subject.kind
        )
        .into()),
    }
}
