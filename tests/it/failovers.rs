//! Redis changes while turns run: a master fails over or is killed, a slot moves. Turns never overlap, every session is
//! served again, and no key is left.

use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::app::{App, CHAT};
use crate::support::backend::Backend;
use crate::support::bench::hold;
use crate::support::client::{Client, begin_turn};
use crate::support::process::Process;
use crate::support::redis::Redis;

mod cluster;
mod sentinel;

const BLOCKING: &str = "[lock]\nblocking = true\n";

/// Options for a store that is given up soon.
const QUICK: &str = "timeout = \"1s\"\ncrash_recovery = \"5s\"\n";

/// Options for a store that may take its time: a command is sent again for so long.
const PATIENT: &str = "timeout = \"10s\"\ncrash_recovery = \"30s\"\n";

/// Two replicas on the Redis at this URL, whose turns wait for each other.
fn start(backend: &Backend, url: &str, store: &str) -> [App; 2] {
    let config = format!("{BLOCKING}{CHAT}");
    [0, 1].map(|n| {
        let store = format!("instance = \"pod-{n}\"\n{store}");
        App::start(&backend.url(), url, &store, &config)
    })
}

/// A turn whose lock the next master has, and one whose lock it lacks: how they and those behind them end.
struct HeldTurns {
    backend: Backend,
    /// The replica with the held turns, which can be stopped.
    holder: Process,
    /// The replica with the turns that wait for them.
    other: App,
    kept: Option<HeldTurn>,
    lost: Option<HeldTurn>,
}

struct HeldTurn {
    session: String,
    held: Client,
    next: Client,
}

// === impl HeldTurns ===

impl HeldTurns {
    /// Starts both replicas, without turns.
    async fn start(url: &str) -> Self {
        let backend = Backend::start("plain:ok").await;
        // Long enough for a slow machine to let both replicas see what happens.
        let store = format!("failover_grace = \"5s\"\n{PATIENT}");
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("config.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\nupstream = \"{}\"\n[store]\nurl = \"{url}\"\ninstance = \"pod-0\"\n\
             {store}\n{BLOCKING}{CHAT}",
            backend.url(),
        );
        std::fs::write(&file, text).expect("the file is written");
        let store = format!("instance = \"pod-1\"\n{store}");
        let config = format!("{BLOCKING}{CHAT}");
        Self {
            holder: tokio::task::block_in_place(|| Process::start(&file)),
            other: App::start(&backend.url(), url, &store, &config),
            backend,
            kept: None,
            lost: None,
        }
    }

    async fn hold(&self, session: &str, waiters: usize) -> HeldTurn {
        let held = hold(self.holder.addr(), session).await;
        let next = begin_turn(self.other.addr(), session, "plain:next").await;
        self.other.wait_for_waiters(waiters).await;
        HeldTurn {
            session: session.to_owned(),
            held,
            next,
        }
    }

    /// Holds the lock that the next master is to lack.
    async fn hold_lost(&mut self, session: &str) {
        self.lost = Some(self.hold(session, 1).await);
    }

    /// Holds the lock that the next master is to have.
    async fn hold_kept(&mut self, session: &str) {
        self.kept = Some(self.hold(session, 2).await);
    }

    /// Lets Redis fail over while the replica with the held turns is stopped, so that the other replica knows of it
    /// first. `failover` gives the new master.
    async fn assert_ends_after<'r>(mut self, failover: impl AsyncFnOnce() -> &'r Redis) {
        self.holder.signal("STOP");
        let master = failover().await;
        master.is_connected().await;
        let (lost, kept) = (self.lost.take(), self.kept.take());
        let (mut lost, mut kept) = (lost.expect("it is held"), kept.expect("it is held"));
        let next = self.backend.started(&lost.session, 2);
        assert!(
            timeout(Duration::from_secs(1), next).await.is_err(),
            "no other turn begins before its holder may know of the failover"
        );
        self.holder.signal("CONT");
        assert!(
            !lost.held.answer().await.whole,
            "a turn without a lock at the new master is cut"
        );
        assert_eq!(
            lost.next.answer().await.status,
            200,
            "the next one is served"
        );
        assert_eq!(
            self.backend.running(&kept.session),
            1,
            "a turn whose lock the new master has goes on"
        );
        self.backend.open_gate(&kept.session);
        assert!(kept.held.answer().await.whole, "to its end");
        assert_eq!(
            kept.next.answer().await.status,
            200,
            "the next one is served"
        );
        assert_eq!(self.backend.overlaps(), [], "turns never overlap");
    }
}
