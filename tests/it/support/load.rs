//! A steady load: some clients for each session, which send one turn after another at all replicas.
//!
//! Invariant: no answer is wrong. A turn is served in full, refused with a reason, or cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use super::backend::{Backend, events};
use super::client::{Client, Request};
use super::{wait_for, within};

/// How many clients send turns of one session.
const CLIENTS_EACH: usize = 3;

/// How many events a turn has, 15 ms apart.
const EVENTS: usize = 6;

/// The clients, which send turns until [`Load::stop`].
pub(crate) struct Load {
    state: Arc<LoadState>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct LoadState {
    is_over: AtomicBool,
    /// How many turns of each session were served.
    served: Vec<AtomicUsize>,
    /// Every refusal and every cut, with its reason.
    failures: Mutex<Vec<String>>,
}

// === impl Load ===

impl Load {
    /// Sends turns of these sessions to these replicas.
    pub(crate) fn start(replicas: &[SocketAddr], sessions: &[String]) -> Self {
        let state = Arc::new(LoadState {
            served: sessions.iter().map(|_| AtomicUsize::new(0)).collect(),
            ..LoadState::default()
        });
        let clients = (0..sessions.len() * CLIENTS_EACH).map(|n| {
            let number = n % sessions.len();
            let turns = take_turns(
                Arc::clone(&state),
                replicas.to_vec(),
                n,
                number,
                sessions[number].clone(),
            );
            tokio::spawn(turns)
        });
        Self {
            clients: clients.collect(),
            state,
        }
    }

    /// Waits until turns of each session were served that began after this call.
    pub(crate) async fn progress(&self, after: &str) {
        let served = || {
            self.state
                .served
                .iter()
                .map(|one| one.load(Ordering::Relaxed))
        };
        // Each client may have had one turn under way.
        let enough: Vec<_> = served().map(|count| count + CLIENTS_EACH + 1).collect();
        let is_served = || {
            served()
                .zip(&enough)
                .all(|(count, enough)| count >= *enough)
        };
        wait_for(is_served, &format!("each session is served {after}")).await;
    }

    /// Every refusal and every cut so far, with its reason.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.state.failures().clone()
    }

    /// Waits until all clients have their last answer, and asserts that turns never overlapped at the backend.
    pub(crate) async fn stop(self, backend: &Backend) {
        self.state.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            let ended = within("the last answer of each client", client).await;
            ended.expect("no answer is wrong");
        }
        assert_eq!(
            backend.overlaps(),
            [],
            "turns of a session never overlap; failures: {:?}",
            self.state.failures()
        );
    }
}

impl LoadState {
    fn failures(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends turns of the session with this number, each to another replica than the last.
async fn take_turns(
    state: Arc<LoadState>,
    replicas: Vec<SocketAddr>,
    client: usize,
    session: usize,
    name: String,
) {
    let request = Request::turn(&name, &format!("chunked:{EVENTS}:15"));
    for at in client.. {
        if state.is_over.load(Ordering::Relaxed) {
            return;
        }
        let mut client = Client::connect(replicas[at % replicas.len()]).await;
        client.send(&request).await;
        let failure = match client.try_answer().await {
            Ok(answer) if answer.status == 200 && answer.whole => {
                assert_eq!(answer.text(), events(EVENTS), "a complete response");
                state.served[session].fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Ok(answer) if answer.status == 200 => format!("{name}: cut"),
            Ok(answer) => {
                let reason = answer.header("x-seriatim-error");
                let reason = reason.unwrap_or_else(|| panic!("a refusal has a reason: {answer:?}"));
                format!("{name}: {} {reason}: {}", answer.status, answer.text())
            }
            Err(_) => format!("{name}: closed without an answer"),
        };
        state.failures().push(failure);
    }
}
