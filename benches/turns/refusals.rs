//! The cost of a refusal: a stream holds a session, and the turns of other clients in that session get a 429.

use std::sync::Arc;

use super::backend;
use super::client::{Connection, request};
use super::findings::Findings;
use super::load::Load;
use super::options::Plan;
use super::subject::Subject;
use crate::Failure;

const SIZE: usize = 300;
const CLIENTS: usize = 16;

/// The status of the refusal by default (`[busy]`).
pub(crate) const BUSY: u16 = 429;

/// Measures one series of slices for each subject that has a lock.
pub(crate) async fn run(
    subjects: &[Subject],
    plan: &Plan,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let mut holders = Vec::new();
    for subject in subjects.iter().filter(|subject| subject.kind.locks()) {
        let mut holder = Connection::open(subject.addr).await?;
        let target = format!("/chat?{}", backend::HOLD);
        holder
            .begin_stream(&request(&target, &session(subject), SIZE))
            .await?;
        holders.push(holder);
        findings.refusals.push((subject.kind, Vec::new()));
    }
    for round in 1..=plan.slices {
        eprintln!("refusals: round {round} of {}", plan.slices);
        for (subject, errors) in subjects.iter().zip(&mut findings.errors) {
            // The baseline refuses nothing, so it has no series.
            let Some((_, slices)) = findings
                .refusals
                .iter_mut()
                .find(|(kind, _)| *kind == subject.kind)
            else {
                continue;
            };
            let turn: Arc<[u8]> = request("/chat", &session(subject), SIZE).into();
            let load = Load {
                requests: vec![turn; CLIENTS],
                expected: BUSY,
                tolerated: None,
            };
            slices.push(load.slice(subject, plan.slice, errors).await?);
        }
    }
    Ok(())
}

fn session(subject: &Subject) -> String {
    format!("{}-held", subject.kind)
}
