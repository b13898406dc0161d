//! The cost of a refusal: a stream holds a session, and the turns of other clients in that session get a 429.

use std::net::SocketAddr;
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
        holders.push(hold(subject.addr).await?);
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
            let load = load(subject.addr, CLIENTS);
            slices.push(load.slice(subject, plan.slice, errors).await?);
        }
    }
    Ok(())
}

/// Takes the session of [`load`] through the proxy at `addr`. The session stays busy until the connection is dropped.
pub(crate) async fn hold(addr: SocketAddr) -> Result<Connection, Failure> {
    let mut holder = Connection::open(addr).await?;
    let target = format!("/chat?{}", backend::HOLD);
    let turn = request(&target, &session(addr), SIZE);
    holder.begin_stream(&turn).await?;
    Ok(holder)
}

/// Clients whose turns are all refused by the proxy at `addr`, while [`hold`] holds their session.
pub(crate) fn load(addr: SocketAddr, clients: usize) -> Load {
    let turn: Arc<[u8]> = request("/chat", &session(addr), SIZE).into();
    Load {
        requests: vec![turn; clients],
        expected: BUSY,
        tolerated: None,
    }
}

/// A session that no other proxy has: some proxies share a Redis.
fn session(addr: SocketAddr) -> String {
    format!("held-{}", addr.port())
}
